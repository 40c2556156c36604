"""The serial ports of a robot, held for as long as it is connected: two programs on one bus throw the arm about."""

import errno
import fcntl
import os
import struct
import termios
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

# Asks whether a terminal is closed to others (TIOCGEXCL, from asm-generic/ioctls.h; Python's termios lacks it)
_ASK_CLOSED = 0x80045440
# Device numbers of pseudo-terminals, from the kernel's devices.txt. They stay closed when who closed them is gone
_PSEUDO = range(136, 144)


class Held:
    """Serial ports that are held."""

    def __init__(self) -> None:
        """Holds none."""
        self._stack = ExitStack()
        self._ports: dict[str, int] = {}

    def hold(self, parts: Iterable[Any]) -> None:
        """Holds the serial port of every part of a robot that has one, until close or the end of the process.

        Raises:
          ConnectionError: Another program holds one.
        """
        ports: dict[str, int] = {}
        with ExitStack() as stack:
            for port in dict.fromkeys(filter(None, map(_port, parts))):
                try:
                    # Opening it again is harmless to who has it open, and the driver's own opening is none of ours
                    fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        raise _taken(port) from None
                    continue  # the driver says what is wrong with it
                stack.callback(os.close, fd)
                if not os.isatty(fd):
                    continue
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise _taken(port) from None
                # A container has a device file of its own, with locks of its own
                if _is_closed(fd):
                    raise _taken(port)
                ports[port] = fd
            self._stack, self._ports = stack.pop_all(), ports

    def shut(self) -> None:
        """Has the kernel refuse the ports to whoever opens them from now on. For when the driver has opened them.

        Raises:
          ConnectionError: Another program did so meanwhile.
        """
        for port, fd in self._ports.items():
            if os.major(os.fstat(fd).st_rdev) in _PSEUDO:
                continue
            if _is_closed(fd):
                raise _taken(port)
            fcntl.ioctl(fd, termios.TIOCEXCL)
            self._stack.callback(fcntl.ioctl, fd, termios.TIOCNXCL)

    def close(self) -> None:
        """Holds none any more."""
        self._ports.clear()
        self._stack.close()


def _is_closed(fd: int) -> bool:
    try:
        return bool(struct.unpack("i", fcntl.ioctl(fd, _ASK_CLOSED, bytes(4)))[0])
    except OSError:
        return False


def _taken(port: str) -> ConnectionError:
    return ConnectionError(
        f"Another program drives the robot at {port}: another longarm-edge, say. Two at a time would throw the arm "
        "about. Stop that one first."
    )


def _port(part: Any) -> str | None:
    port = getattr(getattr(part, "config", None), "port", None)
    return port if isinstance(port, str) else None
