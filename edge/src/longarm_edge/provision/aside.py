"""Work that Ctrl-C ends at any moment.

KeyboardInterrupt comes up wherever the main thread happens to be. In the middle of paramiko that leaves a lock which
nobody gives back, and whatever closes the connection then waits for it for ever. So paramiko has a thread of its own,
where nothing comes up by surprise. The main thread only waits; Ctrl-C cuts the connection from there, and the work ends
by itself.
"""

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from longarm_edge.aside import aside, settle

# Seconds that interrupted work has to end. What cannot be cut short, such as dialling, is left behind
GRACE = 3.0


class Aside:
    """What the work knows of the thread that waits for it. Made by run_aside."""

    def __init__(self) -> None:
        self.interrupted = threading.Event()
        """Set once nobody waits for the work any more."""
        self._cuts: list[Callable[[], object]] = []
        # What the thread that waits has to do; None to look up. Safe to fill from a signal handler
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pressed = False
        self._asking = False

    @contextmanager
    def cut_by(self, cut: Callable[[], object]) -> Iterator[None]:
        """Has Ctrl-C call cut as long as the context lasts: the work then waits no longer for what it waits for.

        Args:
          cut: Called by the thread that waits. Must not block.
        """
        self._cuts.append(cut)
        if self.interrupted.is_set():
            cut()
        try:
            yield
        finally:
            self._cuts.remove(cut)

    def in_front[**P, T](self, function: Callable[P, T]) -> Callable[P, T]:
        """Returns function for the work to call and the waiting thread to carry out, where Ctrl-C interrupts it.

        For asking a person: reading from a terminal cannot be cut short in any other way.
        """

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            answer: Future[T] = Future()

            def ask() -> T:
                self._asking = True
                try:
                    return function(*args, **kwargs)
                finally:
                    self._asking = False

            self._inbox.put(lambda: settle(answer, ask))
            return answer.result()

        return call

    def wait_for(self, result: Future[Any]) -> None:
        """Returns when result is there, or nobody is to wait for it any more."""
        with self._hearing_interrupts():
            while not (result.done() or self._pressed):
                if (task := self._inbox.get()) is not None:
                    task()
            if self._pressed:
                self.interrupted.set()
                for cut in list(self._cuts):
                    cut()
                futures.wait([result], GRACE)
        # Also if it was pressed when all was done already
        if self._pressed:
            raise KeyboardInterrupt

    def look_up(self) -> None:
        """Has the thread that waits look how things are."""
        self._inbox.put(None)

    @contextmanager
    def _hearing_interrupts(self) -> Iterator[None]:
        """Has Ctrl-C say so, as long as the context lasts, in place of raising KeyboardInterrupt."""
        # Elsewhere, or where signals are ignored or handled already, Ctrl-C is somebody else's business
        in_charge = threading.current_thread() is threading.main_thread()
        if not in_charge or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _on_interrupt(self, *_: object) -> None:
        if self._asking:
            raise KeyboardInterrupt
        self._pressed = True
        self._inbox.put(None)


def run_aside[T](work: Callable[[Aside], T]) -> T:
    """Runs work on a thread of its own and returns what it returns, or raises what it raises.

    Raises:
      KeyboardInterrupt: Somebody pressed Ctrl-C. The work has ended, or is left to itself after GRACE seconds.
    """
    waiting = Aside()
    result = aside(lambda: work(waiting), "bring-up")
    result.add_done_callback(lambda _: waiting.look_up())
    waiting.wait_for(result)
    return result.result()
