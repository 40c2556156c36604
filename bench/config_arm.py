"""Configuration of the bench's robot, found by LeRobot as --robot.type=longarm_bench once this module is imported."""

from dataclasses import dataclass

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("longarm_bench")
@dataclass(kw_only=True)
class BenchArmConfig(RobotConfig):  # type: ignore[misc]  # LeRobot is untyped to us
    """Where its frames lie and where its log goes.

    Attributes:
      frames: An .npy file, uint8 of shape (count, cameras, height, width, 3).
      log: Where to write a RobotLog.
    """

    frames: str
    log: str
    # As on the SO-101 follower; the bench's arm has no torque
    disable_torque_on_disconnect: bool = True
