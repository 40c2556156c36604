"""The links that are measured, and how one direction of a link treats a packet. Plain arithmetic, no clock."""

import math
import random
from dataclasses import dataclass, field

MEGABIT = 1e6 / 8
DOWN_MBIT = 100.0
# How much a bottleneck stores, in seconds of its own rate
QUEUE_SECONDS = 0.2
# No router stores less than a window of packets
QUEUE_LEAST_BYTES = 64_000


@dataclass(frozen=True)
class LinkSpec:
    """A link between robot and service.

    Attributes:
      name: For people.
      rtt: Round trip of an empty packet, seconds.
      up_mbit: Rate towards the service, Mbit/s; infinite for none.
      down_mbit: Rate towards the robot.
      loss: Share of packets lost, in each direction.
    """

    name: str
    rtt: float = 0.0
    up_mbit: float = math.inf
    down_mbit: float = math.inf
    loss: float = 0.0

    @property
    def emulated(self) -> bool:
        """Whether anything has to be done to packets."""
        return self.rtt > 0 or math.isfinite(self.up_mbit) or math.isfinite(self.down_mbit) or self.loss > 0

    def floor(self, up_bytes: float, down_bytes: float, inference: float) -> float:
        """Returns the least seconds from an observation to its chunk: RTT + bytes / rate + inference."""
        return self.rtt + up_bytes / (self.up_mbit * MEGABIT) + down_bytes / (self.down_mbit * MEGABIT) + inference


SAME_MACHINE = LinkSpec("same machine")
LINKS = {
    "loopback": SAME_MACHINE,
    "40/50": LinkSpec("RTT 40 ms, 50 Mbit/s up", 0.040, 50, DOWN_MBIT),
    "40/10": LinkSpec("RTT 40 ms, 10 Mbit/s up", 0.040, 10, DOWN_MBIT),
    "120/20": LinkSpec("RTT 120 ms, 20 Mbit/s up", 0.120, 20, DOWN_MBIT),
}


@dataclass
class Direction:
    """One direction of a link: a queue with a limit, drained at a rate, then a constant delay. Keeps the order.

    Attributes:
      delay: Seconds from leaving the queue to arrival.
      bytes_per_second: Of the bottleneck; infinite for none.
      loss: Share of packets lost before the queue.
      silent_until: Before this instant everything is lost.
      passed_bytes: What arrived or will.
      dropped_bytes: What was lost, for whatever reason.
    """

    delay: float = 0.0
    bytes_per_second: float = math.inf
    loss: float = 0.0
    silent_until: float = -math.inf
    passed_bytes: int = 0
    dropped_bytes: int = 0
    _free_at: float = -math.inf
    _last_arrival: float = -math.inf
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def queue_bytes(self) -> float:
        """How much the queue holds."""
        return max(QUEUE_LEAST_BYTES, self.bytes_per_second * QUEUE_SECONDS)

    def arrival(self, size: int, now: float) -> float | None:
        """Returns when a packet sent now arrives, None if it is lost.

        Args:
          size: Its bytes.
          now: Seconds; never less than at the last call.
        """
        waiting = max(0.0, self._free_at - now)
        full = math.isfinite(self.bytes_per_second) and waiting * self.bytes_per_second + size > self.queue_bytes
        if now < self.silent_until or full or self._random.random() < self.loss:
            self.dropped_bytes += size
            return None
        self.passed_bytes += size
        self._free_at = now + waiting + size / self.bytes_per_second
        self._last_arrival = max(self._last_arrival, self._free_at + self.delay)
        return self._last_arrival
