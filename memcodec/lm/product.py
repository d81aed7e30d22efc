"""Products of integers: int16 activations times int8 weights, summed in int32.

One micro-kernel multiplies weights, keys and values. It is written in LLVM's vector operations: LLVM selects the
instruction of each processor that multiplies pairs of 16-bit integers and adds them in 32 bits (pmaddwd, vpdpwssd,
smlal). None of these saturates on numbers in our ranges, as products of 8-bit integers do on some processors.

The right-hand side is stored in *panels* of 32 columns, int8 [panels, pairs, 32, 2]: two consecutive entries of the
inner dimension are adjacent, for each of 32 columns.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from memcodec.lm.compiled import kernel, not_inlined, subkernel

COLUMNS = 32
_LANES = 16
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_SUMS, _PAIRS, _WIDE = ir.VectorType(_I32, _LANES), ir.VectorType(_I16, 2 * _LANES), ir.VectorType(_I32, 2 * _LANES)
_BYTES = ir.VectorType(_I8, 2 * _LANES)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


_ZERO = ir.Constant(_SUMS, [0] * _LANES)
_EVEN, _ODD = (ir.Constant(_SUMS, list(range(first, 2 * _LANES, 2))) for first in (0, 1))


class _Tile:
    """Emits the code that multiplies a few rows by one panel."""

    def __init__(self, builder: Any, rows: list[Any], panel: Any) -> None:
        """rows: pointers to the pairs of each row; panel: a pointer to vectors of half a row of pairs."""
        self.builder = builder
        self.rows = rows
        self.panel = panel

    def loop(self, start: Any, limit: Any, unroll: int, sums: list[Any]) -> tuple[Any, list[Any]]:
        """Add the products of pairs from `start` on, `unroll` at a time, while that many are left before `limit`."""
        b = self.builder
        before, body, after = b.block, b.append_basic_block("pairs"), b.append_basic_block("done")
        end = b.sub(limit, _constant(unroll - 1))
        b.cbranch(b.icmp_signed("<", start, end), body, after)
        b.position_at_end(body)
        pair = b.phi(_I64)
        running = [b.phi(_SUMS) for _ in sums]
        new = list(running)
        for step in range(unroll):
            new = self._pair(b.add(pair, _constant(step)), new)
        following = b.add(pair, _constant(unroll))
        b.cbranch(b.icmp_signed("<", following, end), body, after)
        b.position_at_end(after)
        merged = [b.phi(_SUMS) for _ in sums]
        reached = b.phi(_I64)
        for phi, first, last in zip([pair, *running], [start, *sums], [following, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(last, body)
        for phi, first, last in zip([reached, *merged], [start, *sums], [following, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(last, body)
        return reached, merged

    def _pair(self, pair: Any, sums: list[Any]) -> list[Any]:
        b = self.builder
        weights = []
        for half in range(2):
            loaded = b.load(b.gep(self.panel, [b.add(b.mul(pair, _constant(2)), _constant(half))]))
            loaded.align = 1
            weights.append(b.sext(b.sext(loaded, _PAIRS), _WIDE))
        result = []
        for r, row in enumerate(self.rows):
            two = b.load(b.gep(row, [pair]))
            two.align = 2
            spread = b.insert_element(ir.Constant(_SUMS, ir.Undefined), two, ir.Constant(_I32, 0))
            spread = b.shuffle_vector(spread, ir.Constant(_SUMS, ir.Undefined), _ZERO)
            spread = b.sext(b.bitcast(spread, _PAIRS), _WIDE)
            for half in range(2):
                products = b.mul(spread, weights[half])  # LLVM recognizes products of 16 bits and sums of two
                even, odd = (b.shuffle_vector(products, ir.Constant(_WIDE, ir.Undefined), i) for i in (_EVEN, _ODD))
                result.append(b.add(sums[2 * r + half], b.add(even, odd)))
        return result


def _tile(rows: int) -> Any:
    """int32 [rows, 32] = int16 [rows, 2 * pairs] times a panel, given as addresses and strides in entries."""

    @intrinsic
    def tile(context, left, stride, panel, pairs, out, out_stride):
        signature = types.void(types.uint64, types.int64, types.uint64, types.int64, types.uint64, types.int64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, stride, panel, pairs, out, out_stride = arguments
            starts = [builder.add(left, builder.mul(stride, _constant(2 * r))) for r in range(rows)]
            pointers = [builder.inttoptr(start, _I32.as_pointer()) for start in starts]
            tile = _Tile(builder, pointers, builder.inttoptr(panel, _BYTES.as_pointer()))
            unroll = (
                4 if rows <= 2 else 2 if rows <= 4 else 1
            )  # with few sums, each addition would wait for the one before
            reached, sums = tile.loop(_constant(0), pairs, unroll, [_ZERO] * (2 * rows))
            if unroll > 1:
                _, sums = tile.loop(reached, pairs, 1, sums)
            for r in range(rows):
                address = builder.add(out, builder.mul(out_stride, _constant(4 * r)))
                target = builder.inttoptr(address, _SUMS.as_pointer())
                for half in range(2):
                    store = builder.store(sums[2 * r + half], builder.gep(target, [_constant(half)]))
                    store.align = 4
            return context.get_dummy_value()

        return signature, generate

    return tile


TILE_ROWS = 12  # of the largest tile: its 24 sums of 16 lanes and their operands fill 32 registers
_tile_1, _tile_2, _tile_3, _tile_4, _tile_6, _tile_8, _tile_12 = (_tile(rows) for rows in (1, 2, 3, 4, 6, 8, TILE_ROWS))


@subkernel
def multiply(left, start, stride, rows, right, panel, pairs, out, out_start, out_stride, fallback):
    """int32 [rows, 32] = int16 [rows, 2 * pairs] times one panel.

    left: int16, its rows begin at `start` and are `stride` apart; right: int8, the panel begins at `panel`; out: int32.
    fallback: one product at a time, for machines on which the vector operations fail the self-test.
    """
    not_inlined()
    if fallback:
        for row in range(rows):
            for column in range(COLUMNS):
                total = np.int32(0)
                for k in range(2 * pairs):
                    weight = np.int32(right[panel + (k >> 1) * 2 * COLUMNS + 2 * column + (k & 1)])
                    total += np.int32(left[start + row * stride + k]) * weight
                out[out_start + row * out_stride + column] = total
        return
    a = left.ctypes.data + np.uint64(2 * start)
    w = right.ctypes.data + np.uint64(panel)
    c = out.ctypes.data + np.uint64(4 * out_start)
    while rows >= 12:
        _tile_12(a, stride, w, pairs, c, out_stride)
        a, c, rows = a + np.uint64(24 * stride), c + np.uint64(48 * out_stride), rows - 12
    if rows >= 8:
        _tile_8(a, stride, w, pairs, c, out_stride)
        a, c, rows = a + np.uint64(16 * stride), c + np.uint64(32 * out_stride), rows - 8
    if rows >= 6:
        _tile_6(a, stride, w, pairs, c, out_stride)
        a, c, rows = a + np.uint64(12 * stride), c + np.uint64(24 * out_stride), rows - 6
    if rows >= 4:
        _tile_4(a, stride, w, pairs, c, out_stride)
        a, c, rows = a + np.uint64(8 * stride), c + np.uint64(16 * out_stride), rows - 4
    if rows == 3:
        _tile_3(a, stride, w, pairs, c, out_stride)
    elif rows == 2:
        _tile_2(a, stride, w, pairs, c, out_stride)
    elif rows == 1:
        _tile_1(a, stride, w, pairs, c, out_stride)


def columns_of(rows: int) -> np.ndarray:
    """The row of a matrix that each column of its panels holds, -1 for padding; int64 [whole panels]."""
    result = np.full(-(-rows // COLUMNS) * COLUMNS, -1, dtype=np.int64)
    result[:rows] = np.arange(rows)
    return result


def panels(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A matrix int8 [rows, inner] as panels, int8 [bytes]; columns: the row in each column, -1 for zeros."""
    out = np.empty(len(columns) * matrix.shape[1], dtype=np.int8)
    _lay_out(np.ascontiguousarray(matrix), columns, out)
    return out


@kernel
def _lay_out(matrix, columns, out):
    inner = matrix.shape[1]
    for c in range(len(columns)):
        base, two = np.uint64(c // COLUMNS * (COLUMNS * inner) + c % COLUMNS * 2), np.uint64(2)
        step, one = np.uint64(2 * COLUMNS), np.uint64(1)
        if columns[c] < 0:
            for k in range(np.uint64(inner // 2)):
                out[base + k * step] = 0
                out[base + k * step + one] = 0
        else:
            row = matrix[columns[c]]
            for k in range(np.uint64(inner // 2)):
                out[base + k * step] = row[two * k]
                out[base + k * step + one] = row[two * k + one]


def multiply_matrices(left: np.ndarray, right: np.ndarray, fallback: bool = False) -> np.ndarray:
    """int [rows, inner] times int8 [columns, inner] by `multiply`, int32 [rows, columns]: for the self-test."""
    rows, inner = left.shape
    columns = columns_of(len(right))
    out = np.empty((rows, len(columns)), dtype=np.int32)
    flat, packed = left.astype(np.int16).reshape(-1), panels(right, columns)
    _multiply_all(flat, inner, rows, packed, len(columns) // COLUMNS, out.reshape(-1), int(fallback))
    return out[:, : len(right)]


@kernel
def _multiply_all(left, inner, rows, right, count, out, fallback):
    for panel in range(count):
        multiply(left, np.int64(0), inner, rows, right, panel * COLUMNS * inner, inner // 2, out, panel * COLUMNS,
                 count * COLUMNS, fallback)  # fmt: skip
