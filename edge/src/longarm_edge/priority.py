"""Scheduling of the control loop's thread: ahead of whatever else the laptop does, where the system allows it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Low among real-time priorities: above every ordinary thread, below the kernel's own
FIFO_PRIORITY = 5


@contextmanager
def ahead_of_others() -> Iterator[str]:
    """Gives the calling thread real-time priority for a while, if the system allows it, and yields what it got.

    It is allowed for root, with CAP_SYS_NICE, or with a limit on rtprio (LimitRTPRIO= of a systemd unit, or
    limits.conf).
    The loop sleeps for most of its period; what the thread starts in the meantime stays ordinary.
    """
    try:
        before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(FIFO_PRIORITY))
    except (AttributeError, OSError):  # another system than Linux, or not allowed
        yield "ordinary priority"
        return
    try:
        yield "real-time priority"
    finally:
        os.sched_setscheduler(0, before, parameters)
