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

    def suspended(self) -> float:
        """Returns for how many seconds the machine was suspended since the last call: now does not count them."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def __init__(self) -> None:
        """Counts suspensions from now on."""
        self._suspended = _suspended()

    def now(self) -> float:
        """Returns seconds since some fixed instant."""
        return time.monotonic()

    def sleep_until(self, instant: float) -> None:
        """Returns at instant, or at once if it has passed."""
        delay = instant - time.monotonic()
        if delay > 0:
            time.sleep(delay)

    def suspended(self) -> float:
        """Returns for how many seconds the machine was suspended since the last call; 0 where that is not told."""
        before, self._suspended = self._suspended, _suspended()
        return self._suspended - before


def _suspended() -> float:
    """Returns the seconds that the machine was suspended since it started; some constant where that is not told."""
    # macOS counts them in neither clock that Python has
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic() if hasattr(time, "CLOCK_BOOTTIME") else 0.0


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
