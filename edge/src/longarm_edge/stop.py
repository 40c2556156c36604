"""How the arm is left: the stop rule, and the signals that ask for it."""

import logging
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

import numpy as np

from longarm_edge.robot import Robot
from longarm_edge.schedule import Clock, Schedule
from longarm_edge.settings import IdleRule, SafetySettings, StopRule

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked to end now. Like KeyboardInterrupt, no handler of ordinary errors may swallow it."""


class Signals:
    """Counts SIGINT and SIGTERM, and raises Interrupted once there are more than patience.

    With patience 0, as during set-up, the first one raises. The control loop has a patience of 1: it sees the first in
    count and stops gently, and the second gets it out of anything that hangs.
    """

    def __init__(self) -> None:
        """Leaves the handlers alone until entered."""
        self.count = 0
        self.patience = 0
        self.last = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
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
        self.count += 1
        self.last = signal.Signals(number).name
        self.check()


def leave_arm(
    robot: Robot,
    safety: SafetySettings,
    *,
    start_pose: np.ndarray | None,
    last_command: np.ndarray | None,
    fps: float,
    clock: Clock,
    at_once: Callable[[], bool],
) -> bool:
    """Leaves the arm as safety.on_stop says, then lets go of it. Never raises: every step is tried.

    Returns whether every step worked.

    Args:
      robot: Connected or not.
      safety: The rule.
      start_pose: Pose at the start, shape (action_dim); None if it is not known.
      last_command: The last command, same shape; None if the arm was never moved.
      fps: Rate of the way back.
      clock: Tells the time.
      at_once: Whether to skip the way back.
    """
    rule = safety.on_stop
    worked = True
    try:
        if safety.when_idle is IdleRule.ZERO and last_command is not None:
            robot.send(np.zeros_like(last_command))
        elif rule is StopRule.REST and start_pose is not None and last_command is not None:
            _move_to_rest(robot, start_pose, last_command, safety.rest_seconds, fps, clock, at_once)
    except Exception:
        logger.exception("the last command did not reach the robot")
        worked = False
    torque = {StopRule.HOLD: True, StopRule.REST: True if at_once() else None, StopRule.RELEASE: False}[rule]
    try:
        robot.disconnect(torque=torque)
    except Exception:
        logger.exception("the robot could not be let go of")
        worked = False
    return worked


def _move_to_rest(
    robot: Robot,
    start_pose: np.ndarray,
    last_command: np.ndarray,
    seconds: float,
    fps: float,
    clock: Clock,
    at_once: Callable[[], bool],
) -> None:
    logger.info("moving to the start pose in %.1f s (Ctrl-C again to stop at once)", seconds)
    schedule = Schedule(clock.now(), fps)
    ticks = max(1, round(seconds * fps))
    for tick in range(ticks + 1):
        if at_once():
            return
        # Smoothstep: no jump in speed at either end
        share = tick / ticks
        share = share * share * (3 - 2 * share)
        clock.sleep_until(schedule.due(tick))
        robot.send((last_command + (start_pose - last_command) * share).astype(np.float32))
