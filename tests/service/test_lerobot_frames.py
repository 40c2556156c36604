"""Frames that are normalised byte by byte must be what LeRobot's own preprocessor makes of them, to the bit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    ObservationProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStep,
    RenameObservationsProcessorStep,
)

from longarm_service.lerobot_frames import FrameInputs

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
HEIGHT, WIDTH = 12, 20
FEATURES = {
    "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    **{key: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for key in (FRONT, WRIST)},
}
STATE = {"mean": [1.0, 2.0], "std": [3.0, 4.0], "min": [-1.0, -2.0], "max": [1.0, 2.0]}


def statistics(**of_frames: Any) -> dict[str, Any]:
    chosen = {name: np.asarray(value, np.float32) for name, value in of_frames.items()}
    # A camera without statistics is left as it is
    return {"observation.state": {k: np.array(v, np.float32) for k, v in STATE.items()}, FRONT: chosen}


def per_colour(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None, None]


COLOURS = statistics(
    mean=per_colour(0.485, 0.456, 0.406),
    std=per_colour(0.229, 0.224, 0.0),
    min=per_colour(0.0, 0.1, 0.2),
    max=per_colour(1.0, 0.9, 0.2),
)
PER_PIXEL = statistics(mean=np.linspace(0, 1, 3 * HEIGHT * WIDTH).reshape(3, HEIGHT, WIDTH), std=per_colour(1, 2, 3))


@dataclass
class Darken(ObservationProcessorStep):  # type: ignore[misc]  # LeRobot is untyped to us
    """Somebody's own step, which must see frames as they are."""

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        return observation | {FRONT: observation[FRONT] * 0.5}

    def transform_features(self, features: Any) -> Any:
        return features


@dataclass
class OwnNormalizer(NormalizerProcessorStep):  # type: ignore[misc]
    """Somebody's own normaliser, which may look where a pixel is."""


def pipeline(
    stats: dict[str, Any] = COLOURS,
    mode: NormalizationMode = NormalizationMode.MEAN_STD,
    normalizer: type[NormalizerProcessorStep] = NormalizerProcessorStep,
    between: tuple[ProcessorStep, ...] = (),
    **options: Any,
) -> PolicyProcessorPipeline[Any, Any]:
    modes = {FeatureType.VISUAL: mode, FeatureType.STATE: NormalizationMode.MEAN_STD}
    normalize = normalizer(features=FEATURES, norm_map=modes, stats=stats, **options)
    steps = [RenameObservationsProcessorStep(), AddBatchDimensionProcessorStep(), *between, normalize]
    return PolicyProcessorPipeline(steps)


def frames() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields what cameras and joints may say; every byte is among it in every colour."""
    random = np.random.default_rng(0)
    every = np.resize(np.arange(256, dtype=np.uint8), (HEIGHT * WIDTH + 16, 1)).repeat(3, 1)
    for first in (every[: HEIGHT * WIDTH], every[16:]):
        noise = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        yield {FRONT: first.reshape(HEIGHT, WIDTH, 3), WRIST: noise}, random.normal(size=2).astype(np.float32)


def check_equal(theirs: PolicyProcessorPipeline[Any, Any], ours: PolicyProcessorPipeline[Any, Any]) -> FrameInputs:
    inputs = FrameInputs(ours, torch.device("cpu"))
    for seen, state in frames():
        raw = {"observation.state": state.copy(), **{key: frame.copy() for key, frame in seen.items()}}
        expected = theirs(prepare_observation_for_inference(raw, torch.device("cpu")))
        images = {key: inputs.finish(inputs.begin(key, frame)) for key, frame in seen.items()}
        found = ours({"observation.state": torch.tensor(state)[None], **images})
        for key in FEATURES:
            assert found[key].dtype == expected[key].dtype
            assert torch.equal(found[key], expected[key]), key
    return inputs


@pytest.mark.parametrize("mode", [NormalizationMode.MEAN_STD, NormalizationMode.MIN_MAX, NormalizationMode.IDENTITY])
def test_a_table_gives_what_the_normaliser_gives(mode: NormalizationMode) -> None:
    ours = pipeline(mode=mode)
    check_equal(pipeline(mode=mode), ours)
    assert ours.steps[-1].normalize_observation_keys == {"observation.state"}, "frames would be normalised again"


def test_it_normalises_what_it_was_told_to_and_no_more() -> None:
    keys = {"observation.state", WRIST}
    ours = pipeline(normalize_observation_keys=keys)
    check_equal(pipeline(normalize_observation_keys=keys), ours)
    assert ours.steps[-1].normalize_observation_keys == {"observation.state"}


@pytest.mark.parametrize(
    "options",
    [
        {"stats": PER_PIXEL},
        {"between": (Darken(),)},
        {"between": (DeviceProcessorStep(device="cpu", float_dtype="bfloat16"),)},
        {"normalizer": OwnNormalizer},
    ],
    ids=["statistics per pixel", "a step between", "a cast between", "a normaliser of somebody's own"],
)
def test_what_no_table_can_do_is_left_to_lerobot(options: dict[str, Any]) -> None:
    ours = pipeline(**options)
    check_equal(pipeline(**options), ours)
    kept = ours.steps[-1].normalize_observation_keys
    assert kept is None or FRONT in kept


def test_frames_for_a_gpu_stay_bytes() -> None:
    """They cross to it four times as fast; "meta" is torch's device without memory."""
    ours = pipeline()
    inputs = FrameInputs(ours, torch.device("meta"))
    (seen, _), *_ = frames()
    image = inputs.begin(FRONT, seen[FRONT])
    assert image.dtype is torch.uint8
    np.testing.assert_array_equal(image[0].permute(1, 2, 0), seen[FRONT])
    finished = inputs.finish(image)
    assert (finished.dtype, finished.device.type, finished.shape) == (torch.float32, "meta", (1, 3, HEIGHT, WIDTH))
    assert ours.steps[-1].normalize_observation_keys is None
