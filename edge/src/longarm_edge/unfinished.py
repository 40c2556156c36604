"""What a dataset was before an episode was begun, kept in it until the episode is saved.

LeRobot writes an episode into new files and only rewrites a few small ones. Without their footers the new files make
the whole dataset unreadable, so a recording that fails, or whose process is killed, takes back what it has begun.
"""

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Self

DIRECTORY = ".longarm-unfinished"
# Where LeRobot puts files; whatever else a person keeps in the directory stays
FOLDERS = ("data", "images", "meta", "videos")
TEMPORARY = "tmp????????"


class InUseError(Exception):
    """Another process writes an episode here."""


class Unfinished:
    """An episode that is being written. A lock that ends with this process tells it from one that was cut short.

    Once it is finished or taken back, both do nothing.
    """

    def __init__(self, root: Path, lock: int) -> None:
        self._root = root
        self._lock: int | None = lock

    @classmethod
    def begin(cls, root: Path, *, is_new: bool) -> Self:
        """Notes what is in the dataset at root: nothing of its own, if is_new.

        Raises:
          InUseError: Another process writes here.
          OSError: The notes cannot be written.
        """
        place = root / DIRECTORY
        place.mkdir(exist_ok=True)
        unfinished = cls(root, _locked(place))
        before = [] if is_new else [str(path.relative_to(root)) for path in _own_files(root)]
        try:
            for path in [] if is_new else (root / "meta").glob("*.*"):
                shutil.copy2(path, place)
            # Last, and in one step: without it nothing was begun
            draft = place / "draft"
            draft.write_text(json.dumps(before))
            draft.replace(place / "files.json")
        except OSError:
            unfinished.finish()
            raise
        return unfinished

    @classmethod
    def clear_up(cls, root: Path) -> bool:
        """Takes back an episode that was cut short, if there is one, and says whether there was.

        A dataset without another episode is removed, with its directory if there is nothing else in it.

        Raises:
          InUseError: It is being written.
        """
        place = root / DIRECTORY
        if not place.is_dir():
            return False
        cls(root, _locked(place)).take_back()
        return True

    def take_back(self) -> None:
        """Makes the dataset what it was; removes it if it is new, with its directory if there is nothing else in it."""
        if self._lock is None:
            return
        place = self._root / DIRECTORY
        notes = place / "files.json"
        before = set(json.loads(notes.read_text())) if notes.is_file() else None
        if before is not None:
            for path in _own_files(self._root):
                if str(path.relative_to(self._root)) not in before:
                    path.unlink()
            # By renaming: a full disk has no room for copies
            for path in place.iterdir():
                if f"meta/{path.name}" in before:
                    path.replace(self._root / "meta" / path.name)
            for path in self._root.glob(TEMPORARY):
                shutil.rmtree(path)
        self.finish()
        if before == set():
            for folder in FOLDERS:
                shutil.rmtree(self._root / folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # a person keeps something there
                self._root.rmdir()

    def finish(self) -> None:
        """The dataset is whole: forgets what it was."""
        if self._lock is None:
            return
        shutil.rmtree(self._root / DIRECTORY)
        os.close(self._lock)
        self._lock = None


def is_unfinished(root: Path) -> bool:
    """Returns whether an episode was begun at root and is not saved."""
    return (root / DIRECTORY).is_dir()


def _own_files(root: Path) -> list[Path]:
    return [path for folder in FOLDERS for path in (root / folder).rglob("*") if not path.is_dir()]


def _locked(place: Path) -> int:
    lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InUseError(
            f"{place.parent}: another process writes an episode here; the recorder of a run that was killed may still "
            "be saving. Try again when it is done, or record into another directory."
        ) from None
    return lock
