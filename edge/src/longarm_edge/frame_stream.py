"""Frames as bytes in a pipe, from the edge to a process of its own: one JSON header each, then the raw images."""

import json
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from longarm_edge.observer import Executed, Frame
from longarm_edge.robot import RobotReading

_LENGTH = struct.Struct("<I")


def write_job(fd: int, job: dict[str, Any]) -> None:
    """Writes the first message of a stream: what to do with the frames, JSON's types only."""
    _write(fd, [_header(job)])


def read_job(stream: BinaryIO) -> dict[str, Any]:
    """Returns the first message of a stream.

    Raises:
      EOFError: There is none.
    """
    job = _read_header(stream)
    if job is None:
        raise EOFError("Expected a job but the stream has ended")
    return job


def write_frame(fd: int, frame: Frame) -> None:
    """Writes frame without copying its images. Blocks while the pipe is full."""
    done, reading = frame.executed, frame.reading
    images = {} if reading is None else {name: np.ascontiguousarray(i) for name, i in reading.images.items()}
    header = {
        "tick": done.tick,
        "at": done.at,
        "next_due": done.next_due,
        "command": done.command.tolist(),
        "chunk": done.chunk,
        "age": done.age,
        "depth": done.depth,
        "mean_age": done.mean_age,
        "latency": frame.latency,
        "state": None if reading is None else reading.state.tolist(),
        "images": {name: image.shape for name, image in images.items()},
    }
    _write(fd, [_header(header), *(memoryview(image).cast("B") for image in images.values() if image.size)])


def read_frames(stream: BinaryIO) -> Iterator[Frame]:
    """Yields frames until the stream ends; one that was cut short is left out."""
    while (header := _read_header(stream)) is not None:
        images = {}
        for name, shape in header["images"].items():
            image = np.empty(shape, np.uint8)
            if stream.readinto(memoryview(image).cast("B")) != image.nbytes:  # type: ignore[attr-defined]
                return
            images[name] = image
        executed = Executed(
            tick=header["tick"],
            at=header["at"],
            next_due=header["next_due"],
            command=np.array(header["command"], np.float32),
            chunk=header["chunk"],
            age=header["age"],
            depth=header["depth"],
            mean_age=header["mean_age"],
        )
        state = header["state"]
        reading = None if state is None else RobotReading(np.array(state, np.float32), images)
        yield Frame(executed, reading, header["latency"])


def _header(content: dict[str, Any]) -> bytes:
    text = json.dumps(content).encode()
    return _LENGTH.pack(len(text)) + text


def _write(fd: int, parts: list[bytes | memoryview]) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def _read_header(stream: BinaryIO) -> dict[str, Any] | None:
    length = stream.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(length)[0]
    text = stream.read(size)
    return json.loads(text) if len(text) == size else None
