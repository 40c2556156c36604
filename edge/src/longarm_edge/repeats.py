"""Keeps a log readable while the same thing goes wrong again and again."""

import time
from collections.abc import Callable


class Repeats:
    """Lets a message through when it is another than the last one, or when that was long ago."""

    def __init__(self, period: float = 30.0, now: Callable[[], float] = time.monotonic) -> None:
        """Lets the first message through.

        Args:
          period: Seconds after which an unchanged message is worth repeating.
          now: The clock.
        """
        self._period = period
        self._now = now
        self._last: tuple[str, float] | None = None

    def lets_through(self, message: str) -> bool:
        """Returns whether message is worth a line."""
        if self._last is not None and self._last[0] == message and self._now() - self._last[1] < self._period:
            return False
        self._last = (message, self._now())
        return True

    def forget(self) -> None:
        """Things are well again: the next message is news."""
        self._last = None
