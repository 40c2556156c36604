"""What the bench says of several robots on one server follows from their answers."""

import pytest

from bench.batching import row, table
from bench.fleet import CHUNK_SIZE, FPS, Answer, idle_share

SPAN = CHUNK_SIZE / FPS


def test_a_chunk_covers_its_ticks_from_when_it_is_there() -> None:
    late = Answer(asked=10.0, answered=10.5, own=True)
    assert idle_share([late], 10.0, 10.0 + SPAN) == pytest.approx(0.5 / SPAN, abs=0.02)
    assert idle_share([late], 10.5, 10.0 + SPAN) == 0
    assert idle_share([late], 10.0 + SPAN, 20.0) == 1
    assert idle_share([late, Answer(10.5, 11.0, own=True)], 10.5, 10.5 + SPAN) == 0


def test_what_is_not_its_own_moves_no_robot() -> None:
    astray = Answer(10.0, 10.1, own=False)
    assert idle_share([astray], 10.1, 11.0) == 1
    mine = [Answer(10 + k / 10, 10.1 + k / 10, own=True, outside_seconds=0.004) for k in range(10)]
    theirs = [astray] * 10
    found = row([mine, theirs], 10.0, 11.05, per_pass=1.5)
    assert (found.robots, found.per_pass) == (2, 1.5)
    assert found.rate == pytest.approx(10 / 1.05)
    assert (found.p50, found.p95) == (pytest.approx(100), pytest.approx(100))
    assert found.idle == pytest.approx(0.55, abs=0.03)
    assert found.astray == 0.5
    assert found.outside == pytest.approx(4)


def test_a_server_that_answers_nobody_gets_a_row_without_latency() -> None:
    nothing = row([[Answer(1.0, 2.0, own=False)]], 0.0, 3.0, per_pass=float("nan"))
    assert table([("Some server", nothing)])[-1] == "| Some server | 1 | 0.0 |  | 100 | 100 |  |  |"
