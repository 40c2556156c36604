"""Stock LeRobot finds the arm as a plugin, with nothing but its installation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(command, tmp_path, timeout=55, **environment):
    hub = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_LEROBOT_HOME": str(tmp_path / "lerobot")}
    return subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | hub | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_lerobot_calibrate_runs_on_it(tmp_path):
    command = Path(sys.executable).with_name("lerobot-calibrate")
    if not command.exists():
        pytest.skip("LeRobot's commands are not beside this Python")
    done = run([command, "--robot.type=longarm_sim", "--robot.id=test"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test LongarmSim connected" in done.stderr


@pytest.mark.parametrize("renderer", ["auto", "osmesa", "plain"])
def test_a_program_may_end_without_disconnecting(tmp_path, renderer):
    """A thread still inside MuJoCo at the interpreter's end would end the process with a segmentation fault."""
    script = "from lerobot_robot_longarm_sim import LongarmSim, LongarmSimConfig; "
    script += f"arm = LongarmSim(LongarmSimConfig(renderer={renderer!r})); arm.connect(); arm.get_observation()"
    done = run([sys.executable, "-c", script], tmp_path)
    if "RendererUnavailableError" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr


def test_discovery_imports_nothing_heavy_of_ours(tmp_path):
    """LeRobot imports every plugin in every command; those that drive another robot should not pay for ours."""
    script = "import sys, lerobot.robots; before = set(sys.modules); import lerobot_robot_longarm_sim; "
    script += "new = set(sys.modules) - before; assert not {'mujoco', 'PIL', 'OpenGL'} & new, new"
    done = run([sys.executable, "-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
