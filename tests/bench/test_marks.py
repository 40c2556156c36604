"""Marks survive what happens to actions on their way."""

import itertools

import numpy as np
import pytest
from lerobot.async_inference.configs import AGGREGATE_FUNCTIONS

from bench import marks


@pytest.mark.parametrize("count", [0, 1, 2, 127, 128, 255, 256, 1000])
def test_state_and_digits_say_the_count(count: int) -> None:
    assert marks.from_state(float(np.float32(marks.to_state(count)))) == count % marks.CYCLE
    assert marks.from_digits(marks.to_digits(count)) == count % marks.CYCLE


def test_the_newest_of_a_blend_is_read() -> None:
    blend = AGGREGATE_FUNCTIONS["weighted_average"]
    for old, newer, newest in itertools.product((0, 85, 170, 255, 3), repeat=3):
        digits = blend(blend(marks.to_digits(old), marks.to_digits(newer)), marks.to_digits(newest))
        assert marks.from_digits(digits) == newest


def test_the_count_is_found_back() -> None:
    for count in (1, 200, 256, 257, 5000):
        for later in (0, 1, 100, marks.CYCLE - 1):
            assert marks.unwrap(count % marks.CYCLE, count + later) == count


def test_a_step_of_the_count_is_below_every_filter() -> None:
    """Else the bench would switch off the filters that it measures."""
    states = [marks.to_state(count) for count in range(marks.CYCLE)]
    assert max(states) - min(states) < 0.3
