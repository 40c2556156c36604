"""The robot between connecting and letting go, with what the stop rule needs to know."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from longarm_edge import pose_file
from longarm_edge.actions import measured_pose, pose_in
from longarm_edge.aside import aside, looked_after
from longarm_edge.control import ControlLoop
from longarm_edge.motion import Motion
from longarm_edge.robot import Robot, RobotReading
from longarm_edge.schedule import Clock
from longarm_edge.stop import Interrupted, Leaving, Signals, outlook, patiently
from longarm_edge.way_back import standing

logger = logging.getLogger(__name__)

# A robot that answers no call for this long while it is left hangs, in seconds. Cameras take some to disconnect
HANG_SECONDS = 10.0
# A robot that takes longer to connect hangs, in seconds. Under systemd the start is then given up
CONNECT_SECONDS = 60.0


class Arm:
    """Connects, and leaves the arm by rule. Its robot's calls run beside the main thread.

    Attributes:
      loop: Drives it, once it does.
      problem: What was not as the rule wants it when the arm was left; None if it was left by rule.
      heard: Whether the last command reached the arm for all that is known.
    """

    def __init__(self, robot: Robot, motion: Motion, fps: float, clock: Clock, signals: Signals) -> None:
        """Prepares to connect to robot and to leave it as motion says, on the way back at fps."""
        self._robot = robot
        self._motion = motion
        self._fps = fps
        self._clock = clock
        self._signals = signals
        self._pose_file = motion.safety.pose_file
        self._start_pose: np.ndarray | None = None
        # Where it stands before the first command, once that is known
        self._found = np.full(len(robot.spec.action_names), np.nan, np.float32)
        self._after_kill = self._touched = False
        # While it is open, others see that a run is alive
        self._kept: int | None = None
        self._answered_at = 0.0
        self._leaving: Leaving | None = None
        self.loop: ControlLoop | None = None
        self.problem: str | None = None
        self.heard: Callable[[], bool] = lambda: True

    def connect(self) -> np.ndarray:
        """Connects, and returns where the arm stands as a command: shape (action_dim), NaN where it is not known.

        Raises:
          ConnectionError: The robot does not answer, or hangs, or another program has it.
          ConfigurationError: The pose cannot be kept.
          Interrupted: A signal came meanwhile.
        """
        if self._pose_file is not None:
            self._kept = pose_file.lock(self._pose_file)
            self._after_kill = pose_file.is_kept(self._pose_file)
        give_up_at = self._clock.now() + CONNECT_SECONDS

        def look() -> None:
            self._signals.check()
            if self._clock.now() > give_up_at:
                raise ConnectionError(
                    f"The robot has not connected, or given its first observation, for {CONNECT_SECONDS:g} s. Check "
                    "its power, its cables and its cameras"
                )

        pose = looked_after(aside(self._connect, "connect"), look)
        self._start_pose = self._found = pose
        if self._pose_file is not None:
            self._start_pose = self._inherited(pose, self._pose_file)
            pose_file.keep(self._pose_file, self._robot.spec.action_names, self._start_pose)
        if why := self._motion.out_of_reach(self._start_pose):
            logger.warning("%s", why)
        return pose

    def found(self, reading: RobotReading) -> None:
        """Takes note of where the arm stands, of which nothing could be seen for a while.

        Raises:
          ConnectionError: A second look tells something else.
        """
        seen = pose_in(reading.state, self._robot.spec, self._motion.kinds)
        again = measured_pose(self._robot, self._motion.kinds)
        if (np.abs(seen - again) > self._motion.safety.rest_tolerance).any():
            raise ConnectionError("two looks at where its joints stand disagree")
        if self.loop is not None:
            self.loop.stand_at(again)

    def seen(self, reading: RobotReading) -> np.ndarray | None:
        """Returns where the arm stands in reading as a command, NaN where nobody measures it; None if it cannot say."""
        try:
            return pose_in(reading.state, self._robot.spec, self._motion.kinds)
        except ConnectionError:  # a state that is no number: the service refuses it, and says so
            return None

    def behind(self, seen: np.ndarray) -> float | None:
        """Returns how far the joint that is farthest from its command is seen from it, robot units.

        None before the first command, and where no joint is measured.
        """
        if self.loop is None or self.loop.first_command is None:
            return None
        apart = np.abs(self.loop.last_command - seen)[~self._motion.kinds.is_velocity]
        return float(np.nanmax(apart)) if not np.isnan(apart).all() else None

    def leave(self) -> None:
        """Leaves the arm by rule, as far as it answers. A third signal gives up on it."""
        signals = self._signals
        # Being torn out of a hang means hurry; a further signal does as well
        hurry = signals.count > 1
        before = signals.count
        given_up = False
        signals.patience = before + 2
        if self.loop is not None:
            self.loop.cancel()

        def look() -> None:
            signals.check()
            if self._clock.now() - self._answered_at > HANG_SECONDS:
                raise TimeoutError(f"the robot has not answered for {HANG_SECONDS:g} s")

        self._progress()
        # Nor may a robot that answers after all set out on the way back when nobody waits for it any more
        leaving = aside(lambda: self._leave(lambda: hurry or given_up or signals.count > before), "leave")
        try:
            self.problem = looked_after(leaving, look)
        except (TimeoutError, Interrupted) as error:
            given_up = True
            why = f"interrupted by {error}" if isinstance(error, Interrupted) else str(error)
            self.problem = (
                f"The arm was not left as wanted (on_stop={self._motion.safety.on_stop}): {why}. "
                f"{outlook(self._motion, self._leaving)}"
            )
        # What went wrong is left for `longarm-edge leave` to mend, and so is the last run's arm that was not reached
        if self.problem is None and self._pose_file is not None and self._start_pose is not None:
            pose_file.forget(self._pose_file)
        if self._kept is not None:
            os.close(self._kept)
            self._kept = None
        # The arm is out of our hands: from here on there is only what was recorded to put away
        signals.patience = sys.maxsize

    def _connect(self) -> np.ndarray:
        kinds = self._motion.kinds
        self._touched = True
        self._robot.connect()
        if kinds.is_velocity.any():
            # A killed run may have left it driving, and cameras, motors and the first command may take a while
            pose = self._found = self._standing()
            if not np.isnan(pose).any():
                patiently(lambda: self._robot.send(pose))
        # Cameras too: where one is missing, no motor is configured for nothing
        patiently(self._robot.observe)
        self._robot.configure()
        # An arm that was configured may still come back up
        self._found = self._standing()
        return self._found

    def _standing(self) -> np.ndarray:
        pose, _ = standing(
            lambda: patiently(lambda: measured_pose(self._robot, self._motion.kinds)),
            self._motion.safety.rest_tolerance,
            self._clock,
        )
        return pose

    def _inherited(self, pose: np.ndarray, path: Path) -> np.ndarray:
        """Returns where the way back leads: after a run that has not left its arm by rule, where that one's led."""
        if not self._after_kill:
            return pose
        try:
            start = pose_file.read(path, self._robot.spec.action_names)
        except (OSError, ValueError) as error:
            logger.warning("%s, and where it started cannot be read: %s", pose_file.WHY_KEPT, error)
            return pose
        logger.warning(
            "%s: the way back (on_stop=rest) leads to where that run started. Where that is wrong, stop, remove %s "
            "(safety.pose_file), and start again.",
            pose_file.WHY_KEPT,
            path,
        )
        return np.where(np.isnan(start), pose, start)

    def _leave(self, at_once: Callable[[], bool]) -> str | None:
        start, last = self._start_pose, None
        if self.loop is not None and self.loop.first_command is not None:
            last = self.loop.last_command
            # A joint that nobody measures started where it was first sent
            start = np.where(np.isnan(start), self.loop.first_command, start) if start is not None else None
        elif self._touched and (self._after_kill or self._motion.kinds.is_velocity.any()):
            # Nobody has left it by rule since the run before moved it, or since whatever set it driving
            last = self._found
        moved = self.loop is not None and self.loop.first_command is not None
        away = start is not None and (np.abs(start - self._found) > self._motion.safety.rest_tolerance).any()
        # Whoever was told that the start pose may be wrong, and stops, does not want to see the arm go there
        stay = "it was not moved, and holds: `longarm-edge leave` leads it to where the last run began"
        self._leaving = Leaving(
            robot=self._robot,
            motion=self._motion,
            start_pose=start,
            last_command=last,
            fps=self._fps,
            clock=self._clock,
            at_once=at_once,
            progress=self._progress,
            heard=self.heard(),
            stay=stay if away and not moved else "",
        )
        return self._leaving()

    def _progress(self) -> None:
        self._answered_at = self._clock.now()
