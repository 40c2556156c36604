"""Puts the service together, starts it, and ends it in good order."""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_service import gate
from longarm_service.failures import Context
from longarm_service.gate import Gate
from longarm_service.line import Clock
from longarm_service.metrics import ServiceMetrics
from longarm_service.policy import PolicyLoader, choice_named, resolved
from longarm_service.prediction import Job, Prediction, predict
from longarm_service.server import PolicyServicer
from longarm_service.sessions import SessionTable
from longarm_service.settings import ServiceSettings
from longarm_service.shelf import Lease, PolicyShelf
from longarm_service.worker import Worker, Workers
from longarm_wire import limits
from longarm_wire.errors import Reason, WireError
from longarm_wire.http import HttpEndpoint, not_listening

logger = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LOOK_AFTER_SECONDS = 1.0
FAREWELL_SECONDS = 0.5
# Between attempts to load anew what is to stay loaded, while its directory holds nothing that loads
RETRY_SECONDS = 30.0
# Why a policy does not load now, and may in a moment
PASSING = (Reason.HUB_UNREACHABLE, Reason.TOO_MANY_SESSIONS)

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", limits.MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", limits.MAX_RESPONSE_BYTES),
    # A second service on the same port must fail, not take every other robot
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", gate.MAX_STREAMS),
    # Of requests that nobody reads yet; by itself gRPC takes as much of them as the link can carry
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", gate.UNREAD_BYTES),
    # Robots ping through their tunnel to notice a dead link; gRPC would hang up on more than one ping in 5 minutes
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Whatever the pace: a robot whose connection is closed for "too many pings" stands still
    ("grpc.http2.max_ping_strikes", 0),
    # A laptop that went elsewhere leaves a connection behind that nobody closes, and there is room for so many
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
)


class StartupError(Exception):
    """The service does not start. The message says what to change.

    Attributes:
      final: Whether it can never start as configured, so that trying again is of no use.
    """

    def __init__(self, message: str, *, final: bool = True) -> None:
        super().__init__(message)
        self.final = final


class _Health(health.aio.HealthServicer):
    """Knows the names that it was told. The original remembers every name that anybody watched."""

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """See the protocol of gRPC's health."""
        if request.service not in ("", SERVICE_NAME):
            await context.abort(grpc.StatusCode.NOT_FOUND)
        await super().Watch(request, context)


class Service:
    """A running service. Entering binds both ports and answers; prepare makes it ready; leaving drains it."""

    def __init__(
        self, settings: ServiceSettings, make_loader: Callable[[], PolicyLoader], clock: Clock = time.monotonic
    ) -> None:
        """Puts the parts together.

        Args:
          settings: All of them.
          make_loader: Makes what loads policies; called once, on the loading thread.
          clock: For session expiry and queue times, in seconds.
        """
        self.metrics = ServiceMetrics()
        self.port = 0
        self.metrics_port = 0
        self._settings = settings
        self._clock = clock
        self._workers: Workers[Job, Prediction] = Workers(self._make_worker)
        self.metrics.waiting.set_function(lambda: self._workers.waiting_count)
        self._shelf = PolicyShelf(make_loader, settings.max_loaded_policies, self.metrics, self._workers.retire)
        self._sessions = SessionTable(settings.max_session_count, settings.session_idle_timeout, self.metrics, clock)
        self._servicer = PolicyServicer(settings, self._shelf, self._workers, self._sessions, self.metrics)
        self._gate = Gate(self._sessions.knows, self.metrics)
        self._health = _Health()
        self._state = "starting"
        # Nobody who asks for others drives them out. In the place of one that does not load anew: when to try again
        self._preloaded: dict[str, Lease | float] = {}
        self._failed: asyncio.Future[None] | None = None
        self._stack = contextlib.AsyncExitStack()

    @property
    def busy(self) -> bool:
        """Whether a thread is still in the middle of something that cannot be interrupted."""
        return self._workers.busy or self._shelf.busy

    async def __aenter__(self) -> Self:
        """Binds and answers: health says NOT_SERVING until prepare is done.

        Raises:
          StartupError: A port is taken.
        """
        async with contextlib.AsyncExitStack() as stack:
            # The HTTP endpoint outlives the rest, so that the drain can be watched
            self._start_http(stack)
            # No call and no prediction needs the decoders by then
            stack.callback(self._servicer.close)
            stack.callback(self._shelf.close)
            stack.callback(self._workers.close)
            server = await self._start_grpc()
            # Predictions are answered by then. What is left are watches of health and reflection, which never end by
            # themselves: they get a moment for their last word
            stack.push_async_callback(server.stop, grace=FAREWELL_SECONDS)
            stack.callback(self._gate.close)
            self._failed = asyncio.get_running_loop().create_future()
            # Apart, since a policy that is loaded anew takes minutes
            for chore in (self._expire_sessions, self._keep_house):
                stack.callback(asyncio.create_task(chore(), name=chore.__name__).cancel)
            self._announce(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drains: what runs is answered within drain_timeout, what begins is refused."""
        self._state = "draining"
        await self._health.enter_graceful_shutdown()
        await self._servicer.drain(self._settings.drain_timeout)
        await self._stack.aclose()

    async def prepare(self) -> None:
        """Loads what is to be preloaded and makes the service ready.

        Raises:
          StartupError: A policy does not load, or the device is not there.
        """
        try:
            loader = await self._shelf.start()
            facts = {f"{library}_version": version for library, version in loader.library_versions.items()}
            self.metrics.describe({**facts, "device": loader.device}, loader.device_memory)
            for name in self._settings.preload:
                self._preloaded[name] = await self._borrow(name)
        except WireError as error:
            passing = (
                error.reason in (Reason.HUB_UNREACHABLE, Reason.INTERNAL)
                or {"process", "files"} & error.metadata.keys()
            )
            raise StartupError(f"{error.reason}: {error.message}", final=not passing) from error
        await self._set_state("ready")
        host = self._settings.host
        logger.info(
            "ready: listening on %s:%d, metrics on http://%s:%d/metrics, device %s",
            host,
            self.port,
            self._settings.metrics_host,
            self.metrics_port,
            f"{loader.device} {loader.device_name}".rstrip(),
        )

    async def failure(self) -> None:
        """Waits until only a new start helps.

        Raises:
          StartupError: Why. It is not final.
        """
        assert self._failed is not None  # noqa: S101 - entered
        await asyncio.shield(self._failed)

    def _make_worker(self) -> Worker[Job, Prediction]:
        return Worker(
            lambda jobs: predict(jobs, self.metrics.batch_size.observe),
            self._settings.obs_queue_timeout,
            self._settings.batch_window,
            self.metrics,
            self._clock,
        )

    async def _borrow(self, name: str) -> Lease:
        return await self._shelf.borrow(resolved(choice_named(name)), lambda _: None)

    async def _set_state(self, state: str) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, SERVING if state == "ready" else NOT_SERVING)
        self._state = state

    def _start_http(self, stack: contextlib.AsyncExitStack) -> None:
        checks = {
            "/healthz": lambda: (True, "alive"),
            "/readyz": lambda: (self._state == "ready", self._state),
        }
        try:
            http = HttpEndpoint(self._settings.metrics_host, self._settings.metrics_port, self.metrics.registry, checks)
        except OSError as error:
            raise StartupError(not_listening(error, "LONGARM_SERVICE_METRICS")) from error
        self.metrics_port = http.port
        stack.enter_context(http)

    async def _start_grpc(self) -> grpc.aio.Server:
        most_connections = gate.most_connections(self._settings.max_session_count)
        server = grpc.aio.server(
            interceptors=[self._gate],
            options=(*CHANNEL_OPTIONS, ("grpc.max_allowed_incoming_connections", most_connections)),
        )
        pb_grpc.add_PolicyServiceServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        for name in ("", SERVICE_NAME):
            await self._health.set(name, NOT_SERVING)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartupError(
                f"Cannot listen on {address}: the port is taken or the address is not this machine's. "
                "Set LONGARM_SERVICE_PORT (--port) to another port, or stop what listens there."
            ) from error
        await server.start()
        return server

    def _announce(self, stack: contextlib.AsyncExitStack) -> None:
        path = self._settings.announce
        if path is None:
            return
        # In one step, so that nobody reads half of it
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        ports = {"port": self.port, "metrics_port": self.metrics_port}
        try:
            draft.write_text(json.dumps(ports) + "\n", encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise StartupError(f"Cannot write {path} (announce): {error.strerror}.") from error
        stack.callback(path.unlink, missing_ok=True)

    async def _expire_sessions(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AFTER_SECONDS)
            self._sessions.expire()

    async def _keep_house(self) -> None:
        try:
            while True:
                await asyncio.sleep(LOOK_AFTER_SECONDS)
                await self._look_after_policies()
        except StartupError as error:
            assert self._failed is not None  # noqa: S101 - set before
            await self._set_state("failed")
            self._failed.set_exception(error)

    async def _look_after_policies(self) -> None:
        """Forgets what failed, and loads it anew if it was preloaded.

        Raises:
          StartupError: Nothing can be loaded any more, or not this.
        """
        self._shelf.drop_failed()
        loader = self._shelf.loader
        if self._state not in ("ready", "recovering") or loader is None:
            return
        if loader.failure is not None:
            raise StartupError(loader.failure, final=False)
        for name, lease in list(self._preloaded.items()):
            failed = False
            if isinstance(lease, Lease):
                if any(lease.policy is policy for policy in self._shelf.policies):
                    continue
                # It failed, or its directory holds another one by now
                failed = lease.policy.failure is not None
                lease.release()
            elif self._clock() < lease:
                continue
            if failed:
                await self._set_state("recovering")
            try:
                self._preloaded[name] = await self._borrow(name)
            except WireError as error:
                if failed and error.reason not in PASSING:
                    raise StartupError(f"{name} does not load again. {error.message}", final=False) from error
                logger.warning("%s is not loaded anew: %s", name, error.message)
                if failed:
                    return
                # Somebody may be in the middle of writing it
                self._preloaded[name] = self._clock() + RETRY_SECONDS
        if self._state == "recovering":
            await self._set_state("ready")
