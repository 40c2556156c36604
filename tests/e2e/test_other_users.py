"""Somebody else on the robot's laptop: does not take the service's place, is shown nothing and moves nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from longarm_edge.link import LinkState
from longarm_edge.metrics import Observation, Tick
from longarm_edge.run import Run
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


def and_stop(meanwhile: Callable[[Run], None]) -> Callable[[Run], None]:
    """Returns meanwhile, followed by the end of the run however it went."""

    def both(run: Run) -> None:
        try:
            meanwhile(run)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    return both


def went(arm) -> set[float]:
    return {position for _, pose in arm.commands for position in pose}


def test_what_takes_the_place_of_a_service_without_a_tunnel_is_not_believed(edge, service, arm) -> None:
    """It is asked, and cannot know the secret that the service told at the opening of the session."""
    e = edge(duration=0)
    reports, rejected = [], lambda run: run.trace.observation_counts[Observation.REJECTED]

    def swap(run: Run) -> None:
        until(lambda: run.trace.tick_counts[Tick.ACTION] > 20, "streaming")
        service.stop()
        with another_user(service.address) as report:
            reports.append(report)
            until(lambda: rejected(run) > 1, "it was asked")
            until(lambda: run.trace.tick_counts[Tick.IDLE] > 10, "the queue is empty")
            assert run.link_state() is LinkState.STALLED
        service.start()
        moved = len(arm.commands)
        until(lambda: len(arm.commands) > moved + 10, "streaming again")

    result = e.go(and_stop(swap))
    assert result.exit_code == exit_codes.DONE
    assert reports[0]["predictions"] > 1
    assert intruder.WHERE_TO not in went(arm)


def test_nothing_is_asked_while_something_is_in_the_way(edge, script, arm) -> None:
    """A tunnel that is not up, say: whoever answers then need not be the service."""
    e = edge(duration=0)
    hindrance = [""]
    e.run._hindrance = lambda: hindrance[0]

    def block(run: Run) -> None:
        until(lambda: run.trace.tick_counts[Tick.ACTION] > 20, "streaming")
        hindrance[0] = "the bridge is up"
        until(lambda: run.trace.tick_counts[Tick.IDLE] > 0, "the queue is empty")
        asked = script.predictions
        until(lambda: run.trace.tick_counts[Tick.IDLE] > 10, "it goes on without")
        assert script.predictions == asked
        assert run.link_state() is LinkState.RECONNECTING
        hindrance[0] = ""
        until(lambda: script.predictions > asked + 1, "it asks again")

    assert e.go(and_stop(block)).exit_code == exit_codes.DONE


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
            until(lambda: len(arm.commands) > held + 10, "streaming again")

    result = e.go(and_stop(outage))
    assert result.exit_code == exit_codes.DONE
    # What was asked for is open to all, and nobody else's to have
    ports = [f"127.0.0.1:{port}", f"127.0.0.1:{metrics_port}"]
    assert reports == [{"reached": ports, "taken": [], "predictions": 0}]
    assert intruder.WHERE_TO not in went(arm)
