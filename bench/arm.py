"""The bench's robot: goes where it is sent at once, shows frames made beforehand, and logs each call.

Rendering costs more than either peer; frames from a file leave the processor to what is measured. A frame is copied on
its way out, as a camera's driver does.
"""

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots.robot import Robot

from bench import marks, robot_log
from bench.config_arm import BenchArmConfig

JOINT_NAMES = tuple(
    f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
)
CAMERAS = ("front", "wrist")
COUNT_NAME = "observation_count"
CAMERA_FPS = 30


class BenchArm(Robot):  # type: ignore[misc]  # LeRobot is untyped to us
    """Six joints, two cameras, and marks that say which observation a command comes from."""

    config_class = BenchArmConfig
    name = "longarm_bench"
    is_calibrated = True

    def __init__(self, config: BenchArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self._frames = np.load(config.frames, mmap_mode="r")
        self._log = robot_log.RobotLog(Path(config.log))
        self._pose: np.ndarray = np.zeros(robot_log.JOINT_COUNT, np.float32)
        self._count = 0
        self._connected = False

    @cached_property
    def observation_features(self) -> dict[str, type | tuple[int, int, int]]:
        """Joints in degrees, the count of observations, then the cameras."""
        height, width = self._frames.shape[2:4]
        return {
            **dict.fromkeys(JOINT_NAMES, float),
            COUNT_NAME: float,
            **dict.fromkeys(CAMERAS, (height, width, 3)),
        }

    @cached_property
    def action_features(self) -> dict[str, type]:
        """Joints in degrees, then marks."""
        return dict.fromkeys((*JOINT_NAMES, *marks.MARK_NAMES), float)

    @property
    def is_connected(self) -> bool:
        """Whether connect was called last."""
        return self._connected

    def connect(self, calibrate: bool = True) -> None:  # noqa: ARG002 - there is nothing to calibrate
        """Reads the frames into memory once, so that none waits for the disk later."""
        self._frames.max()
        self._connected = True

    def calibrate(self) -> None:
        """Does nothing."""

    def configure(self) -> None:
        """Does nothing."""

    def get_observation(self) -> dict[str, Any]:
        """Returns the pose, the count, and the frames that a camera would show now."""
        begun = time.monotonic()
        self._count += 1
        number = _to_and_fro(int(begun * CAMERA_FPS), len(self._frames))
        frames = {camera: self._frames[number, index].copy() for index, camera in enumerate(CAMERAS)}
        observation = {
            **dict(zip(JOINT_NAMES, self._pose.tolist(), strict=True)),
            COUNT_NAME: marks.to_state(self._count),
            **frames,
        }
        self._log.write(robot_log.OBSERVED, begun, time.monotonic(), self._count, self._pose)
        return observation

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Goes there."""
        begun = time.monotonic()
        self._pose = np.array([action[name] for name in JOINT_NAMES], np.float32)
        mark = marks.from_digits(np.array([action[name] for name in marks.MARK_NAMES]))
        self._log.write(robot_log.COMMANDED, begun, time.monotonic(), mark, self._pose)
        return action

    def disconnect(self) -> None:
        """Does nothing but remember it."""
        self._connected = False


def _to_and_fro(step: int, count: int) -> int:
    """Returns the frame at step of a film that runs to its end and back: no cut, which would be no motion at all."""
    at = step % (2 * count - 2) if count > 1 else 0
    return min(at, 2 * count - 2 - at)
