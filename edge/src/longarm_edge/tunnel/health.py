"""Asks for gRPC health through the tunnel: only an answer of the service proves that the tunnel works."""

import time
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2


class NotAnsweringError(Exception):
    """No answer; the message says what came instead."""


class HealthProbe:
    """Asks one address. Use as a context manager."""

    def __init__(self, address: str) -> None:
        """Dials lazily.

        Args:
          address: Leads to the service, as gRPC dials it.
        """
        self._channel = grpc.insecure_channel(
            address,
            options=[
                # Its own connection, that ends with the channel
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
                # A refused connection is asked anew by the next probe, not by a backoff of gRPC's own
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 100),
            ],
        )
        self._check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    def ask(self, timeout: float) -> float:
        """Returns the round trip in seconds. A service that says it does not serve yet has answered as well.

        Args:
          timeout: Seconds to wait.

        Raises:
          NotAnsweringError: The service did not answer.
        """
        started = time.monotonic()
        try:
            self._check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NotAnsweringError(f"no answer within {timeout:g} s") from error
            if code is grpc.StatusCode.UNAVAILABLE:
                raise NotAnsweringError("no gRPC service there") from error
            raise NotAnsweringError(f"{code.name}, so it is no Longarm service") from error
        return time.monotonic() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
