"""The edge's actions for coming ticks: plain data and code, one lock, no clock of its own."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

Aggregate = Callable[[np.ndarray, np.ndarray], np.ndarray]

# How an action of the old chunk and one of the new chunk for the same tick become one. Names and weights are those
# of LeRobot's async_inference.configs.AGGREGATE_FUNCTIONS, but for the last
AGGREGATE_FUNCTIONS: Mapping[str, Aggregate] = {
    "latest_only": lambda _old, new: new,
    "weighted_average": lambda old, new: 0.3 * old + 0.7 * new,
    "average": lambda old, new: 0.5 * old + 0.5 * new,
    "conservative": lambda old, new: 0.7 * old + 0.3 * new,
    # Real-time chunking: the policy itself has made the new chunk follow the old one
    "rtc": lambda _old, new: new,
}


class Drop(StrEnum):
    """Why an action was never executed."""

    LATE = "late"
    """Its tick had passed when its chunk arrived."""
    MISSED = "missed"
    """The control loop skipped its tick."""
    EXPIRED = "expired"
    """It was older than max_action_age when its tick came."""
    REPLACED = "replaced"
    """A newer chunk ends before its tick, or a new episode began."""
    FOREIGN = "foreign"
    """Its chunk belongs to another epoch or episode, or is older than one already merged."""


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """A reply of the policy.

    Attributes:
      epoch: Connection it came through.
      episode: Episode its observation belongs to.
      sequence: Counts requests.
      tick: Tick of the first action.
      captured_at: Capture of its observation, seconds on the edge's monotonic clock.
      actions: float32, shape (steps, action_dim), robot units.
      model_actions: The same as the policy made them, float32, shape (steps, model_action_dim). For real-time chunking.
    """

    epoch: int
    episode: int
    sequence: int
    tick: int
    captured_at: float
    actions: np.ndarray
    model_actions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class QueuedAction:
    """One action for one tick. A blend is as old as the newest part of it.

    Attributes:
      tick: When to execute it.
      values: Shape (action_dim,), robot units.
      captured_at: Capture of the observation behind it.
      sequence: Request whose reply it came with.
      model_values: As the policy made it, shape (model_action_dim,). None without real-time chunking.
    """

    tick: int
    values: np.ndarray
    captured_at: float
    sequence: int
    model_values: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where the queue stands at one instant.

    Attributes:
      epoch: The connection.
      episode: The episode.
      tick: The first tick that take has not been asked for.
      coming: The actions for tick and the ticks after it, up to the first gap.
    """

    epoch: int
    episode: int
    tick: int
    coming: tuple[QueuedAction, ...]


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did: whether the chunk was taken, and how many of its actions came too late."""

    taken: bool
    late_count: int


class ActionQueue:
    """Actions by tick, for the control loop (take) and the planner (merge).

    Every method is atomic. An action can only be taken for its own tick, and ticks only go forward, so no
    interleaving of merges and takes executes an action twice, out of order or after its tick.
    """

    def __init__(self, aggregate: Aggregate, max_action_age: float) -> None:
        """Makes an empty queue before tick 0 of episode 0, epoch 0.

        Args:
          aggregate: From the old and the new action of a tick to the one to execute.
          max_action_age: Seconds from capture after which an action is never executed.
        """
        self._aggregate = aggregate
        self._max_action_age = max_action_age
        self._lock = threading.Lock()
        self._actions: dict[int, QueuedAction] = {}
        self._next_tick = 0
        self._epoch = 0
        self._episode = 0
        self._newest_sequence = 0
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
    def next_tick(self) -> int:
        """The first tick that take has not been asked for."""
        return self._next_tick

    @property
    def drops(self) -> Counter[Drop]:
        """How many actions were never executed, by reason, since the queue was made."""
        with self._lock:
            return self._drops.copy()

    def merge(self, chunk: ActionChunk) -> MergeResult:
        """Puts chunk's actions for coming ticks in place of the old ones, blended where both exist.

        Old actions for ticks before the chunk's first stay. Old actions past its end go: they rest on an older
        observation than the policy's last word.
        """
        with self._lock:
            steps = len(chunk.actions)
            current = (self._epoch, self._episode)
            if (chunk.epoch, chunk.episode) != current or chunk.sequence <= self._newest_sequence:
                self._drops[Drop.FOREIGN] += steps
                return MergeResult(taken=False, late_count=0)
            late = min(steps, max(0, self._next_tick - chunk.tick))
            merged = {tick: action for tick, action in self._actions.items() if tick < chunk.tick}
            for offset in range(late, steps):
                tick = chunk.tick + offset
                old = self._actions.get(tick)
                new = chunk.actions[offset]
                values = new if old is None else self._aggregate(old.values, new)
                model_values = None if chunk.model_actions is None else chunk.model_actions[offset]
                merged[tick] = QueuedAction(tick, values, chunk.captured_at, chunk.sequence, model_values)
            self._drops[Drop.LATE] += late
            self._drops[Drop.REPLACED] += sum(tick >= chunk.tick + steps for tick in self._actions)
            self._actions = merged
            self._newest_sequence = chunk.sequence
            return MergeResult(taken=True, late_count=late)

    def take(self, tick: int, now: float) -> tuple[QueuedAction | None, bool]:
        """Removes and returns the action for tick, and whether there was one that is too old to execute.

        Args:
          tick: Not below next_tick; ticks in between are given up.
          now: Seconds on the monotonic clock.

        Raises:
          ValueError: tick was asked for before.
        """
        with self._lock:
            if tick < self._next_tick:
                raise ValueError(f"Expected a tick from {self._next_tick} on but found {tick}: ticks only go forward")
            for missed in [t for t in self._actions if t < tick]:
                del self._actions[missed]
                self._drops[Drop.MISSED] += 1
            self._next_tick = tick + 1
            action = self._actions.pop(tick, None)
            if action is not None and now - action.captured_at > self._max_action_age:
                self._drops[Drop.EXPIRED] += 1
                return None, True
            return action, False

    def outlook(self) -> Outlook:
        """Returns where the queue stands."""
        with self._lock:
            tick, coming = self._next_tick, []
            while (action := self._actions.get(tick)) is not None:
                coming.append(action)
                tick += 1
            return Outlook(self._epoch, self._episode, self._next_tick, tuple(coming))

    def depth(self) -> int:
        """Returns the actions left."""
        with self._lock:
            return len(self._actions)

    def playback_left(self, now: float, fps: float) -> float:
        """Returns for how many seconds from now the queue can be executed without a gap and without old actions."""
        with self._lock:
            tick = self._next_tick
            while (action := self._actions.get(tick)) is not None:
                if now + (tick - self._next_tick) / fps - action.captured_at > self._max_action_age:
                    break
                tick += 1
            return (tick - self._next_tick) / fps

    def begin_epoch(self) -> int:
        """Starts a new connection and returns its number. What is queued stays playable."""
        with self._lock:
            self._epoch += 1
            return self._epoch

    def begin_episode(self) -> int:
        """Starts a new episode at tick 0 with an empty queue and returns its number."""
        with self._lock:
            self._drops[Drop.REPLACED] += len(self._actions)
            self._actions = {}
            self._next_tick = 0
            self._episode += 1
            return self._episode
