"""What Longarm relies on of any LeRobot robot, as tests to inherit: give a subclass a fixture `robot`."""

import math

import numpy as np
import pytest
from lerobot.robots import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError


class RobotContract:
    """The fixture `robot` is a robot that is not connected yet, and may be connected and disconnected at will."""

    def test_features_are_known_before_connecting(self, robot: Robot) -> None:
        assert not robot.is_connected
        assert all(kind is float for kind in robot.action_features.values())
        assert set(robot.action_features) <= set(robot.observation_features)

    def test_refuses_use_before_connecting(self, robot: Robot) -> None:
        with pytest.raises(DeviceNotConnectedError):
            robot.get_observation()
        with pytest.raises(DeviceNotConnectedError):
            robot.send_action(dict.fromkeys(robot.action_features, 0.0))

    def test_refuses_a_second_connect(self, robot: Robot) -> None:
        robot.connect()
        with pytest.raises(DeviceAlreadyConnectedError):
            robot.connect()

    def test_observation_has_the_announced_names_order_and_shapes(self, robot: Robot) -> None:
        robot.connect()
        observation = robot.get_observation()
        assert list(observation) == list(robot.observation_features)
        for name, feature in robot.observation_features.items():
            if feature is float:
                assert math.isfinite(observation[name])
            else:
                assert observation[name].shape == feature
                assert observation[name].dtype == np.uint8

    def test_the_action_in_effect_has_the_announced_names(self, robot: Robot) -> None:
        robot.connect()
        observation = robot.get_observation()
        present = {name: observation[name] for name in robot.action_features}
        assert robot.send_action(present) == pytest.approx(present, abs=1e-6)

    def test_connects_again(self, robot: Robot) -> None:
        for _ in range(2):
            robot.connect()
            robot.get_observation()
            robot.disconnect()
            assert not robot.is_connected


class TestLongarmSim(RobotContract):
    @pytest.fixture
    def robot(self, make_arm) -> Robot:
        return make_arm()
