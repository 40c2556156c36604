"""The simulated arm, through LeRobot's interface."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from lerobot.robots import make_robot_from_config
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_robot_longarm_sim import LongarmSim, LongarmSimConfig
from lerobot_robot_longarm_sim.joints import HOME, JOINTS

HOME_ACTION = {f"{joint}.pos": value for joint, value in HOME.items()}
BIN_CENTRE = (0.13, -0.24)


def wait_for(arm: LongarmSim, joint: str, low: float, high: float, timeout_seconds: float = 5.0) -> float:
    """Returns how long the joint took to come between two positions."""
    start = time.monotonic()
    while not low <= (position := arm.ground_truth().joint_positions[joint]) <= high:
        assert time.monotonic() - start < timeout_seconds, f"{joint} is at {position}, wanted {low} to {high}"
        time.sleep(0.01)
    return time.monotonic() - start


def test_features_are_those_of_an_so101_with_two_cameras(tmp_path):
    arm = LongarmSim(LongarmSimConfig(calibration_dir=tmp_path))
    joints = [f"{joint}.pos" for joint in JOINTS]
    assert list(arm.action_features) == joints
    assert list(arm.observation_features) == [*joints, "front", "wrist"]
    assert arm.observation_features["front"] == arm.observation_features["wrist"] == (240, 320, 3)
    assert (arm.cameras["front"].height, arm.cameras["front"].width) == (240, 320)


def test_lerobot_makes_it_from_its_config(tmp_path):
    robot = make_robot_from_config(LongarmSimConfig(id="sam", calibration_dir=tmp_path))
    assert isinstance(robot, LongarmSim)
    assert robot.is_calibrated


def test_moves_to_a_target_in_about_the_time_a_servo_takes(arm):
    arm.send_action(HOME_ACTION | {"shoulder_pan.pos": 40.0, "gripper.pos": 90.0})
    seconds = wait_for(arm, "shoulder_pan", 38.0, 42.0)
    # The servo turns at 300 degrees/s at most; the upper bound allows for a busy machine.
    assert 0.1 < seconds < 4.0
    wait_for(arm, "gripper", 87.0, 93.0)
    assert arm.get_observation()["shoulder_pan.pos"] == pytest.approx(40.0, abs=2.0)


def test_clips_to_joint_limits_and_says_so(arm):
    sent = arm.send_action(HOME_ACTION | {"shoulder_pan.pos": 500.0, "elbow_flex.pos": -500.0, "gripper.pos": 120.0})
    assert sent["shoulder_pan.pos"] == pytest.approx(110.0)
    assert sent["elbow_flex.pos"] == pytest.approx(-97.0)
    assert sent["gripper.pos"] == pytest.approx(100.0)
    assert sent["wrist_flex.pos"] == pytest.approx(HOME["wrist_flex"])
    assert arm.send_action(HOME_ACTION | {"gripper.pos": -5.0})["gripper.pos"] == 0.0


def test_max_relative_target_keeps_targets_near_the_present_pose(make_arm):
    arm = make_arm(max_relative_target=5.0)
    arm.connect()
    sent = arm.send_action(HOME_ACTION | {"shoulder_pan.pos": 60.0})
    assert sent["shoulder_pan.pos"] == pytest.approx(5.0, abs=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_targets_that_are_not_finite(arm, value):
    before = arm.send_action(HOME_ACTION)
    with pytest.raises(ValueError, match=r"finite.*wrist_roll"):
        arm.send_action(HOME_ACTION | {"wrist_roll.pos": value})
    assert arm.send_action(HOME_ACTION) == before


def test_refuses_missing_and_unknown_joints(arm):
    with pytest.raises(ValueError, match=r"missing \['gripper.pos'\], unknown \['griper.pos'\]"):
        arm.send_action({name: 0.0 for name in HOME_ACTION if name != "gripper.pos"} | {"griper.pos": 0.0})


def test_state_and_frames_are_of_one_instant(arm):
    """A policy that gets an old picture with a new pose learns or does the wrong thing."""
    arm.send_action(HOME_ACTION | {"shoulder_pan.pos": 60.0})
    time.sleep(0.15)
    observation = arm.get_observation()
    pose = np.array([observation[f"{joint}.pos"] for joint in JOINTS])
    assert 1.0 < pose[0] < 59.0, "the arm should be on its way"
    still = arm._world
    still.stop()
    still.place_arm(pose)
    redrawn = arm._render_thread.render(still.instant().qpos)
    for camera in arm.cameras:
        assert np.mean(observation[camera] != redrawn[camera]) < 0.002


def test_several_threads_observe_at_once(arm):
    with ThreadPoolExecutor(4) as pool:
        observations = list(pool.map(lambda _: arm.get_observation(), range(12)))
    frames = [observation[camera] for observation in observations for camera in arm.cameras]
    assert all(frame.any() for frame in frames)
    assert len({frame.ctypes.data for frame in frames}) == len(frames), "each caller owns its frames"


def test_time_passes_at_the_rate_of_the_clock(arm):
    world = arm._world
    start, simulated = time.monotonic(), world.instant().seconds
    time.sleep(1.0)
    passed = world.instant().seconds - simulated
    assert passed == pytest.approx(time.monotonic() - start, abs=0.25)


def test_reset_puts_arm_and_cube_back(arm):
    home = arm.ground_truth().cube_position
    arm.send_action(HOME_ACTION | {"shoulder_pan.pos": -60.0})
    arm.place_cube((0.3, -0.1, 0.0126))
    wait_for(arm, "shoulder_pan", -62.0, -50.0)
    arm.reset()
    truth = arm.ground_truth()
    assert truth.cube_position == pytest.approx(home, abs=1e-3)
    assert truth.joint_positions == pytest.approx(HOME, abs=2.0)
    time.sleep(0.3)
    assert arm.ground_truth().joint_positions == pytest.approx(HOME, abs=2.0), "the servos hold the arm there"


def test_seeded_resets_repeat(make_arm):
    def cubes(seed: int | None) -> list[tuple[float, float, float]]:
        arm = make_arm(seed=seed)
        places = []
        for _ in range(3):
            places.append(arm.ground_truth().cube_position)
            arm.reset()
        return places

    assert cubes(7) == cubes(7)
    assert cubes(7) != cubes(8)
    assert len(set(cubes(7))) == 3
    assert len(set(cubes(None))) == 1


def test_a_cube_dropped_into_the_bin_counts(arm):
    assert not arm.ground_truth().cube_in_bin
    arm.place_cube((*BIN_CENTRE, 0.12))
    assert not arm.ground_truth().cube_in_bin, "it is above the bin still"
    deadline = time.monotonic() + 5.0
    while not arm.ground_truth().cube_in_bin:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    assert arm.ground_truth().cube_in_bin, "it stays there"


def test_disconnect_joins_its_threads(make_arm):
    def sim_threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("longarm-sim")]

    arm = make_arm()
    arm.connect()
    assert len(sim_threads()) == 2
    arm.disconnect()
    arm.disconnect()
    assert sim_threads() == []
    with pytest.raises(DeviceNotConnectedError):
        arm.get_observation()


def test_disconnect_while_others_observe(make_arm):
    """An edge that stops in the middle of a capture gets LeRobot's own error, neither a crash nor an endless wait."""
    arm = make_arm()
    arm.connect()
    with ThreadPoolExecutor(2) as pool:

        def observe_until_it_ends() -> None:
            while True:
                arm.get_observation()

        observers = [pool.submit(observe_until_it_ends) for _ in range(2)]
        time.sleep(0.2)
        arm.disconnect()
        for observer in observers:
            assert isinstance(observer.exception(timeout=5.0), DeviceNotConnectedError)


@pytest.mark.parametrize("disable_torque", [True, False])
def test_without_torque_the_arm_sinks(make_arm, disable_torque):
    arm = make_arm(disable_torque_on_disconnect=disable_torque)
    arm.connect()
    arm.disconnect()
    sunk = arm.ground_truth().joint_positions["shoulder_lift"] - HOME["shoulder_lift"]
    assert (sunk > 10.0) if disable_torque else (abs(sunk) < 2.0)


def test_reconnecting_holds_the_pose_it_finds(make_arm):
    arm = make_arm()
    arm.connect()
    arm.disconnect()
    found = arm.ground_truth().joint_positions
    arm.connect()
    time.sleep(0.3)
    assert arm.ground_truth().joint_positions == pytest.approx(found, abs=3.0)


def test_a_home_that_cannot_be_written_is_no_obstacle(monkeypatch):
    monkeypatch.setattr("lerobot.robots.robot.HF_LEROBOT_CALIBRATION", Path("/proc/no-such-folder"))
    assert LongarmSim(LongarmSimConfig()).calibration_dir.is_dir()
    with pytest.raises(OSError, match="no-such-folder"):
        LongarmSim(LongarmSimConfig(calibration_dir=Path("/proc/no-such-folder")))


def test_refuses_frames_of_silly_sizes():
    with pytest.raises(ValueError, match="between 16 and 4096"):
        LongarmSimConfig(width=0)
