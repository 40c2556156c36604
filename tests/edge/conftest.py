"""A clock and a robot for tests of the edge's core: time moves only when somebody sleeps, commands are kept."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from longarm_edge.robot import RobotReading, Torque
from longarm_wire.specs import CameraSpec, RobotSpec

NAMES = ("shoulder.pos", "elbow.pos", "gripper.pos")
SPEC = RobotSpec("test_arm", NAMES, NAMES, (CameraSpec("front", 48, 64),), 30.0)


@dataclass
class FakeClock:
    """Stands still until told to sleep."""

    time: float = 100.0
    # Extra seconds that the nth sleep oversleeps
    oversleep: list[float] = field(default_factory=list)
    asleep: float = 0.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, instant: float) -> None:
        self.time = max(self.time, instant) + (self.oversleep.pop(0) if self.oversleep else 0.0)

    def suspended(self) -> float:
        asleep, self.asleep = self.asleep, 0.0
        return asleep


@dataclass
class RecordingRobot:
    """Keeps what it was sent, and when."""

    clock: FakeClock
    spec: RobotSpec = SPEC
    sent: list[tuple[float, np.ndarray]] = field(default_factory=list)
    connected: bool = True
    torque: bool | None = None
    fails: bool = False
    # So many commands fail before one passes
    failures: int = 0
    torque_at_disconnect: Torque = Torque.CHOSEN
    # Where each joint stands that was not moved yet, and where those stand that are blocked
    stands: float = 0.0
    blocked: dict[str, float] = field(default_factory=dict)

    def connect(self) -> None:
        self.connected = True

    def configure(self) -> None: ...

    def observe(self, next_step: Callable[[], int] = lambda: 0) -> RobotReading:
        return RobotReading(np.zeros(3, np.float32), {"front": np.zeros((48, 64, 3), np.uint8)})

    def read_state(self) -> np.ndarray:
        if self.fails:
            raise ConnectionError("the bus is gone")
        last = self.sent[-1][1] if self.sent else np.full(len(self.spec.action_names), self.stands)
        pose = dict(zip(self.spec.action_names, last, strict=True)) | self.blocked
        return np.array([pose.get(name, 0.0) for name in self.spec.state_names], np.float32)

    def send(self, command: np.ndarray, sent: Callable[[], None] = lambda: None) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("Incorrect status packet!")
        if self.fails:
            raise ConnectionError("the bus is gone")
        self.sent.append((self.clock.now(), command.copy()))
        sent()

    def take_over(self, seconds: float) -> bool:
        return True

    def disconnect(self, *, torque: bool | None) -> None:
        self.connected = False
        self.torque = torque


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def robot(clock: FakeClock) -> RecordingRobot:
    return RecordingRobot(clock)
