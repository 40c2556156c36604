"""The checkpoint for the simulated arm, through LeRobot's own loading."""

import json
import time

import pytest
import torch
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file

from lerobot_robot_longarm_sim import LongarmSimConfig
from lerobot_robot_longarm_sim.checkpoint import main, make_checkpoint
from lerobot_robot_longarm_sim.joints import HOME, JOINTS
from lerobot_robot_longarm_sim.plain_renderer import PlainRenderer
from lerobot_robot_longarm_sim.world import World

SMALL = {"chunk_size": 10, "height": 60, "width": 80}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    start = time.monotonic()
    directory = make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "new" / "act")
    assert time.monotonic() - start < 30.0
    return directory


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def observation(policy, pose):
    """Returns what the arm would observe in a pose, as LeRobot's preprocessor takes it."""
    _, height, width = policy.config.input_features["observation.images.front"].shape
    world = World()
    world.place_arm(pose)
    frames = PlainRenderer(world.model, width, height).render(world.instant().qpos)
    images = {f"observation.images.{name}": torch.from_numpy(frame) for name, frame in frames.items()}
    state = torch.as_tensor(pose, dtype=torch.float32)
    return {name: image.permute(2, 0, 1) / 255 for name, image in images.items()} | {"observation.state": state}


def test_predicts_safe_visible_motion_through_lerobot(checkpoint, one_thread):
    policy = ACTPolicy.from_pretrained(checkpoint)
    preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    home = torch.tensor([HOME[joint] for joint in JOINTS])
    limits = torch.from_numpy(World().limits)
    for offset in (0.0, 8.0, -8.0):
        chunk = policy.predict_action_chunk(preprocess(observation(policy, (home + offset).numpy())))
        actions = postprocess(chunk)[0]
        assert actions.shape == (50, 6)
        assert (actions >= limits[:, 0]).all()
        assert (actions <= limits[:, 1]).all()
        assert ((actions - home).abs() < 45.0).all(), "stays near home"
        assert actions.std(dim=0).max() > 1.0, "moves"
        assert actions.diff(dim=0).abs().max() < 5.0, "moves smoothly"


def test_config_says_what_the_arm_has(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["type"] == "act"
    assert config["input_features"]["observation.state"]["shape"] == [6]
    arm = LongarmSimConfig()
    assert config["input_features"]["observation.images.front"]["shape"] == [3, arm.height, arm.width]
    assert config["input_features"]["observation.images.wrist"]["shape"] == [3, arm.height, arm.width]
    assert config["output_features"]["action"]["shape"] == [6]
    assert config["pretrained_backbone_weights"] is None


def test_the_seed_decides_the_weights(tmp_path):
    torch.manual_seed(123)
    first = load_file(make_checkpoint(tmp_path / "a", seed=1, **SMALL) / "model.safetensors")
    drawn = torch.rand(1)
    again = load_file(make_checkpoint(tmp_path / "b", seed=1, **SMALL) / "model.safetensors")
    other = load_file(make_checkpoint(tmp_path / "c", seed=2, **SMALL) / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.action_head.weight"], other["model.action_head.weight"])
    torch.manual_seed(123)
    assert torch.equal(drawn, torch.rand(1)), "the caller's random state is left alone"


def test_command_makes_a_checkpoint_of_the_size_asked(tmp_path, capsys):
    options = ["--chunk-size", "10", "--height", "60", "--width", "80", "--seed", "5"]
    assert main([str(tmp_path / "act"), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "act")
    assert ACTPolicy.from_pretrained(tmp_path / "act").config.chunk_size == 10


@pytest.mark.parametrize("options", [["--chunk-size", "0"], ["--height", "8"]])
def test_command_refuses_silly_sizes(tmp_path, capsys, options):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "act"), *options])
    assert stop.value.code == 2
    assert "at least" in capsys.readouterr().err
