"""Keeps a log readable while the same thing goes wrong again and again."""

import time
from collections.abc import Callable


class Repeats:
    """Lets a message through when it is a new one, or when it was let through long ago."""

    def __init__(self, period: float = 30.0, now: Callable[[], float] = time.monotonic) -> None:
        """Lets the first message through.

        Args:
          period: Seconds after which an unchanged message is worth repeating.
          now: The clock.
        """
        self._period = period
        self._now = now
        self._passed: dict[str, float] = {}

    def lets_through(self, message: str) -> bool:
        """Returns whether message is worth a line."""
        now = self._now()
        # Several that take turns say no more than each of them once
        self._passed = {text: at for text, at in self._passed.items() if now - at < self._period}
        if message in self._passed:
            return False
        self._passed[message] = now
        return True

    def forget(self) -> None:
        """Things are well again: the next message is news."""
        self._passed.clear()
