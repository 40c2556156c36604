"""What systemd is told, and when."""

import socket
from collections.abc import Iterator

import pytest

from longarm_edge.link import LinkState
from longarm_edge.supervision import Supervision
from longarm_wire.notify import Notifier


class Manager:
    """A socket as systemd has one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """Returns the messages since the last call, each as its assignments."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(1000).decode().split("\n"))
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path) -> Iterator[Manager]:
    listening = Manager(str(tmp_path / "notify"))
    yield listening
    listening.close()


def supervision(manager: Manager, clock, **environment: str) -> Supervision:
    return Supervision(Notifier({"NOTIFY_SOCKET": manager.path, **environment}), lambda: LinkState.STREAMING, clock)


def test_the_first_tick_makes_the_unit_active(manager, clock) -> None:
    told = supervision(manager, clock)
    told.beat()
    assert manager.heard() == [["READY=1", "WATCHDOG=1", "STATUS=streaming"]]
    clock.time += 1.5
    told.beat()
    assert manager.heard() == [["WATCHDOG=1", "STATUS=streaming"]]


@pytest.mark.parametrize("seconds", [0.4, 2.0, 10.0])
def test_signs_of_life_come_at_less_than_half_of_what_the_watchdog_allows(manager, clock, seconds: float) -> None:
    told = supervision(manager, clock, WATCHDOG_USEC=str(round(seconds * 1e6)))
    gaps, last = [], clock.time
    for _ in range(600):
        told.beat()
        if manager.heard():
            gaps.append(clock.time - last)
            last = clock.time
        clock.time += 1 / 30
    assert len(gaps) > 10
    assert max(gaps) < seconds / 2
    assert len(gaps) < 600, "not at every tick"


def test_ready_is_said_again_if_it_got_lost(manager, clock, tmp_path) -> None:
    told = supervision(manager, clock)
    hidden = tmp_path / "hidden"
    (tmp_path / "notify").rename(hidden)
    told.beat()
    hidden.rename(tmp_path / "notify")
    clock.time += 1.5
    told.beat()
    assert manager.heard()[0][0] == "READY=1"


def test_a_step_of_the_start_gets_more_time_than_its_own_deadline(manager, clock) -> None:
    supervision(manager, clock).starting("opening a session", 900)
    (status, extension), *_ = manager.heard()
    assert status == "STATUS=opening a session"
    name, _, microseconds = extension.partition("=")
    assert name == "EXTEND_TIMEOUT_USEC"
    assert int(microseconds) > 900e6


def test_the_end_is_told_with_one_line_of_why(manager, clock) -> None:
    supervision(manager, clock).stopping("No chunk\nfor long")
    supervision(manager, clock).stopping("")
    assert manager.heard() == [["STOPPING=1", "STATUS=No chunk"], ["STOPPING=1", "STATUS="]]
