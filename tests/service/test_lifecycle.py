"""Starting, being watched, and ending in good order: over a real server in this process."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.service.conftest import Serve
from tests.service.fakes import (
    CHUNK_SIZE,
    PATIENCE_SECONDS,
    Clock,
    FakeLoader,
    FakePolicy,
    RunningService,
    failing,
    observation,
    open_session,
    opening,
)

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.app import RETRY_SECONDS, SERVICE_NAME, StartupError
from longarm_service.policy import PolicyChoice, Report
from longarm_wire.errors import Reason, WireError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(service: RunningService, name: str = SERVICE_NAME) -> int:
    stub = health_pb2_grpc.HealthStub(service.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_SECONDS).status)


def wait_for_health(service: RunningService, status: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while health(service) != status:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def http(service: RunningService, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{service.service.metrics_port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_is_alive_before_it_is_ready(serve: Serve, loader: FakeLoader) -> None:
    loader.gate.clear()
    service = serve(preload=("policy",))
    loader.wait_until_loading()
    assert health(service) == health(service, "") == NOT_SERVING
    assert http(service, "/healthz") == (200, "alive\n")
    assert http(service, "/readyz") == (503, "starting\n")
    assert service.stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=PATIENCE_SECONDS).session_count == 0
    loader.gate.set()
    wait_for_health(service, SERVING)
    assert health(service, "") == SERVING
    assert http(service, "/readyz") == (200, "ready\n")


def test_a_robot_may_come_before_the_service_is_ready(serve: Serve) -> None:
    """LeRobot takes many seconds to import: the robot is told so and waits."""
    importing = threading.Event()

    def make_loader() -> FakeLoader:
        assert importing.wait(PATIENCE_SECONDS)
        return FakeLoader()

    service = serve(make_loader)
    assert service.stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=PATIENCE_SECONDS).device == ""
    events = service.stub.OpenSession(opening())
    assert next(events).progress.message == "The service starts up"
    importing.set()
    assert [*events][-1].HasField("session")


def test_says_what_it_is(serve: Serve) -> None:
    service = serve(preload=("house",), max_session_count=7)
    wait_for_health(service, SERVING)
    info = service.stub.GetServiceInfo(pb.GetServiceInfoRequest())
    assert (info.lerobot_version, info.torch_version) == ("1.2", "3.4")
    assert (info.device, info.device_name) == ("cpu", "abacus")
    assert info.service_version
    assert info.max_session_count == 7
    assert info.max_request_bytes > 1 << 20
    assert [policy.pretrained_name_or_path for policy in info.loaded_policies] == ["house"]


class BrokenLoader(FakeLoader):
    """Loads what lies in the directory unless that is broken."""

    broken = False

    def load(self, choice: PolicyChoice, report: Report) -> FakePolicy:
        if self.broken:
            self.loads.append(choice)
            raise WireError(Reason.POLICY_LOAD_FAILED, "broken by now")
        return super().load(choice, report)


def test_a_preloaded_policy_that_is_broken_on_disk_ends_nobody_and_comes_back(serve: Serve) -> None:
    """Who copies a new checkpoint over it in the middle of a day must not stop the robots that run."""
    loader, clock = BrokenLoader(), Clock()
    service = serve(lambda: loader, preload=("policy",), max_loaded_policies=1, clock=clock)
    wait_for_health(service, SERVING)
    running = open_session(service.stub)
    loader.outdated.add("policy")
    loader.broken = True
    with failing(Reason.POLICY_LOAD_FAILED, "broken by now"):
        open_session(service.stub)

    def wait_for_attempt(number: int) -> None:
        """Waits until a load has failed, and is to be tried again later."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while service.service._preloaded["policy"] != clock.now + RETRY_SECONDS:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(loader.loads) == number

    # For the robot, and for those to come; then from time to time
    wait_for_attempt(3)
    assert health(service) == SERVING
    assert service.stub.PredictChunk(observation(running)).step_count == CHUNK_SIZE
    clock.now += RETRY_SECONDS
    wait_for_attempt(4)
    while loader.entered.acquire(blocking=False):
        pass
    loader.broken = False
    clock.now += RETRY_SECONDS
    loader.wait_until_loading()
    # Nobody drives it out
    with failing(Reason.TOO_MANY_SESSIONS, "preloaded"):
        open_session(service.stub, "another")
    assert health(service) == SERVING


def test_a_watcher_of_health_hears_of_changes_alone(serve: Serve) -> None:
    service = serve()
    wait_for_health(service, SERVING)
    watch = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest(), timeout=2.5)
    heard = []
    with pytest.raises(grpc.RpcError):
        heard.extend(int(answer.status) for answer in watch)
    assert heard == [SERVING]


def test_reflection_lists_the_services(serve: Serve) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(serve().channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names
    assert SERVICE_NAME == "longarm.policy.v1.PolicyService"


def test_announces_its_ports(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    service = serve(announce=path)
    assert json.loads(path.read_text()) == {
        "port": service.service.port,
        "metrics_port": service.service.metrics_port,
    }
    assert [file.name for file in tmp_path.iterdir()] == ["ports.json"]
    service.close()
    assert not path.exists()


@pytest.mark.parametrize(("setting", "variable"), [("port", "PORT"), ("metrics_port", "METRICS_PORT")])
def test_a_taken_port_is_a_startup_error(serve: Serve, setting: str, variable: str) -> None:
    """gRPC shares ports unless told otherwise: every other robot would land on the other service."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"{port}.*LONGARM_SERVICE_{variable}"):
            serve(**{setting: port})


def test_two_services_cannot_share_a_port(serve: Serve) -> None:
    with pytest.raises(StartupError):
        serve(port=serve().service.port)


def test_drains_in_order(serve: Serve, loader: FakeLoader) -> None:
    """The running prediction is answered, what waits too, what comes later is refused with a reason."""
    service = serve(obs_queue_timeout=PATIENCE_SECONDS, drain_timeout=PATIENCE_SECONDS)
    session, other = open_session(service.stub), open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(observation(session))
    policy.wait_until_predicting()
    waiting = service.stub.PredictChunk.future(observation(other))
    while service.stub.GetServiceInfo(pb.GetServiceInfoRequest()).waiting_count != 1:
        time.sleep(0.005)
    service.stop(wait=False)
    wait_for_health(service, NOT_SERVING)
    assert http(service, "/readyz") == (503, "draining\n")
    assert http(service, "/healthz")[0] == 200
    for late in (
        lambda: service.stub.PredictChunk(observation(session)),
        lambda: [*service.stub.OpenSession(opening())],
    ):
        with failing(Reason.SHUTTING_DOWN):
            late()
    policy.gate.set()
    assert running.result(PATIENCE_SECONDS).step_count == CHUNK_SIZE
    assert waiting.result(PATIENCE_SECONDS).step_count == CHUNK_SIZE
    service.stop()


def test_a_watcher_of_health_does_not_hold_up_the_end(serve: Serve) -> None:
    """It hears that the service is going, and is then cut off: a watch never ends by itself."""
    service = serve(drain_timeout=PATIENCE_SECONDS)
    wait_for_health(service, SERVING)
    watch = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
    assert next(watch).status == SERVING
    heard: list[int] = []

    def listen() -> None:
        # At all times, as a watcher does: gRPC drops a message that nobody was waiting for when the call broke
        with pytest.raises(grpc.RpcError):
            heard.extend(int(answer.status) for answer in watch)

    listener = threading.Thread(target=listen)
    listener.start()
    begun = time.monotonic()
    service.stop()
    assert time.monotonic() - begun < PATIENCE_SECONDS / 4
    listener.join(PATIENCE_SECONDS)
    assert heard == [NOT_SERVING]


def test_a_load_does_not_hold_up_the_end(serve: Serve, loader: FakeLoader) -> None:
    service = serve(drain_timeout=PATIENCE_SECONDS)
    loader.gate.clear()
    events = service.stub.OpenSession(opening())
    loader.wait_until_loading()
    begun = time.monotonic()
    service.stop(wait=False)
    with failing(Reason.SHUTTING_DOWN):
        list(events)
    service.stop()
    assert time.monotonic() - begun < PATIENCE_SECONDS / 4


def test_a_prediction_without_end_is_given_up_after_the_grace(serve: Serve, loader: FakeLoader) -> None:
    service = serve(obs_queue_timeout=PATIENCE_SECONDS, drain_timeout=0.3)
    session = open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(observation(session))
    policy.wait_until_predicting()
    begun = time.monotonic()
    service.stop()
    assert 0.3 <= time.monotonic() - begun < PATIENCE_SECONDS / 2
    assert service.service.busy
    with pytest.raises(grpc.RpcError):
        running.result(PATIENCE_SECONDS)


def test_the_threads_that_decode_end_with_the_service(serve: Serve) -> None:
    before = {thread.ident for thread in threading.enumerate()}

    def decoders() -> list[str]:
        new = [thread for thread in threading.enumerate() if thread.ident not in before]
        return [thread.name for thread in new if thread.name.startswith("decode")]

    service = serve()
    session = open_session(service.stub)
    service.stub.PredictChunk(observation(session))
    assert decoders()
    service.stop()
    assert not decoders()
