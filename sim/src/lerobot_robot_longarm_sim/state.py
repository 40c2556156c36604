"""What the simulated world hands out: plain values, copied, of one instant each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Frame = NDArray[np.uint8]
"""An image: uint8 of shape (height, width, 3), RGB."""


@dataclass(frozen=True)
class Instant:
    """The world's state after one physics step."""

    seconds: float
    """Simulated time since the world was made or reset."""
    qpos: FloatArray
    """MuJoCo's generalised positions: all that a renderer needs."""
    joints: FloatArray
    """Joint positions in robot units, shape (6,), in the order of `JOINTS`."""


@dataclass(frozen=True)
class GroundTruth:
    """What a score may know and a policy may not."""

    cube_position: tuple[float, float, float]
    """Centre of the cube, metres; z is up, the arm stands at the origin and reaches towards +x."""
    cube_in_bin: bool
    """Whether the cube lies inside the bin's walls and below their rim."""
    joint_positions: dict[str, float]
    """Position by joint name, robot units."""
