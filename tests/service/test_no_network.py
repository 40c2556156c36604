"""What a checkpoint brings is not fetched, and a loaded policy asks nobody: nothing here may open a connection."""

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import PreTrainedPolicy, make_pre_post_processors
from lerobot.policies.evo1.configuration_evo1 import Evo1Config
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import TokenizerProcessorStep
from tests.service.checkpoints import (
    CAMERAS,
    HEIGHT,
    JOINTS,
    SMALL_DIFFUSION,
    WIDTH,
    preprocessed,
    save,
    save_act,
)
from tests.service.test_lerobot import load, some_observation
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    InternVLConfig,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    VJEPA2Config,
)

from longarm_service.lerobot_base_models import without_base_weights
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.lerobot_policy import LerobotPolicy
from longarm_service.policy import Observation


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that anything tries to reach; none is reached."""
    tried: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        tried.append(arguments[-1] if arguments and isinstance(arguments[0], socket.socket) else arguments)
        raise OSError("this test has no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    # As a service has it; a library that does not ask because it was told so would prove nothing
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nonexistent")
    return tried


@pytest.fixture(scope="module")
def lerobot() -> LerobotLoader:
    return LerobotLoader("cpu")


def configured(directory: Path, **changes: Any) -> Path:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


def answered(policy: LerobotPolicy, seen: Observation) -> np.ndarray:
    torch.manual_seed(0)
    processors = policy.open_processors()
    return processors.postprocess(policy.predict(preprocessed(processors, seen)))


SMALL_VQBET = {
    "n_obs_steps": 1,
    "action_chunk_size": 2,
    "n_vqvae_training_steps": 1,
    "vqvae_n_embed": 4,
    "vqvae_embedding_dim": 8,
    "vqvae_enc_hidden_dim": 8,
    "gpt_n_layer": 1,
    "gpt_n_head": 1,
    "gpt_hidden_dim": 16,
    "gpt_input_dim": 16,
    "gpt_output_dim": 16,
    "crop_shape": None,
    "pretrained_backbone_weights": None,
    "use_group_norm": True,
}
ONE_CAMERA = {
    "observation.state": PolicyFeature(FeatureType.STATE, (len(JOINTS),)),
    CAMERAS[0]: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)),
}
IMAGENET = "ResNet18_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(
    "make",
    [
        save_act,
        lambda place: save("diffusion", place, n_obs_steps=1, **SMALL_DIFFUSION),
        lambda place: save("vqbet", place, inputs=ONE_CAMERA, **SMALL_VQBET),
    ],
    ids=["act", "diffusion", "vqbet"],
)
def test_a_backbone_is_not_fetched(
    lerobot: LerobotLoader, tmp_path: Path, connections: list[Any], make: Callable[[Path], Path]
) -> None:
    """LeRobot's defaults name weights of ImageNet, which the checkpoint's own replace."""
    directory = make(tmp_path / "policy")
    policy = load(lerobot, directory)
    seen = some_observation(cameras=tuple(policy.spec.cameras))
    expected = answered(policy, seen)
    configured(directory, pretrained_backbone_weights=IMAGENET)
    np.testing.assert_array_equal(answered(load(lerobot, directory), seen), expected)
    assert connections == []


def stock_answer(policy: PreTrainedPolicy, directory: Path, seen: Observation) -> np.ndarray:
    """What LeRobot's own parts answer with the policy that its from_pretrained gave."""
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(directory))
    raw = {"observation.state": seen.state.copy(), **{key: frame.copy() for key, frame in seen.images.items()}}
    batch = prepare_observation_for_inference(raw, torch.device("cpu"), seen.task, seen.robot_type)
    torch.manual_seed(0)
    return postprocessor(policy.predict_action_chunk(preprocessor(batch))).squeeze(0).numpy()


def test_the_base_of_smolvla_is_not_fetched(
    lerobot: LerobotLoader, smolvla_checkpoint: Path, tmp_path: Path, connections: list[Any]
) -> None:
    """Its numbers have the base model's type all the same: LeRobot's answers depend on it."""
    base = Path(shutil.copytree(smolvla_checkpoint / "base", tmp_path / "base"))
    directory = Path(shutil.copytree(smolvla_checkpoint, tmp_path / "policy"))
    configured(directory, load_vlm_weights=True, vlm_model_name=str(base))
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base)).save_pretrained(base)
    seen = replace(some_observation(), task="pick the cube")
    stock = SmolVLAPolicy.from_pretrained(directory)
    expected = stock_answer(stock, directory, seen)
    (base / "model.safetensors").unlink()
    policy = load(lerobot, directory)
    types = {name: tensor.dtype for name, tensor in policy.model._policy.state_dict().items()}
    assert types == {name: tensor.dtype for name, tensor in stock.state_dict().items()}
    np.testing.assert_array_equal(answered(policy, seen), expected)
    assert connections == []


def test_the_encoders_of_multi_task_dit_are_not_fetched(
    lerobot: LerobotLoader, tmp_path: Path, connections: list[Any]
) -> None:
    base = tmp_path / "clip"
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "pick": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(base)
    CLIPModel(
        CLIPConfig(
            vision_config={**part, "image_size": 32, "patch_size": 16},
            text_config={**part, "vocab_size": 3, "eos_token_id": 0},
        )
    ).save_pretrained(base)
    small = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "timestep_embed_dim": 16, "num_train_timesteps": 4}
    encoders = {"vision_encoder_name": str(base), "text_encoder_name": str(base)}
    frames = {"image_resize_shape": (32, 32), "image_crop_shape": None}
    directory = save("multi_task_dit", tmp_path / "policy", n_obs_steps=1, **small, **encoders, **frames)
    seen = replace(some_observation(), task="pick")
    policy = MultiTaskDiTPolicy.from_pretrained(directory)
    (base / "model.safetensors").unlink()
    loaded = load(lerobot, directory)
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(loaded.model._policy.state_dict()[name], tensor, rtol=0, atol=0)
    assert np.isfinite(answered(loaded, seen)).all()
    assert connections == []


PART = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**PART, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 8, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("config", "kind", "settings"),
    [
        # As evo1, then vla_jepa asks for them
        (
            InternVLConfig(
                vision_config={**PART, "image_size": [32, 32], "patch_size": [16, 16]},
                text_config={**TEXT, "model_type": "qwen2"},
            ),
            AutoModel,
            {"torch_dtype": torch.bfloat16, "attn_implementation": "eager", "low_cpu_mem_usage": True},
        ),
        (
            Qwen3VLConfig(
                text_config={**TEXT, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
                vision_config={"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}
                | {"out_hidden_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            ),
            Qwen3VLForConditionalGeneration,
            {"torch_dtype": torch.float16},
        ),
        (
            VJEPA2Config(**PART, crop_size=32, frames_per_clip=2, pred_hidden_size=16, pred_num_attention_heads=2),
            AutoModel,
            {"torch_dtype": torch.bfloat16},
        ),
    ],
    ids=["internvl", "qwen3_vl", "vjepa2"],
)
@pytest.mark.parametrize("stated", [True, False], ids=["type stated", "type of the configuration"])
def test_a_base_without_its_weights_is_the_same_otherwise(
    tmp_path: Path, config: Any, kind: Any, settings: dict[str, Any], stated: bool
) -> None:
    """What is not in a checkpoint, such as tables of positions, must be what LeRobot has."""
    made = kind.from_config(config) if kind is AutoModel else kind(config)
    made.to(torch.float16).save_pretrained(tmp_path)
    settings = settings if stated else {}
    stock = kind.from_pretrained(tmp_path, **settings)
    (tmp_path / "model.safetensors").unlink()
    with without_base_weights(Evo1Config()):
        ours = kind.from_pretrained(tmp_path, **settings)
    assert type(ours) is type(stock)
    assert not ours.training
    assert ours.config._attn_implementation == stock.config._attn_implementation
    for mine, theirs in (
        (ours.state_dict(), stock.state_dict()),
        (dict(ours.named_buffers()), dict(stock.named_buffers())),
    ):
        assert {name: (t.shape, t.dtype) for name, t in mine.items()} == {
            name: (t.shape, t.dtype) for name, t in theirs.items()
        }
    for name, buffer in stock.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=0, atol=0)


def test_a_loaded_policy_asks_nobody(
    lerobot: LerobotLoader, smolvla_checkpoint: Path, tmp_path: Path, connections: list[Any]
) -> None:
    """Each session has processors of its own; their tokenizer came from the hub, which may be gone by then."""
    base = Path(shutil.copytree(smolvla_checkpoint / "base", tmp_path / "base"))
    directory = Path(shutil.copytree(smolvla_checkpoint, tmp_path / "policy"))
    configured(directory, vlm_model_name=str(base))
    content = (directory / "policy_preprocessor.json").read_text()
    (directory / "policy_preprocessor.json").write_text(content.replace(str(smolvla_checkpoint / "base"), str(base)))
    policy = load(lerobot, directory)
    seen = replace(some_observation(), task="pick the cube")
    expected = answered(policy, seen)
    shutil.rmtree(base)
    shutil.rmtree(directory)
    np.testing.assert_array_equal(answered(policy, seen), expected)
    assert connections == []


def test_sessions_share_a_tokenizer_and_nothing_else(lerobot: LerobotLoader, smolvla_checkpoint: Path) -> None:
    policy = load(lerobot, smolvla_checkpoint)
    one, other = (policy.open_processors() for _ in range(2))
    for pipeline in ("_preprocessor", "_postprocessor"):
        mine, theirs = getattr(one, pipeline).steps, getattr(other, pipeline).steps
        assert [type(step) for step in mine] == [type(step) for step in theirs]
        assert not {id(step) for step in mine} & {id(step) for step in theirs}
    tokenizers = [
        step.input_tokenizer
        for processors in (one, other)
        for step in processors._preprocessor.steps
        if isinstance(step, TokenizerProcessorStep)
    ]
    assert tokenizers[0] is tokenizers[1]
