"""The edge's actions for the next steps of the plan: plain data and code, one lock, no clock of its own."""

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

Aggregate = Callable[[np.ndarray, np.ndarray], np.ndarray]

# How an action of the old chunk and one of the new chunk for the same step become one. Names and weights are those
# of LeRobot's async_inference.configs.AGGREGATE_FUNCTIONS, but for the first and the last
AGGREGATE_FUNCTIONS: Mapping[str, Aggregate] = {
    # As the policy's configuration has it: see ActionQueue.temporal_ensemble_coeff
    "auto": lambda _old, new: new,
    "latest_only": lambda _old, new: new,
    "weighted_average": lambda old, new: 0.3 * old + 0.7 * new,
    "average": lambda old, new: 0.5 * old + 0.5 * new,
    "conservative": lambda old, new: 0.7 * old + 0.3 * new,
    # Real-time chunking: the policy itself has made the new chunk follow the old one
    "rtc": lambda _old, new: new,
}
# Above it exp() fails; an old chunk that counts so much more than a new one counts alone
MAX_EXPONENT = 700.0


class Drop(StrEnum):
    """Why an action was never executed."""

    LATE = "late"
    """Its step was over, executed from an older chunk, when its chunk arrived."""
    EXPIRED = "expired"
    """It was older than max_action_age when its chunk arrived or its turn came."""
    REPLACED = "replaced"
    """A newer chunk ends before its step, or a new episode began."""
    FOREIGN = "foreign"
    """Its chunk belongs to another epoch or episode, or is older than one already merged."""


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """A reply of the policy.

    Attributes:
      epoch: Connection it came through.
      episode: Episode its observation belongs to.
      sequence: Counts requests.
      step: The step that was next when its observation was captured: that of the first action.
      captured_at: Capture of its observation, seconds on the edge's monotonic clock.
      actions: float32, shape (steps, action_dim), robot units.
      model_actions: The same as the policy made them, float32, shape (steps, model_action_dim). For real-time chunking.
    """

    epoch: int
    episode: int
    sequence: int
    step: int
    captured_at: float
    actions: np.ndarray
    model_actions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class QueuedAction:
    """One action for one step. A blend is as old as the newest part of it.

    Attributes:
      step: Its place in the plan.
      values: Shape (action_dim,), robot units.
      captured_at: Capture of the observation behind it.
      sequence: Request whose reply it came with.
      model_values: As the policy made it, shape (model_action_dim,). None without real-time chunking.
      weight: That of all chunks behind it, where the newest one's is 1. For temporal ensembling.
    """

    step: int
    values: np.ndarray
    captured_at: float
    sequence: int
    model_values: np.ndarray | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where the queue stands at one instant.

    Attributes:
      epoch: The connection.
      episode: The episode.
      step: The next step.
      coming: The actions for step and the steps after it.
    """

    epoch: int
    episode: int
    step: int
    coming: tuple[QueuedAction, ...]


class ActionQueue:
    """What is coming: the actions for the next steps, for the control loop (take) and the planner (merge).

    Steps are numbered from 0 in each episode. A step is over when its action is taken, and never otherwise: while the
    arm stands, for whatever reason, the plan's time stands too, and a chunk loses as many actions as were executed
    since its observation. So there is never a gap, and all that is queued is as old as the newest chunk.

    Every method is atomic: no interleaving of merges and takes executes a step twice, out of order, or leaves one out.

    Attributes:
      max_action_age: Seconds from capture after which an action is never executed.
      temporal_ensemble_coeff: ACT's: an action is the mean of all chunks that have one for its step, each weighted with
        exp(-coefficient * steps since the oldest). None to aggregate as the queue was made to. To be set before the
        first merge.
    """

    def __init__(self, aggregate: Aggregate, max_action_age: float) -> None:
        """Makes an empty queue before step 0 of episode 0, epoch 0.

        Args:
          aggregate: From the old and the new action of a step to the one to execute.
          max_action_age: Seconds from capture after which an action is never executed.
        """
        self.max_action_age = max_action_age
        self.temporal_ensemble_coeff: float | None = None
        self._aggregate = aggregate
        self._lock = threading.Lock()
        self._coming: deque[QueuedAction] = deque()
        self._next_step = 0
        self._epoch = 0
        self._episode = 0
        self._newest_sequence = 0
        self._newest_chunk_step = 0
        self._drops: Counter[Drop] = Counter()

    @property
    def epoch(self) -> int:
        """The current connection."""
        return self._epoch

    @property
    def episode(self) -> int:
        """The current episode."""
        return self._episode

    @property
    def next_step(self) -> int:
        """The step that the next action taken is for: so many were executed in this episode."""
        return self._next_step

    @property
    def drops(self) -> Counter[Drop]:
        """How many actions were never executed, by reason, since the queue was made."""
        with self._lock:
            return self._drops.copy()

    def merge(self, chunk: ActionChunk, now: float) -> Drop | None:
        """Puts chunk's actions for coming steps in place of the old ones, blended where both exist.

        Old actions past its end go: they rest on an older observation than the policy's last word.

        Args:
          chunk: From a step that is next or over.
          now: Seconds on the monotonic clock.

        Returns:
          Why nothing of chunk can be executed, or None if something can.

        Raises:
          ValueError: chunk begins after the next step.
        """
        with self._lock:
            steps = len(chunk.actions)
            current = (self._epoch, self._episode)
            if (chunk.epoch, chunk.episode) != current or chunk.sequence <= self._newest_sequence:
                self._drops[Drop.FOREIGN] += steps
                return Drop.FOREIGN
            if chunk.step > self._next_step:
                raise ValueError(
                    f"Expected a chunk from step {self._next_step} or before but found one from {chunk.step}: an "
                    "observation belongs to the step that is next when it is captured"
                )
            self._newest_sequence = chunk.sequence
            if now - chunk.captured_at > self.max_action_age:
                self._drops[Drop.EXPIRED] += steps
                return Drop.EXPIRED
            late = min(steps, self._next_step - chunk.step)
            self._drops[Drop.LATE] += late
            if late == steps:
                # Nothing of it is new: what is coming stays, if it reaches further
                return Drop.LATE
            merged: deque[QueuedAction] = deque()
            for offset in range(late, steps):
                old = self._coming.popleft() if self._coming else None
                values, weight = self._merged(old, chunk.actions[offset], chunk.step - self._newest_chunk_step)
                model_values = None if chunk.model_actions is None else chunk.model_actions[offset]
                step = chunk.step + offset
                merged.append(QueuedAction(step, values, chunk.captured_at, chunk.sequence, model_values, weight))
            self._drops[Drop.REPLACED] += len(self._coming)
            self._coming = merged
            self._newest_chunk_step = chunk.step
            return None

    def _merged(self, old: QueuedAction | None, new: np.ndarray, steps_between: int) -> tuple[np.ndarray, float]:
        """Returns what becomes of the old and the new action of a step, and its weight."""
        if old is None:
            return new, 1.0
        if self.temporal_ensemble_coeff is None:
            return self._aggregate(old.values, new), 1.0
        # LeRobot asks at every step and counts chunks; to count steps is the same there, and where a chunk comes now
        # and then each still counts for what it would
        weight = old.weight * math.exp(min(self.temporal_ensemble_coeff * steps_between, MAX_EXPONENT))
        return old.values + (new - old.values) * (1 / (1 + weight)), 1 + weight

    def take(self, now: float) -> tuple[QueuedAction | None, bool]:
        """Removes and returns the next action, and whether there were actions that are too old to execute.

        Only an action that is returned makes the plan go on by a step.

        Args:
          now: Seconds on the monotonic clock.
        """
        with self._lock:
            if not self._coming:
                return None, False
            if now - self._coming[0].captured_at > self.max_action_age:
                # So are the others: all rest on the same observation
                self._drops[Drop.EXPIRED] += len(self._coming)
                self._coming.clear()
                return None, True
            self._next_step += 1
            return self._coming.popleft(), False

    def outlook(self) -> Outlook:
        """Returns where the queue stands."""
        with self._lock:
            return Outlook(self._epoch, self._episode, self._next_step, tuple(self._coming))

    def depth(self) -> int:
        """Returns the actions left."""
        with self._lock:
            return len(self._coming)

    def playback_left(self, now: float, fps: float) -> float:
        """Returns for how many seconds from now the queue can be executed before it is used up or too old."""
        with self._lock:
            if not self._coming:
                return 0.0
            fresh_for = self._coming[0].captured_at + self.max_action_age - now
            return min(len(self._coming), max(0, math.floor(fresh_for * fps) + 1)) / fps

    def begin_epoch(self) -> int:
        """Starts a new connection and returns its number. What is queued stays playable."""
        with self._lock:
            self._epoch += 1
            return self._epoch

    def expire(self) -> None:
        """Drops what is queued, and every chunk that was asked for before now."""
        with self._lock:
            self._drops[Drop.EXPIRED] += len(self._coming)
            self._coming.clear()
            self._epoch += 1

    def begin_episode(self) -> int:
        """Starts a new episode at step 0 with an empty queue and returns its number."""
        with self._lock:
            self._drops[Drop.REPLACED] += len(self._coming)
            self._coming.clear()
            self._next_step = self._newest_chunk_step = 0
            self._episode += 1
            return self._episode
