"""What the link, the robot and the service take, measured through the same calls that a run makes."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longarm_edge.answers import Reply, Session
from longarm_edge.doctor.advise import Packing
from longarm_edge.doctor.predict import Costs
from longarm_edge.frames import pack_frame
from longarm_edge.policy_client import PolicyClient
from longarm_edge.robot import Robot, RobotReading
from longarm_wire import images
from longarm_wire.rtc import RtcPrefix

# Enough for a median, few enough for a slow link
ROUNDS = 5
QUALITIES = (90, 80, 70, 50)
# A second payload must be this much larger, and take this much longer, for a rate to mean anything
LARGER = 1.5
LONGER_SECONDS = 0.001


@dataclass(frozen=True)
class Measured:
    """What things took, in seconds and bytes, medians.

    Attributes:
      costs: For each way to pack frames: the one that is set, and JPEG of some qualities.
      chunk_seconds: The service's own time per chunk.
    """

    costs: Mapping[Packing, Costs]
    chunk_seconds: float


def measure(
    client: PolicyClient, session: Session, robot: Robot, packing: Packing, horizon: int, timeout: float
) -> Measured:
    """Returns what an observation and its chunk cost, having moved nothing.

    Args:
      client: Packs frames as is set.
      session: Open.
      robot: Connected.
      packing: How frames travel as it is set.
      horizon: For how many ticks a chunk follows the last one in a session with real-time chunking.
      timeout: Seconds for a call.

    Raises:
      UnreachableError: A call was not answered within timeout seconds.
      WireError: The service refuses or failed.
    """
    captures, readings = zip(*(_timed(robot.observe) for _ in range(ROUNDS)), strict=True)
    capture, reading = statistics.median(captures), readings[-1]
    round_trip = min(_timed(lambda: client.service_info(timeout=timeout))[0] for _ in range(ROUNDS))
    first, _ = _predict(client, session, reading, timeout)  # opens the way (slow start) and does not count
    # A chunk that follows another takes longer; how much of it has passed meanwhile makes no difference
    prefix = (
        None if first.model_actions is None else RtcPrefix(0, first.model_actions[:horizon], first.actions[:horizon])
    )
    usual = [_predict(client, session, reading, timeout, prefix) for _ in range(ROUNDS)]
    with PolicyClient(client.address, images.Codec.RAW, packing.quality) as raw_client:
        _predict(raw_client, session, reading, timeout)
        raw = [_predict(raw_client, session, reading, timeout) for _ in range(2)]
    uplink = _uplink(_network(usual), _network(raw), round_trip)
    chunk_seconds = statistics.median(reply.server_total_seconds for reply, _ in usual)
    costs = {}
    for p in {packing, *(Packing(images.Codec.JPEG, quality) for quality in (*QUALITIES, packing.quality))}:
        seconds, size = _timed(functools.partial(_size, session, reading, p))
        costs[p] = Costs(capture, seconds, size, round_trip, uplink, chunk_seconds)
    return Measured(costs, chunk_seconds)


def _timed[T](call: Callable[[], T]) -> tuple[float, T]:
    started = time.monotonic()
    result = call()
    return time.monotonic() - started, result


def _predict(
    client: PolicyClient, session: Session, reading: RobotReading, timeout: float, prefix: RtcPrefix | None = None
) -> tuple[Reply, float]:
    reply, _, call_seconds = client.predict(session, reading, episode=0, tick=0, timeout=timeout, rtc_prefix=prefix)
    return reply, call_seconds - reply.server_total_seconds


def _network(calls: Sequence[tuple[Reply, float]]) -> tuple[int, float]:
    """Returns the bytes of a request and the median seconds it spent on the network, there and back."""
    return calls[-1][0].sent_bytes, statistics.median(seconds for _, seconds in calls)


def _size(session: Session, reading: RobotReading, packing: Packing) -> int:
    frames = (pack_frame(c, reading.images[c.name], packing.codec, packing.quality) for c in session.cameras)
    return sum(len(frame.data) for frame in frames) + 4 * len(session.state_names)


def _uplink(small: tuple[int, float], large: tuple[int, float], round_trip: float) -> float:
    """Returns bytes per second from two payloads and their times on the network, inf if they tell no difference."""
    if large[0] < LARGER * small[0]:
        small = (0, round_trip)
    if large[1] - small[1] < LONGER_SECONDS:
        return float("inf")
    return (large[0] - small[0]) / (large[1] - small[1])
