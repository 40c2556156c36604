"""How the link to the policy stands, from what was seen and when."""

from dataclasses import dataclass
from enum import StrEnum


class LinkState(StrEnum):
    """How the link to the policy stands."""

    CONNECTING = "connecting"
    """No chunk has arrived yet."""
    STREAMING = "streaming"
    """Chunks arrive in time."""
    DEGRADED = "degraded"
    """No fresh chunk when one was due, and the queue still has actions."""
    SLOW = "slow"
    """Chunks arrive, too slowly to join: the arm plays a chunk, stands, and plays the next."""
    STALLED = "stalled"
    """Nothing to execute: the queue is empty or too old."""
    RECONNECTING = "reconnecting"
    """The service is out of reach and there is nothing left to execute."""
    FAILED = "failed"
    """Offline longer than max_offline, or the policy changed. The run ends."""


# States in which the robot does what the policy says
HEALTHY = frozenset({LinkState.STREAMING, LinkState.DEGRADED, LinkState.SLOW})

# An answer that takes so many times as long as usual is overdue
OVERDUE_TIMES = 2.0
# What a chunk waits for, as long as nothing is known to be wrong
UNOBSERVED = "The robot has given no observation yet"
UNANSWERED = "The last observation was not answered yet"


@dataclass
class Link:
    """Keeps what was seen of the link; state is a function of it and of the time.

    Attributes:
      max_offline: Seconds that a fresh chunk may be wanted and not come, for whatever reason. After them the link has
        failed.
      degraded_after: Seconds of the same after which it is degraded.

    Both are longer where usual answers take so long: a chunk that comes as it always does is not overdue.
    """

    max_offline: float
    degraded_after: float = 1.0
    _asking_since: float | None = None
    _unreachable: bool = False
    _streamed: bool = False
    _usual: float = 0.0
    _slow: bool = False
    _awaited: str = UNOBSERVED
    _trouble: str = ""
    _failure: str | None = None

    def asking(self, now: float) -> None:
        """A fresh chunk is wanted, and an observation for it."""
        self._awaited = UNOBSERVED
        if self._asking_since is None:
            self._asking_since = now
            self._trouble = ""

    def idle(self) -> None:
        """No fresh chunk is wanted after all."""
        self._asking_since = None

    def chunk_arrived(self) -> None:
        """A chunk was merged."""
        self._streamed = True
        self._asking_since = None
        self._unreachable = False

    def observed(self) -> None:
        """The robot gave the observation that is to be answered."""
        self._awaited = UNANSWERED

    def answers_take(self, usual: float, *, slow: bool = False) -> None:
        """An answer usually takes so many seconds; slow: so long that the arm stands between chunks."""
        self._usual = usual
        self._slow = slow

    def reached(self) -> None:
        """The service answered, if only with an error."""
        self._unreachable = False

    def unreachable(self, why: str) -> None:
        """The service did not answer."""
        self._unreachable = True
        self._trouble = why

    def trouble(self, why: str) -> None:
        """A chunk did not come for another reason."""
        self._trouble = why

    def fail(self, why: str) -> None:
        """The run cannot go on."""
        self._failure = self._failure or why

    def failure(self, now: float) -> str | None:
        """Returns why the run must end, or None."""
        if self._failure is None and self._overdue(now, self.max_offline):
            self._failure = (
                f"No chunk for more than max_offline={self.max_offline:g} s. {self._trouble or self._awaited}"
            )
        return self._failure

    def state(self, now: float, playback_left: float) -> LinkState:
        """Returns how the link stands.

        Args:
          now: Seconds on the monotonic clock.
          playback_left: Seconds the action queue lasts.
        """
        if self.failure(now) is not None:
            return LinkState.FAILED
        if not self._streamed:
            return LinkState.CONNECTING
        late = self._unreachable or self._overdue(now, self.degraded_after)
        if self._slow and not late:
            return LinkState.SLOW
        if playback_left <= 0:
            return LinkState.RECONNECTING if self._unreachable else LinkState.STALLED
        return LinkState.DEGRADED if late else LinkState.STREAMING

    def _overdue(self, now: float, after: float) -> bool:
        asking_since = self._asking_since
        return asking_since is not None and now - asking_since > max(after, OVERDUE_TIMES * self._usual)
