"""Who may talk to the motors: one call at a time, and nobody who was overtaken by the end of the run."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext


class Turns:
    """Lets one call at a time pass, until a call that hangs is given up on."""

    def __init__(self, *, several: bool) -> None:
        """Lets any number of calls pass at a time if several."""
        self._several = several
        self._line = threading.Lock()
        self._lock = threading.Lock()
        self._taker: int | None = None
        self._commands = 0
        self._command_is_out = threading.Condition()

    @contextmanager
    def take(self, *, commands: bool = False) -> Iterator[None]:
        """Waits for a turn and holds it.

        Args:
          commands: Whether the call tells the motors something.

        Raises:
          ConnectionError: Somebody has taken over meanwhile.
        """
        line, lock = self._line, self._lock
        if not self._several:
            # A lock alone goes to whoever asks first once it is free: mostly to who just had it, and a control loop
            # that sends without a pause would keep everybody else from looking. The next one waits in front of it
            with line:
                lock.acquire()
        try:
            with self.commanding() if commands else nullcontext():
                self.check()
                yield
        finally:
            if not self._several:
                lock.release()

    def take_over(self, seconds: float) -> bool:
        """See longarm_edge.robot.Robot.take_over."""
        give_up_at = time.monotonic() + seconds
        lock = self._lock
        free = self._several or lock.acquire(timeout=seconds)
        # Whoever waits for a turn finds itself refused when it comes, and who took over has other locks
        self._taker = threading.get_ident()
        self._line, self._lock = threading.Lock(), threading.Lock()
        if free and not self._several:
            lock.release()
        with self._command_is_out:
            return self._command_is_out.wait_for(lambda: not self._commands, max(0.0, give_up_at - time.monotonic()))

    def check(self) -> None:
        """Raises ConnectionError if somebody else has taken over."""
        if self._taker not in (None, threading.get_ident()):
            raise ConnectionError("The robot is being let go of")

    @contextmanager
    def commanding(self) -> Iterator[None]:
        """Makes a command of the call that is under way.

        Raises:
          ConnectionError: Somebody else has taken over meanwhile.
        """
        with self._counted():
            self.check()
            yield

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._command_is_out:
            self._commands += 1
        try:
            yield
        finally:
            with self._command_is_out:
                self._commands -= 1
                self._command_is_out.notify_all()
