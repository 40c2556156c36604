"""Figures from logs that were made up: every number can be told beforehand."""

import math

import numpy as np
import pytest

from bench import marks, robot_log
from bench.analysis import executed, figures, outage
from bench.robot_log import COMMANDED, OBSERVED

FPS = 30.0
TICK = 1 / FPS


def log(*events: tuple[int, float, int, float]) -> np.ndarray:
    """Returns a log of (kind, instant, mark, first joint)."""
    events = tuple(sorted(events, key=lambda event: event[1]))
    rows = [
        (kind, at, at + 0.0001, mark, (joint, 0, 0, 0, 0, 0))
        for kind, at, mark, joint in sorted(events, key=lambda e: e[1])
    ]
    return np.array(rows, robot_log.EVENT)


def steady(seconds: float, latency: float, every: float, *, step: float = 1.0, jump: float = 5.0) -> np.ndarray:
    """Returns the log of a good peer: an observation every so often, executed latency later, no tick missing."""
    events: list[tuple[int, float, int, float]] = []
    observed = np.arange(-latency - every, seconds, every)
    events += [(OBSERVED, float(at), number + 1, 0.0) for number, at in enumerate(observed)]
    joint, mark = 0.0, 0
    for tick in range(round(seconds * FPS)):
        at = tick * TICK
        newest = int(np.searchsorted(observed + latency, at, side="right"))
        joint += jump if newest != mark and mark else step
        mark = newest
        events.append((COMMANDED, at, mark % marks.CYCLE, joint))
    return log(*events)


def test_a_steady_run() -> None:
    found = figures(steady(10, latency=0.15, every=0.5), 1.0, 9.0, FPS)
    assert found.actions_per_second == pytest.approx(30, abs=0.2)
    assert found.missing_ticks == 0
    assert found.late_p99_ms == pytest.approx(0, abs=1e-6)
    # The first command after the latency comes at a tick
    assert 150 <= found.first_p50_ms <= 150 + 34
    assert found.chunks_per_second == pytest.approx(2, abs=0.2)
    assert found.observations_per_second == pytest.approx(2, abs=0.2)
    assert found.age_mean_ms == pytest.approx(150 + 250, abs=20)
    assert 600 <= found.age_p95_ms <= 660
    assert found.switch_max_deg == pytest.approx(5)
    assert found.switch_p50_deg == pytest.approx(5)
    assert found.inside_max_deg == pytest.approx(1)


def test_counts_go_on_past_the_cycle_of_marks() -> None:
    """At 30 observations a second the marks begin anew every 8.5 s."""
    found = figures(steady(30, latency=0.15, every=TICK), 1.0, 29.0, FPS)
    assert 150 <= found.first_p95_ms <= 150 + 34
    assert found.chunks_per_second == pytest.approx(30, abs=0.2)


def test_missing_ticks_and_lateness() -> None:
    events = steady(4, latency=0.1, every=0.5)
    commands = np.flatnonzero(events["kind"] == COMMANDED)
    without = np.delete(events, commands[60:63])
    found = figures(without, 0.0, 4.0, FPS)
    assert found.missing_ticks == 3
    assert found.late_max_ms == pytest.approx(100, abs=0.1)
    assert found.actions_per_second == pytest.approx((120 - 3) / 4)


def test_a_robot_that_never_moved() -> None:
    found = figures(log((OBSERVED, 0.5, 1, 0.0)), 0.0, 5.0, FPS)
    assert found.missing_ticks == 150
    assert math.isnan(found.first_p50_ms)
    assert math.isnan(found.age_mean_ms)
    assert math.isnan(found.switch_max_deg)


def test_a_command_before_any_observation_has_no_age() -> None:
    run = executed(log((COMMANDED, 0.1, 3, 0.0), (OBSERVED, 0.2, 1, 0.0), (COMMANDED, 0.3, 1, 0.0)))
    assert run.count.tolist() == [0, 1]
    assert math.isnan(run.age[0])
    assert run.age[1] == pytest.approx(0.1)


def test_an_older_chunk_that_comes_back_is_no_first() -> None:
    """A merge may leave actions of the chunk before at the end of the queue."""
    observations = [(OBSERVED, 0.1 * number, number, 0.0) for number in (1, 2)]
    commands = [(COMMANDED, 1.0 + TICK * i, mark, 0.0) for i, mark in enumerate((1, 2, 1, 2))]
    assert executed(log(*observations, *commands)).firsts().tolist() == [1]


def test_an_outage_through_which_the_queue_lasts() -> None:
    events = steady(20, latency=0.1, every=0.5)
    hidden = (events["kind"] == OBSERVED) & (events["begun"] > 5) & (events["begun"] < 6)
    found = outage(events[~hidden], 5.0, 6.0, 20.0, FPS)
    assert found.still == 0
    assert found.played == pytest.approx(15)


def test_an_outage_that_stops_the_arm() -> None:
    events = steady(20, latency=0.1, every=0.5)
    gone = (events["kind"] == COMMANDED) & (events["begun"] > 6.5) & (events["begun"] < 10.3)
    found = outage(events[~gone], 5.0, 10.0, 20.0, FPS)
    assert found.played == pytest.approx(1.5, abs=0.05)
    assert found.still == pytest.approx(3.8, abs=0.1)
    assert found.moving_again == pytest.approx(0.3, abs=0.05)
    assert found.resumed is not None
    assert 0.3 <= found.resumed < 0.7


def test_an_outage_without_an_end() -> None:
    events = steady(20, latency=0.1, every=0.5)
    found = outage(events[events["begun"] < 5.5], 5.0, 10.0, 20.0, FPS)
    assert found.resumed is None
    assert found.moving_again is None
    assert found.still == pytest.approx(14.5, abs=0.1)
