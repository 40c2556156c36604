"""The control loop: at each tick it takes the action, guards it, sends it and counts.

Nothing here waits but for the robot itself. One that hangs is noticed from outside, by the time of the last tick.
"""

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from longarm_edge.action_queue import ActionQueue, QueuedAction
from longarm_edge.guard import approach
from longarm_edge.metrics import Tick
from longarm_edge.motion import Motion
from longarm_edge.observer import Executed
from longarm_edge.robot import Robot, UnheardError
from longarm_edge.schedule import Clock, Schedule
from longarm_edge.settings import IdleRule
from longarm_edge.smoothness import Smoothness
from longarm_edge.trace import TickRecord, Trace

logger = logging.getLogger(__name__)

# A laptop that was closed for this long, in seconds, has come back to another scene
SUSPENDED_SECONDS = 0.5
# How often is looked for a reason to stop while a tick is waited for, in seconds
LOOK_SECONDS = 0.2
# A robot that keeps a tick from ending for this long, in periods and at least in seconds, hangs
STUCK_PERIODS = 5
STUCK_SECONDS = 0.2


@dataclass
class ControlLoop:
    """Executes the action queue on the robot, on the thread that calls run.

    Attributes:
      robot: Takes the commands.
      queue: Has the actions.
      motion: What the values of a command are, their bounds, and what a tick without an action does.
      trace: Records every tick.
      clock: Tells the time.
      fps: Ticks per second.
      last_command: The command before the next one, shape (action_dim): the measured pose before the first, NaN where
        it is not known.
      after_tick: Called when a tick's command is out and the rest of the period is free.
      stop_reason: Returns why to stop, or None to go on. Called before each tick, and in a long wait for one.
      first_command: The first command that went out, shape (action_dim); None before it.
      last_tick_at: When the last tick ended, None before the first.
      next_tick: The tick that what is seen now belongs to.
      next_step: The same for the step: the one after the last whose command is out. The queue may be ahead of it, by an
        action that waits for its turn on the bus.
      executed: Told what each tick did. Must not block.
    """

    robot: Robot
    queue: ActionQueue
    motion: Motion
    trace: Trace
    clock: Clock
    fps: float
    last_command: np.ndarray
    after_tick: Callable[[], None]
    stop_reason: Callable[[float], str | None]
    first_command: np.ndarray | None = None
    last_tick_at: float | None = None
    next_tick: int = 0
    next_step: int = 0
    executed: Callable[[Executed], None] = lambda _: None
    _cancelled: bool = False
    _unheard_since: float = math.inf
    _stands: bool = True
    # Joints whose last commands may never have reached them
    _lost: np.ndarray = field(init=False)
    _smoothness: Smoothness = field(init=False)

    def __post_init__(self) -> None:
        self._lost = np.zeros(len(self.last_command), bool)
        self._smoothness = Smoothness(self.motion.kinds.is_velocity, self.fps, self.last_command)

    def run(self, max_ticks: int | None = None) -> str:
        """Runs ticks from 0 until there is a reason to stop, which it returns.

        Tick 0 is due at once. Ticks are periods: they go by whether the arm moves or not, and the plan's steps do not.
        """
        schedule = Schedule(self.clock.now(), self.fps)
        tick = 0
        while max_ticks is None or tick < max_ticks:
            if reason := self._wait_until(schedule.due(tick)):
                return reason
            if self.clock.suspended() > SUSPENDED_SECONDS:
                self.queue.expire()
            outcome, action = self._execute(tick)
            sent_at = self.clock.now()
            following = self.next_tick = schedule.after(tick, sent_at)
            lateness = max(0.0, sent_at - schedule.due(tick))
            record = self._record(tick, sent_at, lateness, outcome, action)
            self.trace.tick(record, skipped=following - tick - 1)
            self.executed(
                Executed(
                    tick=tick,
                    at=sent_at,
                    next_due=schedule.due(following),
                    command=self.last_command,
                    chunk=action.sequence if action is not None else None,
                    age=record.age,
                    depth=record.depth,
                    mean_age=record.mean_age,
                )
            )
            self.after_tick()
            self.last_tick_at = self.clock.now()
            tick = following
        return "the duration is over"

    def _wait_until(self, due: float) -> str | None:
        """Returns at due, or with a reason to stop: a period may be longer than anybody waits for the end."""
        while True:
            until = min(due, self.clock.now() + LOOK_SECONDS)
            self.clock.sleep_until(until)
            if self._cancelled:
                return "cancelled"
            if reason := self.stop_reason(self.clock.now()):
                return reason
            if until >= due:
                return None

    def _execute(self, tick: int) -> tuple[Tick, QueuedAction | None]:
        """Returns how the tick ended, and its action."""
        now = self.clock.now()
        self.next_tick = tick + 1
        if self._stands and (coming := self.queue.peek(now)) is not None and self._eased_in(coming, self.next_step):
            # The plan's time stands still meanwhile: a fresh chunk begins where the arm is by then
            return Tick.EASED, None
        action, expired = self.queue.take(now)
        if action is None:
            self._stands = True
            self._idle()
            return (Tick.STALE if expired else Tick.IDLE), None
        if self._stands and self._eased_in(action, action.step + 1):  # of a chunk that has just come
            return Tick.EASED, None
        self._stands = False
        command, clamped = self.motion.guard.clamp(action.values, self.last_command)
        if not self._send(command, action.step + 1):
            return Tick.IDLE, None
        return (Tick.CLAMPED if clamped else Tick.ACTION), action

    def _record(
        self, tick: int, sent_at: float, lateness: float, outcome: Tick, action: QueuedAction | None
    ) -> TickRecord:
        depth = self.queue.depth()
        if outcome is Tick.EASED:
            step = self._smoothness.eased(self.last_command)
            return TickRecord(tick, sent_at, lateness, outcome, depth, step=step)
        if action is None:
            self._smoothness.stood()
            return TickRecord(tick, sent_at, lateness, outcome, depth)
        age, mean_age = sent_at - action.captured_at, sent_at - action.mean_captured_at
        step = self._smoothness.moved(self.last_command, action.sequence)
        return TickRecord(tick, sent_at, lateness, outcome, depth, age, mean_age, step)

    def cancel(self) -> None:
        """Ends the loop without another command, also one whose robot hangs now and answers later."""
        self._cancelled = True

    def stand_at(self, pose: np.ndarray) -> None:
        """Tells where the arm stands, shape (action_dim), NaN where it is not known: its last commands may be lost.

        To be called while the queue is empty.
        """
        self.last_command = np.where(np.isnan(pose), self.last_command, pose)
        self._lost = np.isnan(pose)

    def stuck_for(self, now: float) -> float:
        """Returns for how many seconds the robot has kept a tick from ending; 0 while ticks end in time."""
        last = self.last_tick_at
        silent = 0.0 if last is None else now - last
        return silent if silent > max(STUCK_SECONDS, STUCK_PERIODS / self.fps) else 0.0

    def _eased_in(self, action: QueuedAction, next_step: int) -> bool:
        """Sends the arm on towards action, and returns whether that was too far away to be executed."""
        guard, kinds, speed = self.motion.guard, self.motion.kinds, self.motion.safety.ease_in_speed
        target = np.clip(action.values, guard.lower, guard.upper)
        if action.seen is not None:
            # It need not be where it was sent: the bus was silent, or somebody moved it. What squeezes is not where it
            # was sent either, and goes on squeezing
            nearer = np.abs(target - action.seen) < np.abs(target - self.last_command)
            self.last_command = np.where(nearer, action.seen, self.last_command)
        if speed is None:
            return False
        largest = np.where(kinds.is_velocity, np.inf, np.minimum(speed / self.fps, guard.max_step))
        # A joint that nobody measures goes where the policy says, as at the start, and as far as max_step lets it
        command = approach(target, np.where(self._lost, np.nan, self.last_command), largest)
        if command is None:
            return False
        within = np.clip(command, self.last_command - guard.max_step, self.last_command + guard.max_step)
        command = np.where(self._lost & ~np.isnan(within), within, command)
        # What drives waits until the arm is there
        self._send(kinds.halted(command), next_step)
        return True

    def _idle(self) -> None:
        still = self.motion.kinds.halted(self.last_command)
        drives = self.first_command is not None and self.motion.kinds.is_velocity.any()
        repeats = self.motion.safety.when_idle is IdleRule.REPEAT_LAST
        if (drives or repeats) and not np.isnan(still).any():
            self._send(still, self.next_step)

    def _send(self, command: np.ndarray, next_step: int) -> bool:
        """Returns whether the command went out for all that is known.

        Most robots lose commands to a silent bus without a word, and the observations that fail tell. Those that say so
        are given as long.
        """

        def sent() -> None:
            self.next_step = next_step

        if self.first_command is None:
            self.first_command = command
        try:
            self.robot.send(command, sent)
        except UnheardError:
            sent()  # the plan goes on from the next action all the same
            now = self.clock.now()
            self._unheard_since = min(self._unheard_since, now)
            if now - self._unheard_since > self.motion.safety.max_offline:
                raise
            return False
        self._unheard_since = math.inf
        self.last_command = command
        self._lost = np.zeros_like(self._lost)
        return True


class TickSignal:
    """Lets the planner wait for the free part of a period."""

    def __init__(self) -> None:
        """Makes a signal that was never given."""
        self._condition = threading.Condition()
        self._ticks = 0

    def give(self) -> None:
        """A tick's command is out."""
        with self._condition:
            self._ticks += 1
            self._condition.notify_all()

    def wait(self, timeout: float) -> bool:
        """Returns True after the next tick, False if none came within timeout seconds."""
        with self._condition:
            before = self._ticks
            return self._condition.wait_for(lambda: self._ticks != before, timeout)
