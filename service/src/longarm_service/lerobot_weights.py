"""Whole weights or none: LeRobot fills in random values where a checkpoint has none, and says so in its log only."""

import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy

from longarm_service.lerobot_sizes import no_larger_than

logger = logging.getLogger(__name__)

# Enough to see which part of a policy is meant
NAMED = 5
# Torch's own counter of training steps, of no use afterwards
UNUSED_SUFFIX = ".num_batches_tracked"
# What torch.compile adds to the names of a module's tensors
COMPILED_PART = "_orig_mod."
LEROBOT_POLICIES = "lerobot.policies."
# The least of a floating number that stands for itself
FLOAT_BYTES = 2


class IncompleteWeightsError(Exception):
    """A checkpoint does not hold all weights of its policy."""


@dataclass
class _Loading:
    """What torch says of a policy's load_state_dict, also where the policy swallows it.

    Attributes:
      missing: Names that had no tensor; None before anything was loaded.
      errors: Tensors that do not fit, in torch's words.
    """

    missing: list[str] | None = None
    errors: list[str] = field(default_factory=list)
    _errors: list[str] = field(default_factory=list)

    def watch(self, policy: torch.nn.Module) -> None:
        policy.register_load_state_dict_pre_hook(self._begin)
        policy.register_load_state_dict_post_hook(self._end)

    def _begin(self, policy: torch.nn.Module, state: dict[str, Any], *arguments: Any) -> None:
        self._errors = arguments[-1]
        # A policy that was compiled when it was saved; here it is not
        for name in [name for name in state if COMPILED_PART in name]:
            state[name.replace(COMPILED_PART, "")] = state.pop(name)
        self._errors += [
            f"{name} holds values of type {state[name].dtype}, which do not become {own.dtype}"
            for name, own in policy.state_dict().items()
            if name in state and not _means_the_same(state[name].dtype, own.dtype)
        ]

    def _end(self, _: torch.nn.Module, keys: Any) -> None:
        # Copies: a strict load goes on to add names that are too many, which do no harm
        self.missing, self.errors = list(keys.missing_keys), list(self._errors)


def load_whole(policy_class: type[PreTrainedPolicy], directory: Path, config: PreTrainedConfig) -> PreTrainedPolicy:
    """Returns LeRobot's from_pretrained, after a look at what it gave the policy.

    Policies remap the names in a file, load with strict or without, and some print an error and go on; all of LeRobot's
    own end in load_state_dict of the policy, where torch itself lists what is missing. A name whose tensor came under
    another one, tied to it, is not missing.

    Raises:
      IncompleteWeightsError: Weights are missing or do not fit, or none were loaded at all.
      TooLargeError: The configuration is of a policy far larger than its weights.
    """
    loading = _Loading()
    lerobots = policy_class.__module__.startswith(LEROBOT_POLICIES)
    try:
        with no_larger_than(directory) if lerobots else contextlib.nullcontext():
            policy = _watched(policy_class, loading).from_pretrained(str(directory), config=config)
    except RuntimeError as error:
        if loading.errors:
            raise _misfit(loading.errors) from error
        raise
    if loading.missing is None:
        if lerobots:
            raise IncompleteWeightsError("LeRobot has loaded no weights. Is there a whole model.safetensors?")
        logger.warning("%s loads in a way of its own: whether its weights are complete is not checked", directory)
    elif loading.errors:
        raise _misfit(loading.errors)
    elif missing := _without_tied(policy, loading.missing):
        raise IncompleteWeightsError(
            f"{len(missing)} of {len(policy.state_dict())} tensors are missing, and random ones would move the arm: "
            f"{_some(missing)}. Copy or download the checkpoint again, or save it anew from its training."
        )
    return policy


def _watched(policy_class: type[PreTrainedPolicy], loading: _Loading) -> type[PreTrainedPolicy]:
    """Returns policy_class with policies that loading watches from their first moment."""

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        policy_class.__init__(self, *args, **kwargs)
        loading.watch(self)

    parts = {"__init__": build, "__module__": policy_class.__module__, "__doc__": policy_class.__doc__}
    return type(policy_class.__name__, (policy_class,), parts)


def _means_the_same(saved: torch.dtype, own: torch.dtype) -> bool:
    """Returns whether values survive to be cast. Torch casts anything to anything.

    Floating numbers of fewer bits mean nothing without a scale, which LeRobot does not look for.
    """
    if saved == own:
        return True
    if own.is_floating_point:
        return bool(saved.is_floating_point and saved.itemsize >= FLOAT_BYTES)
    return not saved.is_floating_point and not saved.is_complex


def _without_tied(policy: PreTrainedPolicy, missing: list[str]) -> list[str]:
    tensors = policy.state_dict()
    loaded = {_place(tensor) for name, tensor in tensors.items() if name not in set(missing)}
    return [
        name
        for name in missing
        if not name.endswith(UNUSED_SUFFIX) and name in tensors and _place(tensors[name]) not in loaded
    ]


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _misfit(errors: list[str]) -> IncompleteWeightsError:
    return IncompleteWeightsError(f"{len(errors)} tensors do not fit the policy's config.json: {_some(errors)}")


def _some(words: list[str]) -> str:
    return ", ".join(words[:NAMED]) + (", ..." if len(words) > NAMED else "")
