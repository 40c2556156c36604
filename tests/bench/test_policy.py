"""The bench's policy: what it plans, and that both servers load it by LeRobot's own ways."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors

from bench import marks
from bench.checkpoint import CHUNK_SIZE, HEIGHT, WIDTH, make_checkpoint
from bench.modeling_emulated import DRIFT, RADIUS, plan
from bench.robot_log import JOINT_COUNT
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.policy import Observation, PolicyChoice


def state(joints: np.ndarray, count: int) -> np.ndarray:
    return np.append(joints, marks.to_state(count)).astype(np.float32)


def test_a_plan_goes_on_from_where_the_arm_is() -> None:
    actions = plan(state(np.array([RADIUS, 0, 0, 0, 0, 0]), 5), 50)
    assert actions.shape == (50, JOINT_COUNT + marks.DIGITS)
    assert np.abs(actions[0, :2] - [RADIUS, 0]).max() < 1.5
    assert np.abs(np.diff(actions[:, :JOINT_COUNT], axis=0)).max() < 2.5
    assert all(marks.from_digits(action[JOINT_COUNT:]) == 5 for action in actions)


def test_plans_differ_the_more_the_older_they_are() -> None:
    pose = np.array([RADIUS, 0, 0, 0, 0, 0])
    one, other = (plan(state(pose, count), 50)[:, :JOINT_COUNT] for count in (1, 2))
    apart = np.abs(one - other).max(axis=1)
    assert apart[0] < 1
    assert DRIFT / 4 < apart[-1] < 2 * DRIFT


def test_a_plan_repeats() -> None:
    assert (plan(state(np.ones(JOINT_COUNT), 9), 50) == plan(state(np.ones(JOINT_COUNT), 9), 50)).all()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bench") / "emulated", 0.1)


def test_lerobot_loads_it_as_its_server_does(checkpoint: Path) -> None:
    policy = get_policy_class("longarm_bench").from_pretrained(str(checkpoint))
    pre, post = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    count = 77
    seen = {
        "observation.state": torch.from_numpy(state(np.full(JOINT_COUNT, 3.0), count))[None],
        "observation.images.front": torch.zeros(1, 3, HEIGHT, WIDTH),
        "observation.images.wrist": torch.zeros(1, 3, HEIGHT, WIDTH),
    }
    begun = time.monotonic()
    chunk = policy.predict_action_chunk(pre(seen))
    assert time.monotonic() - begun >= 0.1
    assert chunk.shape == (1, CHUNK_SIZE, JOINT_COUNT + marks.DIGITS)
    expected = plan(state(np.full(JOINT_COUNT, 3.0), count), CHUNK_SIZE)
    assert post(chunk)[0].numpy() == pytest.approx(expected, abs=1e-5)


def test_longarm_loads_it(checkpoint: Path) -> None:
    loaded = LerobotLoader(device="cpu").load(PolicyChoice(str(checkpoint)), lambda _: None)
    assert loaded.spec.policy_type == "longarm_bench"
    assert loaded.spec.chunk_size == CHUNK_SIZE
    assert loaded.spec.cameras == dict.fromkeys(
        ("observation.images.front", "observation.images.wrist"), (HEIGHT, WIDTH)
    )
    frames = {key: np.zeros((*size, 3), np.uint8) for key, size in loaded.spec.cameras.items()}
    processors = loaded.open_processors()
    images = {key: processors.prepare_frame(key, frame) for key, frame in frames.items()}
    prepared = processors.preprocess(Observation(state(np.zeros(JOINT_COUNT), 200), images, "", ""))
    actions = processors.postprocess(loaded.predict(prepared))
    assert marks.from_digits(actions[0, JOINT_COUNT:]) == 200


def test_a_finished_checkpoint_is_left_alone(checkpoint: Path) -> None:
    before = (checkpoint / "config.json").stat().st_mtime_ns
    make_checkpoint(checkpoint, 0.5)
    assert (checkpoint / "config.json").stat().st_mtime_ns == before
    assert PreTrainedConfig.from_pretrained(checkpoint).inference_seconds == 0.1
