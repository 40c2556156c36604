"""The edge against a real service over real gRPC: what happens when all is well, and when something is not."""

import itertools
import os
import signal
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from longarm_edge.lerobot_robot import make_robot
from longarm_edge.link import LinkState
from longarm_edge.metrics import Observation, Reconnect, Tick
from longarm_edge.run import Run
from longarm_edge.schedule import MonotonicClock
from longarm_edge.settings import EdgeSettings, SafetySettings
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError
from longarm_wire.specs import PolicySpec
from tests.e2e.conftest import JOINTS, EdgeRun, until
from tests.servos import GOAL, Servos


def executed(run: Run) -> int:
    return run.trace.tick_counts[Tick.ACTION] + run.trace.tick_counts[Tick.CLAMPED]


def idle(run: Run) -> int:
    return sum(run.trace.tick_counts[outcome] for outcome in (Tick.IDLE, Tick.STALE))


def joins(arm, run: Run) -> bool:
    """Whether pan moves by the policy's one degree from each command to the next.

    A machine that stalls for a period makes the loop skip a tick: then there is nothing to see.
    """
    steps = np.diff([command[0] for _, command in arm.commands])
    return bool((steps == 1).all()) or run.trace.tick_counts[Tick.SKIPPED] > 0


def test_a_healthy_run(edge, arm) -> None:
    e = edge(duration=3.0)
    seen = {}

    def scrape(run: Run) -> None:
        until(lambda: executed(run) > 30, "thirty actions")
        with urllib.request.urlopen(f"http://127.0.0.1:{run.endpoint.port}/healthz") as answer:
            seen["health"] = answer.read().decode().strip()
        with urllib.request.urlopen(f"http://127.0.0.1:{run.endpoint.port}/metrics") as answer:
            seen["metrics"] = answer.read().decode()

    result = e.go(scrape)
    assert result.exit_code == exit_codes.DONE
    assert result.summary.ticks[Tick.ACTION] == len(arm.commands)
    assert len(arm.commands) + result.summary.ticks[Tick.SKIPPED] == 90
    assert result.summary.idle_after_first_second == 0
    assert result.summary.observations[Observation.ANSWERED] >= 3
    assert seen["health"] == "streaming"
    assert 'longarm_edge_link_state{state="streaming"} 1.0' in seen["metrics"]
    assert 'longarm_edge_actions_dropped_total{reason="foreign"} 0.0' in seen["metrics"]
    assert arm.torque, "the default stop rule holds"
    assert not arm.is_connected


def test_a_camera_unlike_the_training_data_is_logged_and_sent_whole(edge, script, caplog) -> None:
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.front": (480, 640)}, chunk_size=30)
    caplog.set_level("INFO")
    result = edge(duration=1.0).go()
    assert result.exit_code == exit_codes.DONE, result.reason
    assert "cameras front 64x48" in caplog.text
    (note,) = [record for record in caplog.records if "Camera 'front' gives 64x48" in record.getMessage()]
    assert note.levelname == "WARNING"


def test_the_first_action_continues_from_where_the_arm_stands(edge, arm, script) -> None:
    """A slow first answer must not make the arm jump: no step of the first chunk is skipped."""
    script.seconds = 0.5
    e = edge(duration=0.3)
    e.go()
    assert arm.commands[0][1] == (1.0, 0.0, 0.0)
    assert joins(arm, e.run)


def test_actions_are_aligned_with_their_ticks(edge, arm) -> None:
    """The policy moves one degree per tick from what it saw: aligned chunks join without a step back or a leap."""
    e = edge(duration=3.0)
    e.go()
    assert joins(arm, e.run), arm.commands


def test_a_request_in_flight_at_the_end_is_not_lost(edge, script) -> None:
    script.seconds = 0.5
    e = edge(duration=1.5, replan="continuous")
    result = e.go()
    assert result.summary.observations[Observation.LOST] == 0
    assert result.exit_code == exit_codes.DONE


@pytest.mark.parametrize("mode", ["threshold", "continuous"])
def test_other_rules_of_replanning(edge, mode: str) -> None:
    result = edge(replan=mode, duration=2.0).go()
    assert result.summary.idle_after_first_second == 0
    assert result.summary.observations[Observation.ANSWERED] >= 3


def test_an_arm_that_stands_still_is_filtered_and_never_idle(edge, script) -> None:
    """Stock filters after upload, and gives a still arm 4.9 actions a second on a slow link."""
    script.always = np.zeros((30, 3), np.float32)
    result = edge(replan="continuous", duration=3.0).go()
    assert result.summary.observations[Observation.FILTERED] > 10
    assert result.summary.idle_after_first_second == 0
    assert script.predictions < 12


def test_a_policy_that_raises_once_costs_one_observation(edge, script) -> None:
    """B1: one failed inference stalls the stock robot for good."""
    script.faults[3] = RuntimeError("out of memory")
    result = edge(duration=3.0).go()
    assert result.exit_code == exit_codes.DONE
    assert result.summary.observations[Observation.FAILED] == 1
    assert result.summary.observations[Observation.ANSWERED] >= 3
    assert result.summary.idle_after_first_second == 0


def test_a_policy_that_always_raises_ends_the_run_with_its_words(edge, script, arm) -> None:
    script.faults = {n: RuntimeError("out of memory") for n in range(3, 1000)}
    e = edge(duration=0, safety=SafetySettings(max_offline=2.0))
    states = set()

    def watch(run: Run) -> None:
        until(lambda: states.add(run.link_state()) or LinkState.FAILED in states, "failed")

    result = e.go(watch)
    assert result.exit_code == exit_codes.FAILED
    assert "POLICY_FAILED" in result.reason
    assert states >= {LinkState.STREAMING, LinkState.STALLED, LinkState.FAILED}
    assert not arm.is_connected
    assert arm.torque


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_actions_never_reach_the_robot(edge, script, arm, bad: float) -> None:
    """B19: NaN becomes an end-of-range command in some motor modes, or ends the stock run with torque off."""
    chunk = np.zeros((30, 3), np.float32)
    chunk[12, 1] = bad
    script.faults[3] = chunk
    result = edge(duration=3.0).go()
    assert result.summary.observations[Observation.REJECTED] == 1
    assert np.isfinite([command for _, command in arm.commands]).all()
    assert result.exit_code == exit_codes.DONE
    assert result.summary.idle_after_first_second == 0


def test_a_service_that_restarts_is_found_again(edge, service, arm) -> None:
    """B5: the stock client never initialises a restarted server and freezes for good."""
    e = edge(duration=0)

    def restart(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        service.stop()
        until(lambda: idle(run) > 5, "the queue ran empty")
        assert run.link_state() in (LinkState.RECONNECTING, LinkState.STALLED)
        held = len(arm.commands)
        service.start()
        until(lambda: len(arm.commands) > held + 40, "streaming again")
        assert run.link_state() in (LinkState.STREAMING, LinkState.DEGRADED)
        os.kill(os.getpid(), signal.SIGINT)

    result = e.go(restart)
    assert result.exit_code == exit_codes.DONE
    assert result.reason == "stopped by SIGINT"
    assert e.run.trace.reconnect_counts[Reconnect.SESSION_UNKNOWN] == 1
    assert e.run.queue.epoch >= 2


def test_a_short_outage_is_invisible_to_the_robot(edge, service, script) -> None:
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.front": (48, 64)}, chunk_size=75)
    service.stop()
    service.start()
    e = edge(duration=4.0, replan="threshold", chunk_size_threshold=0.9)

    def blip(run: Run) -> None:
        until(lambda: executed(run) > 10, "streaming")
        service.stop()
        service.start()

    result = e.go(blip)
    assert result.summary.reconnects >= 1
    assert result.summary.idle_after_first_second == 0


def test_a_service_that_comes_back_with_another_policy_ends_the_run(edge, service, script) -> None:
    e = edge(duration=0)

    def swap(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        service.stop()
        script.digest = "2" * 64
        service.start()

    result = e.go(swap)
    assert result.exit_code == exit_codes.FAILED
    assert "another policy" in result.reason


def test_a_service_that_dies_is_waited_for_then_the_run_fails(edge, service, arm) -> None:
    e = edge(duration=0, safety=SafetySettings(max_offline=2.0, on_stop="rest", rest_seconds=2.0))
    states = []

    def kill(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        service.stop()
        until(lambda: states.append(run.link_state()) or states[-1] is LinkState.FAILED, "failed")

    result = e.go(kill)
    assert result.exit_code == exit_codes.FAILED
    assert "max_offline=2 s" in result.reason
    assert LinkState.RECONNECTING in states
    assert arm.pose["pan.pos"] == pytest.approx(0), "moved back to the start pose by rule"


def test_a_service_that_is_not_there_fails_with_the_address(edge, service, arm) -> None:
    """Stock ends with exit code 0 when no server answers."""
    service.stop()
    result = edge(connect_timeout=1.0).go()
    assert result.exit_code == exit_codes.FAILED
    assert service.address in result.reason
    assert arm.commands == []


def test_a_service_that_comes_late_is_waited_for(edge, service) -> None:
    service.stop()
    e = edge(duration=0.5, connect_timeout=15.0)

    def later(_: Run) -> None:
        time.sleep(1)
        service.start()

    assert e.go(later).exit_code == exit_codes.DONE


def test_an_answer_that_does_not_come_is_given_up(edge, script) -> None:
    """B4: the stock client has no deadlines."""
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.front": (48, 64)}, chunk_size=75)
    e = edge(duration=4.0, request_timeout=0.5)

    def hang(run: Run) -> None:
        until(lambda: executed(run) > 10, "streaming")
        script.seconds = 1.5
        until(lambda: run.trace.observation_counts[Observation.LOST] > 0, "a deadline passed")
        script.seconds = 0.02

    result = e.go(hang)
    assert result.summary.observations[Observation.LOST] >= 1
    assert result.exit_code == exit_codes.DONE


def test_a_robot_that_stutters_is_asked_again(edge, arm) -> None:
    e = edge(duration=3.0)
    arm.read_faults = []

    def stutter(run: Run) -> None:
        until(lambda: executed(run) > 10, "streaming")
        arm.read_faults = [ConnectionError("Incorrect status packet!")]

    result = e.go(stutter)
    assert result.summary.observations[Observation.UNREADABLE] == 1
    assert result.summary.idle_after_first_second == 0


@pytest.mark.parametrize(
    "shape",
    [(0, 0, 3), (48, 64), (48, 64, 4), (48, 96, 3)],
    ids=["empty", "gray", "four channels", "another size"],
)
def test_a_broken_frame_costs_one_observation(edge, arm, shape: tuple[int, ...]) -> None:
    e = edge(duration=3.0)
    observe = arm.get_observation

    def break_one(run: Run) -> None:
        until(lambda: executed(run) > 10, "streaming")

        def broken() -> dict[str, Any]:
            arm.get_observation = observe
            return {**observe(), "front": np.zeros(shape, np.uint8)}

        arm.get_observation = broken

    result = e.go(break_one)
    assert result.exit_code == exit_codes.DONE, result.reason
    assert result.summary.observations[Observation.UNREADABLE] == 1
    assert result.summary.idle_after_first_second == 0


@pytest.mark.parametrize("error", [ConnectionError, RuntimeError])
def test_a_robot_that_takes_no_command_is_left_by_rule(edge, arm, error: type[Exception]) -> None:
    """B24: an exception from send_action ends the stock loop with torque off."""
    e = edge(duration=0)

    def fail(run: Run) -> None:
        until(lambda: executed(run) > 10, "streaming")
        arm.write_faults = [error("the USB cable is out")]

    result = e.go(fail)
    assert result.exit_code == exit_codes.FAILED
    assert "the USB cable is out" in result.reason
    assert not arm.is_connected
    assert arm.torque


STEPS_A_DEGREE = 4096 / 360


def servos_run(service, servos: Servos, tmp_path, robot: dict[str, object], **settings: object) -> EdgeRun:
    """Returns a run of LeRobot's own so101_follower, whose policy moves the first joint."""
    service.script.spec = PolicySpec("scripted", 6, 6, {}, chunk_size=30)
    values = {"pretrained_name_or_path": "scripted", "server_address": service.address, "metrics_port": 0, "fps": 10}
    robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path), **robot}, [], 10)
    run = EdgeSettings(_env_file=None, **values, **settings)
    return EdgeRun(Run(run, robot, Console(quiet=True), MonotonicClock()))


@pytest.mark.parametrize("robot", [{}, {"max_relative_target": 10.0}], ids=["", "max_relative_target"])
def test_a_bus_that_is_silent_for_a_while_ends_no_run(service, tmp_path, robot: dict[str, object]) -> None:
    """With max_relative_target LeRobot reads before each command: the first one that was lost ended the run."""
    with Servos(torque=True) as servos:
        e = servos_run(service, servos, tmp_path, robot, duration=0)

        def silence(run: Run) -> None:
            until(lambda: executed(run) > 5, "streaming")
            servos.silent = True
            until(lambda: run.trace.observation_counts[Observation.UNREADABLE] > 2, "noticed", 30)
            servos.silent = False
            there = executed(run)
            until(lambda: executed(run) > there + 5, "streaming again")
            os.kill(os.getpid(), signal.SIGINT)

        result = e.go(silence)
        assert (result.exit_code, result.reason) == (exit_codes.DONE, "stopped by SIGINT")
        assert servos.torque == {True}
        goals = [
            int.from_bytes(values, "little")
            for servo, address, values in servos.writes
            if (servo, address) == (1, GOAL)
        ]
        assert max(abs(after - before) for before, after in itertools.pairwise(goals)) < 2.5 * STEPS_A_DEGREE, goals


def test_a_bus_that_stays_silent_ends_a_run_that_reads_before_each_command(service, tmp_path) -> None:
    with Servos(torque=True) as servos:
        safety = SafetySettings(max_offline=2.0)
        e = servos_run(service, servos, tmp_path, {"max_relative_target": 10.0}, duration=0, safety=safety)

        def silence(run: Run) -> None:
            until(lambda: executed(run) > 5, "streaming")
            servos.silent = True

        result = e.go(silence)
        assert result.exit_code == exit_codes.FAILED
        assert "There is no status packet" in result.reason
        assert servos.torque == {True}


@pytest.mark.parametrize(("rule", "torque"), [("hold", True), ("rest", False), ("release", False)])
def test_a_signal_stops_the_arm_by_rule(edge, arm, rule: str, torque: bool) -> None:
    e = edge(duration=0, safety=SafetySettings(on_stop=rule, rest_seconds=2.0))

    def interrupt(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        os.kill(os.getpid(), signal.SIGTERM)

    result = e.go(interrupt)
    assert result.exit_code == exit_codes.DONE
    assert result.reason == "stopped by SIGTERM"
    assert arm.torque is torque
    if rule == "rest":
        assert arm.pose["pan.pos"] == pytest.approx(0)


def test_a_second_signal_stops_at_once(edge, arm) -> None:
    e = edge(duration=0, safety=SafetySettings(on_stop="rest", rest_seconds=30))

    def interrupt(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        os.kill(os.getpid(), signal.SIGINT)
        last = run.trace.tick_counts[Tick.ACTION]
        until(lambda: len(arm.commands) > last + 5, "on the way back")
        os.kill(os.getpid(), signal.SIGINT)

    started = time.monotonic()
    e.go(interrupt)
    assert time.monotonic() - started < 20
    assert arm.torque, "it stopped on the way: it holds"


# The handler's exception is lost where it hits a finalizer; the run must stop all the same, and does
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("after", [0.0, 0.02, 0.1, 0.3, 0.6, 1.0])
def test_ctrl_c_at_any_moment_leaves_the_arm_defined(edge, arm, script, after: float) -> None:
    script.seconds = 0.2
    e = edge(duration=0)

    def interrupt(_: Run) -> None:
        time.sleep(0.05 + after)
        os.kill(os.getpid(), signal.SIGINT)

    result = e.go(interrupt)
    assert result.exit_code in (exit_codes.DONE, exit_codes.INTERRUPTED)
    assert not arm.is_connected
    assert arm.torque


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PolicySpec("scripted", 3, 3, {"observation.images.top": (48, 64)}, 30), "observation.images.top"),
        (PolicySpec("scripted", 7, 3, {}, 30), "gives 7 action values and the robot takes 3"),
        (PolicySpec("scripted", 3, 9, {}, 30), "wants 9 state values"),
        (PolicySpec("scripted", 3, 3, {}, 30, action_names=(JOINTS[1], JOINTS[0], JOINTS[2])), "another order"),
    ],
)
def test_a_robot_that_does_not_fit_is_refused_before_it_moves(edge, script, arm, spec, message: str) -> None:
    script.spec = spec
    with pytest.raises(ConfigurationError, match=message):
        edge().go()
    assert arm.commands == []
    assert not arm.is_connected


def test_the_rename_that_a_refusal_names_mends_it(edge, script) -> None:
    """B16: rename_map cannot work in stock async inference."""
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.top": (48, 64)}, 30)
    with pytest.raises(
        ConfigurationError, match=r'rename_map=\{"observation.images.front": "observation.images.top"\}'
    ):
        edge().go()
    renames = {"observation.images.front": "observation.images.top"}
    assert edge(rename_map=renames, duration=0.5).go().exit_code == exit_codes.DONE


def test_frames_travel_in_the_size_that_the_policy_wants(edge, script) -> None:
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.front": (24, 32)}, 30)
    assert edge(duration=0.5).go().exit_code == exit_codes.DONE


def test_an_unknown_policy_is_refused(edge) -> None:
    with pytest.raises(ConfigurationError, match="POLICY_NOT_FOUND"):
        edge(pretrained_name_or_path="nobody/nothing").go()


def test_a_port_that_is_taken_is_refused(edge) -> None:
    first = edge(duration=0.2)
    with pytest.raises(ConfigurationError, match="METRICS_PORT"):
        edge(metrics_port=first.run.endpoint.port)
    first.run.endpoint.close()


def test_healthz_says_when_the_robot_stands(edge, service) -> None:
    e = edge(duration=0)
    codes = []

    def watch(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        service.stop()
        until(lambda: idle(run) > 3, "idle")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{run.endpoint.port}/healthz")
        except urllib.error.HTTPError as error:
            with error:
                codes.append((error.code, error.read().decode().strip()))
        os.kill(os.getpid(), signal.SIGINT)

    e.go(watch)
    assert codes[0][0] == 503
    assert codes[0][1] in ("reconnecting", "stalled")
