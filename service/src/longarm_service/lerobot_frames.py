"""Camera frames on their way into LeRobot's preprocessor: colours apart and, on the CPU, normalised in one pass.

And what becomes of them in a policy, as far as it can be done before they travel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from lerobot.configs import FeatureType
from lerobot.policies.common.vla_utils import resize_with_pad, resize_with_pad_torch
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    TransitionKey,
)

from longarm_wire.frame_sizes import Size


@dataclass(frozen=True)
class Letterbox:
    """What a policy begins with: it scales each frame into a box, its aspect kept, and pads the rest of the box.

    Attributes:
      size: Of the box.
      fill: LeRobot's own function for it, from frames of shape (n, 3, height, width) to frames of shape (n, 3, *size).
    """

    size: Size
    fill: Callable[[torch.Tensor], torch.Tensor]


def _padded_on_two_sides(size: Size) -> Letterbox:
    return Letterbox(size, lambda frames: resize_with_pad(frames, *size, pad_value=0))


def _padded_on_all_sides(size: Size) -> Letterbox:
    return Letterbox(size, lambda frames: resize_with_pad_torch(frames, *size))


# Types of policies that begin so, each with the size that its configuration names, which may be none. They scale
# bilinearly between centres of pixels and without antialiasing, as OpenCV does.
# Others resize as well (diffusion, evo1, groot and more), each in a way of its own: they get whole frames
_LETTERBOXES: Mapping[str, tuple[Callable[[Size], Letterbox], Callable[[Any], Size | None]]] = {
    "pi0": (_padded_on_all_sides, lambda config: config.image_resolution),
    "pi05": (_padded_on_all_sides, lambda config: config.image_resolution),
    "pi0_fast": (_padded_on_all_sides, lambda config: config.image_resolution),
    # Alone in naming the width first
    "smolvla": (
        _padded_on_two_sides,
        lambda config: config.resize_imgs_with_padding and config.resize_imgs_with_padding[::-1],
    ),
    "xvla": (_padded_on_two_sides, lambda config: config.resize_imgs_with_padding),
}
# Steps before such a policy that look at no frame, or change each value of a colour by a factor and an offset: whether
# a frame is scaled before them or after is then the same
_STEPS_THAT_COMMUTE = frozenset(
    {
        "action_tokenizer_processor",
        "pi0_fast_prepare_state_tokenizer_processor_step",
        "pi0_new_line_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        "relative_actions_processor",
        "rename_observations_processor",
        "smolvla_new_line_processor",
        "to_batch_processor",
        "tokenizer_processor",
        "xvla_add_domain_id",
        "xvla_image_to_float",
        "xvla_imagenet_normalize",
    }
)


def letterbox(policy_type: str, config: Any, steps: Sequence[Mapping[str, Any]]) -> Letterbox | None:
    """Returns what a policy begins with, or None if it begins otherwise, or if a frame may not be scaled before that.

    Args:
      policy_type: LeRobot's name of it.
      config: Its configuration.
      steps: Of its saved preprocessor, as in policy_preprocessor.json.
    """
    if policy_type not in _LETTERBOXES or not all(map(_commutes, steps)):
        return None
    make, size_in = _LETTERBOXES[policy_type]
    size = size_in(config)
    return make((int(size[0]), int(size[1]))) if size else None


def _commutes(step: Mapping[str, Any]) -> bool:
    """Returns whether it makes no difference if frames are scaled before a saved step or after it."""
    settings = step.get("config") or {}
    match step.get("registry_name"):
        case "device_processor":  # may round to a shorter type
            return not settings.get("float_dtype")
        case "normalizer_processor":  # pi0 and its kin cut off what then lies outside of [0, 1], when they scale
            return bool((settings.get("norm_map") or {}).get("VISUAL", "IDENTITY") == "IDENTITY")
        case name:
            return name in _STEPS_THAT_COMMUTE


# float32 of shape (3, 256): what each value of each colour becomes
type Table = np.ndarray

IN_UNIT_RANGE: Table = torch.arange(256).to(torch.float32).div_(255).expand(3, 256).contiguous().numpy()


class FrameInputs:
    """Makes frames the tensors that a preprocessor takes. Safe to use from several threads.

    Normalising costs two passes over floats that are in no cache. On the CPU it is done by looking each byte up
    instead, in a table that LeRobot's own normaliser filled; the results are equal to the bit. On a GPU frames stay
    bytes, a quarter of what there would be to transfer.
    """

    def __init__(self, preprocessor: PolicyProcessorPipeline[Any, Any], device: torch.device) -> None:
        """Takes over the normalising of frames from preprocessor, where a table can do it.

        Args:
          preprocessor: Of one session; its normaliser will leave these frames alone.
          device: Where the policy is.
        """
        self._device = device
        self._tables: Mapping[str, Table] = _taken_over(preprocessor) if device.type == "cpu" else {}

    def begin(self, key: str, frame: np.ndarray) -> torch.Tensor:
        """Returns a frame of feature key, uint8 of shape (height, width, 3), with everything done that needs no GPU.

        Returns:
          Shape (1, 3, height, width): float32 for the CPU, otherwise uint8.
        """
        planes = cv2.split(frame)
        if self._device.type != "cpu":
            return torch.from_numpy(np.stack(planes)).unsqueeze(0)
        image = np.empty((1, 3, *frame.shape[:2]), np.float32)
        for plane, values, target in zip(planes, self._tables.get(key, IN_UNIT_RANGE), image[0], strict=True):
            cv2.LUT(plane, values, target)
        return torch.from_numpy(image)

    def finish(self, image: torch.Tensor) -> torch.Tensor:
        """Returns what begin returned as float32 on the device, in [0, 1] unless it is normalised already."""
        if image.dtype is not torch.uint8:
            return image
        return image.to(self._device).to(torch.float32).div_(255)


def _taken_over(preprocessor: PolicyProcessorPipeline[Any, Any]) -> dict[str, Table]:
    """Returns the table of each feature key whose frames the normaliser would have normalised, and stops it from that.

    Frames that another step might change before the normaliser are left to it, and those with statistics per pixel.
    """
    tables: dict[str, Table] = {}
    for step in preprocessor.steps:
        # Exact types throughout: a subclass may do as it likes
        if type(step) is NormalizerProcessorStep:
            only = step.normalize_observation_keys
            normalised = set(step.features) if only is None else set(only)
            for key in normalised & step.features.keys():
                table = _normalised(step, key) if step.features[key].type is FeatureType.VISUAL else None
                if table is not None:
                    tables[key] = table
            step.normalize_observation_keys = normalised - tables.keys()
            break
        if not _leaves_frames_alone(step):
            break
    return tables


def _leaves_frames_alone(step: Any) -> bool:
    if type(step) is DeviceProcessorStep:
        return step.float_dtype is None
    return type(step) in (RenameObservationsProcessorStep, AddBatchDimensionProcessorStep)


def _normalised(normalizer: NormalizerProcessorStep, key: str) -> Table | None:
    """Returns what normalizer makes of each value of a byte, or None if that depends on the pixel."""
    ramp = torch.tensor(IN_UNIT_RANGE)[None, :, None, :]
    try:
        image = normalizer({TransitionKey.OBSERVATION: {key: ramp}})[TransitionKey.OBSERVATION][key]
    except RuntimeError:  # statistics of another shape than one value per colour
        return None
    if image.shape != ramp.shape or image.dtype is not torch.float32:
        return None
    return np.ascontiguousarray(image[0, :, 0].numpy())
