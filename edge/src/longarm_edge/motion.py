"""What may be done with a robot's motors: what its actions are, their bounds, and how it can be left."""

import logging
from dataclasses import dataclass

import numpy as np

from longarm_edge.actions import ActionKinds, explain_unmeasured
from longarm_edge.guard import Guard
from longarm_edge.robot import Robot, Torque
from longarm_edge.settings import SafetySettings, StopRule
from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)

# What a stop rule needs of a robot with joints
_POSSIBLE = {
    StopRule.HOLD: {Torque.CHOSEN, Torque.KEPT},
    StopRule.REST: {Torque.CHOSEN, Torque.KEPT},
    StopRule.RELEASE: {Torque.CHOSEN, Torque.LOST},
    StopRule.DRIVER: set(Torque),
}
_WHY = {
    Torque.KEPT: "its driver always keeps the torque on",
    Torque.LOST: "its driver always takes the torque off when it disconnects",
    Torque.UNKNOWN: "its driver has no setting disable_torque_on_disconnect, so nobody can say what it does",
}


@dataclass(frozen=True)
class Motion:
    """What a run may do with one robot.

    Attributes:
      kinds: What the values of its actions are.
      guard: Their bounds.
      safety: The rules.
    """

    kinds: ActionKinds
    guard: Guard
    safety: SafetySettings

    @classmethod
    def plan(cls, robot: Robot, safety: SafetySettings) -> "Motion":
        """Returns what safety makes of robot, which need not be connected.

        Raises:
          ConfigurationError: A setting names what the robot does not have, or the robot cannot be moved or left as
            safety says.
        """
        spec = robot.spec
        try:
            kinds = ActionKinds.from_names(
                spec.action_names, spec.state_names, safety.velocity_actions, safety.pose_names
            )
            guard = Guard.from_names(spec.action_names, safety.joint_limits, safety.max_step)
        except ValueError as error:
            raise ConfigurationError([f"safety: {error}"]) from None
        torque, rule = robot.torque_at_disconnect, safety.on_stop
        if not kinds.is_velocity.all() and torque not in _POSSIBLE[rule]:
            others = ", ".join(other for other, needed in _POSSIBLE.items() if torque in needed)
            why = f"A {spec.robot_type} cannot be left by safety.on_stop={rule}: {_WHY[torque]}."
            raise ConfigurationError([f"{why} Set it to one of: {others}."])
        bounded = {name for name, step in zip(spec.action_names, guard.max_step, strict=True) if np.isfinite(step)}
        unknown = bounded & set(kinds.unmeasured) - set(safety.pose_names)
        if unknown:
            raise ConfigurationError([f"safety.max_step: {explain_unmeasured(kinds, spec.state_names)}"])
        return cls(kinds, guard, safety)

    def out_of_reach(self, start_pose: np.ndarray) -> str:
        """Returns why the way back cannot lead to start_pose, in words for a person; nothing if it can.

        Args:
          start_pose: Shape (action_dim), NaN where it is not known.
        """
        if self.safety.on_stop is not StopRule.REST:
            return ""
        lower, upper = self.guard.lower, self.guard.upper
        beyond = np.maximum(lower - start_pose, start_pose - upper) > self.safety.rest_tolerance
        found = ", ".join(
            f"{self.kinds.names[i]} at {start_pose[i]:.4g}, outside {lower[i]:.4g} to {upper[i]:.4g}"
            for i in np.flatnonzero(beyond & ~self.kinds.is_velocity)
        )
        return found and (
            f"on_stop=rest cannot lead the arm back to its start pose, which has {found} (safety.joint_limits): at the "
            "end it will hold, and the run will have failed. Stop it, and begin within the limits or widen them."
        )
