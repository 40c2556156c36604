"""The process that asks the model hub: python -m longarm_service.hub_process

It reads {"what": "look" or "fetch", "name": …, "revision": …} from its standard input and writes lines of JSON:
{"done": bytes, "total": bytes} twice a second, and at last {"directory": path} or {"reason": …, "message": …}. It ends
with whoever reads them.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from longarm_service.inspection import MAX_JSON_BYTES
from longarm_wire.errors import Reason, WireError

# What says what a policy is, and what it takes to run it
TELLING = ["config.json", "policy_preprocessor.json", "policy_postprocessor.json"]
NEEDED = ["*.json", "*.safetensors"]
# LeRobot saves into none, and patterns match "/" as well
IN_FOLDERS = ["*/*"]
TELL_SECONDS = 0.5


class Bytes:
    """How much has come, over all files."""

    def __init__(self, where: str, limit: int | None = None) -> None:
        self.done = 0
        self.total = 0
        self._where = where
        self._limit = limit

    def bar(self) -> type[tqdm]:
        """Returns a progress bar that draws nothing and counts here."""
        counted = self

        class Bar(tqdm):  # type: ignore[misc]
            # No thread that redraws stale bars
            monitor_interval = 0

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.pop("name", None)  # huggingface_hub's own
                super().__init__(*args, **{**kwargs, "disable": False, "file": _Nowhere()})

            def update(self, n: float | None = 1) -> None:
                super().update(n)
                # The hub draws a second bar in bytes for what came over the network, cached files left out
                if self.unit == "B" and self.desc != "Downloading bytes":
                    counted.done, counted.total = int(self.n), int(self.total or 0)

        return Bar

    def keep_telling(self) -> None:
        """Writes how much has come, until the process ends; ends it if nobody reads, or more comes than should."""
        while not _ended.wait(TELL_SECONDS):
            if self._limit is not None and self.done > self._limit:
                _end(
                    WireError(
                        Reason.POLICY_LOAD_FAILED,
                        f"Expected a policy's configuration of {self._where}, found more than {self._limit} bytes.",
                    )
                )
            _tell({"done": self.done, "total": self.total})


class _Nowhere:
    def write(self, text: str) -> None:
        """Drops what tqdm draws."""

    def flush(self) -> None:
        """Nothing is held back."""


def look(name: str, revision: str) -> Any:
    """Returns the directory of a model with the files that tell what it is, fetched if need be."""
    come = Bytes(name, len(TELLING) * MAX_JSON_BYTES)
    threading.Thread(target=come.keep_telling, daemon=True).start()
    return snapshot_download(name, revision=revision or None, allow_patterns=TELLING, tqdm_class=come.bar())


def fetch(name: str, commit: str) -> Any:
    """Returns the directory of a model with all that it needs, fetched if there is room for it."""
    come = Bytes(name)
    threading.Thread(target=come.keep_telling, daemon=True).start()
    wanted: dict[str, Any] = {"revision": commit, "allow_patterns": NEEDED, "ignore_patterns": IN_FOLDERS}
    try:
        return snapshot_download(name, local_files_only=True, **wanted)
    except LocalEntryNotFoundError:
        pass
    missing = [
        file for file in snapshot_download(name, dry_run=True, tqdm_class=come.bar(), **wanted) if file.will_download
    ]
    _check_room(sum(file.file_size or 0 for file in missing))
    return snapshot_download(name, tqdm_class=come.bar(), **wanted)


def _check_room(needed: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    there = next(place for place in (cache, *cache.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise WireError(
            Reason.POLICY_LOAD_FAILED,
            f"It takes {needed / 1e9:.1f} GB more on the disk of {cache}, which has {free / 1e9:.1f} GB left. Make "
            "room, or set HF_HOME to a place that has it.",
        )


def main() -> None:
    """Does what standard input says and exits."""
    request = json.load(sys.stdin)
    name, revision = request["name"], request["revision"]
    where = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        directory = look(name, revision) if request["what"] == "look" else fetch(name, revision)
    except WireError as error:
        _end(WireError(error.reason, f"The service does not fetch {where} from the hub: {error.message}"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the service must learn of it
        _end(_failure(where, error))
    _end({"directory": directory})


def _failure(where: str, error: Exception) -> WireError:
    match error:
        case GatedRepoError():
            return WireError(
                Reason.POLICY_NOT_FOUND,
                f"The hub wants a login for {where}. Run `hf auth login` on the service's machine.",
            )
        case RepositoryNotFoundError() | RevisionNotFoundError() | HFValidationError():
            return WireError(
                Reason.POLICY_NOT_FOUND, f"There is neither a directory nor a public model on the hub named {where}."
            )
        case _ if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled) or _comes_from_the_line(error):
            offline = constants.HF_HUB_OFFLINE
            return WireError(
                Reason.POLICY_NOT_FOUND if offline else Reason.HUB_UNREACHABLE,
                f"{where} is no directory on the service's machine, is not in its hub cache, and the hub "
                + ("is not asked (HF_HUB_OFFLINE is set)." if offline else "does not answer."),
            )
    return WireError(Reason.POLICY_LOAD_FAILED, f"Fetching {where} from the hub failed: {error}")


def _comes_from_the_line(error: Exception) -> bool:
    """Returns whether the hub's own library for connections raised error."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpcore")


_ended = threading.Event()
_telling = threading.Lock()


def _tell(what: dict[str, Any]) -> None:
    with _telling:
        try:
            sys.stdout.write(json.dumps(what) + "\n")
            sys.stdout.flush()
        except OSError:  # the service is gone
            os._exit(1)


def _end(what: dict[str, Any] | WireError) -> None:
    """Writes the last line and ends, whatever other threads are doing."""
    _ended.set()
    _tell({"reason": what.reason, "message": what.message} if isinstance(what, WireError) else what)
    os._exit(0)


if __name__ == "__main__":
    main()
