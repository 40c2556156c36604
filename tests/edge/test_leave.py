"""`longarm-edge leave` as a service manager runs it: after a run that was killed, and after one that was not."""

import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longarm_wire import exit_codes

PLUGINS = Path(__file__).parents[1] / "plugins"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HOME = {f"{joint}.pos": value for joint, value in zip(JOINTS, (0.0, -12.0, 0.0, 78.0, 0.0, 40.0), strict=True)}


class Arm:
    """What happened to the recording arm."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pose_file = directory / "pose.json"
        self.log = directory / "arm.log"

    def killed_at(self, **joints: float) -> None:
        """Leaves what a killed run leaves behind: the pose at which it started."""
        self.pose_file.write_text(json.dumps(HOME | {f"{name}.pos": value for name, value in joints.items()}))

    def start(self, *flags: str, patience: float = 20, **environment: str) -> "subprocess.Popen[str]":
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LONGARM_")}
        robot = {"type": "recording_arm", "log": str(self.log), "calibration_dir": str(self.directory)}
        own = {
            "LONGARM_EDGE_SAFETY__POSE_FILE": str(self.pose_file),
            "LONGARM_EDGE_ROBOT": json.dumps(robot),
            "PYTHONPATH": str(PLUGINS),
        }
        program = (
            "from longarm_edge import cli, leave\n"
            f"leave.PATIENCE_SECONDS, leave.GRACE_SECONDS = {patience}, 1\n"
            "cli.main()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, "leave", *flags],
            env=clean | own | environment,
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def leave(self, *flags: str, patience: float = 20, **environment: str) -> "subprocess.CompletedProcess[str]":
        with self.start(*flags, patience=patience, **environment) as process:
            try:
                stdout, stderr = process.communicate(timeout=50)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def arm(tmp_path: Path) -> Arm:
    return Arm(tmp_path)


def test_after_a_run_that_left_the_arm_there_is_nothing_to_do(arm) -> None:
    """ExecStopPost runs after every stop: a second `release` must not drop an arm that somebody holds up by then."""
    done = arm.leave("--safety.on_stop=release")
    assert done.returncode == exit_codes.DONE, done.stderr
    assert "nothing to do" in done.stderr
    assert arm.events() == []


def test_a_killed_run_under_hold_leaves_the_motors_alone(arm) -> None:
    """Connecting to many arms takes their torque away for a moment: an arm that holds is best left as it is."""
    arm.killed_at()
    done = arm.leave()
    assert done.returncode == exit_codes.DONE, done.stderr
    assert arm.events() == []
    assert not arm.pose_file.exists()


def test_a_killed_run_under_release_ends_with_the_torque_off(arm) -> None:
    arm.killed_at()
    done = arm.leave("--safety.on_stop=release")
    assert done.returncode == exit_codes.DONE, done.stderr
    assert arm.events() == [{"event": "connect"}, {"event": "disconnect", "torque": False}]
    assert "nothing to do" in arm.leave("--safety.on_stop=release").stderr


def test_a_killed_run_under_rest_moves_back_to_where_it_started(arm) -> None:
    arm.killed_at(shoulder_pan=20.0)
    done = arm.leave("--safety.on_stop=rest", "--safety.rest_seconds=2")
    assert done.returncode == exit_codes.DONE, done.stderr
    first, *commands, last = arm.events()
    pans = [command["action"]["shoulder_pan.pos"] for command in commands]
    assert first == {"event": "connect"}
    assert pans[0] == pytest.approx(0, abs=1)
    assert pans[-1] == pytest.approx(20)
    assert max(after - before for before, after in itertools.pairwise(pans)) < 3, "slowly"
    assert last == {"event": "disconnect", "torque": False}, "as the robot's own configuration says"
    assert not arm.pose_file.exists()


def test_a_way_back_that_max_step_makes_long_is_gone_to_its_end(arm) -> None:
    """It was ended half way, as if the robot hung."""
    arm.killed_at(shoulder_pan=36.0)
    done = arm.leave("--safety.on_stop=rest", "--safety.rest_seconds=2", "--safety.max_step=0.05")
    assert done.returncode == exit_codes.DONE, done.stderr
    assert arm.events()[-2]["action"]["shoulder_pan.pos"] == pytest.approx(36)


def test_what_may_drive_is_stopped_under_hold_too(arm) -> None:
    arm.killed_at()
    done = arm.leave('--safety.velocity_actions=["shoulder_pan.pos"]', "--robot.disable_torque_on_disconnect=true")
    assert done.returncode == exit_codes.DONE, done.stderr
    _, *commands, last = arm.events()
    for command in commands:
        assert command["action"]["shoulder_pan.pos"] == 0
        assert command["action"]["wrist_flex.pos"] == pytest.approx(78, abs=3), "the joints stay"
    assert commands
    assert last == {"event": "disconnect", "torque": True}


@pytest.mark.parametrize("pose", ["", "[]", '{"pan": 1}', "{}"])
def test_a_pose_that_makes_no_sense_lets_the_arm_hold(arm, pose: str) -> None:
    """Wherever the way back would lead, it is not there; and an arm in the air must not be dropped for it."""
    arm.pose_file.write_text(pose)
    done = arm.leave("--safety.on_stop=rest")
    assert done.returncode == exit_codes.FAILED
    assert "Traceback" not in done.stderr
    assert arm.events() == [{"event": "connect"}, {"event": "disconnect", "torque": True}]


def test_a_robot_that_hangs_is_given_up_and_what_is_known_of_it_is_said(arm) -> None:
    """systemd would wait for TimeoutStopSec= before it starts the robot again. The kernel ended it without a word."""
    arm.killed_at(shoulder_pan=20.0)
    stuck = arm.directory / "stuck"
    stuck.touch()
    done = arm.leave("--safety.on_stop=rest", "--safety.rest_seconds=2", f"--robot.stuck={stuck}", patience=4)
    assert done.returncode == exit_codes.FAILED
    words = " ".join(done.stderr.split())
    assert "the robot has not answered for 4 s. Its motors go on with the last command that reached them" in words
    assert re.search(r"It was last seen at shoulder_pan.pos \S+, shoulder_lift.pos", words), words
    assert f"run `longarm-edge leave` again: {arm.pose_file} (safety.pose_file) still has the pose" in words
    assert arm.pose_file.exists(), "the arm was not left by rule"


def test_a_driver_that_hangs_and_lets_no_other_thread_go_on_is_given_up(arm) -> None:
    arm.killed_at(shoulder_pan=20.0)
    stuck = arm.directory / "stuck"
    stuck.write_text("hard")
    done = arm.leave("--safety.on_stop=rest", f"--robot.stuck={stuck}", patience=4)
    assert done.returncode == exit_codes.FAILED
    assert "in send_action" in done.stderr, "where it hung"
    assert arm.pose_file.exists()


def test_a_driver_that_exits_does_not_decide_how_it_ends(arm) -> None:
    """SystemExit passed the stop rule: the arm was not let go of, no word was said, and the exit code was 0."""
    arm.killed_at(shoulder_pan=20.0)
    done = arm.leave("--safety.on_stop=rest", "--robot.exits=true")
    assert done.returncode == exit_codes.FAILED
    assert "SystemExit" in done.stderr
    assert arm.events()[-1] == {"event": "disconnect", "torque": True}
    assert arm.pose_file.exists()


def test_a_pose_file_that_another_program_holds_is_no_reason_never_to_try_again(arm) -> None:
    """It was 3, after which no service manager tries again; a serial port that was held gave 1."""
    arm.killed_at()
    with arm.pose_file.with_name("pose.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = arm.leave("--safety.on_stop=release")
    assert done.returncode == exit_codes.FAILED
    assert "A run that is alive has the arm" in " ".join(done.stderr.split())
    assert arm.events() == []


def test_who_interrupts_it_twice_is_told_what_became_of_the_arm(arm) -> None:
    """It was a traceback."""
    arm.killed_at(shoulder_pan=20.0)
    stuck = arm.directory / "stuck"
    stuck.touch()
    process = arm.start("--safety.on_stop=rest", f"--robot.stuck={stuck}")
    deadline = time.monotonic() + 30
    while not arm.events():
        assert time.monotonic() < deadline, "connecting"
        time.sleep(0.05)
    time.sleep(2)  # until it looks no more, and is stuck in the first command
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, said = process.communicate(timeout=15)
    assert process.returncode == exit_codes.INTERRUPTED, said
    assert said.endswith("interrupted by SIGINT: the arm was not left by rule\n")
    assert arm.pose_file.exists()


def test_without_a_pose_file_it_says_what_is_missing(arm) -> None:
    done = arm.leave(LONGARM_EDGE_SAFETY__POSE_FILE="")
    assert done.returncode == exit_codes.CANNOT_START
    assert "safety.pose_file" in done.stderr


def test_a_pose_file_that_cannot_be_looked_for_is_named(arm) -> None:
    done = arm.leave(LONGARM_EDGE_SAFETY__POSE_FILE=str(arm.directory / ("x" * 300)))
    assert done.returncode == exit_codes.CANNOT_START
    assert "safety.pose_file" in done.stderr
    assert "Traceback" not in done.stderr
