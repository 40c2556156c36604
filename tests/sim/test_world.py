"""The simulated world by itself: stepped by hand, so these tests do not wait for real time."""

import numpy as np
import pytest

from lerobot_robot_longarm_sim.joints import HOME
from lerobot_robot_longarm_sim.world import CUBE_HIGH, CUBE_LOW, World, ordered

OPEN, SHUT = 60.0, 0.0
# The five body joints, degrees: above the cube at its fixed place, around it, and above the bin.
ABOVE_CUBE = (21.4, 29.2, -31.1, 86.0, 21.4)
AROUND_CUBE = (21.4, 45.4, -22.4, 67.2, 21.4)
ABOVE_BIN = (-62.0, 14.8, -22.3, 62.4, -62.0)


def move(world, body, gripper, seconds=1.2):
    """Moves as a policy would: targets along a line, 30 a second."""
    start, goal = world.instant().joints, np.array([*body, gripper])
    ticks = round(seconds * 30)
    for tick in range(1, ticks + 1):
        world.command(start + (goal - start) * min(1.0, 1.5 * tick / ticks))
        world.advance(1 / 30)


def test_the_cube_can_be_picked_up_and_put_into_the_bin():
    """The score has to be reachable: a task that no policy can do measures none."""
    world = World()
    move(world, ABOVE_CUBE, OPEN)
    move(world, AROUND_CUBE, OPEN)
    move(world, AROUND_CUBE, SHUT)
    move(world, ABOVE_CUBE, SHUT)
    held = world.ground_truth()
    assert held.cube_position[2] > 0.05, "lifted"
    assert held.joint_positions["gripper"] > 20.0, "held, not lost: the fingers do not meet"
    assert not held.cube_in_bin
    move(world, ABOVE_BIN, SHUT, seconds=2.0)
    move(world, ABOVE_BIN, OPEN)
    assert world.ground_truth().cube_in_bin


def test_servos_hold_home_within_a_degree_or_so():
    world = World()
    world.advance(2.0)
    assert world.ground_truth().joint_positions == pytest.approx(HOME, abs=1.5)


def test_servos_lag_and_have_a_top_speed():
    world = World()
    world.command(ordered(HOME | {"shoulder_pan": 100.0}))
    world.advance(0.1)
    assert 1.0 < world.ground_truth().joint_positions["shoulder_pan"] < 35.0
    world.advance(2.0)
    assert world.ground_truth().joint_positions["shoulder_pan"] == pytest.approx(100.0, abs=1.5)


def test_every_seeded_cube_lies_within_reach_on_the_mat():
    world = World(seed=0)
    for _ in range(20):
        x, y, _z = world.ground_truth().cube_position
        assert CUBE_LOW[0] <= x <= CUBE_HIGH[0]
        assert CUBE_LOW[1] <= y <= CUBE_HIGH[1]
        world.reset()
