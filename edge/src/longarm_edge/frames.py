"""Camera frames as a session wants them: in the size that it names, packed."""

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


def pack_frame(camera: CameraSpec, frame: np.ndarray, codec: images.Codec, quality: int) -> pb.Image:
    """Returns one frame ready to travel.

    Args:
      camera: Name and size that the session asks for.
      frame: RGB, uint8, shape (height, width, 3), in the robot's own size.
      codec: How to pack.
      quality: JPEG quality, 1 to 100.
    """
    if frame.shape[:2] != (camera.height, camera.width):
        # As the policies resize that would do it otherwise: bilinear between centres of pixels, no antialiasing
        frame = cv2.resize(frame, (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)
    data = images.encode(frame, codec, quality=quality)
    return pb.Image(camera=camera.name, codec=CODECS[codec], height=camera.height, width=camera.width, data=data)
