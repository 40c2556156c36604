"""What is counted, by value, from a fresh registry and once as Prometheus reads it."""

import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.service.conftest import Serve
from tests.service.fakes import Clock, FakeLoader, FakePolicy, failing, observation, open_session

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.metrics import OUTCOMES, STAGES, ServiceMetrics
from longarm_service.policy import DeviceMemory, PolicyChoice, Report
from longarm_wire.errors import Reason, WireError


def value(metrics: ServiceMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"longarm_service_{name}", labels)


def test_everything_known_is_exported_as_0_from_the_start() -> None:
    metrics = ServiceMetrics()
    for stage in STAGES:
        assert value(metrics, "inference_duration_seconds_count", stage=stage) == 0
    for outcome in OUTCOMES:
        assert value(metrics, "observations_total", outcome=outcome) == 0
    for reason in Reason:
        assert value(metrics, "errors_total", reason=reason.value) == 0
    for gauge in ("sessions", "waiting_observations", "policies_loaded", "observation_fps", "queue_wait_seconds_count"):
        assert value(metrics, gauge) == 0


def test_fps_is_of_the_last_seconds() -> None:
    clock = Clock()
    metrics = ServiceMetrics(clock)
    for _ in range(20):
        metrics.arrived()
        clock.now += 0.5
    assert value(metrics, "observation_fps") == pytest.approx(2, abs=0.3)
    clock.now += 60
    assert value(metrics, "observation_fps") == 0


def test_the_gpu_is_shown_where_there_is_one() -> None:
    metrics = ServiceMetrics()
    gpus = [DeviceMemory("cuda:0", 10, 20, 80, 0.25), DeviceMemory("cuda:1", 1, 2, 80, None)]
    metrics.describe({"device": "cuda"}, lambda: gpus)
    assert value(metrics, "gpu_memory_allocated_bytes", device="cuda:0") == 10
    assert value(metrics, "gpu_memory_reserved_bytes", device="cuda:1") == 2
    assert value(metrics, "gpu_memory_total_bytes", device="cuda:0") == 80
    assert value(metrics, "gpu_utilization_ratio", device="cuda:0") == 0.25
    assert value(metrics, "gpu_utilization_ratio", device="cuda:1") is None


class SlowHubLoader(FakeLoader):
    """Waits for its hub for long, and loads at once."""

    def load(self, choice: PolicyChoice, report: Report) -> FakePolicy:
        for _ in range(5):
            report(pb.Progress(stage=pb.PROGRESS_STAGE_FETCHING))
            time.sleep(0.2)
        if choice.pretrained_name_or_path == "mute":
            raise WireError(Reason.HUB_UNREACHABLE, "The hub does not answer.")
        return super().load(choice, report)


def test_the_time_of_a_load_is_without_that_of_fetching(serve: Serve) -> None:
    service = serve(SlowHubLoader)
    open_session(service.stub)
    with failing(Reason.HUB_UNREACHABLE):
        open_session(service.stub, "mute")
    assert service.metric("policy_load_duration_seconds_count") == 1
    assert service.metric("policy_load_duration_seconds_sum") < 0.5


def test_a_service_counts_what_it_does(serve: Serve, loader: FakeLoader) -> None:
    service = serve()
    session = open_session(service.stub)
    for sequence in range(1, 4):
        service.stub.PredictChunk(observation(session, sequence=sequence))
    loader.policies["policy"].faults = ["raise"]
    with failing(Reason.POLICY_FAILED):
        service.stub.PredictChunk(observation(session, sequence=4))
    with failing(Reason.POLICY_NOT_FOUND):
        open_session(service.stub, "nowhere")
    assert service.metric("sessions") == 1
    assert service.metric("policies_loaded") == 1
    assert service.metric("policy_load_duration_seconds_count") == 2
    assert service.metric("observations_total", outcome="answered") == 3
    assert service.metric("observations_total", outcome="failed") == 1
    assert service.metric("errors_total", reason="POLICY_FAILED") == 1
    assert service.metric("errors_total", reason="POLICY_NOT_FOUND") == 1
    assert service.metric("batch_size_count") == service.metric("batch_size_sum") == 3
    assert service.metric("queue_wait_seconds_count") == 4
    for stage in STAGES:
        assert service.metric("inference_duration_seconds_count", stage=stage) == 3
    assert service.metric("observation_fps") > 0
    build = {"version": "0.1.0", "lerobot_version": "1.2", "torch_version": "3.4", "device": "cpu"}
    assert service.metric("build_info", **build) == 1


def test_prometheus_reads_it(serve: Serve) -> None:
    service = serve()
    open_session(service.stub)
    with urllib.request.urlopen(f"http://127.0.0.1:{service.service.metrics_port}/metrics", timeout=5) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert families["longarm_service_sessions"].samples[0].value == 1
    assert all(name.startswith("longarm_service_") for name in families)
    assert all(family.documentation for family in families.values())
