"""How failures leave the service: as a gRPC status with a reason, never as a traceback."""

import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status

from longarm_service.metrics import ServiceMetrics
from longarm_wire.errors import Reason, WireError

logger = logging.getLogger(__name__)

# A status travels in HTTP/2 headers, twice, and peers refuse headers past 8 KiB
MAX_MESSAGE_CHARACTERS = 2000

type Context = grpc.aio.ServicerContext[Any, Any]


def fault(reason: Reason, what: str, error: Exception, hints: Sequence[str] = ()) -> WireError:
    """Logs error with its traceback under a fresh id, and returns the failure that carries only the id, and hints."""
    identifier = secrets.token_hex(4)
    logger.error("%s [id %s]", what, identifier, exc_info=error)
    more = " ".join([f"The service's log has more under id {identifier}.", *hints])
    return WireError(reason, f"{what}: {type(error).__name__}. {more}", id=identifier)


async def abort(context: Context, error: WireError, metrics: ServiceMetrics) -> NoReturn:
    """Ends the call with error and counts it."""
    metrics.failed(error.reason)
    message = error.message
    if len(message) > MAX_MESSAGE_CHARACTERS:
        message = message[: MAX_MESSAGE_CHARACTERS - 1] + "…"
    status = rpc_status.to_status(WireError(error.reason, message, **error.metadata).to_status())
    await context.abort(status.code, status.details or "", status.trailing_metadata or ())


def unary[S: "HasMetrics", Q, R](
    method: Callable[[S, Q, Context], Awaitable[R]],
) -> Callable[[S, Q, Context], Awaitable[R]]:
    """Makes what a unary handler raises a status."""

    @functools.wraps(method)
    async def answer(self: S, request: Q, context: Context) -> R:
        try:
            return await method(self, request, context)
        except WireError as error:
            await abort(context, error, self.metrics)
        except Exception as error:  # noqa: BLE001 - the last line before the wire
            await abort(context, fault(Reason.INTERNAL, f"{method.__name__} failed", error), self.metrics)

    return answer


def stream[S: "HasMetrics", Q, R](
    method: Callable[[S, Q, Context], AsyncIterator[R]],
) -> Callable[[S, Q, Context], AsyncIterator[R]]:
    """Makes what a streaming handler raises a status."""

    @functools.wraps(method)
    async def answer(self: S, request: Q, context: Context) -> AsyncIterator[R]:
        try:
            async for response in method(self, request, context):
                yield response
        except WireError as error:
            await abort(context, error, self.metrics)
        except Exception as error:  # noqa: BLE001 - the last line before the wire
            await abort(context, fault(Reason.INTERNAL, f"{method.__name__} failed", error), self.metrics)

    return answer


class HasMetrics:
    """A servicer whose failures are counted."""

    metrics: ServiceMetrics
