"""Who may talk to the motors: one call at a time, and nobody who was overtaken by the end of the run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Lets one call at a time pass, until a call that hangs is given up on."""

    def __init__(self, *, several: bool) -> None:
        """Lets any number of calls pass at a time if several."""
        self._several = several
        self._line = threading.Lock()
        self._lock = threading.Lock()
        self._era = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Waits for a turn and holds it.

        Raises:
          ConnectionError: Somebody has taken over meanwhile.
        """
        era, line, lock = self._era, self._line, self._lock
        if not self._several:
            # A lock alone goes to whoever asks first once it is free: mostly to who just had it, and a control loop
            # that sends without a pause would keep everybody else from looking. The next one waits in front of it
            with line:
                lock.acquire()
        try:
            if era != self._era:
                raise ConnectionError("The robot is being let go of")
            yield
        finally:
            if not self._several:
                lock.release()

    def take_over(self, seconds: float) -> bool:
        """See longarm_edge.robot.Robot.take_over."""
        lock = self._lock
        free = self._several or lock.acquire(timeout=seconds)
        # Whoever waits for a turn finds another era when it comes, and whoever asks from now on has other locks
        self._era += 1
        self._line, self._lock = threading.Lock(), threading.Lock()
        if free and not self._several:
            lock.release()
        return free
