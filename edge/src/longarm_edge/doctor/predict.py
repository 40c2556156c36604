"""What a run will be like, predicted by running the real queue and replanner on a clock that needs no time."""

from dataclasses import dataclass, replace

import numpy as np

from longarm_edge.action_queue import AGGREGATE_FUNCTIONS, ActionChunk, ActionQueue
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
    """The settings that decide how it goes, as in EdgeSettings, with the actions_per_chunk that will really come."""

    fps: float
    actions_per_chunk: int
    replan: Replan
    chunk_size_threshold: float
    max_action_age: float


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
    queue = ActionQueue(AGGREGATE_FUNCTIONS["latest_only"], plan.max_action_age)
    replanner = Replanner(plan.replan, plan.chunk_size_threshold, plan.fps)
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


@dataclass(frozen=True)
class Recommendation:
    """What to set, why, and what is to be expected then. `flags` is empty if nothing is to be changed."""

    flags: tuple[str, ...]
    why: str
    prediction: Prediction


# Share of idle ticks that counts as none: an outlier in a simulated run
NO_IDLE = 0.002


def recommend(plan: Plan, costs_by_quality: dict[int, Costs], quality: int, chunk_size: int) -> Recommendation:
    """Returns the smallest change of settings that leaves no idle tick, or the one with the fewest.

    Tried in this order: nothing, automatic replanning, all actions of a chunk, less JPEG quality, fewer ticks a second.

    Args:
      plan: What is set.
      costs_by_quality: What was measured, by JPEG quality; has quality.
      quality: JPEG quality that is set.
      chunk_size: Actions that the policy gives.
    """
    lower = [q for q in sorted(costs_by_quality, reverse=True) if q <= quality]
    candidates: list[tuple[Plan, int]] = [(plan, quality)]
    auto = replace(plan, replan=Replan.AUTO)
    whole = replace(auto, actions_per_chunk=chunk_size)
    candidates += [(auto, quality), (whole, quality), *((whole, q) for q in lower)]
    candidates += [(replace(whole, fps=plan.fps * share), lower[-1]) for share in (2 / 3, 0.5, 1 / 3)]
    outcomes = [(p, q, predict(costs_by_quality[q], p)) for p, q in candidates]
    chosen = next((o for o in outcomes if o[2].idle_share <= NO_IDLE), min(outcomes, key=lambda o: o[2].idle_share))
    best, best_quality, prediction = chosen
    flags = []
    if best.replan is not plan.replan:
        flags.append(f"--replan={best.replan.value}")
    if best.actions_per_chunk != plan.actions_per_chunk:
        flags.append(f"--actions_per_chunk={best.actions_per_chunk}")
    if best_quality != quality:
        flags.append(f"--jpeg_quality={best_quality}")
    if best.fps != plan.fps:
        flags.append(f"--fps={best.fps:g}")
    if prediction.idle_share > NO_IDLE:
        lasts = best.actions_per_chunk / best.fps
        why = (
            f"Even so {prediction.idle_share:.0%} of the ticks will be idle: a chunk takes {prediction.latency:.2f} s "
            f"and lasts {lasts:.2f} s. A faster GPU, a nearer one, or a policy with longer chunks would mend that."
        )
    elif flags:
        why = "The smallest change after which no tick is idle."
    else:
        why = "The settings fit."
    return Recommendation(tuple(flags), why, prediction)
