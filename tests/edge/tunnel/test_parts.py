"""Smaller parts of the tunnel: its near end, pauses, metrics, the key kinds and the question at the terminal."""

import errno
import io
import os
import re
import socket
import stat
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from longarm_edge.backoff import Backoff
from longarm_edge.tunnel import (
    Cause,
    HostKeyQuestion,
    PermanentTunnelError,
    SshSettings,
    State,
    StateChanged,
    ask_on_terminal,
)
from longarm_edge.tunnel.events import EVENT, Order
from longarm_edge.tunnel.keys import load
from longarm_edge.tunnel.link import Link, Route
from longarm_edge.tunnel.local_sshd import make_key
from longarm_edge.tunnel.metrics import TunnelMetrics
from longarm_edge.tunnel.near_end import NearEnd, lead, socket_path
from longarm_edge.tunnel.worker import Worker

QUESTION = HostKeyQuestion(host="[gpu]:1", key_type="ssh-ed25519", fingerprint="SHA256:abc", known_hosts_file="known")


def test_a_local_port_is_held_and_given_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        settings = SshSettings(host="gpu", local_metrics_port=port)
        with pytest.raises(PermanentTunnelError, match="LOCAL_METRICS_PORT"):
            NearEnd(settings)
    with NearEnd(settings), pytest.raises(PermanentTunnelError, match="LOCAL_METRICS_PORT"):
        NearEnd(settings)
    NearEnd(settings).close()


@pytest.mark.parametrize("name", ["x" * 90, "with a space", "100%"])
def test_sockets_lie_where_only_this_user_reaches_them_and_every_notation_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = tmp_path / name
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with NearEnd(SshSettings(host="gpu", service_port=65535)) as near_end:
        path = socket_path(near_end.directory, 65535)
        assert re.fullmatch(r"[\w./-]{1,100}", path)
        assert stat.S_IMODE(Path(near_end.directory).stat().st_mode) == 0o700
    assert not Path(near_end.directory).exists()


def test_no_place_for_a_socket_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(PermanentTunnelError, match="TMPDIR"):
        NearEnd(SshSettings(host="gpu"))


def test_no_temporary_directory_at_all_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container whose file systems are all for reading."""

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(PermanentTunnelError, match=r"No usable temporary directory.*TMPDIR"):
        NearEnd(SshSettings(host="gpu"))


def test_a_machine_that_is_out_of_something_says_what_and_the_tunnel_goes_on(tmp_path: Path) -> None:
    """Another user who fills /tmp, say: ssh's configuration is written there."""
    said = io.StringIO()

    def connect(_: Route) -> Link:
        if State.DOWN in said.getvalue():
            worker.stop()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/config")

    settings = SshSettings(host="gpu").to_json()
    order = Order(settings=settings, directory=str(tmp_path), ports={}, interactive=False, was_up=False)
    worker = Worker(order, connect, said)
    assert worker.run() == 0
    (down,) = [event for event in map(EVENT.validate_json, said.getvalue().splitlines()) if event.state is State.DOWN]
    assert "No space left on device (/tmp/config)" in down.message


def test_a_port_outlives_a_lack_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    lacking = threading.Event()

    def start_if_there_is_room(thread: threading.Thread) -> None:
        if lacking.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)
    path = str(tmp_path / "far")
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as far:
        far.bind(path)
        far.listen()
        lead(port, path)
        lacking.set()
        with socket.create_connection(port.getsockname()) as refused:
            refused.settimeout(10)
            assert refused.recv(1) == b""
        lacking.clear()
        with socket.create_connection(port.getsockname()):
            far.settimeout(10)
            far.accept()[0].close()


def test_pauses_double_up_to_the_cap() -> None:
    backoff = Backoff(first=0.1, cap=1.0)
    pauses = [backoff.next() for _ in range(8)]
    for pause, limit in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0), strict=True):
        assert limit / 2 <= pause <= limit
    backoff.reset()
    assert backoff.next() <= 0.1


def test_every_label_exports_zero_from_the_start() -> None:
    registry = CollectorRegistry()
    TunnelMetrics(registry)
    prefix = "longarm_edge_tunnel"
    assert registry.get_sample_value(f"{prefix}_up") == 0
    for cause in Cause:
        assert registry.get_sample_value(f"{prefix}_reconnects_total", {"reason": cause}) == 0
        assert registry.get_sample_value(f"{prefix}_connect_failures_total", {"reason": cause}) == 0
    for state in State:
        assert registry.get_sample_value(f"{prefix}_state", {"state": state}) == 0


def test_a_lost_link_is_a_reconnect_and_a_failed_attempt_is_not() -> None:
    registry = CollectorRegistry()
    metrics = TunnelMetrics(registry)
    for state, cause in (
        (State.CONNECTING, None),
        (State.UP, None),
        (State.DOWN, Cause.SILENT),
        (State.CONNECTING, Cause.SILENT),
        (State.DOWN, Cause.TCP),
        (State.CONNECTING, Cause.TCP),
        (State.WAITING, Cause.SERVICE),
    ):
        metrics(StateChanged(state=state, cause=cause))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"longarm_edge_tunnel_{name}", labels)

    assert value("reconnects_total", reason="silent") == 1
    assert value("reconnects_total", reason="tcp") == 0
    assert value("connect_failures_total", reason="tcp") == 1
    assert value("connect_attempts_total") == 3
    assert value("state", state="waiting") == 1
    assert value("state", state="down") == 0
    assert value("up") == 0


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_of_every_kind_load_with_and_without_passphrase(tmp_path: Path, kind: str) -> None:
    assert load(make_key(tmp_path / "plain", kind=kind), "").get_fingerprint()
    assert load(tmp_path / "plain", "not needed").get_fingerprint()
    locked = make_key(tmp_path / "locked", kind=kind, passphrase="open sesame")
    assert load(locked, "open sesame").get_fingerprint()
    with pytest.raises(PermanentTunnelError, match="is wrong"):
        load(locked, "close sesame")


@pytest.mark.parametrize(
    ("typed", "trusted"), [("yes\n", True), ("YES \n", True), ("no\n", False), ("y\nyes\n", True), ("", False)]
)
def test_only_a_clear_yes_is_a_yes(monkeypatch: pytest.MonkeyPatch, capsys, typed: str, trusted: bool) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert ask_on_terminal(QUESTION) is trusted
    shown = capsys.readouterr().err
    assert "SHA256:abc" in shown
    assert "[gpu]:1" in shown
