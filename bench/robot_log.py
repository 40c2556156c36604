"""What the robot saw of its peer, event by event, in a file that survives a killed process."""

import os
from pathlib import Path

import numpy as np

JOINT_COUNT = 6
OBSERVED, COMMANDED = 0, 1
# Instants are seconds on the machine's monotonic clock, which all its processes share
EVENT = np.dtype([("kind", "u1"), ("begun", "f8"), ("ended", "f8"), ("mark", "i4"), ("joints", "f4", (JOINT_COUNT,))])


class RobotLog:
    """Appends events. One write per event, a few microseconds: nothing is lost when the process is killed."""

    def __init__(self, path: Path) -> None:
        """Starts an empty log at path."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)

    def write(self, kind: int, begun: float, ended: float, mark: int, joints: np.ndarray) -> None:
        """Appends one event.

        Args:
          kind: OBSERVED or COMMANDED.
          begun: When the call came, monotonic seconds.
          ended: When it returned.
          mark: Count of the observation; of a command, the mark that it carries.
          joints: float32 of shape (JOINT_COUNT,), degrees: the pose seen, or the command.
        """
        os.write(self._file, np.array((kind, begun, ended, mark, joints), EVENT).tobytes())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def read(path: Path) -> np.ndarray:
    """Returns the events so far, an array of EVENT; empty if there is no log."""
    if not path.is_file():
        return np.empty(0, EVENT)
    data = path.read_bytes()
    return np.frombuffer(data[: len(data) // EVENT.itemsize * EVENT.itemsize], EVENT)
