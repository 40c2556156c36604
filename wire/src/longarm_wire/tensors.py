"""Tensors as bytes: row-major, little-endian, and nothing that could carry code.

The shape idea follows dm_env_rpc's tensor_utils; here the dtype and the shape come from the agreed specs or from the
caller, so that a peer's word is never trusted for how much memory to take.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# What may travel. Every entry has a fixed size and no object semantics
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float32", "float64")
}


class TensorError(ValueError):
    """A tensor cannot be packed, or bytes are not the tensor they should be."""


def pack(array: npt.ArrayLike, dtype: str = "float32") -> bytes:
    """Returns array as row-major little-endian bytes.

    Args:
      array: Any shape, 0-d and empty included. Its type must convert to dtype without loss of kind.
      dtype: A name of DTYPES.

    Raises:
      TensorError: dtype may not travel, or array is not numeric, of another kind (float as int, say) or ragged, or
        has a value out of dtype's range.
    """
    target = _dtype(dtype)
    try:
        source = np.asarray(array)
    except ValueError as error:
        raise TensorError(f"Expected an array that converts to {dtype}: {error}") from None
    if source.dtype.kind not in "biuf" or not np.can_cast(source.dtype, target, casting="same_kind"):
        raise TensorError(f"Expected an array that converts to {dtype} but found dtype {source.dtype}")
    with np.errstate(over="ignore"):
        packed = source.astype(target, copy=False)
    if not np.can_cast(source.dtype, target) and not _same_values(source, packed):
        raise TensorError(f"Expected values that fit {dtype} but found some of {source.dtype} that do not")
    return packed.tobytes(order="C")


def unpack(data: bytes, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Returns the array that data holds; a read-only view of data where the machine's byte order allows.

    Args:
      data: What pack returned.
      shape: The shape that both sides agreed on. () for a scalar; a dimension may be 0.
      dtype: A name of DTYPES.

    Raises:
      TensorError: dtype may not travel, a dimension is negative, or data has another number of bytes.
    """
    target = _dtype(dtype)
    if any(size < 0 for size in shape):
        raise TensorError(f"Expected no negative dimension but found shape {tuple(shape)}")
    expected = math.prod(shape) * target.itemsize
    if len(data) != expected:
        raise TensorError(
            f"Expected {expected} bytes for a {dtype} tensor of shape {tuple(shape)} but found {len(data)}"
        )
    array = np.frombuffer(data, dtype=target).reshape(shape)
    if target.kind == "b" and not np.isin(array.view(np.uint8), (0, 1)).all():
        raise TensorError("Expected only 0 and 1 in a bool tensor")
    return array.astype(target.newbyteorder("="), copy=False)


def _same_values(source: np.ndarray, packed: np.ndarray) -> bool:
    """Returns whether no value left packed's range; a float may lose digits."""
    if packed.dtype.kind == "f":
        return bool((np.isinf(packed) == np.isinf(source)).all())
    return np.array_equal(source, packed)


def _dtype(name: str) -> np.dtype:
    try:
        return DTYPES[name]
    except KeyError:
        raise TensorError(f"Expected one of the dtypes {', '.join(DTYPES)} but found {name!r}") from None
