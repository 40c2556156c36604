"""How a service with policies in processes of their own ends: by signals, with what it cannot do without, and stuck."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service.fakes import CHUNK_SIZE, PATIENCE_SECONDS, observation, open_session, opening
from tests.service.test_cli import Process
from tests.service.test_processes import await_that, is_gone

from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_wire import exit_codes

PROGRAM = "tests.service.serve_far"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    started = Process(tmp_path, "--preload=policy", "--drain_timeout=15", program=PROGRAM)
    yield started
    if started.process.poll() is None:
        started.process.kill()
    started.process.communicate()


def descendants(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    children = [int(line) for line in found.stdout.split()]
    return [*children, *(pid for child in children for pid in descendants(child))]


def all_of(process: Process) -> list[int]:
    """Returns what the processes are forked from and at least one of them, once they are there."""
    await_that(lambda: len(descendants(process.process.pid)) >= 2)
    return descendants(process.process.pid)


def test_nothing_outlives_a_service_that_is_killed(process: Process) -> None:
    """Not even who holds its interpreter: it would keep the GPU's memory for ever."""
    with process.connect() as channel:
        hanging = pb_grpc.PolicyServiceStub(channel).OpenSession(opening("hangs"))
        assert next(hanging).HasField("progress")
        left = all_of(process)
        assert len(left) >= 3
        process.process.kill()
        await_that(lambda: all(map(is_gone, left)))


def test_nothing_outlives_a_service_that_is_stopped(process: Process) -> None:
    with process.connect() as channel:
        hanging = pb_grpc.PolicyServiceStub(channel).OpenSession(opening("hangs"))
        assert next(hanging).HasField("progress")
        left = all_of(process)
        process.process.send_signal(signal.SIGTERM)
        assert process.end()[0] == exit_codes.DONE
        await_that(lambda: all(map(is_gone, left)))


def test_a_signal_to_all_processes_lets_the_running_prediction_be_answered(process: Process) -> None:
    """systemd sends SIGTERM to the whole service, and Ctrl-C comes to all of a terminal."""
    with process.connect() as channel:
        stub = pb_grpc.PolicyServiceStub(channel)
        running = stub.PredictChunk.future(observation(open_session(stub), task="take long"))
        time.sleep(0.5)
        for number in (signal.SIGINT, signal.SIGTERM):
            for pid in all_of(process):
                os.kill(pid, number)
        process.process.send_signal(signal.SIGTERM)
        assert running.result(PATIENCE_SECONDS).step_count == CHUNK_SIZE
    code, log = process.end()
    assert code == exit_codes.DONE, log


def test_a_service_that_can_load_nothing_any_more_ends_to_be_started_anew(process: Process) -> None:
    with process.connect():
        _, *_ = left = all_of(process)
        os.kill(left[0], signal.SIGKILL)
        code, log = process.end()
    assert code == exit_codes.FAILED, log
    assert "The program that makes a process for each policy ended." in log
    await_that(lambda: all(map(is_gone, left)))


def test_a_service_whose_policy_does_not_load_again_ends_to_be_started_anew(tmp_path: Path) -> None:
    process = Process(tmp_path, f"--preload=once {tmp_path / 'loaded'}", program=PROGRAM)
    with process.connect():
        os.kill(all_of(process)[1], signal.SIGKILL)
        code, log = process.end()
    assert code == exit_codes.FAILED, log
    assert "does not load again" in log


@pytest.mark.parametrize("name", ["killed", "crashes", "hangs"])
def test_a_start_that_memory_or_a_crash_ended_may_be_tried_again(tmp_path: Path, name: str) -> None:
    """A supervisor gives up on a service that can never start as configured; this one may."""
    code, log = Process(tmp_path, f"--preload={name}", "--load_timeout=2", program=PROGRAM).end()
    assert code == exit_codes.FAILED, log
    assert f"POLICY_LOAD_FAILED: Loading '{name}' failed. Its process" in log


STUCK = """
import asyncio, time
from longarm_service import cli
cli.STUCK_SECONDS = 0.5
async def main():
    watching = asyncio.create_task(cli._watch_the_loop())
    await asyncio.sleep(1)
    print("lives", flush=True)
    {then}
    watching.cancel()
asyncio.run(main())
time.sleep(1)
print("ends", flush=True)
"""


@pytest.mark.parametrize(
    ("then", "code", "said"),
    [
        ("time.sleep(60)", exit_codes.FAILED, "lives\n"),
        ("import re; re.match('(a+)+$', 60 * 'a' + 'b')", exit_codes.FAILED, "lives\n"),
        ("await asyncio.sleep(1)", exit_codes.DONE, "lives\nends\n"),
    ],
)
def test_an_event_loop_that_stands_still_ends_the_service(then: str, code: int, said: str) -> None:
    """Even when something holds the interpreter. Health would never be asked again, and nobody would know."""
    found = subprocess.run(
        [sys.executable, "-c", STUCK.format(then=then)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (found.returncode, found.stdout) == (code, said), found.stderr
    assert ("Timeout" in found.stderr and "in main" in found.stderr) == (code == exit_codes.FAILED)
