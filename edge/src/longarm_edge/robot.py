"""The boundary to a robot: names, arrays and a few calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from longarm_wire.specs import RobotSpec


@dataclass(frozen=True)
class RobotReading:
    """What a robot sees and feels at one instant.

    Attributes:
      state: float32, shape (state_names), robot units.
      images: RGB frames by camera, uint8, shape (height, width, 3).
      captured_at: When the capture began, seconds on the monotonic clock; None where whoever asked knows it best.
      step: The step that came next when the motors were read.
    """

    state: np.ndarray
    images: Mapping[str, np.ndarray]
    captured_at: float | None = None
    step: int = 0


class Torque(StrEnum):
    """What becomes of the torque of a robot's joints when it is let go of."""

    CHOSEN = "chosen"
    """What disconnect is told."""
    KEPT = "kept"
    """It always stays on."""
    LOST = "lost"
    """It always goes off."""
    UNKNOWN = "unknown"
    """The driver decides, and does not say how."""


class CameraError(ConnectionError):
    """A camera gives no frame. The motors may answer all the same."""


class UnheardError(ConnectionError):
    """A command did not reach the motors, which did not answer. They may answer the next one."""


class Observed(Protocol):
    """What can be looked at."""

    def observe(self) -> RobotReading:
        """Returns what can be seen and felt now."""
        ...


class Robot(Protocol):
    """A robot. Calls may come from any thread; the implementation lets one at a time reach the motors."""

    spec: RobotSpec
    torque_at_disconnect: Torque

    def connect(self) -> None:
        """Connects to the hardware, and leaves the motors as they are.

        Raises:
          ConnectionError: It does not answer or is not calibrated.
        """
        ...

    def configure(self) -> None:
        """Writes settings to the motors of a connected robot, for which the torque may go off for a moment.

        Raises:
          ConnectionError: It does not answer.
        """
        ...

    def observe(self, next_step: Callable[[], int] = lambda: 0) -> RobotReading:
        """Returns what the robot sees and feels now.

        Args:
          next_step: Tells the step of the reading. Called when the motors are about to be read, and no command is on
            its way to them.
        """
        ...

    def read_state(self) -> np.ndarray:
        """Returns what the robot feels now, float32 of shape (state_names), without waiting for a camera."""
        ...

    def send(self, command: np.ndarray, sent: Callable[[], None] = lambda: None) -> None:
        """Sends one command, float32 of shape (action_names), robot units.

        Args:
          command: What to send.
          sent: Told that it is out. Called before the motors can be read again.

        Raises:
          UnheardError: The motors were asked something before it, and did not answer.
          Exception: Whatever else the driver raises.
        """
        ...

    def take_over(self, seconds: float) -> bool:
        """Waits up to so many seconds for calls in flight, and returns whether no command is under way any more.

        From now on calls of this thread alone reach the hardware, and wait for nobody; those of others fail.
        """
        ...

    def disconnect(self, *, torque: bool | None) -> None:
        """Lets go of the hardware. Does nothing if connect was never called.

        Args:
          torque: Whether the motors keep their torque; None for what the robot's own configuration says.

        Raises:
          Exception: Whatever the driver raises. The torque may not be as it was asked for.
        """
        ...
