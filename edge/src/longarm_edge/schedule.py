"""The absolute schedule of ticks: lateness never accumulates."""

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock, so that tests can pass their own."""

    def now(self) -> float:
        """Returns seconds since some fixed instant."""
        ...

    def sleep_until(self, instant: float) -> None:
        """Returns at instant, or at once if it has passed."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Returns seconds since some fixed instant."""
        return time.monotonic()

    def sleep_until(self, instant: float) -> None:
        """Returns at instant, or at once if it has passed."""
        delay = instant - time.monotonic()
        if delay > 0:
            time.sleep(delay)


@dataclass(frozen=True)
class Schedule:
    """Tick n is due at start + n / fps."""

    start: float
    fps: float

    def due(self, tick: int) -> float:
        """Returns the instant at which tick is due."""
        return self.start + tick / self.fps

    def after(self, tick: int, now: float) -> int:
        """Returns the tick to run after tick: the next one, or, where that one's whole period is over, the current one.

        Ticks in between are given up rather than run in a burst.
        """
        # A nudge of a microsecond keeps rounding from giving up a tick that is just due
        return max(tick + 1, int((now - self.start + 1e-6) * self.fps))
