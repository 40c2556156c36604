"""Simulated time against the clock, without threads."""

import pytest

from lerobot_robot_longarm_sim.step_schedule import StepSchedule

TIMESTEP = 0.0025


def test_late_wakes_do_not_add_up():
    schedule = StepSchedule(TIMESTEP, now=100.0)
    steps = sum(schedule.take_due(100.0 + wake * 0.007 + 0.0013) for wake in range(1000))
    assert steps == int((999 * 0.007 + 0.0013) / TIMESTEP)
    assert schedule.skipped_seconds == 0.0


def test_nothing_is_due_twice_and_the_clock_may_stand_still():
    schedule = StepSchedule(TIMESTEP, now=0.0)
    assert schedule.take_due(0.0101) == 4
    assert schedule.take_due(0.0101) == 0
    assert schedule.due_time(2) == pytest.approx(6 * TIMESTEP)


def test_a_starved_world_skips_ahead():
    schedule = StepSchedule(TIMESTEP, now=0.0, max_backlog_seconds=0.1)
    assert schedule.take_due(10.0001) == 40
    assert schedule.skipped_seconds == pytest.approx(9.9, abs=TIMESTEP)
    assert schedule.take_due(10.0001) == 0
    assert schedule.take_due(10.0001 + 2 * TIMESTEP) == 2
