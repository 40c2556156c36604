"""What of a peer's JPEG or PNG a decoder gets to see: what makes up the frame, and nothing that costs more than one.

General decoders do what a file asks for: inflate texts of gigabytes that stand beside a small picture, go over it
thousands of times, and take the memory for that. So the file is taken apart here, in a few steps that a peer cannot
multiply, and put together anew from the parts that a frame needs.
"""

import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Tables of a JPEG take a dozen segments. A PNG of the most pixels has 3000 chunks as OpenCV writes it
_MAX_JPEG_SEGMENTS = 64
_MAX_PNG_CHUNKS = 4096
# Honest frames take an eighth of it or less. Compressed data can be made of tables alone, which take long to set up
_INFLATE_SECONDS = 0.05
_INFLATE_SECONDS_PER_BYTE = 3e-8
_STEP_BYTES = 1 << 16

# Baseline and extended sequential frames. A progressive one can be made to cost minutes with thousands of scans
_SEQUENTIAL = (0xC0, 0xC1)
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
# Huffman and quantisation tables, restart interval, what JFIF and Adobe say about colours
_JPEG_NEEDED = (0xC4, 0xDB, 0xDD, 0xE0, 0xEE)
# Application data, such as EXIF and colour profiles, and comments
_JPEG_IGNORED = (*range(0xE1, 0xEE), 0xEF, 0xFE)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Samples per pixel by colour type: grey, RGB, palette, grey and alpha, RGBA
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


class FrameError(ValueError):
    """The bytes are no frame. The message goes on after "Expected a jpeg but its 7 bytes"."""


@dataclass(frozen=True)
class Jpeg:
    """A sequential JPEG of one scan: its size, and the file without what no frame needs."""

    height: int
    width: int
    data: bytes

    @classmethod
    def taken_from(cls, data: bytes) -> "Jpeg":
        """Returns the frame in data. Raises FrameError.

        libjpeg goes over the whole picture once for each scan, and a file can have as many as fit in: one is enough.
        """
        if not data.startswith(b"\xff\xd8"):
            raise _no_header()
        kept, at, size = [b"\xff\xd8"], 2, None
        for _ in range(_MAX_JPEG_SEGMENTS):
            prefix, marker, length = _unpacked(">BBH", data, at)
            end = at + 2 + length
            if prefix != 0xFF or (length < 2 and marker != 0xFF):
                raise _no_header()
            if marker == 0xFF:  # a fill byte
                end = at + 1
            elif marker in _SEQUENTIAL and size is None:
                precision, height, width, components = _unpacked(">BHHB", data, at + 4)
                if precision != 8 or components not in (1, 3, 4):
                    raise FrameError(f"have {components} colours of {precision} bits")
                size = height, width, components
                kept.append(data[at:end])
            elif marker == _START_OF_SCAN and size is not None:
                if data[at + 4 : at + 5] != bytes([size[2]]):
                    raise FrameError("hold the colours apart, in several scans")
                kept.append(data[at : _end_of_scan(data, end)])
                return cls(size[0], size[1], b"".join(kept))
            elif marker in _JPEG_NEEDED:
                kept.append(data[at:end])
            elif marker not in _JPEG_IGNORED:
                raise FrameError(f"are of another kind than baseline (marker {marker:#x})")
            at = end
        raise FrameError(f"have more than {_MAX_JPEG_SEGMENTS} segments")

    def rebuilt(self) -> bytes:
        """Returns the file anew."""
        return self.data


@dataclass(frozen=True)
class Png:
    """A PNG that is not interlaced: its header, palette and the compressed rows."""

    height: int
    width: int
    header: bytes
    palette: bytes
    pieces: list[memoryview]

    @classmethod
    def taken_from(cls, data: bytes) -> "Png":
        """Returns the frame in data, still compressed. Raises FrameError."""
        if not data.startswith(_PNG_SIGNATURE + b"\0\0\0\rIHDR"):
            raise _no_header()
        width, height, depth, colour, *others = _unpacked(">IIBBBBB", data, 16)
        if colour not in _PNG_SAMPLES or depth not in (1, 2, 4, 8, 16) or any(others):
            raise FrameError("are of a kind that is not read, such as interlaced")
        palette, pieces = b"", list[memoryview]()
        for kind, content in _png_chunks(data, 33):
            if kind == b"IEND":
                return cls(height, width, data[16:29], palette, pieces)
            if kind == b"IDAT":
                pieces.append(content)
            elif kind == b"PLTE":
                palette = bytes(content[:768])
        raise FrameError(f"have more than {_MAX_PNG_CHUNKS} chunks")

    def rebuilt(self) -> bytes:
        """Returns the file anew, with the rows as they are instead of compressed. Raises FrameError."""
        depth, colour = self.header[8], self.header[9]
        row_bytes = 1 + (self.width * _PNG_SAMPLES[colour] * depth + 7) // 8
        rows = _inflated(self.pieces, self.height * row_bytes)
        palette = _png_chunk(b"PLTE", self.palette) if self.palette else b""
        parts = (_png_chunk(b"IHDR", self.header), palette, _png_chunk(b"IDAT", zlib.compress(rows, 0)))
        return b"".join((_PNG_SIGNATURE, *parts, _png_chunk(b"IEND", b"")))


def _unpacked(form: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise _no_header() from None


def _no_header() -> FrameError:
    return FrameError("have no such header")


def _cut_off() -> FrameError:
    return FrameError("stop before the end of the picture")


def _end_of_scan(data: bytes, start: int) -> int:
    """Returns where the end marker ends, before which nothing but coded data and restart markers may come."""
    # With numpy, which lets other threads run meanwhile
    coded = np.frombuffer(data, np.uint8, offset=min(start, len(data)))
    after = coded[1:]
    markers = np.flatnonzero((coded[:-1] == 0xFF) & (after != 0) & (after & 0xF8 != 0xD0) & (after != 0xFF))
    if not len(markers):
        raise _cut_off()
    found = int(markers[0])
    if after[found] != _END_OF_IMAGE:
        raise FrameError("have more than one scan")
    return start + found + 2


def _png_chunks(data: bytes, at: int) -> Iterator[tuple[bytes, memoryview]]:
    view = memoryview(data)
    for _ in range(_MAX_PNG_CHUNKS):
        if len(data) < at + 12:
            raise _cut_off()
        (length,) = _unpacked(">I", data, at)
        content = view[at + 8 : at + 8 + length]
        if len(content) < length:
            raise _cut_off()
        yield data[at + 4 : at + 8], content
        at += 12 + length


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _inflated(pieces: list[memoryview], size: int) -> bytes:
    """Returns what pieces hold, which must be exactly so many bytes, in bounds of memory and of the thread's time."""
    inflater = zlib.decompressobj()
    rows: list[bytes] = []
    left = size
    latest = time.thread_time() + _INFLATE_SECONDS + size * _INFLATE_SECONDS_PER_BYTE
    for piece in _in_steps(pieces):
        try:
            rows.append(inflater.decompress(piece, left + 1))
        except zlib.error as error:
            raise FrameError("do not decode") from error
        left -= len(rows[-1])
        if left < 0:
            raise FrameError("hold more than the frame's rows")
        if inflater.eof:
            break
        if time.thread_time() > latest:
            raise FrameError("are compressed so that it takes too long to undo")
    if left or not inflater.eof:
        raise _cut_off()
    return b"".join(rows)


def _in_steps(pieces: list[memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        for start in range(0, len(piece), _STEP_BYTES):
            yield piece[start : start + _STEP_BYTES]
