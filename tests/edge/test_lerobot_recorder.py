"""The recorder's process, in this one: what it does when the disk fills up or fails."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from longarm_edge.frame_process import CannotGoOnError
from longarm_edge.lerobot_recorder import Recording
from longarm_edge.observer import Executed, Frame
from longarm_edge.robot import RobotReading

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def record(tmp_path) -> Callable[[], Recording]:
    job = {
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
    return lambda: Recording(job)


def frame(tick: int) -> Frame:
    done = Executed(tick, tick / 30, (tick + 1) / 30, np.array([tick], np.float32), 1, 0.1, 5)
    image = np.full((48, 64, 3), tick, np.uint8)
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


def test_a_write_that_fails_is_an_error_and_not_a_gap(record, monkeypatch) -> None:
    recording = record()

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording._dataset, "add_frame", full)
    with pytest.raises(OSError, match="No space left"):
        recording.add(frame(0))
