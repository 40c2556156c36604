"""How the arm is left: the stop rule, and the signals that ask for it."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

import numpy as np

from longarm_edge.motion import Motion
from longarm_edge.robot import Robot
from longarm_edge.schedule import Clock
from longarm_edge.settings import StopRule

logger = logging.getLogger(__name__)

# Tries to stop what drives: a bus stutters now and then
HALT_ATTEMPTS = 3
# The way back takes no longer than this, in seconds: service managers lose patience
REST_LIMIT_SECONDS = 60.0
# SIGHUP: the terminal is gone, a window closed or a login lost, and nobody is there to see to the arm
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RobotError(Exception):
    """A step of leaving the arm did not work."""


class Interrupted(BaseException):
    """A signal asked to end now. Like KeyboardInterrupt, no handler of ordinary errors may swallow it."""


class Signals:
    """Counts STOP_SIGNALS, and raises Interrupted once there are more than patience.

    A terminal that is closed sends SIGHUP, often twice, which is no second wish. Under nohup it is not listened to.
    With patience 0, as during set-up, the first one raises. The control loop has a patience of 1: it sees the first in
    count and stops gently, and the second gets it out of anything that hangs.
    """

    def __init__(self) -> None:
        """Leaves the handlers alone until entered."""
        self.count = 0
        self.patience = 0
        self.last = ""
        self._hung_up = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        # nohup has a run outlive its terminal
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self._previous = {n: signal.signal(n, self._handle) for n in STOP_SIGNALS if n not in ignored}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def check(self) -> None:
        """Raises Interrupted if there were more signals than patience.

        For the steps of set-up: an exception that a handler raises is lost where Python happens to run a finalizer.
        """
        if self.count > self.patience:
            raise Interrupted(self.last)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # Kernel and shell both tell of a terminal that is gone. That is no second Ctrl-C
        if number == signal.SIGHUP and self._hung_up:
            return
        self._hung_up |= number == signal.SIGHUP
        self.count += 1
        self.last = signal.Signals(number).name
        self.check()


def ignore_stop_signals() -> dict[int, object]:
    """Ignores STOP_SIGNALS from here on, and returns what handled them."""
    return {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}


@contextmanager
def unhurried() -> Iterator[None]:
    """Ignores STOP_SIGNALS for a while."""
    previous = ignore_stop_signals()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned


@dataclass
class Leaving:
    """How the arm is left: velocities to 0, the way back if the rule says so, and letting go.

    Attributes:
      robot: Connected or not.
      motion: What its commands are, their bounds, and the rule.
      start_pose: Where the way back leads, shape (action_dim); None or NaN where it is not known.
      last_command: The last command, same shape; NaN where it is not known, None if the arm was never moved.
      fps: Rate of the way back.
      clock: Tells the time.
      at_once: Whether to skip the way back.
      progress: Called whenever the robot has answered a call.
    """

    robot: Robot
    motion: Motion
    start_pose: np.ndarray | None
    last_command: np.ndarray | None
    fps: float
    clock: Clock
    at_once: Callable[[], bool]
    progress: Callable[[], None] = lambda: None

    def __call__(self) -> str | None:
        """Leaves the arm. Never raises: every step is tried, and unless all of them worked the torque stays on.

        Returns None if the arm was left by rule, else what is not as it was wanted, for a person.
        """
        problems = []
        rule = self.motion.safety.on_stop
        for step in (self._halt, self._move_to_rest):
            try:
                step()
            except Exception as error:  # noqa: BLE001  # whatever a robot's driver raises
                problems.append(str(error) or type(error).__name__)
        # An arm that is not at rest would fall
        torque = {
            StopRule.HOLD: True,
            StopRule.REST: True if problems or self.at_once() else None,
            StopRule.RELEASE: False,
            StopRule.DRIVER: None,
        }[rule]
        try:
            self.robot.disconnect(torque=torque)
            self.progress()
        except Exception as error:  # noqa: BLE001
            problems.append(f"it could not be let go of: {error}")
        if not problems:
            return None
        return f"The arm was not left as wanted (on_stop={rule}): {'; '.join(problems)}."

    def _halt(self) -> None:
        """Stops what would drive on."""
        if self.last_command is None or not self.motion.kinds.is_velocity.any():
            return
        still = self.motion.kinds.halted(self.last_command)
        if np.isnan(still).any():
            raise RobotError("it was not told to stop driving: it is not known where its joints stand")
        for attempt in range(HALT_ATTEMPTS):
            try:
                self._send(still)
            except Exception as error:
                if attempt == HALT_ATTEMPTS - 1:
                    raise RobotError(f"it was not told to stop driving: {error}") from error
            else:
                self.last_command = still
                return

    def _move_to_rest(self) -> None:
        if self.motion.safety.on_stop is not StopRule.REST or self.last_command is None or self.at_once():
            return
        if self.motion.kinds.is_velocity.all():
            return
        begin, end = self.last_command, self.start_pose
        if end is None or np.isnan(end).any() or np.isnan(begin).any():
            raise RobotError("it is not known where the way back begins and ends")
        seconds = self.motion.safety.rest_seconds
        logger.info("moving to the start pose in %.1f s (Ctrl-C again to stop at once)", seconds)
        due = self.clock.now()
        ticks = max(1, round(seconds * self.fps))
        command = begin
        for tick in range(round(REST_LIMIT_SECONDS * self.fps)):
            # Smoothstep: no jump in speed at either end
            share = min(1.0, tick / ticks)
            share = share * share * (3 - 2 * share)
            target = (begin + (end - begin) * share).astype(np.float32)
            before = command
            command, _ = self.motion.guard.clamp(target, before)
            if tick > ticks and (command == before).all():
                return
            self.clock.sleep_until(due)
            if self.at_once():
                return
            try:
                self._send(command)
            except Exception as error:
                raise RobotError(f"it stopped on the way to the start pose and holds: {error}") from error
            # A command that took long is not made up for in a burst
            due = max(due + 1 / self.fps, self.clock.now())
        raise RobotError(
            f"it did not reach the start pose within {REST_LIMIT_SECONDS:g} s and holds: max_step is small"
        )

    def _send(self, command: np.ndarray) -> None:
        self.robot.send(command)
        self.progress()
