"""What the service counts and measures, for Prometheus."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from longarm_service import __version__
from longarm_service.policy import DeviceMemory
from longarm_wire.errors import Reason

STAGES = ("queue", "decode", "preprocess", "predict", "postprocess", "total")
OUTCOMES = ("answered", "superseded", "queue_timeout", "invalid", "failed", "cancelled")
# From a small policy's millisecond to a large one's seconds; 1/30 s is a tick of most robots
DURATION_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 1 / 30, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)
LOAD_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
FPS_WINDOW_SECONDS = 5.0


class ServiceMetrics:
    """All metrics of one service, in a registry of their own. Every label set exists from the start, at 0."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._inference = Histogram(
            "longarm_service_inference_duration_seconds",
            "Time per answered observation, by stage; total runs from arrival to answer.",
            ["stage"],
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self.queue_wait = Histogram(
            "longarm_service_queue_wait_seconds",
            "Time that observations waited for the policy, those dropped included.",
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "longarm_service_batch_size",
            "Observations per forward pass.",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self.sessions = Gauge("longarm_service_sessions", "Open sessions.", registry=self.registry)
        self.waiting = Gauge(
            "longarm_service_waiting_observations", "Observations that wait for the policy.", registry=self.registry
        )
        self.policies_loaded = Gauge("longarm_service_policies_loaded", "Policies in memory.", registry=self.registry)
        self.policy_load = Histogram(
            "longarm_service_policy_load_duration_seconds",
            "Time to load a policy and warm it up, failed loads included.",
            buckets=LOAD_BUCKETS,
            registry=self.registry,
        )
        self._observations = Counter(
            "longarm_service_observations", "Observations by what became of them.", ["outcome"], registry=self.registry
        )
        self._errors = Counter("longarm_service_errors", "Failed calls by reason.", ["reason"], registry=self.registry)
        self._build = Info("longarm_service_build", "What runs.", registry=self.registry)
        self._build.info({"version": __version__})
        self._arrivals = _Rate(FPS_WINDOW_SECONDS, clock)
        fps = Gauge(
            "longarm_service_observation_fps",
            f"Observations that arrived per second, over the last {FPS_WINDOW_SECONDS:g} s.",
            registry=self.registry,
        )
        fps.set_function(self._arrivals.per_second)
        for stage in STAGES:
            self._inference.labels(stage)
        for outcome in OUTCOMES:
            self._observations.labels(outcome)
        for reason in Reason:
            self._errors.labels(reason.value)

    def arrived(self) -> None:
        """Counts an observation that came in."""
        self._arrivals.count()

    def ended(self, outcome: str) -> None:
        """Counts what became of an observation: one of OUTCOMES."""
        self._observations.labels(outcome).inc()

    def failed(self, reason: Reason) -> None:
        """Counts a call that failed."""
        self._errors.labels(reason.value).inc()

    def took(self, stage: str, seconds: float) -> None:
        """Records how long a stage of an answered observation took: one of STAGES."""
        self._inference.labels(stage).observe(seconds)

    def describe(self, facts: Mapping[str, str], device_memory: Callable[[], list[DeviceMemory]]) -> None:
        """Adds what is known once the policy's libraries are there: build facts, and the GPUs if there are any."""
        self._build.info({"version": __version__, **facts})
        self.registry.register(_DeviceCollector(device_memory))


class _Rate:
    """Counts events and says how many came per second lately."""

    def __init__(self, window_seconds: float, clock: Callable[[], float]) -> None:
        self._window_seconds = window_seconds
        self._clock = clock
        # Far more than a GPU can answer in the window: bounds memory, not the truth
        self._times: deque[float] = deque(maxlen=100_000)

    def count(self) -> None:
        self._times.append(self._clock())

    def per_second(self) -> float:
        start = self._clock() - self._window_seconds
        # A copy, since the scrape comes on another thread than the count
        return sum(at > start for at in tuple(self._times)) / self._window_seconds


class _DeviceCollector(Collector):
    """Asks the device at each scrape; shows nothing where there is no GPU."""

    def __init__(self, device_memory: Callable[[], list[DeviceMemory]]) -> None:
        self._device_memory = device_memory

    def collect(self) -> Iterable[Metric]:
        allocated = GaugeMetricFamily(
            "longarm_service_gpu_memory_allocated_bytes", "GPU memory that tensors take.", labels=["device"]
        )
        reserved = GaugeMetricFamily(
            "longarm_service_gpu_memory_reserved_bytes", "GPU memory that torch holds.", labels=["device"]
        )
        total = GaugeMetricFamily(
            "longarm_service_gpu_memory_total_bytes", "GPU memory that is there.", labels=["device"]
        )
        utilization = GaugeMetricFamily(
            "longarm_service_gpu_utilization_ratio", "Share of time the GPU was busy, 0 to 1.", labels=["device"]
        )
        for gpu in self._device_memory():
            allocated.add_metric([gpu.device], gpu.allocated_bytes)
            reserved.add_metric([gpu.device], gpu.reserved_bytes)
            total.add_metric([gpu.device], gpu.total_bytes)
            if gpu.utilization is not None:
                utilization.add_metric([gpu.device], gpu.utilization)
        return [family for family in (allocated, reserved, total, utilization) if family.samples]
