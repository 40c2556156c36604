"""Message limits and channel options that both ends set alike."""

from collections.abc import Iterable

from longarm_wire.specs import CameraSpec

# Room for names, task, tensors and framing beside the images
OVERHEAD_BYTES = 1 << 20
# Replies hold two arrays of at most a few thousand actions
MAX_RESPONSE_BYTES = 8 << 20
# What the service accepts before a session has told its cameras: eight raw 1280x720 frames and the overhead
MAX_REQUEST_BYTES = 8 * 1280 * 720 * 3 + OVERHEAD_BYTES


def max_request_bytes(cameras: Iterable[CameraSpec]) -> int:
    """Returns the largest request of a session: every frame raw, and the overhead, as far as the service accepts it."""
    return min(sum(c.height * c.width * 3 for c in cameras) + OVERHEAD_BYTES, MAX_REQUEST_BYTES)
