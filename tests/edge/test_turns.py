"""Turns on the motors' bus, and the end of waiting for a call that hangs."""

import threading
import time

import pytest

from longarm_edge.aside import aside
from longarm_edge.turns import Turns


def test_one_call_at_a_time() -> None:
    turns, inside = Turns(several=False), threading.Event()
    with turns.take():
        other = threading.Thread(target=lambda: [inside.set() for _ in [turns.take().__enter__()]])
        other.start()
        assert not inside.wait(0.1)
    assert inside.wait(5)
    other.join(5)


def test_who_has_just_had_a_turn_lets_the_one_that_waits_go_first() -> None:
    """A robot that takes longer than a period for a command would be sent one after another and hardly be looked at."""
    turns, waiting, order = Turns(several=False), threading.Event(), []

    def look() -> None:
        waiting.set()
        with turns.take():
            order.append("look")

    for _ in range(5):
        looking = threading.Thread(target=look)
        with turns.take():
            looking.start()
            assert waiting.wait(5)
            time.sleep(0.05)
        with turns.take():
            order.append("command")
        looking.join(5)
        waiting.clear()
    assert order == ["look", "command"] * 5


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("commands", [False, True])
def test_who_takes_over_passes_a_call_that_hangs_and_those_behind_it_never_pass(several: bool, commands: bool) -> None:
    """A command that was waiting must not reach the motors after the arm was left."""
    turns, let_go, entered = Turns(several=several), threading.Event(), threading.Event()
    passed: list[str] = []

    def hang() -> None:
        with turns.take(commands=commands):
            entered.set()
            let_go.wait(5)

    def command() -> None:
        try:
            with turns.take():
                passed.append("command")
        except ConnectionError:
            passed.append("refused")

    hanging = threading.Thread(target=hang)
    hanging.start()
    assert entered.wait(5)
    waiting = threading.Thread(target=command)
    if not several:
        waiting.start()
    assert turns.take_over(0.1) is not commands
    with turns.take():
        passed.append("stop")
    let_go.set()
    assert turns.take_over(5), "the command that hung is through"
    hanging.join(5)
    if not several:
        waiting.join(5)
    assert passed == ["stop"] + ["refused"] * (not several)


def test_a_call_that_returns_in_time_is_waited_for() -> None:
    turns = Turns(several=False)
    call = turns.take()
    call.__enter__()
    timer = threading.Timer(0.1, lambda: call.__exit__(None, None, None))
    timer.start()
    assert turns.take_over(5)
    timer.join()
    with turns.take():
        pass


def test_whoever_comes_after_the_end_is_refused_too() -> None:
    """A thread that the system let wait came with its command, or began to connect, after the arm was left."""
    turns = Turns(several=False)
    assert turns.take_over(0.1)
    with pytest.raises(ConnectionError, match="being let go of"):
        aside(lambda: turns.take().__enter__(), "late").result(5)
    with turns.take():
        pass
