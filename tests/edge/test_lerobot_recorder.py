"""The recorder's process, in this one: what it does when the disk fills up or fails."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tests.conftest import fill_up

from longarm_edge.frame_pipe import FramePipe, FramePipeError
from longarm_edge.frame_process import CannotGoOnError
from longarm_edge.lerobot_recorder import Recording
from longarm_edge.observer import Executed, Frame
from longarm_edge.robot import RobotReading
from longarm_edge.unfinished import is_unfinished

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def job(tmp_path) -> dict[str, Any]:
    return {
        "root": str(tmp_path / "episodes"),
        "repo_id": "local/episodes",
        "resume": False,
        "video": True,
        "vcodec": "h264",
        "min_free_bytes": 1000,
        "fps": 30,
        "task": "pick",
        "robot_type": "test_arm",
        "state_names": ["a"],
        "action_names": ["a"],
        "cameras": {"front": [48, 64]},
    }


@pytest.fixture
def record(job) -> Callable[..., Recording]:
    return lambda **changes: Recording({**job, **changes})


def finish(recording: Recording, count: int) -> None:
    for tick in range(count):
        recording.add(frame(tick))
    recording.close()


def lengths(root: Path) -> list[int]:
    dataset = LeRobotDataset("local/episodes", root=root, video_backend="pyav")
    found = [episode["length"] for episode in dataset.meta.episodes]
    assert len(dataset) == sum(found)
    dataset[len(dataset) - 1]
    return found


def frame(tick: int) -> Frame:
    done = Executed(tick, tick / 30, (tick + 1) / 30, np.array([tick], np.float32), 1, 0.1, 5)
    image = np.full((48, 64, 3), tick % 256, np.uint8)
    return Frame(done, RobotReading(np.array([tick], np.float32), {"front": image}), None)


def test_a_disk_that_fills_up_ends_the_recording_with_the_episode_saved(record, tmp_path, monkeypatch) -> None:
    recording = record()
    for tick in range(30):
        recording.add(frame(tick))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(CannotGoOnError, match=r"record\.min_free_mb=.*saved: episode 0 of .*, 30 frames"):
        recording.add(frame(30))
    dataset = LeRobotDataset("local/episodes", root=tmp_path / "episodes", video_backend="pyav")
    assert len(dataset) == 30
    assert float(dataset[29]["action"]) == 29


def test_too_few_frames_leave_nothing_behind(record, tmp_path) -> None:
    recording = record()
    recording.add(frame(0))
    assert recording.close() == "nothing: 1 frames are no episode"
    assert not (tmp_path / "episodes").exists()


def test_frames_count_as_kept_only_when_their_episode_is_saved(record) -> None:
    recording = record()
    for tick in range(5):
        recording.add(frame(tick))
    assert recording.kept == 0
    recording.close()
    assert recording.kept == 5


@pytest.mark.parametrize("before", [0, 40])
def test_a_full_disk_takes_the_episode_and_none_before_it(record, small_disk, before: int) -> None:
    """LeRobot counts an episode before its files are whole, and files without a footer make all others unreadable."""
    root = small_disk / "episodes"
    finish(record(root=str(root)), 10)
    recording = record(root=str(root), resume=True, min_free_bytes=0)
    for tick in range(before):
        recording.add(frame(tick))
    fill_up(small_disk)
    with pytest.raises(
        CannotGoOnError, match=r"disk is full.*lost, \d+ frames so far\. The episodes before it are whole"
    ):
        finish(recording, 100)
    assert recording.kept == 0
    (small_disk / "filler").unlink()
    assert lengths(root) == [10]
    assert not is_unfinished(root)
    finish(record(root=str(root), resume=True), 7)
    assert lengths(root) == [10, 7]


def record_and_die(job: dict[str, Any]) -> None:
    """Records as the edge has it done, in a process that is killed meanwhile."""
    taken: list[int] = []
    pipe = FramePipe("longarm_edge.lerobot_recorder", job, 100, on_taken=taken.append)
    pipe.start()
    assert pipe.is_ready(60)
    for tick in range(40):
        pipe.offer(frame(tick))
    deadline = time.monotonic() + 30
    while not taken or taken[-1] < 40:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pipe._process is not None
    os.kill(pipe._process.pid, signal.SIGKILL)
    with pytest.raises(FramePipeError, match="ended with -9"):
        pipe.close(10)
    assert pipe.kept == 0


def test_a_writer_that_is_killed_leaves_the_finished_episodes(record, job, tmp_path) -> None:
    root = tmp_path / "episodes"
    finish(record(), 10)
    (root / "notes.txt").write_text("a person's own")
    record_and_die({**job, "resume": True})
    assert lengths(root) == [10]
    assert is_unfinished(root)
    finish(record(resume=True), 7)
    assert lengths(root) == [10, 7]
    assert not list(root.glob("tmp*"))
    assert (root / "notes.txt").exists()


def test_what_a_killed_writer_has_half_written_is_cleared_up(record, tmp_path) -> None:
    """As if killed in the middle of saving: files without a footer, and an episode counted that is nowhere."""
    root = tmp_path / "episodes"
    finish(record(), 10)
    recording = record(resume=True)
    for tick in range(5):
        recording.add(frame(tick))
    recording._dataset.save_episode()
    with pytest.raises(Exception, match=r"."):
        lengths(root)
    os.close(recording._unfinished._lock)  # as the end of its process would
    again = record(resume=True)
    recording._dataset.finalize()  # what is open is written to files that have no name any more
    finish(again, 7)
    assert lengths(root) == [10, 7]


def test_a_first_recording_that_was_cut_short_leaves_nothing_in_the_way(record, job, tmp_path) -> None:
    record_and_die(job)
    finish(record(resume=True), 7)
    assert lengths(tmp_path / "episodes") == [7]


def test_clearing_up_leaves_what_a_person_has_put_there(record, job, tmp_path) -> None:
    root = tmp_path / "episodes"
    record_and_die(job)
    (root / "notes.txt").write_text("a person's own")
    with pytest.raises(CannotGoOnError, match="no finished episode, and other files are in its way"):
        record(resume=True)
    assert [path.name for path in root.iterdir()] == ["notes.txt"]


def test_two_recorders_never_write_to_one_dataset(record) -> None:
    """A service manager starts the next run at once, and the recorder of the one that was killed may still save."""
    recording = record()
    recording.add(frame(0))
    with pytest.raises(CannotGoOnError, match="another process writes an episode here"):
        record(resume=True)
    finish(recording, 4)
