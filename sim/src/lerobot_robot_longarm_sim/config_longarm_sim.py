"""Configuration of the simulated arm, found by LeRobot as `--robot.type=longarm_sim`."""

from dataclasses import dataclass
from typing import Literal

from lerobot.robots.config import RobotConfig

RendererChoice = Literal["auto", "egl", "osmesa", "plain"]


@RobotConfig.register_subclass("longarm_sim")
@dataclass(kw_only=True)
class LongarmSimConfig(RobotConfig):  # type: ignore[misc] # LeRobot is untyped to us
    """Configuration of `LongarmSim`. Every field has a default: the arm needs no port and no calibration."""

    # Size of both cameras' frames, pixels: that of the policies that `longarm-sim-checkpoint` makes.
    width: int = 320
    height: int = 240

    # What draws the frames. `auto` takes the first of EGL, OSMesa and the plain CPU renderer that works here.
    renderer: RendererChoice = "auto"

    # Where `reset` puts the cube: None for a fixed place; with a seed a new one each time, in a sequence that repeats.
    seed: int | None = None

    # As on the SO-101 follower: let the motors go limp on disconnect, so that the arm sinks to the table.
    disable_torque_on_disconnect: bool = True

    # As on the SO-101 follower: the farthest a target may lie from the present position, robot units, for all joints
    # or by joint. None: no such limit.
    max_relative_target: float | dict[str, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (16 <= self.width <= 4096 and 16 <= self.height <= 4096):
            raise ValueError(f"Frames must be between 16 and 4096 pixels a side, got {self.width}x{self.height}")
