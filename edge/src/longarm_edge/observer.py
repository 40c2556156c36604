"""The observer: sees what the arm saw and did at every tick, and shows it to whoever records or displays it.

The control loop leaves a note and goes on; everything else happens on a thread of the observer's own.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from longarm_edge.robot import Robot, RobotReading
from longarm_edge.schedule import Clock

logger = logging.getLogger(__name__)

# Ticks that the observer may lie behind; at 30 ticks a second, half a second
MAX_BACKLOG = 15
# Captures that are kept for the ticks of that backlog, the tick to come and a capture that was repeated
CAPTURES_SHARED = MAX_BACKLOG + 2
# Seconds for the thread to end, once nothing but the robot can keep it
HANG_SECONDS = 2.0
# How many captures tell how long one usually takes
CAPTURES_KEPT = 20


@dataclass(frozen=True, slots=True)
class Executed:
    """What the control loop did at one tick.

    Attributes:
      tick: Its number.
      at: When its command went out, or it was found idle; seconds on the monotonic clock.
      next_due: When the next tick is due, same clock.
      command: The command in effect, float32 of shape (action_dim): of an idle tick that sent nothing, the last one.
      chunk: Sequence of the request behind the action, None without an action.
      age: Age of the action's newest part in seconds, None without one.
      depth: Actions left in the queue.
      mean_age: Mean age of its parts, each weighted with its share.
    """

    tick: int
    at: float
    next_due: float
    command: np.ndarray
    chunk: int | None
    age: float | None
    depth: int
    mean_age: float | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One tick: what was seen before it, and what was done.

    Attributes:
      executed: What was done.
      reading: What was seen between the tick before and this one; None where no capture was made in time.
      latency: Of the last answered observation, seconds; None before the first.
    """

    executed: Executed
    reading: RobotReading | None
    latency: float | None


class Sink(Protocol):
    """Takes frames."""

    def offer(self, frame: Frame) -> None:
        """Takes frame or counts it as dropped. Never blocks."""
        ...


@dataclass(frozen=True, slots=True)
class _Capture:
    tick: int
    started: float
    finished: float
    reading: RobotReading


class SharedView:
    """A robot whose observation, once captured in a period, serves planner and observer alike.

    Without it a period would have two captures, and the second might reach into the next tick.
    """

    def __init__(
        self,
        robot: Robot,
        clock: Clock,
        fps: float,
        next_tick: Callable[[], int],
        next_step: Callable[[], int] = lambda: 0,
        kept: int = CAPTURES_SHARED,
    ) -> None:
        """Looks through robot, and keeps so many captures.

        An observation captured now belongs to the tick and the step that next_tick and next_step return.
        """
        self._robot = robot
        self._clock = clock
        self._period = 1 / fps
        self._next_tick = next_tick
        self._next_step = next_step
        self._lock = threading.Lock()
        # More than the last: the planner may capture for the next tick before the observer has looked at this one
        self._captures: deque[_Capture] = deque(maxlen=kept)
        self._seconds: deque[float] = deque(maxlen=CAPTURES_KEPT)

    def observe(self) -> RobotReading:
        """Returns this period's observation, captured now unless it was already. Raises as the robot does."""
        with self._lock:
            tick, started = self._next_tick(), self._clock.now()
            last = self._captures[-1] if self._captures else None
            if last is not None and last.tick == tick and started - last.started < self._period:
                return last.reading
            reading = replace(self._robot.observe(self._next_step), captured_at=started)
            finished = self._clock.now()
            self._seconds.append(finished - started)
            self._captures.append(_Capture(tick, started, finished, reading))
            return reading

    def seen_before(self, executed: Executed) -> RobotReading | None:
        """Returns the newest observation of an executed tick that was complete when the tick's command went out."""
        for capture in reversed(list(self._captures)):
            if capture.tick == executed.tick and capture.finished <= executed.at:
                return capture.reading
        return None

    def expected_seconds(self) -> float:
        """Returns how long a capture usually takes, the planner's counted too; 0 without any."""
        seconds = list(self._seconds)
        return float(np.median(seconds)) if seconds else 0.0


class Observer:
    """Makes a frame of every tick and offers it to the sinks."""

    def __init__(
        self, view: SharedView, clock: Clock, sinks: Sequence[Sink], latency: Callable[[], float | None]
    ) -> None:
        """Makes an observer at rest.

        Args:
          view: Gives observations, to the planner as well.
          clock: Tells the time.
          sinks: Get the frames.
          latency: Returns the latency of the last answered observation.
        """
        self._view = view
        self._clock = clock
        self._sinks = sinks
        self._latency = latency
        self._notes: SimpleQueue[Executed | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def start(self) -> None:
        """Begins, and returns when tick 0 has its observation. To be called right before tick 0."""
        self._capture()
        self._thread.start()

    def executed(self, executed: Executed) -> None:
        """A tick's command is out. Called by the control loop; never blocks."""
        if self._notes.qsize() < MAX_BACKLOG:
            self._notes.put(executed)
        else:
            self._offer(Frame(executed, None, None))

    def stop(self) -> None:
        """Asks for the end and returns at once. No capture begins after the one being made now."""
        self._stopping.set()
        self._notes.put(None)

    def close(self) -> None:
        """Returns when every tick that was executed has been offered, but for those behind a robot that hangs."""
        self.stop()
        if self._thread.ident is not None:
            # An observation that hangs is not waited for
            self._thread.join(HANG_SECONDS)

    def _run(self) -> None:
        while (executed := self._notes.get()) is not None:
            self._offer(Frame(executed, self._view.seen_before(executed), self._latency()))
            # A capture that usually reaches into the next tick would delay it on a robot that serves one call at a time
            if self._notes.empty() and self._clock.now() + self._view.expected_seconds() < executed.next_due:
                self._capture()

    def _capture(self) -> None:
        if self._stopping.is_set():
            return
        try:
            self._view.observe()
        except Exception as error:  # noqa: BLE001  # the planner meets it too, and says so; here the tick has no frame
            logger.debug("no observation: %s", error)

    def _offer(self, frame: Frame) -> None:
        for sink in self._sinks:
            sink.offer(frame)
