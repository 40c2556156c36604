"""Policies in processes of their own, as the service sees them.

Whatever a load or a policy does (set torch's default type, hold the interpreter's lock, collect garbage, take all
memory, hang, crash, leave the GPU in an error) it does to itself, and what it leaves behind ends with its process.
"""

import itertools
import logging
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from google.protobuf import json_format
from pydantic import TypeAdapter

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import parcels
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
from longarm_service.policy_process import EXIT_DEVICE_FAILED
from longarm_wire.errors import Reason, WireError
from longarm_wire.specs import PolicySpec

LEROBOT_LOADER = "longarm_service.lerobot_loader:LerobotLoader"
# For what takes a policy's process a moment
CALL_SECONDS = 60.0
# At a scrape
MEMORY_SECONDS = 1.0
# For the kernel to free what a process had, which comes before its end
FATE_SECONDS = 10.0

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
        self._processes: frozenset[_Process] = frozenset()
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
        """See PolicyLoader. A process that is killed or hangs is POLICY_LOAD_FAILED."""
        name = choice.pretrained_name_or_path
        process, _ = self._started()

        def on_progress(progress: dict[str, Any]) -> None:
            report(json_format.ParseDict(progress, pb.Progress()))

        try:
            facts = process.call("load", self._load_timeout_seconds, on_progress, choice=choice)
        except _ProcessEndedError as error:
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

    def _started(self) -> tuple["_Process", dict[str, Any]]:
        """Returns a new process with a loader in it, and what that says of itself."""
        try:
            process = _Process(self._server, self._predict_timeout_seconds)
        except ForkServerError as error:
            raise WireError(Reason.INTERNAL, str(error)) from error
        self._processes = frozenset({process, *(one for one in self._processes if one.fate is None)})
        try:
            return process, process.call("start", FORK_SECONDS, arguments=self._arguments)
        except _ProcessEndedError as error:
            raise WireError(Reason.INTERNAL, f"A process for a policy did not start. {error}") from error
        except BaseException:
            process.end("It did not start.")
            raise


class ProcessPolicy(ServedPolicy):
    """A policy in another process."""

    def __init__(
        self,
        process: "_Process",
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

    def open_processors(self) -> "RemoteProcessors":
        """Lets the process make some; see ServedPolicy."""
        return RemoteProcessors(self._process, self._call("open", CALL_SECONDS))

    def answer(self, orders: Sequence[Order], on_forward: Callable[[int], object]) -> list[Answer | Exception]:
        """Sends orders there; see ServedPolicy. A process that takes too long is ended."""
        result = self._call("answer", self._timeout_seconds, orders=[_numbered(order) for order in orders])
        for count in result["forwards"]:
            on_forward(count)
        return [Answer(**one["answer"]) if "answer" in one else _failure(one["failure"]) for one in result["answers"]]

    def is_current(self) -> bool:
        """See PolicyLoader.is_current."""
        try:
            return bool(self._process.call("is_current", CALL_SECONDS))
        except _ProcessEndedError:
            return False

    def close(self) -> None:
        """Ends the process."""
        self._process.end("Nobody used it any more.")

    def _call(self, call: str, timeout_seconds: float, **arguments: Any) -> Any:
        try:
            return self._process.call(call, timeout_seconds, **arguments)
        except _ProcessEndedError as error:
            raise WireError(
                Reason.POLICY_FAILED,
                f"The {self.spec.policy_type} policy is gone: {error} A new session loads it anew.",
            ) from error


class RemoteProcessors(SessionProcessors):
    """A session's processors in a policy's process, known by their number."""

    def __init__(self, process: "_Process", number: int) -> None:
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


class _ProcessEndedError(Exception):
    """A process has ended and answers no more. The message says why, in a sentence."""


class _Process:
    """The service's end of one process. For any thread.

    Attributes:
      closed: Numbers of processors to forget, which go along with the next call.
      fate: Why it answers no more, in a sentence; None while it does.
    """

    def __init__(self, server: ForkServer, timeout_seconds: float) -> None:
        """Forks it.

        Args:
          server: From which.
          timeout_seconds: How long it may take to read what is sent to it.

        Raises:
          ForkServerError: There is nothing to fork from.
        """
        self.closed: deque[int] = deque()
        self.fate: str | None = None
        self._server = server
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, SimpleQueue[dict[str, Any] | None]] = {}
        self._pid, self._connection = server.fork()
        # One that reads nothing must not hold whoever asks for ever
        patience = struct.pack("@ll", int(timeout_seconds), int(timeout_seconds % 1 * 1e6))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        threading.Thread(target=self._read, name=f"policy process {self._pid}", daemon=True).start()

    def call(
        self,
        call: str,
        timeout_seconds: float,
        on_progress: Callable[[dict[str, Any]], object] = lambda _: None,
        **arguments: Any,
    ) -> Any:
        """Returns what it answers. A process that says nothing for timeout_seconds is ended.

        Raises:
          WireError: The failure that it answers.
          _ProcessEndedError: It ended, or is ended now.
        """
        try:
            return self._ask(call, timeout_seconds, on_progress, arguments)
        except TimeoutError:
            self.end(f"Its process hung: it said nothing for {timeout_seconds:g} s, and was ended.")
            raise _ProcessEndedError(self.fate) from None

    def memory(self) -> list[DeviceMemory]:
        """Returns what it says of its GPUs; nothing if it is busy with something else."""
        try:
            told = self._ask("memory", MEMORY_SECONDS, lambda _: None, {})
        except (TimeoutError, WireError, _ProcessEndedError):
            return []
        return [DeviceMemory(**one) for one in told]

    def end(self, why: str) -> None:
        """Ends it at once, whatever it does. Never waits."""
        if self.fate is None:
            self.fate = why
        self._server.kill(self._pid)

    def _ask(
        self,
        call: str,
        timeout_seconds: float,
        on_progress: Callable[[dict[str, Any]], object],
        arguments: dict[str, Any],
    ) -> Any:
        number = next(self._numbers)
        answers = self._waiting[number] = SimpleQueue()
        try:
            # Only now: whoever sets the fate then looks for those who wait
            if self.fate is not None:
                raise _ProcessEndedError(self.fate)
            self._send({"id": number, "call": call, "closed": self._forgotten(), **arguments})
            while True:
                try:
                    message = answers.get(timeout=timeout_seconds)
                except Empty:
                    raise TimeoutError from None
                if message is None:
                    raise _ProcessEndedError(self.fate)
                if "progress" not in message:
                    break
                on_progress(message["progress"])
        finally:
            del self._waiting[number]
        if "failure" in message:
            raise _failure(message["failure"])
        return message["result"]

    def _send(self, message: dict[str, Any]) -> None:
        try:
            with self._sending:
                parcels.send(self._connection, message)
        except BlockingIOError:
            raise TimeoutError from None
        except OSError:
            # It has ended: the thread that reads finds out how
            return

    def _forgotten(self) -> list[int]:
        numbers = []
        while self.closed:
            numbers.append(self.closed.popleft())
        return numbers

    def _read(self) -> None:
        while (message := parcels.receive(self._connection)) is not None:
            answers = self._waiting.get(message["id"])
            if answers is not None:
                answers.put(message)
        status = self._server.status(self._pid, FATE_SECONDS)
        if self.fate is None:
            self.fate = _fate(status)
            logger.error("a policy is gone. %s", self.fate)
        for answers in list(self._waiting.values()):
            answers.put(None)
        with self._sending:
            self._connection.close()


def _fate(status: int | None) -> str:
    """Returns what an exit code that nobody asked for means, as a sentence."""
    if status == -signal.SIGKILL:
        return (
            "Its process was killed (SIGKILL), as the kernel does where memory runs out. Give the machine or container "
            "more memory, or the service fewer or smaller policies (max_loaded_policies, dtype)."
        )
    if status == EXIT_DEVICE_FAILED:
        return "Its device failed, and its process ended. The service's log says how."
    if status is not None and status < 0:
        return f"Its process crashed ({signal.Signals(-status).name}). The service's log may say more."
    return f"Its process ended (exit code {status}). The service's log may say more."


def _failure(told: Mapping[str, Any]) -> WireError:
    return WireError(Reason(told["reason"]), told["message"], **told["metadata"])


def _added(one: DeviceMemory, other: DeviceMemory) -> DeviceMemory:
    busy = [value for value in (one.utilization, other.utilization) if value is not None]
    return DeviceMemory(
        device=one.device,
        allocated_bytes=one.allocated_bytes + other.allocated_bytes,
        reserved_bytes=one.reserved_bytes + other.reserved_bytes,
        total_bytes=one.total_bytes,
        utilization=max(busy, default=None),
    )
