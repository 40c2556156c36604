"""A robot that sends by itself, and falls silent: LeRobot's lekiwi_client then hands out the last observation again."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from lerobot.robots.earthrover_mini_plus import EarthRoverMiniPlusConfig
from lerobot.robots.lekiwi import LeKiwiClientConfig
from lerobot.robots.unitree_g1.g1_utils import G1_29_JointIndex
from lerobot.robots.unitree_g1.unitree_g1 import G1_29_LowState, UnitreeG1
from rich.console import Console

from longarm_edge.lerobot_robot import LeRobotRobot
from longarm_edge.link import LinkState
from longarm_edge.metrics import Observation, Tick
from longarm_edge.run import Run, RunResult
from longarm_edge.schedule import MonotonicClock
from longarm_edge.settings import EdgeSettings, SafetySettings
from longarm_wire import exit_codes
from longarm_wire.specs import PolicySpec
from tests.e2e.conftest import EdgeRun, RunningService, Script, until
from tests.e2e.kiwi import ARM, WHEELS, Kiwi, stand_in_for_zmq

# The policy moves the first joint by 1 a tick
NORMAL_STEP = 1.5


@pytest.fixture
def script() -> Script:
    return Script(spec=PolicySpec("scripted", 9, 9, {}, chunk_size=50), velocities=(6, 7, 8))


@pytest.fixture
def kiwi(monkeypatch) -> Iterator[Kiwi]:
    kiwi = Kiwi()
    stand_in_for_zmq(kiwi, monkeypatch)
    with kiwi.sending():
        yield kiwi


@pytest.fixture
def robot(kiwi: Kiwi, tmp_path: Path) -> LeRobotRobot:
    return LeRobotRobot(LeKiwiClientConfig(remote_ip="", id="kiwi", calibration_dir=tmp_path, cameras={}), 30.0)


@pytest.fixture
def go(service: RunningService, kiwi: Kiwi, robot: LeRobotRobot) -> Callable[..., RunResult]:
    """Returns a function that runs, and does something once the arm moves."""

    def go(meanwhile: Callable[[Run], None], **safety: Any) -> RunResult:
        settings = EdgeSettings(
            _env_file=None,
            server_address=service.address,
            pretrained_name_or_path="scripted",
            metrics_port=0,
            connect_timeout=5.0,
            safety=SafetySettings(**safety),
        )

        def once_it_moves(run: Run) -> None:
            moves(kiwi)
            meanwhile(run)

        return EdgeRun(Run(settings, robot, Console(quiet=True), MonotonicClock())).go(once_it_moves)

    return go


def moves(kiwi: Kiwi) -> None:
    before = len(kiwi.commands)
    until(lambda: len(kiwi.commands) > before + 15, "it moves")


def end() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_after_a_silence_the_plan_goes_on_from_where_the_arm_stands(kiwi: Kiwi, go) -> None:
    """It was taken for an arm that stands still: the plan ran on, and threw it by 32 degrees when the link was back."""
    before: list[int] = []

    def silence(run: Run) -> None:
        kiwi.drop()
        idle = run.trace.tick_counts[Tick.IDLE]
        until(lambda: run.trace.tick_counts[Tick.IDLE] > idle + 10, "it stands")
        assert run.trace.observation_counts[Observation.UNREADABLE] > 1
        until(lambda: run.link_state() is LinkState.STALLED, "it is said")
        before.append(len(kiwi.commands))
        kiwi.restore()
        moves(kiwi)
        end()

    assert go(silence).exit_code == exit_codes.DONE
    # The one that waited for the link is the last before it stood. What comes then stands and goes on from there
    waited, *after = kiwi.commands[before[0] :]
    assert all(waited[0][name] == 0 for name in WHEELS)
    assert all(abs(goals[ARM[0]] - stood[ARM[0]]) <= NORMAL_STEP for goals, stood in after)
    assert not any(kiwi.state[name] for name in WHEELS)


def test_a_robot_that_is_gone_ends_the_run(kiwi: Kiwi, go) -> None:
    """It went on for good, with exit code 0."""
    result = go(lambda _: kiwi.drop(), max_offline=1.5)
    assert result.exit_code == exit_codes.FAILED
    assert "max_offline=1.5 s. The robot gave no observation: it has sent nothing new for more than" in result.reason
    assert "it was told to stop driving, and may not have heard it: it has sent nothing new" in result.reason


@pytest.mark.parametrize("rule", ["hold", "rest"])
def test_a_stop_that_never_arrived_is_said_also_when_the_silence_was_not_noticed_yet(kiwi: Kiwi, go, rule: str) -> None:
    def drop(_: Run) -> None:
        kiwi.drop()
        end()

    result = go(drop, on_stop=rule)
    assert result.exit_code == exit_codes.FAILED
    assert "it was told to stop driving, and may not have heard it: it has sent nothing new" in result.reason


def test_where_it_stands_is_not_where_it_stood_when_nobody_looked(kiwi: Kiwi, robot: LeRobotRobot) -> None:
    """LeRobot hands out the oldest two of what has come: at two looks a second it was seen where it had long been."""
    robot.connect()
    robot.read_state()
    until(lambda: kiwi.in_store() > 15, "it sends")
    kiwi.state[ARM[0]] = 30.0
    assert robot.read_state()[0] == 30
    until(lambda: kiwi.in_store() > 15, "it sends")
    kiwi.state[ARM[0]] = 60.0
    assert robot.observe().state[0] == 60
    robot.disconnect(torque=None)


TELEMETRY = dict.fromkeys(("speed", "battery", "orientation", "latitude", "longitude", "gps_signal", "signal_level",
                           "vibration", "lamp"), 1.5)  # fmt: skip


def test_a_rover_that_is_gone_is_not_noticed(tmp_path: Path) -> None:
    """As docs/safety.md says: its driver makes a new observation of what it heard last."""

    class Sdk(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(TELEMETRY).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    rover = LeRobotRobot(EarthRoverMiniPlusConfig(id="rover", calibration_dir=tmp_path), 30.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Sdk) as sdk:
        threading.Thread(target=sdk.serve_forever, daemon=True).start()
        rover.lerobot.sdk_base_url = f"http://127.0.0.1:{sdk.server_port}"
        rover.connect()
        heard = rover.observe().state
        sdk.shutdown()
    assert rover.observe().state.tolist() == heard.tolist()
    rover.disconnect(torque=None)


def test_a_humanoid_that_says_nothing_any_more_is_not_noticed() -> None:
    """As docs/safety.md says. Its SDK is not needed for what its driver makes of the last message."""
    humanoid = object.__new__(UnitreeG1)
    humanoid._lowstate_lock, humanoid._lowstate, humanoid._cameras = threading.Lock(), G1_29_LowState(), {}
    for motor in G1_29_JointIndex:
        humanoid._lowstate.motor_state[motor].q = 1.0
    first, again = humanoid.get_observation(), humanoid.get_observation()
    assert first == again
    assert first is not again
