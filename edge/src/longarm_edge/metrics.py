"""The edge's Prometheus metrics. Every label set is closed and exports 0 from the start."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from longarm_edge import __version__
from longarm_edge.action_queue import Drop
from longarm_edge.link import LinkState
from longarm_edge.smoothness import Where

# From the parts of a fast loopback to a slow policy behind a slow link
LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 1 / 30, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
# A tick is good below 2 ms and lost at 1/30 s
LATENESS_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 1 / 30, 0.1, 1)
# Robot units: degrees, or hundredths of a range. An arm makes up to a few a tick
STEP_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 50)
AGE_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)


class Stage(StrEnum):
    """Parts of the time from capture to merged chunk."""

    CAPTURE = "capture"
    FILTER = "filter"
    ENCODE = "encode"
    NETWORK = "network"
    """Uplink and downlink: the call's time less the service's own."""
    SERVER_QUEUE = "server_queue"
    SERVER_DECODE = "server_decode"
    SERVER_PREPROCESS = "server_preprocess"
    SERVER_PREDICT = "server_predict"
    SERVER_POSTPROCESS = "server_postprocess"
    MERGE = "merge"


class Observation(StrEnum):
    """How an observation ended."""

    ANSWERED = "answered"
    FILTERED = "filtered"
    REJECTED = "rejected"
    """The service, or the edge's check of its chunk, refused."""
    STALE = "stale"
    """Its chunk came when no action of it could be executed any more: all were, or all were too old."""
    SUPERSEDED = "superseded"
    """A newer one took its place on the service."""
    FAILED = "failed"
    """The policy failed."""
    LOST = "lost"
    """The service did not answer."""
    UNREADABLE = "unreadable"
    """The robot did not give it."""


class Tick(StrEnum):
    """How a tick of the control loop ended."""

    ACTION = "action"
    CLAMPED = "clamped"
    """An action, changed by the guard."""
    EASED = "eased"
    """On the way to the first action of an arm that stood."""
    IDLE = "idle"
    """No action was there, or it did not reach the motors."""
    STALE = "stale"
    """The action was too old to execute."""
    SKIPPED = "skipped"
    """The loop came more than a period late and gave the tick up."""


# Ticks at which a command of the policy's went out
MOVING = (Tick.ACTION, Tick.CLAMPED, Tick.EASED)


class Recorded(StrEnum):
    """What became of a tick's frame in a run that is recorded."""

    WRITTEN = "written"
    """Its episode is saved."""
    DROPPED = "dropped"
    """No observation was there in time, the recorder did not keep up, or the recording had ended."""
    LOST = "lost"
    """The recorder had it, and its episode could not be saved."""


class Reconnect(StrEnum):
    """Why a session was opened anew."""

    UNREACHABLE = "unreachable"
    SESSION_UNKNOWN = "session_unknown"


class EdgeMetrics:
    """The metrics of one run, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers every metric and every label set."""
        self.registry = registry
        prefix = "longarm_edge"

        def counter(name: str, meaning: str, label: str | None = None, values: type[StrEnum] | None = None) -> Counter:
            metric = Counter(f"{prefix}_{name}", meaning, [label] if label else [], registry=registry)
            for value in values or ():
                metric.labels(value)
            return metric

        def histogram(
            name: str,
            meaning: str,
            buckets: Sequence[float],
            label: str | None = None,
            values: type[StrEnum] | None = None,
        ) -> Histogram:
            metric = Histogram(
                f"{prefix}_{name}", meaning, [label] if label else [], buckets=buckets, registry=registry
            )
            for value in values or ():
                metric.labels(value)
            return metric

        self.inference_latency = histogram(
            "inference_latency_seconds",
            "Time from the capture of an observation until its chunk is merged.",
            LATENCY_BUCKETS,
        )
        self.stages = histogram(
            "stage_duration_seconds",
            "Parts of the inference latency.",
            LATENCY_BUCKETS,
            "stage",
            Stage,
        )
        self.observations = counter("observations_total", "Observations by how they ended.", "outcome", Observation)
        self.filtered = counter("observations_filtered_total", "Observations not sent, by reason.", "reason")
        self.filtered.labels("similar")
        self.sent = counter("observations_sent_total", "Observations sent to the service.")
        self.ticks = counter("control_ticks_total", "Ticks of the control loop by how they ended.", "outcome", Tick)
        self.lateness = histogram(
            "tick_lateness_seconds",
            "How long after it was due a tick's command went out.",
            LATENESS_BUCKETS,
        )
        self.action_age = histogram(
            "action_age_seconds",
            "Time from the capture of the observation behind an action, behind its newest part, to its execution.",
            AGE_BUCKETS,
        )
        self.action_mean_age = histogram(
            "action_mean_age_seconds",
            "The same for all observations behind an action, each weighted with its share.",
            AGE_BUCKETS,
        )
        self.command_step = histogram(
            "command_step",
            "Largest change of a joint from one command to the next, robot units, by where in the plan.",
            STEP_BUCKETS,
            "where",
            Where,
        )
        self.command_lag = histogram(
            "command_lag",
            "How far a joint was seen from its command, the one that is farthest, robot units.",
            STEP_BUCKETS,
        )
        self.command_jerk = Gauge(
            f"{prefix}_command_jerk",
            "Root mean square jerk of the commands over the last seconds, robot units per cubic second.",
            registry=registry,
        )
        self.queue_depth = Gauge(f"{prefix}_action_queue_depth", "Actions left in the action queue.", registry=registry)
        self.observation_fps = Gauge(
            f"{prefix}_observation_fps", "Observations sent per second, over the last seconds.", registry=registry
        )
        self.link_state = Gauge(
            f"{prefix}_link_state", "1 for the state the link is in, 0 for the others.", ["state"], registry=registry
        )
        for state in LinkState:
            self.link_state.labels(state)
        self.reconnects = counter("reconnects_total", "Sessions opened anew, by reason.", "reason", Reconnect)
        self.sent_bytes = counter("sent_bytes_total", "Bytes of requests to the service.")
        self.received_bytes = counter("received_bytes_total", "Bytes of replies from the service.")
        self.recording_frames = counter(
            "recording_frames_total", "Frames of the recording by what became of them.", "outcome", Recorded
        )
        self.recording_unsaved = Gauge(
            f"{prefix}_recording_unsaved_frames",
            "Frames that the recorder has taken and whose episode is not saved yet.",
            registry=registry,
        )
        Info(f"{prefix}_build", "What runs.", registry=registry).info({"version": __version__})

    def watch(
        self,
        queue_depth: Callable[[], float],
        observation_fps: Callable[[], float],
        jerk: Callable[[], float],
        link: Callable[[], LinkState],
        drops: Callable[[], Mapping[Drop, int]],
    ) -> None:
        """Makes what the queue and the link know by themselves be read whenever it is scraped."""
        self.registry.register(_Drops(drops))
        self.queue_depth.set_function(queue_depth)
        self.observation_fps.set_function(observation_fps)
        self.command_jerk.set_function(jerk)
        for state in LinkState:
            self.link_state.labels(state).set_function(functools.partial(_is_in, link, state))


def _is_in(link: Callable[[], LinkState], state: LinkState) -> float:
    return float(link() is state)


class _Drops(Collector):
    """The action queue's own counts, so that they exist once."""

    def __init__(self, drops: Callable[[], Mapping[Drop, int]]) -> None:
        self._drops = drops

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(
            "longarm_edge_actions_dropped", "Actions never executed, by reason.", labels=["reason"]
        )
        counts = self._drops()
        for drop in Drop:
            family.add_metric([drop], counts.get(drop, 0))
        yield family
