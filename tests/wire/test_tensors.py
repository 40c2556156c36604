"""What pack and unpack keep, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longarm_wire.tensors import DTYPES, TensorError, pack, unpack

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
ROUND_TRIPS = {
    "float32": np.array([[1.5, -2.25], [0.0, 1e-40]], np.float32),
    "float64": np.array([np.pi, 5e-324, 1.7e308]),
    "bool": np.array([[True, False, True]]),
    **{name: np.array([np.iinfo(name).min, 0, np.iinfo(name).max], name) for name in INTEGERS},
}
SPECIAL = {
    "0-d": np.float32(3.5),
    "0-d array": np.array(2.0, np.float32),
    "empty": np.zeros((0,), np.float32),
    "empty with a dimension": np.zeros((3, 0, 2), np.float32),
    "nan": np.array([np.nan, 1.0], np.float32),
    "infinities": np.array([np.inf, -np.inf, -0.0], np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "strided": np.arange(10, dtype=np.float32)[::-3],
    "column order": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big-endian": np.array([1.0, 258.0], ">f4"),
    "half": np.array([0.5, 65504], np.float16),
    "list": [0.25, 0.5],
}


@pytest.mark.parametrize(("dtype", "array"), ROUND_TRIPS.items(), ids=ROUND_TRIPS)
def test_round_trip_of_each_dtype(dtype: str, array: np.ndarray) -> None:
    data = pack(array, dtype)
    result = unpack(data, array.shape, dtype)
    assert result.dtype == np.dtype(dtype)
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, array)
    # The same bytes again: NaN payloads and the sign of zero are kept
    assert pack(result, dtype) == data


def test_every_dtype_has_a_round_trip() -> None:
    assert set(ROUND_TRIPS) == set(DTYPES)


@pytest.mark.parametrize("array", SPECIAL.values(), ids=SPECIAL)
def test_round_trip_of_special_arrays(array: object) -> None:
    wanted = np.asarray(array, np.float32)
    result = unpack(pack(array), wanted.shape)
    assert result.shape == wanted.shape
    np.testing.assert_array_equal(result, wanted)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(wanted))


def test_the_bytes_are_row_major_and_little_endian() -> None:
    assert pack(np.array([[1, 2], [3, 258]], ">i4").T, "int16") == bytes([1, 0, 3, 0, 2, 0, 2, 1])


def test_unpack_takes_any_bytes_like_and_takes_no_copy() -> None:
    data = pack([1.0, 2.0])
    for buffer in (data, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(unpack(buffer, (2,)), [1.0, 2.0])  # type: ignore[arg-type]
    assert not unpack(data, (2,)).flags.writeable


@given(st.data())
def test_round_trip_property(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5)))
    order = data.draw(st.sampled_from("<>="))
    view = array.astype(array.dtype.newbyteorder(order)).T
    result = unpack(pack(view, dtype), view.shape, dtype)
    assert result.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(result, array.T)


@pytest.mark.parametrize(
    ("shape", "count"), [((2,), 7), ((2,), 9), ((2,), 0), ((), 0), ((), 8), ((0,), 4), ((3, 0), 1)]
)
def test_wrong_byte_counts_are_refused(shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(TensorError, match=rf"bytes for a float32 tensor of shape .* but found {count}"):
        unpack(bytes(count), shape)


def test_a_huge_shape_costs_nothing() -> None:
    with pytest.raises(TensorError, match="but found 4"):
        unpack(bytes(4), (2**62, 2**62))


@pytest.mark.parametrize("shape", [(-1,), (2, -2), (-1, -4), (-1, 0)])
def test_negative_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TensorError, match="negative dimension"):
        unpack(bytes(16), shape)


@pytest.mark.parametrize("value", [2, 255])
def test_bool_bytes_are_0_or_1(value: int) -> None:
    with pytest.raises(TensorError, match="only 0 and 1"):
        unpack(bytes([0, 1, value]), (3,), "bool")


@pytest.mark.parametrize(
    "dtype",
    ["object", "complex64", "complex128", "str", "U4", "S4", "datetime64", "timedelta64", "void", "float16", ""],
)
def test_no_other_dtype_travels(dtype: str) -> None:
    with pytest.raises(TensorError, match="one of the dtypes bool, "):
        pack(np.zeros(1), dtype)
    with pytest.raises(TensorError, match="one of the dtypes bool, "):
        unpack(b"", (0,), dtype)


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array([1j]),
        np.array(["1.0"]),
        np.array([b"1.0"]),
        np.array(["2026-01-01"], "datetime64[D]"),
        np.array([1], "timedelta64[s]"),
        np.zeros(1, "V4"),
        np.zeros(1, [("x", "f4")]),
        None,
        [[1.0], [1.0, 2.0]],
    ],
    ids=lambda array: type(array).__name__ if array is None or isinstance(array, list) else str(array.dtype),
)
def test_what_is_no_number_is_refused(array: object) -> None:
    with pytest.raises(TensorError, match="Expected an array that converts to float32"):
        pack(array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [(np.array([1.0]), "int32"), (np.array([1.0]), "bool"), (np.array([1]), "bool"), (np.array([-1]), "uint8")],
)
def test_another_kind_is_refused(array: np.ndarray, dtype: str) -> None:
    with pytest.raises(TensorError, match=f"converts to {dtype} but found dtype {array.dtype}"):
        pack(array, dtype)


@pytest.mark.parametrize(
    ("array", "dtype"), [(np.array([1e39]), "float32"), (np.array([300]), "int8"), (np.array([200], np.uint8), "int8")]
)
def test_a_value_out_of_range_is_refused_and_never_wraps(array: np.ndarray, dtype: str) -> None:
    with pytest.raises(TensorError, match=f"values that fit {dtype}"):
        pack(array, dtype)
