"""A laboratory for tunnels: real sshds on the loopback, a real gRPC service behind them, and a wire that can be cut."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from longarm_edge.tunnel import Event, SshSettings, State, StateChanged, Tunnel
from longarm_edge.tunnel.local_sshd import LocalSshd, NoSshdError, find_sshd

REPLY = bytes(6000)


@dataclass
class Service:
    """A gRPC service with health, and an echo whose replies are 6 kB."""

    port: int = 0
    _server: grpc.Server | None = None

    def start(self) -> None:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        )
        checks = health.HealthServicer()
        checks.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        handler = grpc.unary_unary_rpc_method_handler(lambda request, _: REPLY)
        self._server.add_registered_method_handlers("test.Echo", {"Echo": handler})
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Echo": handler}),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None


@dataclass
class Wire:
    """Forwards TCP to a port until it goes silent: then it swallows everything and closes nothing."""

    target: int
    silent: threading.Event = field(default_factory=threading.Event)
    _sockets: list[socket.socket] = field(default_factory=list)

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for connection in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if not self.silent.is_set():
                    sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)


@dataclass
class Account:
    """A user of this machine, for passwords."""

    name: str
    password: str


@dataclass
class Lab:
    """Makes what a test needs and takes it apart at the end."""

    directory: Path
    backend: str
    service: Service
    stack: ExitStack
    events: list[Event] = field(default_factory=list)

    def sshd(self, name: str = "sshd", **how) -> LocalSshd:
        return self.stack.enter_context(LocalSshd(self.directory / name, **how))

    def known_hosts(self, *sshds: LocalSshd, port: int = 0) -> Path:
        file = self.directory / "known_hosts"
        lines = [sshd.known_hosts for sshd in sshds]
        file.write_text("".join(line.replace(f":{sshds[0].port} ", f":{port} ") if port else line for line in lines))
        return file

    def settings(self, sshd: LocalSshd | None, **others) -> SshSettings:
        values = {
            "host": "127.0.0.1",
            "config_file": None,
            "agent": False,
            "service_port": self.service.port,
            "silence_timeout": 2,
            "connect_timeout": 5,
            "reconnect_cap": 0.2,
            "backend": self.backend,
        }
        if sshd is not None:
            values |= {"port": sshd.port, "user": sshd.user, "key_file": sshd.client_key}
            if "known_hosts_file" not in others:
                values["known_hosts_file"] = self.known_hosts(sshd)
        return SshSettings(**(values | others))

    def tunnel(self, settings: SshSettings, **how) -> Tunnel:
        observers = (self.events.append, *how.pop("observers", ()))
        return self.stack.enter_context(Tunnel(settings, observers=observers, **how))

    def up(self, settings: SshSettings, timeout: float = 20, **how) -> Tunnel:
        tunnel = self.tunnel(settings, **how)
        tunnel.open(timeout)
        return tunnel

    def wire(self, sshd: LocalSshd) -> Wire:
        wire = Wire(sshd.port)
        wire.start()
        self.stack.callback(wire.close)
        return wire

    def states(self) -> list[State]:
        return [event.state for event in self.events if isinstance(event, StateChanged)]

    def seen(self, state: State) -> int:
        return self.states().count(state)

    def wait(self, condition: Callable[[], bool], seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in time; events: {self.events[-5:]}"
            time.sleep(0.02)

    def channel(self, address: str) -> grpc.Channel:
        return self.stack.enter_context(
            grpc.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 200)])
        )


@pytest.fixture(autouse=True, scope="session")
def _sshd_is_there() -> None:
    try:
        find_sshd()
    except NoSshdError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["paramiko", "openssh"])
def backend(request) -> str:
    if request.param == "openssh" and shutil.which("ssh") is None:
        pytest.skip("There is no ssh on this machine")
    return request.param


@pytest.fixture(scope="session")
def shared_service() -> Iterator[Service]:
    service = Service()
    service.start()
    yield service
    service.stop()


@pytest.fixture
def lab(tmp_path: Path, backend: str, shared_service: Service) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, backend, shared_service, stack)


def _account(shell: str) -> Iterator[Account]:
    if os.getuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("Making a user for password logins takes root and useradd")
    account = Account(f"longarm{secrets.token_hex(4)}", secrets.token_hex(12))
    subprocess.run(["useradd", "--no-create-home", "--shell", shell, account.name], check=True)
    try:
        subprocess.run(["chpasswd"], input=f"{account.name}:{account.password}", text=True, check=True)
        yield account
    finally:
        subprocess.run(["userdel", account.name], check=True, capture_output=True)


@pytest.fixture(scope="session")
def account() -> Iterator[Account]:
    yield from _account("/bin/sh")


@pytest.fixture(scope="session")
def account_with_expired_password() -> Iterator[Account]:
    for account in _account("/bin/sh"):
        subprocess.run(["chage", "--lastday", "0", account.name], check=True)
        yield account


@pytest.fixture(scope="session")
def account_without_shell() -> Iterator[Account]:
    yield from _account("/usr/sbin/nologin")
