"""Camera frames as bytes: JPEG, PNG or raw rows, always RGB outside this module."""

from enum import StrEnum

import cv2
import numpy as np

from longarm_wire import _frames

DEFAULT_JPEG_QUALITY = 90
# A frame of 8 megapixels is four times what any robot camera here delivers
MAX_PIXELS = 8_000_000


class Codec(StrEnum):
    """How a frame is packed."""

    JPEG = "jpeg"
    PNG = "png"
    RAW = "raw"


class ImageError(ValueError):
    """A frame cannot be packed, or bytes are not the frame they should be."""


def encode(
    frame: np.ndarray,
    codec: Codec = Codec.JPEG,
    *,
    quality: int = DEFAULT_JPEG_QUALITY,
    whole_colours: bool = False,
) -> bytes:
    """Returns frame packed.

    Args:
      frame: uint8, shape (height, width, 3), RGB.
      codec: How to pack.
      quality: JPEG quality, 1 to 100; other codecs are lossless and ignore it.
      whole_colours: Whether a JPEG has colours in full resolution (4:4:4) instead of half of it (4:2:0).

    Raises:
      ImageError: frame has another shape or dtype, or more than MAX_PIXELS.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ImageError(f"Expected a uint8 frame of shape (height, width, 3) but found {frame.dtype} {frame.shape}")
    _check_size(frame.shape[0], frame.shape[1])
    if codec == Codec.RAW:
        return frame.tobytes()
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    # PNG level 1 is four times as fast as the default for a few percent more bytes
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if codec == Codec.JPEG:
        sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if whole_colours else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    try:
        done, data = cv2.imencode(f".{codec.value}", bgr, options)
    except cv2.error:
        done = False
    if not done:
        raise ImageError(f"The {codec.value} encoder refused a frame of shape {frame.shape}")
    return data.tobytes()


def decode(data: bytes, codec: Codec, height: int, width: int) -> np.ndarray:
    """Returns the frame that data holds. The size is checked before anything is decompressed.

    Time and memory are bounded by the size and by len(data): a decoder sees nothing else than the frame (_frames.py).

    Args:
      data: What encode returned, from a peer that is not trusted.
      codec: How it was packed.
      height: Expected rows.
      width: Expected columns.

    Returns:
      uint8, shape (height, width, 3), RGB.

    Raises:
      ImageError: The size is out of bounds or differs, the bytes are no image of this codec, or they are cut off.
    """
    _check_size(height, width)
    if codec == Codec.RAW:
        if len(data) != height * width * 3:
            raise ImageError(f"Expected {height * width * 3} bytes for a raw {width}x{height} frame, found {len(data)}")
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)
    frame: _frames.Jpeg | _frames.Png
    try:
        frame = _frames.Jpeg.taken_from(data) if codec == Codec.JPEG else _frames.Png.taken_from(data)
        if (frame.height, frame.width) != (height, width):
            raise ImageError(
                f"Expected a {width}x{height} {codec.value} but its header says {frame.width}x{frame.height}"
            )
        rebuilt = frame.rebuilt()
    except _frames.FrameError as error:
        raise ImageError(f"Expected a {codec.value} but its {len(data)} bytes {error}") from error
    try:
        rgb = cv2.imdecode(np.frombuffer(rebuilt, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"Expected a {codec.value} but its {len(data)} bytes do not decode") from error
    if rgb is None or rgb.shape != (height, width, 3):
        raise ImageError(f"Expected a {codec.value} but its {len(data)} bytes do not decode")
    return rgb


def fits(height: int, width: int) -> bool:
    """Returns whether a frame of this size may travel."""
    return height >= 1 and width >= 1 and height * width <= MAX_PIXELS


def _check_size(height: int, width: int) -> None:
    if not fits(height, width):
        raise ImageError(f"Expected a frame of 1 to {MAX_PIXELS} pixels but found {width}x{height}")
