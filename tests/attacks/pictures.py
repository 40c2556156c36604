"""Pictures made to cost a decoder much, by codec and what is done in them. Each claims a size that is right."""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping

import cv2
import numpy as np
from PIL import Image

Maker = Callable[[int, int], bytes]
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def photo(height: int, width: int) -> np.ndarray:
    """Returns a frame as a camera might see."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 3)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG, with a right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    height: int,
    width: int,
    before: Iterable[bytes] = (),
    after: Iterable[bytes] = (),
    *,
    rows: bytes | None = None,
    kind: tuple[int, int, int] = (8, 2, 0),
    idat: bytes | None = None,
) -> bytes:
    """Returns a PNG with chunks before and after the picture; kind is bit depth, colour type and interlace."""
    header = struct.pack(">IIBBBBB", width, height, kind[0], kind[1], 0, 0, kind[2])
    plain = bytes(height * (1 + width * 3)) if rows is None else rows
    pixels = chunk(b"IDAT", zlib.compress(plain) if idat is None else idat)
    return b"".join((SIGNATURE, chunk(b"IHDR", header), *before, pixels, *after, chunk(b"IEND", b"")))


def deflated_zeros(megabytes: int) -> bytes:
    """Returns so many zeros, compressed a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = ((megabytes << 20) % 65521 << 16) + 1
    return b"\x78\x9c" + megabyte * megabytes + b"\x03\0" + struct.pack(">I", checksum)


def tables_alone(count: int) -> bytes:
    """Returns compressed data of so many blocks, each with a code of its own, which takes time to set up."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    noise = np.random.default_rng(1).integers(0, 40, 4000, np.uint8).tobytes()
    whole = packer.compress(noise) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\x9c" + whole * count


@functools.cache
def _text(kind: bytes, megabytes: int) -> bytes:
    prefix = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    return chunk(kind, prefix + deflated_zeros(megabytes))


def _interlaced(height: int, width: int) -> bytes:
    return png(height, width, kind=(8, 2, 1))


def _animated(height: int, width: int) -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 10, 0, 0)
    frame = zlib.compress(bytes(height * (1 + width * 3)))
    more = []
    for number in range(1, 4000, 2):
        more.append(chunk(b"fcTL", struct.pack(">I", number) + control[4:]))
        more.append(chunk(b"fdAT", struct.pack(">I", number + 1) + frame))
    return png(height, width, [chunk(b"acTL", struct.pack(">II", 2000, 0)), chunk(b"fcTL", control)], more)


def jpeg(height: int, width: int, **options: object) -> bytes:
    """Returns a JPEG of a photo."""
    file = io.BytesIO()
    Image.fromarray(photo(height, width)).save(file, "jpeg", **options)
    return file.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    """Returns a segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def _after_start(height: int, width: int, more: bytes) -> bytes:
    data = jpeg(height, width)
    return data[:2] + more + data[2:]


def _scans(height: int, width: int, *, progressive: bool, count: int) -> bytes:
    """Returns a JPEG that goes over its picture so many times: the last scan again and again."""
    data = jpeg(height, width, progressive=progressive)
    last = data.rindex(b"\xff\xda")
    header = 2 + struct.unpack_from(">H", data, last + 2)[0]
    # Of a scan without data every block is as it was: ten bytes for all the work
    return data[:-2] + data[last : last + header] * count + b"\xff\xd9"


def _without_restarts(height: int, width: int) -> bytes:
    """Returns a JPEG that expects a restart marker after each block and has none."""
    data = jpeg(height, width)
    frame = data.index(b"\xff\xc0")
    return data[:frame] + segment(0xDD, struct.pack(">H", 1)) + data[frame:]


def _sampled(height: int, width: int) -> bytes:
    """Returns a JPEG whose brightness is coarse and whose colours are fine."""
    data = bytearray(jpeg(height, width, subsampling=0))
    frame = data.index(b"\xff\xc0")
    data[frame + 11], data[frame + 14], data[frame + 17] = 0x11, 0x44, 0x44
    return bytes(data)


def _renamed(marker: int) -> Maker:
    def make(height: int, width: int) -> bytes:
        return jpeg(height, width).replace(b"\xff\xc0", bytes((0xFF, marker)), 1)

    return make


HOSTILE_PNGS: Mapping[str, Maker] = {
    "texts of gigabytes": lambda h, w: png(h, w, [_text(b"zTXt", 7)] * 250),
    "texts after the picture": lambda h, w: png(h, w, after=[_text(b"zTXt", 7)] * 250),
    "international texts": lambda h, w: png(h, w, [_text(b"iTXt", 7)] * 250),
    "a colour profile of gigabytes": lambda h, w: png(h, w, [_text(b"iCCP", 7)]),
    "palettes of its own": lambda h, w: png(h, w, [chunk(b"sPLT", b"a\0\x08" + bytes(6 * 300_000))]),
    "exif": lambda h, w: png(h, w, [chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 1_800_000)]),
    "a histogram": lambda h, w: png(h, w, [chunk(b"hIST", bytes(1_800_000))]),
    "a chunk nobody knows": lambda h, w: png(h, w, [chunk(b"xxXx", bytes(1_800_000))]),
    "a chunk that must be known": lambda h, w: png(h, w, [chunk(b"XXXX", bytes(1_800_000))]),
    "chunks without end": lambda h, w: png(h, w, [chunk(b"tEXt", b"")] * 150_000),
    "rows without end": lambda h, w: png(h, w, idat=deflated_zeros(1000)),
    "rows in empty pieces": lambda h, w: png(h, w, [chunk(b"IDAT", b"")] * 150_000),
    "rows after the last": lambda h, w: png(h, w, after=[chunk(b"IDAT", deflated_zeros(1000))]),
    "rows of tables": lambda h, w: png(h, w, idat=tables_alone(1000)),
    "rows of empty blocks": lambda h, w: png(h, w, idat=b"\x78\x9c" + b"\0\0\0\xff\xff" * 360_000),
    "too few rows": lambda h, w: png(h, w, rows=b"\0" * 10),
    "rows of an unknown filter": lambda h, w: png(h, w, rows=b"\x09" * (h * (1 + w * 3))),
    "interlaced": _interlaced,
    "animated": _animated,
    "64 bits per pixel": lambda h, w: png(h, w, rows=bytes(h * (1 + w * 8)), kind=(16, 6, 0)),
    "a palette that is missing": lambda h, w: png(h, w, rows=b"\xff" * (h * (1 + w)), kind=(8, 3, 0)),
    "a palette too long": lambda h, w: png(h, w, [chunk(b"PLTE", bytes(999_999))], kind=(8, 3, 0)),
    "a length beyond the end": lambda h, w: png(h, w, [struct.pack(">I4s", 2**32 - 1, b"tEXt")]),
    "a kind of header that there is not": lambda h, w: png(h, w, kind=(77, 99, 9)),
}
HOSTILE_JPEGS: Mapping[str, Maker] = {
    "scans without end": lambda h, w: _scans(h, w, progressive=False, count=100_000),
    "progressive scans": lambda h, w: _scans(h, w, progressive=True, count=100_000),
    "colours one by one": lambda h, w: jpeg(h, w)[:-2] + segment(0xDA, b"\x01\x01\x00\0\x3f\0") * 100_000 + b"\xff\xd9",
    "arithmetic coding": _renamed(0xC9),
    "lossless": _renamed(0xC3),
    "hierarchical": _renamed(0xC5),
    "comments": lambda h, w: _after_start(h, w, segment(0xFE, bytes(65_533)) * 27),
    "exif in many parts": lambda h, w: _after_start(h, w, segment(0xE1, b"Exif\0\0MM" + b"\xff" * 65_000) * 27),
    "exif in a circle": lambda h, w: _after_start(
        h, w, segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff\xff" + b"\x87\x69\0\4\0\0\0\1\0\0\0\x08" * 5000)
    ),
    "colour profiles": lambda h, w: _after_start(h, w, segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(65_000)) * 27),
    "segments without end": lambda h, w: _after_start(h, w, segment(0xFE, b"") * 450_000),
    "fill bytes": lambda h, w: _after_start(h, w, b"\xff" * 1_800_000),
    "code tables": lambda h, w: _after_start(h, w, segment(0xC4, b"\0" + b"\1" + bytes(15) + b"\1") * 80_000),
    "restarts that do not come": _without_restarts,
    "restarts and nothing else": lambda h, w: jpeg(h, w)[:-2] + b"\xff\xd0" * 900_000 + b"\xff\xd9",
    "a tail": lambda h, w: jpeg(h, w) + bytes(1_800_000),
    "a second picture": lambda h, w: jpeg(h, w) * 20,
    "colours finer than brightness": _sampled,
    "lines counted at the end": lambda h, w: jpeg(h, w)[:-2] + segment(0xDC, b"\xff\xff") + b"\xff\xd9",
}
