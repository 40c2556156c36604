"""Marks: which observation an action comes from, told by the action itself, whatever carried it.

The robot counts its observations in one state value that no joint depends on. The policy answers with the count in
binary digits, one per action value. LeRobot blends chunks with 0.7 for the newest: a digit of a blend is above one half
exactly if it is set in the newest chunk's count, so that the newest of a blend can be read off as well.
"""

import numpy as np

DIGITS = 8
CYCLE = 1 << DIGITS
MARK_NAMES = tuple(f"mark_{digit}.pos" for digit in range(DIGITS))
# As a state value the count is scaled down, so that filters that look at the distance of states do not see it
STATE_STEP = 1e-3


def to_state(count: int) -> float:
    """Returns the state value of an observation with this count."""
    return count % CYCLE * STATE_STEP


def from_state(value: float) -> int:
    """Returns the count modulo CYCLE of a state value."""
    return round(value / STATE_STEP) % CYCLE


def to_digits(count: int) -> np.ndarray:
    """Returns the digits of count modulo CYCLE, float32 of shape (DIGITS,), least first."""
    return ((count % CYCLE >> np.arange(DIGITS)) & 1).astype(np.float32)


def from_digits(digits: np.ndarray) -> int:
    """Returns the count modulo CYCLE of digits that may be blended."""
    return int(((np.asarray(digits) > 0.5) << np.arange(DIGITS)).sum())


def unwrap(mark: int, before: int) -> int:
    """Returns the largest count that has this mark and is at most before; negative if there is none."""
    return before - (before - mark) % CYCLE
