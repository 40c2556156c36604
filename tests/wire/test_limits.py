"""Message limits have room for what a session sends, and are finite."""

from typing import Any

import numpy as np
import pytest

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire import images, limits, tensors
from longarm_wire.specs import CameraSpec


def test_the_limit_is_every_frame_raw_and_the_overhead() -> None:
    cameras = [CameraSpec("front", 480, 640), CameraSpec("wrist", 240, 320)]
    assert limits.max_request_bytes(cameras) == (480 * 640 + 240 * 320) * 3 + limits.OVERHEAD_BYTES
    assert limits.max_request_bytes([]) == limits.OVERHEAD_BYTES


def test_a_session_may_send_no_more_than_the_service_accepts() -> None:
    cameras = [CameraSpec(name, 2000, 4000) for name in ("front", "wrist")]
    assert limits.max_request_bytes(cameras) == limits.MAX_REQUEST_BYTES


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        (images.Codec.RAW, {}),
        (images.Codec.PNG, {}),
        (images.Codec.JPEG, {"quality": 100}),
        (images.Codec.JPEG, {"quality": 100, "whole_colours": True}),
    ],
)
def test_the_worst_frames_fit(codec: images.Codec, options: dict[str, Any]) -> None:
    cameras = [CameraSpec(name, 480, 640) for name in ("front", "wrist")]
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    request = pb.PredictChunkRequest(
        session_id="x" * 36,
        state=tensors.pack(np.zeros(100)),
        images=[
            pb.Image(camera=c.name, height=480, width=640, data=images.encode(noise, codec, **options)) for c in cameras
        ],
        task="Put the cube into the bin. " * 100,
        rtc_prefix=pb.RtcPrefix(
            model_actions=tensors.pack(np.zeros((100, 32))), robot_actions=tensors.pack(np.zeros((100, 32)))
        ),
    )
    assert request.ByteSize() <= limits.max_request_bytes(cameras) <= limits.MAX_REQUEST_BYTES


def test_the_longest_reply_fits() -> None:
    actions = tensors.pack(np.zeros((1000, 64)))
    assert pb.PredictChunkResponse(actions=actions, model_actions=actions).ByteSize() <= limits.MAX_RESPONSE_BYTES
