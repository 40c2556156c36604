"""What runs in the process of one policy: loads it, and answers the service's calls on a socket until that ends.

A call is {"id", "call", ...} and is answered by {"id", "result"} or {"id", "failure"}, a load before that by any number
of {"id", "progress"}. Predictions are made on the thread that reads; what takes time beside them has others.
"""

import contextlib
import itertools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from pydantic import TypeAdapter

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import failures, parcels
from longarm_service.policy import LoadedPolicy, Observation, Order, PolicyChoice, PolicyLoader, Processors
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcConfig, RtcPrefix

# The device forgot everything: only a new process gets a new context on it
EXIT_DEVICE_FAILED = 70
# A load computes beside policies that robots wait for. Of the 19 from normal to lowest
LOADING_NICENESS = 15
# Where memory runs out, the kernel is to end who loads and not who runs. Of 1000
LOADING_OOM_SCORE = 500

logger = logging.getLogger(__name__)
_rtc_config = TypeAdapter(RtcConfig)


def serve(connection: socket.socket, make_loader: Callable[..., PolicyLoader]) -> None:
    """Answers calls until the connection ends, and then ends the process, whatever it is in the middle of."""
    host = _Host(connection, make_loader)
    while (message := parcels.receive(connection)) is not None:
        host.take(message)
    logging.shutdown()
    os._exit(0)


class _Host:
    """One loader, one policy, and the processors of its sessions by number."""

    def __init__(self, connection: socket.socket, make_loader: Callable[..., PolicyLoader]) -> None:
        self._connection = connection
        self._make_loader = make_loader
        self._sending = threading.Lock()
        self._loader: PolicyLoader | None = None
        self._policy: LoadedPolicy | None = None
        self._numbers = itertools.count()
        self._processors: dict[int, Processors] = {}
        self._device_failed = False
        loading = ThreadPoolExecutor(1, "load", initializer=_stand_back)
        beside = ThreadPoolExecutor(2, "beside")
        self._calls: dict[str, tuple[ThreadPoolExecutor | None, Callable[[dict[str, Any]], Any]]] = {
            "start": (loading, self._start),
            "load": (loading, self._load),
            "answer": (None, self._answer),
            "open": (beside, self._open),
            "is_current": (beside, self._is_current),
            "memory": (beside, self._memory),
        }

    def take(self, message: dict[str, Any]) -> None:
        """Predicts, or begins to do what else a message asks for."""
        for number in message["closed"]:
            self._processors.pop(number, None)
        threads, action = self._calls[message["call"]]
        if threads is None:
            # Here, since each change of threads costs, and what comes meanwhile has time
            self._do(action, message)
        else:
            threads.submit(self._do, action, message)

    def _do(self, action: Callable[[dict[str, Any]], Any], message: dict[str, Any]) -> None:
        try:
            outcome = {"result": action(message)}
        except WireError as error:
            outcome = {"failure": _told(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must learn of it
            outcome = {"failure": _told(failures.fault(Reason.INTERNAL, f"The call {message['call']!r} failed", error))}
        self._send({"id": message["id"], **outcome})
        if self._device_failed:
            logger.error("the device does not work any more: this process of a policy ends")
            logging.shutdown()
            os._exit(EXIT_DEVICE_FAILED)

    def _send(self, message: dict[str, Any]) -> None:
        # When the service has ended, the thread that reads learns of it
        with contextlib.suppress(OSError), self._sending:
            parcels.send(self._connection, message)

    def _start(self, message: dict[str, Any]) -> dict[str, Any]:
        self._loader = self._make_loader(**message["arguments"])
        facts = ("device", "dtype", "device_name", "library_versions", "spoiled")
        return {name: getattr(self._loader, name) for name in facts}

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        def report(progress: pb.Progress) -> None:
            self._send({"id": message["id"], "progress": json_format.MessageToDict(progress)})

        assert self._loader is not None  # noqa: S101 - start comes first
        with _first_to_go():
            policy = self._loader.load(PolicyChoice(**message["choice"]), report)
        assert isinstance(policy, LoadedPolicy)  # noqa: S101 - there is no other kind within a process
        self._policy = policy
        return {name: getattr(policy, name) for name in ("spec", "fingerprint", "saved_renames", "takes_batches")}

    def _open(self, message: dict[str, Any]) -> int:
        number = next(self._numbers)
        self._processors[number] = self._loaded.open_processors(message["action_names"])
        return number

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        forwards: list[int] = []
        orders = [self._attempted(order) for order in message["orders"]]
        answers = iter(self._loaded.answer([one for one in orders if isinstance(one, Order)], forwards.append))
        outcomes = [next(answers) if isinstance(one, Order) else one for one in orders]
        self._device_failed = any(isinstance(one, Exception) for one in outcomes) and not self._loaded.works()
        told = [{"failure": _told(one)} if isinstance(one, WireError) else {"answer": one} for one in outcomes]
        return {"answers": told, "forwards": forwards}

    def _attempted(self, order: dict[str, Any]) -> Order | WireError:
        try:
            return self._order(**order)
        except Exception as error:  # noqa: BLE001 - what fails for one of them fails for no other
            kind = self._loaded.spec.policy_type
            return failures.fault(Reason.POLICY_FAILED, f"The {kind} policy failed", error)

    def _order(
        self,
        processors: int,
        observation: dict[str, Any],
        new_episode: bool,
        rtc: dict[str, Any] | None,
        prefix: dict[str, Any] | None,
    ) -> Order:
        own = self._processors[processors]
        frames = {key: own.prepare_frame(key, frame) for key, frame in observation["images"].items()}
        return Order(
            processors=own,
            observation=Observation(**observation | {"images": frames}),
            new_episode=new_episode,
            rtc=None if rtc is None else _rtc_config.validate_python(rtc),
            prefix=None if prefix is None else RtcPrefix(**prefix),
        )

    def _is_current(self, _: dict[str, Any]) -> bool:
        assert self._loader is not None  # noqa: S101
        return self._loader.is_current(self._loaded)

    def _memory(self, _: dict[str, Any]) -> list[Any]:
        return [] if self._loader is None else list(self._loader.device_memory())

    @property
    def _loaded(self) -> LoadedPolicy:
        assert self._policy is not None  # noqa: S101 - load comes first
        return self._policy


def _told(error: WireError) -> dict[str, Any]:
    return {"reason": error.reason.value, "message": error.message, "metadata": error.metadata}


def _stand_back() -> None:
    """Lowers the priority of this thread, and of the threads that it starts."""
    # Elsewhere than on Linux threads have none of their own
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + LOADING_NICENESS)


@contextlib.contextmanager
def _first_to_go() -> Iterator[None]:
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        before = score.read_text()
        score.write_text(str(max(int(before), LOADING_OOM_SCORE)))
    yield
    with contextlib.suppress(OSError, NameError):
        score.write_text(before)
