"""LeRobot's lekiwi_client, with a stand-in for the robot, its host and the network between: pyzmq is not needed."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

ARM = [f"arm_{joint}.pos" for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll",
                                        "gripper")]  # fmt: skip
WHEELS = ["x.vel", "y.vel", "theta.vel"]
PERIOD = 1 / 50
# So many of what came are handed out at once, the oldest first: RCVHWM. The others wait in the connection
STORE = 2


@dataclass
class Kiwi:
    """The robot and its host, which sends where it stands by itself, and the network, which can be down.

    Attributes:
      state: Where its joints stand, and how fast it drives.
      commands: Every command that came, with where the arm stood before it.
      up: Whether the network is.
    """

    state: dict[str, float] = field(default_factory=lambda: dict.fromkeys([*ARM, *WHEELS], 0.0))
    commands: list[tuple[dict[str, float], dict[str, float]]] = field(default_factory=list)
    up: bool = True
    _came: list[bytes] = field(default_factory=list)
    _waits: str = ""
    _at_hand: int = STORE
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def drop(self) -> None:
        """Takes the network down."""
        with self._lock:
            self.up = False

    def restore(self) -> None:
        """Brings the network back: the newest command was kept for it."""
        with self._lock:
            self.up = True
            if self._waits:
                self.hear(self._waits)

    def hear(self, command: str) -> None:
        with self._lock:
            self._waits = "" if self.up else command
            if self.up:
                goals = json.loads(command)
                self.commands.append((goals, dict(self.state)))
                self.state |= goals

    def in_store(self) -> int:
        """Returns how many observations have come that nobody has seen."""
        return len(self._came)

    def poll(self, milliseconds: float) -> bool:
        give_up_at = time.monotonic() + milliseconds / 1000
        while not self._came and time.monotonic() < give_up_at:
            time.sleep(0.001)
        return bool(self._came)

    def receive(self) -> list[bytes]:
        with self._lock:
            if not self._came or not self._at_hand:
                self._at_hand = STORE
                raise NothingError
            self._at_hand -= 1
            return [self._came.pop(0)]

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Sends meanwhile."""
        over = threading.Event()

        def send() -> None:
            while not over.wait(PERIOD):
                with self._lock:
                    if self.up:
                        self._came.append(json.dumps({"_cams": [], **self.state}).encode())

        thread = threading.Thread(target=send, name="host")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(5)


class NothingError(Exception):
    """Nothing has come."""


def stand_in_for_zmq(kiwi: Kiwi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has LeRobot reach kiwi."""

    class Socket:
        def __getattr__(self, _: str) -> Any:
            return lambda *_: None

        def send_string(self, text: str) -> None:
            kiwi.hear(text)

        def recv_multipart(self, _: int) -> list[bytes]:
            return kiwi.receive()

    class Context:
        def socket(self, _: int) -> Socket:
            return Socket()

        def term(self) -> None: ...

    class Poller:
        def register(self, socket: Socket, _: int) -> None:
            self.socket = socket

        def poll(self, milliseconds: float) -> dict[Socket, int]:
            return {self.socket: 1} if kiwi.poll(milliseconds) else {}

    zmq: Any = ModuleType("zmq")
    zmq.Context, zmq.Poller, zmq.Again, zmq.ZMQError = Context, Poller, NothingError, OSError
    zmq.PUSH = zmq.PULL = zmq.CONFLATE = zmq.RCVHWM = zmq.POLLIN = zmq.NOBLOCK = 1
    monkeypatch.setitem(sys.modules, "zmq", zmq)
