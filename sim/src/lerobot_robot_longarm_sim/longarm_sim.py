"""The simulated arm as LeRobot sees it."""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lerobot.robots.robot import Robot
from lerobot.robots.utils import ensure_safe_goal_position
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_robot_longarm_sim.config_longarm_sim import LongarmSimConfig
from lerobot_robot_longarm_sim.joints import JOINTS, position_key
from lerobot_robot_longarm_sim.state import GroundTruth

if TYPE_CHECKING:
    from lerobot_robot_longarm_sim.render_thread import RenderThread
    from lerobot_robot_longarm_sim.world import World

logger = logging.getLogger(__name__)

CAMERAS = ("front", "wrist")

# How long the world goes on after the motors let go on disconnect: long enough for the arm to sink to the table.
SLUMP_SECONDS = 2.0


@dataclass(frozen=True)
class SimCamera:
    """A camera in the scene, described as LeRobot's commands expect of a robot's cameras."""

    width: int
    height: int


class LongarmSim(Robot):  # type: ignore[misc] # LeRobot is untyped to us
    """An SO-101-like arm with two cameras over a table with a cube and a bin.

    The world passes in real time while the robot is connected, and stands still otherwise: a robot that reconnects
    finds the arm and the cube as they were left. `reset` puts them back.

    `get_observation` and `send_action` may be called from any thread; `connect` and `disconnect` from one at a time.
    """

    config_class = LongarmSimConfig
    name = "longarm_sim"
    # Calls may come from several threads at a time: rendering does not hold up commands
    is_thread_safe = True

    def __init__(self, config: LongarmSimConfig) -> None:
        self._render_thread: RenderThread | None = None
        try:
            super().__init__(config)
        except OSError:
            if config.calibration_dir is not None:
                raise
            # LeRobot's folder for calibrations cannot be written. There is nothing to calibrate, so any other will do.
            elsewhere = Path(tempfile.gettempdir(), "longarm-sim-calibration")
            config = replace(config, calibration_dir=elsewhere)  # type: ignore[call-arg] # a field of LeRobot's
            super().__init__(config)
        self.config = config
        self.cameras = {name: SimCamera(width=config.width, height=config.height) for name in CAMERAS}

    @cached_property
    def _world(self) -> World:
        from lerobot_robot_longarm_sim.world import World

        return World(seed=self.config.seed)

    @cached_property
    def observation_features(self) -> dict[str, type | tuple[int, int, int]]:
        """Joint positions, then one (height, width, 3) RGB uint8 frame per camera."""
        frames = {name: (camera.height, camera.width, 3) for name, camera in self.cameras.items()}
        return {**self.action_features, **frames}

    @cached_property
    def action_features(self) -> dict[str, type]:
        """Joint positions: degrees, and 0 to 100 for the gripper."""
        return {position_key(joint): float for joint in JOINTS}

    @property
    def is_connected(self) -> bool:
        """Whether the world is running and the cameras see it."""
        return self._render_thread is not None and self._world.is_running

    @property
    def renderer_name(self) -> str | None:
        """What draws the frames: `egl`, `osmesa` or `plain`; None while not connected."""
        return None if self._render_thread is None else self._render_thread.renderer_name

    @check_if_already_connected  # type: ignore[untyped-decorator]
    def connect(self, calibrate: bool = True) -> None:  # noqa: ARG002 - there is nothing to calibrate
        """Starts time and the cameras. The motors hold the pose in which the arm is found.

        Raises:
          DeviceAlreadyConnectedError: It is connected.
          RendererUnavailableError: The renderer asked for does not work here.
        """
        from lerobot_robot_longarm_sim.render_thread import RenderThread

        config = self.config
        render_thread = RenderThread(config.renderer, self._world.model, config.width, config.height)
        self.configure()
        self._world.start()
        self._render_thread = render_thread
        logger.info("%s connected, frames by %s.", self, render_thread.renderer_name)

    @property
    def is_calibrated(self) -> bool:
        """Always: joint positions are exact."""
        return True

    def calibrate(self) -> None:
        """Does nothing."""

    def configure(self) -> None:
        """Does nothing: the servos' gains are part of the scene."""

    @check_if_not_connected  # type: ignore[untyped-decorator]
    def get_observation(self) -> dict[str, Any]:
        """Returns joint positions and new frames, all of the instant at which it was called.

        Raises:
          DeviceNotConnectedError: It is not connected, or was disconnected meanwhile.
        """
        from lerobot_robot_longarm_sim.render_thread import RenderThreadClosedError
        from lerobot_robot_longarm_sim.world import named

        render_thread = self._render_thread
        instant = self._world.instant()
        try:
            frames = render_thread.render(instant.qpos) if render_thread else {}
        except RenderThreadClosedError as error:
            raise DeviceNotConnectedError(f"{self} was disconnected while it was observing.") from error
        return {position_key(joint): value for joint, value in named(instant.joints).items()} | frames

    @check_if_not_connected  # type: ignore[untyped-decorator]
    def send_action(self, action: dict[str, Any]) -> dict[str, float]:
        """Gives the servos new targets and returns the targets in effect, clipped to the joints' limits.

        Raises:
          ValueError: A joint is missing, unknown, or its target is not finite; nothing is sent then.
          DeviceNotConnectedError: It is not connected.
        """
        from lerobot_robot_longarm_sim.world import named, ordered

        targets = self._checked(action)
        if self.config.max_relative_target is not None:
            present = named(self._world.instant().joints)
            pairs = {joint: (target, present[joint]) for joint, target in targets.items()}
            targets = ensure_safe_goal_position(pairs, self.config.max_relative_target)
        low, high = self._world.limits.T
        clipped = ordered(targets).clip(low, high)
        self._world.command(clipped)
        return {position_key(joint): value for joint, value in named(clipped).items()}

    def _checked(self, action: dict[str, Any]) -> dict[str, float]:
        missing = [key for key in self.action_features if key not in action]
        unknown = [key for key in action if key not in self.action_features]
        if missing or unknown:
            raise ValueError(
                f"Expected an action for {list(self.action_features)}; missing {missing}, unknown {unknown}"
            )
        targets = {joint: float(action[position_key(joint)]) for joint in JOINTS}
        broken = {joint: target for joint, target in targets.items() if not math.isfinite(target)}
        if broken:
            raise ValueError(f"Expected finite targets but found {broken}")
        return targets

    def reset(self) -> None:
        """Puts the arm at home and the cube back on the table, connected or not."""
        self._world.reset()

    def place_cube(self, position: tuple[float, float, float]) -> None:
        """Puts the cube's centre at a position, metres; it falls from there while the robot is connected."""
        self._world.place_cube(position)

    def ground_truth(self) -> GroundTruth:
        """Returns what a score may know and a policy may not, connected or not."""
        return self._world.ground_truth()

    def disconnect(self) -> None:
        """Stops time and the cameras and joins their threads. Does nothing when not connected.

        With `disable_torque_on_disconnect` the motors let go first and the arm sinks; otherwise it stays as it is.
        """
        render_thread, self._render_thread = self._render_thread, None
        if render_thread is None:
            return
        self._world.stop()
        render_thread.close()
        if self.config.disable_torque_on_disconnect:
            self._world.release()
            self._world.advance(SLUMP_SECONDS)
        logger.info("%s disconnected.", self)
