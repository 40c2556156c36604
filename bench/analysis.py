"""From what a robot logged to figures. Pure functions: no clock, no files."""

from dataclasses import dataclass

import numpy as np

from bench import marks
from bench.robot_log import COMMANDED, OBSERVED

# A pause of this many ticks is a stop
STOP_TICKS = 3


@dataclass(frozen=True)
class Executed:
    """The commands of a run and what they rest on.

    Attributes:
      at: When each command came, monotonic seconds, shape (n,).
      count: Number of the newest observation behind it; 0 where there is none, shape (n,).
      age: Seconds since that observation began, shape (n,); NaN where there is none.
      joints: Degrees, shape (n, joints).
    """

    at: np.ndarray
    count: np.ndarray
    age: np.ndarray
    joints: np.ndarray

    def between(self, begun: float, ended: float) -> "Executed":
        """Returns the commands in begun <= at < ended."""
        chosen = (self.at >= begun) & (self.at < ended)
        return Executed(self.at[chosen], self.count[chosen], self.age[chosen], self.joints[chosen])

    def firsts(self) -> np.ndarray:
        """Returns the indices of commands that are the first of a newer observation, shape (k,).

        The first command of all is left out: whether it is the first of its observation is not known.
        """
        newest = np.maximum.accumulate(self.count) if len(self.count) else self.count
        return np.flatnonzero(self.count[1:] > newest[:-1]) + 1


def executed(events: np.ndarray) -> Executed:
    """Returns the commands of a run, each with the observation behind it.

    Args:
      events: Array of robot_log.EVENT.
    """
    observations = events[events["kind"] == OBSERVED]
    commands = events[events["kind"] == COMMANDED]
    # How many observations had begun when the command came
    before = np.searchsorted(observations["begun"], commands["begun"], side="right")
    counts = [max(0, marks.unwrap(int(mark), int(last))) for mark, last in zip(commands["mark"], before, strict=True)]
    count = np.array(counts, np.int64)
    age = np.full(len(commands), np.nan)
    known = count > 0
    age[known] = commands["begun"][known] - observations["begun"][count[known] - 1]
    return Executed(commands["begun"].copy(), count, age, commands["joints"].copy())


@dataclass(frozen=True)
class Figures:
    """What a robot got from its peer in a window of time. Milliseconds, degrees; NaN where there was nothing.

    Attributes:
      seconds: Length of the window.
      actions_per_second: Commands.
      missing_ticks: Periods of 1/fps for which there was no command.
      late_p50_ms, late_p99_ms, late_max_ms: How much longer than 1/fps from command to command.
      first_p50_ms, first_p95_ms: From the beginning of an observation to the first command that rests on it.
      age_mean_ms, age_p95_ms: From the beginning of the newest observation behind a command to the command.
      chunks_per_second: Observations that became commands.
      observations_per_second: Observations that were taken.
      switch_p50_deg, switch_max_deg: Largest joint's step from one chunk's command to the next chunk's.
      inside_max_deg: The same between commands of one chunk.
    """

    seconds: float
    actions_per_second: float
    missing_ticks: int
    late_p50_ms: float
    late_p99_ms: float
    late_max_ms: float
    first_p50_ms: float
    first_p95_ms: float
    age_mean_ms: float
    age_p95_ms: float
    chunks_per_second: float
    observations_per_second: float
    switch_p50_deg: float
    switch_max_deg: float
    inside_max_deg: float


def figures(events: np.ndarray, begun: float, ended: float, fps: float) -> Figures:
    """Returns the figures of a window.

    Args:
      events: Array of robot_log.EVENT, of the whole run.
      begun, ended: The window, monotonic seconds.
      fps: Ticks per second that were asked for.
    """
    whole = executed(events)
    window = whole.between(begun, ended)
    seconds = ended - begun
    observed = events["begun"][events["kind"] == OBSERVED]
    # One before the window, so that the first command in it has a predecessor
    start = max(0, int(np.searchsorted(whole.at, begun)) - 1)
    shown = whole.between(whole.at[start] if len(whole.at) else begun, ended)
    late = (np.diff(shown.at) - 1 / fps).clip(0) * 1000
    firsts = shown.firsts()
    steps = np.abs(np.diff(shown.joints, axis=0)).max(axis=1) if len(shown.at) > 1 else np.empty(0)
    switched = np.isin(np.arange(1, len(shown.at)), firsts)
    return Figures(
        seconds=seconds,
        actions_per_second=len(window.at) / seconds,
        missing_ticks=max(0, round(seconds * fps) - len(window.at), _holes(shown.at, fps)),
        late_p50_ms=quantile(late, 0.5),
        late_p99_ms=quantile(late, 0.99),
        late_max_ms=quantile(late, 1.0),
        first_p50_ms=quantile(shown.age[firsts] * 1000, 0.5),
        first_p95_ms=quantile(shown.age[firsts] * 1000, 0.95),
        age_mean_ms=float(np.nanmean(window.age) * 1000) if np.isfinite(window.age).any() else float("nan"),
        age_p95_ms=quantile(window.age * 1000, 0.95),
        chunks_per_second=len(firsts) / seconds,
        observations_per_second=int(((observed >= begun) & (observed < ended)).sum()) / seconds,
        switch_p50_deg=quantile(steps[switched], 0.5),
        switch_max_deg=quantile(steps[switched], 1.0),
        inside_max_deg=quantile(steps[~switched], 1.0),
    )


def _holes(at: np.ndarray, fps: float) -> int:
    """Returns the periods without a command between commands. One that comes almost a period late leaves none."""
    return int((np.floor(np.diff(at) * fps + 0.1) - 1).clip(0).sum())


@dataclass(frozen=True)
class Outage:
    """What a robot did about an outage. Seconds; None for never.

    Attributes:
      played: How long commands went on without a stop after it began.
      still: The longest time without a command, from its beginning on.
      resumed: From its end to the first command that rests on an observation of after its end.
      moving_again: From its end to the next command of any kind; 0 if the commands had not stopped.
    """

    played: float
    still: float
    resumed: float | None
    moving_again: float | None


def outage(events: np.ndarray, begun: float, ended: float, until: float, fps: float) -> Outage:
    """Returns what came of an outage.

    Args:
      events: Array of robot_log.EVENT, of the whole run.
      begun, ended: The outage, monotonic seconds.
      until: When the run was stopped.
      fps: Ticks per second that were asked for.
    """
    run = executed(events).between(begun - 1, until)
    instants = np.concatenate([run.at, [until]])
    gaps = np.diff(instants)
    stops = np.flatnonzero((gaps > STOP_TICKS / fps) & (instants[1:] > begun))
    fresh = run.at[(run.at > ended) & (run.at - np.nan_to_num(run.age, nan=np.inf) >= ended)]
    after_stops = instants[stops + 1]
    # The stop during which the outage ended, if there was one
    spanning = [index for index in stops if instants[index] < ended <= instants[index + 1]]
    moving_at = float(instants[spanning[0] + 1]) if spanning else ended
    return Outage(
        played=max(0.0, float(instants[stops[0]]) - begun) if len(stops) else until - begun,
        still=float((after_stops - np.maximum(instants[stops], begun)).max()) if len(stops) else 0.0,
        resumed=float(fresh[0] - ended) if len(fresh) else None,
        moving_again=None if moving_at >= until else moving_at - ended,
    )


def quantile(values: np.ndarray, q: float) -> float:
    """Returns the q-quantile of the finite values, no less than what was seen; NaN of none."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, q, method="higher")) if len(finite) else float("nan")
