"""The edge's actions for the next steps of the plan: plain data and code, one lock, no clock of its own."""

import math
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from longarm_edge.merging import Merge, Seam, latest_only


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
      seen: Where the arm stands in its observation, shape (action_dim), NaN where nobody measures it; None if unknown.
    """

    epoch: int
    episode: int
    sequence: int
    step: int
    captured_at: float
    actions: np.ndarray
    model_actions: np.ndarray | None = None
    seen: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class QueuedAction:
    """One action for one step.

    Attributes:
      step: Its place in the plan.
      values: Shape (action_dim,), robot units.
      captured_at: Capture of the observation behind it: of a blend, behind its newest part.
      mean_captured_at: The mean of the captures behind all of its parts, each weighted with its share.
      sequence: Request whose reply it came with.
      model_values: As the policy made it, shape (model_action_dim,). None without real-time chunking.
      weight: That of all chunks behind it, where the newest one's is 1.
      seen: That of its chunk.
    """

    step: int
    values: np.ndarray
    captured_at: float
    mean_captured_at: float
    sequence: int
    model_values: np.ndarray | None = None
    weight: float = 1.0
    seen: np.ndarray | None = None


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
      merging: How a new chunk and what is left of the old one become one plan. To be set before the first merge.
    """

    def __init__(self, max_action_age: float, merging: Merge = latest_only) -> None:
        """Makes an empty queue before step 0 of episode 0, epoch 0.

        Args:
          max_action_age: Seconds from capture after which an action is never executed.
          merging: How a new chunk and what is left of the old one become one plan.
        """
        self.max_action_age = max_action_age
        self.merging = merging
        self._lock = threading.Lock()
        self._coming: deque[QueuedAction] = deque()
        # None while the arm stands
        self._executed: np.ndarray | None = None
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
            old = list(self._coming)
            merged = self.merging(
                Seam(
                    new=chunk.actions[late:],
                    old=np.stack([action.values for action in old]) if old else chunk.actions[:0],
                    weights=np.array([action.weight for action in old]),
                    executed=self._executed,
                    new_before=chunk.actions[late - 1] if late else None,
                    steps_between=chunk.step - self._newest_chunk_step,
                )
            )
            first = chunk.step + late
            shares = merged.shares.tolist()
            self._coming = deque(
                QueuedAction(
                    step=first + i,
                    values=merged.values[i],
                    captured_at=chunk.captured_at,
                    mean_captured_at=_mean_capture(chunk.captured_at, old, i, share),
                    sequence=chunk.sequence,
                    model_values=None if chunk.model_actions is None else chunk.model_actions[late + i],
                    weight=1 / share if share else math.inf,
                    seen=chunk.seen,
                )
                for i, share in enumerate(shares)
            )
            self._drops[Drop.REPLACED] += max(0, len(old) - len(self._coming))
            self._newest_chunk_step = chunk.step
            return None

    def take(self, now: float) -> tuple[QueuedAction | None, bool]:
        """Removes and returns the next action, and whether there were actions that are too old to execute.

        Only an action that is returned makes the plan go on by a step.

        Args:
          now: Seconds on the monotonic clock.
        """
        with self._lock:
            if not self._coming:
                self._executed = None
                return None, False
            if now - self._coming[0].captured_at > self.max_action_age:
                # So are the others: all rest on the same observation
                self._drops[Drop.EXPIRED] += len(self._coming)
                self._coming.clear()
                self._executed = None
                return None, True
            self._next_step += 1
            action = self._coming.popleft()
            self._executed = action.values
            return action, False

    def peek(self, now: float) -> QueuedAction | None:
        """Returns the next action without taking it; None where take would return none."""
        with self._lock:
            if not self._coming or now - self._coming[0].captured_at > self.max_action_age:
                return None
            return self._coming[0]

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
            self._executed = None
            self._next_step = self._newest_chunk_step = 0
            self._episode += 1
            return self._episode


def _mean_capture(captured_at: float, old: Sequence[QueuedAction], i: int, share: float) -> float:
    """Returns the mean of the captures behind an action of which share is new, and the rest as action i of old."""
    if not old or share == 1:
        return captured_at
    # What fades out goes on past the old plan's end
    return share * captured_at + (1 - share) * old[min(i, len(old) - 1)].mean_captured_at
