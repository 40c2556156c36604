"""The bench's robot, as LeRobot makes it from flags, and what it logs."""

import time
from pathlib import Path

import numpy as np
import pytest

from bench import marks, robot_log
from bench.arm import CAMERAS, COUNT_NAME, JOINT_NAMES
from bench.config_arm import BenchArmConfig
from longarm_edge.lerobot_robot import make_robot


@pytest.fixture
def film(tmp_path: Path) -> Path:
    file = tmp_path / "film.npy"
    np.save(file, np.random.default_rng(0).integers(0, 255, (4, len(CAMERAS), 48, 64, 3), np.uint8))
    return file


def test_the_log_says_what_was_seen_and_sent_and_when(film: Path, tmp_path: Path) -> None:
    log = tmp_path / "robot.bin"
    assert BenchArmConfig.get_choice_name(BenchArmConfig) == "longarm_bench"
    robot = make_robot({"type": "longarm_bench", "frames": str(film), "log": str(log)}, [], 30).lerobot
    robot.connect()
    before = time.monotonic()
    seen = robot.get_observation()
    digits = dict(zip(marks.MARK_NAMES, marks.to_digits(1), strict=True))
    robot.send_action({**dict.fromkeys(JOINT_NAMES, 7.5), **digits})
    again = robot.get_observation()
    after = time.monotonic()

    assert seen[CAMERAS[0]].shape == (48, 64, 3)
    assert [marks.from_state(one[COUNT_NAME]) for one in (seen, again)] == [1, 2]
    assert [again[name] for name in JOINT_NAMES] == [7.5] * len(JOINT_NAMES)
    events = robot_log.read(log)  # nothing was closed: a killed process leaves as much
    assert events["kind"].tolist() == [robot_log.OBSERVED, robot_log.COMMANDED, robot_log.OBSERVED]
    assert events["mark"].tolist() == [1, 1, 2]
    assert (np.diff(events["begun"]) >= 0).all()
    assert (events["ended"] >= events["begun"]).all()
    assert before <= events["begun"][0]
    assert events["ended"][-1] <= after
    assert events["joints"][:, 0].tolist() == [0, 7.5, 7.5]


def test_a_torn_event_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "robot.bin"
    log = robot_log.RobotLog(file)
    log.write(robot_log.OBSERVED, 1.0, 1.1, 1, np.zeros(robot_log.JOINT_COUNT, np.float32))
    log.close()
    file.write_bytes(file.read_bytes() + b"half an event")
    assert len(robot_log.read(file)) == 1
    assert len(robot_log.read(tmp_path / "none")) == 0


def test_frames_belong_to_their_caller(film: Path, tmp_path: Path) -> None:
    """A peer that draws into its frame must not change what the camera shows next."""
    settings = {"type": "longarm_bench", "frames": str(film), "log": str(tmp_path / "robot.bin")}
    robot = make_robot(settings, [], 30).lerobot
    robot.connect()
    robot.get_observation()[CAMERAS[0]][:] = 0
    assert robot.get_observation()[CAMERAS[0]].any()
