"""Message limits and channel options that both ends set alike."""

from collections.abc import Iterable

from longarm_wire.specs import CameraSpec

# Room for names, task, tensors and framing beside the images
OVERHEAD_BYTES = 1 << 20
# Replies hold two arrays of at most a few thousand actions
MAX_RESPONSE_BYTES = 8 << 20
# Names of a robot, each as long as it may be, and more
MAX_OPENING_BYTES = 1 << 19
# Any other request: an id, a number
MAX_SMALL_BYTES = 1 << 12
# Fields of a request, at the outermost level and with each entry of a list counted: an opening has a dozen, an
# observation one per camera and a few more
MAX_FIELDS = 64
# What the service accepts before a session has told its cameras: eight raw 1280x720 frames and the overhead
MAX_REQUEST_BYTES = 8 * 1280 * 720 * 3 + OVERHEAD_BYTES

# By the name of a method; of others MAX_SMALL_BYTES
MAX_BYTES_BY_METHOD = {"PredictChunk": MAX_REQUEST_BYTES, "OpenSession": MAX_OPENING_BYTES}


def max_request_bytes(cameras: Iterable[CameraSpec]) -> int:
    """Returns the largest request of a session: every frame raw, and the overhead, as far as the service accepts it."""
    return min(sum(c.height * c.width * 3 for c in cameras) + OVERHEAD_BYTES, MAX_REQUEST_BYTES)


def is_flat(message: bytes) -> bool:
    """Returns whether message, as it came, has no more than MAX_FIELDS fields at its outermost level.

    To be asked before it is parsed: of two bytes, protobuf makes an object of a hundred, and there may be millions.
    """
    at = 0
    try:
        for _ in range(MAX_FIELDS):
            if at >= len(message):
                return True
            tag, at = _varint(message, at)
            match tag & 7:
                case 0:
                    _, at = _varint(message, at)
                case 1:
                    at += 8
                case 2:
                    length, at = _varint(message, at)
                    at += length
                case 5:
                    at += 4
                case _:  # groups, which the protocol has none of
                    return False
    except IndexError:
        # Cut off: whoever parses it says so
        return True
    return at >= len(message)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Returns the number at a place, and the place behind it. Raises IndexError."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError
