"""A recorded run that is killed, as a process of its own: what is left on the disk, and of processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from longarm_edge.unfinished import is_unfinished
from longarm_wire import exit_codes
from tests.e2e.conftest import RunningService, Script, recording_arm_environment, recording_arm_script

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def script() -> Script:
    return recording_arm_script()


@pytest.fixture
def record(tmp_path: Path, service: RunningService) -> Callable[..., "subprocess.Popen[bytes]"]:
    """Starts a run that records into tmp_path/episodes."""
    environment = recording_arm_environment(tmp_path, service, LONGARM_EDGE_RECORD__MIN_FREE_MB="0")
    command = [sys.executable, "-m", "longarm_edge", "run", "--record", str(tmp_path / "episodes")]

    def start(*flags: str) -> "subprocess.Popen[bytes]":
        with (tmp_path / "run.log").open("w") as log:
            return subprocess.Popen([*command, *flags], env=environment, cwd=tmp_path, stderr=log, stdout=log)

    return start


def until(condition: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, f"{what}: {log.read_text()}"
        time.sleep(0.05)


def writer_of(run: "subprocess.Popen[bytes]") -> int:
    """Returns the id of the recorder's process."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == run.pid and b"longarm_edge.lerobot_recorder" in (path / "cmdline").read_bytes():
                return int(path.name)
        except OSError:  # it has ended meanwhile
            continue
    raise AssertionError("there is no recorder")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def lengths(root: Path) -> list[int]:
    dataset = LeRobotDataset("local/episodes", root=root, video_backend="pyav")
    dataset[len(dataset) - 1]
    return [episode["length"] for episode in dataset.meta.episodes]


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes by /proc")
def test_a_killed_run_leaves_a_whole_dataset_and_no_process(record, tmp_path) -> None:
    """First the edge alone is killed, then everything at once, as a service manager ends what does not stop."""
    root, log = tmp_path / "episodes", tmp_path / "run.log"

    def is_recording() -> bool:
        return any(path.stat().st_size for path in root.glob("tmp*/*front*.mp4"))

    run = record()
    until(is_recording, "a first frame", log)
    time.sleep(1)
    writer = writer_of(run)
    run.kill()
    run.wait()
    until(lambda: not is_alive(writer), "the recorder ends by itself", log)
    (first,) = lengths(root)
    assert first > 5
    assert not is_unfinished(root)

    run = record("--record.resume")
    until(is_recording, "a frame of the second run", log)
    writer = writer_of(run)
    os.kill(writer, signal.SIGKILL)
    run.kill()
    run.wait()
    assert lengths(root) == [first], "what was finished can be read without any repair"

    run = record()
    assert run.wait(60) == exit_codes.CANNOT_START
    assert "holds an episode that was cut short" in log.read_text()
    assert "--record.resume removes that episode" in log.read_text().replace("\n", " ")

    run = record("--record.resume", "--duration=2")
    assert run.wait(90) == exit_codes.DONE, log.read_text()
    assert lengths(root)[0] == first
    assert len(lengths(root)) == 2
    assert not list(root.glob("tmp*"))
