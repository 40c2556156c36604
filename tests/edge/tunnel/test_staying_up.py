"""What a tunnel lives through: lost links, silence, restarts, deaths. Its near end stays, and nothing piles up."""

import contextlib
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import paramiko
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from longarm_edge.tunnel import Cause, Probed, State, StateChanged, TunnelError, paramiko_link
from longarm_edge.tunnel.host_keys import HostKeys
from longarm_edge.tunnel.link import Route
from longarm_edge.tunnel.local_sshd import descendants
from longarm_edge.tunnel.metrics import TunnelMetrics
from longarm_edge.tunnel.near_end import NearEnd, socket_path


def check(channel, timeout: float = 10):
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout, wait_for_ready=True)


def losses(lab) -> list[Cause | None]:
    return [event.cause for event in lab.events if isinstance(event, StateChanged) and event.state is State.DOWN]


def tunnel_processes() -> list[int]:
    """Returns the process ids of the tunnels of this process, the oldest first."""
    found = []
    for process_id in descendants(os.getpid()):
        # What ssh runs to ask its questions comes and goes
        with contextlib.suppress(OSError):
            if b"longarm_edge.tunnel" in Path(f"/proc/{process_id}/cmdline").read_bytes():
                found.append(process_id)
    return sorted(found)


def test_a_channel_resumes_when_sshd_is_back(lab) -> None:
    sshd = lab.sshd()
    tunnel = lab.up(lab.settings(sshd))
    channel = lab.channel(tunnel.address)
    check(channel)
    sshd.stop()
    lab.wait(lambda: Cause.TCP in losses(lab))
    assert tunnel.state is not State.UP
    sshd.start()
    started = time.monotonic()
    check(channel)
    assert time.monotonic() - started < 5
    lab.wait(lambda: tunnel.state is State.UP)
    assert losses(lab)[0] is Cause.CLOSED


def test_a_silent_link_is_found_out(lab) -> None:
    """A link that dies without a word looks alive to TCP for minutes. The robot would stand still as long."""
    sshd = lab.sshd()
    wire = lab.wire(sshd)
    tunnel = lab.up(lab.settings(sshd, port=wire.port, known_hosts_file=lab.known_hosts(sshd, port=wire.port)))
    wire.silent.set()
    started = time.monotonic()
    lab.wait(lambda: tunnel.state is not State.UP or losses(lab))
    lab.wait(lambda: bool(losses(lab)))
    assert losses(lab)[0] is Cause.SILENT
    # The timeout of 2 s, plus the second between two signs of life, plus what ssh rounds
    assert time.monotonic() - started < 4.5
    wire.silent.clear()
    lab.wait(lambda: tunnel.state is State.UP)


def test_a_silent_link_through_a_jump_host_is_found_out(lab, tmp_path: Path) -> None:
    """Nobody but the two ends can see what comes in."""
    jump, target = lab.sshd("jump"), lab.sshd("target")
    jump.authorized_keys.write_text(target.client_key.with_suffix(".pub").read_text())
    wire = lab.wire(jump)
    config = tmp_path / "config"
    config.write_text(
        f"Host gpu\n  HostName 127.0.0.1\n  ProxyJump gate\n"
        f"Host gate\n  HostName 127.0.0.1\n  Port {wire.port}\n  IdentityFile {target.client_key}\n"
    )
    known = lab.known_hosts(jump, target)
    known.write_text(known.read_text().replace(f":{jump.port} ", f":{wire.port} "))
    lab.up(lab.settings(target, host="gpu", config_file=config, known_hosts_file=known))
    time.sleep(1)
    wire.silent.set()
    lab.wait(lambda: bool(losses(lab)), seconds=10)  # ssh by itself would take 15
    assert losses(lab)[0] is Cause.SILENT


def test_a_process_that_cannot_be_started_is_tried_again(lab) -> None:
    tunnel = lab.up(lab.settings(lab.sshd()))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    (process_id,) = tunnel_processes()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        os.kill(process_id, signal.SIGKILL)
        lab.wait(lambda: "could not be run" in tunnel.message)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    lab.wait(lambda: tunnel.state is State.UP)


def test_a_service_that_comes_later(lab, shared_service) -> None:
    late = type(shared_service)()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        late.port = probe.getsockname()[1]
    tunnel = lab.tunnel(lab.settings(lab.sshd(), service_port=late.port))
    with pytest.raises(TunnelError):
        tunnel.open(0.01)
    lab.wait(lambda: tunnel.state is State.WAITING)
    with pytest.raises(TunnelError, match="no policy service answers") as caught:
        tunnel.open(0.01)
    assert caught.value.cause is Cause.SERVICE
    late.start()
    try:
        tunnel.open(5)
        late.stop()
        lab.wait(lambda: tunnel.state is State.WAITING)
        assert not losses(lab)
    finally:
        late.stop()


def test_a_refused_metrics_connection_does_not_mark_the_service(lab) -> None:
    """ssh uses the number of a channel again, and what it said of the one before is over with that one."""
    accepted = []

    def hang_up(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                accepted.append(connection.close())

    with socket.create_server(("127.0.0.1", 0)) as service:
        threading.Thread(target=hang_up, args=(service,), daemon=True).start()
        port, metrics_port = service.getsockname()[1], free_port()
        sshd = lab.sshd(options=[f"PermitOpen 127.0.0.1:{port}"])
        tunnel = lab.tunnel(lab.settings(sshd, service_port=port, local_metrics_port=metrics_port))
        with pytest.raises(TunnelError):
            tunnel.open(0.01)
        lab.wait(lambda: tunnel.state is State.WAITING)
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", metrics_port)) as scraper:
                assert scraper.recv(1) == b""
        seen = len(accepted)
        lab.wait(lambda: len(accepted) > seen + 3 or tunnel.failure is not None)
    assert tunnel.failure is None
    assert not losses(lab)


def test_a_login_that_is_refused_for_a_while_does_not_end_a_tunnel_that_was_up(lab) -> None:
    """A machine that boots: sshd is there before the disk with the keys."""
    sshd = lab.sshd()
    tunnel = lab.up(lab.settings(sshd))
    keys = sshd.authorized_keys.read_text()
    sshd.authorized_keys.write_text("")
    sshd.drop_connections()
    lab.wait(lambda: losses(lab).count(Cause.AUTHENTICATION) > 1)
    assert tunnel.failure is None
    sshd.authorized_keys.write_text(keys)
    lab.wait(lambda: tunnel.state is State.UP)


def test_a_process_that_is_started_again_remembers_that_the_tunnel_was_up(lab) -> None:
    sshd = lab.sshd()
    tunnel = lab.up(lab.settings(sshd))
    sshd.authorized_keys.write_text("")
    os.kill(tunnel_processes()[0], signal.SIGKILL)
    lab.wait(lambda: Cause.AUTHENTICATION in losses(lab))
    assert tunnel.failure is None


def test_the_process_is_started_again_at_the_same_address(lab) -> None:
    tunnel = lab.up(lab.settings(lab.sshd()))
    channel = lab.channel(tunnel.address)
    check(channel)
    (before,) = tunnel_processes()
    os.kill(before, signal.SIGKILL)
    lab.wait(lambda: lab.seen(State.UP) == 2)
    check(channel)
    assert losses(lab)[0] is Cause.PROCESS
    assert tunnel_processes() != [before]


def test_a_close_leaves_nothing_behind(lab) -> None:
    threads = threading.active_count()
    sshd = lab.sshd()
    others = set(descendants(os.getpid()))
    tunnel = lab.up(lab.settings(sshd))
    tunnel.close()
    tunnel.close()
    lab.wait(lambda: set(descendants(os.getpid())) <= others | set(sshd.process_ids()))
    assert threading.active_count() == threads
    assert tunnel.state is State.CLOSED
    assert not Path(tunnel.address.removeprefix("unix:")).parent.exists()


def test_a_close_while_it_connects_leaves_nothing_behind(lab, tmp_path: Path, monkeypatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        tunnel = lab.tunnel(lab.settings(lab.sshd(), port=mute.getsockname()[1], connect_timeout=60))
        with pytest.raises(TunnelError):
            tunnel.open(0.01)
        mute.settimeout(10)
        connection, _ = mute.accept()
        below = tunnel_processes()
        tunnel.close()
        connection.close()
    assert not [process_id for process_id in below if alive(process_id)]
    assert not list(temporary.iterdir())


OPEN_AND_STAY = """
import json, sys, threading
from longarm_edge.tunnel import SshSettings, Tunnel

tunnel = Tunnel(SshSettings(**json.loads(sys.argv[1])))
tunnel.open(20)
print(tunnel.address, flush=True)
threading.Event().wait()
"""


def test_a_killed_parent_takes_everything_along(lab) -> None:
    settings = lab.settings(lab.sshd()).model_dump_json()
    with subprocess.Popen([sys.executable, "-c", OPEN_AND_STAY, settings], stdout=subprocess.PIPE, text=True) as parent:
        address = parent.stdout.readline().strip()
        below = descendants(parent.pid)
        assert len(below) == (1 if lab.backend == "paramiko" else 2)
        parent.kill()
    lab.wait(lambda: not [process_id for process_id in below if alive(process_id)], seconds=5)
    assert not Path(address.removeprefix("unix:")).parent.exists()


def alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def held(process_id: int) -> tuple[int, int, int]:
    """Returns the threads, descriptors and children that a process has."""
    folder = Path(f"/proc/{process_id}")
    threads, descriptors = (sum(1 for _ in (folder / name).iterdir()) for name in ("task", "fd"))
    return threads, descriptors, len(descendants(process_id))


@pytest.mark.parametrize("backend", ["both"])
def test_fifty_reconnects_pile_nothing_up(lab) -> None:
    """Both backends at once, on one sshd: it is the longest test there is."""
    sshd = lab.sshd()
    started = []
    seen = {}
    for backend in ("paramiko", "openssh"):
        seen[backend] = []
        lab.up(lab.settings(sshd, backend=backend, reconnect_cap=0.05), observers=(seen[backend].append,))
        started += [process_id for process_id in tunnel_processes() if process_id not in started]

    def ups() -> list[int]:
        return [sum(getattr(e, "state", None) is State.UP for e in events) for events in seen.values()]

    def reconnect(times: int) -> None:
        for _ in range(times):
            before = ups()
            sshd.drop_connections()
            lab.wait(lambda before=before: all(b > a for a, b in zip(before, ups(), strict=True)))

    def settled() -> list[tuple[int, int, int]]:
        # The least of some readings: what is on its way out is counted once it is out
        readings = []
        for _ in range(10):
            readings.append([held(process_id) for process_id in (*started, os.getpid())])
            time.sleep(0.05)
        return [tuple(map(min, zip(*process, strict=True))) for process in zip(*readings, strict=True)]

    reconnect(3)
    early = settled()
    reconnect(47)
    late = settled()
    for before, after in zip(early, late, strict=True):
        assert all(b - a <= 2 for a, b in zip(before, after, strict=True)), f"{early} became {late}"
    assert tunnel_processes() == started


def test_connections_that_end_in_the_middle_cost_nobody_the_link(lab) -> None:
    """Any user of this machine can make them at a port that was asked for, and gRPC does when it loses patience."""
    tunnel = lab.up(lab.settings(lab.sshd(), local_port=(port := free_port())))
    until = time.monotonic() + 4

    def talk_nonsense() -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                for _ in range(200):
                    connection.sendall(bytes(3000))

    talkers = [threading.Thread(target=talk_nonsense) for _ in range(8)]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join()
    check(lab.channel(tunnel.address))
    assert losses(lab) == []


def test_large_requests_do_not_wait_for_acknowledgements(lab) -> None:
    """Nagle against delayed acknowledgements costs 44 ms per round trip on a tunnel that is left as it comes."""
    tunnel = lab.up(lab.settings(lab.sshd()))
    echo = lab.channel(tunnel.address).unary_unary("/test.Echo/Echo")
    request = bytes(60_000)

    def round_trip() -> float:
        started = time.monotonic()
        echo(request, timeout=5, wait_for_ready=True)
        return time.monotonic() - started

    round_trips = [round_trip() for _ in range(25)]
    assert statistics.median(round_trips[5:]) < 0.02


def test_forwarding_does_not_wait_for_the_far_sides_prompt(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What turns Nagle's algorithm off takes two round trips, for which an arm would stand still after an outage."""
    if lab.backend != "paramiko":
        pytest.skip("ssh forwards and asks for a terminal at a time")
    let_go = threading.Event()
    open_session = paramiko.Transport.open_session

    def late(*arguments, **how):
        assert let_go.wait(20)
        return open_session(*arguments, **how)

    monkeypatch.setattr(paramiko.Transport, "open_session", late)
    settings = lab.settings(lab.sshd())
    near_end = lab.stack.enter_context(NearEnd(settings))
    paths = {socket_path(near_end.directory, port): port for port in settings.forwards}
    with contextlib.closing(paramiko_link.connect(Route(settings, paths, HostKeys(settings, None)))):
        try:
            check(lab.channel(f"unix:{next(iter(paths))}"))
        finally:
            let_go.set()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_metrics_tell_what_happened(lab) -> None:
    registry = CollectorRegistry()
    sshd = lab.sshd()
    lab.up(lab.settings(sshd), observers=(TunnelMetrics(registry),))

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"longarm_edge_tunnel_{name}", labels)

    assert value("up") == 1
    assert value("state", state="up") == 1
    sshd.stop()
    lab.wait(lambda: value("connect_failures_total", reason="tcp") > 0)
    assert value("up") == 0
    assert value("reconnects_total", reason="closed") == 1
    sshd.start()
    lab.wait(lambda: value("up") == 1)
    lab.wait(lambda: value("round_trip_seconds_count") > 1)
    assert value("sent_bytes_total") > 1000
    assert value("received_bytes_total") > 1000
    assert value("reconnects_total", reason="silent") == 0
    assert all(event.round_trip_seconds < 2 for event in lab.events if isinstance(event, Probed))
