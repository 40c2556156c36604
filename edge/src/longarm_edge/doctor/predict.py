"""What a run will be like, predicted by running the real queue and replanner on a clock that needs no time."""

from dataclasses import dataclass

import numpy as np

from longarm_edge.action_queue import ActionChunk, ActionQueue
from longarm_edge.replan import Replan, Replanner, RoundTrips

# Long enough that the start does not matter
SIMULATED_SECONDS = 30.0
# How much a round trip varies around what was measured, standard deviation as a share of it
JITTER = 0.1


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
      capture: Seconds to read the robot and its cameras.
      encode: Seconds to pack an observation.
      observation_bytes: Its size on the wire.
      round_trip: Seconds of a call that carries next to nothing.
      uplink: Bytes per second towards the service; inf if too fast to measure.
      service: Seconds the service takes for a chunk.
    """

    capture: float
    encode: float
    observation_bytes: float
    round_trip: float
    uplink: float
    service: float

    @property
    def latency(self) -> float:
        """Returns the seconds from capture to merged chunk."""
        return self.capture + self.encode + self.round_trip + self.observation_bytes / self.uplink + self.service


@dataclass(frozen=True)
class Plan:
    """The settings that decide how it goes, as in EdgeSettings, with the actions_per_chunk that will really come.

    `horizon` is that of real-time chunking, 0 without it.
    """

    fps: float
    actions_per_chunk: int
    replan: Replan
    chunk_size_threshold: float
    max_action_age: float
    horizon: int = 0


@dataclass(frozen=True)
class Prediction:
    """What to expect.

    Attributes:
      latency: Seconds from capture to merged chunk.
      idle_share: Share of ticks without an action, 0 to 1.
      age_mean: Mean age of executed actions in seconds.
      age_max: Their greatest age.
      uplink_bytes_per_second: What the observations take of the uplink.
    """

    latency: float
    idle_share: float
    age_mean: float
    age_max: float
    uplink_bytes_per_second: float


def predict(costs: Costs, plan: Plan) -> Prediction:
    """Returns what a run with plan will be like where things cost what was measured."""
    rng = np.random.default_rng(0)
    queue = ActionQueue(plan.max_action_age)
    replanner = Replanner(plan.replan, plan.chunk_size_threshold, plan.fps, least_depth=plan.horizon)
    trips = RoundTrips()
    chunk = np.zeros((plan.actions_per_chunk, 1), np.float32)
    arriving: tuple[float, ActionChunk] | None = (0.0, ActionChunk(0, 0, 1, 0, -costs.latency, chunk))
    sequence, answered_at, ticks = 1, 0.0, round(SIMULATED_SECONDS * plan.fps)
    idle, ages = 0, []
    for tick in range(ticks):
        now = tick / plan.fps
        if arriving is not None and arriving[0] <= now:
            queue.merge(arriving[1], arriving[0])
            trips.add(arriving[0] - arriving[1].captured_at)
            answered_at, arriving = arriving[0], None
        action, _ = queue.take(now)
        if action is None:
            idle += 1
        else:
            ages.append(now - action.captured_at)
        left = queue.playback_left(now, plan.fps)
        depth, rested = queue.depth(), now - answered_at
        if arriving is None and replanner.wants(depth, plan.actions_per_chunk, left, trips, rested):
            sequence += 1
            latency = costs.latency * max(0.5, 1 + JITTER * rng.standard_normal())
            arriving = (now + latency, ActionChunk(0, 0, sequence, queue.next_step, now, chunk))
    return Prediction(
        latency=costs.latency,
        idle_share=idle / ticks,
        age_mean=float(np.mean(ages)) if ages else float("inf"),
        age_max=float(np.max(ages)) if ages else float("inf"),
        uplink_bytes_per_second=sequence * costs.observation_bytes / SIMULATED_SECONDS,
    )
