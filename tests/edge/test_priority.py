"""The control loop's scheduling: real-time where the system allows it, and for that thread and time only."""

import os
import threading

import pytest

from longarm_edge.priority import ahead_of_others


def test_the_thread_gets_it_and_gives_it_back() -> None:
    before = os.sched_getscheduler(0)
    with ahead_of_others() as priority:
        inside = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        others: list[int] = []
        thread = threading.Thread(target=lambda: others.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()
    assert os.sched_getscheduler(0) == before
    assert others == [os.SCHED_OTHER], "threads that start meanwhile stay ordinary"
    assert (inside == os.SCHED_FIFO) == (priority == "real-time priority")


def test_a_user_who_may_not_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with ahead_of_others() as priority:
        assert priority == "ordinary priority"
