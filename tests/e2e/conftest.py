"""A real service on a thread with a scripted policy, a LeRobot robot without hardware, and a way to run the edge."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.robots import Robot, RobotConfig
from rich.console import Console

from longarm_edge.lerobot_robot import LeRobotRobot
from longarm_edge.run import Run, RunResult
from longarm_edge.schedule import MonotonicClock
from longarm_edge.settings import EdgeSettings
from longarm_edge.tunnel.local_sshd import LocalSshd, NoSshdError
from longarm_service.app import Service
from longarm_service.policy import (
    DeviceMemory,
    Fingerprint,
    Guidance,
    LoadedPolicy,
    Observation,
    PolicyChoice,
    PolicyLoader,
    Processors,
    Report,
)
from longarm_service.settings import ServiceSettings
from longarm_wire.errors import Reason, WireError
from longarm_wire.specs import PolicySpec

JOINTS = ("pan.pos", "lift.pos", "gripper.pos")
HEIGHT, WIDTH = 48, 64


@RobotConfig.register_subclass("longarm_test_arm")
@dataclass
class TestArmConfig(RobotConfig):
    """An arm of three joints and one camera, as LeRobot configures one."""

    __test__ = False

    disable_torque_on_disconnect: bool = True


class TestArm(Robot):
    """Goes where it is sent at once; keeps every command with its time. Mocks hardware and nothing else."""

    __test__ = False
    config_class = TestArmConfig
    name = "longarm_test_arm"

    def __init__(self, config: TestArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self.pose = dict.fromkeys(JOINTS, 0.0)
        self.commands: list[tuple[float, tuple[float, ...]]] = []
        self.torque = True
        self.read_faults: list[Exception] = []
        self.write_faults: list[Exception] = []
        self._connected = False

    observation_features = {**dict.fromkeys(JOINTS, float), "front": (HEIGHT, WIDTH, 3)}  # noqa: RUF012
    action_features = dict.fromkeys(JOINTS, float)
    is_calibrated = True

    @property
    def is_connected(self) -> bool:
        return self._connected

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        if not self._connected:
            raise ConnectionError("not connected")
        if self.read_faults:
            raise self.read_faults.pop(0)
        frame = np.full((HEIGHT, WIDTH, 3), int(self.pose["pan.pos"]) % 256, np.uint8)
        return {**self.pose, "front": frame}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        if self.write_faults:
            raise self.write_faults.pop(0)
        self.pose = dict(action)
        self.commands.append((time.monotonic(), tuple(action[name] for name in JOINTS)))
        return action

    def disconnect(self) -> None:
        self._connected = False
        self.torque = not self.config.disable_torque_on_disconnect


DEFAULT_SPEC = PolicySpec("scripted", 3, 3, {"observation.images.front": (HEIGHT, WIDTH)}, chunk_size=30)


@dataclass
class Script:
    """What the policy does, chunk by chunk.

    Attributes:
      spec: What it says of itself.
      seconds: How long a prediction takes.
      faults: By prediction, counted from 0: an exception to raise, or actions to return in place of good ones.
      always: Like one of faults, for every prediction that has none.
      velocities: Indices of actions that are velocities: 0.5 at every step.
      digest: Part of its fingerprint.
      predictions: How many there were.
      seen: The state in each of them, and what guided it.
      resets: How many episodes began.
      rollouts: How many had begun at each prediction.
    """

    spec: PolicySpec = DEFAULT_SPEC
    seconds: float = 0.02
    faults: dict[int, Exception | np.ndarray] = field(default_factory=dict)
    always: Exception | np.ndarray | None = None
    velocities: tuple[int, ...] = ()
    digest: str = "1" * 64
    predictions: int = 0
    seen: list[tuple[np.ndarray, Guidance | None]] = field(default_factory=list)
    resets: int = 0
    rollouts: list[int] = field(default_factory=list)


class ScriptedPolicy(LoadedPolicy, Processors):
    """A policy that moves pan by one degree per tick from where it is, and does what its script says."""

    saved_renames: Mapping[str, str] = {}

    def __init__(self, script: Script) -> None:
        self.script = script
        self.spec = script.spec
        self.fingerprint = Fingerprint("scripted", "scripted", "", script.digest)

    def open_processors(self, action_names: Sequence[str] = ()) -> Processors:
        return self

    def reset(self) -> None:
        self.script.resets += 1

    def turn_to(self, processors: Processors) -> None:
        self.script.rollouts.append(self.script.resets)

    def prepare_frame(self, key: str, frame: np.ndarray) -> np.ndarray:
        return frame

    def preprocess(self, observation: Observation) -> Observation:
        return observation

    def predict(self, prepared: Observation, guidance: Guidance | None = None) -> np.ndarray:
        self.script.seen.append((prepared.state, guidance))
        number = self.script.predictions
        self.script.predictions += 1
        time.sleep(self.script.seconds)
        fault = self.script.faults.get(number, self.script.always)
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            return fault
        steps = np.arange(1, self.spec.chunk_size + 1, dtype=np.float32)
        chunk = np.repeat(np.resize(prepared.state, self.spec.action_dim)[None], len(steps), axis=0)
        chunk[:, 0] += steps
        chunk[:, self.script.velocities] = 0.5
        return chunk

    def postprocess(self, chunk: np.ndarray) -> np.ndarray:
        return chunk

    def in_model_space(self, chunk: np.ndarray) -> np.ndarray:
        return chunk.copy()


class ScriptedLoader(PolicyLoader):
    """Knows one policy, named "scripted"."""

    device, dtype, device_name = "cpu", "", ""
    library_versions: Mapping[str, str] = {"lerobot": "0", "torch": "0"}

    def __init__(self, script: Script) -> None:
        self.script = script

    def load(self, choice: PolicyChoice, report: Report) -> LoadedPolicy:
        if choice.pretrained_name_or_path != "scripted":
            raise WireError(Reason.POLICY_NOT_FOUND, f"There is no checkpoint {choice.pretrained_name_or_path!r}")
        return ScriptedPolicy(self.script)

    def is_current(self, policy: LoadedPolicy) -> bool:
        return policy.fingerprint.digest == self.script.digest

    def device_memory(self) -> list[DeviceMemory]:
        return []


class RunningService:
    """The real service on a thread of its own, on a port that stays the same when it is started again."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        settings = ServiceSettings(port=self.port, metrics_port=0, drain_timeout=1.0, _env_file=None)
        ready: Future[int] = Future()
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            service = Service(settings, lambda: ScriptedLoader(self.script))
            try:
                async with service:
                    await service.prepare()
                    ready.set_result(service.port)
                    await self._stop.wait()
            except BaseException as error:
                if not ready.done():
                    ready.set_exception(error)
                raise

        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(serve(),), name="service")
        self._thread.start()
        self.port = ready.result(20)

    def stop(self) -> None:
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()
        self._loop = self._thread = None


@pytest.fixture
def script() -> Script:
    return Script()


def recording_arm_script() -> Script:
    """Returns the script of a policy for the recording_arm of tests/plugins."""
    cameras = dict.fromkeys(("observation.images.front", "observation.images.wrist"), (48, 64))
    return Script(spec=PolicySpec("scripted", 6, 6, cameras, chunk_size=30))


def recording_arm_environment(directory: Path, service: "RunningService", **more: str) -> dict[str, str]:
    """Returns what a process of the edge needs to drive a recording_arm, whose files are in directory."""
    robot = {
        "type": "recording_arm",
        "log": str(directory / "arm.log"),
        "stuck": str(directory / "stuck"),
        "calibration_dir": str(directory),
    }
    return {k: v for k, v in os.environ.items() if not k.startswith("LONGARM_")} | {
        "PYTHONPATH": str(Path(__file__).parents[1] / "plugins"),
        "LONGARM_EDGE_SERVER_ADDRESS": service.address,
        "LONGARM_EDGE_PRETRAINED_NAME_OR_PATH": "scripted",
        "LONGARM_EDGE_ROBOT": json.dumps(robot),
        "LONGARM_EDGE_METRICS_PORT": "0",
        **more,
    }


@pytest.fixture
def service(script: Script) -> Iterator[RunningService]:
    running = RunningService(script)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def arm(tmp_path) -> TestArm:
    return TestArm(TestArmConfig(id="test", calibration_dir=tmp_path))


@dataclass
class EdgeRun:
    """One run of the edge: its parts, and what happens meanwhile."""

    run: Run

    def go(self, meanwhile: Callable[[Run], None] = lambda _: None) -> RunResult:
        """Runs on this thread, as signals want it, and meanwhile on another. What meanwhile raises fails the test."""
        failures: list[BaseException] = []

        def watched() -> None:
            try:
                meanwhile(self.run)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=watched, name="meanwhile")
        thread.start()
        try:
            return self.run()
        finally:
            thread.join(30)
            assert not failures, failures


@pytest.fixture
def edge(service: RunningService, arm: TestArm, monkeypatch) -> Callable[..., EdgeRun]:
    """Returns a function that puts a run together, with settings on top of the test's own."""
    monkeypatch.setattr("longarm_edge.lerobot_robot.make_robot_from_config", lambda _: arm)

    def make(**overrides: Any) -> EdgeRun:
        values = {
            "server_address": service.address,
            "pretrained_name_or_path": "scripted",
            "duration": 2.0,
            "metrics_port": 0,
            "connect_timeout": 5.0,
            **overrides,
        }
        settings = EdgeSettings(_env_file=None, **values)
        robot = LeRobotRobot(arm.config, settings.fps)
        return EdgeRun(Run(settings, robot, Console(quiet=True), MonotonicClock()))

    return make


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[LocalSshd]:
    """A private sshd; without one on this machine the test is skipped."""
    try:
        server = LocalSshd(tmp_path / "sshd")
    except NoSshdError as reason:
        pytest.skip(str(reason))
    with server:
        yield server


def until(condition: Callable[[], bool], what: str, timeout: float = 15.0) -> None:
    """Returns when condition holds; fails the test if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)
