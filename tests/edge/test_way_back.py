"""The way back of an arm with Feetech servos, through LeRobot's own driver."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tests.servos import GOAL, Servos

from longarm_edge.aside import aside
from longarm_edge.lerobot_robot import make_robot
from longarm_edge.motion import Motion
from longarm_edge.schedule import MonotonicClock
from longarm_edge.settings import SafetySettings
from longarm_edge.stop import Leaving


@contextmanager
def on_the_way_back(directory: Path, servos: Servos) -> Iterator[Future[str | None]]:
    """Leaves an SO-101 by rest, from a place away from the start pose, and yields the problem to come."""
    robot = make_robot({"type": "so101_follower", **servos.settings(directory)}, [], 30)
    robot.connect()
    start = robot.read_state()
    away = start + np.float32(30)
    robot.send(away)
    leaving = Leaving(
        robot=robot,
        motion=Motion.plan(robot, SafetySettings(on_stop="rest", rest_seconds=2)),
        start_pose=start,
        last_command=away,
        fps=30,
        clock=MonotonicClock(),
        at_once=lambda: False,
    )
    there = servos.positions
    problem = aside(leaving, "leave")
    deadline = time.monotonic() + 10
    while servos.positions == there and time.monotonic() < deadline:
        time.sleep(0.01)
    yield problem


def test_an_arm_at_rest_is_let_go_of(tmp_path) -> None:
    with Servos(torque=True) as servos:
        before = servos.positions
        with on_the_way_back(tmp_path, servos) as problem:
            assert problem.result(20) is None
        assert servos.positions == before
        assert servos.torque == {False}


def test_an_arm_that_is_blocked_on_the_way_back_is_not_dropped(tmp_path) -> None:
    with Servos(torque=True) as servos:
        with on_the_way_back(tmp_path, servos) as problem:
            servos.blocked = {3}
            assert "elbow_flex.pos stands at" in (problem.result(20) or "")
        assert servos.torque == {True}


def test_after_a_silence_on_the_way_back_the_arm_does_not_leap(tmp_path) -> None:
    """Nobody answers what is said to all servos: the commands of a second were lost, and the next was far away."""
    with Servos(torque=True) as servos:
        with on_the_way_back(tmp_path, servos) as problem:
            servos.silent = True
            time.sleep(0.3)
            servos.silent = False
            held = problem.result(20) is not None
        goals = [
            int.from_bytes(value, "little") for servo, address, value in servos.writes if (servo, address) == (1, GOAL)
        ]
        # From where it was sent at first: a whole way of 30 degrees takes some 340 steps in 60 commands, the fastest 9
        assert np.abs(np.diff(goals[1:])).max() < 3 * 9
        assert servos.torque == {held}
