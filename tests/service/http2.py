"""A connection on which frames of HTTP/2 are sent as one likes, which no client of gRPC allows."""

import contextlib
import socket
import struct
from collections.abc import Iterable
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL, ENHANCE_YOUR_CALM = 8, 11
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Connection:
    """Use as a context manager. Streams are numbered 1, 3, 5 and so on."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        with contextlib.suppress(ConnectionError):  # closed at once
            self.socket.sendall(PREFACE + frame(SETTINGS) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30)))
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def frames(self, seconds: float) -> Iterable[tuple[int, int, bytes]]:
        """Yields kind, stream and content of what arrives, until nothing did for so long. Answers pings."""
        self.socket.settimeout(seconds)
        while True:
            while len(self._received) >= 9 + (length := int.from_bytes(self._received[:3], "big")):
                kind, flags, stream = struct.unpack(">BBI", self._received[3:9])
                content, self._received = self._received[9 : 9 + length], self._received[9 + length :]
                if kind in (PING, SETTINGS) and not flags & ACK:
                    self.socket.sendall(frame(kind, ACK, 0, content if kind == PING else b""))
                yield kind, stream, content
            try:
                data = self.socket.recv(1 << 16)
            except (TimeoutError, ConnectionError):
                return
            if not data:
                return
            self._received += data


def frame(kind: int, flags: int = 0, stream: int = 0, content: bytes = b"") -> bytes:
    """Returns one frame."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def call(path: str, stream: int, *metadata: tuple[str, str]) -> bytes:
    """Returns the frame that begins a call."""
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
    pairs += [("content-type", "application/grpc"), *metadata]
    content = b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)
    return frame(HEADERS, END_HEADERS, stream, content)


def request(stream: int, data: bytes, *, of: int | None = None) -> bytes:
    """Returns frames of a request: all of it, or the beginning of one of so many bytes."""
    content = b"\0" + struct.pack(">I", len(data) if of is None else of) + data
    parts = [content[at : at + 16384] for at in range(0, len(content), 16384)]
    last = END_STREAM if of is None else 0
    return b"".join(frame(DATA, last if part is parts[-1] else 0, stream, part) for part in parts)


def hang_up(stream: int) -> bytes:
    """Returns the frame that cancels a call."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def _text(text: str) -> bytes:
    data = text.encode()
    length, prefix = len(data), b""
    if length < 127:
        return bytes([length]) + data
    length -= 127
    while length >= 128:
        prefix += bytes([length & 127 | 128])
        length >>= 7
    return b"\x7f" + prefix + bytes([length]) + data
