"""Ties a process to the one that started it. Run as a program, it becomes the command in its arguments, tied.

usage: python tether.py PARENT_ID COMMAND [ARGUMENT ...]

Imports nothing of Longarm: it also runs in an isolated interpreter.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tie(parent: int, signal_number: int) -> None:
    """Has this process get signal_number when its parent dies; Linux only, elsewhere nothing happens.

    Args:
      parent: Process id of the parent as the parent knows it.
      signal_number: What to get.

    The parent "dies" with the thread that started this process, so that has to be one that stays.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent:
            # It died before it could be told
            os.kill(os.getpid(), signal_number)


if __name__ == "__main__":
    tie(int(sys.argv[1]), signal.SIGKILL)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # the command is the caller's
