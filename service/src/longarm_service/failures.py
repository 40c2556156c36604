"""How failures leave the service: as a gRPC status with a reason, never as a traceback."""

import functools
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status

from longarm_service.metrics import ServiceMetrics
from longarm_wire.errors import Reason, WireError

logger = logging.getLogger(__name__)

# Peers refuse headers past 8 KiB, and a status travels in them
MAX_HEADER_BYTES = 4700

type Context = grpc.aio.ServicerContext[Any, Any]


def fault(reason: Reason, what: str, error: Exception) -> WireError:
    """Logs error with its traceback under a fresh id, and returns the failure that carries only the id."""
    identifier = secrets.token_hex(4)
    logger.error("%s [id %s]", what, identifier, exc_info=error)
    return WireError(
        reason, f"{what}: {type(error).__name__}. The service's log has more under id {identifier}.", id=identifier
    )


async def abort(context: Context, error: WireError, metrics: ServiceMetrics) -> NoReturn:
    """Ends the call with error and counts it."""
    metrics.failed(error.reason)
    status = rpc_status.to_status(WireError(error.reason, shortened(error.message), **error.metadata).to_status())
    await context.abort(status.code, status.details or "", status.trailing_metadata or ())


def shortened(message: str) -> str:
    """Returns message, or as much of its beginning as arrives.

    It travels twice: percent-encoded, where whatever is no plain ASCII takes three bytes for one, and as base64.
    """
    # What cannot be encoded at all, as parts of a file's name, must not fail the failure
    data = message.encode("utf-8", "replace")
    left = float(MAX_HEADER_BYTES)
    for end, byte in enumerate(data):
        left -= (1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3) + 4 / 3
        if left < 0:
            # Room for the ellipsis, and whole characters alone
            return data[: max(0, end - 12)].decode("utf-8", "ignore") + "…"
    return data.decode("utf-8")


def handler[S: "HasMetrics", Q, R](
    method: Callable[[S, Q, Context], Awaitable[R]],
) -> Callable[[S, Q, Context], Awaitable[R]]:
    """Makes what a handler raises a status."""

    @functools.wraps(method)
    async def answer(self: S, request: Q, context: Context) -> R:
        try:
            return await method(self, request, context)
        except WireError as error:
            await abort(context, error, self.metrics)
        except Exception as error:  # noqa: BLE001 - the last line before the wire
            await abort(context, fault(Reason.INTERNAL, f"{method.__name__} failed", error), self.metrics)

    return answer


class HasMetrics:
    """A servicer whose failures are counted."""

    metrics: ServiceMetrics
