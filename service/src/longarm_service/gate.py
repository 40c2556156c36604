"""What gets in, before any method is called: how often, how large before it is parsed, and how long it may take.

gRPC itself accepts a call at its first byte, waits for the rest without end, and makes Python objects of whatever
arrives, on the event loop that serves every robot.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health

from longarm_service import failures
from longarm_service.failures import Context
from longarm_service.metrics import ServiceMetrics
from longarm_wire import limits
from longarm_wire.errors import Reason, WireError

# Calls of one connection at a time. A robot has one, or a few
MAX_CALLS_PER_CONNECTION = 32
# Calls of one connection per second, after so many at once; further ones wait. A robot asks at most once per tick
CALLS_PER_SECOND = 250
BURST_CALLS = 100
# The same by size: twice what two raw cameras of 640x480 send at 30 Hz
BYTES_PER_SECOND = 110e6
# Requests that are read from a connection at a time: each may have 23 MB, and what has come of it is kept. Of others
# gRPC takes their beginning, enough for 50 Mbit/s at a round trip of 40 ms without waiting for the service's word
MAX_READ_PER_CONNECTION = 2
UNREAD_BYTES = 1 << 18
# Requests that arrive in all, beside those of robots that run. Of the connection with the most calls the oldest makes
# room: an honest one takes no time
MAX_ARRIVING = 64
ARRIVAL_SECONDS = 30.0
# Watches of health at a time, which end when their callers like
MAX_WATCHING = 32
# HTTP/2's own limit, for calls that were hung up on before they were paid for: gRPC refuses further ones before they
# cost Python anything. More than a client has that keeps to the above, since gRPC's clients hang at it
MAX_STREAMS = MAX_CALLS_PER_CONNECTION + 16
# So many connections over which no robot runs have their whole pace. Where more of them call, they share it
STRANGERS_AT_FULL_PACE = 2
# How old their number may be
COUNT_SECONDS = 0.1
# Connections at a time. Further ones are closed at once, while there are files left to open
MAX_STRANGERS = 128
CONNECTIONS_PER_SESSION = 2

# Not a generic class as it runs, only as its stubs have it
type Handler = grpc.RpcMethodHandler[Any, Any]


def most_connections(sessions: int) -> int:
    """Returns how many connections a server of so many sessions may have at a time."""
    return MAX_STRANGERS + CONNECTIONS_PER_SESSION * sessions


class Gate(grpc.aio.ServerInterceptor):
    """Guards every method of a server, those of health and reflection included."""

    def __init__(
        self, is_known: Callable[[str], bool], metrics: ServiceMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Takes what tells whether a robot runs over a connection (a peer, as gRPC names it)."""
        self._is_known = is_known
        self._metrics = metrics
        self._clock = clock
        self._guarded: dict[str, Handler] = {}
        self._unknown: Handler = grpc.stream_unary_rpc_method_handler(self._refuse_unknown)
        # Calls in progress per connection
        self._calls: Counter[str] = Counter()
        # Per connection with calls: what of it is read
        self._turns: dict[str, asyncio.Semaphore] = {}
        # Of strangers whose requests arrive, how long they are waited for, oldest first, and over which connection
        self._arriving: dict[asyncio.Timeout, str] = {}
        self._watching_count = 0
        # Per connection: when it will have paid for its calls so far
        self._paid_at: dict[str, float] = {}
        self._counted_at = clock()
        self._payments: set[asyncio.Task[None]] = set()
        self._closed = False

    def close(self) -> None:
        """Lets nobody wait for their turn any more: the server ends with its last call."""
        self._closed = True
        for payment in self._payments:
            payment.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the method's handler, guarded."""
        name = handler_call_details.method
        if name not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None:  # of such names there is no end
                return self._unknown
            self._guarded[name] = self._guard(name, handler)
        return self._guarded[name]

    def _guard(self, name: str, handler: Any) -> Handler:
        """Returns handler as one that reads a stream of bytes: on the wire, one request is a stream of one."""
        most_bytes = limits.MAX_BYTES_BY_METHOD.get(name.rpartition("/")[2], limits.MAX_SMALL_BYTES)
        watches = name == f"/{health.SERVICE_NAME}/Watch"
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_stream

        @contextlib.asynccontextmanager
        async def admitted(context: Context) -> AsyncIterator[None]:
            peer = context.peer()
            await self._pay_for_call(context)
            try:
                self._check_room(peer, watches=watches)
            except WireError as error:
                await failures.abort(context, error, self._metrics)
            self._calls[peer] += 1
            self._watching_count += watches
            try:
                yield
            finally:
                self._watching_count -= watches
                self._calls[peer] -= 1
                if not self._calls[peer]:
                    del self._calls[peer]
                    self._turns.pop(peer, None)

        async def next_request(context: Context) -> Any:
            try:
                data = await self._arrived(context)
                return None if data is None else _parsed(data, most_bytes, handler.request_deserializer)
            except WireError as error:
                await failures.abort(context, error, self._metrics)

        async def requests(context: Context) -> AsyncIterator[Any]:
            while (request := await next_request(context)) is not None:
                yield request
                await self._pay_for_call(context)

        async def answer_one(_: object, context: Context) -> Any:
            async with admitted(context):
                if (request := await next_request(context)) is None:
                    await failures.abort(context, _invalid("Expected a request, found none"), self._metrics)
                return await behaviour(request, context)

        async def answer_many(_: object, context: Context) -> AsyncIterator[Any]:
            async with admitted(context):
                async for response in behaviour(requests(context), context):
                    yield response

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(answer_many, None, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(answer_one, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(answer_one, None, handler.response_serializer)

    async def _refuse_unknown(self, _: object, context: Context) -> None:
        await self._pay_for_call(context)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "There is no such method.")

    def _check_room(self, peer: str, *, watches: bool) -> None:
        if self._calls[peer] >= MAX_CALLS_PER_CONNECTION:
            raise WireError(
                Reason.TOO_MANY_SESSIONS, f"This connection has {MAX_CALLS_PER_CONNECTION} calls in progress already."
            )
        if watches and self._watching_count >= MAX_WATCHING:
            raise WireError(Reason.TOO_MANY_SESSIONS, f"{MAX_WATCHING} callers watch already. Try later.")

    async def _arrived(self, context: Context) -> bytes | None:
        """Returns the call's next request, or None at the end of a stream."""
        peer = context.peer()
        turn = self._turns.setdefault(peer, asyncio.Semaphore(MAX_READ_PER_CONNECTION))
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS) as patience, turn:
                with self._waited_for(peer, patience):
                    data = await context.read()
                    if data is not grpc.aio.EOF:
                        self._pay(peer, len(data) / BYTES_PER_SECOND)
        except TimeoutError:
            raise _invalid("Expected a request, found none or a part of it, and others wait to send theirs") from None
        return None if data is grpc.aio.EOF else data

    @contextlib.contextmanager
    def _waited_for(self, peer: str, patience: asyncio.Timeout) -> Iterator[None]:
        if self._is_known(peer):
            yield
            return
        while len(self._arriving) >= MAX_ARRIVING:
            # Of the connection with the most calls, the oldest: of its calls that wait to be read, another follows
            spared = max(self._arriving, key=lambda other: self._calls[self._arriving[other]])
            del self._arriving[spared]
            spared.reschedule(0)
        self._arriving[patience] = peer
        try:
            yield
        finally:
            self._arriving.pop(patience, None)

    async def _pay_for_call(self, context: Context) -> None:
        """Waits until the connection may have a further call."""
        peer = context.peer()
        # Strangers share a pace: of many connections, each has less
        share = 1.0 if self._is_known(peer) else max(1.0, self._strangers() / STRANGERS_AT_FULL_PACE)
        wait = self._pay(peer, share / CALLS_PER_SECOND)
        if wait <= 0 or self._closed:
            return
        payment = asyncio.create_task(asyncio.sleep(wait), name="payment")
        self._payments.add(payment)
        payment.add_done_callback(self._payments.discard)
        try:
            await asyncio.shield(payment)
        except asyncio.CancelledError:
            # Whoever hangs up has the stream all the same, until it is paid for
            await asyncio.wait([payment])
            raise

    def _strangers(self) -> int:
        """Returns how many connections have something to pay, counted a moment ago."""
        now = self._clock()
        if now - self._counted_at >= COUNT_SECONDS:
            self._counted_at = now
            self._paid_at = {peer: at for peer, at in self._paid_at.items() if at > now}
        return len(self._paid_at)

    def _pay(self, peer: str, seconds: float) -> float:
        """Books seconds on a connection and returns how long its next call has to wait."""
        now = self._clock()
        self._paid_at[peer] = paid_at = max(now, self._paid_at.get(peer, now)) + seconds
        return paid_at - now - BURST_CALLS / CALLS_PER_SECOND


def _parsed(data: bytes, most_bytes: int, parse: Callable[[bytes], Any]) -> Any:
    if len(data) > most_bytes:
        raise _invalid(f"Expected a request of at most {most_bytes} bytes, found {len(data)}")
    if not limits.is_flat(data):
        raise _invalid(f"Expected a request of at most {limits.MAX_FIELDS} fields, found more or no fields at all")
    try:
        return parse(data)
    except DecodeError:
        raise _invalid(f"Expected a request, found {len(data)} bytes that are none") from None


def _invalid(message: str) -> WireError:
    return WireError(Reason.INVALID_REQUEST, message)
