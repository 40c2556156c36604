"""The command longarm-edge as a person runs it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from longarm_edge import cli
from longarm_wire import exit_codes


def longarm_edge(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LONGARM_")}
    return subprocess.run(
        [sys.executable, "-m", "longarm_edge", *arguments],
        env=clean | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_help_names_the_commands(tmp_path: Path) -> None:
    done = longarm_edge("--help", cwd=tmp_path)
    assert done.returncode == exit_codes.DONE
    for word in ("run", "demo", "check-config", "--robot.type=so101_follower"):
        assert word in done.stdout


def test_help_of_run_lists_every_setting_with_its_meaning(tmp_path: Path) -> None:
    done = longarm_edge("run", "--help", cwd=tmp_path)
    assert done.returncode == exit_codes.DONE
    for flag in (
        "--server_address",
        "--chunk_size_threshold",
        "--safety.max_action_age",
        "--debug_visualize_queue_size",
    ):
        assert flag in done.stdout
    assert "SecretStr" not in done.stdout


def test_check_config_prints_what_is_in_force(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LONGARM_EDGE_FPS=15\nLONGARM_EDGE_TASK=pick\n")
    done = longarm_edge("check-config", "--task=place", cwd=tmp_path, LONGARM_EDGE_REPLAN="threshold")
    assert done.returncode == exit_codes.DONE
    assert {"LONGARM_EDGE_FPS=15.0", "LONGARM_EDGE_TASK=place", "LONGARM_EDGE_REPLAN=threshold"} <= set(
        done.stdout.splitlines()
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (
            [],
            {"LONGARM_EDGE_SERVER_ADRESS": "x:1"},
            exit_codes.CANNOT_START,
            "Did you mean LONGARM_EDGE_SERVER_ADDRESS?",
        ),
        ([], {"LONGARM_EGDE_FPS": "30"}, exit_codes.CANNOT_START, "LONGARM_EDGE_FPS"),
        (["--duration=inf"], {}, exit_codes.CANNOT_START, "LONGARM_EDGE_DURATION (--duration)"),
        (["--fps=0"], {}, exit_codes.CANNOT_START, "LONGARM_EDGE_FPS (--fps)"),
        (["--fps=1e9"], {}, exit_codes.CANNOT_START, "LONGARM_EDGE_FPS (--fps)"),
        ([], {"LONGARM_EDGE_SERVER_ADDRESS": "nowhere"}, exit_codes.CANNOT_START, "host:port"),
        ([], {}, exit_codes.CANNOT_START, "No robot is configured"),
        (["--robot.type=so101_folower"], {}, exit_codes.CANNOT_START, "did you mean so101_follower?"),
        ([], {"LONGARM_EDGE_ROBOT": "{type: so101_follower"}, exit_codes.CANNOT_START, "LONGARM_EDGE_ROBOT"),
        (["--robot.type=longarm_sim"], {}, exit_codes.CANNOT_START, "No policy is named"),
        (["--robot.type=longarm_sim", "--robot.wheels=4"], {}, exit_codes.CANNOT_START, "wheels"),
        (
            ["--robot.type=longarm_sim", "--robot.flag", "--duration=5"],
            {},
            exit_codes.CANNOT_START,
            "--robot.flag=true",
        ),
        (
            ["--robot.type"],
            {},
            exit_codes.CANNOT_START,
            "Expected a value after --robot.type, found the end of the line",
        ),
        (["--no_such_flag=1"], {}, exit_codes.BAD_USAGE, "no_such_flag"),
        (["fly"], {}, exit_codes.BAD_USAGE, "there is no command 'fly'"),
    ],
)
def test_bad_configuration_is_one_clear_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], code: int, words: str
) -> None:
    done = longarm_edge(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_robot_flags_go_on_top_of_the_robot_setting(tmp_path: Path) -> None:
    """LeRobot's own flags work unchanged, cameras included."""
    done = longarm_edge(
        "check-config",
        "--robot.port=/dev/ttyACM1",
        "--robot.cameras={front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}",
        cwd=tmp_path,
        LONGARM_EDGE_ROBOT='{"type": "so101_follower", "port": "/dev/ttyACM0", "max_relative_target": 5}',
    )
    assert done.returncode == exit_codes.DONE, done.stderr
    for word in ("port='/dev/ttyACM1'", "max_relative_target=5", "OpenCVCameraConfig"):
        assert word in done.stdout


def test_yaml_configures_a_robot_too(tmp_path: Path) -> None:
    done = longarm_edge("check-config", cwd=tmp_path, LONGARM_EDGE_ROBOT="{type: longarm_sim, id: left}")
    assert done.returncode == exit_codes.DONE, done.stderr
    assert "id='left'" in done.stdout


def test_robot_flags_may_have_their_value_in_the_next_word() -> None:
    words = ["--robot.type", "longarm_sim", "--fps", "30", "--robot.offset", "-5", "--robot.flag=true"]
    robot_flags = ["--robot.type=longarm_sim", "--robot.offset=-5", "--robot.flag=true"]
    assert cli._split(words) == (robot_flags, ["--fps", "30"])


@pytest.mark.parametrize(
    ("given", "full"),
    [
        (["--record", "out"], ["--record.dir", "out"]),
        (["--record=out", "--record.resume"], ["--record.dir=out", "--record.resume"]),
        (["--display"], ["--display=spawn"]),
        (["--display", "--fps=10"], ["--display=spawn", "--fps=10"]),
        (["--display", "run.rrd"], ["--display", "run.rrd"]),
        (["--display=run.rrd"], ["--display=run.rrd"]),
    ],
)
def test_record_and_display_have_short_forms(given: list[str], full: list[str]) -> None:
    assert cli._unabbreviated(given) == full
