"""What the JSON of a checkpoint may say, judged before LeRobot acts on it. Nothing here knows LeRobot.

LeRobot imports and calls whatever the files of the processors name, and builds whatever sizes the configuration says.
Both are for the author of a policy to say, not for whoever wrote a checkpoint.
"""

import json
import math
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from longarm_wire.errors import Reason, WireError

# LeRobot's own are a few kB; some hold the configuration of a base model
MAX_JSON_BYTES = 16 << 20
# What says where in a .safetensors the tensors are: a tenth of it in the largest policies. Of a longer one torch's
# library makes a tensor for each of its names before anybody can count them, for half a minute
MAX_HEADER_BYTES = 4 << 20
MAX_STEPS = 100
MAX_FEATURES = 100
# Values of all inputs together: sixteen frames of 1280x720 in three colours
MAX_INPUT_VALUES = 16 * 1280 * 720 * 3
# Actions of a chunk, steps of denoising, tokens: LeRobot fills tables and lists of this length
MAX_LENGTH = 10_000
# Each is as large as a frame
MAX_VIEWS = 100
# Pixels; what policies resize frames to is smaller
MAX_SIDE = 2048
# What LeRobot makes as large as it is told, before or after it has weights to compare that with. Each may be a list
LIMITS: Mapping[str, int] = {
    **dict.fromkeys(("chunk_size", "horizon", "n_action_steps", "n_obs_steps", "action_chunk_size"), MAX_LENGTH),
    **dict.fromkeys(("action_horizon", "max_action_horizon", "valid_action_horizon", "state_horizon"), MAX_LENGTH),
    **dict.fromkeys(("num_steps", "num_inference_steps", "num_denoising_steps", "num_denoise_steps"), MAX_LENGTH),
    **dict.fromkeys(("num_inference_timesteps", "num_integration_steps", "num_train_timesteps"), MAX_LENGTH),
    **dict.fromkeys(("n_action_pred_token", "max_action_tokens", "max_decoding_steps", "num_state_tokens"), MAX_LENGTH),
    **dict.fromkeys(("tokenizer_max_length", "tokenizer_max_len", "max_text_length", "context_len"), MAX_LENGTH),
    **dict.fromkeys(("max_length", "max_sequence_length", "prefix_length", "gpt_block_size"), MAX_LENGTH),
    **dict.fromkeys(("num_action_tokens_per_timestep", "num_embodied_action_tokens_per_instruction"), MAX_LENGTH),
    **dict.fromkeys(("empty_cameras", "max_views", "num_image_views", "num_video_frames", "video_horizon"), MAX_VIEWS),
    **dict.fromkeys(("resize_shape", "crop_shape", "image_resize_shape", "image_crop_shape"), MAX_SIDE),
    **dict.fromkeys(("image_resolution", "resize_imgs_with_padding", "resize_images_to", "image_size"), MAX_SIDE),
    **dict.fromkeys(("resize_size", "image_crop_size", "image_target_size", "shortest_image_edge"), MAX_SIDE),
    "image_min_pixels": MAX_SIDE**2,
}
# Where -1 stands for none
MAY_BE_MINUS_ONE = frozenset({"prefix_length"})


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Returns the object in a file of the checkpoint of this name.

    Raises:
      FileNotFoundError: There is none.
      WireError: POLICY_LOAD_FAILED; it is no file, too large, too deep, no JSON, no object, or has a number that is
        not finite.
    """
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_JSON_BYTES:
                raise ValueError(f"expected at most {MAX_JSON_BYTES} bytes, found {size}")
            # It may grow meanwhile
            text = file.read(MAX_JSON_BYTES)
        content = json.loads(text.decode(), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError:
        raise
    except RecursionError:
        raise _broken(name, path.name, "it is nested too deep") from None
    except (OSError, ValueError) as error:
        raise _broken(name, path.name, str(error)) from error
    if not isinstance(content, dict):
        raise WireError(Reason.POLICY_LOAD_FAILED, f"The checkpoint {name!r} has a {path.name} that is no JSON object.")
    return content


def opened(path: Path) -> BinaryIO:
    """Opens a regular file to be read, and waits for nobody.

    Raises:
      OSError: It cannot be opened.
      ValueError: It is no regular file.
    """
    # Opening a pipe would wait for whoever writes to it, and some devices never end. What was opened is looked at: what
    # path leads to may change at any moment
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no regular file")
    return file


def check_header(path: Path, name: str) -> None:
    """Raises WireError(POLICY_LOAD_FAILED) where the header of a .safetensors is longer than any policy's."""
    try:
        with opened(path) as file:
            said = file.read(8)
    except (OSError, ValueError) as error:
        raise _broken(name, path.name, str(error)) from error
    # One that is cut off here is for torch's library to refuse
    size = int.from_bytes(said, "little")
    if size > MAX_HEADER_BYTES:
        why = f"expected a header of at most {MAX_HEADER_BYTES} bytes, found {size}. Is it whole?"
        raise WireError(Reason.POLICY_LOAD_FAILED, f"The checkpoint {name!r} has a broken {path.name}: {why}")


def check_configuration(config: dict[str, Any], name: str) -> None:
    """Raises WireError(POLICY_LOAD_FAILED) where config.json says sizes that no policy has."""
    file = "config.json"
    values = 0
    for which in ("input_features", "output_features"):
        features = config.get(which) or {}
        if not isinstance(features, dict) or len(features) > MAX_FEATURES:
            raise _broken(name, file, f"expected {which} to be an object of at most {MAX_FEATURES} features")
        for key, feature in features.items():
            shape = feature.get("shape") if isinstance(feature, dict) else None
            # Some policies save features that are looked up later, with no shape
            if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
                raise _broken(
                    name, file, f"expected {which} {key!r:.80} to have a shape of whole numbers, found {feature!r:.80}"
                )
            if feature.get("type") == "VISUAL" and not all(shape):
                raise _broken(name, file, f"expected {which} {key!r:.80} to have pixels, found the shape {shape!r:.80}")
            values += math.prod(shape)
    if values > MAX_INPUT_VALUES:
        raise _broken(name, file, f"expected features of at most {MAX_INPUT_VALUES} values together, found {values}")
    _check_limits(config, file, name)


def check_processor(content: dict[str, Any], file: str, name: str, registered: Collection[str], trusted: bool) -> None:
    """Checks the steps that a processor's file names.

    Args:
      content: The file's.
      file: Its name.
      name: Of the checkpoint.
      registered: Names of steps that LeRobot and installed plugins have.
      trusted: Whether a step may also be named by where its code is.

    Raises:
      WireError: POLICY_NOT_ALLOWED for a step that is not registered; POLICY_LOAD_FAILED.
    """
    steps = content.get("steps")
    if not isinstance(steps, list) or len(steps) > MAX_STEPS or not all(isinstance(step, dict) for step in steps):
        raise _broken(name, file, f"expected steps to be a list of at most {MAX_STEPS} objects")
    for number, step in enumerate(steps):
        _check_step(step, f"step {number}", file, name, registered, trusted)


def _check_step(
    step: dict[str, Any], which: str, file: str, name: str, registered: Collection[str], trusted: bool
) -> None:
    if "registry_name" in step:
        known = step["registry_name"]
        if not isinstance(known, str) or known not in registered:
            raise _broken(name, file, f"{which} is {known!r:.80}, which neither LeRobot nor an installed plugin has")
    elif not trusted:
        raise WireError(
            Reason.POLICY_NOT_ALLOWED,
            f"The checkpoint {name!r} names code to run: {which} of {file} is {step.get('class')!r:.80}. The service "
            "runs steps that LeRobot or an installed plugin registers by name. Who runs the service may allow it: see "
            "trusted_policies.",
        )
    config = step.get("config", {})
    if not isinstance(config, dict):
        raise _broken(name, file, f"expected the config of {which} to be an object")
    _check_limits(config, file, name)
    renames = config.get("rename_map") or {}
    if not isinstance(renames, dict) or not all(isinstance(new, str) for new in renames.values()):
        raise _broken(name, file, f"expected the rename_map of {which} to lead from names to names")
    state = step.get("state_file")
    if state is not None and not _is_plain(state):
        raise _broken(
            name, file, f"expected the state_file of {which} to be a .safetensors beside it, found {state!r:.80}"
        )


def _check_limits(settings: dict[str, Any], file: str, name: str) -> None:
    for key, most in LIMITS.items():
        value = settings.get(key)
        least = -1 if key in MAY_BE_MINUS_ONE else 0
        for number in value if isinstance(value, list) else [value]:
            # LeRobot makes a number of a string that looks like one, and refuses what else is none
            if isinstance(number, str) or (isinstance(number, (int, float)) and not least <= number <= most):
                raise _broken(name, file, f"expected {key} to be a number from {least} to {most}, found {value!r:.80}")


def _is_plain(state: object) -> bool:
    """Returns whether state is the name of a file with weights in the folder itself."""
    return isinstance(state, str) and Path(state).name == state and state.endswith(".safetensors")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers, found {text:.20}")
    return number


def _broken(name: str, file: str, why: str) -> WireError:
    return WireError(Reason.POLICY_LOAD_FAILED, f"The checkpoint {name!r} has a broken {file}: {why}.")
