"""The recorder's process: writes frames as episodes of a LeRobotDataset, with LeRobot's own writer."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import dataset_writer
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from longarm_edge.frame_process import CannotGoOnError, serve
from longarm_edge.observer import Frame
from longarm_edge.unfinished import InUseError, Unfinished

logger = logging.getLogger(__name__)

# Beside LeRobot's own, one number a frame. LeRobot's normalisation and policies leave features of other names alone
CHUNK, TICK = "longarm.chunk", "longarm.tick"
ACTION_AGE, ACTION_MEAN_AGE = "longarm.action_age", "longarm.action_mean_age"
# In place of chunk and age where the command rests on no action: statistics of NaN would be NaN
NONE = -1
# Frames that may wait for an encoder, or for the threads that write PNG files
ENCODER_QUEUE = 30
# LeRobot's defaults are for AV1: H.264 needs a lower factor for the same look, and this preset half AV1's time
ENCODER_OPTIONS = {"h264": {"preset": "ultrafast", "crf": 23}}
# LeRobot's statistics of an episode need two frames
FEWEST_FRAMES = 2
# How often the disk is asked how much is left, in frames
DISK_CHECK_FRAMES = 30
# What a file system that calls itself full may still report as free
FULL_BYTES = 1_000_000


def features(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns LeRobot's description of a frame of the robot that job describes."""
    kind = "video" if job["video"] else "image"
    numbers = {OBS_STATE: job["state_names"], ACTION: job["action_names"]}
    return {
        **{
            key: {"dtype": "float32", "shape": (len(names),), "names": names} for key, names in numbers.items() if names
        },
        **{
            f"{OBS_IMAGES}.{name}": {
                "dtype": kind,
                "shape": (height, width, 3),
                "names": ["height", "width", "channels"],
            }
            for name, (height, width) in job["cameras"].items()
        },
        CHUNK: {"dtype": "int64", "shape": (1,), "names": None},
        ACTION_AGE: {"dtype": "float32", "shape": (1,), "names": None},
        ACTION_MEAN_AGE: {"dtype": "float32", "shape": (1,), "names": None},
        TICK: {"dtype": "int64", "shape": (1,), "names": None},
    }


class Recording:
    """Episodes one after the other: each is saved for good before the next one begins.

    Attributes:
      kept: Frames that are saved for good: those of the episodes that are over.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        """Makes the dataset, or opens it to add episodes.

        Raises:
          CannotGoOnError: The directory cannot be used, or holds a dataset of another robot.
        """
        self.kept = 0
        self._root = Path(job["root"])
        self._task: str = job["task"]
        self._state_is_recorded = bool(job["state_names"])
        self._min_free_bytes: int = job["min_free_bytes"]
        self._longest: int = job["episode_frames"]
        self._offered = 0
        self._count = 0
        self._held: Frame | None = None
        self._has_images = bool(job["cameras"]) and not job["video"]
        try:
            if job["resume"] and Unfinished.clear_up(self._root):
                logger.warning("%s: an episode that was cut short has been removed", self._root)
                if self._root.exists() and not (self._root / "meta/info.json").is_file():
                    raise FileNotFoundError("there was no finished episode, and other files are in its way")
            self._is_new = not (job["resume"] and self._root.exists())
            self._dataset = self._create(job) if self._is_new else self._resume(job)
            self._unfinished = Unfinished.begin(self._root, is_new=self._is_new)
        except InUseError as error:
            raise CannotGoOnError(str(error)) from error
        except (OSError, ValueError) as error:
            raise CannotGoOnError(f"{self._root}: LeRobot cannot open a dataset here: {error}") from error
        self._first: int = self._dataset.meta.total_episodes
        self._check_disk()

    def add(self, frame: Frame) -> None:
        """Adds one frame, to the next episode if this one is long enough.

        Raises:
          CannotGoOnError: The disk is nearly full, and what there is has been saved; or writing has failed, and the
            episode is lost.
        """
        if self._offered % DISK_CHECK_FRAMES == 0:
            self._check_disk()
        self._offered += 1
        try:
            if self._held is not None:
                self._save_episode()
                self._unfinished = Unfinished.begin(self._root, is_new=False)
                self._add_held()
            elif self._longest and self._count >= self._longest:
                self._held = frame  # it may be the last one, and one frame is no episode
                return
            self._add(frame)
        except Exception as error:
            raise self._lost(error) from error

    def _add_held(self) -> None:
        if self._held is not None:
            self._add(self._held)
            self._held = None

    def _add(self, frame: Frame) -> None:
        reading, done = frame.reading, frame.executed
        assert reading is not None, "only ticks that were seen are recorded"  # noqa: S101
        self._wait_for_writers()
        state = {OBS_STATE: reading.state} if self._state_is_recorded else {}
        self._dataset.add_frame(
            {
                **state,
                **{f"{OBS_IMAGES}.{name}": image for name, image in reading.images.items()},
                ACTION: done.command,
                CHUNK: np.array([NONE if done.chunk is None else done.chunk], np.int64),
                ACTION_AGE: np.array([NONE if done.age is None else done.age], np.float32),
                ACTION_MEAN_AGE: np.array([NONE if done.mean_age is None else done.mean_age], np.float32),
                TICK: np.array([done.tick], np.int64),
                "task": self._task,
            }
        )
        self._count += 1

    def close(self) -> str:
        """Saves the episode and returns what was saved, and where.

        Raises:
          CannotGoOnError: It cannot be saved and is lost. The dataset is what it was before.
        """
        try:
            self._add_held()
            return self._finish()
        except Exception as error:
            raise self._lost(error) from error

    def _finish(self) -> str:
        dataset = self._dataset
        if self._count < FEWEST_FRAMES:
            dataset.clear_episode_buffer()
            dataset.finalize()
            self._unfinished.take_back()
            return f"nothing: {self._count} frames are no episode"
        self._save_episode()
        dataset.finalize()
        last = dataset.meta.total_episodes - 1
        episodes = f"episode {last}" if last == self._first else f"episodes {self._first} to {last}"
        return f"{episodes} of {self._root}, {self.kept} frames"

    def _save_episode(self) -> None:
        """Saves the episode so that nothing that happens later touches it.

        LeRobot goes on in the files of the episode before, and makes them readable when the dataset is closed. Files
        that are full are left alone; to close the dataset and open it anew would take longer with every episode.
        """
        meta = self._dataset.meta
        sizes = {name: getattr(meta.info, name) for name in ("data_files_size_in_mb", "video_files_size_in_mb")}
        for name in sizes:
            setattr(meta.info, name, 0)
        with contextlib.nullcontext() if self._has_images else _nothing_to_embed():
            self._dataset.save_episode(parallel_encoding=False)
        meta.update_chunk_settings(**sizes)
        self._dataset.writer.close_writer()
        meta._close_writer()
        self._unfinished.finish()
        self._is_new = False
        self.kept += self._count
        self._count = 0

    def _lost(self, error: Exception) -> CannotGoOnError:
        """Takes the episode back and returns what there is to say of it."""
        free = shutil.disk_usage(self._root).free
        for end in (self._dataset.clear_episode_buffer, self._dataset.finalize, self._dataset.meta.finalize):
            with contextlib.suppress(Exception):  # what cannot be written cannot be ended in good order either
                end()
        self._unfinished.take_back()
        why = "the disk is full" if free < FULL_BYTES else "the episode cannot be written"
        rest = "There was none before it" if self._is_new else "The episodes before it are whole"
        return CannotGoOnError(
            f"{self._root}: {why}, and the episode is lost, {self._count} frames so far. {rest}. "
            f"({type(error).__name__}: {error})"
        )

    def _create(self, job: dict[str, Any]) -> LeRobotDataset:
        return LeRobotDataset.create(
            repo_id=job["repo_id"],
            fps=job["fps"],
            features=features(job),
            root=self._root,
            robot_type=job["robot_type"],
            use_videos=job["video"],
            **_writing(job),
        )

    def _resume(self, job: dict[str, Any]) -> LeRobotDataset:
        dataset = LeRobotDataset.resume(repo_id=job["repo_id"], root=self._root, **_writing(job))
        expected = {"fps": job["fps"], **_compared(features(job))}
        own = {k: v for k, v in dataset.meta.features.items() if k in expected or k.startswith(("obs", "act", "long"))}
        found = {"fps": dataset.meta.fps, **_compared(own)}
        for key in expected.keys() | found.keys():
            if expected.get(key) != found.get(key):
                raise CannotGoOnError(
                    f"{self._root}: this run cannot add to the dataset. Expected {key} to be {expected.get(key)} but "
                    f"found {found.get(key)}. Record into another directory."
                )
        return dataset

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._root).free
        if free >= self._min_free_bytes:
            return
        saved = self.close()
        raise CannotGoOnError(
            f"The disk of {self._root} has {free / 1e6:.0f} MB left, fewer than record.min_free_mb="
            f"{self._min_free_bytes / 1e6:.0f}. Recording ended; saved: {saved}"
        )

    def _wait_for_writers(self) -> None:
        """Returns when there is room for a frame.

        LeRobot drops an image that an encoder has no room for within 0.1 s, and all images after it would belong to the
        wrong frames; its queue of PNG files has no end.
        """
        encoder, files = self._dataset.writer._streaming_encoder, self._dataset.writer.image_writer
        threads = encoder._threads if encoder is not None else {}
        while any(encoder._frame_queues[key].full() and thread.is_alive() for key, thread in threads.items()):
            time.sleep(0.005)
        while files is not None and files.queue.qsize() >= ENCODER_QUEUE:
            time.sleep(0.005)


@contextlib.contextmanager
def _nothing_to_embed() -> Iterator[None]:
    """Keeps LeRobot from looking for images row by row where there are none: most of the time that saving takes."""
    embed = dataset_writer.embed_images
    dataset_writer.embed_images = lambda dataset: dataset
    try:
        yield
    finally:
        dataset_writer.embed_images = embed


def _writing(job: dict[str, Any]) -> dict[str, Any]:
    """Returns how LeRobot's writer stores images: encoded as they come, or as PNG files by a thread per camera."""
    if not job["video"]:
        return {"video_backend": "pyav", "image_writer_threads": max(1, len(job["cameras"]))}
    return {
        "video_backend": "pyav",  # for reading, which does not happen here
        "rgb_encoder": RGBEncoderConfig(vcodec=job["vcodec"], **ENCODER_OPTIONS.get(job["vcodec"], {})),
        "streaming_encoding": True,
        "encoder_queue_maxsize": ENCODER_QUEUE,
        "encoder_threads": 1,
    }


def _compared(described: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns of each feature what must be equal for episodes to stand side by side."""
    return {key: (kind["dtype"], tuple(kind["shape"]), kind.get("names")) for key, kind in described.items()}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    serve(Recording)
