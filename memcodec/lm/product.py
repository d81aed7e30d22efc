"""Products of 8-bit integers, summed in int32: weights, keys and values.

The right-hand side is stored in *panels* of 32 columns, [panels, quads, 32, 4]: four consecutive entries of the inner
dimension, a *quad*, are adjacent, for each of 32 columns. Most processors multiply unsigned by signed bytes. So in the
panels of weights and keys, each byte is the entry plus 128, and the *offset* of the row is added to each sum: -128
times the sum of its own entries. Values are signed, since the attention weights that multiply them are not.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from memcodec.lm.compiled import kernel, not_inlined, subkernel
from memcodec.lm.instructions import CHOSEN, QUAD
from memcodec.lm.team import Team, team_of

COLUMNS = 32
PANEL_ROW = COLUMNS * QUAD  # bytes of a quad of all columns
TILE_ROWS = CHOSEN.rows[0]  # of the largest tile
ZERO = 128  # the byte of a zero in panels of weights and keys
_LINE = 64  # bytes of a cache line
_PANELS_AHEAD = 2  # that are fetched from memory while a panel is multiplied
_PREFETCHING_ROWS = 2  # of a tile that fetches them; with fewer, the processor fetches fast enough by itself
_PARTS, _PART = COLUMNS // CHOSEN.columns, CHOSEN.columns
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


class _Tile:
    """Emits the code that multiplies a few rows by the columns of a tile."""

    def __init__(self, builder: Any, rows: list[Any], columns: Any, unsigned_rows: bool) -> None:
        """rows, columns: addresses."""
        self.b = builder
        self.rows = rows
        self.columns = columns
        self.unsigned_rows = unsigned_rows
        # With few sums, each addition would wait for the one before: then some quads are added up separately.
        self.separate = max(1, min(4, 10 // (len(rows) * CHOSEN.sums)))

    def sums(self, quads: Any) -> list[Any]:
        """The finished sums, vectors of one lane a column, row by row."""
        each = len(self.rows) * CHOSEN.sums
        self.ahead = self.b.mul(quads, _number(_PANELS_AHEAD * PANEL_ROW))
        start: list[Any] = [CHOSEN.zero()] * (each * self.separate)
        reached, sums = self._loop(_number(0), quads, self.separate, start)
        if self.separate > 1:
            _, rest = self._loop(reached, quads, 1, sums[:each])
            sums = rest + sums[each:]
            for part in range(1, self.separate):
                sums[:each] = [self.b.add(x, sums[part * each + i]) for i, x in enumerate(sums[:each])]
        result = []
        for r in range(len(self.rows)):
            result += CHOSEN.finished(self.b, sums[r * CHOSEN.sums : (r + 1) * CHOSEN.sums])
        return result

    def _prefetch(self, address: Any) -> None:
        """Begin to bring what is at an address into the second cache. An address beyond the end does no harm."""
        pointer, name = ir.PointerType(_I8), "llvm.prefetch.p0"
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = self.b.module.globals.get(name) or ir.Function(self.b.module, kind, name)
        self.b.call(function, [self.b.inttoptr(address, pointer), *(ir.Constant(_I32, x) for x in (0, 2, 1))])

    def _loop(self, start: Any, limit: Any, unroll: int, sums: list[Any]) -> tuple[Any, list[Any]]:
        """Add the products of quads from `start` on, `unroll` at a time, while that many are left before `limit`."""
        b = self.b
        before, body, after = b.block, b.append_basic_block("quads"), b.append_basic_block("done")
        end = b.sub(limit, _number(unroll - 1))
        b.cbranch(b.icmp_signed("<", start, end), body, after)
        b.position_at_end(body)
        quad = b.phi(_I64)
        running = [b.phi(x.type) for x in sums]
        each = len(sums) // unroll
        new: list[Any] = []
        for step in range(unroll):
            new += self._quad(b.add(quad, _number(step)), running[step * each : (step + 1) * each])
        following = b.add(quad, _number(unroll))
        b.cbranch(b.icmp_signed("<", following, end), body, after)
        b.position_at_end(after)
        merged = [b.phi(x.type) for x in sums]
        reached = b.phi(_I64)
        for phi, first, last in zip([quad, *running], [start, *sums], [following, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(last, body)
        for phi, first, last in zip([reached, *merged], [start, *sums], [following, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(last, body)
        return reached, merged

    def _quad(self, quad: Any, sums: list[Any]) -> list[Any]:
        b, n = self.b, CHOSEN.sums
        at = b.add(self.columns, b.mul(quad, _number(PANEL_ROW)))
        if len(self.rows) >= _PREFETCHING_ROWS:
            for line in range(0, PANEL_ROW, _LINE):
                self._prefetch(b.add(b.add(at, self.ahead), _number(line)))
        step = CHOSEN.columns * QUAD // n
        columns = [
            CHOSEN.load_columns(b, b.add(at, _number(i * step)), not self.unsigned_rows) for i in range(n)
        ]  # fmt: skip
        result = []
        for r, address in enumerate(self.rows):
            row = CHOSEN.load_row(b, b.add(address, b.mul(quad, _number(QUAD))), self.unsigned_rows)
            result += [CHOSEN.dot(b, sums[r * n + i], row, columns[i], self.unsigned_rows) for i in range(n)]
        return result


def _all_rows(unsigned_rows: bool) -> Any:
    """An intrinsic: int32 [rows, columns of a tile] = rows times columns, in tiles of as many rows as there are.

    Arguments: addresses of the rows, of their offsets, of the columns, and of the result; strides in bytes and entries.
    """

    @intrinsic
    def all_rows(context, left, stride, offsets, columns, quads, out, out_stride, rows):
        u, i = types.uint64, types.int64
        signature = types.void(u, i, u, u, i, u, i, i)

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            left, stride, offsets, columns, quads, out, out_stride, rows = arguments
            out_bytes = b.mul(out_stride, _number(4))
            state = [left, offsets, out, rows]
            for size in CHOSEN.rows:
                before, head = b.block, b.append_basic_block(f"rows{size}")
                body, after = b.append_basic_block("tile"), b.append_basic_block("after")
                b.branch(head)
                b.position_at_end(head)
                current = [b.phi(_I64) for _ in state]
                b.cbranch(b.icmp_signed(">=", current[3], _number(size)), body, after)
                b.position_at_end(body)
                addresses = [b.add(current[0], b.mul(stride, _number(r))) for r in range(size)]
                sums = _Tile(b, addresses, columns, unsigned_rows).sums(quads)
                each = len(sums) // size
                for r in range(size):
                    target = b.add(current[2], b.mul(out_bytes, _number(r)))
                    offset = None if unsigned_rows else _splat(b, b.add(current[1], _number(4 * r)))
                    for v in range(each):
                        total = sums[r * each + v] if offset is None else b.add(sums[r * each + v], offset)
                        place = b.inttoptr(b.add(target, _number(v * CHOSEN.width)), total.type.as_pointer())
                        b.store(total, place).align = 4
                moved = [
                    b.add(current[0], b.mul(stride, _number(size))),
                    b.add(current[1], _number(4 * size)),
                    b.add(current[2], b.mul(out_bytes, _number(size))),
                    b.sub(current[3], _number(size)),
                ]
                for phi, first, last in zip(current, state, moved, strict=True):
                    phi.add_incoming(first, before)
                    phi.add_incoming(last, b.block)
                b.branch(head)
                b.position_at_end(after)
                state = list(current)
            return context.get_dummy_value()

        return signature, generate

    return all_rows


def _splat(b: Any, address: Any) -> Any:
    """An int32 in memory, in every lane."""
    vector = CHOSEN.zero().type
    loaded = b.load(b.inttoptr(address, _I32.as_pointer()))
    first = b.insert_element(ir.Constant(vector, ir.Undefined), loaded, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), CHOSEN.zero())


_signed_rows, _unsigned_rows = _all_rows(False), _all_rows(True)


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
    for _ in range(_PARTS):
        _signed_rows(a, stride, o, w, quads, c, out_stride, rows)
        w, c = w + np.uint64(_PART * QUAD), c + np.uint64(4 * _PART)


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
    for _ in range(_PARTS):
        _unsigned_rows(a, stride, a, w, quads, c, out_stride, rows)
        w, c = w + np.uint64(_PART * QUAD), c + np.uint64(4 * _PART)


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
    return (apart.reshape(len(packed), len(columns), -1)[:, order, :inner] ^ np.uint8(ZERO)).view(np.int8)


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
