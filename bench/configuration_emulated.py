"""Configuration of the bench's policy, known to LeRobot as longarm_bench once this module is imported."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig

POLICY_TYPE = "longarm_bench"


@PreTrainedConfig.register_subclass(POLICY_TYPE)
@dataclass
class EmulatedConfig(ACTConfig):  # type: ignore[misc]  # LeRobot is untyped to us
    """An ACT whose forward pass may be replaced by a wait.

    Attributes:
      inference_seconds: How long a prediction takes, without use of the processor. 0: as long as ACT's forward does,
        which is then run.
    """

    inference_seconds: float = 0.1
