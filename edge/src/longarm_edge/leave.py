"""Leaving an arm whose run was killed: nobody has applied the stop rule then."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from longarm_edge import pose_file
from longarm_edge.actions import ActionKinds, measured_pose
from longarm_edge.motion import Motion
from longarm_edge.robot import Robot
from longarm_edge.schedule import Clock
from longarm_edge.settings import EdgeSettings, SafetySettings, StopRule
from longarm_edge.stop import ATTEMPTS, Interrupted, Leaving, Signals, patiently
from longarm_edge.way_back import standing
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)

# A robot that answers nothing for this long hangs, in seconds: connecting takes some
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
    # Where nothing can be written, the arm has to be left all the same
    claimed = pose_file.lock(path, required=False)
    try:
        return _leave_killed(settings, make_robot, path, clock)
    finally:
        if claimed is not None:
            os.close(claimed)


def _leave_killed(settings: EdgeSettings, make_robot: Callable[[], Robot], path: Path, clock: Clock) -> int:
    safety = settings.safety
    if not pose_file.is_kept(path):
        logger.info("the arm was left by rule: nothing to do")
        return exit_codes.DONE
    if safety.on_stop is StopRule.HOLD and not _may_drive(path, safety):
        logger.warning("the run was killed; the motors hold as they are (on_stop=hold), and are left alone")
        return exit_codes.DONE if pose_file.forget(path) else exit_codes.FAILED
    logger.warning("the run was killed: leaving the arm by rule, on_stop=%s", safety.on_stop.value)
    try:
        robot = make_robot()  # imports LeRobot, which takes as long as it takes
        with _bounded(PATIENCE_SECONDS) as progress:
            return _leave(settings, robot, path, clock, progress)
    except Interrupted as error:
        logger.error("interrupted by %s: the arm was not left by rule", error)
        return exit_codes.INTERRUPTED


def _leave(settings: EdgeSettings, robot: Robot, path: Path, clock: Clock, progress: Callable[[], None]) -> int:
    motion = Motion.plan(robot, settings.safety)
    with Signals() as signals:
        # Once is a wish to stop at once, on the way back too; a manager that loses patience kills
        signals.patience = 1
        start_pose = None
        now_at = np.full(len(robot.spec.action_names), np.nan, np.float32)
        unreadable: Exception | None = None
        try:
            # Configuring would take the torque away for a moment, and was done by the run
            _connect(robot, progress)

            def look() -> np.ndarray:
                return patiently(lambda: measured_pose(robot, motion.kinds))

            # It may be on its way to where the killed run sent it
            now_at, _ = standing(look, settings.safety.rest_tolerance, clock)
            if settings.safety.on_stop is StopRule.REST:
                start_pose = pose_file.read(path, robot.spec.action_names)
        except Exception as error:  # noqa: BLE001  # whatever a robot's driver raises
            unreadable = error
            if settings.safety.on_stop is StopRule.REST:
                # Without a way back there is torque alone to decide on
                motion = replace(motion, safety=settings.safety.model_copy(update={"on_stop": StopRule.HOLD}))
        problem = Leaving(
            robot=robot,
            motion=motion,
            start_pose=start_pose,
            last_command=now_at,
            fps=settings.fps,
            clock=clock,
            at_once=lambda: signals.count > 0,
            progress=progress,
        )()
    for trouble in filter(None, (unreadable, problem)):
        logger.error("the arm cannot be left by rule: %s", trouble)
    return exit_codes.FAILED if unreadable or problem or not pose_file.forget(path) else exit_codes.DONE


def _connect(robot: Robot, progress: Callable[[], None]) -> None:
    """Connects without configuring, in one of a few tries: LeRobot gives up at the first answer that is lost."""
    for _ in range(ATTEMPTS - 1):
        try:
            return robot.connect(configure=False)
        except ConnectionError as error:
            logger.debug("%s", error)
            with suppress(Exception):
                robot.disconnect(torque=True)
        progress()
    return robot.connect(configure=False)


def _may_drive(path: Path, safety: SafetySettings) -> bool:
    """Returns whether the killed run's robot may have something that drives on: a base with wheels."""
    names = pose_file.names(path)
    return names is None or bool(ActionKinds.from_names(names, (), safety.velocity_actions).is_velocity.any())


@contextmanager
def _bounded(seconds: float) -> Iterator[Callable[[], None]]:
    """Ends the process so many seconds after the last call of what it yields, even one that hangs in a driver."""

    def progress() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    progress()
    try:
        yield progress
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
