"""Real-time chunking from the robot to the policy and back."""

from dataclasses import replace

import numpy as np
import pytest

from longarm_edge.metrics import Observation
from longarm_edge.settings import RtcSettings
from longarm_wire.settings import ConfigurationError
from tests.e2e.conftest import DEFAULT_SPEC, RunningService, Script
from tests.e2e.test_run import joins

RTC_SPEC = replace(DEFAULT_SPEC, supports_rtc=True, model_action_dim=3)


@pytest.fixture
def script() -> Script:
    return Script(spec=RTC_SPEC, seconds=0.1)


def test_each_chunk_is_told_what_the_arm_still_executes(edge, arm, script) -> None:
    """The prefix begins with the action for the observation's tick: else the arm is pulled ahead or back."""
    e = edge(duration=3.0, aggregate_fn_name="rtc", rtc=RtcSettings(execution_horizon=8))
    e.go()
    assert joins(arm, e.run), arm.commands
    warm_up, first, *later = script.seen
    for _, guidance in (warm_up, first):
        assert guidance is not None
        assert (guidance.prefix, guidance.delay_ticks) == (None, 0)
    ahead = []
    for state, guidance in later:
        assert guidance is not None
        assert guidance.prefix is not None
        assert 1 <= len(guidance.prefix) <= 8
        assert guidance.delay_ticks >= 3, "a prediction takes 0.1 s"
        np.testing.assert_array_equal(np.diff(guidance.prefix[:, 0]), 1)
        ahead.append(guidance.prefix[0, 0] - state[0])
    # The arm goes where it is sent at once, one degree a tick: it was seen at the action before the prefix. A machine
    # that stalls in the middle of a capture lets a tick go by
    assert len(ahead) >= 2
    assert ahead.count(1) >= len(ahead) - 1


def test_a_slow_first_answer_does_not_make_the_arm_jump(edge, arm, script) -> None:
    """LeRobot's local engine skips as many actions of the first chunk as its inference took ticks."""
    script.seconds = 0.3
    e = edge(duration=1.5, aggregate_fn_name="rtc")
    e.go()
    assert arm.commands[0][1] == (1.0, 0.0, 0.0)
    assert joins(arm, e.run), arm.commands


def test_it_goes_on_after_the_service_restarted(edge, arm, service: RunningService, script) -> None:
    def restart(run) -> None:
        from tests.e2e.conftest import until

        until(lambda: run.trace.observation_counts[Observation.ANSWERED] >= 2, "two chunks")
        service.stop()
        service.start()
        script.seen.clear()
        until(lambda: len(script.seen) >= 2, "chunks after the restart")

    e = edge(duration=4.0, aggregate_fn_name="rtc")
    e.go(restart)
    assert any(guidance is not None and guidance.prefix is not None for _, guidance in script.seen)


def test_a_policy_that_cannot_do_it_is_refused_before_the_robot_moves(edge, arm, script) -> None:
    script.spec = DEFAULT_SPEC
    with pytest.raises(ConfigurationError, match=r"RTC_UNSUPPORTED.*aggregate_fn_name=latest_only"):
        edge(aggregate_fn_name="rtc").go()
    assert not arm.commands


def test_without_it_nothing_of_it_travels(edge, script) -> None:
    edge(duration=1.0).go()
    assert [guidance for _, guidance in script.seen if guidance is not None] == []
