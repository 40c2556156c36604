"""Dialling: the first attempt that gets through, soon after the far side is there."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longarm_edge.tunnel.dialing import open_connection


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A server that drops what tries to connect, as a dead link does: its queue is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
            fillers.append(filler)
        yield server
        for filler in fillers:
            filler.close()


def test_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with open_connection("localhost", server.getsockname()[1], 5) as connection:
            accepted, _ = server.accept()
            with accepted:
                connection.sendall(b"x")
                assert accepted.recv(1) == b"x"
        assert connection.gettimeout() is None


def test_a_refusal_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        open_connection("127.0.0.1", port, 30)
    assert time.monotonic() - begun < 15


def test_a_name_without_an_address() -> None:
    with pytest.raises(socket.gaierror):
        open_connection("no-such-host.invalid", 22, 5)


def test_an_address_that_cannot_be_dialled_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with an IPv6 address first, on a machine without IPv6."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = socket.getaddrinfo("127.0.0.1", server.getsockname()[1], type=socket.SOCK_STREAM)
        strange = (12345, socket.SOCK_STREAM, 0, "", ("::1", 1))
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [strange, *found])
        begun = time.monotonic()
        open_connection("gpu.example.com", 22, 30).close()
        assert time.monotonic() - begun < 15
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [strange])
        with pytest.raises(OSError, match="not supported"):
            open_connection("gpu.example.com", 22, 30)


def test_nobody_answers(deaf: socket.socket) -> None:
    with pytest.raises(TimeoutError):
        open_connection("127.0.0.1", deaf.getsockname()[1], 1.3)


def test_a_link_that_is_back_is_noticed_at_once(deaf: socket.socket) -> None:
    """TCP alone would try again 7 s after the beginning."""
    found: list[float] = []

    def dial() -> None:
        with open_connection("127.0.0.1", deaf.getsockname()[1], 30):
            found.append(time.monotonic())

    dialling = threading.Thread(target=dial)
    begun = time.monotonic()
    dialling.start()
    time.sleep(max(0.0, begun + 3.3 - time.monotonic()))
    assert not found
    back = time.monotonic()
    accepted = []
    deaf.settimeout(0.2)
    while not found and time.monotonic() < back + 20:
        try:
            accepted.append(deaf.accept()[0])
        except TimeoutError:
            continue
    dialling.join(20)
    for connection in accepted:
        connection.close()
    assert found[0] - back < 2.5


def test_nothing_is_left_open(deaf: socket.socket) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(TimeoutError):
        open_connection("127.0.0.1", deaf.getsockname()[1], 3.2)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
