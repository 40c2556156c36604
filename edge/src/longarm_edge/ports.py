"""The serial ports of a robot, held for as long as it is connected: two programs on one bus throw the arm about."""

import fcntl
import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any


def hold(parts: Iterable[Any]) -> ExitStack:
    """Holds the serial port of every part of a robot that has one, until the stack is closed or the process ends.

    Raises:
      ConnectionError: Another program holds one.
    """
    with ExitStack() as stack:
        for port in dict.fromkeys(filter(None, map(_port, parts))):
            try:
                # Opening it again is harmless to who has it open, and the driver's own opening is none of ours
                fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            except OSError:
                continue  # the driver says what is wrong with it
            stack.callback(os.close, fd)
            if not os.isatty(fd):
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConnectionError(
                    f"Another program drives the robot at {port}: another longarm-edge, say. Two at a time would throw "
                    "the arm about. Stop that one first."
                ) from None
        return stack.pop_all()


def _port(part: Any) -> str | None:
    port = getattr(getattr(part, "config", None), "port", None)
    return port if isinstance(port, str) else None
