"""The gRPC face of the service."""

import asyncio
import logging
import time
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_service import __version__, failures, requests
from longarm_service.decoding import Decoders
from longarm_service.failures import Context
from longarm_service.metrics import ServiceMetrics
from longarm_service.policy import MAIN, PolicyChoice, ServedPolicy, SessionProcessors, is_directory, resolved
from longarm_service.prediction import Job, Prediction
from longarm_service.sessions import Session, SessionTable, composed_renames
from longarm_service.settings import ServiceSettings
from longarm_service.shelf import Lease, PolicyShelf
from longarm_service.worker import Company, Workers
from longarm_wire import limits, tensors
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcConfig
from longarm_wire.specs import RobotSpec, agree

logger = logging.getLogger(__name__)

# On a GPU a batch takes little longer than one observation
DEFAULT_BATCH_SIZE = 8

# What becomes of an observation that is not answered; any other reason is "invalid"
OUTCOME_OF_REASON = {
    Reason.SUPERSEDED: "superseded",
    Reason.QUEUE_TIMEOUT: "queue_timeout",
    Reason.POLICY_FAILED: "failed",
    Reason.POLICY_RETURNED_INVALID: "failed",
    Reason.SHUTTING_DOWN: "cancelled",
}


class PolicyServicer(pb_grpc.PolicyServiceServicer, failures.HasMetrics):
    """Answers the calls of longarm.policy.v1. Runs on the event loop and never blocks it."""

    def __init__(
        self,
        settings: ServiceSettings,
        shelf: PolicyShelf,
        workers: Workers[Job, Prediction],
        sessions: SessionTable,
        metrics: ServiceMetrics,
    ) -> None:
        self.metrics = metrics
        self._settings = settings
        self._shelf = shelf
        self._workers = workers
        self._sessions = sessions
        self._openings: set[asyncio.Task[Lease]] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._decoders = Decoders(settings.obs_queue_timeout)

    def close(self) -> None:
        """Ends the decoders' threads. No call may be running any more."""
        self._decoders.close()

    async def drain(self, grace_seconds: float) -> None:
        """Refuses what begins from now on and robots that wait for a load, and lets predictions be answered.

        Returns when the last answer is out, or after grace_seconds.
        """
        self._draining = True
        for opening in self._openings:
            opening.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace_seconds)

    @failures.handler
    async def GetServiceInfo(self, _request: pb.GetServiceInfoRequest, _context: Context) -> pb.GetServiceInfoResponse:
        """See the protocol."""
        loader = self._shelf.loader
        return pb.GetServiceInfoResponse(
            service_version=__version__,
            lerobot_version=loader.library_versions.get("lerobot", "") if loader else "",
            torch_version=loader.library_versions.get("torch", "") if loader else "",
            device=loader.device if loader else "",
            device_name=loader.device_name if loader else "",
            loaded_policies=[policy.fingerprint.to_proto() for policy in self._shelf.policies],
            max_request_bytes=limits.MAX_REQUEST_BYTES,
            max_session_count=self._settings.max_session_count,
            session_count=len(self._sessions),
            waiting_count=self._workers.waiting_count,
        )

    @failures.handler
    async def OpenSession(  # type: ignore[override]  # writes to the context, where it learns that nobody listens
        self, request: pb.OpenSessionRequest, context: Context
    ) -> None:
        """See the protocol."""
        self._track_call()
        self._refuse_while_draining()
        robot = requests.check_opening(request)
        rtc = RtcConfig.from_proto(request.rtc) if request.HasField("rtc") else None
        choice = resolved(
            PolicyChoice(request.pretrained_name_or_path, request.revision, request.device, request.dtype)
        )
        self._check_allowed(choice)
        self._check_room()
        news: asyncio.Queue[pb.Progress | None] = asyncio.Queue()
        opening = asyncio.create_task(self._shelf.borrow(choice, news.put_nowait), name="open session")
        self._openings.add(opening)
        opening.add_done_callback(lambda _: news.put_nowait(None))
        session: Session | None = None
        try:
            while (progress := await news.get()) is not None:
                await context.write(pb.OpenSessionResponse(progress=progress))
            if opening.cancelled():
                self._refuse_while_draining()
            session = await self._agreed(request, robot, rtc, await opening)
            self._sessions.add(session)
        finally:
            self._openings.discard(opening)
            if session is None or session.id not in self._sessions:
                if session is not None:
                    session.processors.close()
                _give_up(opening)
        # Whoever hangs up instead of reading to the end does not know the session, and nobody would ever close it
        context.add_done_callback(lambda ended: self._close_unheard(session, ended))  # type: ignore[arg-type]
        await context.write(pb.OpenSessionResponse(session=self._described(session)))

    @failures.handler
    async def PredictChunk(self, request: pb.PredictChunkRequest, context: Context) -> pb.PredictChunkResponse:
        """See the protocol."""
        arrived = time.perf_counter()
        self._track_call()
        self.metrics.arrived()
        outcome = "failed"
        try:
            self._refuse_while_draining()
            with self._sessions.answering(request.session_id, context.peer()) as session:
                requests.check(request, session)
                # Only then in line for the policy: its thread waits for nobody's frames
                frames = await self._decoders.run(session.id, requests.decoding(request, session))
                if session.id not in self._sessions:
                    # Nor for a policy that may be gone with its last session
                    raise WireError(
                        Reason.SESSION_UNKNOWN,
                        "The session was closed while frames of it were decoded. Open a new one.",
                    )
                job = Job(request, session, frames)
                decoded = time.perf_counter() - arrived
                worker = self._workers.of(session.lease.policy)
                prediction, queued = await worker.run(session.id, job, self._company(session), decoded)
            if (early := self._settings.inference_latency - (time.perf_counter() - arrived)) > 0:
                await asyncio.sleep(early)
            response = self._answer(request, session, prediction, queued, time.perf_counter() - arrived)
            outcome = "answered"
            return response
        except WireError as error:
            outcome = OUTCOME_OF_REASON.get(error.reason, "invalid")
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.metrics.ended(outcome)

    @failures.handler
    async def ResetSession(self, request: pb.ResetSessionRequest, context: Context) -> pb.ResetSessionResponse:
        """See the protocol."""
        # Its next prediction resets the processors: they belong to the policy's thread
        self._sessions.use(request.session_id, context.peer()).episode = None
        return pb.ResetSessionResponse()

    @failures.handler
    async def CloseSession(self, request: pb.CloseSessionRequest, _context: Context) -> pb.CloseSessionResponse:
        """See the protocol."""
        self._sessions.close(request.session_id)
        return pb.CloseSessionResponse()

    def _close_unheard(self, session: Session, ended: Any) -> None:
        if ended.cancelled():
            logger.info("the robot hung up while session %s… was opened for it", session.id[:6])
            self._sessions.close(session.id)

    def _check_room(self) -> None:
        if len(self._openings) >= self._settings.max_session_count:
            raise WireError(
                Reason.TOO_MANY_SESSIONS, f"The service opens sessions for {len(self._openings)} robots already."
            )
        self._sessions.check_room()

    def _track_call(self) -> None:
        # The task that gRPC runs this call in; it ends when the answer is out
        task = asyncio.current_task()
        if task is not None:
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    def _refuse_while_draining(self) -> None:
        if self._draining:
            raise WireError(Reason.SHUTTING_DOWN, "The service is shutting down. Reconnect later.")

    def _check_allowed(self, choice: PolicyChoice) -> None:
        allowed = self._settings.allowed_policies
        name, revision = choice.pretrained_name_or_path, choice.revision
        if allowed and not is_allowed(name, (*allowed, *self._settings.preload), revision):
            raise WireError(
                Reason.POLICY_NOT_ALLOWED,
                f"The service does not serve {name!r}{f' at revision {revision!r}' if revision else ''}. It serves "
                f"{', '.join(allowed)} (allowed_policies).",
            )

    async def _agreed(
        self, request: pb.OpenSessionRequest, robot: RobotSpec, rtc: RtcConfig | None, lease: Lease
    ) -> Session:
        spec = lease.policy.spec
        if request.policy_type and request.policy_type != spec.policy_type:
            raise WireError(
                Reason.SPEC_MISMATCH,
                f"Expected a policy of type {request.policy_type!r} but {request.pretrained_name_or_path!r} is of type "
                f"{spec.policy_type!r}. Set policy_type={spec.policy_type} or leave it out.",
            )
        if rtc is not None and not spec.supports_rtc:
            raise WireError(
                Reason.RTC_UNSUPPORTED,
                f"The policy {request.pretrained_name_or_path!r} is of type {spec.policy_type!r}, which cannot do "
                "real-time chunking. Set aggregate_fn_name=latest_only, or take a policy that can, such as a smolvla, "
                "pi0 or pi05.",
            )
        renames = composed_renames(lease.policy.saved_renames, dict(request.rename_map), robot)
        # Robots and checkpoints say how many names there are to compare
        agreement = await asyncio.to_thread(agree, robot, spec, renames, request.masked_cameras)
        return Session(
            robot=robot,
            agreement=agreement,
            lease=lease,
            processors=await _processors(lease.policy, robot),
            task=request.task,
            chunk_size=min(request.actions_per_chunk or spec.chunk_size, spec.chunk_size),
            max_request_bytes=limits.max_request_bytes(agreement.cameras),
            rtc=rtc,
        )

    def _company(self, session: Session) -> Company | None:
        policy, most = session.lease.policy, self._settings.max_batch_size
        if not most:
            most = 1 if session.lease.device == "cpu" else DEFAULT_BATCH_SIZE
        if most < 2 or session.rtc is not None or not policy.takes_batches:
            return None
        return Company(id(policy), most, expected=self._sessions.sharing(session))

    def _described(self, session: Session) -> pb.SessionDescription:
        agreement = session.agreement
        idle_timeout = Duration()
        idle_timeout.FromTimedelta(timedelta(seconds=self._settings.session_idle_timeout))
        return pb.SessionDescription(
            session_id=session.id,
            fingerprint=session.lease.policy.fingerprint.to_proto(),
            action_names=session.robot.action_names,
            state_names=agreement.state_names,
            cameras=[pb.CameraSpec(name=c.name, height=c.height, width=c.width) for c in agreement.cameras],
            chunk_size=session.chunk_size,
            supports_rtc=session.lease.policy.spec.supports_rtc,
            model_action_dim=session.lease.policy.spec.model_action_dim,
            max_request_bytes=session.max_request_bytes,
            idle_timeout=idle_timeout,
            reply_secret=session.reply_secret,
            notes=agreement.notes,
            n_action_steps=session.lease.policy.spec.n_action_steps,
            temporal_ensemble_coeff=session.lease.policy.spec.temporal_ensemble_coeff,
        )

    def _answer(
        self, request: pb.PredictChunkRequest, session: Session, prediction: Prediction, queued: float, total: float
    ) -> pb.PredictChunkResponse:
        durations = {"queue": queued, **prediction.durations, "total": total}
        for stage, seconds in durations.items():
            self.metrics.took(stage, seconds)
        return pb.PredictChunkResponse(
            sequence=request.sequence,
            episode=request.episode,
            tick=request.tick,
            step_count=len(prediction.actions),
            actions=tensors.pack(prediction.actions),
            model_actions=b"" if prediction.model_actions is None else tensors.pack(prediction.model_actions),
            durations=pb.ServerDurations(**{f"{stage}_duration": _duration(s) for stage, s in durations.items()}),
            reply_secret=session.reply_secret,
        )


def is_allowed(name: str, patterns: tuple[str, ...], revision: str = "") -> bool:
    """Returns whether one of patterns allows name at revision, empty for the main one.

    A directory is judged by where it really lies, so that "/models/../etc" is no way around "/models/*". Anybody may
    propose a revision of a model on the hub, so that one is allowed by a pattern of its own.
    """
    if not is_directory(name):
        asked = f"{name}@{revision or MAIN}"
        return any(fnmatchcase(asked, pattern if "@" in pattern else f"{pattern}@{MAIN}") for pattern in patterns)
    real = str(Path(name).resolve())
    # A relative pattern may be meant for directories, so it is also read from the working directory
    return any(fnmatchcase(real, pattern) or fnmatchcase(real, str(Path.cwd() / pattern)) for pattern in patterns)


async def _processors(policy: ServedPolicy, robot: RobotSpec) -> SessionProcessors:
    """Opens processors for a robot, and closes them again if it hangs up meanwhile."""
    # Reads files, a tokenizer's among them, and cannot be interrupted
    opening = asyncio.create_task(asyncio.to_thread(policy.open_processors, robot.action_names), name="processors")
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_opened)
        raise


def _close_opened(opening: asyncio.Task[SessionProcessors]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _give_up(opening: asyncio.Task[Lease]) -> None:
    """Releases the lease that opening has brought or will not bring any more."""
    if not opening.done():
        opening.cancel()
    elif not opening.cancelled() and opening.exception() is None:
        opening.result().release()


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
