"""The native library's arithmetic on matrices: what gguf decodes, and the same bits whoever asks and however."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest

from mesh.model.native import library
from mesh.model.native.library import Matrix, NativeEngine, address
from mesh.weights.shards.tensor_types import row_bytes
from tests.support.native_shards import random_weights

pytestmark = pytest.mark.skipif(not library.is_available(), reason="the native library is not built")

Array = np.ndarray[Any, Any]

ROWS, COLUMNS = 7, 768
PLAIN = ("F32", "F16", "BF16")


def available_isas() -> list[str]:
    return list(library.ISAS[: library.ISAS.index(library.best_isa()) + 1]) if library.is_available() else []


def matrix_of(type_: str, data: Array, rows: int, columns: int) -> Matrix:
    return Matrix(
        data=address(data),
        row_bytes=row_bytes(type_, columns),
        type=library.TYPES.index(type_),
        rows=rows,
        columns=columns,
    )


def product(isa: str, matrix: Matrix, x: Array) -> Array:
    out = np.empty((len(x), matrix.rows), np.float32)
    NativeEngine(1, isa).multiply(matrix, address(x), len(x), address(out))
    return out


def decoded(type_: str, data: Array, rows: int, columns: int) -> Array:
    stored = data.reshape(rows, -1)
    if type_ in ("F32", "F16"):
        return stored.view(np.float32 if type_ == "F32" else np.float16).astype(np.float32)
    return gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[type_]).reshape(rows, columns)


def rounded_to_8_bits(x: Array) -> Array:
    """What the library makes of activations for quantised weights."""
    blocks = x.reshape(-1, 32).astype(np.float32)
    most = np.abs(blocks).max(axis=1, keepdims=True)
    integers = np.rint(blocks * (np.float32(127) / most))
    return (integers.astype(np.float64) * (most / np.float32(127))).reshape(x.shape)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("type_", library.TYPES)
def test_decoded_rows_equal_ggufs_reference(type_: str, isa: str) -> None:
    data = random_weights(type_, ROWS, COLUMNS, np.random.default_rng(1))
    matrix, engine = matrix_of(type_, data, ROWS, COLUMNS), NativeEngine(1, isa)
    rows = np.empty((ROWS, COLUMNS), np.float32)
    for index in range(ROWS):
        engine.dequantise(matrix, index, address(rows[index]))
    np.testing.assert_array_equal(rows, decoded(type_, data, ROWS, COLUMNS))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("type_", library.TYPES)
def test_products_equal_the_decoded_matrix_times_the_activations(type_: str, isa: str) -> None:
    rng = np.random.default_rng(2)
    data = random_weights(type_, ROWS, COLUMNS, rng)
    x = rng.standard_normal((5, COLUMNS)).astype(np.float32)
    used = x if type_ in PLAIN else rounded_to_8_bits(x)
    expected = used.astype(np.float64) @ decoded(type_, data, ROWS, COLUMNS).T.astype(np.float64)
    np.testing.assert_allclose(product(isa, matrix_of(type_, data, ROWS, COLUMNS), x), expected, atol=2e-5)


@pytest.mark.parametrize("type_", library.TYPES)
def test_instruction_sets_give_the_same_bits(type_: str) -> None:
    rng = np.random.default_rng(3)
    data = random_weights(type_, ROWS, COLUMNS, rng)
    matrix = matrix_of(type_, data, ROWS, COLUMNS)
    x = rng.standard_normal((6, COLUMNS)).astype(np.float32)
    x[1] *= 1e20
    x[2, :64] = 0
    results = [product(isa, matrix, x).tobytes() for isa in available_isas()]
    assert results.count(results[0]) == len(results)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("type_", library.TYPES)
def test_a_rows_product_is_the_same_bits_in_any_batch(type_: str, isa: str) -> None:
    rng = np.random.default_rng(4)
    data = random_weights(type_, ROWS, COLUMNS, rng)
    matrix = matrix_of(type_, data, ROWS, COLUMNS)
    x = rng.standard_normal((11, COLUMNS)).astype(np.float32)
    together = product(isa, matrix, x)
    for index in range(len(x)):
        assert product(isa, matrix, x[index : index + 1]).tobytes() == together[index].tobytes()


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("type_", PLAIN)
def test_rows_need_not_fill_whole_lanes(type_: str, isa: str) -> None:
    rng = np.random.default_rng(5)
    data = random_weights(type_, 5, 43, rng)
    x = rng.standard_normal((3, 43)).astype(np.float32)
    expected = x.astype(np.float64) @ decoded(type_, data, 5, 43).T.astype(np.float64)
    np.testing.assert_allclose(product(isa, matrix_of(type_, data, 5, 43), x), expected, atol=2e-5)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_no_number_shows_in_its_own_row_only(value: float, isa: str) -> None:
    rng = np.random.default_rng(6)
    data = random_weights("Q4_1", ROWS, COLUMNS, rng)
    x = rng.standard_normal((4, COLUMNS)).astype(np.float32)
    sound = product(isa, matrix_of("Q4_1", data, ROWS, COLUMNS), x)
    x[2, 100] = value
    results = product(isa, matrix_of("Q4_1", data, ROWS, COLUMNS), x)
    assert np.isnan(results[2]).all()
    np.testing.assert_array_equal(np.delete(results, 2, axis=0), np.delete(sound, 2, axis=0))


def test_halves_decode_as_numpy_has_them() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    every = every[np.isfinite(every.view(np.float16))]
    every = every[: len(every) // 8 * 8]
    for isa in available_isas():
        out = np.empty(len(every), np.float32)
        NativeEngine(1, isa).dequantise(matrix_of("F16", every, 1, len(every)), 0, address(out))
        np.testing.assert_array_equal(out, every.view(np.float16).astype(np.float32))
