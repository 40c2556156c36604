"""The pose at the start of a run, kept in a file for as long as the arm is in the run's hands.

A run that is killed, or that cannot leave its arm by rule, leaves the file behind: it says so, and where the way back
leads.
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

# What a pose that is still there means, in words
WHY_KEPT = "the last run has not left its arm by rule (it was killed, or could not)"


def keep(path: Path, names: Sequence[str], pose: np.ndarray) -> None:
    """Writes pose, shape (names), NaN where it is not known, in one step.

    Raises:
      ConfigurationError: The file cannot be written.
    """
    values = (None if np.isnan(value) else value for value in pose.tolist())
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(dict(zip(names, values, strict=True))) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise ConfigurationError([f"Cannot write {path} (safety.pose_file): {error.strerror}"]) from error


def lock(path: Path, *, required: bool = True) -> int | None:
    """Claims the pose for whoever has the arm, and returns a descriptor: it is claimed for as long as that is open.

    Returns None if it cannot be claimed and need not be.

    Raises:
      ConnectionError: Another program has claimed it, and may be done in a while.
      ConfigurationError: Nothing can be written there, and it is required.
    """
    beside = _lock_file(path)
    try:
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if required:
            raise ConfigurationError([f"Cannot write {beside} (safety.pose_file): {error.strerror}"]) from error
        logger.warning("cannot write %s (safety.pose_file): %s", beside, error.strerror)
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConnectionError(
            f"A run that is alive has the arm: it keeps {path} (safety.pose_file). Stop that run first."
        ) from None
    except OSError as error:
        logger.warning("cannot lock %s (safety.pose_file): %s", beside, error.strerror)
    return fd


def is_claimed(path: Path) -> bool:
    """Returns whether another program has the arm, as far as this user can tell. Leaves nothing behind."""
    try:
        fd = os.open(_lock_file(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


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


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")
