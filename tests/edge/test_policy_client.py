"""What a peer may answer without harm: a service at fault, or something else in its place."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1.policy_service_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server
from longarm_edge.policy_client import PolicyChoice, PolicyClient
from longarm_edge.robot import RobotReading
from longarm_wire import tensors
from longarm_wire.errors import WireError
from longarm_wire.images import Codec
from longarm_wire.specs import CameraSpec, RobotSpec

JOINTS = ("pan.pos", "lift.pos")
ROBOT = RobotSpec("arm", JOINTS, JOINTS, (CameraSpec("front", 48, 64),), 30.0)


@dataclass
class Peer(PolicyServiceServicer):
    """Answers as a service would, except for what a test changes."""

    camera: dict[str, Any] = field(default_factory=lambda: {"name": "front", "height": 48, "width": 64})
    change: Callable[[pb.PredictChunkResponse], object] = lambda _: None
    ended: list[bool] = field(default_factory=list)

    def OpenSession(self, request, context):
        session = pb.SessionDescription(session_id="1", action_names=JOINTS, state_names=JOINTS, chunk_size=30)
        session.cameras.add(**self.camera)
        yield pb.OpenSessionResponse(session=session)
        # Long enough for a caller that hangs up to be noticed
        time.sleep(0.2)
        self.ended.append(context.is_active())

    def PredictChunk(self, request, context):
        response = pb.PredictChunkResponse(
            sequence=request.sequence,
            episode=request.episode,
            tick=request.tick,
            step_count=30,
            actions=tensors.pack(np.zeros((30, 2), np.float32)),
        )
        self.change(response)
        return response


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def client(peer: Peer) -> Iterator[PolicyClient]:
    server = grpc.server(ThreadPoolExecutor(2))
    add_PolicyServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with PolicyClient(f"127.0.0.1:{port}", Codec.JPEG, 90) as client:
        yield client
    server.stop(0).wait()


def predict(client: PolicyClient) -> None:
    session = client.open_session(PolicyChoice("act"), ROBOT, timeout=10)
    reading = RobotReading(state=np.zeros(2, np.float32), images={"front": np.zeros((48, 64, 3), np.uint8)})
    client.predict(session, reading, episode=2, tick=100, timeout=10)


def test_what_a_service_answers(client: PolicyClient) -> None:
    predict(client)


def test_an_opening_is_heard_to_its_end(client: PolicyClient, peer: Peer) -> None:
    """A service takes a caller that hangs up for gone, and closes the session."""
    client.open_session(PolicyChoice("act"), ROBOT, timeout=10)
    assert peer.ended == [True]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: setattr(r.durations.predict_duration, "seconds", 2**62),
        lambda r: setattr(r, "tick", 101),
        lambda r: setattr(r, "episode", 1),
        lambda r: setattr(r, "sequence", 7),
        lambda r: setattr(r, "step_count", -1),
    ],
)
def test_a_reply_that_is_none_costs_one_observation_and_not_the_run(client: PolicyClient, peer: Peer, change) -> None:
    peer.change = change
    with pytest.raises(WireError):
        predict(client)


@pytest.mark.parametrize(("height", "width"), [(0, 64), (-1, -1), (20_000, 20_000)])
def test_frames_that_cannot_be_made_are_refused_at_the_start(
    client: PolicyClient, peer: Peer, height: int, width: int
) -> None:
    peer.camera.update(height=height, width=width)
    with pytest.raises(WireError, match="front"):
        predict(client)
