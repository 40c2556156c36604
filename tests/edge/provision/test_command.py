"""The one command of the README, as a person types it: from a bare account to a moving arm, and away again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.edge.provision.conftest import Account, machine_flags

from longarm_edge.tunnel import SshSettings
from longarm_wire import exit_codes


def longarm_edge(command: str, *arguments: str, cwd: Path, timeout: float = 170) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LONGARM_")} | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "longarm_edge", command, *arguments],
        env=clean,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.timeout(240)
def test_up_drives_the_arm_and_down_leaves_nothing(
    ssh: SshSettings, far_python: Path, account: Account, tmp_path: Path
) -> None:
    policy = tmp_path / "my_act"
    script = "import sys; from lerobot_robot_longarm_sim.checkpoint import main; sys.argv[0] = 'x'; main()"
    subprocess.run([sys.executable, "-c", script, str(policy), "--height=96", "--width=128"], check=True, timeout=100)
    machine = machine_flags(ssh, account, far_python)
    robot = ["--robot.type=longarm_sim", "--robot.id=far", f"--robot.calibration_dir={tmp_path}"]
    robot += ["--robot.height=96", "--robot.width=128"]
    up = longarm_edge("up", *machine, "--policy", str(policy), *robot, "--duration=3", cwd=tmp_path)
    assert up.returncode == exit_codes.DONE, up.stderr
    assert "actions/s" in up.stderr
    status = longarm_edge("status", *machine, cwd=tmp_path)
    assert status.returncode == exit_codes.DONE, status.stderr
    assert "ready" in status.stdout + status.stderr
    down = longarm_edge("down", *machine, cwd=tmp_path)
    assert down.returncode == exit_codes.DONE, down.stderr
    assert list(account.home.iterdir()) == []


def test_without_a_machine_it_says_how_to_name_one(tmp_path: Path) -> None:
    done = longarm_edge("up", cwd=tmp_path, timeout=50)
    assert done.returncode == exit_codes.CANNOT_START
    assert "root@gpu.example.com" in done.stderr


def test_a_machine_that_is_not_there(tmp_path: Path) -> None:
    done = longarm_edge("status", "nobody@127.0.0.1", "-p", "1", "--ssh.agent=false", cwd=tmp_path, timeout=50)
    assert done.returncode == exit_codes.FAILED
    assert "takes no connection" in done.stderr
    assert "Traceback" not in done.stderr
