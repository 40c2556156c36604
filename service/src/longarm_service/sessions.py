"""Open sessions: one robot's use of one loaded policy."""

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from longarm_service.line import Clock
from longarm_service.metrics import ServiceMetrics
from longarm_service.policy import SessionProcessors
from longarm_service.shelf import Lease
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcConfig
from longarm_wire.specs import IMAGES_PREFIX, Agreement, RobotSpec

logger = logging.getLogger(__name__)

# Idle for so long, a session makes room for another where there is none
SPARED_SECONDS = 30.0
# Of an id that there is not, a message shows so much
SHOWN_CHARACTERS = 32


@dataclass(eq=False)
class Session:
    """One robot's use of one policy.

    Attributes:
      robot: What the robot has.
      agreement: How its observations become the policy's.
      lease: Keeps the policy in memory.
      processors: The session's own.
      task: Instruction unless a request carries another.
      chunk_size: Most actions to answer with.
      max_request_bytes: Largest request.
      rtc: Settings of real-time chunking; None to not use it.
      episode: Episode of the last prediction. None before the first and after a reset.
      peer: The connection that it was used over last, as gRPC names it.
      unanswered: Observations that it waits for the answer of.
      id: Cannot be guessed.
      reply_secret: Goes with every answer and with no request. Cannot be guessed.
    """

    robot: RobotSpec
    agreement: Agreement
    lease: Lease
    processors: SessionProcessors
    task: str
    chunk_size: int
    max_request_bytes: int
    rtc: RtcConfig | None = None
    episode: int | None = None
    peer: str = ""
    unanswered: int = 0
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    reply_secret: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)


class SessionTable:
    """Knows the open sessions and forgets the idle ones."""

    def __init__(
        self,
        max_count: int,
        idle_timeout_seconds: float,
        metrics: ServiceMetrics,
        clock: Clock = time.monotonic,
    ) -> None:
        self._max_count = max_count
        self._idle_timeout_seconds = idle_timeout_seconds
        self._metrics = metrics
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._last_used: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def knows(self, peer: str) -> bool:
        """Returns whether peer is a connection that a session was used over last."""
        return any(session.peer == peer for session in self._sessions.values())

    def check_room(self) -> None:
        """Raises WireError(TOO_MANY_SESSIONS) if no session may be opened."""
        self.expire()
        if len(self._sessions) >= self._max_count and self._spared() is None:
            raise WireError(
                Reason.TOO_MANY_SESSIONS, f"The service has {self._max_count} sessions open (max_session_count)."
            )

    def add(self, session: Session) -> None:
        """Opens session, in the place of one that can be spared if there is no other.

        Raises:
          WireError: TOO_MANY_SESSIONS.
        """
        self.check_room()
        if len(self._sessions) >= self._max_count and (spared := self._spared()) is not None:
            logger.info("session %s… was idle for %g s or longer and makes room", spared[:6], SPARED_SECONDS)
            self.close(spared)
        self._sessions[session.id] = session
        self._last_used[session.id] = self._clock()
        self._metrics.sessions.set(len(self._sessions))

    def _spared(self) -> str | None:
        """Returns the session idle for longest, if it was for SPARED_SECONDS: a robot that runs asks more often, and
        one whose program died cannot close what it opened."""
        return max(self._idle(SPARED_SECONDS), key=lambda item: item[1], default=(None, 0.0))[0]

    def _idle(self, seconds: float) -> list[tuple[str, float]]:
        """Returns the sessions idle for so long, and for how long each. One that waits for an answer is not idle."""
        now = self._clock()
        return [
            (session_id, now - used)
            for session_id, used in self._last_used.items()
            if now - used >= seconds and not self._sessions[session_id].unanswered
        ]

    def use(self, session_id: str, peer: str) -> Session:
        """Returns the session, which is used over the connection peer, and counts as a sign of life.

        Raises:
          WireError: SESSION_UNKNOWN.
        """
        self.expire()
        session = self._sessions.get(session_id)
        if session is None:
            raise WireError(
                Reason.SESSION_UNKNOWN,
                f"There is no session {session_id[:SHOWN_CHARACTERS]!r}: the service restarted, or the session was "
                f"closed or idle for {self._idle_timeout_seconds:g} s. Open a new one.",
            )
        if (failure := session.lease.policy.failure) is not None:
            self.close(session_id)
            raise WireError(Reason.SESSION_UNKNOWN, f"The policy of this session is gone. {failure} Open a new one.")
        self._last_used[session_id] = self._clock()
        session.peer = peer
        return session

    @contextlib.contextmanager
    def answering(self, session_id: str, peer: str) -> Iterator[Session]:
        """Gives the session, as use does, which is not idle before the end, however long the answer takes."""
        session = self.use(session_id, peer)
        session.unanswered += 1
        try:
            yield session
        finally:
            session.unanswered -= 1
            if session.id in self._sessions:
                self._last_used[session.id] = self._clock()

    def sharing(self, session: Session) -> int:
        """Returns how many open sessions use the policy of session in the same way, itself included."""
        return sum(
            other.lease.policy is session.lease.policy and other.rtc == session.rtc for other in self._sessions.values()
        )

    def close(self, session_id: str) -> None:
        """Ends a session. An unknown one is closed already."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            del self._last_used[session_id]
            session.processors.close()
            session.lease.release()
            self._metrics.sessions.set(len(self._sessions))

    def expire(self) -> None:
        """Closes sessions that were idle for too long."""
        for session_id, seconds in self._idle(self._idle_timeout_seconds):
            logger.info("session %s… was idle for %g s and is closed", session_id[:6], seconds)
            self.close(session_id)


def composed_renames(saved: Mapping[str, str], asked: Mapping[str, str], robot: RobotSpec) -> dict[str, str]:
    """Returns the rename_map for a session: what the robot asks for, over what the checkpoint was trained with.

    LeRobot's own server lets the one replace the other, even by nothing (a checkpoint trained with a rename_map then
    finds none of its cameras). Entries of the checkpoint that the robot has no camera for play no part, nor those whose
    target another camera has: one that the robot names so, or that is renamed to it.
    """
    cameras = {IMAGES_PREFIX + camera.name for camera in robot.cameras}
    kept = {old: new for old, new in saved.items() if old in cameras and old not in asked and old != new}
    # A name is free once its camera is renamed, so names may change places; an entry that falls takes its name back
    while taken := [
        old
        for old, new in kept.items()
        if new in asked.values() or (new in cameras and new not in kept and new not in asked)
    ]:
        for old in taken:
            del kept[old]
    return {**kept, **asked}
