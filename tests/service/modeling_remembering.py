"""An ACT that remembers how often it predicted in this episode, as policies do that keep noise or a plan."""

from typing import Any

import torch
from lerobot.policies.act.modeling_act import ACTPolicy
from tests.service.configuration_remembering import RememberingConfig


class RememberingPolicy(ACTPolicy):
    """Adds to each value of a chunk the number of predictions since its reset."""

    config_class = RememberingConfig
    name = "remembering"

    def reset(self) -> None:
        super().reset()
        self.predictions = 0

    def predict_action_chunk(self, batch: Any) -> torch.Tensor:
        self.predictions += 1
        return super().predict_action_chunk(batch) + self.predictions
