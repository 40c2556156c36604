"""How a new chunk and what is left of the old one become one plan.

Pure functions of arrays. Steps count from the next one to be executed; D is the number of an action's values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Above it exp() fails; an old chunk that counts so much more than a new one counts alone
MAX_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class Seam:
    """A new chunk where it meets what is left of the old plan.

    Attributes:
      new: The new chunk's actions, float32, shape (n, D), n > 0.
      old: What was coming for the same steps, float32, shape (m, D); m may be 0, or more than n.
      weights: Of what each action of old was made, in chunks that count as its newest one; shape (m,).
      executed: The action executed last, shape (D,); None if the arm stands.
      new_before: The new chunk's own action for that step, shape (D,); None if it has none.
      steps_between: Steps between the observations behind the newest chunk before and this one.
    """

    new: np.ndarray
    old: np.ndarray
    weights: np.ndarray
    executed: np.ndarray | None
    new_before: np.ndarray | None
    steps_between: int


@dataclass(frozen=True, slots=True)
class Merged:
    """The plan from a seam on.

    Attributes:
      values: float32, shape (n, D).
      shares: How much of each action is the new chunk's, 0 to 1, shape (n,).
    """

    values: np.ndarray
    shares: np.ndarray


Merge = Callable[[Seam], Merged]


def latest_only(seam: Seam) -> Merged:
    """Takes the new chunk as it is."""
    return Merged(seam.new, np.ones(len(seam.new)))


def weighted(old_weight: float, new_weight: float) -> Merge:
    """Returns what blends where old and new both have an action, with weights whose sum is 1."""

    def merge(seam: Seam) -> Merged:
        both = min(len(seam.old), len(seam.new))
        blend = old_weight * seam.old[:both] + new_weight * seam.new[:both]
        shares = np.ones(len(seam.new))
        shares[:both] = new_weight
        return Merged(np.concatenate([blend, seam.new[both:]]), shares)

    return merge


# Names and weights of LeRobot's async_inference.configs.AGGREGATE_FUNCTIONS
LEROBOT_MERGES: Mapping[str, Merge] = {
    "latest_only": latest_only,
    "weighted_average": weighted(0.3, 0.7),
    "average": weighted(0.5, 0.5),
    "conservative": weighted(0.7, 0.3),
}


def temporal_ensemble(coefficient: float) -> Merge:
    """Returns ACT's: an action is the mean of all chunks that have one for its step.

    Each is weighted with exp(-coefficient * steps since the oldest). After LeRobot's ACTTemporalEnsembler, which asks
    at every step and counts chunks; to count steps is the same there, and where a chunk comes now and then each still
    counts for what it would.
    """

    def merge(seam: Seam) -> Merged:
        if seam.executed is None:
            # An arm that stands has one opinion to follow, however often it was told one meanwhile
            return latest_only(seam)
        both = min(len(seam.old), len(seam.new))
        growth = math.exp(min(coefficient * seam.steps_between, MAX_EXPONENT))
        shares = np.ones(len(seam.new))
        with np.errstate(over="ignore"):
            shares[:both] = 1 / (1 + seam.weights[:both] * growth)
        values = seam.new.copy()
        values[:both] = seam.old[:both] + (seam.new[:both] - seam.old[:both]) * shares[:both, None]
        return Merged(values.astype(np.float32), shares)

    return merge


def fade(steps: float) -> Merge:
    """Returns what sets the new chunk off so that it begins where the old one would have gone on, and fades that out.

    The offset fades as a critically damped spring comes to rest: at the switch place and speed are those of the old
    plan, and afterwards the new chunk keeps its shape. No two plans are averaged for good. What is left of an offset
    is the next one's, so that how often chunks come makes no difference.

    Args:
      steps: The spring's time constant. Three quarters of an offset are gone after 2.7 of them, 95 % after 4.7.
    """

    def merge(seam: Seam) -> Merged:
        if seam.executed is None:
            # Nothing is interrupted
            return latest_only(seam)
        # Where nothing is left of the old plan the arm is about to stand
        coming = seam.old if len(seam.old) else seam.executed[None]
        offset = coming[0] - seam.new[0]
        before = seam.new_before
        if before is None:
            # It begins at the next step, and would have come from where it goes on to
            before = 2 * seam.new[0] - seam.new[1] if len(seam.new) > 1 else seam.new[0]
        after, rate = np.arange(len(seam.new))[:, None], math.exp(-1 / steps)
        decay = rate**after
        values = seam.new + (offset + (offset - rate * (seam.executed - before)) * after) * decay
        # A speed that is that of a jump would carry on beyond what any chunk has said
        told = np.concatenate([seam.executed[None], coming, seam.new])
        values = np.clip(values, told.min(axis=0), told.max(axis=0))
        return Merged(values.astype(np.float32), 1 - ((1 + (1 - rate) * after) * decay)[:, 0])

    return merge


def but_for(columns: Sequence[int], merge: Merge) -> Merge:
    """Returns merge with so many of an action's values taken from the new chunk as they are: a gripper's, say."""
    if not columns:
        return merge
    kept = list(columns)

    def merge_others(seam: Seam) -> Merged:
        merged = merge(seam)
        values = merged.values.copy()
        values[:, kept] = seam.new[:, kept]
        return Merged(values, merged.shares)

    return merge_others
