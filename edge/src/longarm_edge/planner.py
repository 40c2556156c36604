"""The planner: decides when a fresh chunk is wanted, and gets it, on a thread of its own."""

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from longarm_edge.action_queue import ActionChunk, ActionQueue, Drop
from longarm_edge.answers import SERVER_STAGES, Reply, Session
from longarm_edge.backoff import Backoff
from longarm_edge.guard import RejectedChunkError, check_chunk
from longarm_edge.link import Link
from longarm_edge.metrics import Observation, Reconnect, Stage
from longarm_edge.observation_filter import ObservationFilter, look_at
from longarm_edge.outcomes import FATAL_AT_REOPEN, OUTCOMES
from longarm_edge.pace import Pace
from longarm_edge.patience import Patience
from longarm_edge.policy_client import LateError, PolicyClient, UnreachableError
from longarm_edge.repeats import Repeats
from longarm_edge.replan import Replanner, RoundTrips
from longarm_edge.robot import CameraError, Observed, RobotReading
from longarm_edge.rtc import RealTimeChunking
from longarm_edge.schedule import Clock
from longarm_edge.trace import RequestRecord, Trace
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcPrefix

logger = logging.getLogger(__name__)

# Seconds for the thread to end, once nothing but the robot can keep it
HANG_SECONDS = 2.0
# Answers after which it is said that they are slow: the first ones pay for what comes once
ANSWERS_TO_JUDGE_BY = 3
# Observations that fail, one after another, until nothing more is sent: one alone is a stutter
UNSEEN_TO_STOP = 2
# Longest pause after a failure, in seconds: an arm that stands still wants the link back soon
PAUSE_CAP = 0.8


@dataclass
class Planner:
    """Keeps the action queue filled.

    Attributes:
      robot: Gives observations.
      client: Reaches the service.
      reopen: Opens the session anew; raises as PolicyClient.open_session does.
      queue: Gets the actions.
      replanner: Says when a chunk is wanted.
      observation_filter: Says which observations are worth a request.
      link: Learns what was seen of the link.
      trace: Records every observation.
      clock: Tells the time.
      fps: Ticks per second.
      actions_per_chunk: What the setting limits a chunk to; 0: nothing.
      request_timeout: Longest deadline of a prediction in seconds.
      wait_for_tick: Returns True after the next tick's command is out, False if none was within so many seconds.
      rtc: Makes chunks follow each other, for a session that was opened with it.
      hindrance: Says why nothing may be asked of the service now; nothing if it may.
      found: Told what is seen of an arm that could not be seen for a while, before it is told anything new. Raises if
        that is not to be believed.
      seen: Told each observation; returns where the arm is seen in it as a command, None where that is not known.
      unseen: How many observations failed, one after another, that were no camera's.
    """

    robot: Observed
    client: PolicyClient
    session: Session
    reopen: Callable[[], Session]
    queue: ActionQueue
    replanner: Replanner
    observation_filter: ObservationFilter
    link: Link
    trace: Trace
    clock: Clock
    fps: float
    actions_per_chunk: int
    request_timeout: float
    wait_for_tick: Callable[[float], bool]
    rtc: RealTimeChunking | None = None
    hindrance: Callable[[], str] = lambda: ""
    found: Callable[[RobotReading], None] = lambda _: None
    seen: Callable[[RobotReading], np.ndarray | None] = lambda _: None
    unseen: int = 0
    round_trips: RoundTrips = field(default_factory=RoundTrips)
    first_chunk: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _nudged: threading.Event = field(default_factory=threading.Event)
    _patience: Patience = field(init=False)
    _backoff: Backoff = field(default_factory=lambda: Backoff(cap=PAUSE_CAP))
    _repeats: Repeats = field(default_factory=Repeats)
    _rested_since: float = -math.inf
    _slow_answers: int = 0
    _slowness_told: bool = False
    _unreachable: bool = False
    _session_unknown: bool = False

    def __post_init__(self) -> None:
        self._patience = Patience(self.request_timeout)

    def start(self) -> None:
        """Begins to plan."""
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Asks planning to end and returns at once. No chunk is merged after the one being merged now."""
        self._stopping.set()
        self._nudged.set()

    def nudge(self) -> None:
        """Ends a pause after a failure: there is reason to believe that the next try succeeds."""
        self._nudged.set()

    def close(self) -> None:
        """Ends planning, a call in flight included, and tells the service that the session is over.

        A robot that hangs in an observation is not waited for.
        """
        self.stop()
        if self._thread is not None:
            self._thread.join(0.2)
            self.client.abort()
            self._thread.join(HANG_SECONDS)
        self.client.close_session(self.session)

    @property
    def warm_up_timeout(self) -> float:
        """Deadline of warm_up in seconds."""
        return max(30.0, self.request_timeout)

    def warm_up(self) -> None:
        """Sends one observation and throws its chunk away, so that what only the first one costs is no latency.

        Raises as PolicyClient.predict does, and RejectedChunkError.
        """
        reading = self.robot.observe()
        reply, _, call_seconds = self.client.predict(
            self.session, reading, episode=self.queue.episode, tick=0, timeout=self.warm_up_timeout
        )
        self._check(reply)
        # An episode of its own: a policy that remembers forgets it
        self.queue.begin_episode()
        # What comes once, such as compiling, may take longer than any answer is waited for
        self.link.answers_take(min(call_seconds, self.request_timeout))

    def _check(self, reply: Reply) -> None:
        """Returns if reply may be executed. Raises RejectedChunkError."""
        check_chunk(reply.actions, self.session.action_dim)
        if reply.model_actions is not None:
            check_chunk(reply.model_actions, self.session.model_action_dim)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self.first_chunk.is_set() and not self.wait_for_tick(2 / self.fps):
                # The loop has not begun, or a call to the robot hangs: what is seen then belongs to no step for sure
                continue
            try:
                self._step()
            except Exception as error:
                if self._stopping.is_set():  # the channel was closed under a call
                    return
                # An exception nobody foresaw must not leave the loop without a planner and without a word
                logger.exception("the planner failed")
                self.link.fail(f"The planner failed: {error}")
                return

    def _step(self) -> None:
        """Gets one chunk if one is wanted."""
        now = self.clock.now()
        if (self._unreachable and not self._connect()) or (self._session_unknown and not self._reopen()):
            return
        playback_left = self.queue.playback_left(now, self.fps)
        rested = now - self._rested_since
        if not self.replanner.wants(
            self.queue.depth(), self.session.chunk_size, playback_left, self.round_trips, rested
        ):
            return
        p95 = self.round_trips.p95()
        self.link.asking(now)
        if not self._may_ask():
            return
        outlook = self.queue.outlook()
        captured_at = self.clock.now()
        try:
            reading = self.robot.observe()
            if self.unseen >= UNSEEN_TO_STOP:
                self.found(reading)
        except Exception as error:  # noqa: BLE001  # whatever a robot raises: a bus that stutters may answer next time
            if self._stopping.is_set():  # it was us who let go of it
                return
            self._not_seen(error)
            return
        self.unseen = 0
        seen = self.seen(reading)
        observed = self.clock.now()
        self.link.observed()
        if reading.captured_at is not None:  # it was shared, and is a little older than this question
            captured_at = reading.captured_at
        look = look_at(reading.state, reading.images)
        urgent = self.replanner.urgent(playback_left, p95)
        redundant = not urgent and self.observation_filter.is_redundant(look)
        filtered = self.clock.now()
        if redundant:
            self._rested_since = filtered
            self.link.idle()
            self.trace.observation(Observation.FILTERED)
            return
        # What went out before the motors were read is behind the observation
        coming = outlook.coming[max(0, reading.step - outlook.step) :]
        prefix = self.rtc.prefix(coming, p95) if self.rtc is not None else None
        answer = self._predict(reading, outlook.episode, reading.step, prefix)
        if answer is None or self._stopping.is_set():
            return
        reply, encode_seconds, call_seconds = answer
        try:
            self._check(reply)
        except RejectedChunkError as error:
            self._failed(Observation.REJECTED, str(error))
            return
        merging = self.clock.now()
        chunk = ActionChunk(
            outlook.epoch,
            reply.episode,
            reply.sequence,
            reading.step,
            captured_at,
            reply.actions,
            reply.model_actions,
            seen,
        )
        lost = self.queue.merge(chunk, merging)
        merged = self._rested_since = self.clock.now()
        self.round_trips.add(merged - captured_at)
        self._patience.answered(call_seconds, max(0.0, call_seconds - reply.server_total_seconds))
        self._judge_pace()
        if lost is not None:
            self.link.reached()
            self.trace.observation(Observation.STALE)
            if lost is Drop.EXPIRED:
                self._too_old(merging - captured_at)
            return
        self.observation_filter.answered(look)
        self.link.chunk_arrived()
        self._backoff.reset()
        self._repeats.forget()
        self.trace.answered(
            RequestRecord(
                at=merged,
                latency=merged - captured_at,
                stages={
                    Stage.CAPTURE: observed - captured_at,
                    Stage.FILTER: filtered - observed,
                    Stage.ENCODE: encode_seconds,
                    Stage.NETWORK: max(0.0, call_seconds - reply.server_total_seconds),
                    **{Stage(f"server_{stage}"): reply.server_seconds[stage] for stage in SERVER_STAGES},
                    Stage.MERGE: merged - merging,
                },
            )
        )
        self.first_chunk.set()

    def _judge_pace(self) -> None:
        """Lets the link know what answers take, and says once if the arm has to stand between them."""
        trips, age, limit = self.round_trips, self.queue.max_action_age, self.actions_per_chunk
        typical, slowest, usual = trips.typical(), trips.slow_ones(), trips.p95()
        assert typical is not None and slowest is not None and usual is not None, "an answer comes first"  # noqa: S101, PT018
        pace = Pace(typical, slowest, self.session.chunk_size, limit, self.fps, age)
        self.link.answers_take(usual, slow=pace.slow)
        self._slow_answers = self._slow_answers + 1 if pace.slow else 0
        if self._slow_answers == ANSWERS_TO_JUDGE_BY and not self._slowness_told:
            self._slowness_told = True
            logger.warning("%s", pace.advice())

    def _too_old(self, age: float) -> None:
        """Nothing of an answer may be executed, though it came."""
        message = (
            f"An answer came {age:.2f} s after its observation, and actions older than "
            f"safety.max_action_age={self.queue.max_action_age:g} s are not executed. What would help: a faster GPU, "
            "one nearer by, or a larger safety.max_action_age"
        )
        self.link.trouble(message)
        self._say(message)

    def _predict(
        self, reading: RobotReading, episode: int, step: int, prefix: RtcPrefix | None
    ) -> tuple[Reply, float, float] | None:
        self.trace.sent(self.clock.now())
        timeout = self._patience.deadline()
        try:
            answer = self.client.predict(
                self.session, reading, episode=episode, tick=step, timeout=timeout, rtc_prefix=prefix
            )
        except UnreachableError as error:
            if not self._stopping.is_set():  # else it was us who hung up
                self._patience.lost()
                self._lost(error, timeout)
                self.trace.observation(Observation.LOST)
            return None
        except WireError as error:
            self.link.reached()
            if error.reason is Reason.SESSION_UNKNOWN:
                self.trace.observation(Observation.LOST)
                self._session_unknown = True
            else:
                self._failed(OUTCOMES.get(error.reason, Observation.FAILED), f"{error.reason}: {error}")
            return None
        self.trace.bytes_moved(answer[0].sent_bytes, answer[0].received_bytes)
        if self._unreachable:
            self._unreachable = False
            self.trace.reconnected(Reconnect.UNREACHABLE)
            logger.info("the service is within reach again")
        return answer

    def _may_ask(self) -> bool:
        """Waits a moment for what hinders to be over, and returns whether it is."""
        self._nudged.clear()
        if self._stopping.is_set():
            return False
        if why := self.hindrance():
            self.link.unreachable(why)
            self._disconnected()
            self._nudged.wait(PAUSE_CAP)
        return not self._stopping.is_set() and not self.hindrance()

    def _connect(self) -> bool:
        """Waits for a connection, so that nothing is captured that is old when it stands. Returns whether it does."""
        try:
            self.client.connect(self._patience.connect_seconds())
        except UnreachableError as error:
            self.link.unreachable(self.hindrance() or str(error))
            self._say(str(error))
            return False
        self.link.reached()
        return not self._stopping.is_set()

    def _lost(self, error: UnreachableError, timeout: float = 0.0) -> None:
        message = str(error)
        # Lost before, and found again just before this try: _connect saw to it
        if self._unreachable and isinstance(error, LateError) and timeout >= self.request_timeout:
            message += (
                f", though it is within reach. request_timeout={self.request_timeout:g} s is the longest wait: if the "
                "policy takes longer, raise it"
            )
            self.link.trouble(message)
        else:
            self.link.unreachable(message)
        self._disconnected()
        self._pause(message)

    def _disconnected(self) -> None:
        """The connection is gone: its replies belong to the past."""
        self._unreachable = True
        self.queue.begin_epoch()

    def _reopen(self) -> bool:
        """Opens the session anew. Returns whether it is open."""
        self.link.trouble("The service has lost the session, and loads the policy")
        try:
            session = self.reopen()
        except UnreachableError as error:
            self._lost(error)
            return False
        except WireError as error:
            self.link.reached()
            if error.reason in FATAL_AT_REOPEN:
                self.link.fail(f"The service came back and refuses: {error}")
                self._stopping.set()
            else:
                self.link.trouble(str(error))
                self._pause(str(error))
            return False
        if session.fingerprint != self.session.fingerprint:
            self.link.fail(_changed(self.session, session))
            self._stopping.set()
            return False
        self.session = session
        self._session_unknown = False
        self.queue.begin_epoch()
        self.observation_filter.forget()
        self.trace.reconnected(Reconnect.SESSION_UNKNOWN)
        logger.info("the service had forgotten the session: it is open again")
        return True

    def _not_seen(self, error: Exception) -> None:
        if not isinstance(error, CameraError):
            self.unseen += 1
            if self.unseen == UNSEEN_TO_STOP:
                # A bus that does not answer may not listen either: the plan would run away from the arm
                self.queue.expire()
        self._failed(Observation.UNREADABLE, f"The robot gave no observation: {error}")

    def _failed(self, outcome: Observation, message: str) -> None:
        self.trace.observation(outcome)
        self.link.trouble(message)
        self._pause(message)

    def _pause(self, message: str) -> None:
        """Says what went wrong and waits so that a broken peer is not hammered."""
        self._say(message)
        seconds = self._backoff.next()
        self._nudged.clear()
        if not self._stopping.is_set():
            self._nudged.wait(seconds)

    def _say(self, message: str) -> None:
        if self._repeats.lets_through(message):
            logger.warning("%s (trying again)", message)


def _changed(before: Session, after: Session) -> str:
    return (
        f"The service came back with another policy. Expected {before.fingerprint.policy_type} "
        f"{before.fingerprint.pretrained_name_or_path} (digest {before.fingerprint.digest[:12]}) but found "
        f"{after.fingerprint.policy_type} {after.fingerprint.pretrained_name_or_path} "
        f"(digest {after.fingerprint.digest[:12]}). Restart the edge if that is meant."
    )
