"""Real-time chunking as it travels: its settings, and what is left of the chunk that a robot executes."""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire import tensors
from longarm_wire.errors import Reason, WireError


class PrefixAttentionSchedule(StrEnum):
    """How closely a new chunk follows the old one between the expected delay and the horizon; LeRobot's names."""

    ZEROS = "ZEROS"
    ONES = "ONES"
    LINEAR = "LINEAR"
    EXP = "EXP"


@dataclass(frozen=True)
class RtcConfig:
    """Settings of real-time chunking, with the names and defaults of LeRobot's RTCConfig.

    Attributes:
      execution_horizon: Ticks over which the new chunk follows the old one, positive.
      max_guidance_weight: Upper bound of the guidance weight, positive.
      prefix_attention_schedule: Shape of the prefix weights.
    """

    execution_horizon: int = 10
    max_guidance_weight: float = 10.0
    prefix_attention_schedule: PrefixAttentionSchedule = PrefixAttentionSchedule.LINEAR

    def to_proto(self) -> pb.RtcConfig:
        """Returns the settings as a message."""
        return pb.RtcConfig(
            execution_horizon=self.execution_horizon,
            max_guidance_weight=self.max_guidance_weight,
            prefix_attention_schedule=self.prefix_attention_schedule.value,
        )

    @classmethod
    def from_proto(cls, message: pb.RtcConfig) -> "RtcConfig":
        """Returns the settings that message holds.

        Raises:
          WireError: INVALID_REQUEST; a number is not positive or the schedule has no such name.
        """
        if message.execution_horizon < 1:
            raise _invalid(f"Expected rtc.execution_horizon of at least 1, found {message.execution_horizon}")
        if not (message.max_guidance_weight > 0 and math.isfinite(message.max_guidance_weight)):
            raise _invalid(f"Expected a positive, finite rtc.max_guidance_weight, found {message.max_guidance_weight}")
        try:
            schedule = PrefixAttentionSchedule(message.prefix_attention_schedule)
        except ValueError:
            raise _invalid(
                f"Expected rtc.prefix_attention_schedule of {', '.join(PrefixAttentionSchedule)}, found "
                f"{message.prefix_attention_schedule!r}"
            ) from None
        return cls(message.execution_horizon, message.max_guidance_weight, schedule)


@dataclass(frozen=True, eq=False)
class RtcPrefix:
    """The actions that a robot has still to execute, from the observation's step on.

    Attributes:
      delay_ticks: Actions expected to be executed before the reply is there.
      model_actions: float32, shape (steps, model_action_dim).
      robot_actions: float32, shape (steps, action_dim).
    """

    delay_ticks: int
    model_actions: np.ndarray
    robot_actions: np.ndarray

    def to_proto(self) -> pb.RtcPrefix:
        """Returns the prefix as a message."""
        return pb.RtcPrefix(
            delay_tick_count=self.delay_ticks,
            step_count=len(self.model_actions),
            model_actions=tensors.pack(self.model_actions),
            robot_actions=tensors.pack(self.robot_actions),
        )

    @classmethod
    def from_proto(
        cls, message: pb.RtcPrefix, *, model_action_dim: int, action_dim: int, max_steps: int
    ) -> "RtcPrefix":
        """Returns the prefix that message holds.

        Args:
          message: From a peer that is not trusted.
          model_action_dim: Values of a model-space action.
          action_dim: Values of a robot-space action.
          max_steps: Most steps that a chunk has.

        Raises:
          WireError: INVALID_REQUEST; a count is out of bounds, an array has another size, or a value is NaN or
            infinite.
        """
        delay, steps = message.delay_tick_count, message.step_count
        if delay < 0 or not 0 <= steps <= max_steps:
            raise _invalid(
                f"Expected an rtc_prefix with a delay of at least 0 and 0 to {max_steps} steps, found a delay of "
                f"{delay} and {steps} steps"
            )
        arrays = []
        for name, data, dim in (
            ("model_actions", message.model_actions, model_action_dim),
            ("robot_actions", message.robot_actions, action_dim),
        ):
            try:
                array = tensors.unpack(data, (steps, dim))
            except tensors.TensorError as error:
                raise _invalid(f"rtc_prefix.{name}: {error}") from error
            if not np.isfinite(array).all():
                raise _invalid(f"Expected finite rtc_prefix.{name}, found NaN or infinity")
            arrays.append(array)
        return cls(delay, *arrays)


def _invalid(message: str) -> WireError:
    return WireError(Reason.INVALID_REQUEST, message)
