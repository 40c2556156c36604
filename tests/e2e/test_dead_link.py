"""A link that goes silent without a word, as when a cable is pulled: a TCP proxy that stops forwarding."""

import contextlib
import os
import selectors
import signal
import socket
import threading
import time

import pytest

from longarm_edge.metrics import Tick
from longarm_edge.run import Run
from longarm_edge.settings import SafetySettings
from longarm_wire import exit_codes
from tests.e2e.conftest import until


class Proxy:
    """Forwards TCP to a port until silent; then takes bytes and connections and passes nothing on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.silent = threading.Event()
        self._done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:
            selector.register(sockets.enter_context(self._listener), selectors.EVENT_READ)
            while not self._done.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is self._listener:
                        near = sockets.enter_context(self._listener.accept()[0])
                        try:
                            far = sockets.enter_context(socket.create_connection(("127.0.0.1", self._target)))
                        except ConnectionRefusedError:
                            near.close()
                            continue
                        selector.register(near, selectors.EVENT_READ, far)
                        selector.register(far, selectors.EVENT_READ, near)
                        continue
                    data = b""
                    with contextlib.suppress(OSError):
                        data = key.fileobj.recv(1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                        with contextlib.suppress(OSError):
                            key.data.shutdown(socket.SHUT_WR)
                    elif not self.silent.is_set():
                        with contextlib.suppress(OSError):
                            key.data.sendall(data)


@pytest.fixture
def proxy(service):
    running = Proxy(service.port)
    yield running
    running.close()


def test_a_link_that_goes_silent_and_returns(edge, proxy) -> None:
    """B4: a half-open connection looks alive to gRPC; the stock client hangs on it."""
    e = edge(server_address=f"127.0.0.1:{proxy.port}", duration=0, request_timeout=1.0)

    def pull_the_cable(run: Run) -> None:
        until(lambda: run.trace.tick_counts[Tick.ACTION] > 30, "streaming")
        proxy.silent.set()
        until(lambda: run.trace.tick_counts[Tick.IDLE] > 30, "it ran empty")
        proxy.silent.clear()
        held = run.trace.tick_counts[Tick.ACTION]
        until(lambda: run.trace.tick_counts[Tick.ACTION] > held + 30, "streaming again")
        os.kill(os.getpid(), signal.SIGINT)

    result = e.go(pull_the_cable)
    assert result.exit_code == exit_codes.DONE
    assert result.summary.reconnects >= 1


def test_a_link_that_stays_silent_ends_the_run_with_the_reason(edge, proxy, arm) -> None:
    safety = SafetySettings(max_offline=3.0)
    e = edge(server_address=f"127.0.0.1:{proxy.port}", duration=0, request_timeout=1.0, safety=safety)

    def pull_the_cable(run: Run) -> None:
        until(lambda: run.trace.tick_counts[Tick.ACTION] > 30, "streaming")
        proxy.silent.set()

    result = e.go(pull_the_cable)
    assert result.exit_code == exit_codes.FAILED
    assert "is out of reach" in result.reason
    assert not arm.is_connected
    assert arm.torque


def test_silence_while_the_session_opens_is_noticed(edge, proxy) -> None:
    """Loading has a deadline of minutes, and gRPC by itself waits 20 s for the first word of who takes a connection."""
    proxy.silent.set()
    started = time.monotonic()
    result = edge(server_address=f"127.0.0.1:{proxy.port}", connect_timeout=2.0, load_timeout=300.0).go()
    assert result.exit_code == exit_codes.FAILED
    assert "Gave up after connect_timeout=2 s" in result.reason
    assert time.monotonic() - started < 15
