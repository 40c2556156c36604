"""What the values of an action are, and what is made of a robot that cannot be moved or left as it was asked for."""

from dataclasses import replace

import numpy as np
import pytest

from longarm_edge.actions import ActionKinds, pose_in
from longarm_edge.motion import Motion
from longarm_edge.robot import Torque
from longarm_edge.settings import SafetySettings, StopRule
from longarm_wire.settings import ConfigurationError


@pytest.mark.parametrize(
    ("name", "is_velocity"),
    [
        # As LeRobot 0.6.1 names them
        ("shoulder_pan.pos", False),
        ("left_gripper.pos", False),
        ("arm_gripper.pos", False),
        ("kLeftHipPitch.q", False),
        ("l_shoulder_pitch.pos", False),
        ("joint_1.torque", False),
        ("x.vel", True),
        ("theta.vel", True),
        ("linear_velocity", True),
        ("angular_velocity", True),
        ("mobile_base.vx", True),
        ("mobile_base.vtheta", True),
        ("remote.lx", True),
        # And as others might
        ("elbow", False),
        ("lever", False),
        ("revel.pos", False),
    ],
)
def test_velocities_are_told_by_their_names(name: str, is_velocity: bool) -> None:
    assert ActionKinds.from_names([name], []).is_velocity.tolist() == [is_velocity]


def test_what_a_person_says_comes_first() -> None:
    kinds = ActionKinds.from_names(["lever", "x.vel"], ["x.vel"], velocity_actions=["lever"])
    assert kinds.is_velocity.tolist() == [True, False]
    assert kinds.halted(np.array([3, 4], np.float32)).tolist() == [0, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"velocity_actions": ("x.vle",)}, r"velocity_actions names x.vle; the robot has shoulder.pos"),
        ({"pose_names": {"sholder": "shoulder.pos"}}, "pose_names names sholder"),
        ({"pose_names": {"elbow.pos": "elbow"}}, "pose_names names elbow"),
    ],
)
def test_a_name_that_the_robot_does_not_have_is_refused(robot, settings, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Motion.plan(robot, SafetySettings(**settings))


def test_a_pose_is_known_or_unknown_and_never_made_up(robot) -> None:
    """Taken for 0, an arm that stands at 90 would be told to go to 0."""
    robot.spec = replace(robot.spec, action_names=("shoulder.goal", "elbow.pos", "x.vel"))
    kinds = Motion.plan(robot, SafetySettings()).kinds
    assert np.isnan(pose_in(np.zeros(3), robot.spec, kinds)).tolist() == [True, False, False]
    named = Motion.plan(robot, SafetySettings(pose_names={"shoulder.goal": "shoulder.pos"})).kinds
    assert pose_in(np.zeros(3), robot.spec, named).tolist() == [0, 0, 0]


def test_a_step_from_nowhere_is_refused_with_what_to_set(robot) -> None:
    robot.spec = replace(robot.spec, action_names=("elbow.goal", "gripper.pos"))
    with pytest.raises(ConfigurationError, match=r'Set safety.pose_names=\{"elbow.goal": "elbow.pos"\}'):
        Motion.plan(robot, SafetySettings(max_step=2.0))
    Motion.plan(robot, SafetySettings(max_step={"gripper.pos": 2.0}))
    Motion.plan(robot, SafetySettings(max_step=2.0, pose_names={"elbow.goal": "elbow.pos"}))
    Motion.plan(robot, SafetySettings(max_step=2.0, pose_names={"elbow.goal": None}))


@pytest.mark.parametrize(
    ("torque", "possible"),
    [
        (Torque.CHOSEN, {StopRule.HOLD, StopRule.REST, StopRule.RELEASE, StopRule.DRIVER}),
        (Torque.KEPT, {StopRule.HOLD, StopRule.REST, StopRule.DRIVER}),
        (Torque.LOST, {StopRule.RELEASE, StopRule.DRIVER}),
        (Torque.UNKNOWN, {StopRule.DRIVER}),
    ],
)
def test_a_rule_that_the_driver_cannot_keep_is_refused_before_anything_moves(robot, torque, possible) -> None:
    robot.torque_at_disconnect = torque
    for rule in set(StopRule) - possible:
        with pytest.raises(ConfigurationError, match=f"cannot be left by safety.on_stop={rule}.*driver"):
            Motion.plan(robot, SafetySettings(on_stop=rule))
    for rule in possible:
        Motion.plan(robot, SafetySettings(on_stop=rule))


def test_wheels_have_no_torque_to_speak_of(robot) -> None:
    robot.spec = replace(robot.spec, action_names=("linear_velocity", "angular_velocity"))
    robot.torque_at_disconnect = Torque.UNKNOWN
    for rule in StopRule:
        Motion.plan(robot, SafetySettings(on_stop=rule))


def test_a_joint_whose_state_is_no_number_is_not_taken_for_one_that_nothing_measures(robot) -> None:
    """Its first command would go out past max_step."""
    with pytest.raises(ConnectionError, match=f"gave no number for {robot.spec.state_names[1]}"):
        pose_in(np.array([0, np.nan, 0]), robot.spec, Motion.plan(robot, SafetySettings(max_step=1)).kinds)
