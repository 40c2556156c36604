"""What to set: the smallest change of settings after which no tick is idle, found by predicting each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from longarm_edge.doctor.predict import Costs, Plan, Prediction, predict
from longarm_edge.replan import Replan
from longarm_wire.images import Codec

# Share of idle ticks that counts as none: an outlier in a simulated run
NO_IDLE = 0.002
# Where no setting is enough, one that spares fewer idle ticks than this share is not worth what it costs
WORTHWHILE = 0.05


@dataclass(frozen=True)
class Packing:
    """How frames travel: the settings image_codec and jpeg_quality."""

    codec: Codec
    quality: int

    def __str__(self) -> str:
        """Returns it in words."""
        return f"JPEG of quality {self.quality}" if self.codec is Codec.JPEG else self.codec.value


@dataclass(frozen=True)
class Recommendation:
    """What to set, why, and what is to be expected then. `flags` is empty if nothing is to be changed."""

    flags: tuple[str, ...]
    why: str
    prediction: Prediction


def recommend(plan: Plan, costs: Mapping[Packing, Costs], packing: Packing, chunk_size: int) -> Recommendation:
    """Returns the smallest change of settings that leaves no idle tick, or about as few as any.

    Tried in this order: nothing, automatic replanning, all actions of a chunk, fewer bytes a frame. With real-time
    chunking the horizon is made as long as each of them needs it. The rate is not for the doctor to change: it belongs
    to the policy, whose actions are that far apart.

    Args:
      plan: What is set.
      costs: What was measured, by packing; has the one that is set.
      packing: How frames travel as it is set.
      chunk_size: Actions that the policy gives.
    """
    auto = replace(plan, replan=Replan.AUTO)
    whole = replace(auto, actions_per_chunk=chunk_size)
    smaller = [p for p in costs if costs[p].observation_bytes < costs[packing].observation_bytes]
    smaller.sort(key=lambda p: -costs[p].observation_bytes)
    candidates = [(plan, packing), (auto, packing), (whole, packing), *((whole, p) for p in smaller)]
    outcomes = []
    for candidate, p in candidates:
        fitting = replace(candidate, horizon=_horizon(candidate, costs[p].latency))
        outcomes.append((fitting, p, predict(costs[p], fitting)))
    fewest = min(o[2].idle_share for o in outcomes)
    enough = NO_IDLE if fewest <= NO_IDLE else fewest + WORTHWHILE
    best, best_packing, prediction = next(o for o in outcomes if o[2].idle_share <= enough)
    changes = {
        "replan": (plan.replan.value, best.replan.value),
        "actions_per_chunk": (plan.actions_per_chunk, best.actions_per_chunk),
        "image_codec": (packing.codec.value, best_packing.codec.value),
        "jpeg_quality": (packing.quality, best_packing.quality),
        "rtc.execution_horizon": (plan.horizon, best.horizon),
    }
    flags = tuple(f"--{name}={new}" for name, (old, new) in changes.items() if new != old)
    return Recommendation(flags, _why(plan, best, flags, costs[best_packing], prediction), prediction)


def _horizon(plan: Plan, latency: float) -> int:
    """Returns for how many ticks a chunk has to follow the old one to meet it without a jump; 0 stays 0."""
    delay = _ticks(latency, plan)
    enough = min(2 * delay, plan.actions_per_chunk)
    return enough if plan.horizon and plan.horizon <= delay < enough else plan.horizon


def _why(plan: Plan, best: Plan, flags: tuple[str, ...], costs: Costs, prediction: Prediction) -> str:
    if prediction.idle_share > NO_IDLE:
        return ("Even so " if flags else "") + _what_would_help(best, costs, prediction)
    why = []
    if best.horizon != plan.horizon:
        why.append(
            f"A chunk takes {_ticks(prediction.latency, plan)} ticks to come and follows the old one for "
            f"{plan.horizon}: the arm would jump where they meet."
        )
    if len(flags) > len(why):
        why.append("The smallest change after which no tick is idle.")
    return " ".join(why) or "The settings fit."


def _what_would_help(plan: Plan, costs: Costs, prediction: Prediction) -> str:
    """Returns what there is to do where no setting is enough, by what an answer spends its time on."""
    upload = costs.observation_bytes / costs.uplink
    reading = costs.capture + costs.encode
    _, most = max(
        (costs.service, f"{costs.service:.2f} s of it are the policy's: a faster GPU would help"),
        (costs.round_trip, f"{costs.round_trip:.2f} s of it are the way there and back: a nearer GPU would help"),
        (upload, f"{upload:.2f} s of it are the upload: a faster uplink or fewer cameras would help"),
        (reading, f"{reading:.2f} s of it are the robot's: faster or fewer cameras would help"),
    )
    if prediction.latency > plan.max_action_age:
        limit = f"and no action is executed that is older than safety.max_action_age={plan.max_action_age:g} s"
        other = "a larger safety.max_action_age, where the arm may act on what was seen that long ago"
    else:
        limit = f"and a chunk lasts {plan.actions_per_chunk / plan.fps:.2f} s"
        other = "a policy with longer chunks"
    return (
        f"{prediction.idle_share:.0%} of the ticks will be idle: an answer takes {prediction.latency:.2f} s, {limit}. "
        f"{most}, and so would {other}."
    )


def _ticks(seconds: float, plan: Plan) -> int:
    return math.ceil(seconds * plan.fps)
