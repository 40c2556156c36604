"""The edge's side of the wire: a session with the policy service, one request in flight."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hmac import compare_digest
from types import TracebackType
from typing import Self

import grpc

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1.policy_service_pb2_grpc import PolicyServiceStub
from longarm_edge.answers import Reply, Session, checked_reply, checked_session
from longarm_edge.frames import pack_frame
from longarm_edge.robot import RobotReading
from longarm_edge.settings import AggregateName, EdgeSettings
from longarm_wire import images, limits, tensors
from longarm_wire.errors import Reason, WireError, from_rpc_error
from longarm_wire.rtc import RtcConfig, RtcPrefix
from longarm_wire.specs import CameraSpec, RobotSpec

logger = logging.getLogger(__name__)

# Refusals of a session that another try may get past
PASSING_REASONS = frozenset({Reason.TOO_MANY_SESSIONS, Reason.SHUTTING_DOWN, Reason.HUB_UNREACHABLE})
# gRPC's own, in seconds
LONGEST_CONNECT = 20.0


class UnreachableError(Exception):
    """The service did not answer: no connection, a dead link, or no reply before the deadline."""


class LateError(UnreachableError):
    """No reply before the deadline: a dead link, or a policy that takes longer."""


@dataclass(frozen=True)
class PolicyChoice:
    """What to ask the service for; fields as in OpenSessionRequest."""

    pretrained_name_or_path: str
    revision: str = ""
    policy_type: str = ""
    device: str = ""
    dtype: str = ""
    rename_map: Mapping[str, str] = field(default_factory=dict)
    masked_cameras: tuple[str, ...] = ()
    actions_per_chunk: int = 0
    task: str = ""
    rtc: RtcConfig | None = None

    @classmethod
    def from_settings(cls, settings: EdgeSettings) -> "PolicyChoice":
        """Returns what settings ask for."""
        return cls(
            pretrained_name_or_path=settings.pretrained_name_or_path,
            revision=settings.revision,
            policy_type=settings.policy_type,
            device=settings.policy_device,
            dtype=settings.dtype,
            rename_map=settings.rename_map,
            masked_cameras=settings.masked_cameras,
            actions_per_chunk=settings.actions_per_chunk,
            task=settings.task,
            rtc=settings.rtc.config if settings.aggregate_fn_name is AggregateName.RTC else None,
        )


class PolicyClient:
    """Talks to one policy service. Not thread-safe: one thread, one request in flight."""

    def __init__(
        self,
        address: str,
        codec: images.Codec,
        jpeg_quality: int,
        *,
        name: str = "",
        connect_timeout: float = LONGEST_CONNECT,
    ) -> None:
        """Dials lazily: nothing is sent before the first call.

        Args:
          address: host:port of the service, or unix: and the path of a socket that leads to it.
          codec: How frames travel.
          jpeg_quality: 1 to 100.
          name: Where address leads to, for messages; address itself by default.
          connect_timeout: Seconds after which an attempt to connect is given up: what takes it may never say a word.
        """
        self.address = address
        self.name = name or address
        self._codec = codec
        self._jpeg_quality = jpeg_quality
        self._encoders = ThreadPoolExecutor(thread_name_prefix="encode")
        self._connect_timeout = min(connect_timeout, LONGEST_CONNECT)
        self._channel = _dial(address, self._connect_timeout)
        self._stub = PolicyServiceStub(self._channel)
        self._sequence = 0

    def service_info(self, *, timeout: float) -> pb.GetServiceInfoResponse:
        """Returns what the service says of itself. Carries next to nothing: good for timing the way there and back.

        Raises:
          UnreachableError: The service did not answer, or not in time.
          WireError: What answers is no policy service.
        """
        try:
            return self._stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise _translated(error, self.name, timeout) from error

    def open_session(
        self,
        choice: PolicyChoice,
        robot: RobotSpec,
        *,
        timeout: float,
        on_progress: Callable[[pb.Progress], None] = lambda _: None,
    ) -> Session:
        """Returns an open session, after the service has loaded the policy if need be.

        Args:
          choice: The policy.
          robot: What the policy has to fit.
          timeout: Seconds for all of it.
          on_progress: Called as the service reports progress.

        Raises:
          UnreachableError: The service did not answer, or not in time.
          WireError: The service refuses, with the reason and the fix.
        """
        request = pb.OpenSessionRequest(
            pretrained_name_or_path=choice.pretrained_name_or_path,
            revision=choice.revision,
            policy_type=choice.policy_type,
            device=choice.device,
            dtype=choice.dtype,
            robot=robot.to_proto(),
            rename_map=choice.rename_map,
            masked_cameras=choice.masked_cameras,
            actions_per_chunk=choice.actions_per_chunk,
            task=choice.task,
            rtc=choice.rtc.to_proto() if choice.rtc is not None else None,
        )
        description = None
        try:
            # To the end: a service takes one that hangs up before for gone, and closes the session
            for response in self._stub.OpenSession(request, timeout=timeout):
                if response.HasField("session"):
                    description = response.session
                else:
                    on_progress(response.progress)
        except grpc.RpcError as error:
            raise _translated(error, self.name, timeout) from error
        if description is None:
            raise WireError(Reason.INVALID_REQUEST, "The service ended OpenSession without a session")
        return checked_session(description, robot, choice.rtc)

    def predict(
        self,
        session: Session,
        reading: RobotReading,
        *,
        episode: int,
        tick: int,
        timeout: float,
        rtc_prefix: RtcPrefix | None = None,
    ) -> tuple[Reply, float, float]:
        """Returns the chunk for one observation, the seconds encoding took and the seconds the call took.

        Args:
          session: Where to send it.
          reading: The observation; only what the session asks for travels.
          episode: Episode of the observation.
          tick: Step that is next at the capture.
          timeout: Deadline in seconds.
          rtc_prefix: What the new chunk is to follow, in a session with real-time chunking.

        Raises:
          UnreachableError: No reply, or not in time. The next call dials anew.
          WireError: The service refuses or failed, with the reason.
        """
        self._sequence += 1
        started = time.monotonic()
        request = pb.PredictChunkRequest(
            session_id=session.session_id,
            sequence=self._sequence,
            episode=episode,
            tick=tick,
            state=tensors.pack(reading.state) if session.state_names else b"",
            images=list(self._encoders.map(lambda camera: self._pack(camera, reading), session.cameras)),
            rtc_prefix=rtc_prefix.to_proto() if rtc_prefix is not None else None,
        )
        encoded = time.monotonic()
        try:
            response = self._stub.PredictChunk(request, timeout=timeout)
        except grpc.RpcError as error:
            translated = _translated(error, self.name, timeout)
            if isinstance(translated, UnreachableError):
                self.redial()
            raise translated from error
        returned = time.monotonic()
        if not compare_digest(response.reply_secret, session.reply_secret):
            raise WireError(
                Reason.FOREIGN_REPLY,
                f"What answers at {self.name} is not the service that opened the session: its reply lacks the "
                "session's secret. See who listens there.",
            )
        asked, answered = ((r.sequence, r.episode, r.tick) for r in (request, response))
        if answered != asked:
            raise WireError(
                Reason.INVALID_REQUEST, f"Expected the reply to sequence, episode and tick {asked}, found {answered}"
            )
        return checked_reply(request, response, session), encoded - started, returned - encoded

    def connect(self, timeout: float) -> None:
        """Returns when the service can be reached.

        Args:
          timeout: In seconds. An attempt that takes longer is given up: the next call begins a new one.

        Raises:
          UnreachableError: It cannot.
        """
        try:
            # A call that waits, and not gRPC's own future: that one's thread fails when the channel is closed meanwhile
            self._stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            if not isinstance(_translated(error, self.name, timeout), UnreachableError):
                return  # it answers, if only to complain
            self.redial()
            raise UnreachableError(f"The service at {self.name} is out of reach: no connection comes about") from None

    def close_session(self, session: Session, *, timeout: float = 1.0) -> None:
        """Tells the service that the robot is done. A service out of reach will find out by itself."""
        self.redial()
        try:
            self._stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id), timeout=timeout)
        except grpc.RpcError as error:
            logger.info("the service was not told that the session ended: %s", _translated(error, self.name, timeout))

    def redial(self) -> None:
        """Drops the connection. A dead link can look alive for minutes; a new connection finds out at once."""
        self._channel.close()
        self._channel = _dial(self.address, self._connect_timeout)
        self._stub = PolicyServiceStub(self._channel)

    def abort(self) -> None:
        """Ends a call in flight on another thread, which raises UnreachableError there."""
        self._channel.close()

    def close(self) -> None:
        """Drops the connection for good."""
        self._encoders.shutdown()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pack(self, camera: CameraSpec, reading: RobotReading) -> pb.Image:
        return pack_frame(camera, reading.images[camera.name], self._codec, self._jpeg_quality)


def _dial(address: str, connect_timeout: float) -> grpc.Channel:
    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", limits.MAX_RESPONSE_BYTES),
            ("grpc.max_send_message_length", limits.MAX_REQUEST_BYTES),
            # The planner retries with a fresh observation; gRPC's own retries would send the stale one
            ("grpc.enable_retries", 0),
            # A call without a short deadline of its own (loading takes minutes) still notices a dead link within 10 s
            ("grpc.keepalive_time_ms", 5000),
            ("grpc.keepalive_timeout_ms", 5000),
            ("grpc.http2.max_pings_without_data", 0),
            # Its own connection: a closed channel must not leave a dead one behind for the next
            ("grpc.use_local_subchannel_pool", 1),
            # Not what its name says: how long an attempt may take
            ("grpc.min_reconnect_backoff_ms", round(connect_timeout * 1000)),
            ("grpc.initial_reconnect_backoff_ms", 100),
            # Never longer: a tunnel that is up again must not be waited for, and to ask on this machine costs nothing
            ("grpc.max_reconnect_backoff_ms", 100),
        ],
    )


def _translated(error: grpc.RpcError, name: str, timeout: float) -> UnreachableError | WireError:
    declared = from_rpc_error(error)
    if declared is not None:
        return declared
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = error.details() if isinstance(error, grpc.Call) else str(error)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LateError(f"The service at {name} did not answer within {round(timeout, 1):g} s")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return UnreachableError(f"The service at {name} is out of reach: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return WireError(
            Reason.INVALID_REQUEST, f"{name} answers, but is no Longarm policy service of this version: {details}"
        )
    return WireError(Reason.INVALID_REQUEST, f"The service at {name} answered {code.name}: {details}")
