"""Finds a LeRobot checkpoint, on disk or on the model hub, and says what exactly it is."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longarm_service import hub
from longarm_service.inspection import check_header, opened, read_json
from longarm_service.policy import Report, is_directory
from longarm_wire.errors import Reason, WireError

CONFIG = "config.json"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
HUB_NAME = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)
# Enough of each end of a weights file that two trainings cannot agree in it by chance
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
      name: As asked for.
      directory: Where it lies.
      read_from: Where to read it from, directory unless it is as_judged.
      revision: Commit on the hub; empty for a directory.
      config: Its config.json.
      preprocessor: Its policy_preprocessor.json.
      postprocessor: Its policy_postprocessor.json.
    """

    name: str
    directory: Path
    read_from: Path
    revision: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    postprocessor: dict[str, Any]

    @property
    def policy_type(self) -> str:
        """LeRobot's type of the policy, for example "act"."""
        return str(self.config["type"])

    @property
    def exact_name(self) -> str:
        """What no other checkpoint has: name and commit on the hub, or where the directory really lies."""
        return f"{self.name}@{self.revision}" if self.revision else str(self.directory.resolve())


def find(name: str, revision: str, report: Report, judge: Callable[[Checkpoint], None] = lambda _: None) -> Checkpoint:
    """Returns the checkpoint of this name, fetched from the hub unless it is a directory.

    From the hub come first its configuration and processors, and the weights when judge has nothing against those.

    Raises:
      WireError: POLICY_NOT_FOUND; HUB_UNREACHABLE; POLICY_LOAD_FAILED if a file is missing or no JSON, or there is no
        room for it; what judge raises.
    """
    if is_directory(name):
        if revision:
            raise WireError(
                Reason.INVALID_REQUEST, f"Expected no revision for the directory {name!r}, found {revision!r}"
            )
        found = _opened(name, Path(name), "")
        judge(found)
        return found
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise WireError(Reason.POLICY_NOT_FOUND, f"There is no directory {name!r} on the service's machine.")
    if not HUB_NAME.fullmatch(name):
        raise WireError(Reason.POLICY_NOT_FOUND, f"There is neither a directory nor a model on the hub named {name!r}.")
    directory = hub.look(name, revision, report)
    found = _opened(name, directory, directory.name)
    judge(found)
    hub.fetch(name, found.revision, report)
    _check_readable(directory, name)
    return found


@contextlib.contextmanager
def as_judged(found: Checkpoint) -> Iterator[Checkpoint]:
    """Gives found with a folder of our own to read from: its JSON as it was judged, and links to the rest.

    Whoever may write into a checkpoint's folder could have LeRobot read something else there than was judged.
    """
    judged = {CONFIG: found.config, PREPROCESSOR: found.preprocessor, POSTPROCESSOR: found.postprocessor}
    with tempfile.TemporaryDirectory(prefix=_prefix(os.getpid())) as place:
        for path in found.directory.iterdir():
            if path.name not in judged:
                (Path(place) / path.name).symlink_to(path.resolve())
        for file, content in judged.items():
            (Path(place) / file).write_text(json.dumps(content), encoding="utf-8")
        yield replace(found, read_from=Path(place))


@contextlib.contextmanager
def unchanged(found: Checkpoint) -> Iterator[str]:
    """Gives the digest of found, and raises WireError(POLICY_LOAD_FAILED) where it is another in the end.

    What was read while somebody wrote is neither the one checkpoint nor the other, whatever else went wrong with it.
    """
    before = digest(found.directory)
    try:
        yield before
    finally:
        after = ""
        with contextlib.suppress(OSError, ValueError):  # in the middle of being replaced
            after = digest(found.directory)
        if after != before:
            raise WireError(
                Reason.POLICY_LOAD_FAILED,
                f"The files of the checkpoint {found.name!r} were written to while it was loaded. Try again when they "
                "are whole.",
                files="changed",
            )


def clear_up_after(pid: int) -> None:
    """Removes what as_judged has left behind in a process that was ended in the middle of it."""
    for place in Path(tempfile.gettempdir()).glob(f"{_prefix(pid)}*"):
        shutil.rmtree(place, ignore_errors=True)


def digest(directory: Path) -> str:
    """Returns SHA-256 in hex over configuration, processors, and a sample of each weights file.

    The sample is the file's size and its first and last MiB. The first holds the index of tensors, the last holds
    weights that training changes, so that a checkpoint trained on differs without reading gigabytes.
    """
    total = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix not in {".json", ".safetensors"} or not path.is_file():
            continue
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            total.update(f"{path.name}:{size}\n".encode())
            total.update(file.read(SAMPLE_BYTES))
            file.seek(max(SAMPLE_BYTES, size - SAMPLE_BYTES))
            total.update(file.read(SAMPLE_BYTES))
    return total.hexdigest()


def _prefix(pid: int) -> str:
    return f"longarm-checkpoint-{pid}-"


def _opened(name: str, directory: Path, commit: str) -> Checkpoint:
    _check_readable(directory, name)
    config = _read(directory, CONFIG, name)
    if not isinstance(config.get("type"), str):
        raise WireError(
            Reason.POLICY_UNSUPPORTED, f"{name!r} is no LeRobot policy: its {CONFIG} does not say of which type it is."
        )
    preprocessor, postprocessor = (_read(directory, file, name) for file in (PREPROCESSOR, POSTPROCESSOR))
    return Checkpoint(name, directory, directory, commit, config, preprocessor, postprocessor)


def _check_readable(directory: Path, name: str) -> None:
    """Raises where safetensors would call a file missing that it may not read, wait for a pipe, or read for minutes."""
    for path in [directory, *directory.glob("*.json"), *directory.glob("*.safetensors")]:
        if not os.access(path, os.R_OK):
            raise WireError(
                Reason.POLICY_LOAD_FAILED,
                f"The checkpoint {name!r} cannot be read by the service, which runs as user {os.getuid()}: {path}. "
                f"LeRobot saves weights for their owner alone. Run chmod -R a+rX {directory}",
            )
        if path != directory and not path.is_file():
            raise WireError(
                Reason.POLICY_LOAD_FAILED, f"The checkpoint {name!r} has something else than a file: {path}"
            )
        if path.suffix == ".safetensors":
            check_header(path, name)


def _read(directory: Path, file: str, name: str) -> dict[str, Any]:
    try:
        return read_json(directory / file, name)
    except FileNotFoundError:
        raise WireError(
            Reason.POLICY_LOAD_FAILED, f"The checkpoint {name!r} has no {file}. {_advice(directory, file)}"
        ) from None


def _advice(directory: Path, file: str) -> str:
    if file == CONFIG and (directory / "pretrained_model" / CONFIG).is_file():
        return f"Did you mean {str(directory / 'pretrained_model')!r}?"
    if file == CONFIG:
        return "Give the directory that LeRobot's save_pretrained wrote, usually .../checkpoints/last/pretrained_model."
    return (
        "Checkpoints from before LeRobot 0.4 lack their processors. Convert it with "
        f"python -m lerobot.processor.migrate_policy_normalization --pretrained-path {directory}"
    )
