"""Calls into the process of a policy, for as long as it answers, and what became of it when it does not."""

import contextlib
import itertools
import logging
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any

from longarm_service import parcels
from longarm_service.checkpoint import clear_up_after
from longarm_service.fork_server import ForkServer
from longarm_service.policy import DeviceMemory
from longarm_service.policy_process import EXIT_DEVICE_FAILED
from longarm_wire.errors import Reason, WireError

# At a scrape
MEMORY_SECONDS = 1.0
# For the kernel to free what a process had, which comes before its end
FATE_SECONDS = 10.0
# Between questions whether an answer is still wanted
WAIT_SECONDS = 1.0

logger = logging.getLogger(__name__)


class ProcessEndedError(Exception):
    """A process has ended and answers no more. The message says why, in a sentence."""


class PolicyProcess:
    """The service's end of one process. For any thread.

    Attributes:
      closed: Numbers of processors to forget, which go along with the next call.
      fate: Why it answers no more, in a sentence; None while it does.
    """

    def __init__(self, server: ForkServer, timeout_seconds: float) -> None:
        """Forks it.

        Args:
          server: From which.
          timeout_seconds: How long it may take to read what is sent to it.

        Raises:
          ForkServerError: There is nothing to fork from.
        """
        self.closed: deque[int] = deque()
        self.fate: str | None = None
        self._server = server
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, SimpleQueue[dict[str, Any] | None]] = {}
        self._pid, self._connection = server.fork()
        # One that reads nothing must not hold whoever asks for ever
        patience = struct.pack("@ll", int(timeout_seconds), int(timeout_seconds % 1 * 1e6))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        threading.Thread(target=self._read, name=f"policy process {self._pid}", daemon=True).start()

    def call(
        self,
        call: str,
        timeout_seconds: float,
        on_progress: Callable[[dict[str, Any] | None], object] = lambda _: None,
        **arguments: Any,
    ) -> Any:
        """Returns what it answers. A process that says nothing for timeout_seconds is ended.

        Args:
          call: What to do.
          timeout_seconds: How long it may be without news.
          on_progress: Takes what it tells before it answers, and None every second in which it tells nothing. What it
            raises ends the wait.
          arguments: Of the call.

        Raises:
          WireError: The failure that it answers.
          ProcessEndedError: It ended, or is ended now.
        """
        try:
            return self._ask(call, timeout_seconds, on_progress, arguments)
        except TimeoutError:
            self.end(f"Its process hung: it said nothing for {timeout_seconds:g} s, and was ended.")
            logger.error("a policy is gone. %s", self.fate)
            raise ProcessEndedError(self.fate) from None

    def memory(self) -> list[DeviceMemory]:
        """Returns what it says of its GPUs; nothing if it is busy with something else."""
        try:
            told = self._ask("memory", MEMORY_SECONDS, lambda _: None, {})
        except (TimeoutError, WireError, ProcessEndedError):
            return []
        return [DeviceMemory(**one) for one in told]

    def end(self, why: str) -> None:
        """Ends it at once, whatever it does. Never waits."""
        if self.fate is None:
            self.fate = why
        self._server.kill(self._pid)

    def _ask(
        self,
        call: str,
        timeout_seconds: float,
        on_progress: Callable[[dict[str, Any] | None], object],
        arguments: dict[str, Any],
    ) -> Any:
        number = next(self._numbers)
        answers = self._waiting[number] = SimpleQueue()
        try:
            # Only now: whoever sets the fate then looks for those who wait
            if self.fate is not None:
                raise ProcessEndedError(self.fate)
            self._send({"id": number, "call": call, "closed": self._forgotten(), **arguments}, timeout_seconds)
            while True:
                message = _next(answers, timeout_seconds, on_progress)
                if message is None:
                    raise ProcessEndedError(self.fate)
                if "progress" not in message:
                    break
                on_progress(message["progress"])
        finally:
            del self._waiting[number]
        if "failure" in message:
            raise failure_told(message["failure"])
        return message["result"]

    def _send(self, message: dict[str, Any], timeout_seconds: float) -> None:
        if not self._sending.acquire(timeout=timeout_seconds):
            raise TimeoutError
        try:
            parcels.send(self._connection, message)
        except BlockingIOError:
            raise TimeoutError from None
        except OSError:
            # It has ended: the thread that reads finds out how
            return
        finally:
            self._sending.release()

    def _forgotten(self) -> list[int]:
        numbers = []
        while self.closed:
            numbers.append(self.closed.popleft())
        return numbers

    def _read(self) -> None:
        while (message := parcels.receive(self._connection)) is not None:
            answers = self._waiting.get(message["id"])
            if answers is not None:
                answers.put(message)
        status = self._server.status(self._pid, FATE_SECONDS)
        clear_up_after(self._pid)
        if self.fate is None:
            self.fate = _fate(status)
            logger.error("a policy is gone. %s", self.fate)
        for answers in list(self._waiting.values()):
            answers.put(None)
        with self._sending:
            self._connection.close()


def _next(
    answers: SimpleQueue[dict[str, Any] | None],
    timeout_seconds: float,
    on_progress: Callable[[dict[str, Any] | None], object],
) -> dict[str, Any] | None:
    end = time.monotonic() + timeout_seconds
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(Empty):
            return answers.get(timeout=min(left, WAIT_SECONDS))
        on_progress(None)
    raise TimeoutError


def _fate(status: int | None) -> str:
    """Returns what an exit code that nobody asked for means, as a sentence."""
    if status == -signal.SIGKILL:
        return (
            "Its process was killed (SIGKILL), as the kernel does where memory runs out. Give the machine or container "
            "more memory, or the service fewer or smaller policies (max_loaded_policies, dtype)."
        )
    if status == -signal.SIGBUS:
        return (
            "Its process crashed (SIGBUS), as where a file becomes shorter while it is read. Were the files of the "
            "checkpoint being written? Try again when they are whole."
        )
    if status == EXIT_DEVICE_FAILED:
        return "Its device failed, and its process ended. The service's log says how."
    if status is not None and status < 0:
        return f"Its process crashed ({signal.Signals(-status).name}). The service's log may say more."
    if status is None:
        return "Its process ended with the program that made it."
    return f"Its process ended (exit code {status}). The service's log may say more."


def failure_told(told: Mapping[str, Any]) -> WireError:
    """Returns the failure that a process told."""
    return WireError(Reason(told["reason"]), told["message"], **told["metadata"])
