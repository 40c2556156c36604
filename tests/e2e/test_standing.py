"""An arm that stood still goes on from where it stands: whatever it waited for, no command leaps."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from longarm_edge.action_queue import Drop
from longarm_edge.link import HEALTHY, LinkState
from longarm_edge.metrics import Observation, Tick
from longarm_edge.run import Run
from longarm_edge.settings import SafetySettings
from longarm_wire import exit_codes
from tests.e2e.conftest import DEFAULT_SPEC, RunningService, Script, TestArm, until
from tests.e2e.test_dead_link import Proxy
from tests.e2e.test_run import executed, idle

# The policy moves one degree per action. A machine that stalls in the middle of a capture shifts a chunk by one
NORMAL_STEP = 2


def largest_step(arm: TestArm) -> float:
    """Returns the largest change of pan from one command to the next, the way from the start pose at 0 included."""
    return float(np.abs(np.diff([0.0, *(command[0] for _, command in arm.commands)])).max())


def end() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def moves(run: Run) -> None:
    before = executed(run)
    until(lambda: executed(run) > before + 15, "it moves")


def stands(run: Run) -> None:
    before = idle(run)
    until(lambda: idle(run) > before + 10, "it stands")


@pytest.fixture
def proxy(service: RunningService) -> Iterator[Proxy]:
    running = Proxy(service.port)
    yield running
    running.close()


def stall(run: Run, script: Script, service: RunningService, proxy: Proxy, arm: TestArm) -> None:
    """The policy fails until the queue is empty, and is slow then."""
    script.always = RuntimeError("out of memory")
    stands(run)
    script.seconds, script.always = 0.5, None


def reconnect(run: Run, script: Script, service: RunningService, proxy: Proxy, arm: TestArm) -> None:
    proxy.silent.set()
    time.sleep(2)
    script.seconds = 0.3
    proxy.silent.clear()


def restart(run: Run, script: Script, service: RunningService, proxy: Proxy, arm: TestArm) -> None:
    service.stop()
    stands(run)
    script.seconds = 0.4
    service.start()


def hung_call(run: Run, script: Script, service: RunningService, proxy: Proxy, arm: TestArm) -> None:
    send = arm.send_action

    def hang(action: dict[str, float]) -> dict[str, float]:
        arm.send_action = send
        time.sleep(1)
        return send(action)

    arm.send_action = hang


def slow_policy(run: Run, script: Script, service: RunningService, proxy: Proxy, arm: TestArm) -> None:
    script.seconds = 1.2
    stands(run)


@pytest.mark.parametrize(
    ("trouble", "chunk_size", "aggregate"),
    [
        (stall, 30, "latest_only"),
        (reconnect, 30, "weighted_average"),
        (restart, 30, "latest_only"),
        (hung_call, 75, "latest_only"),
        (slow_policy, 30, "weighted_average"),
    ],
)
def test_the_first_command_after_standing_still_is_next_to_the_last(
    edge, arm, script, service, proxy, trouble: Callable[..., None], chunk_size: int, aggregate: str
) -> None:
    script.spec = replace(DEFAULT_SPEC, chunk_size=chunk_size)
    e = edge(server_address=f"127.0.0.1:{proxy.port}", duration=0, aggregate_fn_name=aggregate)

    def meanwhile(run: Run) -> None:
        moves(run)
        trouble(run, script, service, proxy, arm)
        moves(run)
        end()

    assert e.go(meanwhile).exit_code == exit_codes.DONE
    assert largest_step(arm) <= NORMAL_STEP, arm.commands


@pytest.mark.parametrize("replan", ["auto", "threshold", "continuous"])
def test_a_policy_slower_than_its_chunks_last_moves_the_arm_chunk_by_chunk(
    edge, arm, script, caplog, replan: str
) -> None:
    """Stock does so too: it plays a chunk, holds, plays the next."""
    script.spec, script.seconds = replace(DEFAULT_SPEC, chunk_size=9), 0.4
    e = edge(duration=4.0, replan=replan)
    states: list[LinkState] = []

    def watch(run: Run) -> None:
        until(lambda: run.trace.observation_counts[Observation.ANSWERED] > 0, "the first chunk")
        until(lambda: states.append(run.link_state()) or len(run.trace.ticks) > 100, "most of the run")

    with caplog.at_level(logging.WARNING, "longarm_edge"):
        result = e.go(watch)
    assert result.exit_code == exit_codes.DONE
    # 0.3 s of motion in 0.7 s
    assert executed(e.run) > 4 * 9
    assert largest_step(arm) <= NORMAL_STEP
    # Of each chunk all is executed: nothing is asked for that would be played out on arrival
    assert result.summary.drops[Drop.LATE] <= 3
    assert set(states) <= {LinkState.SLOW}, "no flapping"
    (said,) = [record.message for record in caplog.records if "stands" in record.message]
    assert "9 actions" in said
    assert "faster GPU" in said


def test_what_limits_the_chunks_is_named_where_answers_are_slow(edge, script, caplog) -> None:
    script.seconds = 0.4
    with caplog.at_level(logging.WARNING, "longarm_edge"):
        edge(duration=2.5, actions_per_chunk=10).go()
    assert any("actions_per_chunk=10" in record.message for record in caplog.records)


def test_short_chunks_that_come_in_time_are_no_stall(edge, script) -> None:
    """The queue is empty for a moment before each of them, and the arm moves at every tick."""
    script.spec, script.seconds = replace(DEFAULT_SPEC, chunk_size=1), 0.005
    e = edge(duration=3.0, fps=20)
    states: set[LinkState] = set()

    def watch(run: Run) -> None:
        until(lambda: run.trace.observation_counts[Observation.ANSWERED] > 5, "chunks come")
        before = idle(run)
        until(lambda: states.add(run.link_state()) or len(run.trace.ticks) > 50, "most of the run")
        if idle(run) > before:  # a machine that stalls made one late
            states.clear()

    assert e.go(watch).exit_code == exit_codes.DONE
    assert LinkState.STALLED not in states


def test_a_policy_that_is_slow_now_and_then_keeps_the_link_healthy(edge, arm, script) -> None:
    """One answer in six takes longer than a chunk lasts: the others are asked for as early as ever."""
    script.spec = replace(DEFAULT_SPEC, chunk_size=15)
    e = edge(duration=4.0)
    states: set[LinkState] = set()

    def vary(run: Run) -> None:
        until(lambda: run.trace.observation_counts[Observation.ANSWERED] > 2, "streaming")
        seen = 0
        while len(run.trace.ticks) < 100:
            states.add(run.link_state())
            if script.predictions >= seen + 6:
                seen, script.seconds = script.predictions, 0.8
            elif script.predictions > seen:
                script.seconds = 0.02
            time.sleep(0.005)

    result = e.go(vary)
    assert result.exit_code == exit_codes.DONE
    assert largest_step(arm) <= NORMAL_STEP
    assert result.summary.observations[Observation.ANSWERED] > 10
    assert result.summary.drops[Drop.EXPIRED] == 0
    assert states <= HEALTHY | {LinkState.STALLED}
    assert LinkState.SLOW in states


def test_slow_chunks_are_no_outage(edge, arm, script) -> None:
    """Each chunk takes longer than max_offline. They come."""
    script.spec, script.seconds = replace(DEFAULT_SPEC, chunk_size=15), 1.1
    e = edge(duration=4.0, safety=SafetySettings(max_offline=1.0))
    result = e.go()
    assert result.exit_code == exit_codes.DONE, result.reason
    assert executed(e.run) >= 30


def test_answers_older_than_max_action_age_end_the_run_with_the_setting(edge, arm, script) -> None:
    script.seconds = 0.5
    result = edge(duration=0, safety=SafetySettings(max_action_age=0.4, max_offline=2.0)).go()
    assert result.exit_code == exit_codes.FAILED
    assert "max_action_age=0.4 s" in result.reason
    assert "does not answer" not in result.reason
    assert arm.commands == []


def test_chunks_that_max_action_age_cuts_are_said_to_be(edge, arm, script, caplog) -> None:
    script.seconds = 0.4
    e = edge(duration=3.0, safety=SafetySettings(max_action_age=0.6))
    with caplog.at_level(logging.WARNING, "longarm_edge"):
        result = e.go()
    assert result.summary.drops[Drop.EXPIRED] > 0
    assert largest_step(arm) <= NORMAL_STEP
    assert any("safety.max_action_age=0.6 s" in record.message for record in caplog.records)


def test_a_policy_that_takes_longer_than_request_timeout_ends_the_run_with_the_setting(edge, arm, script) -> None:
    script.seconds = 0.6
    result = edge(duration=0, request_timeout=0.3, safety=SafetySettings(max_offline=3.0)).go()
    assert result.exit_code == exit_codes.FAILED
    assert "request_timeout=0.3 s" in result.reason
    assert "within reach" in result.reason
    assert arm.commands == []


def test_a_link_slower_than_its_chunks_is_healthy_on_healthz_and_stalls_when_the_service_is_gone(
    edge, script, service
) -> None:
    script.spec, script.seconds = replace(DEFAULT_SPEC, chunk_size=10), 0.5
    e = edge(duration=0)

    def watch(run: Run) -> None:
        until(lambda: run.trace.tick_counts[Tick.IDLE] > 20, "it stands between chunks")
        assert run._healthz() == (True, "slow")
        service.stop()
        until(lambda: run.link_state() in (LinkState.RECONNECTING, LinkState.STALLED), "the state says so")
        end()

    assert e.go(watch).exit_code == exit_codes.DONE


def test_a_robot_that_takes_longer_than_a_period_for_a_command_is_looked_at_between_them(edge, arm, script) -> None:
    """Else the arm plays chunks of 3 s that rest on what was seen at their beginning."""
    script.spec = replace(DEFAULT_SPEC, chunk_size=75)
    send = arm.send_action

    def slowly(action: dict[str, float]) -> dict[str, float]:
        time.sleep(0.05)
        return send(action)

    arm.send_action = slowly
    result = edge(duration=4.0).go()
    assert result.summary.observations[Observation.ANSWERED] > 10
    steps = np.diff([command[0] for _, command in arm.commands])
    assert (steps == 1).all(), "what is seen belongs to a step for sure"
