"""Somebody else on the robot's laptop: takes no place of the service's, is shown nothing and moves nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from longarm_edge.link import LinkState
from longarm_edge.metrics import Tick
from longarm_edge.run import Run
from longarm_edge.tunnel.local_sshd import LocalSshd, NoSshdError
from longarm_edge.tunnel.settings import Backend
from longarm_wire import exit_codes
from tests.e2e import intruder
from tests.e2e.conftest import until


@contextmanager
def another_user(*addresses: str) -> Iterator[dict]:
    """Lets another user of this machine loose on addresses, and tells at the end what came of it."""
    report = {}
    with subprocess.Popen(
        [sys.executable, intruder.__file__, *addresses],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    ) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield report
        finally:
            process.stdin.close()
            report.update(json.loads(process.stdout.readline()))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def sshd(tmp_path):
    try:
        server = LocalSshd(tmp_path / "sshd")
    except NoSshdError as reason:
        pytest.skip(str(reason))
    with server:
        yield server


def went(arm) -> set[float]:
    return {position for _, pose in arm.commands for position in pose}


@pytest.mark.skipif(os.getuid() != 0, reason="Only root can be somebody else")
@pytest.mark.parametrize("backend", Backend)
def test_nobody_takes_the_place_of_a_tunnel_that_is_down(edge, sshd, service, arm, backend: Backend) -> None:
    port, metrics_port = free_port(), free_port()
    ssh = sshd.settings(service_port=service.port, backend=backend, local_port=port, local_metrics_port=metrics_port)
    e = edge(ssh=ssh, duration=0, connect_timeout=20.0)
    reports = []

    def outage(run: Run) -> None:
        until(lambda: run.trace.tick_counts[Tick.ACTION] > 20, "streaming")
        with another_user(run.tunnel.address, f"127.0.0.1:{port}", f"127.0.0.1:{metrics_port}") as report:
            reports.append(report)
            sshd.stop()
            until(lambda: run.trace.tick_counts[Tick.IDLE] > 10, "the queue is empty")
            held = len(arm.commands)
            time.sleep(1.5)
            assert len(arm.commands) == held
            assert run.link_state() is not LinkState.STREAMING
            sshd.start()
            until(lambda: len(arm.commands) > held + 10, "streaming again", timeout=20)
        os.kill(os.getpid(), signal.SIGINT)

    result = e.go(outage)
    assert result.exit_code == exit_codes.DONE
    assert reports == [{"taken": [], "predictions": 0}]
    assert intruder.WHERE_TO not in went(arm)
