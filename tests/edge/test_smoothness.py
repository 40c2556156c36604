"""The step where chunks meet, beside those within chunks, and the jerk."""

import numpy as np
import pytest

from longarm_edge.smoothness import Smoothness, Where

FPS = 30.0
ARM = np.array([False, False])


def test_steps_are_told_by_where_they_are() -> None:
    found = Smoothness(ARM, FPS, np.zeros(2))
    commands = [(1, 0, 1), (2, 0, 1), (2, -5, 2), (2, -5, 2)]
    steps = [found.moved(np.array([a, b], np.float32), chunk) for a, b, chunk in commands]
    assert [(step.where, step.size) for step in steps] == [
        (Where.START, 1), (Where.WITHIN, 1), (Where.SWITCH, 5), (Where.WITHIN, 0),
    ]  # fmt: skip
    found.stood()
    assert found.moved(np.array([4, -5]), 2).where is Where.START, "of the same chunk, but the arm stood"


def test_a_plan_of_constant_acceleration_has_no_jerk_and_a_kick_has() -> None:
    found = Smoothness(ARM, FPS, np.zeros(2))
    steps = [found.moved(np.array([t**2, 3 * t], np.float32), 1) for t in range(1, 8)]
    assert [step.jerk for step in steps[:2]] == [None, None]
    assert [step.jerk for step in steps[2:]] == [0] * 5
    kicked = found.moved(np.array([64.0 + 1, 24]), 1)
    assert kicked.jerk == pytest.approx(FPS**3 / np.sqrt(2)), "of two joints, one"


def test_an_arm_that_stood_begins_from_rest() -> None:
    found = Smoothness(ARM, FPS, np.zeros(2))
    for t in range(4):
        found.moved(np.array([t, t]), 1)
    for _ in range(3):
        found.stood()
    assert found.moved(np.array([3, 3]), 2).jerk == 0


@pytest.mark.parametrize(
    ("is_velocity", "size"), [([False, True], 1), ([True, True], 7)], ids=["arm on wheels", "wheels only"]
)
def test_velocities_are_looked_at_where_there_is_nothing_else(is_velocity: list[bool], size: float) -> None:
    found = Smoothness(np.array(is_velocity), FPS, np.zeros(2))
    assert found.moved(np.array([1, 7]), 1).size == size


def test_a_joint_of_which_nothing_is_known_has_no_first_step() -> None:
    found = Smoothness(ARM, FPS, np.array([np.nan, np.nan]))
    first = [found.moved(np.array([5, t]), 1) for t in range(4)]
    assert [step.size for step in first] == [0, 1, 1, 1]
    assert [step.jerk for step in first] == [None, None, None, 0]
