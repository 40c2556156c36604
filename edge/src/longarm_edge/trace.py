"""What happened in a run, kept for the summary and the picture: the recent ticks, requests and all the counts."""

import math
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from longarm_edge.metrics import EdgeMetrics, Observation, Reconnect, Recorded, Stage, Tick
from longarm_edge.smoothness import Step

# At 30 ticks a second this is an hour; older ticks stay in the counts only
KEPT_TICKS = 108_000
KEPT_REQUESTS = 20_000
# A tick whose command goes out later than this is counted as late
LATE_SECONDS = 0.002
# Over how many seconds a rate is taken
RATE_WINDOW = 5.0


@dataclass(frozen=True, slots=True)
class TickRecord:
    """One tick of the control loop.

    Attributes:
      tick: Its number.
      at: When its command went out, or it was found idle; seconds on the monotonic clock.
      lateness: Seconds after it was due.
      outcome: How it ended.
      depth: Actions left afterwards.
      age: Age of the newest part of the executed action in seconds, None without one.
      mean_age: Mean age of its parts, each weighted with its share.
      step: How the command went on from the one before.
    """

    tick: int
    at: float
    lateness: float
    outcome: Tick
    depth: int
    age: float | None = None
    mean_age: float | None = None
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One answered observation: when its chunk was merged, the seconds from capture to merge, and its parts."""

    at: float
    latency: float
    stages: Mapping[Stage, float]


@dataclass
class Trace:
    """Records the run and moves the metrics. Each part has one writer: the control loop or the planner.

    Ticks, requests and lags are kept for a while; everything else is of the whole run.
    """

    metrics: EdgeMetrics
    ticks: deque[TickRecord] = field(default_factory=lambda: deque(maxlen=KEPT_TICKS))
    requests: deque[RequestRecord] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    lags: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    began_at: float | None = None
    tick_counts: Counter[Tick] = field(default_factory=Counter)
    late_ticks: int = 0
    idle_after_first_second: int = 0
    observation_counts: Counter[Observation] = field(default_factory=Counter)
    reconnect_counts: Counter[Reconnect] = field(default_factory=Counter)
    recorded_counts: Counter[Recorded] = field(default_factory=Counter)
    unsaved_frames: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    _sent_at: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    _jerks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=1000))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tick(self, record: TickRecord, skipped: int) -> None:
        """A tick ended, and skipped ticks after it were given up."""
        if self.began_at is None:
            self.began_at = record.at
        self.ticks.append(record)
        self.tick_counts[record.outcome] += 1
        self.late_ticks += record.lateness > LATE_SECONDS
        if record.outcome in (Tick.IDLE, Tick.STALE) and record.at > self.began_at + 1:
            self.idle_after_first_second += 1
        self.metrics.ticks.labels(record.outcome).inc()
        self.metrics.lateness.observe(record.lateness)
        if record.age is not None:
            self.metrics.action_age.observe(record.age)
        if record.mean_age is not None:
            self.metrics.action_mean_age.observe(record.mean_age)
        if record.step is not None:
            self.metrics.command_step.labels(record.step.where).observe(record.step.size)
            if record.step.jerk is not None:
                with self._lock:
                    self._jerks.append((record.at, record.step.jerk))
        if skipped:
            self.tick_counts[Tick.SKIPPED] += skipped
            self.metrics.ticks.labels(Tick.SKIPPED).inc(skipped)

    def lagged(self, at: float, distance: float) -> None:
        """A joint was seen to be so far from its command, in robot units: the one that is farthest."""
        self.lags.append((at, distance))
        self.metrics.command_lag.observe(distance)

    def sent(self, at: float) -> None:
        """An observation goes to the service."""
        with self._lock:
            self._sent_at.append(at)
        self.metrics.sent.inc()

    def bytes_moved(self, sent: int, received: int) -> None:
        """A call carried so many bytes."""
        self.sent_bytes += sent
        self.received_bytes += received
        self.metrics.sent_bytes.inc(sent)
        self.metrics.received_bytes.inc(received)

    def answered(self, record: RequestRecord) -> None:
        """A chunk was merged."""
        self.requests.append(record)
        self.observation(Observation.ANSWERED)
        self.metrics.inference_latency.observe(record.latency)
        for stage, seconds in record.stages.items():
            self.metrics.stages.labels(stage).observe(seconds)

    def observation(self, outcome: Observation) -> None:
        """An observation ended."""
        self.observation_counts[outcome] += 1
        self.metrics.observations.labels(outcome).inc()
        if outcome is Observation.FILTERED:
            self.metrics.filtered.labels("similar").inc()

    def reconnected(self, reason: Reconnect) -> None:
        """A session was opened anew."""
        self.reconnect_counts[reason] += 1
        self.metrics.reconnects.labels(reason).inc()

    def recorded(self, outcome: Recorded, count: int = 1) -> None:
        """So many frames of the recording ended."""
        with self._lock:
            self.recorded_counts[outcome] += count
        self.metrics.recording_frames.labels(outcome).inc(count)

    def recording(self, unsaved_frames: int) -> None:
        """The recorder has so many frames that are not saved yet."""
        self.unsaved_frames = unsaved_frames
        self.metrics.recording_unsaved.set(unsaved_frames)

    def jerk(self, now: float) -> float:
        """Returns the root mean square jerk of the commands over the last RATE_WINDOW seconds, robot units/s³."""
        with self._lock:
            jerks = [jerk for at, jerk in self._jerks if now - at <= RATE_WINDOW]
        return math.sqrt(sum(jerk**2 for jerk in jerks) / len(jerks)) if jerks else 0.0

    def observation_fps(self, now: float) -> float:
        """Returns the observations sent per second over the last RATE_WINDOW seconds."""
        with self._lock:
            return sum(now - at <= RATE_WINDOW for at in self._sent_at) / RATE_WINDOW
