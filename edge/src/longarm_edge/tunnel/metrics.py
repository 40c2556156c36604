"""The tunnel's Prometheus metrics. Every label set is closed and exports 0 from the start."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from longarm_edge.tunnel.errors import Cause
from longarm_edge.tunnel.events import Event, Probed, State, StateChanged

# From a loopback to a slow link, with the bounds at which a person would act
ROUND_TRIP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 1 / 30, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)


class TunnelMetrics:
    """Counts what a Tunnel reports: pass it as an observer. Exports zeros for an edge without a tunnel."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers every metric and every label set."""
        prefix = "longarm_edge_tunnel"
        self.up = Gauge(
            f"{prefix}_up", "1 while the service answers through the tunnel, 0 otherwise.", registry=registry
        )
        self.state = Gauge(
            f"{prefix}_state", "1 for the state the tunnel is in, 0 for the others.", ["state"], registry=registry
        )
        self.reconnects = Counter(
            f"{prefix}_reconnects_total", "Links lost after they stood, by why.", ["reason"], registry=registry
        )
        self.attempts = Counter(f"{prefix}_connect_attempts_total", "Attempts to connect.", registry=registry)
        self.failures = Counter(
            f"{prefix}_connect_failures_total",
            "Attempts to connect that failed, by the step that did.",
            ["reason"],
            registry=registry,
        )
        self.round_trip = Histogram(
            f"{prefix}_round_trip_seconds",
            "Time of a gRPC health check through the tunnel.",
            buckets=ROUND_TRIP_BUCKETS,
            registry=registry,
        )
        self.sent_bytes = Counter(
            f"{prefix}_sent_bytes_total", "Bytes sent over the SSH connection, encryption included.", registry=registry
        )
        self.received_bytes = Counter(
            f"{prefix}_received_bytes_total",
            "Bytes received over the SSH connection, encryption included.",
            registry=registry,
        )
        for state in State:
            self.state.labels(state)
        for cause in Cause:
            self.reconnects.labels(cause)
            self.failures.labels(cause)
        self._linked = False

    def __call__(self, event: Event) -> None:
        """Takes in one event."""
        if isinstance(event, Probed):
            self.round_trip.observe(event.round_trip_seconds)
            self.sent_bytes.inc(event.sent_bytes)
            self.received_bytes.inc(event.received_bytes)
        elif isinstance(event, StateChanged):
            self._enter(event)

    def _enter(self, event: StateChanged) -> None:
        self.up.set(event.state is State.UP)
        for state in State:
            self.state.labels(state).set(state is event.state)
        match event.state:
            case State.CONNECTING:
                self.attempts.inc()
            case State.WAITING | State.UP:
                self._linked = True
            case State.DOWN | State.FAILED:
                (self.reconnects if self._linked else self.failures).labels(event.cause or Cause.PROCESS).inc()
                self._linked = False
