"""Makes tiny LeRobot checkpoints with random weights, by LeRobot's own means, and feeds them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.policies.factory import make_policy_config

from longarm_service.policy import Observation, Processors

JOINTS = tuple(f"joint_{i}.pos" for i in range(6))
HEIGHT, WIDTH = 48, 64
CAMERAS = ("observation.images.front", "observation.images.wrist")
CHUNK_SIZE = 12

FEATURES = {
    "observation.state": PolicyFeature(FeatureType.STATE, (len(JOINTS),)),
    **{key: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for key in CAMERAS},
}
SMALL_ACT: dict[str, Any] = {
    "chunk_size": CHUNK_SIZE,
    "n_action_steps": CHUNK_SIZE,
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 16,
    "n_encoder_layers": 1,
    "n_decoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
    "pretrained_backbone_weights": None,
}
SMALL_DIFFUSION: dict[str, Any] = {
    "horizon": 8,
    "n_action_steps": 8,
    "down_dims": (16, 32),
    "n_groups": 4,
    "diffusion_step_embed_dim": 16,
    "num_train_timesteps": 4,
    "spatial_softmax_num_keypoints": 4,
    "crop_shape": None,
    "pretrained_backbone_weights": None,
    "use_group_norm": True,
}


def save_act(directory: Path, **changes: Any) -> Path:
    """Saves an ACT of two cameras and six joints, and returns directory."""
    return save("act", directory, **SMALL_ACT | changes)


def save(
    policy_type: str,
    directory: Path,
    *,
    inputs: dict[str, PolicyFeature] | None = None,
    rename_map: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Saves a policy with its processors, whose statistics are no identity, and returns directory."""
    torch.manual_seed(0)
    features = inputs or FEATURES
    config = make_policy_config(
        policy_type,
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (len(JOINTS),))},
        device="cpu",
        push_to_hub=False,
        **settings,
    )
    get_policy_class(policy_type)(config).save_pretrained(directory)
    joints = {
        "mean": torch.linspace(-20, 20, len(JOINTS)),
        "std": torch.linspace(5, 30, len(JOINTS)),
        "min": torch.full((len(JOINTS),), -90.0),
        "max": torch.full((len(JOINTS),), 80.0),
    }
    statistics = {"observation.state": joints, "action": joints}
    # Different for each camera, so that frames under a wrong name give a wrong answer
    for number, key in enumerate(key for key in features if "images" in key):
        pixels = {"mean": 0.3 + 0.3 * number, "std": 0.22, "min": 0.0, "max": 1.0}
        statistics[key] = {name: torch.full((3, 1, 1), value) for name, value in pixels.items()}
    preprocessor, postprocessor = make_pre_post_processors(config, dataset_stats=statistics)
    if rename_map:
        preprocessor.steps[0].rename_map = rename_map
    preprocessor.save_pretrained(directory)
    postprocessor.save_pretrained(directory)
    return directory


def preprocessed(processors: Processors, seen: Observation) -> Any:
    """Returns what a policy takes for an observation whose images are frames as decoded."""
    prepared = {key: processors.prepare_frame(key, frame) for key, frame in seen.images.items()}
    return processors.preprocess(replace(seen, images=prepared))
