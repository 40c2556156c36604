"""Leaving an arm whose run was killed: nobody has applied the stop rule then."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from longarm_edge import pose_file
from longarm_edge.robot import Robot, measured_pose
from longarm_edge.schedule import Clock
from longarm_edge.settings import EdgeSettings, IdleRule, StopRule
from longarm_edge.stop import Signals, leave_arm
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)

# Connecting, reading and letting go take this long at most, in seconds, beside the way back
PATIENCE_SECONDS = 20


def leave(settings: EdgeSettings, make_robot: Callable[[], Robot], clock: Clock) -> int:
    """Applies the stop rule to an arm whose run was killed, and returns an exit code. Does nothing after other runs.

    The process ends by SIGALRM if the robot hangs: it is killed in turn, and the motors stay as they are.

    Args:
      settings: Those of the run.
      make_robot: Makes the robot, not yet connected; cameras are not needed.
      clock: Tells the time.

    Raises:
      ConfigurationError: safety.pose_file is not set, or make_robot raises it.
    """
    safety = settings.safety
    path = safety.pose_file
    if path is None:
        raise ConfigurationError(
            ["Expected safety.pose_file to be set, as it was for the run: nothing else says more."]
        )
    if not pose_file.is_kept(path):
        logger.info("the arm was left by rule: nothing to do")
        return exit_codes.DONE
    if safety.on_stop is StopRule.HOLD and safety.when_idle is not IdleRule.ZERO:
        # Connecting would take the torque away for a moment: many drivers configure the motors then
        logger.warning("the run was killed; the motors hold as they are (on_stop=hold), and are left alone")
        return exit_codes.DONE if pose_file.forget(path) else exit_codes.FAILED
    logger.warning("the run was killed: leaving the arm by rule, on_stop=%s", safety.on_stop.value)
    with _bounded(PATIENCE_SECONDS + safety.rest_seconds):
        return _leave(settings, make_robot(), path, clock)


def _leave(settings: EdgeSettings, robot: Robot, path: Path, clock: Clock) -> int:
    with Signals() as signals:
        # Once is a wish to stop at once, on the way back too; a manager that loses patience kills
        signals.patience = 1
        try:
            robot.connect()
            start_pose, now_at = _poses(settings, robot, path)
        except Exception as error:  # noqa: BLE001  # whatever a robot's driver raises
            logger.error("the arm cannot be left by rule: %s", error)
            # Without a way back there is torque alone to decide on, and that needs no pose
            safety = settings.safety.model_copy(update={"on_stop": _without_pose(settings.safety.on_stop)})
            leave_arm(
                robot, safety, start_pose=None, last_command=None, fps=settings.fps, clock=clock, at_once=lambda: True
            )
            return exit_codes.FAILED
        worked = leave_arm(
            robot,
            settings.safety,
            start_pose=start_pose,
            last_command=now_at,
            fps=settings.fps,
            clock=clock,
            at_once=lambda: signals.count > 0,
        )
    return exit_codes.DONE if worked and pose_file.forget(path) else exit_codes.FAILED


def _without_pose(rule: StopRule) -> StopRule:
    return StopRule.HOLD if rule is StopRule.REST else rule


def _poses(settings: EdgeSettings, robot: Robot, path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns where the way back leads, if there is one, and where it begins."""
    start_pose = pose_file.read(path, robot.spec.action_names) if settings.safety.on_stop is StopRule.REST else None
    return start_pose, measured_pose(robot)


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Ends the process after so many seconds, even one that hangs in a driver."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
