"""Real LeRobot policies, tiny and with random weights: right answers, and clear words where there is none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.utils import prepare_observation_for_inference
from tests.service.checkpoints import (
    CAMERAS,
    CHUNK_SIZE,
    HEIGHT,
    JOINTS,
    SMALL_DIFFUSION,
    WIDTH,
    preprocessed,
    save,
    save_act,
)
from tests.service.conftest import Serve
from tests.service.fakes import actions_of, failing, observation, open_session, raw_image

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.lerobot_policy import LerobotPolicy
from longarm_service.policy import Observation, PolicyChoice
from longarm_wire.errors import Reason, WireError


@pytest.fixture(scope="module")
def lerobot() -> LerobotLoader:
    return LerobotLoader("cpu")


@pytest.fixture
def damaged(act_checkpoint: Path, tmp_path: Path) -> Callable[[str, bytes | None], Path]:
    """Returns a copy of the checkpoint with one file replaced, or removed."""
    return lambda file, content: copied(act_checkpoint, tmp_path / "damaged", file, content)


def copied(checkpoint: Path, target: Path, file: str, content: bytes | None) -> Path:
    # Links, since the smallest ACT has 45 MB of weights
    shutil.copytree(checkpoint, target, copy_function=os.link)
    (target / file).unlink()
    if content is not None:
        (target / file).write_bytes(content)
    return target


def load(loader: LerobotLoader, directory: Path | str, **choice: Any) -> LerobotPolicy:
    return loader.load(PolicyChoice(str(directory), **choice), lambda _: None)


def some_observation(seed: int = 0, cameras: tuple[str, ...] = CAMERAS) -> Observation:
    random = np.random.default_rng(seed)
    return Observation(
        state=random.normal(0, 30, len(JOINTS)).astype(np.float32),
        images={key: random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for key in cameras},
        task="",
        robot_type="test_arm",
    )


def answer(policy: LerobotPolicy, seen: Observation) -> np.ndarray:
    processors = policy.open_processors()
    return processors.postprocess(policy.predict(preprocessed(processors, seen)))


def robot_of(cameras: tuple[str, ...] = ("front", "wrist")) -> pb.RobotSpec:
    return pb.RobotSpec(
        robot_type="test_arm",
        action_names=JOINTS,
        state_names=JOINTS,
        cameras=[pb.CameraSpec(name=name, height=HEIGHT, width=WIDTH) for name in cameras],
        fps=30,
    )


def stock_answer(directory: Path, seen: Observation) -> np.ndarray:
    """What LeRobot's own parts answer, postprocessed one step at a time as its async server does."""
    policy = ACTPolicy.from_pretrained(directory)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(directory))
    raw = {"observation.state": seen.state.copy(), **{key: frame.copy() for key, frame in seen.images.items()}}
    batch = prepare_observation_for_inference(raw, torch.device("cpu"), seen.task, seen.robot_type)
    chunk = policy.predict_action_chunk(preprocessor(batch))
    steps = [postprocessor(chunk[:, step]) for step in range(chunk.shape[1])]
    return torch.stack(steps, dim=1).squeeze(0).numpy()


def test_answers_over_the_wire_what_lerobot_answers_step_by_step(serve: Serve, act_checkpoint: Path) -> None:
    """The chunk is postprocessed at once; for ACT that must be what LeRobot's step-by-step way gives, to the bit."""
    stub = serve(lambda: LerobotLoader("cpu"), obs_queue_timeout=30.0).stub
    session = open_session(stub, str(act_checkpoint), robot=robot_of())
    assert session.fingerprint.policy_type == "act"
    assert session.chunk_size == CHUNK_SIZE
    for seed in range(3):
        seen = some_observation(seed)
        frames = [raw_image(key.removeprefix("observation.images."), frame) for key, frame in seen.images.items()]
        request = observation(session, seen.state, images=frames, sequence=seed + 1)
        actions = actions_of(stub.PredictChunk(request), len(JOINTS))
        np.testing.assert_array_equal(actions, stock_answer(act_checkpoint, seen))


def test_cameras_are_told_apart(lerobot: LerobotLoader, act_checkpoint: Path) -> None:
    policy = load(lerobot, act_checkpoint)
    seen = some_observation()
    front, wrist = seen.images.values()
    # ACT itself takes its cameras for a set: it is the statistics that differ
    swapped = Observation(seen.state, dict(zip(CAMERAS, (wrist, front), strict=True)), "", "")
    assert not np.allclose(answer(policy, seen), answer(policy, swapped))


def test_describes_the_policy(lerobot: LerobotLoader, act_checkpoint: Path) -> None:
    news: list[pb.Progress] = []
    policy = lerobot.load(PolicyChoice(str(act_checkpoint)), news.append)
    assert policy.spec.policy_type == "act"
    assert (policy.spec.action_dim, policy.spec.state_dim, policy.spec.chunk_size) == (6, 6, CHUNK_SIZE)
    assert policy.spec.cameras == dict.fromkeys(CAMERAS, (HEIGHT, WIDTH))
    assert [progress.stage for progress in news] == [
        pb.PROGRESS_STAGE_LOADING,
        *[pb.PROGRESS_STAGE_WARMING_UP] * 3,
    ]
    assert news[-1].fraction == 1


def test_a_trained_on_checkpoint_has_another_fingerprint(lerobot: LerobotLoader, tmp_path: Path) -> None:
    """Same configuration, same shapes, one weight changed at the end: a robot must notice."""
    policy = load(lerobot, save_act(tmp_path))
    assert lerobot.is_current(policy)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not lerobot.is_current(policy)
    assert load(lerobot, tmp_path).fingerprint != policy.fingerprint


def test_the_saved_rename_step_finds_what_it_expects(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path
) -> None:
    """LeRobot's server empties the saved map, so such a checkpoint gets frames under names it does not know."""
    renames = {"observation.images.top": CAMERAS[0]}
    policy = load(lerobot, save_act(tmp_path, rename_map=renames))
    assert policy.saved_renames == renames
    np.testing.assert_array_equal(
        answer(policy, some_observation()), answer(load(lerobot, act_checkpoint), some_observation())
    )


def test_renames_that_swap_two_cameras_are_undone_rightly(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path
) -> None:
    swap = dict(zip(CAMERAS, CAMERAS[::-1], strict=True))
    policy = load(lerobot, save_act(tmp_path, rename_map=swap))
    np.testing.assert_array_equal(
        answer(policy, some_observation()), answer(load(lerobot, act_checkpoint), some_observation())
    )


def test_a_robot_with_the_names_of_the_training_data_fits(serve: Serve, tmp_path: Path) -> None:
    save_act(tmp_path, rename_map={"observation.images.top": CAMERAS[0]})
    stub = serve(lambda: LerobotLoader("cpu"), obs_queue_timeout=30.0).stub
    session = open_session(stub, str(tmp_path), robot=robot_of(("top", "wrist")))
    assert sorted(camera.name for camera in session.cameras) == ["top", "wrist"]
    assert stub.PredictChunk(observation(session, np.zeros(6))).step_count == CHUNK_SIZE


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1.0), ("float16", 0.1)])
def test_casts_weights_on_request(lerobot: LerobotLoader, act_checkpoint: Path, dtype: str, tolerance: float) -> None:
    policy = load(lerobot, act_checkpoint, dtype=dtype)
    weights = next(policy.model._policy.parameters())
    assert weights.dtype is getattr(torch, dtype)
    expected = answer(load(lerobot, act_checkpoint), some_observation())
    np.testing.assert_allclose(answer(policy, some_observation()), expected, atol=tolerance)


def test_relative_actions_are_decoded_against_the_sessions_own_state(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path
) -> None:
    """LeRobot decodes step by step against whatever state its one preprocessor saw last."""
    from lerobot.processor import AbsoluteActionsProcessorStep, RelativeActionsProcessorStep

    directory = Path(shutil.copytree(act_checkpoint, tmp_path / "relative"))
    policy = ACTPolicy.from_pretrained(directory)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(directory))
    relative = RelativeActionsProcessorStep(enabled=True)
    preprocessor.steps = [relative, *preprocessor.steps]
    postprocessor.steps = [*postprocessor.steps, AbsoluteActionsProcessorStep(enabled=True, relative_step=relative)]
    preprocessor.save_pretrained(directory)
    postprocessor.save_pretrained(directory)

    loaded, plain = load(lerobot, directory), load(lerobot, act_checkpoint)
    one, other = loaded.open_processors(), loaded.open_processors()
    seen = [some_observation(1), some_observation(2)]
    prepared = [preprocessed(one, seen[0]), preprocessed(other, seen[1])]
    for processors, batch, view in zip((one, other), prepared, seen, strict=True):
        actions = processors.postprocess(loaded.predict(batch))
        np.testing.assert_allclose(actions, answer(plain, view) + view.state, rtol=1e-5)


def test_a_policy_with_queues_sees_the_current_observation_alone(lerobot: LerobotLoader, tmp_path: Path) -> None:
    """LeRobot's server never fills the queues of diffusion, and fails; left-overs of another robot would be worse."""
    policy = load(lerobot, save("diffusion", tmp_path, n_obs_steps=1, **SMALL_DIFFUSION))
    assert policy.spec.chunk_size == 8
    processors = policy.open_processors()
    seen, other = some_observation(1), some_observation(2)
    torch.manual_seed(3)
    first = processors.postprocess(policy.predict(preprocessed(processors, seen)))
    policy.predict(preprocessed(processors, other))
    torch.manual_seed(3)
    again = processors.postprocess(policy.predict(preprocessed(processors, seen)))
    np.testing.assert_array_equal(first, again)
    # What LeRobot's own step-by-step loop gives on the robot
    stock = policy.model._policy
    stock.reset()
    torch.manual_seed(3)
    with torch.inference_mode():
        batch = {k: v for k, v in preprocessed(processors, seen).items() if k != "action"}
        steps = [processors._postprocessor(stock.select_action(dict(batch))) for _ in range(8)]
    np.testing.assert_array_equal(first, torch.cat(steps).numpy())


def edited(checkpoint: Path, target: Path, **changes: Any) -> Path:
    config = json.loads((checkpoint / "config.json").read_text())
    return copied(checkpoint, target, "config.json", json.dumps(config | changes).encode())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "tdmpc"}, ["tdmpc", "plan"]),
        ({"type": "lingbot_va"}, ["lingbot_va", "video"]),
        ({"type": "gaussian_actor"}, ["gaussian_actor", "single actions"]),
        ({"type": "yours"}, ["'yours'", "lerobot_policy_", "act"]),
        ({"use_peft": True}, ["PEFT", "merge"]),
    ],
)
def test_what_would_answer_wrongly_is_refused_by_name(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(WireError) as caught:
        load(lerobot, edited(act_checkpoint, tmp_path / "edited", **changes))
    assert caught.value.reason is Reason.POLICY_UNSUPPORTED
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("key", "feature"),
    [
        ("observation.environment_state", PolicyFeature(FeatureType.ENV, (4,))),
        ("observation.images.depth", PolicyFeature(FeatureType.VISUAL, (1, HEIGHT, WIDTH))),
    ],
)
def test_what_requests_cannot_carry_is_refused(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, key: str, feature: PolicyFeature
) -> None:
    inputs = json.loads((act_checkpoint / "config.json").read_text())["input_features"]
    inputs[key] = {"type": feature.type.value, "shape": list(feature.shape)}
    with pytest.raises(WireError, match=key) as caught:
        load(lerobot, edited(act_checkpoint, tmp_path / "edited", input_features=inputs))
    assert caught.value.reason is Reason.POLICY_UNSUPPORTED


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, ["no config.json", "pretrained_model"]),
        ("config.json", b"{", ["broken config.json"]),
        ("config.json", b"[]", ["no JSON object"]),
        ("config.json", b'{"type": "act", "nonsense": 1}', ["its config.json", "nonsense"]),
        ("policy_preprocessor.json", None, ["no policy_preprocessor.json", "migrate_policy_normalization"]),
        ("policy_postprocessor.json", None, ["policy_postprocessor.json"]),
        ("policy_preprocessor.json", b'{"name": "p", "steps": [{"registry_name": "no_such"}]}', ["no_such"]),
        ("model.safetensors", None, ["its weights", "model.safetensors"]),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0garbage!", ["its weights", "SafetensorError"]),
        (
            "policy_preprocessor_step_3_normalizer_processor.safetensors",
            b"\x08\0\0\0\0\0\0\0garbage!",
            ["its processors"],
        ),
        ("model.safetensors", b"garbage!", ["model.safetensors", "Is it whole?"]),
    ],
)
def test_a_broken_checkpoint_is_said_to_be_broken_where(
    lerobot: LerobotLoader,
    damaged: Callable[[str, bytes | None], Path],
    file: str,
    content: bytes | None,
    words: list[str],
) -> None:
    directory = damaged(file, content)
    with pytest.raises(WireError) as caught:
        load(lerobot, directory)
    assert caught.value.reason is Reason.POLICY_LOAD_FAILED
    assert str(directory) in caught.value.message
    for word in words:
        assert word in caught.value.message
    assert "Traceback" not in caught.value.message


def test_weights_of_other_shapes_do_not_load(
    lerobot: LerobotLoader, damaged: Callable[[str, bytes | None], Path], tmp_path: Path
) -> None:
    other = save_act(tmp_path / "other", dim_model=32) / "model.safetensors"
    with pytest.raises(WireError, match="its weights") as caught:
        load(lerobot, damaged("model.safetensors", other.read_bytes()))
    assert len(caught.value.message) < 1000


def test_the_directory_above_the_checkpoint_is_a_known_slip(lerobot: LerobotLoader, tmp_path: Path) -> None:
    save_act(tmp_path / "pretrained_model")
    with pytest.raises(WireError, match=r"Did you mean .*pretrained_model"):
        load(lerobot, tmp_path)


@pytest.mark.parametrize(
    "name", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c", "nobody/nothing", "nothing", "a b", "x" * 500]
)
def test_a_name_of_nothing_is_not_found(lerobot: LerobotLoader, name: str) -> None:
    with pytest.raises(WireError) as caught:
        load(lerobot, name)
    assert caught.value.reason is Reason.POLICY_NOT_FOUND
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"device": "cuda"}, ["'cuda'", "It has cpu"]),
        ({"device": "toaster"}, ["toaster"]),
        ({"dtype": "int8"}, ["bfloat16", "int8"]),
        ({"revision": "main"}, ["revision"]),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU answers")
def test_a_choice_that_cannot_be_is_refused(
    lerobot: LerobotLoader, act_checkpoint: Path, choice: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(WireError) as caught:
        load(lerobot, act_checkpoint, **choice)
    assert caught.value.reason is Reason.INVALID_REQUEST
    for word in words:
        assert word in caught.value.message


def test_a_checkpoint_that_does_not_load_is_said_so_over_the_wire(
    serve: Serve, damaged: Callable[[str, bytes | None], Path]
) -> None:
    stub = serve(lambda: LerobotLoader("cpu")).stub
    with failing(Reason.POLICY_LOAD_FAILED, "its weights"):
        open_session(stub, str(damaged("model.safetensors", b"")), robot=robot_of())
    with failing(Reason.POLICY_NOT_FOUND):
        open_session(stub, "/nowhere", robot=robot_of())
