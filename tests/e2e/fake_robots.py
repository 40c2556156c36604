"""Robots without hardware, through LeRobot's own interface, one of each kind. Buses and cameras are mocked.

The hardware outlives the robot object that talks to it, as motors outlive a process: a test looks at `Hardware`.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig
from lerobot.utils.bimanual import BimanualMixin
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected

HEIGHT, WIDTH = 48, 64
# Where the joints stand at first: not at 0, which is what an unknown pose was once taken for
START = 20.0


class Wait:
    """A place where a call waits for as long as a test wants it to hang."""

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Every call hangs meanwhile."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def pass_by(self) -> None:
        self._free.wait()


@dataclass
class Bus:
    """The motors of one arm or base, with the interface of LeRobot's motors buses.

    Attributes:
      joints: Where each joint stands.
      wheels: How fast each wheel turns: a wheel turns until it is told otherwise.
      torque: Whether it is on.
      torque_log: Every change of it.
      commands: Every command, with its time.
      wait: Where calls hang.
      silent: Whether it loses what it is told, and answers nothing.
      blocked: Whether something is in the joints' way.
    """

    joints: dict[str, float]
    wheels: dict[str, float] = field(default_factory=dict)
    torque: bool = False
    is_connected: bool = False
    is_calibrated: bool = True
    torque_log: list[bool] = field(default_factory=list)
    commands: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    wait: Wait = field(default_factory=Wait)
    silent: bool = False
    blocked: bool = False

    def connect(self) -> None:
        self.wait.pass_by()
        self.is_connected = True

    def set_torque(self, on: bool) -> None:
        if self.torque is not on:
            self.torque = on
            self.torque_log.append(on)

    def read(self) -> dict[str, float]:
        self.wait.pass_by()
        if self.silent:
            raise ConnectionError("There is no status packet!")
        return self.joints | self.wheels

    def write(self, goals: dict[str, float]) -> None:
        self.wait.pass_by()
        if self.silent:
            return
        self.commands.append((time.monotonic(), dict(goals)))
        if not self.blocked:
            self.joints |= {name: goals[name] for name in self.joints if name in goals}
        self.wheels |= {name: goals[name] for name in self.wheels if name in goals}

    def disconnect(self, disable_torque: bool = True) -> None:
        self.wait.pass_by()
        if disable_torque:
            self.set_torque(False)
        self.is_connected = False


@dataclass
class Camera:
    """One camera, with the interface of LeRobot's."""

    height: int = HEIGHT
    width: int = WIDTH
    fps: int = 30
    is_connected: bool = False
    wait: Wait = field(default_factory=Wait)

    def connect(self) -> None:
        self.is_connected = True

    def read_latest(self, max_age_ms: int = 500) -> np.ndarray:
        self.wait.pass_by()
        if not self.is_connected:
            raise ConnectionError("the camera is gone")
        # Changes all the time: what stands still would be filtered
        return np.full((HEIGHT, WIDTH, 3), int(time.monotonic() * 300) % 256, np.uint8)

    async_read = read_latest

    def disconnect(self) -> None:
        if not self.is_connected:
            raise ConnectionError("the camera is gone")
        self.is_connected = False


@dataclass
class Hardware:
    """What outlives a process: the buses by arm, and the camera."""

    buses: dict[str, Bus]
    camera: Camera = field(default_factory=Camera)

    @property
    def commands(self) -> list[tuple[float, dict[str, float]]]:
        """The commands to all buses together, names with the arm's prefix."""
        return sorted(
            ((at, {f"{arm}{name}": value for name, value in goals.items()})
             for arm, bus in self.buses.items() for at, goals in bus.commands),
            key=lambda command: command[0],
        )  # fmt: skip

    @property
    def driving(self) -> bool:
        """Whether any wheel turns."""
        return any(bool(speed) for bus in self.buses.values() for speed in bus.wheels.values())

    def largest_step(self) -> float:
        """Returns the largest change of a joint from one command to the next, the first from where it stood."""
        largest = 0.0
        for bus in self.buses.values():
            for name in bus.joints:
                path = [START, *(goals[name] for _, goals in bus.commands if name in goals)]
                largest = max(largest, *np.abs(np.diff(path)), 0.0)
        return largest

    @contextmanager
    def hung_bus(self) -> Iterator[None]:
        """Every call to a bus hangs meanwhile."""
        with next(iter(self.buses.values())).wait.hanging():
            yield


@RobotConfig.register_subclass("fake_arm")
@dataclass
class FakeArmConfig(RobotConfig):
    disable_torque_on_disconnect: bool = True
    cameras: dict[str, Any] = field(default_factory=dict)


class FakeArm(Robot):
    """As LeRobot's SOFollower: it is connected while its bus and all of its cameras are."""

    config_class = FakeArmConfig
    name = "fake_arm"

    def __init__(self, config: FakeArmConfig, bus: Bus, cameras: dict[str, Camera]) -> None:
        super().__init__(config)
        self.config = config
        self.bus = bus
        self.cameras = cameras

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        frames = {name: (camera.height, camera.width, 3) for name, camera in self.cameras.items()}
        return {**dict.fromkeys((*self.bus.joints, *self.bus.wheels), float), **frames}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys((*self.bus.joints, *self.bus.wheels), float)

    @property
    def is_connected(self) -> bool:
        return self.bus.is_connected and all(camera.is_connected for camera in self.cameras.values())

    @property
    def is_calibrated(self) -> bool:
        return self.bus.is_calibrated

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        self.bus.connect()
        for camera in self.cameras.values():
            camera.connect()
        self.configure()

    def calibrate(self) -> None: ...

    def configure(self) -> None:
        # LeRobot's motors are configured with the torque off
        self.bus.set_torque(False)
        self.bus.set_torque(True)

    @check_if_not_connected
    def get_observation(self) -> dict[str, Any]:
        frames = {name: camera.read_latest() for name, camera in self.cameras.items()}
        return self.bus.read() | frames

    @check_if_not_connected
    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.bus.write(action)
        return action

    @check_if_not_connected
    def disconnect(self) -> None:
        self.bus.disconnect(self.config.disable_torque_on_disconnect)
        for camera in self.cameras.values():
            camera.disconnect()


class FakeBimanual(BimanualMixin, Robot):
    """As LeRobot's BiSOFollower: two arms with configurations of their own."""

    config_class = FakeArmConfig
    name = "fake_bimanual"

    def __init__(self, config: FakeArmConfig, hardware: Hardware) -> None:
        super().__init__(config)
        left, right = hardware.buses.values()
        self.left_arm = FakeArm(FakeArmConfig(id="left"), left, {"front": hardware.camera})
        self.right_arm = FakeArm(FakeArmConfig(id="right"), right, {})

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        return {**self.action_features, "front": (HEIGHT, WIDTH, 3)}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return {f"{side}_{name}": float for side, arm in self._sides for name in arm.action_features}

    @property
    def _sides(self) -> list[tuple[str, FakeArm]]:
        return [("left", self.left_arm), ("right", self.right_arm)]

    def get_observation(self) -> dict[str, Any]:
        seen = {side: arm.get_observation() for side, arm in self._sides}
        frame = {"front": seen["left"].pop("front")}
        return {f"{side}_{name}": value for side, values in seen.items() for name, value in values.items()} | frame

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        for side, arm in self._sides:
            arm.send_action({n.removeprefix(f"{side}_"): v for n, v in action.items() if n.startswith(f"{side}_")})
        return action


@RobotConfig.register_subclass("fake_wheels")
@dataclass
class FakeWheelsConfig(RobotConfig):
    """Has no word about torque."""


class FakeWheels(FakeArm):
    """Wheels without an arm, and without a word about torque, as LeRobot's EarthRover."""

    config_class = FakeWheelsConfig
    name = "fake_wheels"

    @property
    def observation_features(self) -> dict[str, Any]:
        return {"battery": float, "front": (HEIGHT, WIDTH, 3)}

    def get_observation(self) -> dict[str, Any]:
        self.bus.read()
        return {"battery": 80.0, "front": self.cameras["front"].read_latest()}

    def disconnect(self) -> None:
        self.bus.disconnect(False)


class FakeOtherNames(FakeArm):
    """Its actions have other names than its states."""

    name = "fake_other_names"

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return {self._goal(name): float for name in self.bus.joints}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        super().send_action({name: action[self._goal(name)] for name in self.bus.joints})
        return action

    @staticmethod
    def _goal(name: str) -> str:
        return f"goal_{name.removesuffix('.pos')}"


JOINTS = ("pan.pos", "lift.pos", "gripper.pos")
WHEELS = ("x.vel", "theta.vel")


def joints() -> dict[str, float]:
    return dict.fromkeys(JOINTS, START)


def make_hardware(kind: str) -> Hardware:
    match kind:
        case "bimanual":
            return Hardware({"left_": Bus(joints()), "right_": Bus(joints())})
        case "arm on wheels":
            return Hardware({"": Bus(joints(), dict.fromkeys(WHEELS, 0.0))})
        case "wheels only":
            return Hardware({"": Bus({}, {"linear_velocity": 0.0, "angular_velocity": 0.0})})
        case _:
            return Hardware({"": Bus(joints())})


def make_fake(kind: str, hardware: Hardware, calibration_dir: Any) -> Robot:
    """Returns a LeRobot robot of a kind, not yet connected, around hardware."""
    config = FakeArmConfig(id="test", calibration_dir=calibration_dir)
    cameras = {"front": hardware.camera}
    match kind:
        case "bimanual":
            return FakeBimanual(config, hardware)
        case "wheels only":
            return FakeWheels(FakeWheelsConfig(id="test", calibration_dir=calibration_dir), hardware.buses[""], cameras)
        case "names that differ":
            return FakeOtherNames(config, hardware.buses[""], cameras)
        case _:
            return FakeArm(config, hardware.buses[""], cameras)


KINDS = ("position arm", "bimanual", "arm on wheels", "wheels only", "names that differ")
