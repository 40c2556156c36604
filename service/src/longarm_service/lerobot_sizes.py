"""No policy is built that is far larger than its weights: a configuration may say any size."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode

# Weights that building a policy may take: some build a base model whole and leave layers out, and the smallest tensors
# have two bytes a value
VALUES_PER_BYTE = 2
VALUES_TO_SPARE = 1 << 28
# Ten times those of the largest policies
MOST_TENSORS = 20_000
# Make a tensor of a size that is said in numbers, and most of them write to all of it
MAKERS = frozenset(
    {torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones}
    | {torch.rand, torch.randint, torch.randn, torch.zeros}
)
# What may be said to them that makes no difference to the size
NO_SIZE = frozenset({"device", "generator", "layout", "out", "pin_memory", "requires_grad"})


class TooLargeError(Exception):
    """A configuration is of a policy far larger than its weights."""


@contextlib.contextmanager
def no_larger_than(directory: Path) -> Iterator[None]:
    """Ends the building of a policy that grows far beyond the weights in directory, before its memory is touched.

    The machine's memory is everybody's. Counted are parameters and buffers as modules get them, and each tensor that is
    made of numbers, since that of a mask or a parameter is written to before its module has it. For this thread.

    Raises:
      TooLargeError: From within.
    """
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    most = VALUES_PER_BYTE * size + VALUES_TO_SPARE
    builder, tensors, taken = threading.get_ident(), 0, 0

    def check(values: int) -> None:
        if values > most or tensors > MOST_TENSORS:
            raise TooLargeError(
                f"The config.json describes a policy of at least {values} values in {tensors} tensors, and the "
                f".safetensors files have {size} bytes."
            )

    def count(_module: torch.nn.Module, _name: str, tensor: torch.Tensor | None) -> None:
        nonlocal tensors, taken
        if tensor is not None and threading.get_ident() == builder:
            tensors += 1
            taken += tensor.numel()
            check(taken)

    class Makers(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped to us
        """Asks for the size of what is to be made first."""

        def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function in MAKERS:
                check(taken + _values(function, args, kwargs))
            return function(*args, **kwargs)

    registrations = (
        modules.register_module_parameter_registration_hook(count),
        modules.register_module_buffer_registration_hook(count),
    )
    try:
        with Makers():
            yield
    finally:
        for registration in registrations:
            registration.remove()


def _values(function: Any, args: Any, kwargs: Any) -> int:
    """Returns how many values the tensor will have; 0 where that is not to be known without making it."""
    said = {name: value for name, value in kwargs.items() if name not in NO_SIZE}
    try:
        return int(function(*args, **said, device="meta").numel())
    except Exception:  # noqa: BLE001 - the call itself will raise it, where it is wrong
        return 0
