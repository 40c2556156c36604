"""The notification protocol against a real socket, as systemd would listen on it."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longarm_wire.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Returns what NOTIFY_SOCKET would be, and the socket behind it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@longarm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        listening.settimeout(5)
        yield name, listening


def test_assignments_arrive_in_one_message(manager) -> None:
    name, listening = manager
    assert Notifier({"NOTIFY_SOCKET": name}).tell("READY=1", "STATUS=streaming")
    assert listening.recv(1000) == b"READY=1\nSTATUS=streaming"


def test_a_manager_that_does_not_read_is_not_waited_for(manager) -> None:
    """A tick must not wait for systemd."""
    notifier = Notifier({"NOTIFY_SOCKET": manager[0]})
    started = time.monotonic()
    told = [notifier.tell("WATCHDOG=1") for _ in range(5000)]
    assert told[0]
    assert not told[-1], "the queue is full by then"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "1000000"}])
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    assert notifier.watchdog_seconds is None
    assert notifier.tell("READY=1")


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).tell("READY=1")


@pytest.mark.parametrize(
    ("watchdog", "seconds"),
    [
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_meant_for_one_process(watchdog: dict[str, str], seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "@x", **watchdog}).watchdog_seconds == seconds
