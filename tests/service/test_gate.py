"""What gets in: requests of a sane size and shape, at a sane pace, from callers that send them."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.service import http2
from tests.service.conftest import Serve
from tests.service.fakes import (
    PATIENCE_SECONDS,
    FakeLoader,
    RunningService,
    failing,
    observation,
    open_session,
    opening,
)
from tests.service.test_waiting import reason_of

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_service import app, gate
from longarm_service.app import SERVICE_NAME
from longarm_wire import limits
from longarm_wire.errors import Reason


@pytest.fixture
def another_channel() -> Iterator[Callable[[RunningService], grpc.Channel]]:
    """Makes channels with a connection each."""
    channels: list[grpc.Channel] = []

    def dial(service: RunningService) -> grpc.Channel:
        address = f"127.0.0.1:{service.service.port}"
        channels.append(grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]))
        return channels[-1]

    yield dial
    for channel in channels:
        channel.close()


Dial = Callable[[RunningService], grpc.Channel]


def send(service: RunningService, method: str, data: bytes) -> bytes:
    """Calls method with any bytes."""
    call = service.channel.unary_unary(f"/{SERVICE_NAME}/{method}")
    return call(data, timeout=PATIENCE_SECONDS)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("method", "size"),
    [
        ("OpenSession", limits.MAX_OPENING_BYTES),
        ("GetServiceInfo", limits.MAX_SMALL_BYTES),
        ("ResetSession", limits.MAX_SMALL_BYTES),
        ("CloseSession", limits.MAX_SMALL_BYTES),
    ],
)
def test_a_request_is_no_larger_than_its_method_needs(serve: Serve, method: str, size: int) -> None:
    with failing(Reason.INVALID_REQUEST, f"at most {size} bytes, found {size + 1}"):
        send(serve(), method, bytes(size + 1))


@pytest.mark.parametrize(
    "data",
    [
        b"\x32\x00" * 10_000_000,  # frames without anything in them: a hundred bytes of memory for two
        pb.PredictChunkRequest(images=[pb.Image()] * 65).SerializeToString(),
        b"\x7b" * 1000,  # groups
    ],
    ids=["frames without end", "65 frames", "groups"],
)
def test_a_request_of_many_parts_is_refused_before_it_is_taken_apart(serve: Serve, data: bytes) -> None:
    with failing(Reason.INVALID_REQUEST, "at most 64 fields"):
        send(serve(), "PredictChunk", data)


@pytest.mark.parametrize(
    "data", [b"\xff" * 11, b"\x0a\x05a", b"\x0a\x02\xff\xff"], ids=["number", "cut off", "no text"]
)
def test_bytes_that_are_no_request_are_said_so(serve: Serve, data: bytes) -> None:
    with failing(Reason.INVALID_REQUEST, f"{len(data)} bytes that are none"):
        send(serve(), "PredictChunk", data)


@pytest.mark.parametrize("method", ["GetServiceInfo", "PredictChunk", "CloseSession"])
def test_a_call_without_a_request_is_said_so(serve: Serve, method: str) -> None:
    call = serve().channel.stream_unary(f"/{SERVICE_NAME}/{method}")
    with failing(Reason.INVALID_REQUEST, "found none"):
        call(iter([]), timeout=PATIENCE_SECONDS)


def test_flat_is_what_has_few_fields() -> None:
    image = pb.Image(camera="front", data=bytes(1000))
    request = pb.PredictChunkRequest(session_id="x", sequence=1 << 62, episode=-1, images=[image] * 16, task="")
    assert limits.is_flat(request.SerializeToString())
    assert limits.is_flat(b"")
    assert limits.is_flat(opening().SerializeToString())
    assert not limits.is_flat(b"\x08\x01" * (limits.MAX_FIELDS + 1))


def test_requests_that_never_arrive_keep_nobody_out(
    serve: Serve, another_channel: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC waits for them without end. Of so many the oldest make room, and a robot that runs is none of them."""
    monkeypatch.setattr(gate, "MAX_ARRIVING", 2)
    service = serve()
    robot = open_session(service.stub)
    service.stub.PredictChunk(observation(robot))
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(PATIENCE_SECONDS)
        yield b""

    calls = []
    for _ in range(3):
        method = another_channel(service).stream_unary(f"/{SERVICE_NAME}/PredictChunk")
        calls += [method.future(nothing()) for _ in range(20)]
    deadline = time.monotonic() + PATIENCE_SECONDS
    # All but those that are read, and behind them those of a connection that wait to be read
    while sum(call.done() for call in calls) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert service.stub.PredictChunk(observation(robot, sequence=2), timeout=PATIENCE_SECONDS).step_count
    new = pb_grpc.PolicyServiceStub(another_channel(service))
    assert new.PredictChunk(observation(open_session(new)), timeout=PATIENCE_SECONDS).step_count
    never.set()


@pytest.mark.parametrize("runs", [False, True], ids=["a stranger", "a robot that runs"])
def test_of_requests_without_end_little_is_kept(serve: Serve, runs: bool) -> None:
    """What has come of them is in memory: 32 robots could fill 23 GB."""
    service = serve()
    session = open_session(service.stub)
    size = 4 << 20
    with http2.Connection(service.service.port) as connection:
        if runs:
            reset = pb.ResetSessionRequest(session_id=session.session_id).SerializeToString()
            connection.socket.sendall(http2.call(f"/{SERVICE_NAME}/ResetSession", 1) + http2.request(1, reset))
            assert any(kind == http2.HEADERS for kind, _, _ in connection.frames(1.0))
        streams = range(3, 43, 2)
        connection.socket.sendall(b"".join(http2.call(f"/{SERVICE_NAME}/PredictChunk", one) for one in streams))
        most = gate.MAX_READ_PER_CONNECTION * size + len(streams) * 2 * gate.UNREAD_BYTES
        assert 2 * size <= http2.accepted(connection, streams, size) <= most < len(streams) * size
        assert service.stub.PredictChunk(observation(session), timeout=PATIENCE_SECONDS).step_count


def test_a_request_that_does_not_arrive_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ARRIVAL_SECONDS", 0.1)
    service = serve()
    never = threading.Event()
    call = service.channel.stream_unary(f"/{SERVICE_NAME}/GetServiceInfo").future(never.wait() for _ in [1])
    assert reason_of(call) is Reason.INVALID_REQUEST
    never.set()


def test_a_connection_has_a_pace(serve: Serve) -> None:
    """Whoever asks in a circle waits, and holds up no loop that others are served by."""
    service = serve()
    begun = time.monotonic()
    for _ in range(gate.BURST_CALLS + gate.CALLS_PER_SECOND // 2):
        service.stub.GetServiceInfo(pb.GetServiceInfoRequest())
    assert time.monotonic() - begun > 0.4


def test_names_of_methods_that_there_are_not_have_the_same_pace(serve: Serve) -> None:
    service = serve()
    begun = time.monotonic()
    for number in range(gate.BURST_CALLS + gate.CALLS_PER_SECOND // 2):
        with pytest.raises(grpc.RpcError) as caught:
            send(service, f"NoSuchMethod{number}", b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert time.monotonic() - begun > 0.4


@pytest.mark.parametrize("path", [f"/{SERVICE_NAME}/GetServiceInfo", "/no.such.Service/Method"])
def test_who_hangs_up_has_paid_nothing_yet(serve: Serve, path: str) -> None:
    """A call that was hung up on costs the loop that serves every robot as much as any other."""
    service = serve()
    with http2.Connection(service.service.port) as flood:
        for first in range(1, 4000, 100):
            streams = range(first, first + 100, 2)
            flood.socket.sendall(b"".join(http2.call(path, stream) for stream in streams))
            time.sleep(0.01)
            flood.socket.sendall(b"".join(http2.hang_up(stream) for stream in streams))
        ends = [content[-1] for kind, _, content in flood.frames(0.5) if kind == http2.RST_STREAM]
        # Refused by gRPC itself, of 2000
        assert ends.count(http2.ENHANCE_YOUR_CALM) > 1000
        assert service.stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=PATIENCE_SECONDS).service_version
    service.stop()


def test_connections_share_a_pace_unless_a_robot_runs_over_them(
    serve: Serve, another_channel: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BURST_CALLS", 1)
    monkeypatch.setattr(gate, "CALLS_PER_SECOND", 50)
    service = serve()
    robot = open_session(service.stub)
    service.stub.PredictChunk(observation(robot))
    strangers = [pb_grpc.PolicyServiceStub(another_channel(service)) for _ in range(8)]
    begun = time.monotonic()
    calls = [stub.GetServiceInfo.future(pb.GetServiceInfoRequest()) for stub in strangers for _ in range(5)]
    for sequence in range(2, 12):
        assert service.stub.PredictChunk(observation(robot, sequence=sequence)).step_count
    assert not all(call.done() for call in calls), "the robot does not wait for strangers"
    for call in calls:
        assert call.result(timeout=PATIENCE_SECONDS).service_version
    # One of them alone has 50 a second, and all together twice that
    assert time.monotonic() - begun > 0.2


@pytest.mark.parametrize("cancel", [False, True], ids=["waited for", "cancelled"])
def test_a_client_that_asks_too_much_at_a_time_goes_on(serve: Serve, cancel: bool) -> None:
    """More calls than HTTP/2's own limit of streams: gRPC's clients must not hang."""
    service = serve()
    calls = [service.stub.GetServiceInfo.future(pb.GetServiceInfoRequest()) for _ in range(3 * gate.MAX_STREAMS)]
    for call in calls:
        if cancel:
            call.cancel()
        else:
            call.exception(timeout=PATIENCE_SECONDS)
    # Refused at once until what was hung up on is paid for
    deadline = time.monotonic() + PATIENCE_SECONDS
    while service.stub.GetServiceInfo.future(pb.GetServiceInfoRequest(), timeout=PATIENCE_SECONDS).exception():
        assert time.monotonic() < deadline


def test_there_are_so_many_connections(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a file, of which a process may have a thousand: without any left, nothing can be loaded."""
    monkeypatch.setattr(gate, "MAX_STRANGERS", 6)
    service = serve(max_session_count=1)
    assert service.stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=PATIENCE_SECONDS).service_version
    connections = [http2.Connection(service.service.port) for _ in range(20)]
    open_ones = [connection for connection in connections if any(connection.frames(0.5))]
    assert len(open_ones) == gate.most_connections(1) - 1
    assert service.stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=PATIENCE_SECONDS).service_version
    for connection in connections:
        connection.socket.close()


def test_a_connection_that_falls_silent_makes_room(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that went to another network leaves one behind. They took all room, for hours."""
    quick = {"grpc.keepalive_time_ms": 1000, "grpc.http2.ping_timeout_ms": 500}
    assert quick.keys() <= dict(app.CHANNEL_OPTIONS).keys()
    monkeypatch.setattr(app, "CHANNEL_OPTIONS", tuple((dict(app.CHANNEL_OPTIONS) | quick).items()))
    with http2.Connection(serve().service.port) as silent:
        silent.socket.settimeout(PATIENCE_SECONDS)
        with contextlib.suppress(ConnectionError):
            while silent.socket.recv(1 << 16):
                pass


def test_a_connection_has_so_many_calls_at_a_time(serve: Serve, loader: FakeLoader, another_channel: Dial) -> None:
    service = serve(max_session_count=1000)
    loader.gate.clear()
    calls = [service.stub.OpenSession(opening()) for _ in range(gate.MAX_CALLS_PER_CONNECTION)]
    for call in calls:
        next(call)
    with failing(Reason.TOO_MANY_SESSIONS, "32 calls in progress"):
        service.stub.GetServiceInfo(pb.GetServiceInfoRequest())
    other = pb_grpc.PolicyServiceStub(another_channel(service))
    assert other.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=PATIENCE_SECONDS).service_version
    loader.gate.set()
    for call in calls:
        assert [*call][-1].HasField("session")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while service.stub.GetServiceInfo.future(pb.GetServiceInfoRequest()).code() is not grpc.StatusCode.OK:
        assert time.monotonic() < deadline


def test_watches_of_health_are_so_many_and_of_names_that_there_are(serve: Serve, another_channel: Dial) -> None:
    service = serve()
    stubs = [health_pb2_grpc.HealthStub(another_channel(service)) for _ in range(2)]
    watches = []
    for number in range(gate.MAX_WATCHING):
        watches.append(stubs[number % 2].Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME)))
        next(watches[-1])
    with failing(Reason.TOO_MANY_SESSIONS, "watch already"):
        next(stubs[0].Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS))
    assert stubs[0].Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS).status
    watches.pop().cancel()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with pytest.raises(grpc.RpcError) as caught:
            next(stubs[0].Watch(health_pb2.HealthCheckRequest(service="anything"), timeout=PATIENCE_SECONDS))
        if caught.value.code() is grpc.StatusCode.NOT_FOUND:
            break
        assert time.monotonic() < deadline
    for watch in watches:
        watch.cancel()


def test_a_stream_of_reflection_ends_when_nobody_asks(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ARRIVAL_SECONDS", 0.2)
    stub = reflection_pb2_grpc.ServerReflectionStub(serve().channel)
    never = threading.Event()

    def ask_once() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        never.wait(PATIENCE_SECONDS)

    answers = stub.ServerReflectionInfo(ask_once(), timeout=PATIENCE_SECONDS)
    assert next(answers).list_services_response.service
    with failing(Reason.INVALID_REQUEST, "found none"):
        next(answers)
    never.set()
