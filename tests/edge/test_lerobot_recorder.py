"""The recorder's process, in this one: what it does when the disk fills up or fails."""

import json
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
        "episode_frames": 0,
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


@pytest.mark.parametrize(
    ("video", "count", "expected"),
    [
        (True, 35, [10, 10, 10, 5]),
        (True, 30, [10, 10, 10]),
        (True, 21, [10, 11]),
        (True, 5, [5]),
        (False, 25, [10, 10, 5]),
    ],
)
def test_a_long_recording_is_cut_into_episodes_and_loses_no_frame(
    record, tmp_path, video: bool, count: int, expected: list[int]
) -> None:
    recording = record(episode_frames=10, video=video)
    saved = []
    for tick in range(count):
        recording.add(frame(tick))
        saved.append(recording.kept)
        assert recording._dataset.writer.episode_buffer["size"] <= 10, "no more than an episode is in memory"
    last = len(expected) - 1
    episodes = f"episodes 0 to {last}" if last else "episode 0"
    assert recording.close() == f"{episodes} of {tmp_path / 'episodes'}, {count} frames"
    assert recording.kept == count
    assert saved[-1] == sum(expected[:-1]), "each episode is saved as soon as it is over"
    assert lengths(tmp_path / "episodes") == expected
    dataset = LeRobotDataset("local/episodes", root=tmp_path / "episodes", video_backend="pyav")
    assert [int(tick) for tick in dataset.hf_dataset["longarm.tick"]] == list(range(count))
    for index in (0, count - 1):
        image = dataset[index]["observation.images.front"]
        assert float(image.mean()) * 255 == pytest.approx(index, abs=3)


def test_episodes_are_added_to_those_of_earlier_runs(record, tmp_path) -> None:
    root = tmp_path / "episodes"
    finish(record(), 7)
    info = json.loads((root / "meta/info.json").read_text())
    finish(record(resume=True, episode_frames=10), 25)
    finish(record(resume=True), 12)
    assert lengths(root) == [7, 10, 10, 5, 12]
    after = json.loads((root / "meta/info.json").read_text())
    changed = {key for key in info if info[key] != after[key]}
    assert changed == {"total_episodes", "total_frames", "splits"}, "how large LeRobot's files may be is not for us"


def test_a_full_disk_takes_one_episode_of_a_long_recording(record, small_disk) -> None:
    root = small_disk / "episodes"
    recording = record(root=str(root), episode_frames=10, min_free_bytes=0)
    for tick in range(25):
        recording.add(frame(tick))
    fill_up(small_disk)
    with pytest.raises(
        CannotGoOnError, match=r"the episode is lost, \d+ frames so far\. The episodes before it are whole"
    ):
        finish(recording, 100)
    (small_disk / "filler").unlink()
    assert lengths(root) == [10] * (recording.kept // 10)
    assert recording.kept >= 20
    assert not is_unfinished(root)


def test_an_episode_that_cannot_be_begun_takes_none_before_it(record, tmp_path, monkeypatch) -> None:
    recording = record(episode_frames=10)
    for tick in range(11):
        recording.add(frame(tick))

    def full(_from: Path, _to: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(CannotGoOnError, match=r"The episodes before it are whole.*No space left"):
        recording.add(frame(11))
    monkeypatch.undo()
    assert recording.kept == 10
    assert lengths(tmp_path / "episodes") == [10]
    assert not is_unfinished(tmp_path / "episodes")


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


def record_and_die(job: dict[str, Any]) -> int:
    """Records 40 frames as the edge has it done, in a process that is killed then. Returns how many it had saved."""
    taken: list[int] = []
    pipe = FramePipe("longarm_edge.lerobot_recorder", job, 100, on_progress=lambda count, _: taken.append(count))
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
    return pipe.kept


def test_a_writer_that_is_killed_leaves_the_finished_episodes(record, job, tmp_path) -> None:
    root = tmp_path / "episodes"
    finish(record(), 10)
    (root / "notes.txt").write_text("a person's own")
    assert record_and_die({**job, "resume": True}) == 0
    assert lengths(root) == [10]
    assert is_unfinished(root)
    finish(record(resume=True), 7)
    assert lengths(root) == [10, 7]
    assert not list(root.glob("tmp*"))
    assert (root / "notes.txt").exists()


def test_a_writer_that_is_killed_takes_one_episode_of_a_long_recording(record, job, tmp_path) -> None:
    root = tmp_path / "episodes"
    assert record_and_die({**job, "episode_frames": 15}) == 30
    assert lengths(root) == [15, 15], "can be read without any repair"
    finish(record(resume=True), 7)
    assert lengths(root) == [15, 15, 7]


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
