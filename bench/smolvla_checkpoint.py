"""Makes a small SmolVLA checkpoint with random weights, without a network: something to run, not something that works.

usage: python -m bench.smolvla_checkpoint DIR

SmolVLA fetches its base model's configuration, tokenizer and image processor from the model hub. Here they are made on
the spot, in the same shapes and a fraction of the size, and saved beside the checkpoint. Needs the libraries of
LeRobot's extra `smolvla`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMProcessor
from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

JOINTS = ("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos")
IMAGE_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>")
# Enough for instructions of a robot to differ
WORDS = (*"abcdefghijklmnopqrstuvwxyz", "pick", "place", "put", "push", "the", "cube", "cup", "in", "on", "red", "blue")
PATCH = 16


def make_smolvla(
    directory: Path,
    *,
    chunk_size: int = 50,
    height: int = 240,
    width: int = 320,
    cameras: Sequence[str] = ("front", "wrist"),
    joints: int = len(JOINTS),
    image_size: int = 64,
    hidden_size: int = 64,
    layers: int = 2,
    denoising_steps: int = 10,
    seed: int = 0,
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Saves a policy with its processors, in a second, and returns the directory.

    It loads by LeRobot's `SmolVLAPolicy.from_pretrained` and `make_pre_post_processors`. The same arguments give the
    same weights. The caller's random state is left alone.

    Args:
      directory: Made if need be. The checkpoint knows the tokenizer by this path: do not move it.
      chunk_size: Actions per chunk.
      height, width: Size in pixels of the images that the policy wants.
      cameras: Their names, without "observation.images.".
      joints: Values of states and actions.
      image_size: Size in pixels that images are padded to before the vision model, a multiple of 32.
      hidden_size: Width of the language model, a multiple of 32; SmolVLA's own is 960.
      layers: Of the language model and of the vision model; SmolVLA's own are 16 and 12.
      denoising_steps: Steps from noise to actions.
      seed: Of the random weights.
      statistics: "mean" and "std" of states and actions, each of shape (joints). Around zero by default.
    """
    base = _save_base(directory / "base", image_size, hidden_size, layers)
    config = SmolVLAConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (joints,)),
            **{f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, height, width)) for c in cameras},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (joints,))},
        chunk_size=chunk_size,
        n_action_steps=chunk_size,
        num_steps=denoising_steps,
        vlm_model_name=str(base),
        load_vlm_weights=False,
        num_vlm_layers=layers,
        resize_imgs_with_padding=(image_size, image_size),
        device="cpu",
        push_to_hub=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = SmolVLAPolicy(config)
    policy.save_pretrained(directory)
    spread = statistics or {"mean": torch.zeros(joints), "std": torch.full((joints,), 20.0)}
    numbers: Any = {"observation.state": spread, "action": spread}
    for processor in make_pre_post_processors(config, dataset_stats=numbers):
        processor.save_pretrained(directory)
    return directory


def _save_base(directory: Path, image_size: int, hidden_size: int, layers: int) -> Path:
    vocabulary = {word: number for number, word in enumerate(("<pad>", "<unk>", *IMAGE_TOKENS, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=dict(
            zip(("image_token", "fake_image_token", "global_image_token"), IMAGE_TOKENS, strict=True)
        ),
    )
    size = {"longest_edge": image_size}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=size, max_image_size=size),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=size, max_image_size=size),
        image_seq_len=(image_size // PATCH // 2) ** 2,
    ).save_pretrained(directory)
    heads = hidden_size // 32
    SmolVLMConfig(
        image_token_id=vocabulary["<image>"],
        pad_token_id=vocabulary["<pad>"],
        scale_factor=2,
        vision_config={
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": image_size,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(vocabulary),
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 2),
            "head_dim": 32,
            "pad_token_id": vocabulary["<pad>"],
        },
    ).save_pretrained(directory)
    return directory


def main() -> int:
    """Makes a checkpoint where the command line says."""
    parser = argparse.ArgumentParser(description="Make a small SmolVLA checkpoint with random weights.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to save it; made if need be")
    parser.add_argument("--chunk-size", type=int, default=50, help="actions per chunk")
    parser.add_argument("--hidden-size", type=int, default=64, help="width of the language model; SmolVLA's own is 960")
    parser.add_argument("--layers", type=int, default=2, help="of the language model; SmolVLA's own are 16")
    parser.add_argument("--image-size", type=int, default=64, help="pixels of the vision model; SmolVLA's own are 512")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    options = parser.parse_args()
    sys.stdout.write(f"{make_smolvla(**vars(options))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
