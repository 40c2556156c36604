"""How the arm is left: the stop rule, and the signals that ask for it."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

import numpy as np

from longarm_edge.actions import measured_pose
from longarm_edge.motion import Motion
from longarm_edge.robot import Robot
from longarm_edge.schedule import Clock
from longarm_edge.settings import StopRule
from longarm_edge.way_back import AstrayError, WayBack, standing

logger = logging.getLogger(__name__)

# A call to the robot that was under way when the run ended gets this long to return, in seconds
CALL_SECONDS = 2.0
# A bus stutters now and then
ATTEMPTS = 3
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
        # Kernel and shell both tell of a terminal that is gone, and at a logout after SIGTERM. That is no second Ctrl-C
        if number == signal.SIGHUP and self.count:
            return
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
      heard: Whether last_command reached the arm for all that is known.
      stay: Why the arm does not go back; nothing if it may.
      letting_go: Whether it is let go of by now.
      seen: Where it was last seen, shape (action_dim); None before the first look.
    """

    robot: Robot
    motion: Motion
    start_pose: np.ndarray | None
    last_command: np.ndarray | None
    fps: float
    clock: Clock
    at_once: Callable[[], bool]
    progress: Callable[[], None] = lambda: None
    heard: bool = True
    stay: str = ""
    letting_go: bool = False
    seen: np.ndarray | None = None

    def __call__(self) -> str | None:
        """Leaves the arm. Never raises: it is let go of whatever happens, and unless all went well the torque stays on.

        Returns None if the arm was left by rule, else what is not as it was wanted, for a person.
        """
        problems = []
        rule = self.motion.safety.on_stop
        try:
            self._take_over()
            self._move_to_rest()
        except Exception as error:  # noqa: BLE001  # whatever a robot's driver raises
            problems.append(str(error) or type(error).__name__)
        # An arm that is not at rest would fall, and so would one that was never seen
        is_known = self.start_pose is not None and not np.isnan(self.start_pose).any()
        torque = {
            StopRule.HOLD: True,
            StopRule.REST: None if is_known and not problems else True,
            StopRule.RELEASE: False,
            StopRule.DRIVER: None,
        }[rule]
        self.letting_go = True
        try:
            self.robot.disconnect(torque=torque)
            self.progress()
        except Exception as error:  # noqa: BLE001
            problems.append(f"it could not be let go of: {error}")
        if not problems:
            return None
        return f"The arm was not left as wanted (on_stop={rule}): {'; '.join(problems)}."

    def _take_over(self) -> None:
        quiet = self.robot.take_over(CALL_SECONDS)
        self.progress()
        self._halt()
        if not quiet:
            logger.warning("a command to the robot hangs: trying to leave the arm all the same")
            if not self.robot.take_over(CALL_SECONDS):
                raise RobotError("a command hangs on its way to it, and may still get there")
            # It came after the word to stop
            self._halt()

    def _halt(self) -> None:
        """Stops what would drive on."""
        if self.last_command is None or not self.motion.kinds.is_velocity.any():
            return
        if not self.heard:
            # Joints that were sent on behind a silent bus stay where they are
            with suppress(Exception):
                here = patiently(self._look)
                self.last_command = np.where(np.isnan(here), self.last_command, here)
        try:
            if np.isnan(self.motion.kinds.halted(self.last_command)).any():
                # Nobody has looked yet
                self.last_command, _ = standing(
                    lambda: patiently(self._look), self.motion.safety.rest_tolerance, self.clock
                )
            still = self.motion.kinds.halted(self.last_command)
            if np.isnan(still).any():
                raise RobotError("it is not known where its joints stand")
            patiently(lambda: self._send(still))
        except Exception as error:
            raise RobotError(f"it was not told to stop driving: {error}") from error
        self.last_command = still
        try:
            # A bus that is silent takes commands, and loses them
            patiently(self._look)
            self._send(still)
        except Exception as error:
            raise RobotError(f"it was told to stop driving, and may not have heard it: {error}") from error

    def _move_to_rest(self) -> None:
        if self.motion.safety.on_stop is not StopRule.REST or self.last_command is None:
            return
        if self.motion.kinds.is_velocity.all():
            return
        begin, end = self.last_command, self.start_pose
        if end is None:
            raise RobotError("where it stands was never seen, and it stays as it is")
        if np.isnan(end).any() or np.isnan(begin).any():
            raise RobotError("it is not known where the way back begins and ends")
        if self.stay:
            raise AstrayError(self.stay)
        safety = self.motion.safety
        if not self.at_once():
            logger.info("moving to the start pose in %.1f s (Ctrl-C again to stop at once)", safety.rest_seconds)
        way = WayBack(
            names=self.robot.spec.action_names,
            look=lambda: patiently(self._look),
            send=lambda command: patiently(lambda: self._send(command)),
            guard=self.motion.guard,
            seconds=safety.rest_seconds,
            tolerance=safety.rest_tolerance,
            fps=self.fps,
            clock=self.clock,
            at_once=self.at_once,
        )
        try:
            way.go(begin, self.motion.kinds.halted(end), heard=self.heard)
        except AstrayError:
            raise
        except Exception as error:
            raise RobotError(f"it stopped on the way to the start pose and holds: {error}") from error

    def _look(self) -> np.ndarray:
        self.seen = measured_pose(self.robot, self.motion.kinds)
        self.progress()
        return self.seen

    def _send(self, command: np.ndarray) -> None:
        self.robot.send(command)
        self.progress()


def outlook(motion: Motion, leaving: Leaving | None) -> str:
    """Returns what motors do that cannot be told anything; leaving is what was under way, if anything."""
    if leaving is not None and leaving.letting_go:
        return "It was being let go of: its joints may be limp, or hold."
    drives = motion.kinds.is_velocity.any()
    return "Its motors go on with the last command that reached them" + (
        ": what drives goes on driving." if drives else ", if they have power."
    )


def patiently[T](call: Callable[[], T]) -> T:
    """Returns what call returns in one of a few tries: a bus stutters now and then. Raises as the last one does."""
    for _ in range(ATTEMPTS - 1):
        with suppress(Exception):
            return call()
    return call()
