"""Frames are decoded before their request is in line: slow ones hold up their own robot, and no superseded ones."""

import threading
import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from tests.service.conftest import Serve
from tests.service.fakes import (
    PATIENCE_SECONDS,
    FakeLoader,
    FakeProcessors,
    failing,
    fake_spec,
    observation,
    open_session,
    raw_image,
    robot,
)
from tests.service.test_waiting import reason_of

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire.errors import Reason


class Slow(FakeProcessors):
    """Prepares frames only while the gate is open, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.begun: list[int] = []

    def prepare_frame(self, key: str, frame: np.ndarray) -> np.ndarray:
        self.begun.append(int(frame[0, 0, 0]))
        assert self.gate.wait(PATIENCE_SECONDS)
        return super().prepare_frame(key, frame)


@pytest.fixture
def slow(loader: FakeLoader) -> Slow:
    """Processors for the next session to be opened: load the policy first."""
    return Slow()


def numbered(session: pb.SessionDescription, number: int) -> pb.PredictChunkRequest:
    frame = np.full((8, 10, 3), number, np.uint8)
    return observation(session, sequence=number, images=[raw_image("front", frame)])


def open_slow(stub, loader: FakeLoader, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> pb.SessionDescription:  # type: ignore[no-untyped-def]
    with monkeypatch.context() as patch:
        patch.setattr(loader.policies["policy"], "open_processors", lambda _: slow, raising=False)
        return open_session(stub)


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_frames_that_take_long_keep_no_other_robot_waiting(
    serve: Serve, loader: FakeLoader, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy's thread once waited for them, and everyone else with it."""
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    quick = open_session(service.stub)
    late = open_slow(service.stub, loader, slow, monkeypatch)
    call = service.stub.PredictChunk.future(numbered(late, 1))
    wait_until(lambda: slow.begun)
    for sequence in range(1, 4):
        assert service.stub.PredictChunk(numbered(quick, sequence), timeout=PATIENCE_SECONDS).step_count
    assert not call.done()
    slow.gate.set()
    assert call.result(PATIENCE_SECONDS).step_count


def test_many_frames_that_take_long_leave_a_thread_to_others(
    serve: Serve, loader: FakeLoader, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"camera_{number}" for number in range(12)]
    loader.spec = fake_spec(cameras={f"observation.images.{name}": (8, 10) for name in names})
    arm = robot(cameras=[pb.CameraSpec(name=name, height=8, width=10) for name in names])
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    quick = open_session(service.stub, robot=arm)
    with monkeypatch.context() as patch:
        patch.setattr(loader.policies["policy"], "open_processors", lambda _: slow, raising=False)
        late = open_session(service.stub, robot=arm)
    call = service.stub.PredictChunk.future(observation(late))
    wait_until(lambda: slow.begun)
    for sequence in range(1, 4):
        request = observation(quick, sequence=sequence)
        assert service.stub.PredictChunk(request, timeout=PATIENCE_SECONDS).step_count
    assert not call.done()
    slow.gate.set()
    assert call.result(PATIENCE_SECONDS).step_count
    assert len(slow.begun) == len(names)


def test_superseded_and_cancelled_frames_are_never_decoded(
    serve: Serve, loader: FakeLoader, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    open_session(service.stub)
    session = open_slow(service.stub, loader, slow, monkeypatch)
    first = service.stub.PredictChunk.future(numbered(session, 1))
    wait_until(lambda: slow.begun)
    waiting = service.stub.PredictChunk.future(numbered(session, 2))
    for number in range(3, 20):
        newer = service.stub.PredictChunk.future(numbered(session, number))
        assert reason_of(waiting) is Reason.SUPERSEDED
        waiting = newer
    waiting.cancel()
    wait_until(lambda: service.metric("observations_total", outcome="cancelled") == 1)
    # Whose own robot gave it up while it was decoded, which cannot be undone
    first.cancel()
    wait_until(lambda: service.metric("observations_total", outcome="cancelled") == 2)
    last = service.stub.PredictChunk.future(numbered(session, 20))
    slow.gate.set()
    assert last.result(PATIENCE_SECONDS).sequence == 20
    assert slow.begun == [1, 20]


def test_frames_are_not_waited_for_without_end(
    serve: Serve, loader: FakeLoader, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(obs_queue_timeout=0.2)
    open_session(service.stub)
    session = open_slow(service.stub, loader, slow, monkeypatch)
    with failing(Reason.QUEUE_TIMEOUT, "0.2 s"):
        service.stub.PredictChunk(numbered(session, 1), timeout=PATIENCE_SECONDS)
    slow.gate.set()


def test_a_broken_frame_is_refused_at_once_whoever_has_the_policy(serve: Serve, loader: FakeLoader) -> None:
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    session = open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(numbered(session, 1))
    policy.wait_until_predicting()
    broken = pb.Image(camera="front", codec=pb.IMAGE_CODEC_JPEG, height=8, width=10, data=b"no jpeg")
    with failing(Reason.INVALID_IMAGE, "'front'", "no such header"):
        service.stub.PredictChunk(observation(session, images=[broken]), timeout=PATIENCE_SECONDS)
    policy.gate.set()
    assert running.result(PATIENCE_SECONDS).step_count


def test_what_a_policy_cannot_prepare_is_its_own_fault(
    serve: Serve, loader: FakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    session = open_session(service.stub)

    def fail(key: str, frame: np.ndarray) -> np.ndarray:
        raise RuntimeError("of the year")

    monkeypatch.setattr(loader.policies["policy"].opened[0], "prepare_frame", fail)
    with failing(Reason.POLICY_FAILED) as caught:
        service.stub.PredictChunk(observation(session))
    assert "of the year" not in caught[0].message


def test_a_service_ends_while_frames_are_decoded(
    serve: Serve, loader: FakeLoader, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(obs_queue_timeout=PATIENCE_SECONDS, drain_timeout=0.2)
    open_session(service.stub)
    session = open_slow(service.stub, loader, slow, monkeypatch)
    call = service.stub.PredictChunk.future(numbered(session, 1))
    wait_until(lambda: slow.begun)
    service.stop(wait=False)
    with pytest.raises(grpc.RpcError):
        call.result(PATIENCE_SECONDS)
    slow.gate.set()
