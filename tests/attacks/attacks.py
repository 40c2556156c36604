"""What a hostile or careless client may do, by family.

To add one: a function that yields steps, with @family. Each step is a callable that does one thing; the steps of a
family are done in turn, with pauses, again and again, while another robot streams.
"""

import contextlib
import functools
import math
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire.images import Codec
from tests.attacks.pictures import HOSTILE_JPEGS, HOSTILE_PNGS
from tests.attacks.target import CAMERAS, HEIGHT, WIDTH, Target, picture, tolerant
from tests.service import http2
from tests.service.fakes import robot

Step = Callable[[], Any]
Family = Callable[[Target], Iterable[tuple[str, Step]]]

SERVICE = f"/{pb.DESCRIPTOR.services_by_name['PolicyService'].full_name}"
METHODS = [f"{SERVICE}/{method.name}" for method in pb.DESCRIPTOR.services_by_name["PolicyService"].methods]
FAMILIES: dict[str, Family] = {}


def family(function: Family) -> Family:
    """Adds to FAMILIES."""
    FAMILIES[function.__name__.replace("_", " ")] = function
    return function


@family
def pictures(target: Target) -> Iterable[tuple[str, Step]]:
    """Every chunk of a PNG and every segment of a JPEG."""
    session = target.session()
    for codec, makers in ((Codec.PNG, HOSTILE_PNGS), (Codec.JPEG, HOSTILE_JPEGS)):
        for name, maker in makers.items():
            data = maker(HEIGHT, WIDTH)
            frames = [picture(camera, codec, data) for camera in CAMERAS]
            request = target.observation(session, images=frames)
            yield f"{codec}: {name}", functools.partial(tolerant, target.stub.PredictChunk, request)


@family
def fields_of_openings(target: Target) -> Iterable[tuple[str, Step]]:
    """Every field of OpenSession, with values that it was not made for."""

    def open_and_close(request: pb.OpenSessionRequest) -> None:
        events = tolerant(lambda timeout: [*target.stub.OpenSession(request, timeout=timeout)])
        if events:
            target.close(events[-1].session)

    base = target.opening()
    base.rtc.execution_horizon = 10
    for name, request in mutations(base):
        yield name, functools.partial(open_and_close, request)


@family
def fields_of_observations(target: Target) -> Iterable[tuple[str, Step]]:
    """Every field of PredictChunk."""
    rtc = pb.RtcConfig(execution_horizon=10, max_guidance_weight=10, prefix_attention_schedule="LINEAR")
    session = target.session(rtc=rtc)
    base = target.observation(session, rtc_prefix=pb.RtcPrefix(model_actions=bytes(12), robot_actions=bytes(12)))
    base.rtc_prefix.step_count = 1
    for name, request in mutations(base):
        yield name, functools.partial(tolerant, target.stub.PredictChunk, request)


@family
def fields_of_the_rest(target: Target) -> Iterable[tuple[str, Step]]:
    """Every field of the small requests."""
    session = target.session()
    stub = target.stub
    for call, base in (
        (stub.GetServiceInfo, pb.GetServiceInfoRequest()),
        (stub.ResetSession, pb.ResetSessionRequest(session_id=session.session_id)),
        (stub.CloseSession, pb.CloseSessionRequest(session_id="x")),
    ):
        for name, request in mutations(base):
            yield name, functools.partial(tolerant, call, request)


@family
def bytes_that_are_no_request(target: Target) -> Iterable[tuple[str, Step]]:
    """Every method, past the generated code."""
    for path in [*METHODS, "/grpc.health.v1.Health/Check", "/no.such.Service/Method", "/" + "x" * 4000]:
        for name, data in {
            "nothing": b"",
            "zeros": bytes(100_000),
            "ones": b"\xff" * 100_000,
            "groups in groups": b"\x7b" * 100_000,
            "unknown fields": b"\xf8\x7f\x01" * 30_000,
            "empty parts": b"\x32\x00" * 500_000,
            "texts that are none": b"\x0a\x04\xff\xff\xff\xff",
            "a length beyond the end": b"\x0a\xff\xff\xff\xff\x07",
            "three megabytes of names": b"\x0a\x7f" + b"a" * 127 + b"\x12\x01b" * 1_000_000,
        }.items():
            yield f"{path[:60]}: {name}", functools.partial(target.raw, path, data)


@family
def names_to_compare(target: Target) -> Iterable[tuple[str, Step]]:
    """Whatever is said about a robot that does not fit costs no more than one that does."""
    letters = "ab" * 63
    many = [f"{letters[: 120 - len(str(i))]}{i}" for i in range(256)]
    cameras = [pb.CameraSpec(name=f"{'观' * 100}{i}", height=1, width=1) for i in range(16)]
    for name, changes in {
        "actions": {"robot": robot(action_names=many)},
        "states": {"robot": robot(state_names=many)},
        "cameras": {"robot": robot(cameras=cameras)},
        "renames": {"rename_map": {f"observation.images.{name[:100]}": name for name in many[:16]}},
        "renames of nothing": {
            "robot": robot(cameras=[pb.CameraSpec(name=name, height=1, width=1) for name in many]),
            "rename_map": {f"observation.images.{name[::-1]}": "a" for name in many},
        },
        "42 KB of names": {"robot": robot(action_names=["x" * i for i in range(1, 290)])},
        "a million names": {"robot": robot(action_names=[str(i) for i in range(60_000)])},
    }.items():
        request = target.opening(**changes)
        yield (
            name,
            functools.partial(tolerant, lambda timeout, r=request: [*target.stub.OpenSession(r, timeout=timeout)]),
        )


@family
def requests_in_flight(target: Target) -> Iterable[tuple[str, Step]]:
    """One session that asks for far more than it can have."""
    session = target.session()
    request = target.observation(session)
    bomb = target.observation(session, images=[picture(c, Codec.PNG, _bomb()) for c in CAMERAS])

    def at_a_time(request: pb.PredictChunkRequest, count: int, *, cancel: bool) -> None:
        calls = [target.stub.PredictChunk.future(request, timeout=10) for _ in range(count)]
        for call in calls:
            if cancel:
                call.cancel()
            else:
                call.exception()

    for name, one in (("honest", request), ("hostile", bomb)):
        yield f"30 {name} ones", functools.partial(at_a_time, one, 30, cancel=False)
        yield f"30 {name} ones, cancelled", functools.partial(at_a_time, one, 30, cancel=True)


@family
def hanging_up(target: Target) -> Iterable[tuple[str, Step]]:
    """Openings that nobody waits for, and sessions that nobody closes."""

    def hang_up(*, after: int) -> None:
        call = target.stub.OpenSession(target.opening(), timeout=10)
        with contextlib.suppress(grpc.RpcError):
            for _ in range(after):
                next(call, None)
        call.cancel()

    for _ in range(10):
        yield "at once", functools.partial(hang_up, after=0)
        yield "after the first word", functools.partial(hang_up, after=1)


@family
def calls_without_end(target: Target) -> Iterable[tuple[str, Step]]:
    """Watches, reflection and requests that never arrive, over connections of their own."""
    forever = threading.Event()
    channels: list[grpc.Channel] = []

    def never() -> Iterator[Any]:
        forever.wait(20)
        yield b""

    def begin(start: Callable[[grpc.Channel], Any]) -> None:
        if len(channels) >= 8:
            channels.pop(0).close()
        channels.append(target.dial())
        for _ in range(8):
            start(channels[-1])

    request, ask = health_pb2.HealthCheckRequest, reflection_pb2.ServerReflectionRequest
    yield "watches", functools.partial(begin, lambda channel: health_pb2_grpc.HealthStub(channel).Watch(request()))
    yield (
        "watches of names",
        functools.partial(
            begin, lambda channel: health_pb2_grpc.HealthStub(channel).Watch(request(service="x" * 4000))
        ),
    )
    yield (
        "reflection",
        functools.partial(
            begin,
            lambda channel: reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                ask(list_services="") for _ in never()
            ),
        ),
    )
    for path in METHODS:
        yield (
            f"requests that never arrive: {path}",
            functools.partial(begin, lambda channel, path=path: channel.stream_unary(path).future(never())),
        )


@family
def floods(target: Target) -> Iterable[tuple[str, Step]]:
    """Calls that are hung up on, of methods that there are and are not, with metadata, and bodies without end."""
    get, predict = f"{SERVICE}/GetServiceInfo", f"{SERVICE}/PredictChunk"
    many = [(f"x-{number}", "y") for number in range(200)]

    def flood(path: str, metadata: list[tuple[str, str]], *, hang_up: bool) -> None:
        with contextlib.suppress(OSError), http2.Connection(target.port) as connection:
            for first in range(1, 2000, 100):
                streams = range(first, first + 100, 2)
                connection.socket.sendall(b"".join(http2.call(path, stream, *metadata) for stream in streams))
                if hang_up:
                    connection.socket.sendall(b"".join(map(http2.hang_up, streams)))

    def bodies() -> None:
        with contextlib.suppress(OSError), http2.Connection(target.port) as connection:
            streams = range(1, 61, 2)
            connection.socket.sendall(b"".join(http2.call(predict, stream) for stream in streams))
            http2.accepted(connection, streams, 20 << 20)

    for path in (get, predict, "/grpc.health.v1.Health/Watch", "/no.such.Service/Method"):
        yield f"hung up on: {path}", functools.partial(flood, path, [], hang_up=True)
        yield f"not ended: {path}", functools.partial(flood, path, [], hang_up=False)
    yield "metadata", functools.partial(flood, get, many, hang_up=True)
    yield "large metadata", functools.partial(flood, get, [("x", "y" * 7000)], hang_up=True)
    yield "bodies without end", bodies


@family
def names_of_policies(target: Target) -> Iterable[tuple[str, Step]]:
    """What is no checkpoint, and must be said so by whatever looks for it."""
    for name in (
        "/proc",
        "/dev/zero",
        "/dev/stdin",
        "..",
        "\n\r\0",
        "~root",
        "a" * 4000,
        "观" * 4000,
        "a/b/c@d",
        "/" * 4000,
    ):
        request = target.opening(pretrained_name_or_path=name)
        yield (
            name[:20],
            functools.partial(tolerant, lambda timeout, r=request: [*target.stub.OpenSession(r, timeout=timeout)]),
        )


@family
def connections(target: Target) -> Iterable[tuple[str, Step]]:
    """What no client of gRPC would send, to both ports."""
    kept: list[socket.socket] = []
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def connect(port: int, data: bytes) -> None:
        while len(kept) >= 100:
            kept.pop(0).close()
        with contextlib.suppress(OSError):
            kept.append(socket.create_connection(("127.0.0.1", port), 10))
            kept[-1].sendall(data)

    ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
    for name, port, data in (
        ("nothing", target.port, b""),
        ("half a preface", target.port, preface[:10]),
        ("no settings", target.port, preface),
        ("pings", target.port, preface + b"\0\0\0\x04\0\0\0\0\0" + ping * 10_000),
        ("settings", target.port, preface + b"\0\0\0\x04\0\0\0\0\0" * 10_000),
        ("a frame of 16 MB", target.port, preface + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(100_000)),
        ("noise", target.port, bytes(range(256)) * 400),
        ("HTTP/1", target.port, b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n"),
        ("half of TLS", target.port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)),
        ("half a request for metrics", target.metrics_port, b"GET /metrics HTTP/1.1\r\nHost: a\r\n"),
        ("headers without end", target.metrics_port, b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 20_000),
        ("metrics", target.metrics_port, b"GET /metrics HTTP/1.0\r\n\r\n"),
        ("noise for metrics", target.metrics_port, bytes(range(256)) * 400),
    ):
        yield name, functools.partial(connect, port, data)


def mutations(base: Message) -> Iterator[tuple[str, Any]]:
    """Yields messages that each differ from base in one field, at any depth."""
    yield from _mutations(base, lambda: (copy := _copy(base), copy), base.DESCRIPTOR.name)


def _mutations(message: Message, copied: Callable[[], tuple[Any, Any]], where: str) -> Iterator[tuple[str, Any]]:
    """Yields them for a part of a message. copied returns a copy of the whole, and the part within it."""
    for field in message.DESCRIPTOR.fields:
        name = f"{where}.{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue  # names_to_compare has them
        for value in _values(field):
            whole, part = copied()
            with contextlib.suppress(ValueError):  # no such value in Python's own types
                part.ClearField(field.name)
                if field.is_repeated:
                    getattr(part, field.name).extend(value)
                else:
                    setattr(part, field.name, value)
                yield f"{name} = {str(value)[:40]!r}", whole
        if field.message_type is None:
            continue
        whole, part = copied()
        part.ClearField(field.name)
        yield f"no {name}", whole
        if field.is_repeated:
            whole, part = copied()
            getattr(part, field.name).extend([field.message_type._concrete_class()] * 1000)
            yield f"{name} 1000 times", whole
            if getattr(message, field.name):
                yield from _mutations(
                    getattr(message, field.name)[0], _within(copied, lambda p, f=field.name: getattr(p, f)[0]), name
                )
        elif message.HasField(field.name):
            yield from _mutations(
                getattr(message, field.name), _within(copied, lambda p, f=field.name: getattr(p, f)), name
            )


def _within(copied: Callable[[], tuple[Any, Any]], part_of: Callable[[Any], Any]) -> Callable[[], tuple[Any, Any]]:
    def deeper() -> tuple[Any, Any]:
        whole, part = copied()
        return whole, part_of(part)

    return deeper


def _copy(message: Message) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


TEXTS = ["", "x" * 100, "x" * 300_000, "观" * 100_000, "\0", "../../../../etc/passwd", "🤖" * 500, "%s{0}${jndi}\n\r"]
WHOLE = [-(2**63), -(2**31), -1, 0, 1, 2**31 - 1, 2**63 - 1]
FRACTIONS = [math.nan, math.inf, -math.inf, 0.0, -1.0, 5e-324, 1.7e308]
BYTES = [b"", b"\0", bytes(100_000), b"\xff" * 100_000, b"\0\0\xc0\x7f" * 3]


def _values(field: FieldDescriptor) -> list[Any]:
    kinds = {
        FieldDescriptor.CPPTYPE_STRING: BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS,
        FieldDescriptor.CPPTYPE_DOUBLE: FRACTIONS,
        FieldDescriptor.CPPTYPE_FLOAT: FRACTIONS,
        FieldDescriptor.CPPTYPE_BOOL: [False, True],
        FieldDescriptor.CPPTYPE_MESSAGE: [],
    }
    values = kinds.get(field.cpp_type, WHOLE)
    if not field.is_repeated or not values:
        return values
    return [[], [values[1]] * 2, *([value] for value in values), [f"{i}" for i in range(5000)]]


@functools.cache
def _bomb() -> bytes:
    return HOSTILE_PNGS["texts of gigabytes"](HEIGHT, WIDTH)
