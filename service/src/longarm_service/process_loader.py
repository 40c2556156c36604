"""Policies in processes of their own, as the service sees them.

Whatever a load or a policy does (set torch's default type, hold the interpreter's lock, collect garbage, take all
memory, hang, crash, leave the GPU in an error) it does to itself, and what it leaves behind ends with its process.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from google.protobuf import json_format
from pydantic import TypeAdapter

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.fork_server import FORK_SECONDS, ForkServer, ForkServerError
from longarm_service.policy import (
    Answer,
    DeviceMemory,
    Fingerprint,
    Order,
    PolicyChoice,
    PolicyLoader,
    Report,
    ServedPolicy,
    SessionProcessors,
)
from longarm_service.process_call import PolicyProcess, ProcessEndedError, failure_told
from longarm_wire.errors import Reason, WireError
from longarm_wire.specs import PolicySpec

LEROBOT_LOADER = "longarm_service.lerobot_loader:LerobotLoader"
# For what takes a policy's process a moment, once it is at it: a prediction that is under way comes first
CALL_SECONDS = 30.0

logger = logging.getLogger(__name__)
_policy_spec = TypeAdapter(PolicySpec)


class ProcessLoader(PolicyLoader):
    """Loads each policy in a new process, with a loader there. For any thread, several loads at a time."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        load_timeout_seconds: float,
        predict_timeout_seconds: float,
        factory: str = LEROBOT_LOADER,
        imports: Sequence[str] = (),
        log_level: str = "info",
    ) -> None:
        """Starts what processes are forked from, and asks a first one what there is.

        Args:
          arguments: For factory.
          load_timeout_seconds: How long a load may be without news.
          predict_timeout_seconds: How long one call of ServedPolicy.answer may take.
          factory: MODULE:FUNCTION that makes the loader in each process.
          imports: Further modules to import there.
          log_level: Least severity of the processes' log lines.

        Raises:
          WireError: What factory raises; INTERNAL if there is no process.
        """
        self._arguments = dict(arguments)
        self._load_timeout_seconds = load_timeout_seconds
        self._predict_timeout_seconds = predict_timeout_seconds
        self._processes: frozenset[PolicyProcess] = frozenset()
        self._server = ForkServer(factory, imports, log_level)
        facts = self._facts()
        if facts["spoiled"]:
            logger.warning("a module that is imported uses the GPU: policies take seconds longer to load")
            self._server.close()
            self._server = ForkServer(factory, imports, log_level, fresh=True)
            facts = self._facts()
        self.device: str = facts["device"]
        self.dtype: str = facts["dtype"]
        self.device_name: str = facts["device_name"]
        self.library_versions: Mapping[str, str] = facts["library_versions"]

    def _facts(self) -> dict[str, Any]:
        """Returns what a loader in a process says of itself and the device."""
        try:
            process, facts = self._started()
        except BaseException:
            self._server.close()
            raise
        process.end("It was asked all that there was to ask.")
        return facts

    @property
    def failure(self) -> str | None:
        """Whether there is nothing left to fork from."""
        return (
            "The program that makes a process for each policy ended. The service's log says why."
            if self._server.ended
            else None
        )

    def load(self, choice: PolicyChoice, report: Report) -> "ProcessPolicy":
        """See PolicyLoader. A process that is killed or hangs is POLICY_LOAD_FAILED.

        News is reported again every second: that ends the process soon after nobody waits for it any more.
        """
        name = choice.pretrained_name_or_path
        process, _ = self._started()
        news = pb.Progress(stage=pb.PROGRESS_STAGE_LOADING, message=f"Loading {name}")

        def on_progress(progress: dict[str, Any] | None) -> None:
            nonlocal news
            if progress is not None:
                news = json_format.ParseDict(progress, pb.Progress())
            report(news)

        try:
            facts = process.call("load", self._load_timeout_seconds, on_progress, choice=choice)
        except ProcessEndedError as error:
            # Another try may well succeed
            raise WireError(Reason.POLICY_LOAD_FAILED, f"Loading {name!r} failed. {error}", process="ended") from error
        except BaseException:
            process.end("It loaded nothing.")
            raise
        return ProcessPolicy(
            process,
            self._predict_timeout_seconds,
            _policy_spec.validate_python(facts["spec"]),
            Fingerprint(**facts["fingerprint"]),
            facts["saved_renames"],
            takes_batches=facts["takes_batches"],
        )

    def is_current(self, policy: ServedPolicy) -> bool:
        """Asks the policy's own process. One that has ended is not."""
        assert isinstance(policy, ProcessPolicy)  # noqa: S101 - there is no other kind here
        return policy.is_current()

    def device_memory(self) -> list[DeviceMemory]:
        """Adds up what all processes say. One that does not answer at once is left out."""
        total: dict[str, DeviceMemory] = {}
        for process in self._processes:
            for one in process.memory():
                so_far = total.get(one.device)
                total[one.device] = one if so_far is None else _added(so_far, one)
        return [total[device] for device in sorted(total)]

    def close(self) -> None:
        """Ends all processes."""
        self._server.close()

    def _started(self) -> tuple[PolicyProcess, dict[str, Any]]:
        """Returns a new process with a loader in it, and what that says of itself."""
        try:
            process = PolicyProcess(self._server, self._predict_timeout_seconds)
        except ForkServerError as error:
            raise WireError(Reason.INTERNAL, str(error)) from error
        self._processes = frozenset({process, *(one for one in self._processes if one.fate is None)})
        try:
            return process, process.call("start", FORK_SECONDS, arguments=self._arguments)
        except ProcessEndedError as error:
            raise WireError(Reason.INTERNAL, f"A process for a policy did not start. {error}") from error
        except BaseException:
            process.end("It did not start.")
            raise


class ProcessPolicy(ServedPolicy):
    """A policy in another process."""

    def __init__(
        self,
        process: PolicyProcess,
        timeout_seconds: float,
        spec: PolicySpec,
        fingerprint: Fingerprint,
        saved_renames: Mapping[str, str],
        *,
        takes_batches: bool,
    ) -> None:
        self.spec = spec
        self.fingerprint = fingerprint
        self.saved_renames = saved_renames
        self._process = process
        self._timeout_seconds = timeout_seconds
        self._takes_batches = takes_batches

    @property
    def takes_batches(self) -> bool:
        """See ServedPolicy."""
        return self._takes_batches

    @property
    def failure(self) -> str | None:
        """What became of the process."""
        return self._process.fate

    def open_processors(self, action_names: Sequence[str] = ()) -> "RemoteProcessors":
        """Lets the process make some; see ServedPolicy."""
        number = self._call("open", self._timeout_seconds + CALL_SECONDS, action_names=action_names)
        return RemoteProcessors(self._process, number)

    def answer(self, orders: Sequence[Order], on_forward: Callable[[int], object]) -> list[Answer | Exception]:
        """Sends orders there; see ServedPolicy. A process that takes too long is ended."""
        result = self._call("answer", self._timeout_seconds, orders=[_numbered(order) for order in orders])
        for count in result["forwards"]:
            on_forward(count)
        return [
            Answer(**one["answer"]) if "answer" in one else failure_told(one["failure"]) for one in result["answers"]
        ]

    def is_current(self) -> bool:
        """See PolicyLoader.is_current."""
        try:
            return bool(self._process.call("is_current", self._timeout_seconds + CALL_SECONDS))
        except ProcessEndedError:
            return False

    def close(self) -> None:
        """Ends the process."""
        self._process.end("Nobody used it any more.")

    def _call(self, call: str, timeout_seconds: float, **arguments: Any) -> Any:
        try:
            return self._process.call(call, timeout_seconds, **arguments)
        except ProcessEndedError as error:
            raise WireError(
                Reason.POLICY_FAILED,
                f"The {self.spec.policy_type} policy is gone: {error} A new session loads it anew.",
            ) from error


class RemoteProcessors(SessionProcessors):
    """A session's processors in a policy's process, known by their number."""

    def __init__(self, process: PolicyProcess, number: int) -> None:
        self._process = process
        self.number = number

    def prepare_frame(self, key: str, frame: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Returns frame as it is: it is prepared where it is needed."""
        return frame

    def close(self) -> None:
        """Lets the process forget them at its next call."""
        self._process.closed.append(self.number)


def _numbered(order: Order) -> Order:
    return replace(order, processors=order.processors.number)


def _added(one: DeviceMemory, other: DeviceMemory) -> DeviceMemory:
    busy = [value for value in (one.utilization, other.utilization) if value is not None]
    return DeviceMemory(
        device=one.device,
        allocated_bytes=one.allocated_bytes + other.allocated_bytes,
        reserved_bytes=one.reserved_bytes + other.reserved_bytes,
        total_bytes=one.total_bytes,
        utilization=max(busy, default=None),
    )
