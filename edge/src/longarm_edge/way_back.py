"""The way back to the start pose: slowly, and never far ahead of the arm.

A command that is out has moved nothing yet: a joint may be blocked, a bus that is silent loses what it is told without
a word, and a look may be wrong. So the command goes on only while the arm is seen to follow, which bounds how far it
can spring once it can, and it is the arm that has to arrive.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longarm_edge.guard import Guard
from longarm_edge.schedule import Clock

# The way back takes no longer than this, in seconds: service managers lose patience
LIMIT_SECONDS = 60.0
# An arm that does not follow for this long, in seconds, does not come
SETTLE_SECONDS = 1.0
# An arm stands if so many looks, so many seconds apart, agree
LOOKS, LOOK_SECONDS = 3, 0.1
# A way of few commands is one of leaps: there are at least so many a second
LEAST_FPS = 30.0
# What counts as a movement, in tolerances
MOVEMENT = 0.1


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
      guard: The bounds of commands of the run, one each 1/fps seconds.
      seconds: How long the way takes, if the guard and the robot allow.
      tolerance: How far a joint may be from where it should be, robot units.
      fps: Commands per second of the run.
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

    def go(self, last_command: np.ndarray, end: np.ndarray, *, heard: bool = True) -> None:
        """Returns when the arm is at end.

        Args:
          last_command: The one before, shape (names), no NaN.
          end: The start pose, same shape, no NaN.
          heard: Whether last_command reached the arm for all that is known. If not, the way begins where it stands.

        Raises:
          AstrayError: The arm does not get there, and why.
          Exception: Whatever look and send raise.
        """
        fps = max(self.fps, LEAST_FPS)
        # More of them a second, and no faster
        guard = replace(self.guard, max_step=self.guard.max_step * np.float32(self.fps / fps))
        begin = self.clock.now()
        here, stands = standing(self.look, self.tolerance, self.clock)
        if not stands:
            raise AstrayError("it holds: it does not come to stand, or what it says of where it stands varies")
        command = last_command if heard else np.where(np.isnan(here), last_command, here)
        # A joint that carries something stands below its command all the time; one may be pressed against something
        ahead = _ahead(command, here)
        lowest, highest = np.minimum(ahead, 0) - self.tolerance, np.maximum(ahead, 0) + self.tolerance
        start, ticks = command, max(1, round(self.seconds * fps))
        # The speed of smoothstep where it is fastest
        fastest = 1.5 * np.abs(end - start) / ticks
        tick, due = 0, self.clock.now()
        followed_at, seen = due, here
        while due - begin < LIMIT_SECONDS:
            self.clock.sleep_until(due)
            if self.at_once():
                raise AstrayError("it was stopped on the way to the start pose and holds")
            share = min(1.0, tick / ticks)
            target = start + (end - start) * share * share * (3 - 2 * share)
            # A joint that is farther behind waits, and does not hurry afterwards. Where it has caught up, it may not
            # fall behind again
            ahead = _ahead(command, here)
            lowest = np.maximum(lowest, np.minimum(ahead, 0) - 2 * self.tolerance)
            highest = np.minimum(highest, np.maximum(ahead, 0) + 2 * self.tolerance)
            step = np.clip(target - command, -fastest, fastest)
            waits = ((step > 0) & (ahead >= highest)) | ((step < 0) & (ahead <= lowest))
            before = command
            command, _ = guard.clamp((command + np.where(waits, 0, step)).astype(np.float32), before)
            self.send(command)
            here, now = self.look(), self.clock.now()
            if tick <= ticks or (command != before).any() or (_apart(here, seen) > MOVEMENT * self.tolerance).any():
                followed_at, seen = now, here
            elif (_apart(here, end) <= self.tolerance).all():
                return
            elif now - followed_at > SETTLE_SECONDS:
                raise AstrayError(f"it does not reach the start pose and holds: {self._difference(here, end)}")
            tick += 1
            # A command that took long is not made up for in a burst
            due = max(due + 1 / fps, now)
        raise AstrayError(
            f"it did not reach the start pose within {LIMIT_SECONDS:g} s and holds: max_step is small or it is slow"
        )

    def _difference(self, here: np.ndarray, end: np.ndarray) -> str:
        away = np.flatnonzero(_apart(here, end) > self.tolerance)
        joints = ", ".join(f"{self.names[i]} stands at {here[i]:.4g} and began at {end[i]:.4g}" for i in away)
        return f"{joints or 'it does not follow'} (safety.rest_tolerance={self.tolerance:g})"


def standing(look: Callable[[], np.ndarray], tolerance: float, clock: Clock) -> tuple[np.ndarray, bool]:
    """Returns where an arm stands, and whether it does: a single look may be wrong, or old, or at an arm that moves.

    One that does not come to stand within SETTLE_SECONDS is in the middle of where the last looks have it.
    """
    looks, agreed = [look()], 1
    give_up_at = clock.now() + SETTLE_SECONDS
    while agreed < LOOKS and clock.now() <= give_up_at:
        clock.sleep_until(clock.now() + LOOK_SECONDS)
        looks.append(look())
        agreed = agreed + 1 if (_apart(looks[-2], looks[-1]) <= MOVEMENT * tolerance).all() else 1
    middle: np.ndarray = np.sort(np.stack(looks[-LOOKS:]), axis=0)[len(looks[-LOOKS:]) // 2]
    return (looks[-1], True) if agreed >= LOOKS else (middle, False)


def _ahead(command: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Returns how far each joint was sent beyond where it is; 0 where nobody measures it."""
    ahead: np.ndarray = np.nan_to_num(command - here, nan=0.0)
    return ahead


def _apart(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Returns how far each joint is from there; 0 where nobody measures it."""
    apart: np.ndarray = np.nan_to_num(np.abs(here - there), nan=0.0)
    return apart
