"""A connection on which frames of HTTP/2 are sent as one likes, which no client of gRPC allows."""

import contextlib
import socket
import struct
from collections.abc import Iterable
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW = 4
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


def accepted(connection: Connection, streams: Iterable[int], size: int) -> int:
    """Returns how many bytes are taken of requests, each the beginning of one of so many bytes, until no more are."""
    left = dict.fromkeys(streams, size)
    windows = dict.fromkeys([0, *left], 65535)
    initial = 65535
    for stream in left:
        connection.socket.sendall(frame(DATA, 0, stream, b"\0" + struct.pack(">I", size + 1)))
        windows[stream] -= 5
        windows[0] -= 5
    while True:
        before = sum(left.values())
        for kind, stream, content in connection.frames(0.3):
            if kind == WINDOW_UPDATE:
                windows[stream] += struct.unpack(">I", content)[0]
            for at in range(0, len(content) if kind == SETTINGS else 0, 6):
                name, value = struct.unpack(">HI", content[at : at + 6])
                if name == INITIAL_WINDOW:
                    windows |= {stream: windows[stream] + value - initial for stream in left}
                    initial = value
            for one in left:
                while (length := min(windows[0], windows[one], left[one], 16384)) > 0:
                    connection.socket.sendall(frame(DATA, 0, one, bytes(length)))
                    for counted in (0, one):
                        windows[counted] -= length
                    left[one] -= length
        if sum(left.values()) == before:
            return size * len(left) - before


def frame(kind: int, flags: int = 0, stream: int = 0, content: bytes = b"") -> bytes:
    """Returns one frame."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def call(path: str, stream: int, *metadata: tuple[str, str]) -> bytes:
    """Returns the frame that begins a call."""
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
    pairs += [("content-type", "application/grpc"), *metadata]
    content = b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)
    return frame(HEADERS, END_HEADERS, stream, content)


def request(stream: int, data: bytes) -> bytes:
    """Returns the frame of a small request."""
    return frame(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(data)) + data)


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
