"""How long to wait for the service: a few times what is usual, so that a link gone silent is noticed soon."""

from dataclasses import dataclass, field

from longarm_edge.replan import RoundTrips

# Least deadline of a prediction in seconds: a service that takes a breath must not be hung up on
LEAST_SECONDS = 1.0
# How many times the recent 95th percentile is waited for
USUAL_TIMES = 4.0
# Least time for a connection to come about, in seconds: as soon as a dead link is back, an attempt that began while it
# was dead is in the way, since TCP repeats its first packet at growing intervals
LEAST_CONNECT_SECONDS = 0.3
# Every so many attempts to connect one gets all the time there is: the link may be back and slower than it ever was.
# Seldom, since a link that comes back in the middle of a long attempt is noticed late
LONG_ATTEMPT = 32


@dataclass
class Patience:
    """Deadlines that follow what the link and the service usually take.

    Attributes:
      most: Longest deadline in seconds.
    """

    most: float
    _latency: RoundTrips = field(default_factory=RoundTrips)
    _network: RoundTrips = field(default_factory=RoundTrips)
    _losses: int = 0
    _attempts: int = 0

    def answered(self, call_seconds: float, network_seconds: float) -> None:
        """A prediction was answered: the whole call took so long, and the way there and back so much of it."""
        self._latency.add(call_seconds)
        self._network.add(network_seconds)
        self._losses = 0
        self._attempts = 0

    def lost(self) -> None:
        """No answer came in time. What was waited for may have been too short: the next deadline is twice as long."""
        self._losses += 1

    def deadline(self) -> float:
        """Returns the seconds to wait for the next prediction; most while nothing is known."""
        usual = self._latency.p95()
        if usual is None:
            return self.most
        return min(self.most, max(LEAST_SECONDS, USUAL_TIMES * usual) * 2.0 ** min(self._losses, 10))

    def connect_seconds(self) -> float:
        """Returns the seconds to wait for the next connection before another is tried; most while nothing is known."""
        usual = self._network.p95()
        self._attempts += 1
        if usual is None or self._attempts % LONG_ATTEMPT == 0:
            return self.most
        # A handshake takes two round trips. Not doubled: however long the link was gone, it may be back now
        return min(self.most, max(LEAST_CONNECT_SECONDS, USUAL_TIMES * usual))
