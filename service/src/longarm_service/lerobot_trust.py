"""No code comes with a checkpoint: neither beside it, nor from the repositories that it names, nor in a pickle.

LeRobot asks transformers to trust remote code, with names out of the checkpoint (pi0_fast, groot, wall_x, the tokenizer
steps), and nothing that a caller says takes that back. So the one place in which transformers gets at such code is
guarded here, for the whole process, before anything is loaded.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

# Where code is fetched, or about to be run. The second is asked whenever a model that generates text is loaded, so that
# only running is refused there
GATES = (
    ("transformers.dynamic_module_utils", "get_cached_module_file"),
    ("transformers.generation.utils", "get_class_in_module"),
)

_trusting: ContextVar[bool] = ContextVar("trusting remote code", default=False)


class RemoteCodeError(Exception):
    """A checkpoint wants code to be fetched and run. The message names where from."""


@contextlib.contextmanager
def remote_code(allowed: bool) -> Iterator[None]:
    """Lets this thread fetch and run code that a checkpoint names, or not, which is the default."""
    before = _trusting.set(allowed)
    try:
        yield
    finally:
        _trusting.reset(before)


def refuse_remote_code() -> None:
    """Makes transformers raise RemoteCodeError instead of running code that a checkpoint names. Again does nothing."""
    # Torch refuses to build anything but tensors out of a pickle, whatever its caller asks for
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    for place, name in GATES:
        try:
            module = importlib.import_module(place)
        except ImportError:  # not every policy needs transformers
            continue
        gate = getattr(module, name)
        if not hasattr(gate, "guarded"):
            setattr(module, name, _guarded(gate))


def cause(error: BaseException) -> RemoteCodeError | None:
    """Returns the refusal behind error, whatever LeRobot made of it."""
    chain: list[BaseException] = []
    behind: BaseException | None = error
    # An error may be its own cause
    while behind is not None and behind not in chain:
        if isinstance(behind, RemoteCodeError):
            return behind
        chain.append(behind)
        behind = behind.__cause__ or behind.__context__
    return None


def _guarded(gate: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(source: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
        if not _trusting.get():
            raise RemoteCodeError(f"{source}: {file}")
        return gate(source, file, *args, **kwargs)

    guarded.guarded = True  # type: ignore[attr-defined]
    return guarded
