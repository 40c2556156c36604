"""One run: everything is put together here, started in order, and taken apart in the reverse order whatever happens."""

import gc
import logging
import math
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry
from rich.console import Console

from longarm_edge import as_configured
from longarm_edge import console as terminal
from longarm_edge.action_queue import ActionQueue
from longarm_edge.answers import Session
from longarm_edge.arm import CONNECT_SECONDS, Arm
from longarm_edge.aside import aside, looked_after
from longarm_edge.backoff import Backoff
from longarm_edge.control import ControlLoop, TickSignal
from longarm_edge.guard import RejectedChunkError
from longarm_edge.link import HEALTHY, Link, LinkState
from longarm_edge.metrics import MOVING, EdgeMetrics
from longarm_edge.motion import Motion
from longarm_edge.observation_filter import ObservationFilter
from longarm_edge.observer import CAPTURES_SHARED, Observer, SharedView
from longarm_edge.planner import PAUSE_CAP, Planner
from longarm_edge.policy_client import PASSING_REASONS, PolicyChoice, PolicyClient, UnreachableError
from longarm_edge.priority import ahead_of_others
from longarm_edge.replan import Replanner
from longarm_edge.report import Summary, summarize
from longarm_edge.robot import Observed, Robot, RobotReading
from longarm_edge.rtc import RealTimeChunking
from longarm_edge.schedule import Clock
from longarm_edge.settings import EdgeSettings
from longarm_edge.stop import CALL_SECONDS, Interrupted, Signals
from longarm_edge.supervision import Supervision
from longarm_edge.trace import Trace
from longarm_edge.tunnel import Event, PermanentTunnelError, State, StateChanged, Tunnel, TunnelError
from longarm_edge.tunnel.metrics import TunnelMetrics
from longarm_edge.tunnel.terminal import asker
from longarm_edge.watchers import Watchers
from longarm_wire import exit_codes
from longarm_wire.errors import WireError
from longarm_wire.http import HttpEndpoint, not_listening
from longarm_wire.notify import Notifier
from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)

# A thread that wants the interpreter gets it after this long; the default of 5 ms would make ticks late
SWITCH_INTERVAL = 0.0005


class RunFailedError(Exception):
    """The run ended before it was meant to; the message says why and what to do."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: an exit code, why, and what it was like."""

    exit_code: int
    reason: str
    summary: Summary


@dataclass
class Run:
    """One run of one robot.

    Attributes:
      settings: How.
      robot: What moves; not yet connected.
      console: Where a person looks.
      clock: Tells the time.
      notifier: Reaches the service manager; silent by default.
    """

    settings: EdgeSettings
    robot: Robot
    console: Console
    clock: Clock
    notifier: Notifier = field(default_factory=lambda: Notifier({}))

    def __post_init__(self) -> None:
        """Builds the parts, all of them still at rest.

        Raises:
          ConfigurationError: A setting does not fit the robot, or a port is taken.
        """
        settings, spec = self.settings, self.robot.spec
        if not settings.pretrained_name_or_path:
            raise ConfigurationError(
                ["No policy is named. Pass --pretrained_name_or_path=… or set LONGARM_EDGE_PRETRAINED_NAME_OR_PATH."]
            )
        self._motion = Motion.plan(self.robot, settings.safety)
        self.metrics = EdgeMetrics(CollectorRegistry())
        self.trace = Trace(self.metrics)
        self.queue = ActionQueue(settings.safety.max_action_age)
        self.link = Link(settings.safety.max_offline)
        self.metrics.watch(
            queue_depth=self.queue.depth,
            observation_fps=lambda: self.trace.observation_fps(self.clock.now()),
            jerk=lambda: self.trace.jerk(self.clock.now()),
            link=self.link_state,
            drops=lambda: self.queue.drops,
        )
        self._supervision = Supervision(self.notifier, self.link_state, self.clock)
        self._planner: Planner | None = None
        self._loop: ControlLoop | None = None
        self._arm: Arm | None = None
        self._watchers = Watchers(settings, spec, self.trace)
        self.tunnel = self._make_tunnel()
        try:
            self.endpoint = HttpEndpoint(
                settings.metrics_host, settings.metrics_port, self.metrics.registry, {"/healthz": self._healthz}
            )
        except OSError as error:
            raise ConfigurationError([not_listening(error, "LONGARM_EDGE_METRICS")]) from error

    def __call__(self) -> RunResult:
        """Runs until the duration is over, a signal, or a failure. The arm is left by rule in every case.

        Raises:
          ConfigurationError: The service refuses: robot and policy do not fit, say. Nothing moved.
        """
        reason, code = "it cannot start as configured", exit_codes.FAILED
        try:
            with Signals() as signals, ExitStack() as stack:
                try:
                    reason, code = self._run(signals, stack), exit_codes.DONE
                except (RunFailedError, ConnectionError) as error:
                    # A changed host key, say: a supervisor must not try again and again
                    final = self.tunnel is not None and self.tunnel.failure is not None
                    reason, code = str(error), exit_codes.CANNOT_START if final else exit_codes.FAILED
                except ConfigurationError:
                    raise
                except Interrupted as error:
                    reason, code = f"interrupted by {error}", exit_codes.INTERRUPTED
                except Exception as error:
                    # Whatever a robot's driver raises: the arm is left by rule on the way out
                    reason, code = f"{type(error).__name__}: {error}", exit_codes.FAILED
                    logger.exception("the run failed")
                finally:
                    # Whoever presses Ctrl-C now still gets the summary
                    signals.patience = signals.count + 1
                    self._supervision.stopping(reason)
        except ConfigurationError as error:
            if self._arm is not None and self._arm.problem is not None:
                raise ConfigurationError([*error.problems, self._arm.problem]) from error
            raise
        except Interrupted as error:
            # Impatient with what is taken apart: the arm was left by rule in any case
            reason, code = f"interrupted by {error}", code or exit_codes.INTERRUPTED
        if self._watchers.problem is not None and code == exit_codes.DONE:
            reason, code = self._watchers.problem, exit_codes.FAILED
        if self._arm is not None and self._arm.problem is not None:
            stop = "" if reason.endswith((".", "!", "?")) else "."
            reason, code = f"{reason}{stop} {self._arm.problem}", code or exit_codes.FAILED
        return RunResult(code, reason, summarize(self.trace, self.queue.drops, self.settings.fps))

    def link_state(self) -> LinkState:
        """Returns how the link stands now."""
        now = self.clock.now()
        if self._loop is not None and self._loop.stuck_for(now) and self.link.failure(now) is None:
            return LinkState.STALLED
        fps, last = self.settings.fps, self.trace.ticks[-1] if self.trace.ticks else None
        # Where chunks are short the queue is empty between its last action and the next chunk, and the arm moves
        moves = last is not None and last.outcome in MOVING
        return self.link.state(now, self.queue.playback_left(now, fps) or moves / fps)

    def _make_tunnel(self) -> Tunnel | None:
        observer = TunnelMetrics(self.metrics.registry)
        if not self.settings.ssh.host:
            return None
        try:
            return Tunnel(self.settings.ssh, ask=asker(), observers=(observer, self._on_tunnel_event))
        except PermanentTunnelError as error:
            raise ConfigurationError([str(error)]) from error

    def _on_tunnel_event(self, event: Event) -> None:
        if isinstance(event, StateChanged) and event.state is State.UP and self._planner is not None:
            self._planner.nudge()

    def _run(self, signals: Signals, stack: ExitStack) -> str:
        settings = self.settings
        stack.enter_context(self.endpoint)
        self._watchers.start(stack)
        address = self._open_tunnel(stack)
        name = self.tunnel.leads_to if self.tunnel is not None else ""
        client = PolicyClient(
            address,
            settings.image_codec,
            settings.jpeg_quality,
            name=name,
            connect_timeout=settings.connect_timeout,
        )
        stack.callback(client.close)
        session = self._open_session(client, signals)
        logger.info(
            "session open: %s from %s, chunks of %d, cameras %s",
            session.fingerprint.policy_type,
            session.fingerprint.pretrained_name_or_path,
            session.chunk_size,
            ", ".join(f"{c.name} {c.width}x{c.height}" for c in session.cameras) or "none",
        )
        for note in session.notes:
            logger.warning("%s", note)
        self.queue.merging = as_configured.merging(session, settings, self.robot.spec.action_names)
        if remark := as_configured.remark(session, settings):
            logger.info("%s", remark)
        signal = TickSignal()

        def after_tick() -> None:
            signal.give()
            self._supervision.beat()

        arm = self._arm = Arm(self.robot, self._motion, settings.fps, self.clock, signals)
        view = SharedView(
            self.robot,
            self.clock,
            settings.fps,
            next_tick=lambda: arm.loop.next_tick if arm.loop else 0,
            next_step=lambda: arm.loop.next_step if arm.loop else 0,
            kept=CAPTURES_SHARED if self._watchers.sinks else 1,
        )
        sinks = self._watchers.sinks
        observer = Observer(view, self.clock, sinks, self._latency) if sinks else None
        planner = self._planner = self._make_planner(client, session, signal, view, arm)
        arm.heard = lambda: planner.unseen == 0
        # Taken apart in reverse: no more chunks, then the arm at once, then whatever still hangs on the network
        stack.callback(planner.close)
        if observer is not None:
            stack.callback(observer.close)
        stack.callback(arm.leave)
        stack.callback(planner.stop)
        if observer is not None:
            stack.callback(observer.stop)
        signals.check()
        try:
            self._watchers.await_ready(self.clock, signals.check)
        except TimeoutError as error:
            raise RunFailedError(str(error)) from error
        self._supervision.starting("connecting to the robot", CONNECT_SECONDS)
        pose = arm.connect()
        self._supervision.starting("waiting for the first chunk", settings.safety.max_offline + planner.warm_up_timeout)
        try:
            looked_after(aside(planner.warm_up, "warm-up"), signals.check)
        except (UnreachableError, WireError, RejectedChunkError) as error:
            raise RunFailedError(f"The first prediction failed: {error}") from error
        loop = ControlLoop(
            robot=self.robot,
            queue=self.queue,
            motion=self._motion,
            trace=self.trace,
            clock=self.clock,
            fps=settings.fps,
            last_command=pose,
            after_tick=after_tick,
            stop_reason=lambda now: self._stop_reason(now, signals),
        )
        arm.loop = self._loop = loop
        if observer is not None:
            loop.executed = observer.executed
        planner.start()
        while not planner.first_chunk.wait(0.05):
            signals.check()
            if failure := self.link.failure(self.clock.now()):
                raise RunFailedError(failure)
        # What was made so far stays: the collector need not walk it in the middle of a tick
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_INTERVAL)
        signals.patience = 1
        max_ticks = round(settings.duration * settings.fps) if settings.duration else None
        with terminal.StatusLine(self.console, self._status):
            reason = self._drive(loop, observer, max_ticks, signals)
        if failure := self.link.failure(self.clock.now()):
            raise RunFailedError(failure)
        return reason

    def _drive(self, loop: ControlLoop, observer: Observer | None, max_ticks: int | None, signals: Signals) -> str:
        """Runs the loop on a thread of its own and returns why it ended. This one stays free for signals.

        Raises:
          RunFailedError: The robot hangs, and a signal came or max_offline is over.
          Exception: Whatever the robot's driver raises.
        """

        def drive() -> str:
            if observer is not None:
                observer.start()
            with ahead_of_others() as priority:
                logger.debug("control loop: %s", priority)
                return loop.run(max_ticks)

        asked_at = math.inf

        def look() -> None:
            nonlocal asked_at
            signals.check()
            now = self.clock.now()
            asked_at = min(asked_at, now) if signals.count else asked_at
            if now - asked_at > CALL_SECONDS:
                raise RunFailedError(f"stopped by {signals.last} while a call to the robot did not return")
            if loop.stuck_for(now) > self.settings.safety.max_offline:
                raise RunFailedError(
                    f"A call to the robot has not returned for max_offline={self.settings.safety.max_offline:g} s. "
                    "Check its power, its bus and its cable."
                )
            # The loop sees this too, unless it never came to its first tick
            if failure := self.link.failure(now):
                raise RunFailedError(failure)

        return looked_after(aside(drive, "control"), look)

    def _open_tunnel(self, stack: ExitStack) -> str:
        """Opens the tunnel if there is to be one, and returns the address that leads to the service."""
        if self.tunnel is None:
            return self.settings.server_address
        stack.enter_context(self.tunnel)
        self._supervision.starting("opening the tunnel", self.settings.connect_timeout)
        try:
            self.tunnel.open(self.settings.connect_timeout)
        except PermanentTunnelError as error:
            raise ConfigurationError([f"The tunnel cannot be opened ({error.cause}): {error}"]) from error
        except TunnelError as error:
            raise RunFailedError(f"{error} ({error.cause})") from error
        if self.tunnel.metrics_address:
            logger.info("tunnel to %s: service metrics at %s", self.settings.ssh.host, self.tunnel.metrics_address)
        return self.tunnel.address

    def _open_session(self, client: PolicyClient, signals: Signals) -> Session:
        """Opens the session, waiting for a service that is not there yet."""
        settings = self.settings
        give_up_at = self.clock.now() + settings.connect_timeout
        self._supervision.starting("opening a session", settings.connect_timeout + settings.load_timeout)
        backoff = Backoff(cap=PAUSE_CAP)
        with terminal.opening(self.console, "session") as on_progress:
            while True:
                signals.check()
                try:
                    return self._open(client, on_progress)
                except UnreachableError as error:
                    if self.clock.now() >= give_up_at:
                        raise RunFailedError(
                            f"{error}. Gave up after connect_timeout={settings.connect_timeout:g} s. Is the service "
                            f"running, and does {client.name} lead to it?"
                        ) from error
                    logger.debug("%s", error)
                    client.redial()
                    time.sleep(backoff.next())
                except WireError as error:
                    if error.reason in PASSING_REASONS and self.clock.now() < give_up_at:
                        time.sleep(backoff.next())
                        continue
                    raise ConfigurationError([f"The service refuses ({error.reason}): {error}"]) from error

    def _open(self, client: PolicyClient, on_progress: terminal.OnProgress) -> Session:
        settings = self.settings
        choice = PolicyChoice.from_settings(settings)
        return client.open_session(choice, self.robot.spec, timeout=settings.load_timeout, on_progress=on_progress)

    def _latency(self) -> float | None:
        return self.trace.requests[-1].latency if self.trace.requests else None

    def _make_planner(
        self,
        client: PolicyClient,
        session: Session,
        signal: TickSignal,
        robot: Observed,
        arm: Arm,
    ) -> Planner:
        settings = self.settings
        rtc = RealTimeChunking(settings.rtc.config, settings.fps) if session.model_action_dim else None
        horizon = settings.rtc.execution_horizon if rtc is not None else 0
        return Planner(
            robot=robot,
            client=client,
            session=session,
            reopen=lambda: self._open(client, lambda _: None),
            queue=self.queue,
            replanner=Replanner(settings.replan, settings.chunk_size_threshold, settings.fps, least_depth=horizon),
            observation_filter=ObservationFilter(settings.similarity_tolerance, settings.camera_tolerance),
            link=self.link,
            trace=self.trace,
            clock=self.clock,
            fps=settings.fps,
            actions_per_chunk=settings.actions_per_chunk,
            request_timeout=settings.request_timeout,
            wait_for_tick=signal.wait,
            rtc=rtc,
            hindrance=self._hindrance,
            found=arm.found,
            seen=lambda reading: self._seen(reading, arm),
        )

    def _seen(self, reading: RobotReading, arm: Arm) -> np.ndarray | None:
        seen = arm.seen(reading)
        if seen is not None and (distance := arm.behind(seen)) is not None:
            self.trace.lagged(self.clock.now(), distance)
        return seen

    def _hindrance(self) -> str:
        """Returns why nothing may be asked of the service now; nothing if it may."""
        if self.tunnel is None or self.tunnel.state is State.UP:
            return ""
        return self.tunnel.message or f"The tunnel is {self.tunnel.state.value}."

    def _stop_reason(self, now: float, signals: Signals) -> str | None:
        if signals.count:
            return f"stopped by {signals.last}"
        if self.tunnel is not None and (broken := self.tunnel.failure):
            self.link.fail(f"The tunnel is gone for good ({broken.cause}): {broken}")
        return self.link.failure(now)

    def _status(self) -> tuple[LinkState, str]:
        latency = self.trace.requests[-1].latency * 1000 if self.trace.requests else float("nan")
        last = self.trace.ticks[-1] if self.trace.ticks else None
        age = f"{last.age * 1000:.0f} ms" if last and last.age is not None else "-"
        return self.link_state(), (
            f"tick {last.tick if last else 0}  queue {self.queue.depth()}  age {age}  latency {latency:.0f} ms  "
            f"observations {self.trace.observation_fps(self.clock.now()):.1f}/s"
        )

    def _healthz(self) -> tuple[bool, str]:
        state = self.link_state()
        return state in HEALTHY, state.value
