"""A simulated SO-101-like arm as a LeRobot robot of type `longarm_sim`.

LeRobot imports this package to discover the robot, so MuJoCo and OpenGL are imported only once a robot connects.
"""

from lerobot_robot_longarm_sim.config_longarm_sim import LongarmSimConfig
from lerobot_robot_longarm_sim.longarm_sim import LongarmSim
from lerobot_robot_longarm_sim.state import GroundTruth

__all__ = ["GroundTruth", "LongarmSim", "LongarmSimConfig"]
