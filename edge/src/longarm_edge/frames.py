"""Camera frames as a session wants them: in the size that it names, packed."""

import math
from collections.abc import Mapping

import cv2
import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire import images
from longarm_wire.specs import CameraSpec

CODECS: Mapping[images.Codec, pb.ImageCodec] = {
    images.Codec.JPEG: pb.IMAGE_CODEC_JPEG,
    images.Codec.PNG: pb.IMAGE_CODEC_PNG,
    images.Codec.RAW: pb.IMAGE_CODEC_RAW,
}

# JPEG keeps half the resolution of colours. Of a frame that is scaled by more than this, that is further from what it
# would keep of the whole frame than all of it
HALVED_COLOURS_UP_TO = math.sqrt(2)


def pack_frame(camera: CameraSpec, frame: np.ndarray, codec: images.Codec, quality: int) -> pb.Image:
    """Returns one frame ready to travel.

    Args:
      camera: Name and size that the session asks for.
      frame: RGB, uint8, shape (height, width, 3), in the robot's own size.
      codec: How to pack.
      quality: JPEG quality, 1 to 100.
    """
    whole_colours = frame.shape[0] > HALVED_COLOURS_UP_TO * camera.height
    if frame.shape[:2] != (camera.height, camera.width):
        frame = _scaled(frame, camera)
    data = images.encode(frame, codec, quality=quality, whole_colours=whole_colours)
    return pb.Image(camera=camera.name, codec=CODECS[codec], height=camera.height, width=camera.width, data=data)


def _scaled(frame: np.ndarray, camera: CameraSpec) -> np.ndarray:
    """Returns frame as the policies resize that would do it otherwise: between centres of pixels, no antialiasing.

    In fractions, and rounded at the end: what OpenCV makes of bytes is an eighth of a step darker or brighter all over,
    which moves actions more than rounding does.
    """
    scaled = cv2.resize(frame.astype(np.float32), (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)
    return np.rint(scaled).astype(frame.dtype)
