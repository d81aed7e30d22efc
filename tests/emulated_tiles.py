"""AMX without AMX: functions for its instructions, in numpy (Intel's Software Developer's Manual, volume 2).

As a plugin of pytest (-p tests.emulated_tiles), it makes the kernels of the process call them: everything around the
instructions is what a processor with AMX runs. Fewer than 16 rows are multiplied by what this processor has.
"""

import ctypes
import dataclasses
import os
import threading
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np

from memcodec.lm import instructions

NAME = "amx-emulated"
_PREFIX = "memcodec_emulated_"


class _Tiles(threading.local):
    """The tiles of a thread; no configuration at first."""

    rows: np.ndarray | None = None
    bytes_: np.ndarray
    data: np.ndarray


_tiles = _Tiles()
_products = 0


def _memory(address: int, size: int) -> np.ndarray:
    """uint8 [size], the memory at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _shape(tile: int) -> tuple[int, int]:
    """The rows and the bytes of a row. A tile without a configuration ends the process, as it does on a processor."""
    if _tiles.rows is None or not _tiles.rows[tile]:
        os.abort()
    return int(_tiles.rows[tile]), int(_tiles.bytes_[tile])


def ldtilecfg(address: int) -> None:
    memory = _memory(address, 64)
    if memory[0] != 1 or memory[1:16].any() or memory[32:48].any() or memory[56:].any():
        os.abort()
    _tiles.bytes_ = memory[16:32].view(np.uint16).copy()
    _tiles.rows = memory[48:56].copy()
    if (_tiles.bytes_ > 64).any() or (_tiles.rows > 16).any():
        os.abort()
    _tiles.data = np.zeros((8, 16, 64), dtype=np.uint8)


def tilerelease() -> None:
    _tiles.rows = None


def tileloadd64(tile: int, address: int, stride: int) -> None:
    rows, size = _shape(tile)
    _tiles.data[tile] = 0
    for row in range(rows):
        _tiles.data[tile, row, :size] = _memory(address + row * stride, size)


def tilestored64(tile: int, address: int, stride: int) -> None:
    rows, size = _shape(tile)
    for row in range(rows):
        _memory(address + row * stride, size)[:] = _tiles.data[tile, row, :size]


def _dot(sums: int, left: int, right: int, left_type: Any, right_type: Any) -> None:
    """sums[m, n] += left[m, 4 k + i] * right[k, 4 n + i], modulo 2**32."""
    global _products
    _products += 1
    rows, size = _shape(sums)
    inner = _shape(left)[1] // 4
    if _shape(left)[0] != rows or _shape(right) != (inner, size):
        os.abort()
    a = _tiles.data[left, :rows, : 4 * inner].view(left_type).astype(np.int64)
    b = _tiles.data[right, :inner, :size].view(right_type).astype(np.int64).reshape(inner, size // 4, 4)
    total = _tiles.data[sums, :rows, :size].view(np.int32)
    total += (a @ b.swapaxes(1, 2).reshape(4 * inner, size // 4)).astype(np.int32)


def tdpbsud(sums: int, left: int, right: int) -> None:
    _dot(sums, left, right, np.int8, np.uint8)


def tdpbusd(sums: int, left: int, right: int) -> None:
    _dot(sums, left, right, np.uint8, np.int8)


_POINTER, _TILE, _STRIDE = ctypes.c_void_p, ctypes.c_uint8, ctypes.c_int64
_FUNCTIONS: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
    (ldtilecfg, (_POINTER,)),
    (tilerelease, ()),
    (tileloadd64, (_TILE, _POINTER, _STRIDE)),
    (tilestored64, (_TILE, _POINTER, _STRIDE)),
    (tdpbsud, (_TILE, _TILE, _TILE)),
    (tdpbusd, (_TILE, _TILE, _TILE)),
]
_kept = [ctypes.CFUNCTYPE(None, *arguments)(function) for function, arguments in _FUNCTIONS]
for (function, _), compiled in zip(_FUNCTIONS, _kept, strict=True):
    llvmlite.binding.add_symbol(_PREFIX + function.__name__, ctypes.cast(compiled, ctypes.c_void_p).value)
instructions.CHOSEN = dataclasses.replace(instructions.CHOSEN, name=NAME, amx=_PREFIX)


def pytest_sessionfinish(session: Any) -> None:
    """The tests show nothing if no tiles were multiplied."""
    if not _products:
        session.exitstatus = 1
