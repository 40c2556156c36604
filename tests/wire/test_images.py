"""Frames survive the codec with their colours in order, and no bytes from a peer break or exhaust the decoder."""

import io
import resource
import struct
import tracemalloc
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longarm_wire import images
from longarm_wire.images import Codec, ImageError, decode, encode

HEIGHT, WIDTH = 48, 64
RED = (220, 0, 0)


def scene() -> np.ndarray:
    """Returns a frame with structure, so that packed bytes are not trivial."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 3)


def red() -> np.ndarray:
    """Returns a red frame."""
    return np.full((HEIGHT, WIDTH, 3), RED, np.uint8)


def pillow(mode: str, codec: Codec, **options: Any) -> bytes:
    """Returns the red frame packed by another library, in another colour mode."""
    file = io.BytesIO()
    Image.fromarray(red()).convert(mode).save(file, codec.value, **options)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """Returns a PNG whose header claims a size, with well-formed chunks around a little data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def peak_kib() -> int:
    """Returns the largest memory this process ever had: native decoders do not show in tracemalloc."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("codec", [Codec.PNG, Codec.RAW])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (1, 1), (3, 5), (480, 640)])
def test_lossless_round_trip(codec: Codec, shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    result = decode(encode(frame, codec), codec, *shape)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, frame)


def test_jpeg_round_trip_is_close() -> None:
    result = decode(encode(scene()), Codec.JPEG, HEIGHT, WIDTH)
    assert np.abs(result.astype(int) - scene()).mean() < 3


@pytest.mark.parametrize("codec", Codec)
def test_a_red_frame_stays_red(codec: Codec) -> None:
    """Red and blue swapped is the classic fault, and a policy only gets quietly worse by it."""
    result = decode(encode(red(), codec), codec, HEIGHT, WIDTH)
    np.testing.assert_allclose(result.reshape(-1, 3).mean(axis=0), RED, atol=4)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
def test_another_library_sees_the_same_red(codec: Codec) -> None:
    seen = np.asarray(Image.open(io.BytesIO(encode(red(), codec))).convert("RGB"))
    np.testing.assert_allclose(seen.reshape(-1, 3).mean(axis=0), RED, atol=4)
    np.testing.assert_allclose(decode(pillow("RGB", codec), codec, HEIGHT, WIDTH)[0, 0], RED, atol=4)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize(
    "view",
    [lambda f: f[:, ::-1], lambda f: f[::2], lambda f: f[..., ::-1], np.asfortranarray, lambda f: f.swapaxes(0, 1)],
    ids=["mirrored", "strided", "bgr", "column order", "transposed"],
)
def test_views_are_packed_as_they_look(codec: Codec, view: Any) -> None:
    frame = view(scene())
    assert encode(frame, codec) == encode(np.ascontiguousarray(frame), codec)


def test_the_default_is_jpeg_of_quality_90() -> None:
    assert encode(scene()) == encode(scene(), Codec.JPEG, quality=90)
    assert len(encode(scene(), quality=50)) < len(encode(scene())) < len(encode(scene(), quality=100))
    assert encode(scene(), Codec.PNG, quality=10) == encode(scene(), Codec.PNG)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int8),
        np.zeros((4, 4, 3), bool),
    ],
    ids=lambda frame: f"{frame.dtype} {frame.shape}",
)
def test_other_shapes_and_dtypes_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(ImageError, match="Expected a uint8 frame of shape"):
        encode(frame)


def test_a_frame_too_large_is_refused() -> None:
    with pytest.raises(ImageError, match="found 4000x3000"):
        encode(np.broadcast_to(np.uint8(0), (3000, 4000, 3)))
    # Within the pixels, but JPEG has no room for such a width
    with pytest.raises(ImageError, match="encoder refused"):
        encode(np.zeros((1, 70_000, 3), np.uint8))


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0), (-1, -4), (100_000, 100_000), (1, 8_000_001)])
def test_the_expected_size_is_bounded(codec: Codec, height: int, width: int) -> None:
    with pytest.raises(ImageError, match="Expected a frame of 1 to 8000000 pixels"):
        decode(encode(red(), codec), codec, height, width)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
def test_the_header_must_have_the_expected_size(codec: Codec) -> None:
    with pytest.raises(ImageError, match=f"Expected a 48x64 {codec.value} but its header says 64x48"):
        decode(encode(red(), codec), codec, WIDTH, HEIGHT)


@pytest.mark.parametrize("count", [0, 1, HEIGHT * WIDTH * 3 - 1, HEIGHT * WIDTH * 3 + 1])
def test_raw_has_exactly_the_pixels(count: int) -> None:
    with pytest.raises(ImageError, match=f"Expected 9216 bytes for a raw 64x48 frame, found {count}"):
        decode(bytes(count), Codec.RAW, HEIGHT, WIDTH)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
def test_cut_off_anywhere_is_refused(codec: Codec) -> None:
    """libjpeg fills what is missing with grey: a policy would act on half a picture."""
    data = encode(scene(), codec)
    for count in [*range(0, len(data), 23), len(data) - 1]:
        with pytest.raises(ImageError):
            decode(data[:count], codec, HEIGHT, WIDTH)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
@pytest.mark.parametrize(
    "data", [b"", b"\0" * 1000, b"\xff" * 1000, b"\xff\xd8\xff", b"GIF89a" * 9, b"\x89PNG\r\n\x1a\n"]
)
def test_garbage_is_refused(codec: Codec, data: bytes) -> None:
    with pytest.raises(ImageError, match=f"Expected a {codec.value} but its {len(data)} bytes have no such header"):
        decode(data, codec, HEIGHT, WIDTH)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_give_a_frame_of_the_size_or_an_error(codec: Codec, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encode(scene(), codec))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        result = decode(bytes(data), codec, HEIGHT, WIDTH)
    except ImageError:
        return
    assert (result.shape, result.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"]), st.binary(max_size=80))
def test_any_bytes_after_a_good_start_raise_only_an_image_error(start: bytes, rest: bytes) -> None:
    for codec in (Codec.JPEG, Codec.PNG):
        with pytest.raises(ImageError):
            decode(start + rest, codec, HEIGHT, WIDTH)


def test_one_codec_given_as_another_is_refused() -> None:
    with pytest.raises(ImageError, match="Expected a png"):
        decode(encode(red(), Codec.JPEG), Codec.PNG, HEIGHT, WIDTH)
    with pytest.raises(ImageError, match="Expected a jpeg"):
        decode(encode(red(), Codec.PNG), Codec.JPEG, HEIGHT, WIDTH)
    with pytest.raises(ImageError, match="Expected 9216 bytes"):
        decode(encode(red(), Codec.PNG), Codec.RAW, HEIGHT, WIDTH)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_takes_no_memory(width: int, height: int) -> None:
    """A few kilobytes whose header claims gigabytes, with and without the caller claiming the same."""
    bomb = png_claiming(width, height)
    assert len(bomb) < 4096
    before = peak_kib()
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=f"header says {width}x{height}"):
            decode(bomb, Codec.PNG, HEIGHT, WIDTH)
        with pytest.raises(ImageError, match="pixels"):
            decode(bomb, Codec.PNG, height, width)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert peak_kib() - before < 16 << 10


def test_a_jpeg_bomb_is_refused_by_its_header() -> None:
    data = bytearray(encode(red()))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(ImageError, match="header says 65000x65000"):
        decode(bytes(data), Codec.JPEG, HEIGHT, WIDTH)


def test_a_second_header_cannot_smuggle_another_size() -> None:
    """The size that is checked must be the size that is decoded, also if the frame header comes twice."""
    data = encode(red())
    frame = data.index(b"\xff\xc0")
    length = 2 + struct.unpack_from(">H", data, frame + 2)[0]
    second = bytearray(data[frame : frame + length])
    second[5:9] = struct.pack(">HH", 65_000, 65_000)
    before = peak_kib()
    with pytest.raises(ImageError):
        decode(data[: frame + length] + second + data[frame + length :], Codec.JPEG, HEIGHT, WIDTH)
    assert peak_kib() - before < 16 << 10


def test_a_progressive_jpeg_is_refused() -> None:
    """The protocol says baseline: a progressive file can hold thousands of passes over the picture."""
    with pytest.raises(ImageError, match="Expected a jpeg"):
        decode(pillow("RGB", Codec.JPEG, progressive=True), Codec.JPEG, HEIGHT, WIDTH)


def test_a_jpeg_with_fill_bytes_comment_and_metadata_is_read() -> None:
    data = pillow("RGB", Codec.JPEG, comment=b"x" * 300, exif=Image.Exif(), optimize=True)
    filled = data[:2] + b"\xff\xff" + data[2:]
    np.testing.assert_allclose(decode(filled, Codec.JPEG, HEIGHT, WIDTH)[0, 0], RED, atol=4)


@pytest.mark.parametrize("codec", [Codec.JPEG, Codec.PNG])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_orientation_in_the_metadata_is_ignored(codec: Codec, orientation: int) -> None:
    """Frames come as the camera's sensor reads them, or the policy would see another view than in training."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    frame = red()
    frame[: HEIGHT // 2] = (0, 0, 220)
    Image.fromarray(frame).save(file, codec.value, exif=exif)
    result = decode(file.getvalue(), codec, HEIGHT, WIDTH)
    np.testing.assert_allclose(result[2, 2], (0, 0, 220), atol=6)
    np.testing.assert_allclose(result[-2, -2], RED, atol=6)


@pytest.mark.parametrize(
    ("mode", "codec", "colour"),
    [
        ("L", Codec.JPEG, (66, 66, 66)),
        ("CMYK", Codec.JPEG, RED),
        ("L", Codec.PNG, (66, 66, 66)),
        ("LA", Codec.PNG, (66, 66, 66)),
        ("P", Codec.PNG, RED),
        ("RGBA", Codec.PNG, RED),
        ("1", Codec.PNG, None),
    ],
)
def test_other_colour_modes_become_rgb(mode: str, codec: Codec, colour: tuple[int, int, int] | None) -> None:
    result = decode(pillow(mode, codec), codec, HEIGHT, WIDTH)
    assert (result.shape, result.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    if colour is not None:
        np.testing.assert_allclose(result.reshape(-1, 3).mean(axis=0), colour, atol=4)


def test_the_pixel_limit_covers_what_a_message_may_hold() -> None:
    assert images.MAX_PIXELS * 3 < 1 << 25
