"""A checkpoint with a part of its weights is refused: LeRobot itself would fill in random ones and go on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, PaliGemmaConfig

from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.lerobot_weights import IncompleteWeightsError, load_whole
from longarm_service.policy import PolicyChoice
from longarm_wire.errors import Reason, WireError

pytestmark = pytest.mark.timeout(180)

type Weights = dict[str, torch.Tensor]


@pytest.fixture(params=["act", "smolvla"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    return found


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Callable[[Callable[[Weights], Weights]], Path]:
    """Returns a copy of the checkpoint with other weights."""

    def make(change: Callable[[Weights], Weights]) -> Path:
        copy = tmp_path / "changed"
        shutil.copytree(checkpoint, copy)
        save_file(change(load_file(copy / "model.safetensors")), copy / "model.safetensors")
        return copy

    return make


def load(directory: Path) -> None:
    LerobotLoader("cpu").load(PolicyChoice(str(directory)), lambda _: None)


def refusal(directory: Path) -> str:
    with pytest.raises(WireError) as caught:
        load(directory)
    assert caught.value.reason is Reason.POLICY_LOAD_FAILED
    return caught.value.message


def test_one_missing_tensor_is_enough(changed) -> None:
    gone: list[str] = []

    def without_one(weights: Weights) -> Weights:
        gone.append(sorted(weights)[-1])
        return {name: tensor for name, tensor in weights.items() if name not in gone}

    message = refusal(changed(without_one))
    assert "1 of " in message
    assert gone[0] in message


def test_of_many_missing_tensors_the_first_are_named_and_all_are_counted(changed) -> None:
    count = []

    def without_most(weights: Weights) -> Weights:
        count.append(len(weights) - 3)
        return dict(list(weights.items())[:3])

    message = refusal(changed(without_most))
    assert f"{count[0]} of " in message
    assert ", ..." in message


def test_a_missing_buffer_counts(act_checkpoint: Path, tmp_path: Path) -> None:
    """Frozen batch norms keep what they have learnt in buffers."""
    copy = tmp_path / "copy"
    shutil.copytree(act_checkpoint, copy)
    weights = load_file(copy / "model.safetensors")
    buffers = [name for name in weights if name.endswith("running_mean")]
    assert buffers
    del weights[buffers[0]]
    save_file(weights, copy / "model.safetensors")
    assert buffers[0] in refusal(copy)


def test_more_than_the_policy_wants_does_no_harm(changed) -> None:
    load(changed(lambda weights: {**weights, "normalize_inputs.buffer_state.mean": torch.zeros(6)}))


def test_what_does_not_fit_is_refused(changed) -> None:
    def bent(weights: Weights) -> Weights:
        name = sorted(weights)[-1]
        return {**weights, name: torch.zeros(tuple(n + 1 for n in weights[name].shape))}

    assert "size mismatch" in refusal(changed(bent))


class TiedAct(ACTPolicy):
    """An ACT with a tensor of two names, of which LeRobot saves one."""

    def __init__(self, config: ACTConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self.tied = torch.nn.Linear(1, 1)
        self.tied.weight = self.model.action_head.weight


def test_a_tensor_that_is_saved_under_another_name_is_not_missing(act_checkpoint: Path, tmp_path: Path) -> None:
    config = PreTrainedConfig.from_pretrained(act_checkpoint)
    TiedAct(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    (kept,) = {"tied.weight", "model.action_head.weight"} & weights.keys()
    load_whole(TiedAct, tmp_path, config)
    del weights[kept]
    save_file(weights, file)
    with pytest.raises(IncompleteWeightsError, match=r"2 of .*missing"):
        load_whole(TiedAct, tmp_path, config)


def test_a_plugin_that_loads_in_its_own_way_is_let_through_with_a_warning(
    act_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class OwnWay(TiedAct):
        @classmethod
        def from_pretrained(cls, *_: Any, config: ACTConfig, **options: Any) -> "OwnWay":
            return cls(config)

    load_whole(OwnWay, act_checkpoint, PreTrainedConfig.from_pretrained(act_checkpoint))
    assert "is not checked" in caplog.text


@pytest.fixture
def pi0_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pi0 of LeRobot's own code in a size that no checkpoint has: its configuration knows gigabytes only."""
    small = modeling_pi0.GemmaConfig(width=16, depth=1, mlp_dim=16, num_heads=1, num_kv_heads=1, head_dim=16)
    monkeypatch.setattr(modeling_pi0, "get_gemma_config", lambda _: small)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}

    def paligemma() -> PaliGemmaConfig:
        config = PaliGemmaConfig()
        for name, value in vision.items():
            setattr(config.vision_config, name, value)
        return config

    monkeypatch.setattr(modeling_pi0, "CONFIG_MAPPING", {"paligemma": paligemma, "gemma": CONFIG_MAPPING["gemma"]})
    config = PI0Config(device="cpu", push_to_hub=False)
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    modeling_pi0.PI0Policy(config).save_pretrained(tmp_path / "pi0")
    return tmp_path / "pi0"


def test_a_policy_that_swallows_errors_of_its_load_is_seen_through(pi0_checkpoint: Path) -> None:
    """pi0 prints a warning and returns random weights, whatever went wrong."""

    def load_pi0() -> None:
        load_whole(modeling_pi0.PI0Policy, pi0_checkpoint, PI0Config.from_pretrained(pi0_checkpoint))

    file = pi0_checkpoint / "model.safetensors"
    weights = load_file(file)
    load_pi0()
    # LeRobot takes the head for the embedding where that is missing
    embedding = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    save_file({name: tensor for name, tensor in weights.items() if name != embedding}, file)
    load_pi0()
    save_file({name: tensor for name, tensor in weights.items() if name != "model.action_in_proj.weight"}, file)
    with pytest.raises(IncompleteWeightsError, match=r"1 of .*model\.action_in_proj\.weight"):
        load_pi0()
    save_file({**weights, "model.action_in_proj.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(IncompleteWeightsError, match=r"1 tensors do not fit.*action_in_proj"):
        load_pi0()
    file.write_bytes(b"cut short")
    with pytest.raises(IncompleteWeightsError, match="has loaded no weights"):
        load_pi0()
