"""Leaving an arm that its run has not left by rule: it was killed, or could not."""

import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from longarm_edge import pose_file
from longarm_edge.actions import ActionKinds, measured_pose
from longarm_edge.aside import aside, looked_after
from longarm_edge.motion import Motion
from longarm_edge.robot import Robot
from longarm_edge.schedule import Clock
from longarm_edge.settings import EdgeSettings, SafetySettings, StopRule
from longarm_edge.stop import ATTEMPTS, Interrupted, Leaving, Signals, outlook, patiently
from longarm_edge.way_back import standing
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)

# A robot that answers nothing for this long hangs, in seconds: connecting takes some
PATIENCE_SECONDS = 20
# One that keeps the interpreter to itself as well lets nobody say so: this much later the process ends all the same
GRACE_SECONDS = 5


def leave(settings: EdgeSettings, make_robot: Callable[[], Robot], clock: Clock) -> int:
    """Applies the stop rule to an arm that its run has not left by rule, and returns an exit code.

    Does nothing after other runs. A robot that hangs is given up: the motors stay as they are.

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
    try:
        # Where nothing can be written, the arm has to be left all the same
        claimed = pose_file.lock(path, required=False)
    except ConnectionError as error:
        logger.error("%s", error)
        return exit_codes.FAILED
    try:
        return _leave_kept(settings, make_robot, path, clock)
    finally:
        if claimed is not None:
            os.close(claimed)


def _leave_kept(settings: EdgeSettings, make_robot: Callable[[], Robot], path: Path, clock: Clock) -> int:
    safety = settings.safety
    if not pose_file.is_kept(path):
        logger.info("the arm was left by rule: nothing to do")
        return exit_codes.DONE
    if safety.on_stop is StopRule.HOLD and not _may_drive(path, safety):
        logger.warning("%s; the motors hold as they are (on_stop=hold), and are left alone", pose_file.WHY_KEPT)
        return exit_codes.DONE if pose_file.forget(path) else exit_codes.FAILED
    logger.warning("%s: leaving it so now, on_stop=%s", pose_file.WHY_KEPT, safety.on_stop.value)
    try:
        with Signals() as signals:
            robot = make_robot()  # imports LeRobot, which takes as long as it takes
            signals.check()
            # Once is a wish to stop at once, on the way back too; a manager that loses patience kills
            signals.patience = 1
            return _ByRule(robot, settings, path, clock, signals)()
    except Interrupted as error:
        logger.error("interrupted by %s: the arm was not left by rule", error)
        return exit_codes.INTERRUPTED


class _ByRule:
    """Leaves the arm beside the main thread: a driver that hangs or exits takes no last word and no exit code along."""

    def __init__(self, robot: Robot, settings: EdgeSettings, path: Path, clock: Clock, signals: Signals) -> None:
        self._robot = robot
        self._motion = Motion.plan(robot, settings.safety)
        self._fps = settings.fps
        self._path = path
        self._clock = clock
        self._signals = signals
        self._answered_at = clock.now()
        self._given_up = False
        self._leaving: Leaving | None = None

    def __call__(self) -> int:
        try:
            troubles = looked_after(aside(self._leave, "leave"), self._look_after)
        except TimeoutError as error:
            self._given_up = True
            troubles = [f"{error}. {self._last_word()}"]
        finally:
            faulthandler.cancel_dump_traceback_later()
        for trouble in troubles:
            logger.error("the arm cannot be left by rule: %s", trouble)
        return exit_codes.FAILED if troubles or not pose_file.forget(self._path) else exit_codes.DONE

    def _look_after(self) -> None:
        """Raises TimeoutError if the robot hangs, and Interrupted."""
        self._signals.check()
        if self._clock.now() - self._answered_at > PATIENCE_SECONDS:
            raise TimeoutError(f"the robot has not answered for {PATIENCE_SECONDS:g} s")
        if sys.__stderr__ is not None:
            # Says where each thread stood, and ends the process with exit_codes.FAILED
            seconds = PATIENCE_SECONDS + GRACE_SECONDS
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)

    def _leave(self) -> list[str]:
        """Returns what is not as it was wanted."""
        robot, motion = self._robot, self._motion
        start_pose = None
        now_at = np.full(len(robot.spec.action_names), np.nan, np.float32)
        troubles = []
        try:
            # Not to configure: that would take the torque away for a moment, and was done by the run
            self._connect()

            def look() -> np.ndarray:
                pose = patiently(lambda: measured_pose(robot, motion.kinds))
                self._progress()
                return pose

            # It may be on its way to where that run sent it
            now_at, _ = standing(look, motion.safety.rest_tolerance, self._clock)
            if motion.safety.on_stop is StopRule.REST:
                start_pose = pose_file.read(self._path, robot.spec.action_names)
        except Exception as error:  # noqa: BLE001  # whatever a robot's driver raises
            troubles.append(str(error) or type(error).__name__)
            if motion.safety.on_stop is StopRule.REST:
                # Without a way back there is torque alone to decide on
                motion = replace(motion, safety=motion.safety.model_copy(update={"on_stop": StopRule.HOLD}))
        self._leaving = Leaving(
            robot=robot,
            motion=motion,
            start_pose=start_pose,
            last_command=now_at,
            fps=self._fps,
            clock=self._clock,
            at_once=lambda: self._signals.count > 0 or self._given_up,
            progress=self._progress,
        )
        problem = self._leaving()
        return troubles + ([problem] if problem else [])

    def _connect(self) -> None:
        """Connects in one of a few tries: LeRobot gives up at the first answer that is lost."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._robot.connect()
            except ConnectionError as error:
                logger.debug("%s", error)
                with suppress(Exception):
                    self._robot.disconnect(torque=True)
            self._progress()
        return self._robot.connect()

    def _last_word(self) -> str:
        """Returns what is known of an arm that is given up on, and what to do."""
        pose = ""
        if self._leaving is not None and self._leaving.seen is not None:
            seen = zip(self._robot.spec.action_names, self._leaving.seen, strict=True)
            pose = f"It was last seen at {', '.join(f'{name} {value:.4g}' for name, value in seen)}. "
        return (
            f"{outlook(self._motion, self._leaving)} {pose}Check its power and its cable, then run "
            f"`longarm-edge leave` again: {self._path} (safety.pose_file) still has the pose in which the run began."
        )

    def _progress(self) -> None:
        self._answered_at = self._clock.now()


def _may_drive(path: Path, safety: SafetySettings) -> bool:
    """Returns whether the robot of the kept pose may have something that drives on: a base with wheels."""
    names = pose_file.names(path)
    return names is None or bool(ActionKinds.from_names(names, (), safety.velocity_actions).is_velocity.any())
