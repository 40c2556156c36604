"""What systemd learns of a run: how long the start may still take, that the control loop lives, and the end."""

from collections.abc import Callable
from dataclasses import dataclass, field

from longarm_edge.link import LinkState
from longarm_edge.schedule import Clock
from longarm_wire.notify import Notifier

# Longest time between two signs of life, in seconds: `systemctl status` shows the link's state this fresh
BEAT_SECONDS = 1.0
# A step of the start ends by its own deadline, and says why. Only one that hangs gets to meet systemd's
START_MARGIN_SECONDS = 30.0


@dataclass
class Supervision:
    """Tells the service manager how a run comes along. No call waits.

    Attributes:
      notifier: Reaches the manager.
      link_state: Says how the link stands.
      clock: Tells the time.
    """

    notifier: Notifier
    link_state: Callable[[], LinkState]
    clock: Clock
    _next_beat: float = field(default=0.0, init=False)
    _ready: bool = field(default=False, init=False)

    def starting(self, what: str, seconds: float) -> None:
        """A step of the start begins, which ends by itself within so many seconds."""
        allowed = round((seconds + START_MARGIN_SECONDS) * 1e6)
        self.notifier.tell(f"STATUS={what}", f"EXTEND_TIMEOUT_USEC={allowed}")

    def beat(self) -> None:
        """A tick is over. The first one makes the unit active; the watchdog fires when no more come."""
        now = self.clock.now()
        if now < self._next_beat:
            return
        # A quarter: one message may get lost, and a tick may be late
        self._next_beat = now + min(BEAT_SECONDS, (self.notifier.watchdog_seconds or BEAT_SECONDS) / 4)
        ready = () if self._ready else ("READY=1",)
        self._ready = self.notifier.tell(*ready, "WATCHDOG=1", f"STATUS={self.link_state().value}") or self._ready

    def stopping(self, why: str) -> None:
        """The run ends, and the arm is left now: there are no more ticks to wait for."""
        self.notifier.tell("STOPPING=1", f"STATUS={why.splitlines()[0] if why else ''}")
