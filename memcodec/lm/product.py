"""Products of 8-bit integers, summed in int32: weights, keys and values.

The right-hand side is stored in *panels* of 32 columns, [panels, quads, 32, 4]: four consecutive entries of the inner
dimension, a *quad*, are adjacent, for each of 32 columns. Most processors multiply unsigned by signed bytes. So in the
panels of weights and keys, each byte is the entry plus 128, and the *offset* of the row is added to each sum: -128
times the sum of its own entries. Values are signed, since the attention weights that multiply them are not.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from memcodec.lm import amx
from memcodec.lm.compiled import kernel, not_inlined, subkernel
from memcodec.lm.instructions import CHOSEN, COLUMNS, PANEL_ROW, QUAD, Instructions
from memcodec.lm.team import Team, team_of
from memcodec.lm.tiles import emit_rows

TILE_ROWS = 2 * amx.ROWS if CHOSEN.amx else CHOSEN.rows[0]  # that kernels multiply at a time
ZERO = 128  # the byte of a zero in panels of weights and keys
_PARTS, _PART = COLUMNS // CHOSEN.columns, CHOSEN.columns
# The fewest rows that are multiplied with AMX, and the quads that it multiplies at a time.
_AMX_ROWS, _AMX_QUADS = amx.ROWS if CHOSEN.amx else 1 << 62, amx.QUADS


def _products_of(unsigned_rows: bool, instructions: Instructions = CHOSEN) -> Any:
    """An intrinsic: int32 [rows, columns of a tile] = rows times columns, in tiles of as many rows as there are.

    Arguments: addresses of the rows, of their offsets, of the columns, and of the result; strides in bytes.
    """

    @intrinsic
    def products_of(context, left, stride, offsets, columns, quads, out, out_stride, rows):
        u, i = types.uint64, types.int64

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            emit_rows(b, instructions, unsigned_rows, arguments)
            return context.get_dummy_value()

        return types.void(u, i, u, u, i, u, i, i), generate

    return products_of


def _more_products_of(unsigned_rows: bool) -> Any:
    """An intrinsic: adds products to int32 [16 to 32 rows, 32] with AMX. Arguments: see `_products_of`."""

    @intrinsic
    def more_products_of(context, left, stride, columns, quads, out, out_stride, rows):
        u, i = types.uint64, types.int64

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            if CHOSEN.amx:
                amx.emit_products(b, CHOSEN.amx, unsigned_rows, arguments)
            return context.get_dummy_value()

        return types.void(u, i, u, i, u, i, i), generate

    return more_products_of


_signed_products, _unsigned_products = _products_of(False), _products_of(True)
# A single row is limited by the speed of memory: it takes all columns of a panel at once, in the order of their bytes.
_ROW_ALONE = replace(CHOSEN, columns=COLUMNS, rows=(1,))
_signed_row, _unsigned_row = _products_of(False, _ROW_ALONE), _products_of(True, _ROW_ALONE)
_more_signed_products, _more_unsigned_products = _more_products_of(False), _more_products_of(True)


@subkernel
def _times_panel(unsigned, a, stride, o, w, quads, c, out_stride, rows):
    """int32 [rows, 32] = rows times a panel, in tiles. unsigned: the rows, instead of the panel; see `_products_of`."""
    not_inlined()
    if rows == 1:
        if unsigned:
            _unsigned_row(a, stride, o, w, quads, c, out_stride, rows)
        else:
            _signed_row(a, stride, o, w, quads, c, out_stride, rows)
        return
    for _ in range(_PARTS):
        if unsigned:
            _unsigned_products(a, stride, o, w, quads, c, out_stride, rows)
        else:
            _signed_products(a, stride, o, w, quads, c, out_stride, rows)
        w, c = w + np.uint64(_PART * QUAD), c + np.uint64(4 * _PART)


@subkernel
def _multiply(unsigned, a, stride, o, w, quads, c, out_stride, rows):
    """Like `_times_panel`, with AMX if there is enough to do. The quads that are left over are multiplied before."""
    if rows < _AMX_ROWS or quads < _AMX_QUADS:
        _times_panel(unsigned, a, stride, o, w, quads, c, out_stride, rows)
        return
    rest, done = quads % _AMX_QUADS, 0
    whole = np.uint64(quads - rest)
    while done < rows:
        row = min(done, rows - _AMX_ROWS)
        count = min(2 * _AMX_ROWS, rows - row)
        left, sums = a + np.uint64(row * stride), c + np.uint64(row * out_stride)
        _times_panel(unsigned, left + whole * np.uint64(QUAD), stride, o + np.uint64(4 * row),
                     w + whole * np.uint64(PANEL_ROW), rest, sums, out_stride, count)  # fmt: skip
        if unsigned:
            _more_unsigned_products(left, stride, w, quads, sums, out_stride, count)
        else:
            _more_signed_products(left, stride, w, quads, sums, out_stride, count)
        done = row + count


@subkernel
def multiply(left, start, stride, rows, offsets, first_offset, right, panel, quads, out, out_start, out_stride, plain):
    """int32 [rows, 32] = int8 [rows, 4 * quads] times one panel of weights or keys.

    left: the rows begin at `start` and are `stride` apart; offsets: int32, of the rows, from `first_offset` on; right:
    uint8, the panel begins at `panel`; out: int32. plain: one product at a time, for machines on which the vector
    instructions fail the self-test.
    """
    not_inlined()
    if plain:
        for row in range(rows):
            for column in range(COLUMNS):
                total = offsets[first_offset + row]
                for k in range(QUAD * quads):
                    byte = right[panel + (k // QUAD) * PANEL_ROW + QUAD * column + k % QUAD]
                    total = np.int32(total + np.int32(left[start + row * stride + k]) * np.int32(byte))
                out[out_start + row * out_stride + column] = total
        return
    a, o = left.ctypes.data + np.uint64(start), offsets.ctypes.data + np.uint64(4 * first_offset)
    w, c = right.ctypes.data + np.uint64(panel), out.ctypes.data + np.uint64(4 * out_start)
    _multiply(False, a, stride, o, w, quads, c, 4 * out_stride, rows)


@subkernel
def multiply_shares(left, start, stride, rows, right, panel, quads, out, out_start, out_stride, plain):
    """int32 [rows, 32] = uint8 [rows, 4 * quads] times one panel of values, int8. See `multiply`."""
    not_inlined()
    if plain:
        for row in range(rows):
            for column in range(COLUMNS):
                total = np.int32(0)
                for k in range(QUAD * quads):
                    value = right[panel + (k // QUAD) * PANEL_ROW + QUAD * column + k % QUAD]
                    total = np.int32(total + np.int32(left[start + row * stride + k]) * np.int32(value))
                out[out_start + row * out_stride + column] = total
        return
    a, w = left.ctypes.data + np.uint64(start), right.ctypes.data + np.uint64(panel)
    c = out.ctypes.data + np.uint64(4 * out_start)
    _multiply(True, a, stride, a, w, quads, c, 4 * out_stride, rows)


# ---- panels


def padded(inner: int) -> int:
    """The entries of an inner dimension, in whole quads."""
    return -(-inner // QUAD) * QUAD


def columns_of(rows: int) -> np.ndarray:
    """The row of a matrix that each column of its panels holds, -1 for padding; int64 [whole panels]."""
    result = np.full(-(-rows // COLUMNS) * COLUMNS, -1, dtype=np.int64)
    result[:rows] = np.arange(rows)
    return result


def panels(matrices: np.ndarray, columns: np.ndarray, team: Team) -> np.ndarray:
    """Matrices int8 [n, rows, inner] as panels of bytes with 128 added, uint8 [n, bytes]; columns: see `columns_of`."""
    out = np.empty((len(matrices), len(columns) * padded(matrices.shape[2])), dtype=np.uint8)
    panel = COLUMNS * padded(matrices.shape[2])
    parts = [(i, first) for i in range(len(matrices)) for first in range(0, len(columns), _LAID_OUT)]

    def work(worker: int, workers: int) -> None:
        for i, first in parts[worker::workers]:
            some, start = columns[first : first + _LAID_OUT], first // COLUMNS * panel
            _lay_out(matrices[i], some, out[i, start : start + len(some) // COLUMNS * panel])

    matrices = np.ascontiguousarray(matrices)
    team.run(work)
    return out


def rows_in(packed: np.ndarray, columns: np.ndarray, inner: int) -> np.ndarray:
    """The inverse of `panels`, int8 [n, rows, inner]; every row must be in one of the columns."""
    quads = padded(inner) // QUAD
    apart = packed.reshape(len(packed), -1, quads, COLUMNS, QUAD).swapaxes(2, 3)
    order = np.argsort(columns, kind="stable")[np.count_nonzero(columns < 0) :]
    rows = apart.reshape(len(packed), len(columns), -1)[:, order, :inner]
    return np.ascontiguousarray(rows ^ np.uint8(ZERO)).view(np.int8)


_LAID_OUT = 128 * COLUMNS  # columns that a worker lays out at a time


@kernel
def _lay_out(matrix, columns, out):
    inner = matrix.shape[1]
    whole = (inner + QUAD - 1) // QUAD * QUAD
    for c in range(len(columns)):
        base = c // COLUMNS * (COLUMNS * whole) + c % COLUMNS * QUAD
        for k in range(whole):
            entry = np.int32(0)
            if columns[c] >= 0 and k < inner:
                entry = np.int32(matrix[columns[c], k])
            out[base + k // QUAD * PANEL_ROW + k % QUAD] = np.uint8(entry + ZERO)


def multiply_matrices(left: np.ndarray, right: np.ndarray, plain: bool = False) -> np.ndarray:
    """int [rows, inner] times int8 [columns, inner] by `multiply`, int32 [rows, columns]: for the self-test."""
    rows, inner = left.shape
    columns = columns_of(len(right))
    out = np.empty((rows, len(columns)), dtype=np.int32)
    whole = np.zeros((rows, padded(inner)), dtype=np.int8)
    whole[:, :inner] = left
    offsets = (-ZERO * left.sum(axis=1)).astype(np.int32)
    packed = panels(right[None], columns, team_of(1))[0]
    _multiply_all(whole.reshape(-1), rows, offsets, packed, len(columns) // COLUMNS, out.reshape(-1), int(plain))
    return out[:, : len(right)]


@kernel
def _multiply_all(left, rows, offsets, right, count, out, plain):
    inner = len(left) // rows
    for panel in range(count):
        multiply(left, np.int64(0), inner, rows, offsets, np.int64(0), right, panel * COLUMNS * inner, inner // QUAD,
                 out, panel * COLUMNS, count * COLUMNS, plain)  # fmt: skip
