"""When to ask for a fresh chunk."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Replan(StrEnum):
    """When the planner asks for a fresh chunk."""

    AUTO = "auto"
    """A short rest after the last chunk came, or earlier if the queue would run dry."""
    THRESHOLD = "threshold"
    """When queue depth / chunk size is at most chunk_size_threshold, as LeRobot does."""
    CONTINUOUS = "continuous"
    """As soon as the last chunk is merged."""


# Ticks between an answer and the next observation with Replan.AUTO. Longer rests make actions older, and from about
# 0.2 s on Linux forgets meanwhile what the link can carry: the next observation then takes a round trip more. Without a
# rest, more of the link, the service and the processor goes into actions that are hardly fresher
REST_TICKS = 2


# Recent answers whose median is what one typically takes: four outliers in a row do not change how is planned, and five
# slow answers do
TYPICAL_OF = 9
# Recent answers of which two that are slow tell that some are
SLOW_OF = 20


class RoundTrips:
    """The recent times from capture to merge, in seconds. Warm-up and failed requests do not belong here."""

    def __init__(self, window: int = 50) -> None:
        """Remembers the last window round trips."""
        self._seconds: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        """Remembers one round trip."""
        self._seconds.append(seconds)

    def p95(self) -> float | None:
        """Returns the 95th percentile, or None before the first round trip."""
        # The higher neighbour: interpolating would promise less than was seen
        return float(np.quantile(self._seconds, 0.95, method="higher")) if self._seconds else None

    def typical(self) -> float | None:
        """Returns the median of the last TYPICAL_OF, or None before the first round trip."""
        return float(np.median(list(self._seconds)[-TYPICAL_OF:])) if self._seconds else None

    def slow_ones(self) -> float | None:
        """Returns the second longest of the last SLOW_OF, or None before the first. The longest may be chance."""
        recent = sorted(list(self._seconds)[-SLOW_OF:])
        return recent[-2] if len(recent) > 1 else recent[-1] if recent else None


@dataclass(frozen=True)
class Replanner:
    """Decides when a fresh chunk is wanted, and when it is urgent.

    Attributes:
      mode: The rule.
      chunk_size_threshold: For Replan.THRESHOLD, 0 to 1.
      fps: Ticks per second.
      least_depth: Ask when no more actions than this are left, in every mode: a chunk that follows the old one needs
        something to follow.
    """

    mode: Replan
    chunk_size_threshold: float
    fps: float
    least_depth: int = 0

    def wants(self, depth: int, chunk_size: int, playback_left: float, trips: RoundTrips, rested: float) -> bool:
        """Returns whether to ask now.

        Args:
          depth: Actions left in the queue.
          chunk_size: Actions of a chunk, positive.
          playback_left: Seconds the queue lasts.
          trips: Recent round trips.
          rested: Seconds since the last observation was answered or filtered, inf before the first.
        """
        typical, p95 = trips.typical(), trips.p95()
        if typical is not None and typical * self.fps >= chunk_size:
            # Whatever is left would be executed before the answer comes, and the answer would have lost as much of
            # its own. Asked with d of C actions left, an answer of L gives C - d of them in each C - 2d + L: for L >= C
            # that is best at d = 0
            return playback_left <= 0
        if p95 is None or depth <= self.least_depth or self.urgent(playback_left, p95):
            return True
        match self.mode:
            case Replan.AUTO:
                return rested * self.fps >= REST_TICKS
            case Replan.THRESHOLD:
                return depth / chunk_size <= self.chunk_size_threshold
            case Replan.CONTINUOUS:
                return True

    def urgent(self, playback_left: float, p95: float | None) -> bool:
        """Returns whether the queue would run dry if the next request waited: then nothing may be filtered."""
        if p95 is None:
            # Nothing is known of the link yet: learn it early rather than late
            return True
        return playback_left <= p95 + self.margin(p95)

    def margin(self, p95: float) -> float:
        """Returns the seconds to be early: four ticks for scheduling, or p95 for a reply that takes twice as long.

        Being early costs a little bandwidth and gives fresher actions; being late costs idle ticks.
        """
        return max(4 / self.fps, p95)
