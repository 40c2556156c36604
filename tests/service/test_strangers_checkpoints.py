"""Checkpoints that somebody else wrote, through the real LeRobot: none runs code, reaches out, or takes the memory."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.service.checkpoints import FEATURES, SMALL_DIFFUSION, save
from tests.service.conftest import Serve
from tests.service.fake_hub import COMMIT, Hub
from tests.service.fakes import failing, observation, open_session
from tests.service.test_lerobot import answer, copied, edited, load, robot_of, some_observation

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import lerobot_loader
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.policy import PolicyChoice
from longarm_wire.errors import Reason, WireError

HEAD = "model.action_head.weight"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"


@pytest.fixture(scope="module")
def lerobot() -> LerobotLoader:
    return LerobotLoader("cpu")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a stranger's code would make."""
    return tmp_path / "it ran"


@pytest.fixture
def with_step(act_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns a copy of the checkpoint with one step more at the end of a processor."""

    def add(step: dict[str, Any], file: str = PREPROCESSOR) -> Path:
        content = json.loads((act_checkpoint / file).read_text())
        content["steps"].append(step)
        return copied(act_checkpoint, tmp_path / "checkpoint", file, json.dumps(content).encode())

    return add


def refused(loader: LerobotLoader, directory: Path, *words: str, reason: Reason) -> None:
    with pytest.raises(WireError) as caught:
        load(loader, directory)
    assert caught.value.reason is reason, caught.value
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize("file", [PREPROCESSOR, POSTPROCESSOR])
def test_a_processor_that_names_code_runs_nothing(
    lerobot: LerobotLoader, with_step: Callable[..., Path], marker: Path, file: str
) -> None:
    """LeRobot imports and calls whatever it finds there."""
    directory = with_step({"class": "subprocess.Popen", "config": {"args": ["touch", str(marker)]}}, file)
    refused(lerobot, directory, "subprocess.Popen", file, "trusted_policies", reason=Reason.POLICY_NOT_ALLOWED)
    assert not marker.exists()


def test_weights_of_a_model_that_names_code_are_not_even_fetched(
    serve: Serve, hub: Hub, act_checkpoint: Path, with_step: Callable[..., Path], marker: Path
) -> None:
    """Over the wire and from a hub, beside one that names none."""
    evil = with_step({"class": "subprocess.Popen", "config": {"args": ["touch", str(marker)]}})
    for name, directory in (("lab/act", act_checkpoint), ("lab/evil", evil)):
        hub.models[name] = {path.name: path.read_bytes() for path in directory.iterdir()}
    stub = serve(lambda: LerobotLoader("cpu"), obs_queue_timeout=30.0).stub
    with failing(Reason.POLICY_NOT_ALLOWED, "'lab/evil'", "subprocess.Popen"):
        open_session(stub, "lab/evil", robot=robot_of())
    assert "model.safetensors" not in hub.asked
    assert not marker.exists()
    session = open_session(stub, "lab/act", robot=robot_of())
    assert session.fingerprint.revision == COMMIT
    assert stub.PredictChunk(observation(session, np.zeros(6))).step_count
    hub.calls.clear()
    assert open_session(stub, "lab/act", robot=robot_of()).fingerprint == session.fingerprint
    assert hub.calls == []


def test_what_was_judged_is_what_is_read(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user of the machine may have the service load a folder of theirs, and write into it meanwhile."""
    directory = Path(shutil.copytree(act_checkpoint, tmp_path / "theirs"))
    evil = {"steps": [{"class": "subprocess.Popen", "config": {"args": ["touch", str(marker)]}}]}

    def check(*arguments: Any) -> None:
        inspect_it(*arguments)
        for file in (PREPROCESSOR, POSTPROCESSOR):
            (directory / file).write_text(json.dumps(evil))

    inspect_it = lerobot_loader._check_harmless
    monkeypatch.setattr(lerobot_loader, "_check_harmless", check)
    policy = load(lerobot, directory)
    expected = answer(load(lerobot, act_checkpoint), some_observation())
    np.testing.assert_array_equal(answer(policy, some_observation()), expected)
    assert not marker.exists()


def test_code_that_the_operator_trusts_runs(with_step: Callable[..., Path]) -> None:
    directory = with_step({"class": "lerobot.processor.pipeline.IdentityProcessorStep", "config": {}})
    refused(LerobotLoader("cpu"), directory, "trusted_policies", reason=Reason.POLICY_NOT_ALLOWED)
    assert load(LerobotLoader("cpu", trusted=(f"{directory}/",)), directory).spec.policy_type == "act"


def remote_code(directory: Path, marker: Path) -> Path:
    """Saves a processor whose code comes with it."""
    directory.mkdir()
    (directory / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import ProcessorMixin\n"
        "class Evil(ProcessorMixin):\n"
        "    pass\n"
    )
    auto_map = {
        "auto_map": {"AutoProcessor": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil"] * 2}
    }
    for file in ("processor_config.json", "config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (directory / file).write_text(json.dumps(auto_map))
    return directory


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("action_tokenizer_processor", "action_tokenizer_name"),
        ("tokenizer_processor", "tokenizer_name"),
        ("eo1_qwen_processor", "processor_name"),
        ("molmoact2_pack_inputs", "checkpoint_path"),
        ("groot_n1_7_vlm_encode_v1", "model_name"),
    ],
)
def test_code_of_a_repository_that_a_step_names_is_not_run(
    lerobot: LerobotLoader, with_step: Callable[..., Path], tmp_path: Path, marker: Path, name: str, config: str
) -> None:
    """LeRobot asks for some of it with trust_remote_code."""
    source = remote_code(tmp_path / "tokenizer", marker)
    directory = with_step({"registry_name": name, "config": {config: str(source)}})
    with contextlib.suppress(WireError):
        load(lerobot, directory)
    assert not marker.exists()


def test_the_person_who_runs_the_service_may_trust_remote_code(
    lerobot: LerobotLoader,
    with_step: Callable[..., Path],
    tmp_path: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = remote_code(tmp_path / "tokenizer", marker)
    directory = with_step(
        {"registry_name": "action_tokenizer_processor", "config": {"action_tokenizer_name": str(source)}}
    )
    refused(lerobot, directory, "evil.py", f"trusted_policies={directory}", reason=Reason.POLICY_NOT_ALLOWED)
    assert not marker.exists()
    with pytest.raises(WireError) as caught:
        load(LerobotLoader("cpu", trusted=(str(directory),)), directory)
    # It ran; that it is no processor either is another matter
    assert caught.value.reason is Reason.POLICY_LOAD_FAILED
    assert marker.exists()
    marker.unlink()
    refused(lerobot, directory, reason=Reason.POLICY_NOT_ALLOWED)
    assert not marker.exists()


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "config.json", "vocab.json", "spiece.model"]
)
@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95pickle", b"[" * 200_000, b'{"a":' * 200_000, b'{"model": NaN}'])
def test_a_tokenizer_of_nonsense_is_said_to_be_so(
    lerobot: LerobotLoader, with_step: Callable[..., Path], tmp_path: Path, file: str, content: bytes
) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (source / file).write_bytes(content)
    directory = with_step({"registry_name": "tokenizer_processor", "config": {"tokenizer_name": str(source)}})
    refused(lerobot, directory, "its processors", reason=Reason.POLICY_LOAD_FAILED)


class Pickled:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def test_pickles_are_not_opened(lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, marker: Path) -> None:
    directory = copied(act_checkpoint, tmp_path / "pickled", "model.safetensors", None)
    for file in ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "adapter_model.bin", "model.pkl"):
        torch.save(Pickled(marker), directory / file)
    refused(lerobot, directory, "its weights", "model.safetensors", reason=Reason.POLICY_LOAD_FAILED)
    shutil.copy(directory / "model.pt", directory / "model.safetensors")
    refused(lerobot, directory, "model.safetensors", reason=Reason.POLICY_LOAD_FAILED)
    # Nor where a library of LeRobot's would
    with pytest.raises(Exception, match="weights_only"):
        torch.load(directory / "model.pt", weights_only=False)
    assert not marker.exists()


def test_files_that_inference_does_not_read_are_not_read(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, marker: Path
) -> None:
    directory = Path(shutil.copytree(act_checkpoint, tmp_path / "more", copy_function=os.link))
    for file in ("train_config.json", "adapter_config.json", "model.safetensors.index.json", "tokenizer_config.json"):
        (directory / file).write_text('{"class": "os.system", "weight_map": {"a": "../../etc/passwd"}, "auto_map": NaN')
    (directory / "modeling_act.py").write_text(f"open({str(marker)!r}, 'w')")
    expected = answer(load(lerobot, act_checkpoint), some_observation())
    np.testing.assert_array_equal(answer(load(lerobot, directory), some_observation()), expected)
    assert not marker.exists()


@pytest.mark.parametrize("state", ["../statistics.safetensors", "{tmp}/statistics.safetensors"])
def test_statistics_from_elsewhere_are_not_read(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, state: str
) -> None:
    content = json.loads((act_checkpoint / PREPROCESSOR).read_text())
    step = next(step for step in content["steps"] if "state_file" in step)
    shutil.copy(act_checkpoint / step["state_file"], tmp_path / "statistics.safetensors")
    step["state_file"] = state.format(tmp=tmp_path)
    directory = copied(act_checkpoint, tmp_path / "checkpoint", PREPROCESSOR, json.dumps(content).encode())
    refused(lerobot, directory, "state_file", reason=Reason.POLICY_LOAD_FAILED)


@pytest.mark.parametrize(
    "changes",
    [
        {"dim_model": 1 << 20},
        {"dim_feedforward": 1 << 40},
        {"dim_feedforward": 10**30},
        {"latent_dim": 1 << 31},
        {"n_encoder_layers": 1 << 30},
        {"dim_model": -1},
        {"dim_model": 16.5},
        {"dim_model": None},
        {"dim_model": [16]},
        {"n_heads": 0},
        {"vision_backbone": "resnet_of_mine"},
        {"vision_backbone": "resnet.urllib"},
        {"vision_backbone": "../../resnet18"},
        {"type": "act\0"},
        {"type": ["act"]},
        {"device": "cuda:99"},
        {"input_features": {}},
        {"output_features": {}},
        {"normalization_mapping": {"STATE": "os.system"}},
        {"optimizer_lr": "one"},
        {"pretrained_path": "/etc"},
    ],
)
def test_a_configuration_of_any_values_is_refused_or_harmless(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    before = peak_bytes()
    try:
        policy = load(lerobot, edited(act_checkpoint, tmp_path / "edited", **changes))
    except WireError as error:
        assert error.reason in (Reason.POLICY_LOAD_FAILED, Reason.POLICY_UNSUPPORTED)  # noqa: PT017
        assert len(error.message) < 1500  # noqa: PT017
    else:
        assert policy.spec.policy_type == "act"
    assert peak_bytes() - before < 3 << 30


def peak_bytes() -> int:
    """Returns the most memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_no_numbers_do_not_pass_as_answers(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, value: float
) -> None:
    file = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    state = {name: torch.full_like(tensor, value) for name, tensor in load_file(act_checkpoint / file).items()}
    save_file(state, tmp_path / "state.safetensors")
    directory = copied(act_checkpoint, tmp_path / "checkpoint", file, (tmp_path / "state.safetensors").read_bytes())
    try:
        actions = answer(load(lerobot, directory), some_observation())
    except WireError as error:
        assert error.reason is Reason.POLICY_LOAD_FAILED  # noqa: PT017
    else:
        assert not np.isfinite(actions).all()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"\x02" + bytes(7) + b"{}"]
)
def test_weights_that_are_none_are_said_to_be_so(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, content: bytes
) -> None:
    directory = copied(act_checkpoint, tmp_path / "checkpoint", "model.safetensors", content)
    what = "model.safetensors" if b"\xff" in content else "its weights"
    refused(lerobot, directory, what, reason=Reason.POLICY_LOAD_FAILED)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "policy_postprocessor_step_0_unnormalizer_processor.safetensors"]
)
def test_a_header_that_no_policy_has_is_not_read(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, file: str
) -> None:
    """Of a million names, for which torch's library makes a tensor each."""
    empty = '"a%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = f"{{{','.join(empty % number for number in range(100_000))}}}".encode()
    content = len(header).to_bytes(8, "little") + header
    directory = copied(act_checkpoint, tmp_path / "checkpoint", file, content)
    refused(lerobot, directory, file, f"found {len(header)}", reason=Reason.POLICY_LOAD_FAILED)


SMALL_VQBET: dict[str, Any] = {
    "n_obs_steps": 1,
    "crop_shape": None,
    "spatial_softmax_num_keypoints": 4,
    "gpt_block_size": 50,
    **dict.fromkeys(("gpt_input_dim", "gpt_output_dim", "gpt_hidden_dim"), 16),
    **dict.fromkeys(("gpt_n_layer", "gpt_n_head"), 1),
    **dict.fromkeys(("vqvae_embedding_dim", "vqvae_enc_hidden_dim"), 8),
    "pretrained_backbone_weights": None,
    "use_group_norm": True,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, act_checkpoint: Path, smolvla_checkpoint: Path) -> Any:
    """One of each type, by its name."""
    made = {"act": act_checkpoint, "smolvla": smolvla_checkpoint}
    one_camera = {key: feature for key, feature in FEATURES.items() if "wrist" not in key}
    for kind, settings in (("vqbet", SMALL_VQBET), ("diffusion", SMALL_DIFFUSION | {"n_obs_steps": 1})):
        made[kind] = save(kind, tmp_path_factory.mktemp(kind), inputs=one_camera, **settings)
    return made


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("vqbet", {"gpt_block_size": 40_000}),
        ("vqbet", {"gpt_block_size": 10_000, "gpt_n_layer": 8}),
        ("vqbet", {"gpt_input_dim": 10**9}),
        ("diffusion", {"resize_shape": [10_000, 10_000]}),
        ("diffusion", {"resize_shape": ["40000", "40000"]}),
        ("smolvla", {"resize_imgs_with_padding": [40_000, 40_000]}),
        ("smolvla", {"empty_cameras": 10**9}),
        ("smolvla", {"prefix_length": 40_000}),
        ("smolvla", {"tokenizer_max_length": 10**9}),
    ],
)
def test_what_is_no_weight_does_not_take_the_memory_either(
    lerobot: LerobotLoader, checkpoints: dict[str, Path], tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    """Masks and tables of a policy, frames that it resizes or adds, and what it fills up with."""
    assert load(lerobot, checkpoints[kind]).spec.policy_type == kind
    before = peak_bytes()
    refused(lerobot, edited(checkpoints[kind], tmp_path / "edited", **changes), reason=Reason.POLICY_LOAD_FAILED)
    assert peak_bytes() - before < 3 << 30


@pytest.mark.parametrize(
    ("saved", "allowed"),
    [
        *((dtype, True) for dtype in (torch.float64, torch.float16, torch.bfloat16)),
        *((dtype, False) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz)),
        *((dtype, False) for dtype in (torch.int32, torch.uint8, torch.bool, torch.complex64)),
    ],
)
def test_weights_of_a_type_that_does_not_become_theirs_are_refused(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, saved: torch.dtype, allowed: bool
) -> None:
    """Torch takes any for any, and the arm would move by what is left of them."""
    weights = load_file(act_checkpoint / "model.safetensors")
    save_file(weights | {HEAD: weights[HEAD].to(saved)}, tmp_path / "changed.safetensors")
    content = (tmp_path / "changed.safetensors").read_bytes()
    directory = copied(act_checkpoint, tmp_path / "checkpoint", "model.safetensors", content)
    if allowed:
        assert load(lerobot, directory).spec.policy_type == "act"
    else:
        refused(lerobot, directory, HEAD, str(saved), "torch.float32", reason=Reason.POLICY_LOAD_FAILED)


@pytest.mark.parametrize("kind", ["act", "smolvla", "vqbet"])
def test_what_becomes_of_the_files_after_a_load_is_nothing_to_the_policy(
    lerobot: LerobotLoader, checkpoints: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Files that are mapped and become shorter end whoever reads on."""
    directory = Path(shutil.copytree(checkpoints[kind], tmp_path / "checkpoint"))
    policy = load(lerobot, directory)
    assert str(directory) not in Path("/proc/self/maps").read_text()
    for file in directory.glob("*.safetensors"):
        os.truncate(file, 0)
    seen = some_observation(cameras=tuple(policy.spec.cameras))
    assert np.isfinite(answer(policy, seen)).all()


@pytest.mark.parametrize("change", [lambda file: os.truncate(file, 1000), lambda file: file.write_bytes(b"2" * 3000)])
def test_a_checkpoint_that_is_written_to_while_it_is_loaded_is_neither_the_old_nor_the_new(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    directory = Path(shutil.copytree(act_checkpoint, tmp_path / "checkpoint"))

    def report(progress: pb.Progress) -> None:
        if progress.stage == pb.PROGRESS_STAGE_WARMING_UP and not progress.fraction:
            change(directory / "model.safetensors")

    with pytest.raises(WireError, match="written to while it was loaded") as caught:
        lerobot.load(PolicyChoice(str(directory)), report)
    assert caught.value.reason is Reason.POLICY_LOAD_FAILED


def test_weights_that_are_a_pipe_are_not_waited_for(
    lerobot: LerobotLoader, act_checkpoint: Path, tmp_path: Path
) -> None:
    directory = copied(act_checkpoint, tmp_path / "checkpoint", "model.safetensors", None)
    os.mkfifo(directory / "model.safetensors")
    refused(lerobot, directory, "model.safetensors", reason=Reason.POLICY_LOAD_FAILED)
