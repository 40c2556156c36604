"""Messages between the service and the processes of its policies: JSON, with arrays behind it as they lie in memory."""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<I")
# Stands in the JSON for an array, whose number is its value
_ARRAY = "$array"


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends message, whose values are numbers, texts, arrays, and dataclasses, mappings and sequences of such.

    Raises:
      OSError: Nobody is there any more, or takes nothing for the connection's SO_SNDTIMEO.
    """
    arrays: list[np.ndarray] = []
    content = _flat(message, arrays)
    kinds = [(array.dtype.str, array.shape) for array in arrays]
    header = json.dumps([content, kinds]).encode()
    connection.sendall(_LENGTH.pack(len(header)) + header)
    for array in arrays:
        if array.size:
            connection.sendall(array.data.cast("B"))


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Returns the next message, with dataclasses as dictionaries and sequences as lists. None at the end."""
    prefix = _exactly(connection, bytearray(_LENGTH.size))
    header = None if prefix is None else _exactly(connection, bytearray(*_LENGTH.unpack(prefix)))
    if header is None:
        return None
    content, kinds = json.loads(header)
    arrays = [np.empty(shape, dtype) for dtype, shape in kinds]
    for array in arrays:
        if array.size and _exactly(connection, array.data.cast("B")) is None:
            return None
    message: dict[str, Any] = _whole(content, arrays)
    return message


def _flat(value: Any, arrays: list[np.ndarray]) -> Any:
    match value:
        case np.ndarray():
            arrays.append(np.ascontiguousarray(value))
            return {_ARRAY: len(arrays) - 1}
        case Mapping():
            return {key: _flat(item, arrays) for key, item in value.items()}
        case list() | tuple():
            return [_flat(item, arrays) for item in value]
        case _ if is_dataclass(value):
            return {field.name: _flat(getattr(value, field.name), arrays) for field in fields(value)}
    return value


def _whole(value: Any, arrays: list[np.ndarray]) -> Any:
    match value:
        case {"$array": int(number), **rest} if not rest:
            return arrays[number]
        case dict():
            return {key: _whole(item, arrays) for key, item in value.items()}
        case list():
            return [_whole(item, arrays) for item in value]
    return value


def _exactly[B: (bytearray, memoryview)](connection: socket.socket, buffer: B) -> B | None:
    """Fills buffer and returns it, or None if the connection ends before."""
    view = memoryview(buffer)
    while view:
        try:
            count = connection.recv_into(view)
        except ConnectionError:
            count = 0
        if not count:
            return None
        view = view[count:]
    return buffer
