"""What stands between a policy's numbers and the motors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


class RejectedChunkError(ValueError):
    """A chunk must not be executed, not even in part."""


def check_chunk(actions: np.ndarray, action_dim: int) -> None:
    """Returns if a chunk may be executed.

    Args:
      actions: Should be of shape (steps >= 1, action_dim) and finite.
      action_dim: Values of one action.

    Raises:
      RejectedChunkError: The shape differs, or a value is NaN or infinite.
    """
    if actions.ndim != 2 or actions.shape[0] < 1 or actions.shape[1] != action_dim:
        raise RejectedChunkError(f"Expected a chunk of shape (steps, {action_dim}) but found {actions.shape}")
    bad = ~np.isfinite(actions)
    if bad.any():
        step, joint = np.argwhere(bad)[0]
        raise RejectedChunkError(
            f"Expected finite actions but found {int(bad.sum())} NaN or infinite, the first at step {step}, "
            f"value {joint}"
        )


@dataclass(frozen=True)
class Guard:
    """Clamps actions to joint limits and to a largest step from the last command.

    Clamping each action against the command before it bounds the whole chunk, and also the seams: from one chunk to the
    next, after idle ticks, and on the way back to the start pose.

    Attributes:
      lower: Lowest command, shape (action_dim), -inf where unlimited.
      upper: Highest command, shape (action_dim), inf where unlimited.
      max_step: Largest change per tick, shape (action_dim), inf where unlimited.
    """

    lower: np.ndarray
    upper: np.ndarray
    max_step: np.ndarray

    @classmethod
    def from_names(
        cls,
        action_names: Sequence[str],
        joint_limits: Mapping[str, tuple[float, float]],
        max_step: float | Mapping[str, float] | None,
    ) -> "Guard":
        """Returns the guard for actions in the order of action_names.

        Args:
          action_names: For example "gripper.pos".
          joint_limits: Lowest and highest command by action name, robot units.
          max_step: Largest change per tick, robot units: one for all, by action name, or None for no bound.

        Raises:
          ValueError: A name is no action, a bound is not positive, or limits are the wrong way round.
        """
        steps = dict(max_step) if isinstance(max_step, Mapping) else {}
        for what, names in (("joint_limits", joint_limits), ("max_step", steps)):
            unknown = sorted(set(names) - set(action_names))
            if unknown:
                raise ValueError(
                    f"{what} names {', '.join(unknown)}; the robot's actions are {', '.join(action_names)}"
                )
        common = max_step if isinstance(max_step, int | float) else np.inf
        guard = cls(
            lower=np.array([joint_limits.get(n, (-np.inf, np.inf))[0] for n in action_names], np.float32),
            upper=np.array([joint_limits.get(n, (-np.inf, np.inf))[1] for n in action_names], np.float32),
            max_step=np.array([steps.get(n, common) for n in action_names], np.float32),
        )
        if (guard.lower > guard.upper).any() or np.isnan(guard.lower).any() or np.isnan(guard.upper).any():
            raise ValueError(f"joint_limits must be lowest and highest per name, found {dict(joint_limits)}")
        if not (guard.max_step > 0).all():
            raise ValueError(f"max_step must be positive, found {max_step}")
        return guard

    def clamp(self, action: np.ndarray, previous: np.ndarray) -> tuple[np.ndarray, bool]:
        """Returns the command to send for action, and whether it differs from action.

        Args:
          action: float32, shape (action_dim), finite.
          previous: The command before it, or the measured pose before the first; same shape, NaN where unknown.
        """
        # Limits first: a joint that is found outside of them approaches them by max_step too
        within = np.clip(action, self.lower, self.upper)
        stepped = np.clip(within, previous - self.max_step, previous + self.max_step)
        command = np.where(np.isnan(previous), within, stepped)
        return command, bool((command != action).any())


def approach(target: np.ndarray, previous: np.ndarray, largest: np.ndarray) -> np.ndarray | None:
    """Returns the next command on the straight way to target, or None once target itself is near enough.

    Args:
      target: Where to, shape (action_dim).
      previous: The command before, same shape, NaN where unknown: such a joint goes at once.
      largest: Largest change, same shape, inf where unlimited.
    """
    way = np.nan_to_num(target - previous, nan=0.0)
    share = float(np.min(largest / np.maximum(np.abs(way), 1e-9)))
    if share >= 1:
        return None
    return np.where(np.isnan(previous) | np.isinf(largest), target, previous + way * share).astype(np.float32)
