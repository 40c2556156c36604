"""Deadlines that follow what is usual."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longarm_edge.patience import LEAST_CONNECT_SECONDS, LEAST_SECONDS, LONG_ATTEMPT, USUAL_TIMES, Patience


def test_nothing_is_hurried_before_anything_is_known() -> None:
    patience = Patience(most=5.0)
    assert (patience.deadline(), patience.connect_seconds()) == (5.0, 5.0)


def test_a_link_that_answers_fast_is_waited_for_a_second() -> None:
    """A robot whose link went silent must not stand still for the five seconds of the longest deadline."""
    patience = Patience(most=5.0)
    patience.answered(0.12, 0.02)
    assert patience.deadline() == LEAST_SECONDS
    assert patience.connect_seconds() == LEAST_CONNECT_SECONDS


def test_a_slow_policy_gets_its_time_and_a_slow_link_its_handshake() -> None:
    patience = Patience(most=30.0)
    patience.answered(2.0, 0.5)
    assert patience.deadline() == pytest.approx(USUAL_TIMES * 2.0)
    assert patience.connect_seconds() == pytest.approx(USUAL_TIMES * 0.5)


def test_a_service_that_became_slower_is_reached_in_the_end() -> None:
    """Were the deadline the same each time, no answer would ever come in time."""
    patience = Patience(most=5.0)
    patience.answered(0.12, 0.02)
    deadlines = []
    for _ in range(4):
        patience.lost()
        deadlines.append(patience.deadline())
    assert deadlines == [2.0, 4.0, 5.0, 5.0]
    patience.answered(3.0, 0.02)
    assert patience.deadline() == 5.0


def test_however_long_the_link_was_gone_most_attempts_are_short_and_some_are_long() -> None:
    """Short: the link may be back now. Long: it may be slower than it ever was, and no short one would get through."""
    patience = Patience(most=5.0)
    patience.answered(0.12, 0.02)
    for _ in range(50):
        patience.lost()
    seconds = [patience.connect_seconds() for _ in range(2 * LONG_ATTEMPT)]
    assert seconds == ([LEAST_CONNECT_SECONDS] * (LONG_ATTEMPT - 1) + [5.0]) * 2


@given(st.lists(st.floats(0, 1e3), max_size=60), st.integers(0, 100), st.floats(0.1, 100))
def test_no_deadline_is_longer_than_the_longest(seconds: list[float], losses: int, most: float) -> None:
    patience = Patience(most)
    for value in seconds:
        patience.answered(value, value)
    for _ in range(losses):
        patience.lost()
    assert 0 < patience.deadline() <= most
    assert 0 < patience.connect_seconds() <= most
