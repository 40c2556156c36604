"""Pauses between attempts."""

import random
from dataclasses import dataclass


@dataclass
class Backoff:
    """Seconds to wait after failures in a row: doubling, capped, with jitter so that robots do not march in step."""

    first: float = 0.1
    cap: float = 10.0
    _failures: int = 0

    def next(self) -> float:
        """Returns how long to wait after one more failure."""
        limit: float = min(self.cap, self.first * 2**self._failures)
        self._failures = min(self._failures + 1, 30)
        return limit * random.uniform(0.5, 1)  # noqa: S311  # jitter, no secret

    def reset(self) -> None:
        """A success: the next failure waits shortly again."""
        self._failures = 0
