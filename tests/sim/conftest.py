"""Simulated arms for the tests, on real MuJoCo. Their calibration folders stay out of the home directory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lerobot_robot_longarm_sim import LongarmSim, LongarmSimConfig

MakeArm = Callable[..., LongarmSim]


@pytest.fixture
def make_arm(tmp_path: Path) -> Iterator[MakeArm]:
    """Makes arms that are not connected yet, plain-rendered and small unless told otherwise; disconnects them after."""
    arms: list[LongarmSim] = []

    def make(**fields: Any) -> LongarmSim:
        small = {"renderer": "plain", "width": 160, "height": 120}
        config = LongarmSimConfig(**{"id": "test", "calibration_dir": tmp_path, **small, **fields})
        arms.append(LongarmSim(config))
        return arms[-1]

    yield make
    for arm in arms:
        arm.disconnect()


@pytest.fixture
def arm(make_arm: MakeArm) -> LongarmSim:
    """A connected arm."""
    arm = make_arm()
    arm.connect()
    return arm
