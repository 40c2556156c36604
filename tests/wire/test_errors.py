"""Failures keep their reason over a real gRPC server, and what Longarm did not declare is told apart."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_wire.errors import DOMAIN, REASON_CODES, Reason, WireError, from_rpc_error

Abort = Callable[[grpc.ServicerContext], None]


class AbortingService(pb_grpc.PolicyServiceServicer):
    """Fails every CloseSession the way that the test says."""

    def __init__(self, abort: Abort) -> None:
        self._abort = abort

    def CloseSession(self, request: pb.CloseSessionRequest, context: grpc.ServicerContext) -> pb.CloseSessionResponse:
        self._abort(context)
        return pb.CloseSessionResponse()


@contextmanager
def serving(abort: Abort) -> Iterator[str]:
    """Yields the address of a server that fails."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    pb_grpc.add_PolicyServiceServicer_to_server(AbortingService(abort), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def fail(address: str) -> grpc.RpcError:
    """Returns the error of a call to address."""
    with grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            pb_grpc.PolicyServiceStub(channel).CloseSession(pb.CloseSessionRequest(), timeout=10)
        return failure.value


def received(abort: Abort) -> grpc.RpcError:
    """Returns the error that a caller of a server that fails so gets."""
    with serving(abort) as address:
        return fail(address)


def status(*details: any_pb2.Any, code: int = code_pb2.INTERNAL, message: str = "broken") -> Abort:
    """Returns an abort with a status of these details."""
    value = status_pb2.Status(code=code, message=message, details=list(details))
    return lambda context: context.abort_with_status(rpc_status.to_status(value))


def packed(info: error_details_pb2.ErrorInfo) -> any_pb2.Any:
    """Returns info as a detail."""
    detail = any_pb2.Any()
    detail.Pack(info)
    return detail


def test_every_reason_has_a_code_and_says_what_to_do() -> None:
    assert set(REASON_CODES) == set(Reason)
    assert grpc.StatusCode.OK not in REASON_CODES.values()
    assert all(reason.name == reason.value for reason in Reason)


@pytest.mark.parametrize("reason", Reason)
def test_a_failure_crosses_the_wire_whole(reason: Reason) -> None:
    sent = WireError(reason, f"Expected 6 values, found 5: {reason} \u2013 Ä\nsecond line", id="7f3a", key="value")
    error = received(lambda context: context.abort_with_status(rpc_status.to_status(sent.to_status())))
    got = from_rpc_error(error)
    assert got is not None
    assert (got.reason, got.message, got.metadata) == (sent.reason, sent.message, sent.metadata)
    assert str(got) == sent.message
    assert isinstance(error, grpc.Call)
    assert error.code() is REASON_CODES[reason]


def test_an_error_of_an_asyncio_channel_is_read_as_well() -> None:
    sent = WireError(Reason.SUPERSEDED, "A newer observation came", id="1")

    async def call(address: str) -> grpc.RpcError:
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await pb_grpc.PolicyServiceStub(channel).CloseSession(pb.CloseSessionRequest(), timeout=10)
            return failure.value

    with serving(lambda context: context.abort_with_status(rpc_status.to_status(sent.to_status()))) as address:
        got = from_rpc_error(asyncio.run(call(address)))
    assert got is not None
    assert (got.reason, got.message, got.metadata) == (sent.reason, sent.message, {"id": "1"})


def test_metadata_may_have_any_name() -> None:
    """A peer that names a fact "message" or "reason" must not break the caller's error handling."""
    info = error_details_pb2.ErrorInfo(
        reason="POLICY_FAILED", domain=DOMAIN, metadata={"message": "a", "reason": "b", "self": "c", "with space": "d"}
    )
    got = from_rpc_error(received(status(packed(info))))
    assert got is not None
    assert got.metadata == dict(info.metadata)


def test_other_details_may_stand_before_ours() -> None:
    ours = error_details_pb2.ErrorInfo(reason="QUEUE_TIMEOUT", domain=DOMAIN)
    other = any_pb2.Any()
    other.Pack(error_details_pb2.DebugInfo(detail="x"))
    got = from_rpc_error(received(status(other, packed(ours))))
    assert got is not None
    assert got.reason is Reason.QUEUE_TIMEOUT


FOREIGN: dict[str, Abort] = {
    "bare status": lambda context: context.abort(grpc.StatusCode.INTERNAL, "broken"),
    "no details": status(),
    "another domain": status(packed(error_details_pb2.ErrorInfo(reason="POLICY_FAILED", domain="example.com"))),
    "a reason of the future": status(packed(error_details_pb2.ErrorInfo(reason="NOT_YET", domain=DOMAIN))),
    "a broken detail": status(
        any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff\xff")
    ),
}


@pytest.mark.parametrize("abort", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_failure_is_none_of_ours(abort: Abort) -> None:
    assert from_rpc_error(received(abort)) is None


def test_details_that_contradict_the_status_or_are_none_are_none_of_ours() -> None:
    def contradict(context: grpc.ServicerContext) -> None:
        other = WireError(Reason.POLICY_FAILED, "one").to_status()
        context.set_trailing_metadata((("grpc-status-details-bin", other.SerializeToString()),))
        context.abort(grpc.StatusCode.INTERNAL, "another")

    def garbage(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.INTERNAL, "broken")

    assert from_rpc_error(received(contradict)) is None
    assert from_rpc_error(received(garbage)) is None


def test_a_dead_port_is_none_of_ours() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and nobody answers
        error = fail(f"127.0.0.1:{free.getsockname()[1]}")
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert from_rpc_error(error) is None


def test_an_error_that_is_no_call_is_none_of_ours() -> None:
    assert from_rpc_error(grpc.RpcError()) is None
