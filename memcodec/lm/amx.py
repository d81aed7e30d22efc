"""Intel's AMX, as LLVM code: registers of 16 rows of 64 bytes, *tiles*, and an instruction that multiplies them.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, "Programming with Intel AMX", and
TDPBUSD in volume 2. The configuration of the tiles is a thread's own; here, each product loads it and releases it, so
that no other code must know of it.
"""

from typing import Any

from llvmlite import ir

from memcodec.lm.instructions import PANEL_ROW, PANELS_AHEAD, fetch

ROWS = 16  # of a tile
QUADS = 16  # four bytes each, of a row of a tile; a tile of columns has a row for each quad
_BYTES = 64  # of a row of a tile
_SUMS, _ROWS, _RIGHT = range(4), (4, 5), (6, 7)  # tiles
# Of all eight tiles: the kind of the configuration, the bytes of a row, and the rows.
_CONFIGURATION = b"\1".ljust(16, b"\0") + bytes((_BYTES, 0) * 8).ljust(32, b"\0") + bytes([ROWS] * 8).ljust(16, b"\0")
_NAME = "memcodec_tiles"  # of the configuration in a module
_I8, _I64 = ir.IntType(8), ir.IntType(64)
_POINTER = ir.PointerType(_I8)


def emit_products(b: Any, prefix: str, unsigned_rows: bool, arguments: Any) -> None:
    """Emit the addition of the products of 16 to 32 rows and 32 columns to sums in memory.

    prefix: of the names of the functions that stand for the instructions. arguments, in the order of `product`: the
    addresses of the rows, of the columns in a panel, and of the sums, int32; the number of quads, at least 16, of which
    whole steps of 16 are multiplied and the rest at the end is left out; the strides of rows and sums in bytes.
    """
    left, stride, columns, quads, out, out_stride, rows = arguments
    # With fewer than 32 rows, some are in both of the tiles, which add the same products to the same sums.
    second = b.sub(rows, _number(ROWS))
    places = [
        b.add(address, _number(half * _BYTES))
        for address in (out, b.add(out, b.mul(out_stride, second)))
        for half in range(2)
    ]
    configuration = b.module.globals.get(_NAME) or _configuration(b.module)
    _call(b, prefix + "ldtilecfg", b.bitcast(configuration, _POINTER))
    for tile, place in zip(_SUMS, places, strict=True):
        _move(b, prefix + "tileloadd64", tile, place, out_stride)
    _emit_steps(b, prefix, unsigned_rows, (left, b.add(left, b.mul(stride, second))), stride, columns, quads)
    for tile, place in zip(_SUMS, places, strict=True):
        _move(b, prefix + "tilestored64", tile, place, out_stride)
    _call(b, prefix + "tilerelease")


def _emit_steps(b: Any, prefix: str, unsigned_rows: bool, rows: Any, stride: Any, columns: Any, quads: Any) -> None:
    """The loop over steps of 16 quads."""
    steps, ahead = b.sdiv(quads, _number(QUADS)), b.mul(quads, _number(PANELS_AHEAD * PANEL_ROW))
    before, body, after = b.block, b.append_basic_block("step"), b.append_basic_block("done")
    b.branch(body)
    b.position_at_end(body)
    step = b.phi(_I64)
    right = b.add(columns, b.mul(step, _number(QUADS * PANEL_ROW)))
    for tile, address in zip(_ROWS, rows, strict=True):
        _move(b, prefix + "tileloadd64", tile, b.add(address, b.mul(step, _number(_BYTES))), stride)
    for half, tile in enumerate(_RIGHT):
        _move(b, prefix + "tileloadd64", tile, b.add(right, _number(half * _BYTES)), _number(PANEL_ROW))
    for tile in _SUMS:
        operands = tile, _ROWS[tile // 2], _RIGHT[tile % 2]
        _call(b, prefix + ("tdpbusd" if unsigned_rows else "tdpbsud"), *(ir.Constant(_I8, x) for x in operands))
    fetch(b, b.add(right, ahead), QUADS * PANEL_ROW)
    following = b.add(step, _number(1))
    b.cbranch(b.icmp_signed("<", following, steps), body, after)
    step.add_incoming(_number(0), before)
    step.add_incoming(following, body)
    b.position_at_end(after)


def _move(b: Any, name: str, tile: int, address: Any, stride: Any) -> None:
    """Load or store a tile, whose rows are `stride` bytes apart in memory."""
    _call(b, name, ir.Constant(_I8, tile), b.inttoptr(address, _POINTER), stride)


def _call(b: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
    b.call(b.module.globals.get(name) or ir.Function(b.module, kind, name), arguments)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _configuration(module: Any) -> Any:
    found = ir.GlobalVariable(module, ir.ArrayType(_I8, len(_CONFIGURATION)), _NAME)
    found.initializer = ir.Constant(found.type.pointee, bytearray(_CONFIGURATION))
    found.global_constant, found.linkage = True, "internal"
    return found
