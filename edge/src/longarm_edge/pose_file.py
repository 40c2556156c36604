"""The pose at the start of a run, kept in a file for as long as the arm is in the run's hands.

A run that is killed leaves the file behind: it says that the arm was not left by rule, and where the way back leads.
"""

import fcntl
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)


def keep(path: Path, names: Sequence[str], pose: np.ndarray) -> int:
    """Writes pose, shape (names), NaN where it is not known, in one step.

    Returns a descriptor: the file belongs to a run that is alive for as long as it is open.

    Raises:
      ConfigurationError: The file cannot be written.
    """
    values = (None if np.isnan(value) else value for value in pose.tolist())
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(dict(zip(names, values, strict=True))) + "\n", encoding="utf-8")
        fd = os.open(draft, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        draft.replace(path)
    except OSError as error:
        raise ConfigurationError([f"Cannot write {path} (safety.pose_file): {error.strerror}"]) from error
    return fd


def check_free(path: Path) -> None:
    """Returns unless the pose belongs to a run that is alive.

    Raises:
      ConfigurationError: It does.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return  # others say so, where it matters
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            [f"A run that is alive has the arm: it keeps {path} (safety.pose_file). Stop that run first."]
        ) from None
    finally:
        os.close(fd)


def is_kept(path: Path) -> bool:
    """Returns whether there is a pose: whether the arm was not left by rule.

    Raises:
      ConfigurationError: This user cannot tell.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigurationError([f"Cannot look for {path} (safety.pose_file): {error.strerror}"]) from error
    return True


def read(path: Path, names: Sequence[str]) -> np.ndarray:
    """Returns the pose, float32 of shape (names), NaN where it is not known.

    Raises:
      OSError: It cannot be read.
      ValueError: The file is damaged, or of a robot with other names.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or set(found) != set(names):
        raise ValueError(f"Expected a pose of {', '.join(names)} in {path} but found {found!r}")
    return np.array([np.nan if found[name] is None else found[name] for name in names], np.float32)


def names(path: Path) -> list[str] | None:
    """Returns the names of the actions whose pose is kept, None if the file cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return list(found) if isinstance(found, dict) and found else None


def forget(path: Path) -> bool:
    """Removes the file, if it is there. Returns whether it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.error("cannot remove %s (safety.pose_file): %s", path, error.strerror)
        return False
    return True
