"""The boundary to a robot: names, arrays and a few calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from longarm_wire.specs import RobotSpec


@dataclass(frozen=True)
class RobotReading:
    """What a robot sees and feels at one instant.

    Attributes:
      state: float32, shape (state_names), robot units.
      images: RGB frames by camera, uint8, shape (height, width, 3).
    """

    state: np.ndarray
    images: Mapping[str, np.ndarray]


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
