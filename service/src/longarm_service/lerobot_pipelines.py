"""A checkpoint's processors, read once and copied for each session."""

import copy
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import make_pre_post_processors

from longarm_service.checkpoint import Checkpoint

DEVICE_STEP = "device_processor"

# LeRobot's preprocessor and postprocessor, the one wired to the other
type Pair = tuple[Any, Any]


class Pipelines:
    """The pair as it was read, which nobody uses: sessions use copies.

    To read it anew for each session would take a tokenizer's files, and the hub behind them, which may be gone by then.
    """

    def __init__(self, found: Checkpoint, config: PreTrainedConfig, device: torch.device) -> None:
        """Reads the pair. Raises what LeRobot does."""
        steps = [step.get("registry_name") for step in found.preprocessor["steps"]]
        self._pair: Pair = make_pre_post_processors(
            config,
            pretrained_path=str(found.read_from),
            # The rename step stays as it was saved: observations are fed under the names that it expects
            preprocessor_overrides={DEVICE_STEP: {"device": str(device)}} if DEVICE_STEP in steps else {},
        )
        # Their state lies in files that are mapped: one that is cut short later would end the process at the next copy
        self._pair = self.copied()

    def copied(self) -> Pair:
        """Returns a pair with a memory of its own and the wires between the two.

        Tokenizers are shared: they take long to copy, remember nothing, and are used on the policy's thread alone.
        """
        shared = {
            id(value): value for step in _steps(self._pair) for value in vars(step).values() if _is_tokenizer(value)
        }
        return copy.deepcopy(self._pair, shared)

    def keep_tokenizers(self, used: Pair) -> None:
        """Takes over what used, a copy, has loaded by now: some steps load a tokenizer when it is first needed."""
        for step, other in zip(_steps(self._pair), _steps(used), strict=True):
            vars(step).update({name: value for name, value in vars(other).items() if _is_tokenizer(value)})


def _steps(pair: Pair) -> list[Any]:
    return [step for pipeline in pair for step in pipeline.steps]


def _is_tokenizer(value: object) -> bool:
    """Returns whether value is a tokenizer, image processor or the like of transformers, which may not be installed."""
    return any(kind.__name__ == "PushToHubMixin" for kind in type(value).__mro__)
