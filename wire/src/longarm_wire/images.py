"""Camera frames as bytes: JPEG, PNG or raw rows, always RGB outside this module."""

import struct
from enum import StrEnum

import cv2
import numpy as np

DEFAULT_JPEG_QUALITY = 90
# A frame of 8 megapixels is four times what any robot camera here delivers
MAX_PIXELS = 8_000_000

# Baseline and extended sequential frames. A progressive one can be made to cost minutes with thousands of scans
_JPEG_FRAMES = (0xC0, 0xC1)
# Huffman and quantisation tables, restart interval, application data, comment
_JPEG_BEFORE_FRAME = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)


class Codec(StrEnum):
    """How a frame is packed."""

    JPEG = "jpeg"
    PNG = "png"
    RAW = "raw"


class ImageError(ValueError):
    """A frame cannot be packed, or bytes are not the frame they should be."""


def encode(frame: np.ndarray, codec: Codec = Codec.JPEG, *, quality: int = DEFAULT_JPEG_QUALITY) -> bytes:
    """Returns frame packed.

    Args:
      frame: uint8, shape (height, width, 3), RGB.
      codec: How to pack.
      quality: JPEG quality, 1 to 100; other codecs are lossless and ignore it.

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
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if codec == Codec.JPEG else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    try:
        done, data = cv2.imencode(f".{codec.value}", bgr, options)
    except cv2.error:
        done = False
    if not done:
        raise ImageError(f"The {codec.value} encoder refused a frame of shape {frame.shape}")
    return data.tobytes()


def decode(data: bytes, codec: Codec, height: int, width: int) -> np.ndarray:
    """Returns the frame that data holds. The size is checked before anything is decompressed.

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
    found = _header_size(data, codec)
    if found != (height, width):
        raise ImageError(f"Expected a {width}x{height} {codec.value} but its header says {found[1]}x{found[0]}")
    # libjpeg fills a cut-off picture with grey and only warns, so look at the end marker itself
    if codec == Codec.JPEG and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ImageError(f"Expected a complete jpeg but its {len(data)} bytes stop before the end marker")
    try:
        rgb = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
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


def _header_size(data: bytes, codec: Codec) -> tuple[int, int]:
    """Returns (height, width) from the header alone.

    Reads the few bytes by itself, as a general image library on a peer's bytes would be more to trust.
    """
    try:
        return _jpeg_size(data) if codec == Codec.JPEG else _png_size(data)
    except (struct.error, ValueError) as error:
        raise ImageError(f"Expected a {codec.value} but its {len(data)} bytes have no such header") from error


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    if not data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        raise ValueError("no IHDR")
    return height, width


def _jpeg_size(data: bytes) -> tuple[int, int]:
    if not data.startswith(b"\xff\xd8"):
        raise ValueError("no start of image")
    at = 2
    while True:
        prefix, marker, length = struct.unpack_from(">BBH", data, at)
        if prefix != 0xFF:
            raise ValueError("no marker")
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        elif marker in _JPEG_BEFORE_FRAME:
            at += 2 + length
        else:
            raise ValueError(f"marker {marker:#x} before the frame")
