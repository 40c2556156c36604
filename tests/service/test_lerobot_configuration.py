"""What a policy's configuration says is done as LeRobot does it, or said: compared with LeRobot itself."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.policies.factory import make_policy_config
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import AbsoluteActionsProcessorStep, RelativeActionsProcessorStep
from safetensors.torch import load_file, save_file
from tests.service import configuration_remembering  # noqa: F401  # registers the policy
from tests.service.checkpoints import CAMERAS, CHUNK_SIZE, HEIGHT, JOINTS, SMALL_DIFFUSION, WIDTH, save, save_act
from tests.service.conftest import Serve
from tests.service.fakes import PATIENCE_SECONDS, actions_of, failing, observation, open_session, raw_image
from tests.service.test_processes import KeptLoader, kept

from bench.smolvla_checkpoint import make_smolvla
from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1.policy_service_pb2_grpc import PolicyServiceStub
from longarm_edge.action_queue import ActionChunk, ActionQueue
from longarm_edge.merging import temporal_ensemble
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.lerobot_policy import LerobotPolicy, Model
from longarm_service.policy import Guidance, PolicyChoice
from longarm_service.process_loader import LEROBOT_LOADER
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcConfig

FRONT, WRIST = CAMERAS
GUIDANCE = Guidance(RtcConfig())
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
Frames = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def lerobot() -> LerobotLoader:
    return LerobotLoader("cpu")


@pytest.fixture
def stub(serve: Serve) -> PolicyServiceStub:
    return serve(lambda: LerobotLoader("cpu"), obs_queue_timeout=30.0).stub


@pytest.fixture(scope="module")
def far() -> Iterator[KeptLoader]:
    yield from kept(LEROBOT_LOADER, 10 * PATIENCE_SECONDS, ["tests.service.configuration_remembering"], device="cpu")


@pytest.fixture(params=["here", "there"])
def anywhere(request: pytest.FixtureRequest, serve: Serve) -> PolicyServiceStub:
    """A service whose policies are in this process, and one whose policies have their own."""
    loader = request.getfixturevalue("far") if request.param == "there" else LerobotLoader("cpu")
    return serve(lambda: loader, obs_queue_timeout=30.0).stub


def load(loader: LerobotLoader, directory: Path) -> LerobotPolicy:
    return loader.load(PolicyChoice(str(directory)), lambda _: None)


def edit(directory: Path, without: str = "", **changes: Any) -> Path:
    """Changes keys of config.json, and removes one."""
    file = directory / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if key != without}))
    return directory


def robot_of(*cameras: str, names: tuple[str, ...] = JOINTS) -> pb.RobotSpec:
    specs = [pb.CameraSpec(name=name, height=HEIGHT, width=WIDTH) for name in cameras]
    return pb.RobotSpec(robot_type="test_arm", action_names=names, state_names=names, cameras=specs, fps=30)


def some_state(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 30, len(JOINTS)).astype(np.float32)


def some_frames(seed: int, *cameras: str) -> Frames:
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for name in cameras}


def predicted(
    stub: PolicyServiceStub, session: pb.SessionDescription, state: np.ndarray, frames: Frames, episode: int = 0
) -> np.ndarray:
    """Returns what the service answers, frames raw."""
    images = [raw_image(name, frame) for name, frame in frames.items()]
    answer = stub.PredictChunk(observation(session, state, images=images, episode=episode))
    return actions_of(answer, len(JOINTS))


class Stock:
    """A checkpoint in LeRobot's own hands, fed as its rollout feeds it."""

    def __init__(self, directory: Path, action_names: tuple[str, ...] | None = None, device: str = "cpu") -> None:
        config = PreTrainedConfig.from_pretrained(directory)
        config.device = device
        self._device = torch.device(device)
        self.policy = get_policy_class(config.type).from_pretrained(directory, config=config)
        overrides = {"device_processor": {"device": device}}
        self._pre, self._post = make_pre_post_processors(
            config, pretrained_path=str(directory), preprocessor_overrides=overrides
        )
        for step in self._pre.steps:
            if action_names and isinstance(step, RelativeActionsProcessorStep):
                step.action_names = list(action_names)  # as LeRobot's RTC engine does
        self.policy.reset()

    def batch(self, state: np.ndarray, frames: Frames) -> dict[str, Any]:
        raw = {f"observation.images.{name}": frame.copy() for name, frame in frames.items()}
        raw["observation.state"] = state.copy()
        prepared = prepare_observation_for_inference(raw, self._device, "", "test_arm")
        return dict(self._pre(prepared))

    def chunk(self, state: np.ndarray, frames: Frames) -> np.ndarray:
        with torch.inference_mode():
            return self._post(self.policy.predict_action_chunk(self.batch(state, frames))).squeeze(0).numpy()

    def action(self, state: np.ndarray, frames: Frames) -> np.ndarray:
        with torch.inference_mode():
            return self._post(self.policy.select_action(self.batch(state, frames))).squeeze(0).numpy()


def test_a_saved_rename_map_that_permutes_names_is_heeded(stub: PolicyServiceStub, tmp_path: Path) -> None:
    save_act(tmp_path, rename_map={FRONT: WRIST, WRIST: FRONT})
    session = open_session(stub, str(tmp_path), robot=robot_of("front", "wrist"))
    state, frames = some_state(1), some_frames(1, "front", "wrist")
    expected = Stock(tmp_path).chunk(state, frames)
    np.testing.assert_array_equal(predicted(stub, session, state, frames), expected)
    swapped = dict(zip(frames, reversed(frames.values()), strict=True))
    assert np.abs(predicted(stub, session, state, swapped) - expected).max() > 0.1


def test_joints_that_are_no_relative_actions_are_found_by_the_robots_names(
    anywhere: PolicyServiceStub, act_checkpoint: Path, tmp_path: Path
) -> None:
    """A checkpoint that excludes the gripper and tells no names: LeRobot's engine takes the robot's."""
    config = PreTrainedConfig.from_pretrained(act_checkpoint)
    pre, post = make_pre_post_processors(config, pretrained_path=str(act_checkpoint))
    relative = RelativeActionsProcessorStep(enabled=True, exclude_joints=["gripper"])
    pre.steps = [relative, *pre.steps]
    post.steps = [*post.steps, AbsoluteActionsProcessorStep(enabled=True, relative_step=relative)]
    for file in act_checkpoint.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    for processor, name in ((pre, "policy_preprocessor.json"), (post, "policy_postprocessor.json")):
        for file in tmp_path.glob(f"{name.removesuffix('.json')}*"):
            file.unlink()
        processor.save_pretrained(tmp_path)
    names = (*JOINTS[:-1], "gripper.pos")
    session = open_session(anywhere, str(tmp_path), robot=robot_of("front", "wrist", names=names))
    state, frames = some_state(2), some_frames(2, "front", "wrist")
    expected = Stock(tmp_path, action_names=names).chunk(state, frames)
    np.testing.assert_array_equal(predicted(anywhere, session, state, frames), expected)
    assert np.abs(Stock(tmp_path).chunk(state, frames) - expected)[:, -1].min() > 1, "the gripper tells"


def test_chunks_are_ensembled_as_lerobot_does(stub: PolicyServiceStub, tmp_path: Path) -> None:
    """LeRobot's select_action at each step, against chunks from the service that the edge's queue merges."""
    save_act(tmp_path, temporal_ensemble_coeff=0.1, n_action_steps=1)
    session = open_session(stub, str(tmp_path), robot=robot_of("front", "wrist"))
    assert session.temporal_ensemble_coeff == 0.1
    stock = Stock(tmp_path)
    queue = ActionQueue(10.0, temporal_ensemble(session.temporal_ensemble_coeff))
    largest = 0.0
    for step in range(CHUNK_SIZE + 5):
        state, frames = some_state(step), some_frames(step, "front", "wrist")
        actions = predicted(stub, session, state, frames)
        queue.merge(ActionChunk(0, 0, step + 1, step, 0.0, actions), 0.0)
        action, _ = queue.take(0.0)
        assert action is not None
        expected = stock.action(state, frames)
        np.testing.assert_allclose(action.values, expected, rtol=1e-5, atol=1e-3)
        largest = max(largest, float(np.abs(actions[0] - expected).max()))
    assert largest > 1, "the newest chunk alone would be far off"


def test_a_policy_says_how_many_actions_lerobot_executes(
    stub: PolicyServiceStub, act_checkpoint: Path, tmp_path: Path
) -> None:
    session = open_session(stub, str(act_checkpoint), robot=robot_of("front", "wrist"))
    assert (session.n_action_steps, session.chunk_size) == (CHUNK_SIZE, CHUNK_SIZE)
    assert not session.HasField("temporal_ensemble_coeff")
    session = open_session(stub, str(save_act(tmp_path, n_action_steps=4)), robot=robot_of("front", "wrist"))
    assert (session.n_action_steps, session.chunk_size) == (4, CHUNK_SIZE), "what lies beyond is for the edge to judge"


def test_a_policy_that_remembers_is_reset_at_each_episode(anywhere: PolicyServiceStub, tmp_path: Path) -> None:
    edit(save_act(tmp_path), type="remembering")
    stock = Stock(tmp_path)
    state, frames = some_state(3), some_frames(3, "front", "wrist")
    first, second = stock.chunk(state, frames), stock.chunk(state, frames)
    assert np.abs(first - second).min() > 1
    one = open_session(anywhere, str(tmp_path), robot=robot_of("front", "wrist"))
    np.testing.assert_array_equal(predicted(anywhere, one, state, frames), first)
    np.testing.assert_array_equal(predicted(anywhere, one, state, frames), second)
    np.testing.assert_array_equal(predicted(anywhere, one, state, frames, episode=1), first)
    np.testing.assert_array_equal(predicted(anywhere, one, state, frames, episode=1), second)
    anywhere.ResetSession(pb.ResetSessionRequest(session_id=one.session_id, episode=1))
    np.testing.assert_array_equal(predicted(anywhere, one, state, frames, episode=1), first)
    other = open_session(anywhere, str(tmp_path), robot=robot_of("front", "wrist"))
    np.testing.assert_array_equal(
        predicted(anywhere, other, state, frames), first, "nothing of one robot reaches another"
    )


def test_a_policy_masks_a_camera_that_it_is_told_to_do_without(stub: PolicyServiceStub, tmp_path: Path) -> None:
    """LeRobot's own rollout gives a smolvla what there is."""
    make_smolvla(tmp_path, chunk_size=8, height=HEIGHT, width=WIDTH, denoising_steps=2)
    robot = robot_of("front")
    with failing(Reason.SPEC_MISMATCH, f'or let the policy do without: masked_cameras=["{WRIST}"]'):
        open_session(stub, str(tmp_path), robot=robot)
    session = open_session(stub, str(tmp_path), robot=robot, task="", masked_cameras=[WRIST])
    state, frames = some_state(4), some_frames(4, "front")
    stock = Stock(tmp_path)
    torch.manual_seed(0)
    expected = stock.chunk(state, frames)
    torch.manual_seed(0)
    np.testing.assert_array_equal(predicted(stub, session, state, frames), expected)


def test_an_act_masks_nothing(stub: PolicyServiceStub, act_checkpoint: Path) -> None:
    with failing(Reason.SPEC_MISMATCH, "A policy of type 'act' needs all of its cameras"):
        open_session(stub, str(act_checkpoint), robot=robot_of("front"), masked_cameras=[WRIST])


@pytest.mark.parametrize(("policy_type", "frames"), [("diffusion", 2), ("vqbet", 5), ("multi_task_dit", 2)])
def test_a_history_that_the_configuration_leaves_to_lerobots_default_is_one(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, policy_type: str, frames: int
) -> None:
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (len(JOINTS),)),
        FRONT: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)),
    }
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (len(JOINTS),))}
    make_policy_config(policy_type, input_features=inputs, output_features=outputs, device="cpu").save_pretrained(
        tmp_path
    )
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (tmp_path / name).hardlink_to(act_checkpoint / name)
    edit(tmp_path, without="n_obs_steps")
    with pytest.raises(WireError, match=f"{policy_type}.*last {frames} frames.*n_obs_steps") as caught:
        load(lerobot, tmp_path)
    assert caught.value.reason is Reason.POLICY_UNSUPPORTED


def test_a_policy_whose_first_prediction_is_no_number_does_not_load(lerobot: LerobotLoader, tmp_path: Path) -> None:
    (statistics,) = save_act(tmp_path).glob("policy_postprocessor*.safetensors")
    tensors = load_file(statistics)
    tensors["action.std"][2] = math.nan
    save_file(tensors, statistics)
    with pytest.raises(WireError, match=f"NaN or infinity in {CHUNK_SIZE} of {6 * CHUNK_SIZE} values") as caught:
        load(lerobot, tmp_path)
    assert caught.value.reason is Reason.POLICY_LOAD_FAILED


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_mixed_precision_is_used_where_lerobots_rollout_uses_it(serve: Serve, tmp_path: Path, device: str) -> None:
    """That is: on CUDA, whatever use_amp says elsewhere."""
    save_act(tmp_path, use_amp=True)
    stub = serve(lambda: LerobotLoader(device), obs_queue_timeout=30.0).stub
    session = open_session(stub, str(tmp_path), robot=robot_of("front", "wrist"))
    state, frames = some_state(6), some_frames(6, "front", "wrist")
    stock = Stock(tmp_path, device=device)
    plain = stock.chunk(state, frames)
    with torch.autocast("cuda", enabled=device == "cuda"):
        expected = stock.chunk(state, frames)
    answer = predicted(stub, session, state, frames)
    # With values of half precision LeRobot goes on to compute in it
    np.testing.assert_allclose(answer, expected, atol=0 if device == "cpu" else 0.1)
    assert np.abs(answer - plain).max() > 1e-3 or device == "cpu"


def test_mixed_precision_is_not_for_real_time_chunking(lerobot: LerobotLoader, tmp_path: Path) -> None:
    """LeRobot's engine for it computes in the weights' own precision. What CUDA would do, on the CPU."""
    make_smolvla(tmp_path, chunk_size=8, height=HEIGHT, width=WIDTH, denoising_steps=2)
    policy = load(lerobot, tmp_path)
    stock = Stock(tmp_path)
    batch = stock.batch(some_state(7), some_frames(7, "front", "wrist"))
    chunks = {}
    for amp, guidance in ((None, None), (torch.bfloat16, None), (None, GUIDANCE), (torch.bfloat16, GUIDANCE)):
        torch.manual_seed(0)
        chunks[amp, guidance] = Model(policy.model._policy, amp=amp).predict(dict(batch), guidance)
    assert not torch.equal(chunks[torch.bfloat16, None], chunks[None, None])
    assert torch.equal(chunks[torch.bfloat16, GUIDANCE], chunks[None, GUIDANCE])


def test_a_joint_that_stood_still_in_training_is_no_reason_not_to_load(lerobot: LerobotLoader, tmp_path: Path) -> None:
    save_act(tmp_path)
    for statistics in tmp_path.glob("*.safetensors"):
        if "observation.state.std" in (tensors := load_file(statistics)):
            tensors["observation.state.std"][0] = 0.0
            save_file(tensors, statistics)
    assert lerobot.load(PolicyChoice(str(tmp_path), dtype="float16"), lambda _: None).spec.chunk_size == CHUNK_SIZE


def test_whether_to_compile_is_not_for_the_checkpoint_to_say(
    lerobot: LerobotLoader, stub: PolicyServiceStub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where LeRobot's rollout does not compile it leaves what was saved compiled random: the tensors' names differ."""
    save("diffusion", tmp_path, n_obs_steps=1, **SMALL_DIFFUSION)
    state, frames = some_state(5), some_frames(5, "front", "wrist")
    session = open_session(stub, str(tmp_path), robot=robot_of("front", "wrist"))
    torch.manual_seed(0)
    expected = predicted(stub, session, state, frames)
    edit(tmp_path, compile_model=True)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace(".unet.", ".unet._orig_mod."): tensor for name, tensor in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    with caplog.at_level(logging.INFO):
        session = open_session(stub, str(tmp_path), robot=robot_of("front", "wrist"))
    assert "says compile_model" in caplog.text
    torch.manual_seed(0)
    np.testing.assert_array_equal(predicted(stub, session, state, frames), expected)


@pytest.mark.parametrize(("policy_type", "field"), [("groot", "base_model_path"), ("molmoact2", "checkpoint_path")])
def test_a_base_model_that_cannot_be_fetched_is_named(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, policy_type: str, field: str
) -> None:
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (len(JOINTS),)),
        FRONT: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)),
    }
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (len(JOINTS),))}
    config = make_policy_config(policy_type, input_features=inputs, output_features=outputs, device="cpu")
    config.save_pretrained(tmp_path)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (tmp_path / name).hardlink_to(act_checkpoint / name)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors")
    repository = getattr(config, field)
    with pytest.raises(WireError) as caught:
        load(lerobot, tmp_path)
    assert caught.value.reason is Reason.POLICY_LOAD_FAILED
    for word in (f"{repository!r} from the hub", f"{field} in its config.json", f"hf download {repository}"):
        assert word in caught.value.message
