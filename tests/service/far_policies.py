"""Policies that do to their process what it is there for: hold it, crash it, lose its device. By name, and by task."""

import mmap
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.service.fakes import FakeLoader, FakePolicy, FakeProcessors, Observation

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import checkpoint
from longarm_service.policy import DeviceMemory, Guidance, PolicyChoice, Report, is_directory

# For the processes
FACTORY = "tests.service.far_policies:make_loader"
FETCHING = "tests.service.far_policies:FetchingLoader"
NEVER_FORKED = "tests.service.far_policies:make_forked_loader"
IMPORTED_IN = os.getpid()


def hold_the_interpreter() -> None:
    """Never returns, and lets no other thread of this process run."""
    re.match(r"(a+)+$", "a" * 60 + "b")


class FarPolicy(FakePolicy):
    """Does what the task says."""

    device_works = True

    def predict(self, prepared: Observation, guidance: Guidance | None = None) -> Any:
        match prepared.task:
            case "hang":
                hold_the_interpreter()
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "lose the device":
                self.device_works = False
                raise RuntimeError("CUDA error: device-side assert triggered")
            case "take long":
                time.sleep(1.5)
        return super().predict(prepared, guidance)

    def open_processors(self, action_names: Sequence[str] = ()) -> FakeProcessors:
        """Takes its time for a robot whose first joint is "slow PATH", and makes that file before."""
        name, _, path = action_names[0].partition(" ") if action_names else ("", "", "")
        if name == "slow":
            Path(path).touch()
            time.sleep(1.0)
        return super().open_processors(action_names)

    def works(self) -> bool:
        return self.device_works


class FarLoader(FakeLoader):
    """Does what the name says. "once PATH" loads as long as there is no such file, and makes it; "reads PATH"
    maps a file that somebody cuts short."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory = [DeviceMemory("cuda:0", 10, 20, 80, 0.5), DeviceMemory("cuda:1", 1, 2, 80, None)]

    def load(self, choice: PolicyChoice, report: Report) -> FakePolicy:
        name, _, path = choice.pretrained_name_or_path.partition(" ")
        match name:
            case "hangs":
                report(pb.Progress(stage=pb.PROGRESS_STAGE_LOADING))
                hold_the_interpreter()
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "reads":
                with Path(path).open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
                    os.truncate(path, 0)
                    content.read()
            case "once":
                if Path(path).exists():
                    raise RuntimeError("not twice")
                Path(path).touch()
        policy = super().load(choice, report)
        policy.__class__ = FarPolicy
        return policy


class ForkedLoader(FarLoader):
    """Cannot use its device where it is forked, as if an import had used CUDA."""

    @property
    def spoiled(self) -> bool:
        return os.getpid() != IMPORTED_IN


def make_loader(**arguments: Any) -> FarLoader:
    """What the processes call."""
    return FarLoader(batching=True, **arguments)


def make_forked_loader() -> ForkedLoader:
    """The same for a process that must not be forked."""
    return ForkedLoader()


class FetchingLoader(FakeLoader):
    """Fetches its policies from the hub."""

    def load(self, choice: PolicyChoice, report: Report) -> FakePolicy:
        if not is_directory(choice.pretrained_name_or_path):
            found = checkpoint.find(choice.pretrained_name_or_path, choice.revision, report)
            choice = replace(choice, revision=found.revision)
        return super().load(choice, report)
