"""The way back to the start pose: slowly, and looking where the arm is.

A command that is out has moved nothing yet: a joint may be blocked, and a bus that is silent loses what it is told
without a word. So no command goes out before the arm was seen after the last one, and it is the arm that has to arrive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longarm_edge.guard import Guard
from longarm_edge.schedule import Clock

# The way back takes no longer than this, in seconds: service managers lose patience
LIMIT_SECONDS = 60.0
# An arm that comes no nearer for this long, in seconds, does not come
SETTLE_SECONDS = 1.0
# What counts as nearer, in tolerances
NEARER = 0.1


class AstrayError(Exception):
    """The arm is not at its start pose. It holds."""


@dataclass
class WayBack:
    """Leads an arm from where it stands to where it began.

    Attributes:
      names: Of the actions.
      look: Returns where the arm stands, float32 of shape (names), NaN for a joint that nobody measures. Raises what
        says that it cannot.
      send: Sends one command, same shape. Raises what says that it cannot.
      guard: The bounds of commands.
      seconds: How long the way takes, if the guard and the robot allow.
      tolerance: How far a joint may be from where it should be, robot units.
      fps: Commands per second.
      clock: Tells the time.
      at_once: Whether to end the way here.
    """

    names: Sequence[str]
    look: Callable[[], np.ndarray]
    send: Callable[[np.ndarray], None]
    guard: Guard
    seconds: float
    tolerance: float
    fps: float
    clock: Clock
    at_once: Callable[[], bool]

    def go(self, last_command: np.ndarray, end: np.ndarray) -> None:
        """Returns when the arm is at end.

        Args:
          last_command: The one before, shape (names), no NaN.
          end: The start pose, same shape, no NaN.

        Raises:
          AstrayError: The arm does not get there, and why.
          Exception: Whatever look and send raise.
        """
        here = self.look()
        # It lags its command a little. Where it is farther away, commands were lost or something is in its way
        begin = command = np.where(_apart(here, last_command) > self.tolerance, here, last_command)
        due = moved_at = self.clock.now()
        give_up_at = due + LIMIT_SECONDS
        nearest = np.inf
        ticks = max(1, round(self.seconds * self.fps))
        tick = 0
        while due < give_up_at:
            self.clock.sleep_until(due)
            if self.at_once():
                raise AstrayError("it was stopped on the way to the start pose and holds")
            # Smoothstep: no jump in speed at either end
            share = min(1.0, tick / ticks)
            share = share * share * (3 - 2 * share)
            before = command
            command, _ = self.guard.clamp((begin + (end - begin) * share).astype(np.float32), before)
            self.send(command)
            here, now = self.look(), self.clock.now()
            left = float(_apart(here, end).max())
            if tick <= ticks or (command != before).any():
                moved_at = now
            elif left <= self.tolerance:
                return
            elif left < nearest - NEARER * self.tolerance:
                nearest, moved_at = left, now
            elif now - moved_at > SETTLE_SECONDS:
                self._relax(command, here)
                raise AstrayError(f"it does not reach the start pose and holds: {self._difference(here, end)}")
            tick += 1
            # A command that took long is not made up for in a burst
            due = max(due + 1 / self.fps, now)
        raise AstrayError(
            f"it did not reach the start pose within {LIMIT_SECONDS:g} s and holds: max_step is small or it is slow"
        )

    def _relax(self, command: np.ndarray, here: np.ndarray) -> None:
        """Has joints that are blocked push less far: they would spring to where they were sent once they can."""
        held = here + np.clip(command - here, -self.tolerance, self.tolerance)
        blocked = _apart(here, command) > self.tolerance
        self.send(np.where(blocked, self.guard.clamp(held.astype(np.float32), here)[0], command))

    def _difference(self, here: np.ndarray, end: np.ndarray) -> str:
        away = np.flatnonzero(_apart(here, end) > self.tolerance)
        joints = ", ".join(f"{self.names[i]} stands at {here[i]:.4g} and began at {end[i]:.4g}" for i in away)
        return f"{joints} (safety.rest_tolerance={self.tolerance:g})"


def _apart(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Returns how far each joint is from there; 0 where nobody measures it."""
    apart: np.ndarray = np.nan_to_num(np.abs(here - there), nan=0.0)
    return apart
