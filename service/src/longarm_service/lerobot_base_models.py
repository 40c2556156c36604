"""What a checkpoint brings itself is not fetched: the weights of the base model that its policy was trained from.

LeRobot builds such a policy with its base model's weights, from the model hub or from torchvision's server, and then
writes the checkpoint's own over all of them. A rented GPU often has no route there.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig

# LeRobot's policies that save all that they begin with. lerobot_weights.load_whole makes sure that no weight stays as
# it was made here. fastwam leaves its frozen parts out; groot, molmoact2 and wall_x read the base model's files by
# themselves: those fetch
BRING_THEIR_BASE = frozenset({"act", "diffusion", "evo1", "multi_task_dit", "smolvla", "vla_jepa", "vqbet"})


@contextlib.contextmanager
def without_base_weights(config: PreTrainedConfig) -> Iterator[None]:
    """Has policies built without the weights of their base model, where the checkpoint of config brings them all.

    The base model's configuration and tokenizer are still asked for, which a checkpoint does not have. For the loading
    thread: what it changes in transformers is the same for all threads.
    """
    if config.type not in BRING_THEIR_BASE:
        yield
        return
    if hasattr(config, "pretrained_backbone_weights"):
        config.pretrained_backbone_weights = None
    # Not every policy needs transformers; LeRobot has imported it where it is installed
    models = sys.modules.get("transformers.modeling_utils")
    if models is None:
        yield
        return
    stock = models.PreTrainedModel.__dict__["from_pretrained"]
    models.PreTrainedModel.from_pretrained = classmethod(_built)
    try:
        yield
    finally:
        models.PreTrainedModel.from_pretrained = stock


def _built(cls: Any, /, name: str, *_: Any, config: Any = None, **settings: Any) -> Any:
    """Returns what transformers' from_pretrained would, in its type and form, with weights that mean nothing."""
    if config is None:
        config = cls.config_class.from_pretrained(name, **_where(settings))
    dtype = settings.get("dtype") or settings.get("torch_dtype") or "auto"
    if dtype == "auto":
        # Transformers would look at the weights where the configuration does not say
        dtype = config.dtype or torch.get_default_dtype()
    form = {key: settings[key] for key in ("attn_implementation",) if settings.get(key)}
    return cls._from_config(config, dtype=dtype, **form).eval()


def _where(settings: dict[str, Any]) -> dict[str, Any]:
    kept = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "proxies")
    return {key: settings[key] for key in kept if key in settings}
