"""Failures as they travel: a gRPC status with ErrorInfo, whose reason says what the caller should do next."""

from collections.abc import Mapping
from enum import StrEnum
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "longarm"


class Reason(StrEnum):
    """Why a call failed. The value is ErrorInfo.reason; REASON_CODES gives each its status code."""

    INVALID_REQUEST = "INVALID_REQUEST"
    """A field is malformed. A fault of the caller's program."""
    INVALID_IMAGE = "INVALID_IMAGE"
    """An image cannot be decoded or has another size than it says."""
    SPEC_MISMATCH = "SPEC_MISMATCH"
    """Robot and policy do not fit; the message names the fix. Change the configuration."""
    POLICY_NOT_ALLOWED = "POLICY_NOT_ALLOWED"
    """The service's allow-list does not have this policy. Change the service's configuration."""
    POLICY_NOT_FOUND = "POLICY_NOT_FOUND"
    """There is no checkpoint at this path or name."""
    HUB_UNREACHABLE = "HUB_UNREACHABLE"
    """The checkpoint would have to come from the model hub, which does not answer. Try later."""
    POLICY_LOAD_FAILED = "POLICY_LOAD_FAILED"
    """The checkpoint is there and does not load."""
    POLICY_UNSUPPORTED = "POLICY_UNSUPPORTED"
    """The service cannot run this type of policy correctly; the message says why."""
    RTC_UNSUPPORTED = "RTC_UNSUPPORTED"
    """This policy, or this service, cannot do real-time chunking."""
    SESSION_UNKNOWN = "SESSION_UNKNOWN"
    """The service does not know the session: it restarted or the session expired. Open a new one."""
    TOO_MANY_SESSIONS = "TOO_MANY_SESSIONS"
    """The service is full. Try later or elsewhere."""
    FOREIGN_REPLY = "FOREIGN_REPLY"
    """Something else than the service that opened the session answered. Never sent: the edge's own finding."""
    SUPERSEDED = "SUPERSEDED"
    """A newer observation of the same session took this one's place. Nothing to do."""
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    """The observation waited longer than obs_queue_timeout. Send a fresh one."""
    POLICY_FAILED = "POLICY_FAILED"
    """The policy raised; the service's log has the traceback under the same id. Try a fresh observation."""
    POLICY_RETURNED_INVALID = "POLICY_RETURNED_INVALID"
    """The policy returned NaN, infinity or a wrong shape. Try a fresh observation."""
    SHUTTING_DOWN = "SHUTTING_DOWN"
    """The service drains. Reconnect later."""
    INTERNAL = "INTERNAL"
    """The service itself is at fault; its log has the traceback under the same id. Report it."""


REASON_CODES: Mapping[Reason, grpc.StatusCode] = {
    Reason.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.INVALID_IMAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.SPEC_MISMATCH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.POLICY_NOT_ALLOWED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.POLICY_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.HUB_UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.POLICY_LOAD_FAILED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.POLICY_UNSUPPORTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.RTC_UNSUPPORTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SESSION_UNKNOWN: grpc.StatusCode.NOT_FOUND,
    Reason.TOO_MANY_SESSIONS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.FOREIGN_REPLY: grpc.StatusCode.UNAUTHENTICATED,
    Reason.SUPERSEDED: grpc.StatusCode.ABORTED,
    Reason.QUEUE_TIMEOUT: grpc.StatusCode.ABORTED,
    Reason.POLICY_FAILED: grpc.StatusCode.INTERNAL,
    Reason.POLICY_RETURNED_INVALID: grpc.StatusCode.INTERNAL,
    Reason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}


class WireError(Exception):
    """A failure with a reason that may travel to the peer.

    Attributes:
      reason: What the caller should do next, as a Reason.
      message: What was expected, what was found, which thing, what to do. No traceback, no secret.
      metadata: Further facts as strings, for example the id under which the log has more.
    """

    def __init__(self, reason: Reason, message: str, /, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata

    def to_status(self) -> status_pb2.Status:
        """Returns the error as google.rpc.Status with one ErrorInfo."""
        info = error_details_pb2.ErrorInfo(reason=self.reason.value, domain=DOMAIN, metadata=self.metadata)
        detail = any_pb2.Any()
        detail.Pack(info)
        code = code_pb2.Code.Value(REASON_CODES[self.reason].name)
        return status_pb2.Status(code=code, message=self.message, details=[detail])


def from_rpc_error(error: grpc.RpcError) -> WireError | None:
    """Returns the failure that error carries, or None if it is no failure that Longarm declared (a dead link, say)."""
    # An error of grpc.aio has what a Call has and is none
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return None
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
        for detail in status.details if status is not None else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN and info.reason in Reason:
                return WireError(Reason(info.reason), status.message, **info.metadata)
    except (ValueError, DecodeError):
        # The details contradict the status, or are no details: something else than Longarm answered
        return None
    return None
