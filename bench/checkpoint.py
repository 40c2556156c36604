"""Makes the bench's checkpoints and the film that its cameras show."""

from pathlib import Path

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.processor_act import make_act_pre_post_processors

from bench import marks
from bench.arm import CAMERAS
from bench.configuration_emulated import EmulatedConfig
from bench.modeling_emulated import EmulatedPolicy, path_at
from bench.robot_log import JOINT_COUNT
from lerobot_robot_longarm_sim.renderer import make_renderer
from lerobot_robot_longarm_sim.world import World

CHUNK_SIZE = 50
# Of the cameras, and of what the policy was made for
HEIGHT, WIDTH = 480, 640
FRAME_COUNT = 60
# A renderer's picture is cleaner than any sensor's, and would flatter the encoder
SENSOR_NOISE = 2.0
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_checkpoint(directory: Path, inference_seconds: float) -> Path:
    """Saves the bench's policy with its processors and returns directory.

    Args:
      directory: Where to; left alone if a checkpoint is there.
      inference_seconds: See EmulatedConfig.
    """
    if (directory / "policy_postprocessor.json").is_file():  # written last
        return directory
    state, action = JOINT_COUNT + 1, JOINT_COUNT + marks.DIGITS
    images = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for name in CAMERAS}
    config = EmulatedConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (state,)), **images},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action,))},
        chunk_size=CHUNK_SIZE,
        n_action_steps=CHUNK_SIZE,
        vision_backbone="resnet18",
        pretrained_backbone_weights=None,
        dim_model=64,
        n_heads=4,
        dim_feedforward=128,
        n_encoder_layers=1,
        use_vae=False,
        device="cpu",
        push_to_hub=False,
        inference_seconds=inference_seconds,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        EmulatedPolicy(config).save_pretrained(directory)
    image = {"mean": torch.tensor(IMAGE_MEAN)[:, None, None], "std": torch.tensor(IMAGE_STD)[:, None, None]}
    statistics = {
        # The plan is in robot units already
        "observation.state": {"mean": torch.zeros(state), "std": torch.ones(state)},
        "action": {"mean": torch.zeros(action), "std": torch.ones(action)},
        **dict.fromkeys(images, image),
    }
    for processor in make_act_pre_post_processors(config, dataset_stats=statistics):
        processor.save_pretrained(directory)
    return directory


def make_film(file: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Renders what the cameras see while the arm goes once around its path, with a sensor's noise, and returns file."""
    if file.is_file():
        return file
    world = World()
    renderer = make_renderer("auto", world.model, width, height)
    noise = np.random.default_rng(0)
    film = np.empty((FRAME_COUNT, len(CAMERAS), height, width, 3), np.uint8)
    home = world.instant().joints
    for number in range(FRAME_COUNT):
        world.place_arm(home + path_at(np.array([[2 * np.pi * number / FRAME_COUNT]]))[0] / 2)
        frames = renderer.render(world.instant().qpos)
        for index, camera in enumerate(CAMERAS):
            noisy = frames[camera] + noise.normal(0, SENSOR_NOISE, frames[camera].shape)
            film[number, index] = noisy.round().clip(0, 255)
    renderer.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part.npy")
    np.save(partial, film)
    return partial.rename(file)
