"""What the JSON of a checkpoint may say, judged before LeRobot acts on it. Nothing here knows LeRobot.

LeRobot imports and calls whatever the files of the processors name, and builds whatever sizes the configuration says.
Both are for the author of a policy to say, not for whoever wrote a checkpoint.
"""

import json
import math
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from longarm_wire.errors import Reason, WireError

# LeRobot's own are a few kB; some hold the configuration of a base model
MAX_JSON_BYTES = 16 << 20
MAX_STEPS = 100
MAX_FEATURES = 100
# Values of all inputs together: sixteen frames of 1280x720 in three colours
MAX_INPUT_VALUES = 16 * 1280 * 720 * 3
# Actions of a chunk, steps of denoising: LeRobot fills tables of this length in Python
MAX_LENGTH = 10_000
LENGTHS = (
    *("chunk_size", "horizon", "action_horizon", "max_action_horizon", "n_action_steps", "n_obs_steps"),
    *("num_steps", "num_inference_steps", "num_denoising_steps", "num_inference_timesteps", "num_integration_steps"),
    *("num_train_timesteps", "action_chunk_size", "n_action_pred_token"),
)


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
            values += math.prod(shape)
    if values > MAX_INPUT_VALUES:
        raise _broken(name, file, f"expected features of at most {MAX_INPUT_VALUES} values together, found {values}")
    for key in LENGTHS:
        length = config.get(key)
        # LeRobot makes a number of a string that looks like one
        if length is not None and not (isinstance(length, (int, float)) and 0 <= length <= MAX_LENGTH):
            raise _broken(name, file, f"expected {key} to be a number from 0 to {MAX_LENGTH}, found {length!r:.80}")


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
    renames = config.get("rename_map") or {}
    if not isinstance(renames, dict) or not all(isinstance(new, str) for new in renames.values()):
        raise _broken(name, file, f"expected the rename_map of {which} to lead from names to names")
    state = step.get("state_file")
    if state is not None and not _is_plain(state):
        raise _broken(
            name, file, f"expected the state_file of {which} to be a .safetensors beside it, found {state!r:.80}"
        )


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
