"""How smoothly commands go on: the step where chunks meet beside those within chunks, and the jerk."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Where(StrEnum):
    """Where in the plan a command stands."""

    START = "start"
    """Of an arm that stood: the first one, and those on the way there."""
    SWITCH = "switch"
    """The first one of a chunk, of an arm that moves."""
    WITHIN = "within"
    """Any other."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command after another.

    Attributes:
      where: Where in the plan.
      size: Largest change of a joint since the command before, robot units.
      jerk: Root mean square over the joints, robot units/s³; None for the first three.
    """

    where: Where
    size: float
    jerk: float | None


class Smoothness:
    """Measures commands as they go out."""

    def __init__(self, is_velocity: np.ndarray, fps: float, begins_at: np.ndarray) -> None:
        """Knows of no chunk yet.

        Args:
          is_velocity: Which values of a command are velocities, shape (action_dim). What is told is of the others, of
            all where there are no others.
          fps: Commands per second.
          begins_at: The command before the first one, same shape; NaN where it is not known.
        """
        self._looked_at = np.flatnonzero(~is_velocity) if not is_velocity.all() else np.arange(len(is_velocity))
        self._fps = fps
        self._recent = deque([begins_at[self._looked_at]], maxlen=4)
        self._chunk: int | None = None

    def moved(self, command: np.ndarray, chunk: int) -> Step:
        """A command out of a chunk went out: shape (action_dim), and the sequence of its request."""
        where = Where.START if self._chunk is None else Where.WITHIN if self._chunk == chunk else Where.SWITCH
        self._chunk = chunk
        return self._step(command, where)

    def eased(self, command: np.ndarray) -> Step:
        """A command went out on the way to the first action, shape (action_dim)."""
        self._chunk = None
        return self._step(command, Where.START)

    def stood(self) -> None:
        """A tick went by without a command."""
        self._chunk = None
        self._recent.append(self._recent[-1])

    def _step(self, command: np.ndarray, where: Where) -> Step:
        joints = command[self._looked_at]
        step = np.abs(joints - self._recent[-1])
        self._recent.append(joints)
        size = float(np.nanmax(step)) if not np.isnan(step).all() else 0.0
        return Step(where, size, self._jerk())

    def _jerk(self) -> float | None:
        if len(self._recent) < 4 or np.isnan(self._recent[0]).any():
            return None
        third = np.diff(np.stack(self._recent), 3, axis=0) * self._fps**3
        return float(np.sqrt(np.mean(third**2)))
