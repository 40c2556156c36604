"""What a run does about an arm that fails or hangs while it is connected, driven and left."""

import itertools
import json
import os
import signal
import threading
import time
from unittest.mock import Mock

import pytest

from longarm_edge import pose_file
from longarm_edge.arm import Arm
from longarm_edge.leave import leave
from longarm_edge.motion import Motion
from longarm_edge.policy_client import PolicyClient
from longarm_edge.run import Run
from longarm_edge.schedule import MonotonicClock
from longarm_edge.settings import SafetySettings
from longarm_edge.stop import Signals
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError
from tests.e2e.conftest import EdgeRun, until


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def test_a_way_back_that_fails_holds_and_says_so(edge, arm) -> None:
    """LeRobot's default took the torque off, in the air, and the run ended with 0."""
    e = edge(duration=0, safety=SafetySettings(on_stop="rest", rest_seconds=2))

    def fail(run: Run) -> None:
        until(lambda: len(arm.commands) > 20, "streaming")
        interrupt()
        there = len(arm.commands)
        until(lambda: len(arm.commands) > there + 5, "on the way back")
        arm.write_faults = [ConnectionError("Incorrect status packet!")] * 3

    result = e.go(fail)
    assert result.exit_code == exit_codes.FAILED
    assert result.reason.startswith("stopped by SIGINT. The arm was not left as wanted (on_stop=rest)")
    assert "Incorrect status packet!" in result.reason
    assert arm.torque


def test_a_way_back_that_is_cut_short_holds_says_so_and_is_remembered(edge, arm, tmp_path) -> None:
    """The run ended with 0 and without a word, and nobody knew any more where the arm had begun."""
    path = tmp_path / "pose.json"
    e = edge(duration=0, safety=SafetySettings(on_stop="rest", rest_seconds=5, pose_file=path))

    def twice(run: Run) -> None:
        until(lambda: len(arm.commands) > 20, "streaming")
        interrupt()
        there = len(arm.commands)
        until(lambda: len(arm.commands) > there + 5, "on the way back")
        interrupt()

    result = e.go(twice)
    assert result.exit_code == exit_codes.FAILED
    assert "it was stopped on the way to the start pose and holds" in result.reason
    assert arm.torque
    assert json.loads(path.read_text())["pan.pos"] == 0


def test_a_run_that_is_alive_is_not_taken_for_one_that_was_killed(edge, arm, tmp_path, caplog) -> None:
    """`leave` drove a living run's arm, or deleted its pose; a second run said that the first had been killed."""
    path = tmp_path / "pose.json"
    e = edge(duration=0, safety=SafetySettings(on_stop="hold", pose_file=path))
    refusals: list[int] = []

    def meddle(run: Run) -> None:
        until(lambda: len(arm.commands) > 20, "streaming")
        refusals.append(leave(e.run.settings, lambda: pytest.fail("it makes no robot"), MonotonicClock()))
        assert path.exists()
        interrupt()

    assert e.go(meddle).exit_code == exit_codes.DONE
    assert refusals == [exit_codes.FAILED]
    assert "A run that is alive has the arm" in caplog.text
    assert not path.exists()


def test_however_often_ctrl_c_is_pressed_there_is_a_last_word(edge, monkeypatch) -> None:
    """The third one, while what had been set up was taken apart, ended in a traceback."""
    close, closing = PolicyClient.close, threading.Event()
    monkeypatch.setattr(PolicyClient, "close", lambda self: (closing.set(), time.sleep(1), close(self)))
    e = edge(duration=0, server_address="127.0.0.1:9", connect_timeout=30)

    def press(_: Run) -> None:
        time.sleep(0.5)
        interrupt()
        assert closing.wait(10)
        for _ in range(2):
            time.sleep(0.1)
            interrupt()

    result = e.go(press)
    assert (result.exit_code, result.reason) == (exit_codes.INTERRUPTED, "interrupted by SIGINT")


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_is_closed_ends_the_run_by_rule(edge, arm, first: signal.Signals) -> None:
    """It killed the run: wheels drove on. The shell and the kernel say it both, a logout says SIGTERM before, and that
    is no wish to hurry."""
    e = edge(duration=0, safety=SafetySettings(on_stop="rest", rest_seconds=2))

    def close(_: Run) -> None:
        until(lambda: len(arm.commands) > 20, "streaming")
        for number in (first, signal.SIGHUP):
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    result = e.go(close)
    assert (result.exit_code, result.reason) == (exit_codes.DONE, f"stopped by {first.name}")
    assert arm.pose["pan.pos"] == pytest.approx(0)


def test_a_run_under_nohup_goes_on_without_its_terminal(edge, arm) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = edge(duration=1.0).go(lambda _: until(lambda: bool(arm.commands), "moving") or hang_up())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.exit_code, result.reason) == (exit_codes.DONE, "the duration is over")


def test_the_way_back_keeps_to_max_step(edge, arm) -> None:
    e = edge(duration=1.5, safety=SafetySettings(on_stop="rest", rest_seconds=2, max_step=1.0))
    assert e.go().exit_code == exit_codes.DONE
    pans = [command[0] for _, command in arm.commands]
    assert max(abs(after - before) for before, after in itertools.pairwise(pans)) <= 1.0
    assert pans[-1] == pytest.approx(0)


def test_after_a_killed_run_the_way_back_leads_to_where_that_one_began(edge, arm, tmp_path, caplog) -> None:
    """Its arm is anywhere: the pose in which it is found is no pose to rest in."""
    path = tmp_path / "pose.json"
    path.write_text(json.dumps({"pan.pos": -5.0, "lift.pos": 0.0, "gripper.pos": 0.0}))
    e = edge(duration=1.0, safety=SafetySettings(on_stop="rest", rest_seconds=2, pose_file=path))
    kept: list[dict[str, float]] = []
    e.go(lambda _: until(lambda: bool(arm.commands), "moving") or kept.append(json.loads(path.read_text())))
    assert kept[0]["pan.pos"] == -5
    assert arm.pose["pan.pos"] == pytest.approx(-5)
    assert "the last run has not left its arm by rule (it was killed, or could not)" in caplog.text
    assert not path.exists()


KILLED_AT = {"pan.pos": -5.0, "lift.pos": 0.0, "gripper.pos": 0.0}


@pytest.mark.parametrize("rule", ["hold", "rest", "release"])
def test_a_run_that_cannot_connect_forgets_no_killed_one(edge, arm, tmp_path, monkeypatch, rule: str) -> None:
    """Nobody has left that arm yet: `longarm-edge leave` said that there was nothing to do."""
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT))
    monkeypatch.setattr(arm, "connect", Mock(side_effect=ConnectionError("unplugged")))
    result = edge(safety=SafetySettings(on_stop=rule, pose_file=path)).go()
    assert "unplugged" in result.reason
    assert json.loads(path.read_text()) == KILLED_AT
    assert ("not left as wanted" in result.reason) is (rule == "rest")


def test_after_a_killed_run_one_that_never_moved_goes_back_too(edge, arm, tmp_path, script) -> None:
    """It took the torque off right where the killed one had left the arm, in the air."""
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT))
    script.always = RuntimeError("out of memory")
    result = edge(safety=SafetySettings(on_stop="rest", rest_seconds=2, pose_file=path)).go()
    assert result.reason.startswith("The first prediction failed")
    pans = [command[0] for _, command in arm.commands]
    assert pans[0] == 0
    assert pans[-1] == arm.pose["pan.pos"] == pytest.approx(-5)
    assert max(abs(after - before) for before, after in itertools.pairwise(pans)) < 0.5, "slowly"
    assert not arm.torque
    assert not path.exists()


def test_after_a_killed_run_an_arm_that_cannot_be_read_is_not_dropped(edge, arm, tmp_path) -> None:
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT))
    arm.read_faults = [ConnectionError("Incorrect status packet!")] * 3
    result = edge(safety=SafetySettings(on_stop="rest", pose_file=path)).go()
    assert "Incorrect status packet!" in result.reason
    assert "where it stands was never seen" in result.reason
    assert arm.torque
    assert json.loads(path.read_text()) == KILLED_AT


def test_after_a_killed_run_one_that_never_moved_goes_nowhere_far(edge, arm, tmp_path, script) -> None:
    """The warning says to stop where the start pose is wrong. Whoever did so saw the arm go there."""
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT | {"pan.pos": -50.0}))
    script.always = RuntimeError("out of memory")
    result = edge(safety=SafetySettings(on_stop="rest", rest_seconds=2, pose_file=path)).go()
    assert "it was not moved, and holds" in result.reason
    assert arm.commands == []
    assert arm.torque
    assert json.loads(path.read_text())["pan.pos"] == -50


def not_run(e: EdgeRun) -> Run:
    """Returns what is put together, for its parts."""
    with e.run.endpoint:
        return e.run


DRIVES = SafetySettings(velocity_actions=("gripper.pos",))


def test_what_a_killed_run_left_driving_is_stopped_when_the_next_one_connects(edge, arm, script) -> None:
    """It drove on until the first command, as long as that took."""
    arm.pose = {"pan.pos": 7.0, "lift.pos": 8.0, "gripper.pos": 0.5}
    script.seconds = 0.5
    edge(duration=0.5, safety=DRIVES).go()
    assert arm.commands[0][1] == (7, 8, 0)
    assert arm.commands[1][0] - arm.commands[0][0] > 0.4


def test_leave_asks_again_where_a_bus_stutters(edge, arm, tmp_path) -> None:
    """One failed read, and the wheels drove on without a word."""
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT))
    arm.pose = {"pan.pos": 7.0, "lift.pos": 8.0, "gripper.pos": 0.5}
    arm.read_faults = [ConnectionError("Incorrect status packet!")]
    run = not_run(edge(safety=DRIVES.model_copy(update={"pose_file": path})))
    assert leave(run.settings, lambda: run.robot, MonotonicClock()) == exit_codes.DONE
    assert arm.commands[-1][1] == (7, 8, 0)


def test_leave_connects_again_where_an_answer_is_lost(edge, arm, tmp_path, monkeypatch) -> None:
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT))
    arm.pose = {"pan.pos": 7.0, "lift.pos": 8.0, "gripper.pos": 0.5}
    connect, lost = arm.connect, [ConnectionError("Missing motor IDs: 1")] * 2
    monkeypatch.setattr(
        arm, "connect", Mock(side_effect=lambda **k: (_ for _ in ()).throw(lost.pop()) if lost else connect(**k))
    )
    run = not_run(edge(safety=DRIVES.model_copy(update={"pose_file": path})))
    assert leave(run.settings, lambda: run.robot, MonotonicClock()) == exit_codes.DONE
    assert arm.commands[-1][1] == (7, 8, 0)


def test_two_runs_with_one_pose_file_do_not_both_connect(edge, arm, tmp_path, monkeypatch) -> None:
    """Both looked before either had written it, and drove a robot without a serial port between them."""
    settings = SafetySettings(pose_file=tmp_path / "pose.json")
    second = not_run(edge(safety=settings))
    refusals: list[str] = []
    connect = arm.connect

    def meanwhile(**options: object) -> None:
        if not refusals:
            refusals.append("")
            arm_of_the_second = Arm(second.robot, Motion.plan(second.robot, settings), 30, MonotonicClock(), Signals())
            with pytest.raises(ConnectionError, match="A run that is alive has the arm"):
                arm_of_the_second.connect()
        connect(**options)

    monkeypatch.setattr(arm, "connect", meanwhile)
    assert edge(duration=0.5, safety=settings).go().exit_code == exit_codes.DONE
    assert refusals


def test_a_pose_that_cannot_be_kept_takes_no_word_about_the_arm_along(edge, arm, tmp_path, monkeypatch) -> None:
    """The torque stayed on under `release`, and only tracebacks told."""
    monkeypatch.setattr(arm, "disconnect", Mock(side_effect=ConnectionError("Incorrect status packet!")))
    monkeypatch.setattr(pose_file, "keep", Mock(side_effect=ConfigurationError(["No space left on device"])))
    settings = SafetySettings(on_stop="release", pose_file=tmp_path / "pose.json")
    with pytest.raises(ConfigurationError, match="No space left") as caught:
        edge(duration=0.5, safety=settings).go()
    assert "The arm was not left as wanted (on_stop=release)" in str(caught.value)


def test_a_run_whose_arm_another_one_has_may_be_tried_again(edge, arm, tmp_path) -> None:
    """It was 3, after which no service manager tries again; a serial port that was held gave 1."""
    settings = SafetySettings(pose_file=tmp_path / "pose.json")
    held = pose_file.lock(settings.pose_file)
    result = edge(duration=0.5, safety=settings).go()
    os.close(held)
    assert result.exit_code == exit_codes.FAILED
    assert "A run that is alive has the arm" in result.reason
    assert not arm.is_connected


@pytest.mark.parametrize(
    ("rule", "limits", "told"), [("rest", (-10, 10), True), ("rest", (-10, 19.5), False), ("hold", (-10, 10), False)]
)
def test_a_start_pose_that_the_way_back_cannot_reach_is_told_at_the_start(
    edge, arm, caplog, rule: str, limits: tuple[float, float], told: bool
) -> None:
    """It was told at the end, by an arm that held in the air."""
    arm.pose["pan.pos"] = 20.0
    safety = SafetySettings(on_stop=rule, rest_seconds=2, joint_limits={"pan.pos": limits})
    seen: list[bool] = []
    result = edge(duration=0.5, safety=safety).go(
        lambda run: (
            until(lambda: bool(arm.commands), "moving") or seen.append("cannot lead the arm back" in caplog.text)
        )
    )
    assert seen == [told]
    assert ("pan.pos at 20, outside -10 to 10 (safety.joint_limits)" in caplog.text) is told
    assert (result.exit_code == exit_codes.FAILED) is told
    assert arm.torque is (rule == "hold" or told)


def glance(arm, monkeypatch, *wrong: float) -> None:
    """Has the first looks at the arm tell something else."""
    observe, looks = arm.get_observation, list(wrong)
    monkeypatch.setattr(arm, "get_observation", lambda: observe() | ({"pan.pos": looks.pop(0)} if looks else {}))


def test_leave_believes_no_single_look(edge, arm, tmp_path, monkeypatch) -> None:
    """The arm was thrown to where one look had it, or where it was while it still moved."""
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT))
    arm.pose = {"pan.pos": 20.0, "lift.pos": 0.0, "gripper.pos": 0.0}
    glance(arm, monkeypatch, 80.0)
    safety = SafetySettings(on_stop="rest", rest_seconds=2, pose_file=path)
    run = not_run(edge(safety=safety))
    assert leave(run.settings, lambda: run.robot, MonotonicClock()) == exit_codes.DONE
    assert arm.commands[0][1][0] == pytest.approx(20, abs=1)


def test_a_run_begins_where_the_arm_stands_once_it_does(edge, arm, monkeypatch) -> None:
    """The first command was measured from the first look, and `rest` led there."""
    arm.pose = {"pan.pos": 20.0, "lift.pos": 0.0, "gripper.pos": 0.0}
    glance(arm, monkeypatch, 80.0, 75.0)
    assert edge(duration=0.5, safety=SafetySettings(on_stop="rest", rest_seconds=2, max_step=2)).go().exit_code == 0
    assert arm.commands[0][1][0] == pytest.approx(21, abs=1)
    assert arm.pose["pan.pos"] == pytest.approx(20, abs=0.1)


def test_what_drives_is_stopped_at_the_start_though_a_write_is_lost(edge, arm) -> None:
    arm.pose = {"pan.pos": 7.0, "lift.pos": 8.0, "gripper.pos": 0.5}
    arm.write_faults = [ConnectionError("Incorrect status packet!")]
    edge(duration=0.5, safety=DRIVES).go()
    assert arm.commands[0][1] == (7, 8, 0)


def test_what_drives_is_stopped_or_said_to_drive_by_a_run_that_never_moved_it(edge, arm, script) -> None:
    arm.pose = {"pan.pos": 7.0, "lift.pos": 8.0, "gripper.pos": 0.5}
    arm.write_faults = [ConnectionError("Incorrect status packet!")] * 9
    result = edge(duration=0.5, safety=DRIVES).go()
    assert result.exit_code == exit_codes.FAILED
    assert "it was not told to stop driving" in result.reason


def test_leave_leaves_an_arm_where_nothing_can_be_written(edge, arm, tmp_path, monkeypatch) -> None:
    """A card that was remounted read-only: the wheels drove on."""
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT))
    (tmp_path / "pose.json.lock").mkdir()  # what root cannot write either
    arm.pose = {"pan.pos": 7.0, "lift.pos": 8.0, "gripper.pos": 0.5}
    run = not_run(edge(safety=DRIVES.model_copy(update={"pose_file": path})))
    assert leave(run.settings, lambda: run.robot, MonotonicClock()) == exit_codes.DONE
    assert arm.commands[-1][1] == (7, 8, 0)


def test_leave_says_what_it_could_not_stop(edge, arm, tmp_path, caplog) -> None:
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(KILLED_AT))
    arm.read_faults = [ConnectionError("Incorrect status packet!")] * 9
    run = not_run(edge(safety=DRIVES.model_copy(update={"pose_file": path})))
    assert leave(run.settings, lambda: run.robot, MonotonicClock()) == exit_codes.FAILED
    assert "it was not told to stop driving" in caplog.text
    assert path.exists()


@pytest.mark.parametrize("method", ["get_observation", "send_action"])
def test_a_driver_that_exits_does_not_end_the_program(edge, arm, monkeypatch, method: str) -> None:
    """SystemExit passed every handler: no summary, no words, and exit code 0."""
    e = edge(duration=0, safety=SafetySettings(max_offline=2.0))

    def exits(*_: object) -> None:
        raise SystemExit(0)

    def meanwhile(_: Run) -> None:
        until(lambda: len(arm.commands) > 10, "streaming")
        monkeypatch.setattr(arm, method, exits)

    result = e.go(meanwhile)
    assert result.exit_code == exit_codes.FAILED
    assert "SystemExit" in result.reason
    assert arm.torque
    assert not arm.is_connected


@pytest.mark.parametrize("content", ["", "{}", '{"elbow": 1}'])
def test_a_pose_of_a_killed_run_that_makes_no_sense_is_told_and_passed_over(
    edge, arm, tmp_path, caplog, content: str
) -> None:
    path = tmp_path / "pose.json"
    path.write_text(content)
    assert edge(duration=0.5, safety=SafetySettings(pose_file=path)).go().exit_code == exit_codes.DONE
    assert "cannot be read" in caplog.text


class Hang:
    """A call that does not return until told."""

    def __init__(self, call) -> None:
        self.call, self.entered, self.go_on = call, threading.Event(), threading.Event()

    def __call__(self, *args: object) -> object:
        self.entered.set()
        self.go_on.wait(30)
        return self.call(*args)


@pytest.fixture
def hang(arm, monkeypatch):
    """Returns a function that makes a method of the arm hang from now on."""
    monkeypatch.setattr("longarm_edge.stop.CALL_SECONDS", 0.2)
    for patience in ("arm.HANG_SECONDS", "run.CALL_SECONDS", "planner.HANG_SECONDS"):
        monkeypatch.setattr(f"longarm_edge.{patience}", 0.5)
    hanging: list[Hang] = []

    def make(name: str) -> Hang:
        hanging.append(Hang(getattr(arm, name)))
        monkeypatch.setattr(arm, name, hanging[-1])
        return hanging[-1]

    yield make
    for one in hanging:
        one.go_on.set()


@pytest.mark.parametrize("method", ["connect", "get_observation"])
def test_ctrl_c_ends_a_run_whose_robot_hangs_at_the_start(edge, arm, hang, method: str) -> None:
    hanging = hang(method)
    e = edge(duration=0)

    def meanwhile(_: Run) -> None:
        assert hanging.entered.wait(10)
        interrupt()

    started = time.monotonic()
    result = e.go(meanwhile)
    assert time.monotonic() - started < 15
    assert result.exit_code in (exit_codes.INTERRUPTED, exit_codes.FAILED)
    assert result.reason.startswith("interrupted by SIGINT")
    assert arm.commands == []


@pytest.mark.parametrize("method", ["connect", "get_observation"])
def test_a_robot_that_hangs_at_the_start_ends_the_run(edge, arm, hang, monkeypatch, method: str) -> None:
    """It waited for good, without a word."""
    monkeypatch.setattr("longarm_edge.arm.CONNECT_SECONDS", 0.5)
    hang(method)
    result = edge(duration=0).go()
    assert result.exit_code == exit_codes.FAILED
    assert "The robot has not connected, or given its first observation, for 0.5 s" in result.reason
    assert arm.commands == []


@pytest.mark.parametrize("method", ["get_observation", "send_action"])
@pytest.mark.parametrize("thread_safe", [False, True])
def test_one_ctrl_c_ends_a_run_whose_robot_hangs(edge, arm, hang, monkeypatch, method: str, thread_safe: bool) -> None:
    """It took six, or never ended: whoever waited for the hung call could not be waited for."""
    monkeypatch.setattr(type(arm), "is_thread_safe", thread_safe, raising=False)
    e = edge(duration=0)

    def meanwhile(run: Run) -> None:
        until(lambda: len(arm.commands) > 10, "streaming")
        assert hang(method).entered.wait(10)
        until(lambda: run._healthz() == (False, "stalled"), "noticed")
        interrupt()

    started = time.monotonic()
    result = e.go(meanwhile)
    assert time.monotonic() - started < 15
    assert arm.torque, "hold was applied, past the call that hangs"
    assert not arm.is_connected
    stuck = method == "send_action" or not thread_safe
    assert result.exit_code == (exit_codes.FAILED if stuck else exit_codes.DONE)
    assert ("a call to the robot did not return" in result.reason) is stuck


def test_a_command_that_hung_does_not_reach_the_motors_after_the_end(edge, arm, hang) -> None:
    e = edge(duration=0)
    hung: list[Hang] = []

    def meanwhile(run: Run) -> None:
        until(lambda: len(arm.commands) > 10, "streaming")
        hung.append(hang("get_observation"))
        assert hung[0].entered.wait(10)
        until(lambda: run._healthz() == (False, "stalled"), "noticed")
        interrupt()

    e.go(meanwhile)
    before = len(arm.commands)
    hung[0].go_on.set()
    time.sleep(0.3)
    assert len(arm.commands) == before


def test_a_robot_that_hangs_for_good_ends_the_run_as_what_it_is(edge, arm, hang) -> None:
    """Nobody is there to press Ctrl-C: a supervisor has to see it, and the service is not to blame."""
    e = edge(duration=0, safety=SafetySettings(max_offline=1.0))

    def meanwhile(_: Run) -> None:
        until(lambda: len(arm.commands) > 10, "streaming")
        hang("send_action")

    result = e.go(meanwhile)
    assert result.exit_code == exit_codes.FAILED
    assert "A call to the robot has not returned for max_offline=1 s" in result.reason
