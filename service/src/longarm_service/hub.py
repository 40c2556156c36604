"""Brings checkpoints from the model hub, by a process of its own that can be ended at any moment.

A download cannot be interrupted from inside: part of it runs in a library that drops what its callbacks raise, and a
hub that falls silent is waited for. Besides, a process of its own takes nothing from the robots that run.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.policy import Report
from longarm_wire.errors import Reason, WireError


def look(name: str, revision: str, report: Report) -> Path:
    """Returns the directory with the configuration and processors of a model, named by its commit.

    Raises:
      WireError: POLICY_NOT_FOUND, HUB_UNREACHABLE or POLICY_LOAD_FAILED.
    """
    return _ask({"what": "look", "name": name, "revision": revision}, report)


def fetch(name: str, commit: str, report: Report) -> Path:
    """Returns the same directory when weights and processors' state are there as well.

    Raises:
      WireError: As look; also POLICY_LOAD_FAILED where the disk has no room for them.
    """
    return _ask({"what": "fetch", "name": name, "revision": commit}, report)


def _ask(request: dict[str, str], report: Report) -> Path:
    report(_progress(request["name"], 0, 0))
    command = [sys.executable, "-P", "-m", "longarm_service.hub_process"]
    # The command is ours, whatever the request says. Ctrl-C in a terminal is for the service to act on
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None  # noqa: S101 - piped
        assert process.stdout is not None  # noqa: S101 - piped
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for line in process.stdout:
                told: dict[str, Any] = json.loads(line)
                if "directory" in told:
                    return Path(told["directory"])
                if "reason" in told:
                    raise WireError(Reason(told["reason"]), told["message"])
                report(_progress(request["name"], told["done"], told["total"]))
        finally:
            # Whether it is done, or nobody waits for it any more
            process.kill()
    raise WireError(
        Reason.POLICY_LOAD_FAILED,
        f"Fetching {request['name']!r} from the hub ended by itself (exit code {process.returncode}). "
        "The service's log has what it said.",
    )


def _progress(name: str, done: int, total: int) -> pb.Progress:
    progress = pb.Progress(stage=pb.PROGRESS_STAGE_FETCHING, message=f"Fetching {name} from the hub")
    if total:
        progress.fraction = min(1.0, done / total)
        progress.message = f"Fetching {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
    return progress
