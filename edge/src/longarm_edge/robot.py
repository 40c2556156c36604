"""The boundary to a robot: names, arrays and a few calls."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from longarm_wire.specs import RobotSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RobotReading:
    """What a robot sees and feels at one instant.

    Attributes:
      state: float32, shape (state_names), robot units.
      images: RGB frames by camera, uint8, shape (height, width, 3).
      captured_at: When the capture began, seconds on the monotonic clock; None where whoever asked knows it best.
    """

    state: np.ndarray
    images: Mapping[str, np.ndarray]
    captured_at: float | None = None


class Robot(Protocol):
    """A robot. Calls may come from any thread; the implementation lets one at a time reach the hardware."""

    spec: RobotSpec

    def connect(self) -> None:
        """Connects to the hardware.

        Raises:
          ConnectionError: It does not answer or is not calibrated.
        """
        ...

    def observe(self) -> RobotReading:
        """Returns what the robot sees and feels now."""
        ...

    def send(self, command: np.ndarray) -> None:
        """Sends one command, float32 of shape (action_names), robot units."""
        ...

    def disconnect(self, *, torque: bool | None) -> None:
        """Lets go of the hardware. Does nothing if it is not connected.

        Args:
          torque: Whether the motors keep their torque; None for what the robot's own configuration says.
        """
        ...


def measured_pose(robot: Robot) -> np.ndarray:
    """Returns where a connected robot stands as a command that keeps it there, float32 of shape (action_names)."""
    spec = robot.spec
    state = dict(zip(spec.state_names, robot.observe().state, strict=True))
    missing = [name for name in spec.action_names if name not in state]
    if missing:
        # A velocity base has actions that are no joints; nothing of it can be moved back to a start pose
        logger.info("no measured pose for %s: taken as 0", ", ".join(missing))
    return np.array([state.get(name, 0.0) for name in spec.action_names], np.float32)
