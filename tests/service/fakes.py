"""Stand-ins for what runs policies, with faults by script, and a service that runs in this process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_service.app import Service
from longarm_service.policy import (
    DeviceMemory,
    Fingerprint,
    Guidance,
    LoadedPolicy,
    Observation,
    PolicyChoice,
    PolicyLoader,
    Processors,
    Report,
)
from longarm_service.settings import ServiceSettings
from longarm_wire import tensors
from longarm_wire.errors import Reason, WireError, from_rpc_error
from longarm_wire.specs import PolicySpec

JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")
HEIGHT, WIDTH = 8, 10
CHUNK_SIZE = 5
# Stands for what a traceback would give away
SECRET = "weights of the year"
# Long enough for a busy machine, short enough to notice a hang
PATIENCE_SECONDS = 20.0


@dataclass
class FakeProcessors(Processors):
    """Passes observations through and remembers what happened."""

    resets: int = 0
    remembered: Observation | None = None

    def prepare_frame(self, key: str, frame: np.ndarray) -> np.ndarray:
        assert key.startswith("observation.images.")
        return frame

    def preprocess(self, observation: Observation) -> Observation:
        self.remembered = observation
        return observation

    def postprocess(self, chunk: Any) -> np.ndarray:
        # Like relative actions: decoded against the memory of these processors, not against the chunk
        assert self.remembered is not None
        return np.asarray(chunk + self.remembered.state, np.float32)

    def in_model_space(self, chunk: Any) -> np.ndarray:
        return np.array(chunk, np.float32)

    def reset(self) -> None:
        self.resets += 1


@dataclass
class FakePolicy(LoadedPolicy):
    """Answers step i with state + i + mean of the first frame.

    faults holds one entry per coming prediction: "raise", "nan", "shape", or "" for none. While gate is cleared,
    predictions wait in the middle.
    """

    spec: PolicySpec
    fingerprint: Fingerprint
    saved_renames: Mapping[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    always: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    tasks: list[str] = field(default_factory=list)
    guidances: list[Guidance | None] = field(default_factory=list)
    opened: list[FakeProcessors] = field(default_factory=list)
    batching: bool = False
    batches: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def open_processors(self, action_names: Sequence[str] = ()) -> FakeProcessors:
        self.opened.append(FakeProcessors())
        return self.opened[-1]

    def predict(self, prepared: Observation, guidance: Guidance | None = None) -> np.ndarray:
        self.guidances.append(guidance)
        self.entered.release()
        assert self.gate.wait(PATIENCE_SECONDS)
        self.tasks.append(prepared.task)
        if prepared.task == "poison":
            raise RuntimeError(SECRET)
        fault = self.faults.pop(0) if self.faults else self.always
        if fault == "raise":
            raise RuntimeError(SECRET)
        chunk = np.tile(np.arange(CHUNK_SIZE, dtype=np.float32)[:, None], (1, len(JOINTS)))
        if fault == "nan":
            chunk[2, 1] = np.nan
        if fault == "shape":
            return chunk[:0]
        return chunk + np.float32(sum(frame.mean() for frame in prepared.images.values()))

    @property
    def takes_batches(self) -> bool:
        return self.batching

    def shape_of(self, prepared: Observation) -> Hashable:
        return prepared.task == "another shape"

    def predict_batch(self, prepared: Sequence[Observation]) -> list[np.ndarray]:
        """Fails as a whole if one of the tasks is "poison", as does predict."""
        self.batches.append([one.task for one in prepared])
        return [self.predict(one) for one in prepared]

    def wait_until_predicting(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_SECONDS)


def fake_spec(**changes: Any) -> PolicySpec:
    facts: dict[str, Any] = {
        "policy_type": "fake",
        "action_dim": len(JOINTS),
        "state_dim": len(JOINTS),
        "cameras": {"observation.images.front": (HEIGHT, WIDTH)},
        "chunk_size": CHUNK_SIZE,
    }
    return PolicySpec(**facts | changes)


@dataclass
class FakeLoader(PolicyLoader):
    """Loads any name but those beginning with "no" (not found), "bad" (does not load) and "torn" (may, the next time).
    While gate is cleared, loads wait in the middle."""

    COMMIT: ClassVar[str] = "c0ffee" + "0" * 34

    device: str = "cpu"
    dtype: str = ""
    device_name: str = "abacus"
    library_versions: Mapping[str, str] = field(default_factory=lambda: {"lerobot": "1.2", "torch": "3.4"})
    spec: PolicySpec = field(default_factory=fake_spec)
    saved_renames: Mapping[str, str] = field(default_factory=dict)
    batching: bool = False
    policies: dict[str, FakePolicy] = field(default_factory=dict)
    loads: list[PolicyChoice] = field(default_factory=list)
    outdated: set[str] = field(default_factory=set)
    memory: list[DeviceMemory] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.gate.set()

    def load(self, choice: PolicyChoice, report: Report) -> FakePolicy:
        name = choice.pretrained_name_or_path
        self.loads.append(choice)
        report(pb.Progress(stage=pb.PROGRESS_STAGE_LOADING, fraction=0.5, message=f"Loading {name}"))
        self.entered.release()
        assert self.gate.wait(PATIENCE_SECONDS)
        if name.startswith("far"):
            raise WireError(Reason.HUB_UNREACHABLE, f"{name!r}: the hub does not answer.")
        if name.startswith("no"):
            raise WireError(Reason.POLICY_NOT_FOUND, f"There is no {name!r}.")
        if name.startswith("bad"):
            raise WireError(Reason.POLICY_LOAD_FAILED, f"{name!r} does not load.")
        if name.startswith("torn"):
            raise WireError(Reason.POLICY_LOAD_FAILED, f"{name!r} was written to meanwhile.", files="changed")
        if name.startswith("bug"):
            raise RuntimeError(SECRET)
        self.outdated.discard(name)
        report(pb.Progress(stage=pb.PROGRESS_STAGE_WARMING_UP, fraction=1.0))
        digest = f"digest {len(self.loads)}"
        # Only names of the hub have a commit
        commit = (choice.revision or self.COMMIT) if name.startswith("lab/") else ""
        self.policies[name] = FakePolicy(
            self.spec, Fingerprint("fake", name, commit, digest), self.saved_renames, batching=self.batching
        )
        return self.policies[name]

    def is_current(self, policy: LoadedPolicy) -> bool:
        return policy.fingerprint.pretrained_name_or_path not in self.outdated

    def device_memory(self) -> list[DeviceMemory]:
        return self.memory

    def wait_until_loading(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_SECONDS)


@dataclass
class Clock:
    """Stands still until moved."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class RunningService:
    """A service on a thread of its own, on free ports, and a channel to it."""

    def __init__(self, settings: ServiceSettings, make_loader: Callable[[], PolicyLoader], **options: Any) -> None:
        self._options = options
        self._settings = settings
        self._make_loader = make_loader
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._listening = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="service under test")
        self._thread.start()
        assert self._listening.wait(PATIENCE_SECONDS)
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.service.port}")
        self.stub = pb_grpc.PolicyServiceStub(self.channel)

    def stop(self, *, wait: bool = True) -> None:
        """Drains the service."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        if wait:
            self._thread.join(PATIENCE_SECONDS)
            assert not self._thread.is_alive()

    def close(self) -> None:
        """Ends everything."""
        self.channel.close()
        if self._thread.is_alive():
            self.stop()

    def metric(self, name: str, **labels: str) -> float:
        """Returns the value of a sample."""
        value = self.service.metrics.registry.get_sample_value(f"longarm_service_{name}", labels)
        assert value is not None, f"{name} {labels} is not exported"
        return value

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with Service(self._settings, self._make_loader, **self._options) as self.service:
                preparing = asyncio.create_task(self.service.prepare())
                self._listening.set()
                stopping = asyncio.create_task(self._stop.wait())
                await asyncio.wait([preparing, stopping], return_when=asyncio.FIRST_COMPLETED)
                if preparing.done():
                    preparing.result()
                    await stopping
        except BaseException as error:
            self._failure = error
            if self._listening.is_set():
                raise
            self._listening.set()


def robot(**changes: Any) -> pb.RobotSpec:
    """Returns a robot that fits FakePolicy."""
    facts: dict[str, Any] = {
        "robot_type": "test_arm",
        "action_names": JOINTS,
        "state_names": JOINTS,
        "cameras": [pb.CameraSpec(name="front", height=HEIGHT, width=WIDTH)],
        "fps": 30.0,
    }
    return pb.RobotSpec(**facts | changes)


def opening(name: str = "policy", **changes: Any) -> pb.OpenSessionRequest:
    """Returns a request that opens a session."""
    return pb.OpenSessionRequest(**{"pretrained_name_or_path": name, "robot": robot(), "task": "pick"} | changes)


def open_session(stub: pb_grpc.PolicyServiceStub, name: str = "policy", **changes: Any) -> pb.SessionDescription:
    """Returns an open session."""
    *_, last = stub.OpenSession(opening(name, **changes), timeout=PATIENCE_SECONDS)
    assert last.HasField("session")
    return last.session


def observation(session: pb.SessionDescription, state: Any = (1.0, 2.0, 3.0), **changes: Any) -> pb.PredictChunkRequest:
    """Returns a request with black raw frames that fits session."""
    facts: dict[str, Any] = {
        "session_id": session.session_id,
        "sequence": 1,
        "tick": 7,
        "state": state if isinstance(state, bytes) else tensors.pack(np.asarray(state, np.float32)),
        "images": [raw_image(c.name, np.zeros((c.height, c.width, 3), np.uint8)) for c in session.cameras],
    }
    return pb.PredictChunkRequest(**facts | changes)


def raw_image(camera: str, frame: np.ndarray) -> pb.Image:
    """Returns frame unpacked."""
    return pb.Image(
        camera=camera,
        codec=pb.IMAGE_CODEC_RAW,
        height=frame.shape[0],
        width=frame.shape[1],
        data=frame.tobytes(),
    )


def actions_of(response: pb.PredictChunkResponse, action_dim: int = len(JOINTS)) -> np.ndarray:
    """Returns the chunk of response."""
    return tensors.unpack(response.actions, (response.step_count, action_dim))


@contextlib.contextmanager
def failing(reason: Reason, *words: str) -> Iterator[list[WireError]]:
    """Expects a call to fail with reason and with words in its message; the failure is put in the list."""
    caught: list[WireError] = []
    with pytest.raises(grpc.RpcError) as raised:
        yield caught
    failure = from_rpc_error(raised.value)
    assert failure is not None, raised.value
    assert failure.reason is reason, failure
    for word in words:
        assert word in failure.message, failure.message
    caught.append(failure)
