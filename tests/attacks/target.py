"""The service as those see it who talk to it: the robot that must not notice anything, and the others."""

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_wire import images
from tests.attacks.pictures import photo
from tests.service.fakes import JOINTS, observation, open_session, opening, robot

HEIGHT, WIDTH = 240, 320
CAMERAS = ("front", "wrist")
FAULTS = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
# Far longer than anything here takes
PATIENCE_SECONDS = 10.0


class Target:
    """A connection of its own to the service, and what is said over it."""

    def __init__(self, port: int, metrics_port: int) -> None:
        self.port = port
        self.metrics_port = metrics_port
        self.channel = self.dial()
        self.stub = pb_grpc.PolicyServiceStub(self.channel)

    def dial(self) -> grpc.Channel:
        """Returns another connection. Whoever asks closes it."""
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)])

    def opening(self, **changes: Any) -> pb.OpenSessionRequest:
        """Returns a request that opens a session."""
        cameras = [pb.CameraSpec(name=name, height=HEIGHT, width=WIDTH) for name in CAMERAS]
        return opening(**{"robot": robot(cameras=cameras)} | changes)

    def session(self, **changes: Any) -> pb.SessionDescription:
        """Returns an open session."""
        cameras = [pb.CameraSpec(name=name, height=HEIGHT, width=WIDTH) for name in CAMERAS]
        return open_session(self.stub, robot=robot(cameras=cameras), **changes)

    def observation(self, session: pb.SessionDescription, **changes: Any) -> pb.PredictChunkRequest:
        """Returns an honest observation."""
        return observation(session, np.zeros(len(JOINTS)), **{"images": PHOTOS} | changes)

    def close(self, session: pb.SessionDescription) -> None:
        """Ends session."""
        self.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id), timeout=PATIENCE_SECONDS)

    def raw(self, path: str, data: bytes) -> None:
        """Calls a method with any bytes, and takes whatever comes."""
        tolerant(self.channel.unary_unary(path), data)


def picture(camera: str, codec: images.Codec, data: bytes) -> pb.Image:
    """Returns a frame that claims the agreed size."""
    kinds = {images.Codec.JPEG: pb.IMAGE_CODEC_JPEG, images.Codec.PNG: pb.IMAGE_CODEC_PNG}
    return pb.Image(camera=camera, codec=kinds[codec], height=HEIGHT, width=WIDTH, data=data)


def tolerant(call: Any, *arguments: Any) -> Any:
    """Returns what call returned, or None if the service refused. Every other failure is one of the attack's."""
    try:
        return call(*arguments, timeout=PATIENCE_SECONDS)
    except grpc.RpcError as error:
        # Refused is well; not to answer, or by a fault of one's own, is not
        if error.code() in FAULTS:  # type: ignore[attr-defined]
            raise
        return None


PHOTOS: Sequence[pb.Image] = [picture(name, images.Codec.JPEG, images.encode(photo(HEIGHT, WIDTH))) for name in CAMERAS]
