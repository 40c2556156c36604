"""A run as systemd sees it: a process of its own, a socket for its notifications, and signals."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longarm_wire import exit_codes
from tests.e2e.conftest import RunningService, Script, recording_arm_environment, recording_arm_script


@pytest.fixture
def script() -> Script:
    return recording_arm_script()


class Supervised:
    """A run, and what it tells its manager."""

    def __init__(self, directory: Path, service: RunningService) -> None:
        self.stuck = directory / "stuck"
        self.pose_file = directory / "pose.json"
        self.log = directory / "run.log"
        self.messages: list[list[str]] = []
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(directory / "notify"))
        self._manager.settimeout(0.1)
        environment = recording_arm_environment(
            directory,
            service,
            NOTIFY_SOCKET=str(directory / "notify"),
            WATCHDOG_USEC="2000000",
            LONGARM_EDGE_SAFETY__POSE_FILE=str(self.pose_file),
        )
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "longarm_edge", "run"], env=environment, cwd=directory, stderr=log
            )

    def listen(self) -> None:
        """Takes what has come since."""
        try:
            while True:
                self.messages.append(self._manager.recv(1000).decode().split("\n"))
        except TimeoutError:
            return

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 45
        while not condition():
            self.listen()
            assert time.monotonic() < deadline, f"{what}; {self.messages}; {self.log.read_text()}"
            assert self.process.poll() is None or condition(), f"{what}; {self.log.read_text()}"

    def told(self, assignment: str) -> int:
        return sum(assignment in message for message in self.messages)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.listen()
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._manager.close()


@pytest.fixture
def run(tmp_path: Path, service: RunningService) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path, service)
    yield supervised
    supervised.close()


def test_a_run_is_ready_when_it_streams_and_says_when_it_ends(run) -> None:
    run.until(lambda: run.told("WATCHDOG=1") > 2, "signs of life")
    assert run.told("READY=1") == 1
    assert run.pose_file.exists()
    before = run.messages[: next(i for i, message in enumerate(run.messages) if "READY=1" in message)]
    assert [message[0] for message in before] == [
        "STATUS=opening a session",
        "STATUS=connecting to the robot",
        "STATUS=waiting for the first chunk",
    ]
    assert all(message[1].startswith("EXTEND_TIMEOUT_USEC=") for message in before)
    assert run.end(signal.SIGTERM) == exit_codes.DONE
    assert run.messages[-1] == ["STOPPING=1", "STATUS=stopped by SIGTERM"]
    assert not run.pose_file.exists(), "the arm was left by rule"


def test_who_is_impatient_at_the_end_changes_no_exit_code(run) -> None:
    """The interpreter takes a second or two to end: the signal killed it, after a run that had gone well."""
    run.until(lambda: run.told("READY=1") == 1, "streaming")
    run.process.send_signal(signal.SIGINT)
    run.until(lambda: "ticks" in run.log.read_text(), "the summary")
    while run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert run.process.returncode == exit_codes.DONE
    assert "stopped by SIGINT" in run.log.read_text().splitlines()[-1]


def test_a_killed_run_leaves_its_start_pose_behind(run) -> None:
    run.until(lambda: run.told("READY=1") == 1, "streaming")
    run.end(signal.SIGKILL)
    assert run.told("STOPPING=1") == 0
    assert json.loads(run.pose_file.read_text())["shoulder_lift.pos"] == pytest.approx(-12, abs=3)


def test_a_stuck_loop_gives_no_sign_of_life_and_ends_with_where_it_stands(run) -> None:
    """The planner and the metrics go on: only the loop itself can vouch for the loop."""
    run.until(lambda: run.told("READY=1") == 1, "streaming")
    run.stuck.touch()
    time.sleep(1)
    run.listen()
    told = run.told("WATCHDOG=1")
    time.sleep(2.5)
    run.listen()
    assert run.told("WATCHDOG=1") == told
    assert run.process.poll() is None
    assert run.end(signal.SIGABRT) == -signal.SIGABRT
    assert "in send_action" in run.log.read_text()
