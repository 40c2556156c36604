"""What the JSON of a checkpoint may not say. With the real LeRobot behind it, see test_strangers_checkpoints.py."""

import os
from pathlib import Path
from typing import Any

import pytest

from longarm_service import inspection
from longarm_wire.errors import Reason, WireError

REGISTERED = {"device_processor", "normalizer_processor"}
FEATURE = {"type": "STATE", "shape": [6]}


def refused(caught: pytest.ExceptionInfo[WireError], *words: str, reason: Reason = Reason.POLICY_LOAD_FAILED) -> None:
    assert caught.value.reason is reason, caught.value
    assert len(caught.value.message) < 500
    for word in ("'lab/act'", *words):
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe{", "utf-8"),
        (b"\x80\x04\x95pickle", "utf-8"),
        (b'{"a": NaN}', "finite"),
        (b'{"a": [-Infinity]}', "finite"),
        (b'{"a": 1e999}', "finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a":' * 200_000, "deep"),
        (b"[" * 200_000, "deep"),
        (b"[]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"null", "no JSON object"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WireError) as caught:
        inspection.read_json(tmp_path / "config.json", "lab/act")
    refused(caught, "config.json", words)


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(WireError) as caught:
        inspection.read_json(tmp_path / "config.json", "lab/act")
    refused(caught, "config.json", str(1 << 40))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    for file in ("pipe.json", "zero.json", "folder.json", "loop.json"):
        with pytest.raises(WireError) as caught:
            inspection.read_json(tmp_path / file, "lab/act")
        refused(caught, file)
    with pytest.raises(FileNotFoundError):
        inspection.read_json(tmp_path / "none.json", "lab/act")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_features": []}, None),
        ({"input_features": None}, None),
        ({"input_features": [1]}, "input_features"),
        ({"input_features": "state"}, "input_features"),
        ({"input_features": {"a": None}}, "'a'"),
        ({"input_features": {"a": {"type": "STATE"}}}, "'a'"),
        ({"input_features": {"a": FEATURE | {"shape": "6"}}}, "'a'"),
        ({"input_features": {"a": FEATURE | {"shape": [6.0]}}}, "'a'"),
        ({"input_features": {"a": FEATURE | {"shape": [True]}}}, "'a'"),
        ({"input_features": {"a": FEATURE | {"shape": [-1]}}}, "'a'"),
        ({"input_features": {"a": {"type": "VISUAL", "shape": [3, 0, 0]}}}, "'a'"),
        ({"input_features": {"a": FEATURE | {"shape": [3, 10**6, 10**6]}}}, "together"),
        ({"output_features": {"action": FEATURE | {"shape": [10**12]}}}, "together"),
        ({"input_features": {f"state {i}": FEATURE for i in range(101)}}, "at most 100"),
        ({"input_features": {"x" * 10_000: {"shape": "y" * 10_000}}}, "input_features"),
        ({"chunk_size": 10**6}, "chunk_size"),
        ({"chunk_size": -1}, "chunk_size"),
        ({"chunk_size": "200000000"}, "chunk_size"),
        ({"horizon": 1e6}, "horizon"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"chunk_size": 10_000, "n_action_steps": None}, None),
        ({"gpt_block_size": 40_000}, "gpt_block_size"),
        ({"resize_shape": [224, 3000]}, "resize_shape"),
        ({"resize_shape": ["224", "224"]}, "resize_shape"),
        ({"resize_shape": [-1, 224]}, "resize_shape"),
        ({"resize_imgs_with_padding": None, "image_resolution": [224, 224]}, None),
        ({"empty_cameras": 101}, "empty_cameras"),
        ({"prefix_length": -1}, None),
    ],
)
def test_sizes_that_no_policy_has(changes: dict[str, Any], words: str | None) -> None:
    config = {"type": "act", "input_features": {"observation.state": FEATURE}} | changes
    if words is None:
        inspection.check_configuration(config, "lab/act")
        return
    with pytest.raises(WireError) as caught:
        inspection.check_configuration(config, "lab/act")
    refused(caught, "config.json", words)


STEP = {"registry_name": "device_processor", "config": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (None, "steps"),
        ({}, "steps"),
        ("device_processor", "steps"),
        ([STEP] * 101, "at most 100"),
        ([STEP, "device_processor"], "objects"),
        ([STEP, None], "objects"),
        ([STEP, [STEP]], "objects"),
        ([STEP, {"registry_name": "no_such"}], "step 1 is 'no_such'"),
        ([{"registry_name": None}], "None"),
        ([{"registry_name": ["device_processor"]}], "device_processor"),
        ([{"registry_name": {"class": "os.system"}}], "os.system"),
        ([{"registry_name": "x" * 10_000}], "xxx"),
        ([STEP | {"config": None}], "config"),
        ([STEP | {"config": ["cpu"]}], "config"),
        ([STEP | {"config": {"max_length": 10**9}}], "max_length"),
        ([STEP | {"config": {"resize_size": [224, 10**6]}}], "resize_size"),
        ([STEP | {"config": {"rename_map": ["a"]}}], "rename_map"),
        ([STEP | {"config": {"rename_map": {"a": ["b"]}}}], "rename_map"),
        *(
            ([STEP | {"state_file": state}], "state_file")
            for state in (
                *("../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", "x.bin", "x.pt"),
                *(["x.safetensors"], 7, {}, "./x.safetensors", "..\0.safetensors/x"),
            )
        ),
    ],
)
def test_steps_that_are_none(steps: Any, words: str) -> None:
    with pytest.raises(WireError) as caught:
        inspection.check_processor({"steps": steps}, "policy_x.json", "lab/act", REGISTERED, trusted=False)
    refused(caught, "policy_x.json", words)


@pytest.mark.parametrize(
    "code", ["subprocess.Popen", "os.system", "lerobot.processor.DeviceProcessorStep", "", None, 7]
)
def test_a_step_named_by_its_code_needs_trust(code: object) -> None:
    content = {"steps": [STEP, {"class": code, "config": {}}]}
    with pytest.raises(WireError) as caught:
        inspection.check_processor(content, "policy_x.json", "lab/act", REGISTERED, trusted=False)
    refused(caught, "policy_x.json", "step 1", "trusted_policies", reason=Reason.POLICY_NOT_ALLOWED)
    inspection.check_processor(content, "policy_x.json", "lab/act", REGISTERED, trusted=True)


def test_what_lerobot_saves_is_fine() -> None:
    state = {"state_file": "policy_preprocessor_step_3_normalizer_processor.safetensors"}
    content = {"name": "p", "steps": [STEP, {"registry_name": "normalizer_processor", **state}]}
    inspection.check_processor(content, "policy_x.json", "lab/act", REGISTERED, trusted=False)
