"""A policy must see what LeRobot would show it: frames travel whole, or as the policy itself would scale them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.policies.factory import make_policy_config
from lerobot.policies.utils import prepare_observation_for_inference
from tests.service.checkpoints import SMALL_ACT, SMALL_DIFFUSION, save
from tests.service.conftest import Serve

from bench.smolvla_checkpoint import make_smolvla
from longarm_edge.answers import Session
from longarm_edge.frames import pack_frame
from longarm_edge.policy_client import PolicyChoice as ClientChoice
from longarm_edge.policy_client import PolicyClient
from longarm_edge.robot import RobotReading
from longarm_service.lerobot_frames import letterbox
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.policy import Observation, PolicyChoice
from longarm_wire import images
from longarm_wire.errors import Reason, WireError
from longarm_wire.frame_sizes import Size, size_to_send
from longarm_wire.images import Codec
from longarm_wire.specs import CameraSpec, RobotSpec

JOINTS = tuple(f"joint_{i}.pos" for i in range(6))
FRONT = "observation.images.front"
# Policies that scale frames by themselves as the edge can
TYPES = ("pi0", "pi05", "pi0_fast", "smolvla", "xvla")
VGA = (480, 640)
TASK = "put the cube in the cup"
STATE = np.linspace(-20, 20, len(JOINTS), dtype=np.float32)
# A frame of bytes is rounded where the policy's own is not; torch and OpenCV add up in another order
HALF_A_BYTE = 0.51
# Rounding is up as often as down
NO_BIAS = 0.01
# Times the error of a whole frame's picture; 3.5 where this was written, without whole colours
MOST_OF_A_SCALED_FRAME = 1.6


Answer = Callable[[Path, np.ndarray], tuple[Session, np.ndarray]]


@functools.cache
def scene(size: Size, seed: int = 0) -> np.ndarray:
    """Something to see at every scale, with edges and a sensor's noise; uint8 of shape (*size, 3)."""
    random = np.random.default_rng(seed)
    frame = np.zeros((*size, 3), np.float32)
    for cells in (3, 12, 60):
        coarse = random.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        frame += cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST) / 3
    return (frame + random.normal(0, 2, frame.shape)).clip(0, 255).astype(np.uint8)


def by_lerobot(directory: Path, frame: np.ndarray) -> np.ndarray:
    """What LeRobot's own step-by-step loop makes of a whole frame: its parts as its rollout puts them together."""
    policy = get_policy_class(PreTrainedConfig.from_pretrained(directory).type).from_pretrained(directory)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(directory))
    raw = {"observation.state": STATE.copy(), FRONT: frame.copy()}
    policy.reset()
    torch.manual_seed(7)
    with torch.inference_mode():
        batch = preprocessor(prepare_observation_for_inference(raw, torch.device("cpu"), TASK, "test_arm"))
        steps = [postprocessor(policy.select_action(dict(batch))) for _ in range(policy.config.n_action_steps)]
    return torch.cat(steps).numpy()


@pytest.fixture
def by_longarm(serve: Serve) -> Answer:
    """What Longarm makes of the same, uncompressed, by all that is between a robot and its policy; and the session."""

    def answer(directory: Path, frame: np.ndarray) -> tuple[Session, np.ndarray]:
        service = serve(lambda: LerobotLoader("cpu"), obs_queue_timeout=60.0).service
        robot = RobotSpec("test_arm", JOINTS, JOINTS, (CameraSpec("front", *frame.shape[:2]),), 30.0)
        with PolicyClient(f"127.0.0.1:{service.port}", Codec.RAW, 90) as client:
            session = client.open_session(ClientChoice(str(directory), task=TASK), robot, timeout=60)
            torch.manual_seed(7)
            reply, _, _ = client.predict(session, RobotReading(STATE, {"front": frame}), episode=0, tick=0, timeout=60)
        return session, reply.actions

    return answer


def test_a_smolvla_sees_what_it_was_trained_on(by_longarm: Answer, tmp_path: Path) -> None:
    """A fine-tune as most are: it names its base's square, whatever its cameras were; LeRobot feeds it whole frames."""
    make_smolvla(tmp_path, chunk_size=8, height=256, width=256, cameras=["front"], image_size=64, denoising_steps=3)
    frame = scene(VGA)
    session, actions = by_longarm(tmp_path, frame)
    assert session.cameras == (CameraSpec("front", 48, 64),)
    assert session.notes == (), "the square of a base says nothing of the data"
    expected = by_lerobot(tmp_path, frame)
    apart = {
        "ours": actions,
        "squeezed": by_lerobot(tmp_path, cv2.resize(frame, (256, 256))),
        "another scene": by_lerobot(tmp_path, scene(VGA, seed=1)),
    }
    mean = {name: float(np.abs(actions - expected).mean()) for name, actions in apart.items()}
    assert mean["squeezed"] > mean["another scene"] / 2, "this is what the size matters for"
    # 0.006 where this was written: bytes in place of fractions
    assert mean["ours"] < mean["another scene"] / 50


def test_cameras_of_any_size_share_a_forward_pass_and_what_was_compiled(smolvla_checkpoint: Path) -> None:
    policy = LerobotLoader("cpu").load(PolicyChoice(str(smolvla_checkpoint)), lambda _: None)
    assert policy.spec.frame_box == (32, 32)
    processors = policy.open_processors()

    def prepared(size: Size) -> Any:
        images = {key: processors.prepare_frame(key, scene(size)) for key in policy.spec.cameras}
        return processors.preprocess(Observation(STATE, images, TASK, "test_arm"))

    shapes = {policy.shape_of(prepared(size)) for size in ((48, 64), (24, 32), (90, 160))}
    assert len(shapes) == 1


def preprocessor(**changes: Any) -> list[dict[str, Any]]:
    """The saved preprocessor of a SmolVLA, with settings of some steps changed."""
    names = ("rename_observations_processor", "to_batch_processor", "smolvla_new_line_processor", "tokenizer_processor")
    steps = {name: {} for name in names} | {"device_processor": {"float_dtype": None}, "normalizer_processor": {}}
    return [{"registry_name": name, "config": settings} for name, settings in (steps | changes).items()]


@pytest.mark.parametrize(
    ("steps", "scaled"),
    [
        (preprocessor(), True),
        (preprocessor(normalizer_processor={"norm_map": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD"}}), True),
        (preprocessor(normalizer_processor={"norm_map": {"VISUAL": "MEAN_STD"}}), False),
        (preprocessor(device_processor={"float_dtype": "bfloat16"}), False),
        (preprocessor(image_crop_resize_processor={}), False),
        (preprocessor(my_own_step={}), False),
        ([*preprocessor(), {"class": "my_robot.Brighten"}], False),
    ],
)
def test_frames_travel_whole_to_a_step_that_may_look_at_them(steps: list[dict[str, Any]], scaled: bool) -> None:
    assert (letterbox("smolvla", made_config("smolvla", (224, 224)), steps) is not None) == scaled


@pytest.mark.parametrize("policy_type", TYPES)
def test_no_step_of_lerobots_own_is_in_the_way(policy_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LeRobot makes and saves them; the tokenizers, which it would fetch, are left out."""
    for step in ("TokenizerProcessorStep", "ActionTokenizerProcessorStep"):
        monkeypatch.setattr(f"lerobot.processor.tokenizer_processor.{step}.__post_init__", lambda _: None)
    config = made_config(policy_type, (224, 224))
    made, _ = make_pre_post_processors(config)
    steps = [{"registry_name": type(step)._registry_name, "config": saved_settings(step)} for step in made.steps]
    assert letterbox(policy_type, config, json.loads(json.dumps(steps))) is not None, steps


def saved_settings(step: Any) -> dict[str, Any]:
    return {} if "tokenizer" in type(step)._registry_name else dict(step.get_config())


def test_frames_travel_whole_to_a_policy_that_scales_none() -> None:
    config = make_policy_config("xvla", input_features=inputs(VGA), device="cpu", florence_config={})
    assert letterbox("xvla", config, []) is None
    assert letterbox("act", make_policy_config("act", input_features=inputs(VGA), device="cpu"), []) is None


@pytest.mark.parametrize("declared", [VGA, (48, 64), (96, 96)])
def test_an_act_sees_what_lerobot_shows_it(by_longarm: Answer, tmp_path: Path, declared: Size) -> None:
    """It takes any size as it is, and so each differently: to the bit, even where it is not what it was trained on."""
    save("act", tmp_path, inputs=inputs(declared), **SMALL_ACT)
    frame = scene((96, 128))
    session, actions = by_longarm(tmp_path, frame)
    assert session.cameras == (CameraSpec("front", 96, 128),)
    np.testing.assert_array_equal(actions, by_lerobot(tmp_path, frame))
    (note,) = session.notes
    assert "128x96" in note
    assert f"width: {declared[1]}, height: {declared[0]} in --robot.cameras" in note
    assert ("another aspect" in note) == (declared == (96, 96))


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (37, 91)])
def test_an_act_sees_frames_of_any_size(by_longarm: Answer, tmp_path: Path, size: Size) -> None:
    save("act", tmp_path, inputs=inputs((48, 64)), **SMALL_ACT)
    _, actions = by_longarm(tmp_path, scene(size))
    # Of one pixel torch may take another way through its memory
    np.testing.assert_allclose(actions, by_lerobot(tmp_path, scene(size)), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (37, 91), (65, 65)])
def test_a_smolvla_sees_frames_of_any_size(by_longarm: Answer, tmp_path: Path, size: Size) -> None:
    make_smolvla(tmp_path, chunk_size=8, height=48, width=64, cameras=["front"], image_size=64, denoising_steps=2)
    _, actions = by_longarm(tmp_path, scene(size))
    expected = by_lerobot(tmp_path, scene(size))
    another = by_lerobot(tmp_path, scene(size, seed=1))
    assert np.abs(actions - expected).mean() <= np.abs(another - expected).mean() / 50


def test_a_diffusion_crops_what_lerobot_shows_it(by_longarm: Answer, tmp_path: Path) -> None:
    settings = SMALL_DIFFUSION | {"resize_shape": (48, 64), "crop_ratio": 0.75, "n_obs_steps": 1}
    save("diffusion", tmp_path, inputs=inputs((60, 80)), **settings)
    frame = scene((96, 128))
    _, actions = by_longarm(tmp_path, frame)
    np.testing.assert_array_equal(actions, by_lerobot(tmp_path, frame))


def test_a_policy_that_takes_no_other_size_fails_before_the_arm_moves_and_says_why(
    by_longarm: Answer, tmp_path: Path
) -> None:
    save("diffusion", tmp_path, inputs=inputs((48, 64)), n_obs_steps=1, **SMALL_DIFFUSION)
    with pytest.raises(RuntimeError):
        by_lerobot(tmp_path, scene(VGA))
    with pytest.raises(WireError, match=r"width: 64, height: 48 in --robot\.cameras") as failed:
        by_longarm(tmp_path, scene(VGA))
    assert failed.value.reason is Reason.POLICY_FAILED


def inputs(size: Size) -> dict[str, PolicyFeature]:
    return {
        "observation.state": PolicyFeature(FeatureType.STATE, (len(JOINTS),)),
        FRONT: PolicyFeature(FeatureType.VISUAL, (3, *size)),
    }


CAMERAS = [VGA, (720, 1280), (1080, 1920), (600, 800), (480, 848), (640, 480), (448, 448), (511, 677), (240, 320)]


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("policy_type", TYPES)
def test_what_a_policy_looks_at_is_the_same_for_any_weights(policy_type: str, camera: Size) -> None:
    """By the policy's own code, up to where its network begins; large networks of these types are not made here."""
    box = (224, 224) if policy_type.startswith("pi0") else (224, 320)
    config = made_config(policy_type, box)
    begins_with = letterbox(policy_type, config, [])
    assert begins_with is not None
    assert begins_with.size == box
    frame = scene(camera)
    size = size_to_send(camera, box)
    sent = pack_frame(CameraSpec("front", *size), frame, Codec.RAW, 90)
    received = images.decode(sent.data, Codec.RAW, *size)
    found = looked_at(policy_type, config, as_lerobot_feeds(received))
    expected = looked_at(policy_type, config, as_lerobot_feeds(frame))
    assert found.shape == expected.shape
    # In [-1, 1], but for xvla, which normalises before
    a_byte = 1 / 255 * (1 if policy_type == "xvla" else 2)
    assert np.abs(found - expected).max() <= HALF_A_BYTE * a_byte
    assert np.abs((found - expected).mean()) <= NO_BIAS * a_byte
    assert size == camera or size[0] * size[1] < camera[0] * camera[1]
    filled = begins_with.fill(as_lerobot_feeds(received))
    np.testing.assert_array_equal(looked_at(policy_type, config, filled), found, "nothing is left to do for the policy")


@pytest.mark.parametrize("box", [(224, 224), (512, 512)])
@pytest.mark.parametrize("camera", [VGA, (720, 1280), (240, 320)])
def test_jpeg_takes_little_more_of_a_frame_that_was_scaled_than_of_the_whole(camera: Size, box: Size) -> None:
    """With half the resolution of a frame that is half as wide, colours would have a quarter."""
    config = made_config("pi0", box)
    frame = scene(camera)

    def apart(size: Size) -> float:
        sent = pack_frame(CameraSpec("front", *size), frame, Codec.JPEG, 90)
        received = images.decode(sent.data, Codec.JPEG, *size)
        difference = looked_at("pi0", config, as_lerobot_feeds(received)) - expected
        return float(np.sqrt((difference**2).mean()))

    expected = looked_at("pi0", config, as_lerobot_feeds(frame))
    assert apart(size_to_send(camera, box)) < MOST_OF_A_SCALED_FRAME * apart(camera)


def made_config(policy_type: str, box: Size) -> Any:
    settings: dict[str, Any] = {"image_resolution": box}
    if policy_type == "smolvla":
        settings = {"resize_imgs_with_padding": box[::-1]}
    elif policy_type == "xvla":
        settings = {"resize_imgs_with_padding": box, "florence_config": {}}
    return make_policy_config(policy_type, input_features=inputs((256, 256)), device="cpu", **settings)


def as_lerobot_feeds(frame: np.ndarray) -> torch.Tensor:
    return prepare_observation_for_inference({FRONT: frame.copy()}, torch.device("cpu"))[FRONT]


def looked_at(policy_type: str, config: Any, frames: torch.Tensor) -> np.ndarray:
    """What the policy's own method gives its network of frames; of a policy without a network."""
    policy = SimpleNamespace(config=config, parameters=lambda: iter([torch.zeros(1)]))
    method = {"smolvla": "prepare_images", "xvla": "_prepare_images"}.get(policy_type, "_preprocess_images")
    pictures, _ = getattr(get_policy_class(policy_type), method)(policy, {FRONT: frames})
    return pictures[0].numpy()
