"""The table of docs/safety.md: each kind of robot against each event, with a real service and LeRobot's interface.

The policy moves the first joint by 1 a tick, and turns wheels at 0.5. What is looked at is the hardware: how far a
command was from the one before, what drives on, and what becomes of the torque.
"""

import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from rich.console import Console

from longarm_edge.arm import Arm
from longarm_edge.doctor.examine import Examination
from longarm_edge.leave import leave
from longarm_edge.lerobot_robot import LeRobotRobot
from longarm_edge.link import LinkState
from longarm_edge.metrics import Observation, Tick
from longarm_edge.run import Run, RunResult
from longarm_edge.schedule import MonotonicClock
from longarm_edge.settings import EdgeSettings, SafetySettings
from longarm_wire import exit_codes
from longarm_wire.specs import PolicySpec
from tests.e2e.conftest import EdgeRun, RunningService, Script, until
from tests.e2e.fake_robots import (
    HEIGHT,
    KINDS,
    START,
    WIDTH,
    Bus,
    FakeArm,
    FakeArmConfig,
    Hardware,
    make_fake,
    make_hardware,
)

# A step of the policy, and half a step for what a tick more or less makes of it
NORMAL_STEP = 1.5
# Steps of a chunk: half a second
CHUNK = 15
VELOCITIES = {"arm on wheels": (3, 4), "wheels only": (0, 1)}
DIMENSIONS = {"bimanual": (6, 6), "arm on wheels": (5, 5), "wheels only": (1, 2)}


class Bench:
    """One kind of robot, its hardware, and runs of it."""

    def __init__(self, kind: str, service: RunningService, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = kind
        self.service = service
        self.script = service.script
        self.hardware: Hardware = make_hardware(kind)
        self.wheeled = kind in VELOCITIES
        self.measured = kind != "names that differ"
        # An object that is collected lets go of its hardware, which a process that is killed does not
        self.robots: list[LeRobotRobot] = []
        monkeypatch.setattr(
            "longarm_edge.lerobot_robot.make_robot_from_config", lambda _: make_fake(kind, self.hardware, directory)
        )

    def settings(self, **overrides: Any) -> EdgeSettings:
        values = {
            "server_address": self.service.address,
            "pretrained_name_or_path": "scripted",
            "robot": {"type": "fake_arm"},
            "metrics_port": 0,
            "connect_timeout": 5.0,
            **overrides,
        }
        return EdgeSettings(_env_file=None, **values)

    def robot(self) -> LeRobotRobot:
        self.robots.append(LeRobotRobot(FakeArmConfig(), 30.0, self.kind))
        return self.robots[-1]

    def run(self, meanwhile: Callable[[Run], None], **overrides: Any) -> RunResult:
        """Runs until meanwhile is over, and then by a signal."""

        def end(run: Run) -> None:
            try:
                self.streams(5)
                meanwhile(run)
            finally:
                os.kill(os.getpid(), signal.SIGINT)

        return self.start(end, **overrides)

    def start(self, meanwhile: Callable[[Run], None] = lambda _: None, **overrides: Any) -> RunResult:
        """Runs until it ends by itself."""
        run = Run(self.settings(**overrides), self.robot(), Console(quiet=True), MonotonicClock())
        return EdgeRun(run).go(meanwhile)

    def streams(self, more: int = CHUNK) -> None:
        """Returns when so many more actions were executed."""
        buses = self.hardware.buses.values()
        before = max(len(bus.commands) for bus in buses)
        until(lambda: max(len(bus.commands) for bus in buses) > before + more, f"{more} more commands")

    def stands(self, run: Run) -> None:
        """Returns when the arm has stood for a while, and asserts that nothing drives then."""
        idle = run.trace.tick_counts[Tick.IDLE]
        until(lambda: run.trace.tick_counts[Tick.IDLE] > idle + 10, "standing still")
        assert not self.hardware.driving

    def moved_steadily(self) -> None:
        assert self.hardware.largest_step() <= NORMAL_STEP
        assert self.holds()

    def holds(self) -> bool:
        """Whether the torque is on and was never off since the motors were configured."""
        return all(bus.torque_log == [True] for bus in self.hardware.buses.values())


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def script(kind: str) -> Script:
    state, action = DIMENSIONS.get(kind, (3, 3))
    spec = PolicySpec("scripted", action, state, {"observation.images.front": (HEIGHT, WIDTH)}, chunk_size=CHUNK)
    return Script(spec=spec, velocities=VELOCITIES.get(kind, ()))


@pytest.fixture
def bench(kind: str, service: RunningService, tmp_path: Path, monkeypatch) -> Bench:
    return Bench(kind, service, tmp_path, monkeypatch)


def test_stall(bench: Bench) -> None:
    """An arm that stood still goes on from where it stands: no action is skipped for the time of waiting."""

    def stall(run: Run) -> None:
        bench.script.seconds = 1.5
        bench.stands(run)
        bench.script.seconds = 0.3
        bench.streams()

    assert bench.run(stall).exit_code == exit_codes.DONE
    bench.moved_steadily()


def test_reconnect(bench: Bench) -> None:
    bench.script.seconds = 0.2

    def restart(run: Run) -> None:
        bench.service.stop()
        bench.stands(run)
        bench.service.start()
        bench.streams()

    assert bench.run(restart).exit_code == exit_codes.DONE
    bench.moved_steadily()


def test_slow_policy(bench: Bench) -> None:
    """Slower than a chunk lasts: it plays a chunk, stands, and plays the next."""
    bench.script.seconds = 0.8

    def play(run: Run) -> None:
        bench.streams(CHUNK)
        bench.stands(run)
        bench.streams(CHUNK)
        assert run.link_state() not in (LinkState.STALLED, LinkState.RECONNECTING, LinkState.FAILED)

    assert bench.run(play).exit_code == exit_codes.DONE
    bench.moved_steadily()


def test_stop_by_hold(bench: Bench) -> None:
    result = bench.run(lambda _: bench.streams())
    assert (result.exit_code, result.reason) == (exit_codes.DONE, "stopped by SIGINT")
    assert not bench.hardware.driving
    bench.moved_steadily()


def test_stop_by_rest(bench: Bench) -> None:
    """Joints go back slowly, wheels stand meanwhile, and then the robot is left as its own configuration says: limp."""
    result = bench.run(lambda _: bench.streams(), safety=SafetySettings(on_stop="rest", rest_seconds=2))
    assert (result.exit_code, result.reason) == (exit_codes.DONE, "stopped by SIGINT")
    assert not bench.hardware.driving
    assert bench.hardware.largest_step() <= NORMAL_STEP
    for bus in bench.hardware.buses.values():
        # A joint that nobody measures goes back to where it was first sent
        assert all(abs(value - START) <= 1 for value in bus.joints.values())
        assert bus.torque is (bench.kind == "wheels only")


def test_stop_by_release(bench: Bench) -> None:
    result = bench.run(lambda _: bench.streams(), safety=SafetySettings(on_stop="release"))
    assert result.exit_code == exit_codes.DONE
    assert not bench.hardware.driving
    for bus in bench.hardware.buses.values():
        assert bus.torque is (bench.kind == "wheels only"), "wheels have no torque to let go of"


@pytest.mark.parametrize("rule", ["hold", "rest"])
def test_kill(bench: Bench, tmp_path: Path, monkeypatch, rule: str) -> None:
    safety = SafetySettings(pose_file=tmp_path / "pose.json", on_stop=rule, rest_seconds=2)
    with monkeypatch.context() as killed:
        # What the system closes when a process ends
        killed.setattr(Arm, "leave", lambda self: os.close(self._kept))
        bench.run(lambda _: bench.streams(), safety=safety)
    assert bench.hardware.driving is bench.wheeled
    bench.hardware.camera.is_connected = False
    for bus in bench.hardware.buses.values():
        bus.is_connected = False
    before = bench.hardware.largest_step()
    code = leave(bench.settings(safety=safety), bench.robot, MonotonicClock())
    assert not bench.hardware.driving
    assert bench.hardware.largest_step() <= max(before, NORMAL_STEP)
    if bench.kind == "names that differ" and rule == "rest":
        assert code == exit_codes.FAILED, "nobody knows where it stands"
        assert bench.holds()
        return
    assert code == exit_codes.DONE
    assert not (tmp_path / "pose.json").exists()
    if rule == "hold":
        assert bench.holds()
    else:
        assert all(value == START for bus in bench.hardware.buses.values() for value in bus.joints.values())


def test_hung_bus(bench: Bench) -> None:
    """The control loop says so within a few periods; a bus that comes back goes on from where the arm stands."""

    def hang(run: Run) -> None:
        with bench.hardware.hung_bus():
            until(lambda: run.link_state() is LinkState.STALLED, "noticed", 1.0)
            with pytest.raises(urllib.error.HTTPError) as unhealthy:
                urllib.request.urlopen(f"http://127.0.0.1:{run.endpoint.port}/healthz")
            with unhealthy.value as error:
                assert error.code == 503
            time.sleep(0.5)
        bench.streams()
        assert run.link_state() is LinkState.STREAMING

    assert bench.run(hang).exit_code == exit_codes.DONE
    assert not bench.hardware.driving
    bench.moved_steadily()


def test_hung_bus_at_the_end(bench: Bench, monkeypatch) -> None:
    """One signal ends the run, which says that the arm could not be left by rule; the torque stays as it is."""
    for patience in ("arm.HANG_SECONDS", "stop.CALL_SECONDS", "run.CALL_SECONDS", "planner.HANG_SECONDS"):
        monkeypatch.setattr(f"longarm_edge.{patience}", 0.3)
    hanging = bench.hardware.hung_bus()

    def hang(run: Run) -> None:
        hanging.__enter__()
        until(lambda: run.link_state() is LinkState.STALLED, "noticed", 1.0)

    try:
        result = bench.run(hang)
    finally:
        hanging.__exit__(None, None, None)
    assert result.exit_code == exit_codes.FAILED
    assert "while a call to the robot did not return" in result.reason
    assert "The arm was not left as wanted (on_stop=hold)" in result.reason
    assert ("what drives goes on driving" in result.reason) is bench.wheeled
    assert bench.holds()


def test_silent_bus(bench: Bench) -> None:
    """It loses what it is told without a word. The first command that gets through must not be far from the arm."""

    def silence(run: Run) -> None:
        bench.script.spec = replace(bench.script.spec, chunk_size=3 * CHUNK)
        for bus in bench.hardware.buses.values():
            bus.silent = True
        until(lambda: run.trace.observation_counts[Observation.UNREADABLE] > 2, "noticed")
        idle = run.trace.tick_counts[Tick.IDLE]
        until(lambda: run.trace.tick_counts[Tick.IDLE] > idle + 5, "it stands")
        for bus in bench.hardware.buses.values():
            bus.silent = False
        bench.streams()

    assert (
        bench.run(silence, safety=SafetySettings(max_step=2 if bench.measured else None)).exit_code == exit_codes.DONE
    )
    assert not bench.hardware.driving
    if bench.kind != "arm on wheels":
        bench.moved_steadily()
    else:  # its wheels are told to stop, joints where they were sent last, whether that is heard or not
        assert bench.hardware.largest_step() < CHUNK
        assert bench.holds()


def test_blocked_on_the_way_back(bench: Bench) -> None:
    """The torque went off in the air, and the run ended with 0."""

    def block(_: Run) -> None:
        bench.streams()
        for bus in bench.hardware.buses.values():
            bus.blocked = True

    result = bench.run(block, safety=SafetySettings(on_stop="rest", rest_seconds=2))
    assert not bench.hardware.driving
    if not bench.measured or bench.kind == "wheels only":
        assert result.exit_code == exit_codes.DONE
        return
    assert result.exit_code == exit_codes.FAILED
    assert "it does not reach the start pose and holds" in result.reason
    assert bench.holds()


@pytest.mark.parametrize("rule", ["hold", "rest"])
def test_hung_camera(bench: Bench, monkeypatch, rule: str) -> None:
    """A camera that hangs leaves the policy blind: the arm plays what it has, stands, and is left by rule as ever."""
    monkeypatch.setattr("longarm_edge.planner.HANG_SECONDS", 0.2)
    hanging = bench.hardware.camera.wait.hanging()

    def hang(run: Run) -> None:
        hanging.__enter__()
        bench.stands(run)
        assert run.link_state() is LinkState.STALLED

    try:
        result = bench.run(hang, safety=SafetySettings(on_stop=rule, rest_seconds=2))
    finally:
        hanging.__exit__(None, None, None)
    assert (result.exit_code, result.reason) == (exit_codes.DONE, "stopped by SIGINT")
    assert not bench.hardware.driving
    assert bench.hardware.largest_step() <= NORMAL_STEP
    if rule == "rest":
        assert all(abs(value - START) <= 1 for bus in bench.hardware.buses.values() for value in bus.joints.values())
    else:
        assert bench.holds()


@pytest.mark.parametrize("rule", ["hold", "rest", "release"])
def test_lost_camera(bench: Bench, rule: str) -> None:
    """LeRobot counts a robot with a dead camera as not connected, and neither moves it nor lets go of it."""

    def lose(run: Run) -> None:
        bench.hardware.camera.is_connected = False
        bench.stands(run)

    result = bench.run(lose, safety=SafetySettings(on_stop=rule, rest_seconds=2))
    assert result.exit_code == exit_codes.DONE
    assert not bench.hardware.driving
    if rule == "hold":
        bench.moved_steadily()
    else:
        assert all(bus.torque is (bench.kind == "wheels only") for bus in bench.hardware.buses.values())


@pytest.mark.parametrize("rule", ["hold", "rest"])
@pytest.mark.parametrize("fault", ["does not connect", "gives nothing", "hangs"])
def test_no_camera_at_the_start(bench: Bench, monkeypatch, fault: str, rule: str) -> None:
    """What a killed run left driving drove on for as long as nobody mended the camera."""
    camera = bench.hardware.camera
    wheels = [bus.wheels for bus in bench.hardware.buses.values()]
    for speeds in wheels:
        speeds.update(dict.fromkeys(speeds, 0.5))
    monkeypatch.setattr("longarm_edge.lerobot_cameras.CONNECT_SECONDS", 0.5)
    if fault == "does not connect":
        monkeypatch.setattr(type(camera), "connect", lambda _: camera.wait.pass_by())
    elif fault == "gives nothing":
        monkeypatch.setattr(type(camera), "read_latest", Mock(side_effect=ConnectionError("no frame")))

    def stopped(_: Run) -> None:
        if fault == "hangs":
            until(lambda: camera.is_connected and not bench.hardware.driving, "stopped")
            os.kill(os.getpid(), signal.SIGINT)

    for bus in bench.hardware.buses.values():
        bus.torque = True
    with camera.wait.hanging() if fault != "gives nothing" else nullcontext():
        result = bench.start(stopped, safety=SafetySettings(on_stop=rule))
    assert not bench.hardware.driving
    if fault == "hangs":
        assert result.exit_code == exit_codes.INTERRUPTED
    else:
        assert result.exit_code == exit_codes.FAILED
        assert result.reason.startswith("Camera front gives no frame: ")
    for bus in bench.hardware.buses.values():
        assert bus.torque, "an arm that nobody has seen at its start pose would fall"
        assert not bus.torque_log, "no motor is configured for nothing"


@pytest.mark.parametrize("moment", ["configure", "connect", "first look"])
def test_signal_at_the_start(bench: Bench, monkeypatch, moment: str) -> None:
    """What a killed run left driving drove on, and nobody said so."""
    wheels = [bus.wheels for bus in bench.hardware.buses.values()]
    for speeds in wheels:
        speeds.update(dict.fromkeys(speeds, 0.5))
    owner, name = {
        "configure": (FakeArm, "configure"), "connect": (Bus, "connect"), "first look": (Bus, "read")
    }[moment]  # fmt: skip
    call, once = getattr(owner, name), threading.Event()

    def interrupted(self: Any) -> Any:
        if not once.is_set():
            once.set()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return call(self)

    monkeypatch.setattr(owner, name, interrupted)
    result = bench.start()
    assert result.exit_code == exit_codes.INTERRUPTED
    assert not bench.hardware.driving
    assert result.reason == "interrupted by SIGINT"


def test_no_bus_at_the_start(bench: Bench, monkeypatch) -> None:
    """Nobody could say a word to what drives, and nobody said so."""
    for bus in bench.hardware.buses.values():
        monkeypatch.setattr(bus, "connect", Mock(side_effect=ConnectionError("no such port")))
    result = bench.start()
    assert result.exit_code == exit_codes.FAILED
    assert "no such port" in result.reason
    assert ("it was not told to stop driving" in result.reason) is bench.wheeled


def test_lost_bus(bench: Bench) -> None:
    """A bus that closed by itself takes no word about the torque any more: the run ends with it on, and says so."""

    def lose(_: Run) -> None:
        for bus in bench.hardware.buses.values():
            bus.is_connected = False
        bench.hardware.camera.is_connected = False

    result = bench.run(lose, safety=SafetySettings(on_stop="release"))
    assert result.exit_code == exit_codes.FAILED
    assert "The arm was not left as wanted (on_stop=release)" in result.reason


@pytest.mark.parametrize("held", [True, False], ids=["held", "limp"])
def test_doctor(bench: Bench, held: bool) -> None:
    for bus in bench.hardware.buses.values():
        bus.torque = held
    checks = {finding.check for finding in Examination(bench.settings(), []).findings()}
    assert "prediction" in checks, "it came to the end"
    for bus in bench.hardware.buses.values():
        assert (bus.commands, bus.torque, bus.torque_log) == ([], held, [])


EVENTS = {name.removeprefix("test_") for name in dict(globals()) if name.startswith("test_")}


def test_the_page_and_this_file_have_the_same_cells() -> None:
    page = (Path(__file__).parents[2] / "docs" / "safety.md").read_text()
    header, _, *rows = re.findall(r"^\| .*\|$", page.split("## The table")[1], re.MULTILINE)
    assert tuple(cell.strip() for cell in header.split("|")[2:-1]) == KINDS
    assert {row.split("|")[1].strip().replace(" ", "_") for row in rows} == EVENTS
