"""What the values of an action are, and where a robot stands in their terms.

A joint that was told a position holds it by itself. A wheel that was told a velocity drives on until it is told
otherwise, so that whoever has nothing to say to it has to say 0.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longarm_edge.robot import Robot
from longarm_wire.specs import RobotSpec

# How LeRobot's robots call velocities: x.vel (lekiwi), linear_velocity (earthrover), mobile_base.vx (reachy2), and the
# sticks of the remote control that a unitree_g1 walks by
_VELOCITY = re.compile(r"(^|[._])(vel|velocity|v[xyz]|vtheta|w[xyz])$|^remote\.")


@dataclass(frozen=True)
class ActionKinds:
    """Which values of an action are velocities, and which states tell where its joints stand.

    Attributes:
      names: Of the action's values, in order.
      is_velocity: Whether each is a velocity, bool, shape (names). The others are positions.
      pose_names: For each position, the state that measures it, None where no state does; for a velocity None.
    """

    names: tuple[str, ...]
    is_velocity: np.ndarray
    pose_names: tuple[str | None, ...]

    @classmethod
    def from_names(
        cls,
        action_names: Sequence[str],
        state_names: Sequence[str],
        velocity_actions: Sequence[str] | None = None,
        pose_names: Mapping[str, str | None] | None = None,
    ) -> "ActionKinds":
        """Returns the kinds of action_names.

        Args:
          action_names: Of the robot.
          state_names: Of the robot.
          velocity_actions: Those that are velocities; None to tell by their names.
          pose_names: The state that measures an action's value, where it has another name than the action.

        Raises:
          ValueError: A name is none of the robot's.
        """
        chosen = dict(pose_names or {})
        for what, found, known in (
            ("velocity_actions", velocity_actions or (), action_names),
            ("pose_names", chosen, action_names),
            ("pose_names", [state for state in chosen.values() if state is not None], state_names),
        ):
            if unknown := sorted(set(found) - set(known)):
                raise ValueError(f"{what} names {', '.join(unknown)}; the robot has {', '.join(known)}")
        fast = [n in velocity_actions if velocity_actions is not None else bool(_VELOCITY.search(n))
                for n in action_names]  # fmt: skip
        by_name = {name: name for name in state_names} | chosen
        poses = (None if is_fast else by_name.get(name) for name, is_fast in zip(action_names, fast, strict=True))
        return cls(tuple(action_names), np.array(fast, bool), tuple(poses))

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The joints of which no state tells where they stand."""
        return tuple(
            name
            for name, is_fast, pose in zip(self.names, self.is_velocity, self.pose_names, strict=True)
            if pose is None and not is_fast
        )

    def halted(self, command: np.ndarray) -> np.ndarray:
        """Returns command with every velocity 0: joints stay where it has them, wheels stand."""
        return np.where(self.is_velocity, np.float32(0), command)


def pose_in(state: np.ndarray, spec: RobotSpec, kinds: ActionKinds) -> np.ndarray:
    """Returns where a robot stands as a command that keeps it there.

    float32, shape (action_names): 0 for velocities, NaN for a joint that no state measures.

    Args:
      state: What the robot feels, shape (state_names), robot units.
      spec: The robot's.
      kinds: Those of its actions.

    Raises:
      ConnectionError: A state that measures a joint is no number.
    """
    by_name = dict(zip(spec.state_names, state, strict=True))
    # Taken for a joint that no state measures, its first command would go out past max_step
    if unknown := [name for name in kinds.pose_names if name is not None and not np.isfinite(by_name[name])]:
        raise ConnectionError(f"The robot {spec.robot_type} gave no number for {', '.join(unknown)}")
    pose = (np.nan if name is None else by_name[name] for name in kinds.pose_names)
    return kinds.halted(np.array(list(pose), np.float32))


def measured_pose(robot: Robot, kinds: ActionKinds) -> np.ndarray:
    """Returns where a connected robot stands now; see pose_in. Raises as the robot does, too."""
    return pose_in(robot.read_state(), robot.spec, kinds)


def explain_unmeasured(kinds: ActionKinds, state_names: Sequence[str]) -> str:
    """Returns what to set so that it is known where the unmeasured joints stand."""
    names = {name: next(iter(difflib.get_close_matches(name, state_names, n=1)), None) for name in kinds.unmeasured}
    return (
        f"No state is named {', '.join(names)}, so it is not known where they stand. The robot's states are "
        f"{', '.join(state_names) or 'none'}. Set safety.pose_names={json.dumps(names)}, with null for a joint that no "
        "state measures: its first command then goes out as the policy gives it."
    )
