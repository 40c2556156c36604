"""Who may talk to the motors: one call at a time, and nobody who was overtaken by the end of the run.

Where the robot takes several, that is one command at a time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext


class Turns:
    """Lets one call at a time pass, until a call that hangs is given up on."""

    def __init__(self, *, several: bool) -> None:
        """Lets any number of calls that are no commands pass at a time if several."""
        self._several = several
        self._line = threading.Lock()
        self._lock = threading.Lock()
        self._taker: int | None = None
        self._commands = self._begun = 0
        self._command_is_out = threading.Condition()

    @contextmanager
    def take(self, *, commands: bool = False, alone: bool = False) -> Iterator[None]:
        """Waits for a turn and holds it.

        Args:
          commands: Whether the call tells the motors something.
          alone: Whether no command may go out meanwhile.

        Raises:
          ConnectionError: Somebody has taken over meanwhile.
        """
        line, lock = self._line, self._lock
        in_turn = commands or alone or not self._several
        if in_turn:
            # A lock alone goes to whoever asks first once it is free: mostly to who just had it, and a control loop
            # that sends without a pause would keep everybody else from looking. The next one waits in front of it
            with line:
                lock.acquire()
        try:
            with self.commanding() if commands else nullcontext():
                self.check()
                yield
        finally:
            if in_turn:
                lock.release()

    def lull(self) -> Callable[[], bool]:
        """Returns what tells whether no command was under way from now until it is called."""
        with self._command_is_out:
            under_way, begun = self._commands, self._begun
        return lambda: not under_way and begun == self._begun

    def take_over(self, seconds: float) -> bool:
        """See longarm_edge.robot.Robot.take_over."""
        give_up_at = time.monotonic() + seconds
        lock = self._lock
        free = lock.acquire(timeout=seconds)
        # Whoever waits for a turn finds itself refused when it comes, and who took over has other locks
        self._taker = threading.get_ident()
        self._line, self._lock = threading.Lock(), threading.Lock()
        if free:
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
            self._begun += 1
        try:
            yield
        finally:
            with self._command_is_out:
                self._commands -= 1
                self._command_is_out.notify_all()
