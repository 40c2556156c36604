"""Recording: what was seen and executed goes to a process that writes it as a LeRobotDataset."""

import importlib.util
import logging
import math
import re
import shutil
from typing import Any

from longarm_edge.frame_pipe import FramePipe, FramePipeError
from longarm_edge.metrics import Recorded
from longarm_edge.observer import Frame
from longarm_edge.settings import EdgeSettings
from longarm_edge.trace import Trace
from longarm_edge.unfinished import is_unfinished
from longarm_wire.settings import ConfigurationError
from longarm_wire.specs import RobotSpec

logger = logging.getLogger(__name__)

# What may wait for the writer, which takes up to seconds to save an episode: of two 640x480 cameras at 30 ticks a
# second, 4.6 s. Small frames are not kept for longer than QUEUE_SECONDS: a writer that lags is to be seen
QUEUE_BYTES = 256_000_000
QUEUE_SECONDS = 30.0
# The writer's own import of LeRobot, on a slow laptop
START_SECONDS = 120.0
# Encoding is done as frames come; what is left is flushing. Images are packed at the end, and take their time
SAVE_SECONDS = 120.0
# What the library below LeRobotDataset does not take for the name of a directory
PATTERN = re.compile(r"\[.*\]|::")
NEEDED = ("datasets", "pyarrow", "pandas", "av")


class Recorder:
    """A sink that records."""

    def __init__(self, settings: EdgeSettings, spec: RobotSpec, trace: Trace) -> None:
        """Makes a recorder at rest.

        Raises:
          ConfigurationError: A package is missing, the directory is taken or cannot be read again, or a dataset cannot
            have this rate.
        """
        self._settings = settings
        self._trace = trace
        self._offered = 0
        self._pipe = FramePipe(
            "longarm_edge.lerobot_recorder",
            _job(settings, spec),
            capacity=_capacity(spec, settings.fps),
            on_progress=self._note_progress,
        )
        self._written = 0

    def start(self) -> None:
        """Starts the writer's process and returns at once."""
        self._pipe.start()

    def is_ready(self, timeout: float) -> bool:
        """Waits timeout seconds at most for the dataset to be open.

        Raises:
          ConfigurationError: It cannot be opened.
        """
        try:
            return self._pipe.is_ready(timeout)
        except FramePipeError as error:
            raise ConfigurationError([f"--record: {error}"]) from error

    def offer(self, frame: Frame) -> None:
        """Takes frame, or counts it as dropped: it has no observation, or the writer does not keep up."""
        if frame.reading is None or not self._pipe.offer(frame):
            self._trace.recorded(Recorded.DROPPED)
        else:
            self._offered += 1

    def close(self) -> str | None:
        """Saves the last episode. Returns what went wrong, if anything did."""
        if self._offered and self._pipe.failure is None:
            logger.info("saving the recording")
        try:
            logger.info("recorded: %s", self._pipe.close(SAVE_SECONDS))
            problem = None
        except FramePipeError as error:
            problem = f"The recording has failed: {error}"
            logger.error("%s", problem)
        if not self._pipe.is_over:  # nobody knows yet what becomes of them
            return problem
        self._note_progress(self._pipe.kept, self._pipe.kept)
        if lost := self._offered - self._pipe.kept:
            self._trace.recorded(Recorded.LOST, lost)
        return problem

    def _note_progress(self, taken: int, kept: int) -> None:
        self._trace.recording(taken - kept)
        if new := kept - self._written:
            self._trace.recorded(Recorded.WRITTEN, new)
            self._written = kept


def _capacity(spec: RobotSpec, fps: float) -> int:
    """Returns how many frames may wait for the writer."""
    values = len(spec.state_names) + len(spec.action_names)
    frame_bytes = 4 * values + sum(3 * camera.height * camera.width for camera in spec.cameras)
    return max(2, min(QUEUE_BYTES // frame_bytes, math.ceil(QUEUE_SECONDS * fps)))


def _job(settings: EdgeSettings, spec: RobotSpec) -> dict[str, Any]:
    record = settings.record
    assert record.dir is not None, "there is no recording without a directory"  # noqa: S101
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(
            [f"--record needs {', '.join(missing)}, not installed here: pip install -e 'edge[record]' in a checkout"]
        )
    if settings.fps != round(settings.fps):
        raise ConfigurationError(
            [f"--record: expected whole frames per second, as LeRobotDataset has, but found fps={settings.fps:g}"]
        )
    root = record.dir.resolve()
    if PATTERN.search(str(root)):
        raise ConfigurationError(
            [f"--record: {root}: LeRobot takes [ ] and :: for a pattern and could never read a dataset there"]
        )
    cut_short = is_unfinished(root)
    if record.resume and not cut_short and not (root / "meta/info.json").is_file():
        raise ConfigurationError([f"--record.resume: expected a LeRobotDataset in {root} but found none"])
    if cut_short and not record.resume:
        advice = "--record.resume removes that episode, keeps those that were finished, and adds one"
        raise ConfigurationError(
            [f"--record: {root} holds an episode that was cut short. Name a new directory, or go on there: {advice}"]
        )
    if root.exists() and not record.resume:
        raise ConfigurationError(
            [f"--record: {root} exists. Name a new directory, or add an episode to it with --record.resume"]
        )
    ancestor = next(path for path in (root, *root.parents) if path.exists())
    free_mb = shutil.disk_usage(ancestor).free / 1e6
    if free_mb < record.min_free_mb:
        wanted = f"record.min_free_mb={record.min_free_mb:g}"
        raise ConfigurationError([f"--record: the disk of {root} has {free_mb:.0f} MB left, fewer than {wanted}"])
    return {
        "root": str(root),
        "repo_id": record.repo_id or f"local/{root.name}",
        "resume": record.resume,
        "video": record.video and bool(spec.cameras),
        "vcodec": record.vcodec,
        "episode_frames": max(2, round(record.episode_seconds * settings.fps)) if record.episode_seconds else 0,
        "min_free_bytes": int(record.min_free_mb * 1e6),
        "fps": round(settings.fps),
        "task": settings.task,
        "robot_type": spec.robot_type,
        "state_names": list(spec.state_names),
        "action_names": list(spec.action_names),
        "cameras": {camera.name: [camera.height, camera.width] for camera in spec.cameras},
    }
