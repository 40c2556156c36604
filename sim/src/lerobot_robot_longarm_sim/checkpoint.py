"""Makes a small ACT checkpoint for the simulated arm, with random weights: something to run, not something that works.

The weights are seeded, and shaped in two places so that the arm moves visibly, smoothly and above the table whatever
the seed: the queries of successive steps are near each other, and the last layer is scaled to modest actions.
"""

import argparse
import sys
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors

from lerobot_robot_longarm_sim.joints import GRIPPER, HOME, JOINTS
from lerobot_robot_longarm_sim.longarm_sim import CAMERAS
from lerobot_robot_longarm_sim.plain_renderer import PlainRenderer
from lerobot_robot_longarm_sim.world import World

DEFAULT_CHUNK_SIZE = 50
# As the arm's cameras. The largest of the usual sizes for which one processor thread makes a chunk in well under half a
# second: 0.19 s here, where 480 by 640 takes 0.67 s. Nearly all of it is the ResNet-18, ACT's smallest backbone.
DEFAULT_HEIGHT, DEFAULT_WIDTH = 240, 320

# Normalisation of states and actions: around the home pose, by these spreads in robot units.
BODY_STD, GRIPPER_STD = 12.0, 15.0
# Spread of the policy's normalised actions over steps and observations: some 5 degrees a joint.
ACTION_SPREAD = 0.4
# Of LeRobot's datasets with `use_imagenet_stats`.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PROBE_OBSERVATIONS = 8


def make_checkpoint(
    directory: Path,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    height: int = DEFAULT_HEIGHT,
    width: int = DEFAULT_WIDTH,
    seed: int = 0,
) -> Path:
    """Saves a policy with its processors, in seconds, and returns the directory.

    It loads by LeRobot's `ACTPolicy.from_pretrained` and `make_pre_post_processors`. The same arguments give the same
    weights. The caller's random state is left alone.

    Args:
      directory: Made if need be; files of an earlier checkpoint are overwritten.
      chunk_size: Actions per chunk.
      height, width: Size in pixels of the images that the policy looks at, from 32 up. Give the arm's cameras the same.
      seed: Of the random weights.

    Raises:
      ValueError: A size is too small.
      FileExistsError: `directory` is a file.
    """
    if chunk_size < 1 or height < 32 or width < 32:
        raise ValueError(
            f"Expected a chunk of at least 1 action and images of at least 32x32 pixels, got {chunk_size} actions "
            f"and {height}x{width}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    config = _config(chunk_size, height, width)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = ACTPolicy(config)
        policy.eval()
        _smooth_over_steps(policy)
        _scale_actions(policy)
    policy.save_pretrained(directory)
    for processor in make_pre_post_processors(config, dataset_stats=_statistics()):
        processor.save_pretrained(directory)
    return directory


def _config(chunk_size: int, height: int, width: int) -> ACTConfig:
    joints = (len(JOINTS),)
    cameras = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, height, width)) for name in CAMERAS}
    return ACTConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, joints), **cameras},
        output_features={"action": PolicyFeature(FeatureType.ACTION, joints)},
        chunk_size=chunk_size,
        n_action_steps=chunk_size,
        vision_backbone="resnet18",
        pretrained_backbone_weights=None,
        dim_model=64,
        n_heads=4,
        dim_feedforward=128,
        n_encoder_layers=1,
        use_vae=False,
        device="cpu",
        push_to_hub=False,
    )


def _statistics() -> dict[str, dict[str, torch.Tensor]]:
    joints = {
        "mean": torch.tensor([HOME[joint] for joint in JOINTS]),
        "std": torch.tensor([GRIPPER_STD if joint == GRIPPER else BODY_STD for joint in JOINTS]),
    }
    image = {"mean": torch.tensor(IMAGE_MEAN)[:, None, None], "std": torch.tensor(IMAGE_STD)[:, None, None]}
    return {"observation.state": joints, "action": joints} | {f"observation.images.{name}": image for name in CAMERAS}


def _smooth_over_steps(policy: ACTPolicy) -> None:
    """Gives the chunk's steps queries along a smooth closed curve; independent ones would make the arm tremble."""
    queries = policy.model.decoder_pos_embed.weight
    steps, size = queries.shape
    cycles = torch.arange(steps)[:, None] / steps + torch.rand(size)
    queries.copy_(torch.sin(2 * torch.pi * cycles))


def _scale_actions(policy: ACTPolicy) -> None:
    """Centres normalised actions on zero and gives them `ACTION_SPREAD`, as measured on what the arm would observe."""
    actions = policy.predict_action_chunk(_probe(policy.config))
    head = policy.model.action_head
    gain = ACTION_SPREAD / actions.std(dim=(0, 1)).clamp_min(1e-6)
    head.bias.copy_((head.bias - actions.mean(dim=(0, 1))) * gain)
    head.weight.mul_(gain[:, None])


def _probe(config: ACTConfig) -> dict[str, torch.Tensor]:
    """Returns a batch of normalised observations of the arm in random poses around home."""
    _, height, width = config.input_features["observation.images.front"].shape
    statistics = _statistics()
    world = World()
    renderer = PlainRenderer(world.model, width, height)
    batch: dict[str, list[torch.Tensor]] = {name: [] for name in config.input_features}
    for _ in range(PROBE_OBSERVATIONS):
        state = torch.randn(len(JOINTS))
        joints = statistics["observation.state"]
        world.place_arm((state * joints["std"] + joints["mean"]).numpy())
        batch["observation.state"].append(state)
        for name, frame in renderer.render(world.instant().qpos).items():
            image = statistics[f"observation.images.{name}"]
            pixels = torch.from_numpy(frame).permute(2, 0, 1) / 255
            batch[f"observation.images.{name}"].append((pixels - image["mean"]) / image["std"])
    return {name: torch.stack(values) for name, values in batch.items()}


def main(argv: list[str] | None = None) -> int:
    """Command `longarm-sim-checkpoint`."""
    parser = argparse.ArgumentParser(
        prog="longarm-sim-checkpoint",
        description="Make a small LeRobot ACT checkpoint with random weights for the simulated arm (longarm_sim). It "
        "moves the arm a little around its home pose; it has learnt nothing.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to save it; made if need be")
    parser.add_argument("--chunk-size", type=int, default=DEFAULT_CHUNK_SIZE, help="actions per chunk")
    parser.add_argument("--height", type=int, default=DEFAULT_HEIGHT, help="height of the policy's images, pixels")
    parser.add_argument("--width", type=int, default=DEFAULT_WIDTH, help="width of the policy's images, pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    options = parser.parse_args(argv)
    try:
        directory = make_checkpoint(**vars(options))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{directory}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
