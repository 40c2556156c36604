"""Processes that have torch and LeRobot imported already: forked in milliseconds from one that imports them once.

usage: python -m longarm_service.fork_server {fork,fresh,serve} DESCRIPTOR LOG_LEVEL MODULE:FACTORY [MODULE ...]

The service starts this program with `fork` and keeps the other end of the socket DESCRIPTOR. For each socket that it
sends along, a process is forked that serves on it (policy_process.py) with what FACTORY makes. The program does nothing
else, above all no CUDA, which does not survive a fork. When the service ends, however it ends, the socket does; then
this program ends, and with it all that it forked.

Where imports use CUDA all the same, `fresh` starts each process from nothing, as `serve`, which takes seconds.
"""

import ctypes
import functools
import gc
import importlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from longarm_wire import exit_codes

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# An answer is a word and two numbers
_PACKET_BYTES = 64
# Longer than importing takes on the slowest disk
FORK_SECONDS = 600.0
# Lets torch.cuda.is_available(), which some modules ask as they are imported, look for GPUs without CUDA
_NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class ForkServerError(Exception):
    """The fork server ended, or does not answer."""


class ForkServer:
    """The service's end. For any thread."""

    def __init__(
        self, factory: str, imports: Sequence[str] = (), log_level: str = "info", *, fresh: bool = False
    ) -> None:
        """Starts the program, which begins to import.

        Args:
          factory: MODULE:FUNCTION that makes a PolicyLoader from keyword arguments.
          imports: Further modules that what FACTORY loads may need.
          log_level: Least severity of its log lines, which go to the service's standard error.
          fresh: Whether to start each process from nothing.
        """
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        way = "fresh" if fresh else "fork"
        command = [sys.executable, "-m", __spec__.name, way, str(theirs.fileno()), log_level, factory, *imports]
        with theirs:
            # Of no terminal and no process group that others may signal: it ends with the service and not before
            self._process = subprocess.Popen(  # noqa: S603
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._lock = threading.Lock()
        self._forked: SimpleQueue[int | None] = SimpleQueue()
        self._statuses: dict[int, int] = {}
        self._changed = threading.Condition()
        self.ended = False
        threading.Thread(target=self._read, name="fork server", daemon=True).start()

    def fork(self) -> tuple[int, socket.socket]:
        """Returns the id of a new process and the connection to it.

        Raises:
          ForkServerError: It ended; the service's log says why.
        """
        ours, theirs = socket.socketpair()
        pid = None
        # Nobody is there, or answers
        with theirs, self._lock, suppress(OSError, Empty):
            if not self.ended:
                socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
                pid = self._forked.get(timeout=FORK_SECONDS)
        if pid is None:
            ours.close()
            raise ForkServerError("The program that makes a process for each policy ended. The service's log says why.")
        return pid, ours

    def kill(self, pid: int) -> None:
        """Ends a process at once, if it has not ended by itself."""
        with suppress(OSError):
            self._control.send(b"kill %d" % pid)

    def status(self, pid: int, timeout: float) -> int | None:
        """Returns the exit code of a process that ends now, negative for a signal, or None if that is not known."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._statuses or self.ended, timeout)
            return self._statuses.pop(pid, None)

    def close(self) -> None:
        """Ends the program and all processes."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        while packet := self._packet():
            word, *numbers = packet.decode().split()
            if word == "forked":
                self._forked.put(int(numbers[0]))
            else:
                with self._changed:
                    self._statuses[int(numbers[0])] = int(numbers[1])
                    self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()
        self._forked.put(None)
        self._control.close()

    def _packet(self) -> bytes:
        try:
            return self._control.recv(_PACKET_BYTES)
        except OSError:
            return b""


def main(arguments: Sequence[str]) -> None:
    """Forks on demand, or serves, until the service ends."""
    way, descriptor, log_level, factory, *imports = arguments
    # A stop is for the service, which lets predictions be answered first
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=log_level.upper(), format=LOG_FORMAT, stream=sys.stderr, force=True)
    with socket.socket(fileno=int(descriptor)) as connection:
        if way == "fresh":
            _fork_on_demand(connection, functools.partial(_serve_afresh, arguments=arguments[2:]))
            return
        serve = _imported(factory, imports)
        if way == "serve":
            serve(connection)
        else:
            _fork_on_demand(connection, serve)


def _imported(factory: str, imports: Sequence[str]) -> Callable[[socket.socket], None]:
    """Returns what serves on a connection, with everything imported that it needs."""
    before = os.environ.get(_NVML_CHECK)
    os.environ[_NVML_CHECK] = "1"
    for wanted in imports:
        importlib.import_module(wanted)
    module, _, name = factory.partition(":")
    make_loader = getattr(importlib.import_module(module), name)
    from longarm_service.policy_process import serve

    # There what counts is whether CUDA works
    del os.environ[_NVML_CHECK]
    if before is not None:
        os.environ[_NVML_CHECK] = before
    # What is imported stays: collections in the processes neither search it nor write to its pages, which all share
    gc.collect()
    gc.freeze()
    return functools.partial(serve, make_loader=make_loader)


def _serve_afresh(connection: socket.socket, arguments: Sequence[str]) -> None:
    connection.set_inheritable(True)
    command = [sys.executable, "-m", __spec__.name, "serve", str(connection.fileno()), *arguments]
    os.execv(sys.executable, command)  # noqa: S606


def _fork_on_demand(control: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    woken, wakes = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, _PACKET_BYTES)
            for pid, code in _ended(children):
                children.discard(pid)
                control.send(b"ended %d %d" % (pid, code))
        if control.fileno() not in ready:
            continue
        packet, descriptors, _, _ = socket.recv_fds(control, _PACKET_BYTES, 1)
        if packet == b"fork":
            with socket.socket(fileno=descriptors[0]) as connection:
                pid = _fork(control, connection, serve)
            children.add(pid)
            control.send(b"forked %d" % pid)
        elif packet:
            pid = int(packet.split()[1])
            if pid in children:
                os.kill(pid, signal.SIGKILL)
        else:
            return


def _ended(children: set[int]) -> Iterator[tuple[int, int]]:
    for child in tuple(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            yield pid, os.waitstatus_to_exitcode(status)


def _fork(control: socket.socket, connection: socket.socket, serve: Callable[[socket.socket], None]) -> int:
    """Returns the id of a new process, in which serve is called and nothing else."""
    parent = os.getpid()
    with warnings.catch_warnings():
        # The threads that imports start (OpenBLAS, jemalloc) are made for it: their libraries start them anew
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = exit_codes.FAILED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # Else it ended before that
        if os.getppid() == parent:
            serve(connection)
            code = exit_codes.DONE
    except BaseException:
        logging.getLogger(__name__).exception("The process of a policy failed")
    finally:
        logging.shutdown()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
