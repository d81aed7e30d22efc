"""Tiles of a product, a few rows times some columns whose sums stay in registers, as LLVM code."""

from typing import Any

from llvmlite import ir

from memcodec.lm.instructions import PANEL_ROW, PANELS_AHEAD, QUAD, Instructions, SignedDot, fetch

_PREFETCHING_ROWS = 2  # from this many rows on, a tile prefetches; for fewer, the processor does so fast enough itself
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


class _Tile:
    """Emits the code that multiplies a few rows by the columns of a tile."""

    def __init__(self, builder: Any, instructions: Instructions, columns: Any, unsigned_rows: bool) -> None:
        """columns: an address."""
        self.b = builder
        self.instructions = instructions
        self.columns = columns
        self.unsigned_rows = unsigned_rows

    def start(self, quads: Any) -> list[Any]:
        """The sums of a row before the first product: not 0 if 128 is taken from the bytes of unsigned rows."""
        zeros: list[Any] = [self.instructions.zero()] * self.instructions.sums
        if not (self.unsigned_rows and isinstance(self.instructions, SignedDot)):
            return zeros
        return [self.b.sub(zeros[0], x) for x in self.sums(quads, [None], zeros)]

    def sums(self, quads: Any, rows: list[Any], start: list[Any]) -> list[Any]:
        """The sums, vectors of one lane a column, row by row. rows: addresses; see `_row`."""
        n = self.instructions.sums
        each = len(rows) * n
        # With few sums, each addition would wait for the one before: then some quads are added up separately.
        separate = max(1, min(4, 10 // each))
        self.ahead = self.b.mul(quads, _number(PANELS_AHEAD * PANEL_ROW))
        zeros: list[Any] = [self.instructions.zero()] * (each * (separate - 1))
        reached, sums = self._loop(_number(0), quads, separate, rows, start * len(rows) + zeros)
        if separate > 1:
            _, rest = self._loop(reached, quads, 1, rows, sums[:each])
            sums = rest + sums[each:]
            for part in range(1, separate):
                sums[:each] = [self.b.add(x, sums[part * each + i]) for i, x in enumerate(sums[:each])]
        return sums[:each]

    def _loop(self, start: Any, limit: Any, unroll: int, rows: list[Any], sums: list[Any]) -> tuple[Any, list[Any]]:
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
            new += self._quad(b.add(quad, _number(step)), rows, running[step * each : (step + 1) * each])
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

    def _quad(self, quad: Any, rows: list[Any], sums: list[Any]) -> list[Any]:
        b, n, unsigned = self.b, self.instructions.sums, self.unsigned_rows
        at = b.add(self.columns, b.mul(quad, _number(PANEL_ROW)))
        if len(rows) >= _PREFETCHING_ROWS:
            fetch(b, b.add(at, self.ahead), self.instructions.columns * QUAD)
        places = [b.add(at, _number(i * self.instructions.width)) for i in range(n)]
        columns = [self.instructions.load_columns(b, place, not unsigned) for place in places]
        result = []
        for r, address in enumerate(rows):
            row = self._row(address, quad)
            result += [self.instructions.dot(b, sums[r * n + i], row, columns[i], unsigned) for i in range(n)]
        return result

    def _row(self, address: Any, quad: Any) -> Any:
        """A quad of a row; of a row of zeros if there is no address."""
        if address is None and isinstance(self.instructions, SignedDot):
            return self.instructions.lowest()
        b = self.b
        return self.instructions.load_row(b, b.add(address, b.mul(quad, _number(QUAD))), self.unsigned_rows)


def emit_rows(b: Any, instructions: Instructions, unsigned_rows: bool, arguments: Any) -> None:
    """Emit the product of rows and the columns of a tile, in tiles of as many rows as there are.

    arguments: addresses of the rows, of their offsets, of the columns, and of the result; the quads; strides in bytes;
    in the order of `product`.
    """
    left, stride, offsets, columns, quads, out, out_stride, rows = arguments
    tile = _Tile(b, instructions, columns, unsigned_rows)
    start = tile.start(quads)
    state = [left, offsets, out, rows]
    for size in instructions.rows:
        before, head = b.block, b.append_basic_block(f"rows{size}")
        body, after = b.append_basic_block("tile"), b.append_basic_block("after")
        b.branch(head)
        b.position_at_end(head)
        current = [b.phi(_I64) for _ in state]
        b.cbranch(b.icmp_signed(">=", current[3], _number(size)), body, after)
        b.position_at_end(body)
        sums = tile.sums(quads, [b.add(current[0], b.mul(stride, _number(r))) for r in range(size)], start)
        each = len(sums) // size
        for r in range(size):
            target = b.add(current[2], b.mul(out_stride, _number(r)))
            some = sums[r * each : (r + 1) * each]
            if not unsigned_rows and not isinstance(instructions, SignedDot):
                offset = _splat(b, b.add(current[1], _number(4 * r)), instructions.zero())
                some = [b.add(x, offset) for x in some]
            for v, total in enumerate(some):
                place = b.inttoptr(b.add(target, _number(v * instructions.width)), total.type.as_pointer())
                b.store(total, place).align = 4
        moved = [
            b.add(current[0], b.mul(stride, _number(size))),
            b.add(current[1], _number(4 * size)),
            b.add(current[2], b.mul(out_stride, _number(size))),
            b.sub(current[3], _number(size)),
        ]
        for phi, first, last in zip(current, state, moved, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(last, b.block)
        b.branch(head)
        b.position_at_end(after)
        state = list(current)


def _splat(b: Any, address: Any, zero: Any) -> Any:
    """An int32 in memory, in every lane of a vector like `zero`."""
    loaded = b.load(b.inttoptr(address, _I32.as_pointer()))
    first = b.insert_element(ir.Constant(zero.type, ir.Undefined), loaded, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, ir.Constant(zero.type, ir.Undefined), zero)
