"""Names the base model that a load went to the model hub for in vain."""

import traceback
from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError


def missing_base_model(error: BaseException | None, config: Mapping[str, Any]) -> str:
    """Returns which repository was not to be had, and what to do about it; nothing if error tells of none.

    LeRobot's policies fetch base models by themselves, and what the hub's library raises does not name them.

    Args:
      error: What a load raised.
      config: The checkpoint's config.json, whose field that names the repository is named.
    """
    while error is not None:
        if isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError)):
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if isinstance(repository := frame.f_locals.get("repo_id"), str):
                    return _missing(repository, config)
        error = error.__cause__ or error.__context__
    return ""


def _missing(repository: str, config: Mapping[str, Any]) -> str:
    fields = [key for key, value in config.items() if value == repository]
    silence = "is not asked (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "does not give it"
    return (
        f"it needs {repository!r} from the hub{f' ({fields[0]} in its config.json)' if fields else ''}, which is not "
        f"in the hub cache of the service's machine, and the hub {silence}. Run `hf download {repository}` there."
    )
