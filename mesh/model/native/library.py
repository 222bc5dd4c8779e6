"""The one door to the native library: its structures, its functions, and whether it is there.

The library is C without any tie to Python or torch: it gets raw pointers through ctypes and keeps none. It is compiled
when the package is installed (``build.py``); without a compiler there is none, and torch computes instead.

    engine = NativeEngine(threads=2)
    engine.run(stage, steps, logits)

Knows addresses and layouts. What they hold is ``native_stage.py``'s to say. Mirrors ``native.h``.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

from mesh.errors import MeshError
from mesh.model.native.build import library_path

VERSION = 1  # NATIVE_VERSION
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")  # enum type, in order
ISAS = ("scalar", "avx2", "avx512")  # enum isa, in order; the best is the last that the processor has


class Matrix(ctypes.Structure):
    _fields_ = [  # ctypes' own way to declare them
        ("data", c_void_p),
        ("row_bytes", c_int64),
        ("type", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("unused", c_int32),
    ]


MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


class Layer(ctypes.Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        *((name, Matrix) for name in MATRICES),
    ]


class StageLayout(ctypes.Structure):
    _fields_ = [
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("num_layers", c_int32),
        ("norm_eps", c_float),
        ("unused", c_float),
        ("frequencies", c_void_p),
        ("layers", POINTER(Layer)),
        ("embedding", Matrix),
        ("final_norm", c_void_p),
        ("head", Matrix),
    ]


class Step(ctypes.Structure):
    _fields_ = [
        ("cache", c_void_p),
        ("max_tokens", c_int64),
        ("position", c_int64),
        ("num_tokens", c_int64),
        ("ids", c_void_p),
        ("input", c_void_p),
        ("output", c_void_p),
        ("sample", c_int64),
    ]


class NativeFailure(MeshError):
    """The library could not compute; nothing has changed."""


@cache
def load() -> ctypes.CDLL | None:
    """The library, or None where it was not built, or built from sources of another version."""
    if not library_path().is_file():
        return None
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError:  # built for another machine
        return None
    if library.native_version() != VERSION:
        return None
    library.native_open.argtypes, library.native_open.restype = [c_int, c_int], c_void_p
    library.native_close.argtypes, library.native_close.restype = [c_void_p], None
    library.native_run.argtypes = [c_void_p, POINTER(StageLayout), POINTER(Step), c_int64, c_void_p]
    library.native_dequantise.argtypes = [c_void_p, POINTER(Matrix), c_int64, c_void_p]
    library.native_dequantise.restype = None
    library.native_multiply.argtypes = [c_void_p, POINTER(Matrix), c_void_p, c_int64, c_void_p]
    return library


def is_available() -> bool:
    return load() is not None


def best_isa() -> str:
    """The widest instruction set that this processor has. Only where the library is available."""
    library = load()
    assert library is not None
    return next(isa for isa in reversed(ISAS) if library.native_supports(ISAS.index(isa)))


def kernel_id(isa: str | None = None) -> str:
    """Names what may make results differ between machines: nothing but the version, as far as we know."""
    return f"native-{isa or best_isa()}-{VERSION}"


class NativeEngine:
    """A team of threads and their workspace; computes for one caller at a time."""

    def __init__(self, threads: int, isa: str | None = None) -> None:
        library = load()
        assert library is not None
        self.isa = isa or best_isa()
        self._library = library
        self._handle: int | None = library.native_open(ISAS.index(self.isa), threads)
        if self._handle is None:
            raise NativeFailure(
                f"native engine: no {threads} threads with {self.isa}; pass a lower --threads"
            )

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.native_close(self._handle)

    def run(self, stage: StageLayout, steps: ctypes.Array[Step], logits: int | None) -> None:
        """Compute; everything that the structures point to must stay where it is until this returns."""
        if self._library.native_run(self._handle, stage, steps, len(steps), logits):
            raise NativeFailure("native engine: not enough memory for this batch")

    def dequantise(self, matrix: Matrix, row: int, out: int) -> None:
        self._library.native_dequantise(self._handle, matrix, row, out)

    def multiply(self, matrix: Matrix, x: int, rows: int, out: int) -> None:
        """``out: [rows, matrix.rows]`` of ``x: [rows, matrix.columns]``, both float32."""
        if self._library.native_multiply(self._handle, matrix, x, rows, out):
            raise NativeFailure("native engine: not enough memory for this product")


def address(buffer: Any) -> int:
    """Where a C-contiguous numpy array lies."""
    assert buffer.flags.c_contiguous
    return int(buffer.ctypes.data)
