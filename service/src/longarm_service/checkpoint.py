"""Finds a LeRobot checkpoint, on disk or on the model hub, and says what exactly it is."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.policy import Report, is_directory
from longarm_wire.errors import Reason, WireError

CONFIG = "config.json"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
# What training leaves beside a policy and inference never reads
NOT_NEEDED = ["training_state/*", "checkpoints/*", "*.mp4", "*.parquet", "*.bin", "*.pt", "*.pth"]
# Enough of each end of a weights file that two trainings cannot agree in it by chance
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
      name: As asked for.
      directory: Where it lies.
      revision: Commit on the hub; empty for a directory.
      config: Its config.json.
      preprocessor: Its policy_preprocessor.json.
    """

    name: str
    directory: Path
    revision: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]

    @property
    def policy_type(self) -> str:
        """LeRobot's type of the policy, for example "act"."""
        return str(self.config.get("type", ""))


def find(name: str, revision: str, report: Report) -> Checkpoint:
    """Returns the checkpoint of this name, fetched from the hub unless it is a directory.

    Raises:
      WireError: POLICY_NOT_FOUND; HUB_UNREACHABLE; POLICY_LOAD_FAILED if a file is missing or no JSON.
    """
    if is_directory(name):
        if revision:
            raise WireError(
                Reason.INVALID_REQUEST, f"Expected no revision for the directory {name!r}, found {revision!r}"
            )
        directory, commit = Path(name), ""
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise WireError(Reason.POLICY_NOT_FOUND, f"There is no directory {name!r} on the service's machine.")
    else:
        directory = _fetch(name, revision, report)
        commit = directory.name
    _check_readable(directory, name)
    return Checkpoint(
        name, directory, commit, _read_json(directory, CONFIG, name), _read_json(directory, PREPROCESSOR, name)
    )


def digest(directory: Path) -> str:
    """Returns SHA-256 in hex over configuration, processors, and a sample of each weights file.

    The sample is the file's size and its first and last MiB. The first holds the index of tensors, the last holds
    weights that training changes, so that a checkpoint trained on differs without reading gigabytes.
    """
    total = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix not in {".json", ".safetensors"} or not path.is_file():
            continue
        size = path.stat().st_size
        total.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            total.update(file.read(SAMPLE_BYTES))
            file.seek(max(SAMPLE_BYTES, size - SAMPLE_BYTES))
            total.update(file.read(SAMPLE_BYTES))
    return total.hexdigest()


def _check_readable(directory: Path, name: str) -> None:
    """Raises where safetensors would call a file missing that it may not read."""
    for path in [directory, *directory.glob("*.json"), *directory.glob("*.safetensors")]:
        if not os.access(path, os.R_OK):
            raise WireError(
                Reason.POLICY_LOAD_FAILED,
                f"The checkpoint {name!r} cannot be read by the service, which runs as user {os.getuid()}: {path}. "
                f"LeRobot saves weights for their owner alone. Run chmod -R a+rX {directory}",
            )


def _read_json(directory: Path, file: str, name: str) -> dict[str, Any]:
    path = directory / file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WireError(
            Reason.POLICY_LOAD_FAILED, f"The checkpoint {name!r} has no {file}. {_advice(directory, file)}"
        ) from None
    except (OSError, ValueError) as error:
        raise WireError(Reason.POLICY_LOAD_FAILED, f"The checkpoint {name!r} has a broken {file}: {error}") from error
    if not isinstance(content, dict):
        raise WireError(Reason.POLICY_LOAD_FAILED, f"The checkpoint {name!r} has a {file} that is no JSON object.")
    return content


def _advice(directory: Path, file: str) -> str:
    if file == CONFIG and (directory / "pretrained_model" / CONFIG).is_file():
        return f"Did you mean {str(directory / 'pretrained_model')!r}?"
    if file == CONFIG:
        return "Give the directory that LeRobot's save_pretrained wrote, usually .../checkpoints/last/pretrained_model."
    return (
        "Checkpoints from before LeRobot 0.4 lack their processors. Convert it with "
        f"python -m lerobot.processor.migrate_policy_normalization --pretrained-path {directory}"
    )


def _fetch(name: str, revision: str, report: Report) -> Path:
    report(pb.Progress(stage=pb.PROGRESS_STAGE_FETCHING, message=f"Fetching {name} from the hub"))
    where = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        path = snapshot_download(
            name, revision=revision or None, ignore_patterns=NOT_NEEDED, tqdm_class=_reporting_bar(name, report)
        )
    except GatedRepoError as error:
        raise WireError(
            Reason.POLICY_NOT_FOUND, f"The hub wants a login for {where}. Run `hf auth login` on the service's machine."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise WireError(
            Reason.POLICY_NOT_FOUND, f"There is neither a directory nor a public model on the hub named {where}."
        ) from error
    except LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        raise WireError(
            Reason.POLICY_NOT_FOUND if offline else Reason.HUB_UNREACHABLE,
            f"{where} is no directory on the service's machine, is not in its hub cache, and the hub "
            + ("is not asked (HF_HUB_OFFLINE is set)." if offline else "does not answer."),
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise WireError(Reason.POLICY_LOAD_FAILED, f"Fetching {where} from the hub failed: {error}") from error
    return Path(path)


def _reporting_bar(name: str, report: Report) -> type[tqdm]:
    class ReportingBar(tqdm):  # type: ignore[misc]
        """Tells the share of bytes that have come; draws nothing."""

        # No thread that redraws stale bars
        monitor_interval = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # huggingface_hub's own
            super().__init__(*args, **{**kwargs, "disable": False, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            # The hub draws a second bar in bytes for what came over the network, cached files left out
            if self.unit == "B" and self.total and self.desc != "Downloading bytes":
                report(
                    pb.Progress(
                        stage=pb.PROGRESS_STAGE_FETCHING,
                        fraction=min(1.0, self.n / self.total),
                        message=f"Fetching {name}: {self.n / 1e6:.0f} of {self.total / 1e6:.0f} MB",
                    )
                )

    return ReportingBar


class _Nowhere:
    def write(self, text: str) -> None:
        """Drops what tqdm draws."""

    def flush(self) -> None:
        """Nothing is held back."""
