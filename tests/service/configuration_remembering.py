"""An ACT that remembers: the configuration. See modeling_remembering."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig


@PreTrainedConfig.register_subclass("remembering")
@dataclass
class RememberingConfig(ACTConfig):
    """As ACT's."""
