"""Hands frames over to a process of its own, without ever waiting for it."""

import contextlib
import fcntl
import json
import logging
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from longarm_edge.frame_stream import write_frame, write_job
from longarm_edge.observer import Frame
from longarm_wire.settings import environment_for_others

logger = logging.getLogger(__name__)

# Linux's limit for users; a frame then takes a few rounds of the pipe in place of dozens
PIPE_BYTES = 1 << 20
# Of what the process wrote on stderr, the end that explains a failure
TAIL_CHARACTERS = 600


class FramePipeError(Exception):
    """The process at the other end cannot do its work; the message is its own."""


class FramePipe:
    """A child process that reads frames from its stdin and answers on its stdout with a JSON object a line.

    It says {"ready": true} once, {"taken": n, "kept": m} (all so far) as it goes, and at the end {"kept": m} and
    {"done": words} or {"failed": words}. It gets no signal of the terminal and ends when its stdin does: whatever
    happens to the edge, it can put away what it has.

    Attributes:
      kept: Frames that the process has put away for good, as it last said.
    """

    def __init__(
        self,
        module: str,
        job: dict[str, Any],
        capacity: int,
        on_progress: Callable[[int, int], None] = lambda _taken, _kept: None,
    ) -> None:
        """Makes a pipe at rest.

        Args:
          module: What the process runs, as in python -m.
          job: Its first message.
          capacity: Frames that wait at most.
          on_progress: Told how many frames the process has taken, and put away for good, so far.
        """
        self._module = module
        self._command = [sys.executable, "-m", module]
        self._job = job
        self._on_progress = on_progress
        self._frames: queue.Queue[Frame | None] = queue.Queue(capacity)
        self._ready = threading.Event()
        self._outcome: dict[str, Any] = {}
        self._offered = False
        self.kept = 0
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []

    @property
    def failure(self) -> str | None:
        """Why the process cannot go on, if so."""
        failed = self._outcome.get("failed")
        return None if failed is None else str(failed)

    @property
    def is_over(self) -> bool:
        """Whether the process has said its last word, so that kept is final."""
        return bool(self._outcome)

    def start(self) -> None:
        """Starts the process and returns at once."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # the listener closes it
        self._process = subprocess.Popen(  # noqa: S603
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment_for_others(),
            start_new_session=True,
        )
        for target, name in ((self._feed, "feeder"), (self._listen, "listener")):
            thread = threading.Thread(target=target, args=(self._process,), name=f"{self._module} {name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def is_ready(self, timeout: float) -> bool:
        """Waits timeout seconds at most for the process to be ready.

        Raises:
          FramePipeError: It never will be.
        """
        self._ready.wait(timeout)
        if self.failure is not None:
            raise FramePipeError(self.failure)
        return self._ready.is_set()

    def offer(self, frame: Frame) -> bool:
        """Hands frame over and returns True, or returns False at once: too many wait, or the process has failed."""
        if self._outcome or self._closing.is_set():
            return False
        try:
            self._frames.put_nowait(frame)
        except queue.Full:
            return False
        self._offered = True
        return True

    def close(self, timeout: float) -> str:
        """Lets the process finish what it has, for timeout seconds at most, and returns its last word.

        One that was given nothing and has not begun its work ends at once.

        Raises:
          FramePipeError: It failed, or is not finished yet; then it goes on by itself.
        """
        if self._process is None:
            return ""
        self._closing.set()
        if not self._offered:
            # It may still have much to import. Once it is at work it takes no signal, and ends in good order
            self._process.terminate()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise FramePipeError(f"It is not finished after {timeout:g} s. It goes on by itself.")
        if self.failure is not None:
            raise FramePipeError(self.failure)
        return str(self._outcome["done"])

    def _feed(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None  # noqa: S101
        fd = process.stdin.fileno()
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # the system allows less: more rounds
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            write_job(fd, self._job)
            while (frame := self._next()) is not None:
                write_frame(fd, frame)
        except OSError as error:  # the process is gone: the listener knows why
            logger.debug("%s reads no more: %s", self._module, error)
        finally:
            process.stdin.close()

    def _next(self) -> Frame | None:
        """Returns the next frame, or None when there will be none."""
        while True:
            try:
                return self._frames.get(timeout=0.1)
            except queue.Empty:
                if self._closing.is_set() or self._outcome:
                    return None

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None  # noqa: S101
        outcome: dict[str, Any] = {}
        with process.stdout as answers:
            for line in answers:
                try:
                    answer = json.loads(line)
                except ValueError:  # something that a library printed before it could be kept from it
                    logger.debug("%s said: %r", self._module, line)
                    continue
                if "kept" in answer:
                    self.kept = answer["kept"]
                    if "taken" in answer:
                        self._on_progress(answer["taken"], self.kept)
                elif "ready" in answer:
                    self._ready.set()
                else:
                    outcome = answer
                    if "failed" in answer:
                        break
        if not outcome:
            code = process.wait()
            not_begun = self._closing.is_set() and not self._offered and code == -signal.SIGTERM
            outcome = {"done": "nothing"} if not_begun else {"failed": f"It ended with {code}: {self._tail()}"}
        self._outcome = outcome
        process.wait()
        self._stderr.close()

    def _tail(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-TAIL_CHARACTERS:].strip() or "it said nothing"
