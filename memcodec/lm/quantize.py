"""Rows of float32 as 8-bit integers for the next product, and what comes just before; kernels for the CPU.

Vectors of 16 lanes are written in LLVM's operations, which become what the processor has. Rows are given as addresses.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from memcodec.lm import arithmetic
from memcodec.lm.compiled import float_at, not_inlined, put_byte, put_float, subkernel
from memcodec.lm.instructions import QUAD
from memcodec.lm.product import ZERO

f32 = np.float32
_LARGEST = f32(arithmetic.LARGEST)
_LANES = 16
_I8, _I32 = ir.IntType(8), ir.IntType(32)
_FLOATS, _BITS = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(_I32, _LANES)


@intrinsic
def _quantize(context: Any, values: Any, count: Any, out: Any) -> Any:
    """Write round(x * (127 / max|x|)) as int8; returns max|x|, and the sums of the integers and of their squares.

    Arguments: the address of float32, their number, and the address of the result. Absolute values are
    compared by their bits, which have the same order.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        values, count, out = arguments
        vectors = b.mul(b.udiv(count, _number(_LANES)), _number(_LANES))
        tiny = ir.Constant(ir.FloatType(), arithmetic.TINY)
        first = b.bitcast(tiny, _I32)
        most = _loop(b, _number(0), vectors, _LANES, [_splat(b, first)], lambda i, found: [
            _larger(b, found[0], _magnitude(b, _at(b, values, i, _FLOATS)))
        ])  # fmt: skip
        largest = _reduced(b, most[0], lambda x, y: _larger(b, x, y))
        (bits,) = _loop(b, vectors, count, 1, [largest], lambda i, found: [
            _larger(b, found[0], _magnitude(b, _at(b, values, i, ir.FloatType())))
        ])  # fmt: skip
        top = b.bitcast(bits, ir.FloatType())
        factor = b.fdiv(ir.Constant(ir.FloatType(), float(arithmetic.LARGEST)), top)

        def rounded(kind: Any, factor: Any) -> Any:
            def body(i: Any, sums: list[Any]) -> list[Any]:
                x = b.fmul(_at(b, values, i, kind), factor)
                bits = kind.count * 32 if isinstance(kind, ir.VectorType) else 0
                name = f"llvm.rint.v{bits // 32}f32" if bits else "llvm.rint.f32"
                known = b.module.globals.get(name)
                rint = known or ir.Function(b.module, ir.FunctionType(kind, [kind]), name)
                wide, narrow = (ir.VectorType(t, _LANES) if bits else t for t in (_I32, _I8))
                integers = b.fptosi(b.call(rint, [x]), wide)
                b.store(b.trunc(integers, narrow), b.inttoptr(b.add(out, i), narrow.as_pointer())).align = 1
                return [b.add(sums[0], integers), b.add(sums[1], b.mul(integers, integers))]

            return body

        zeros = [_splat(b, ir.Constant(_I32, 0))] * 2
        sums = _loop(b, _number(0), vectors, _LANES, zeros, rounded(_FLOATS, _splat(b, factor)))
        sums = [_reduced(b, total, b.add) for total in sums]
        sums = _loop(b, vectors, count, 1, sums, rounded(ir.FloatType(), factor))
        return context.make_tuple(b, signature.return_type, [top, *sums])

    result = types.Tuple((types.float32, types.int32, types.int32))
    return result(types.uint64, types.int64, types.uint64), generate


def _number(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


def _at(b: Any, address: Any, index: Any, kind: Any) -> Any:
    """What is in memory at an index of float32."""
    loaded = b.load(b.inttoptr(b.add(address, b.mul(index, _number(4))), kind.as_pointer()))
    loaded.align = 4
    return loaded


def _splat(b: Any, value: Any) -> Any:
    vector = ir.VectorType(value.type, _LANES)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(_BITS, [0] * _LANES))


def _magnitude(b: Any, x: Any) -> Any:
    """The bits of |x|."""
    kind = _BITS if isinstance(x.type, ir.VectorType) else _I32
    mask = ir.Constant(_BITS, [0x7FFFFFFF] * _LANES) if kind is _BITS else ir.Constant(_I32, 0x7FFFFFFF)
    return b.and_(b.bitcast(x, kind), mask)


def _larger(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.icmp_signed(">", x, y), x, y)


def _reduced(b: Any, x: Any, join: Any) -> Any:
    """All lanes of a vector, joined."""
    lanes = _LANES
    while lanes > 1:
        lanes //= 2
        order = ir.Constant(_BITS, [(i + lanes) % _LANES for i in range(_LANES)])
        x = join(x, b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), order))
    return b.extract_element(x, ir.Constant(_I32, 0))


def _loop(b: Any, start: Any, limit: Any, step: int, state: list[Any], body: Any) -> list[Any]:
    """Emit a loop; body: a function of the index and the state, which returns the next state."""
    before, inside, after = b.block, b.append_basic_block("loop"), b.append_basic_block("end")
    b.cbranch(b.icmp_signed("<", start, limit), inside, after)
    b.position_at_end(inside)
    index = b.phi(ir.IntType(64))
    current = [b.phi(x.type) for x in state]
    following = body(index, current)
    moved = b.add(index, _number(step))
    b.cbranch(b.icmp_signed("<", moved, limit), inside, after)
    for phi, first, last in zip([index, *current], [start, *state], [moved, *following], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, inside)
    b.position_at_end(after)
    result = [b.phi(x.type) for x in state]
    for phi, first, last in zip(result, state, following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, inside)
    return result


@subkernel
def to_integers(values, count, out):
    """Write round(x * (127 / max|x|)) as int8, with zeros up to a whole quad. values, out: addresses.

    Returns max|x|, at least TINY, the offset for `product.multiply`, and the sum of the squares of the integers.
    """
    most, total, squares = _quantize(values, count, out)
    while count % QUAD:
        put_byte(out + np.uint64(count), np.int8(0))
        count += 1
    return most, np.int32(-ZERO * total), squares


@subkernel
def root_scale(most, squares, count, epsilon):
    """1 / sqrt(mean square + epsilon), float32, from the results of `to_integers`."""
    unit = np.float64(most) / np.float64(_LARGEST)
    return f32(1.0 / math.sqrt(np.float64(squares) / np.float64(count) * (unit * unit) + epsilon))


# ---- the Hadamard transform


@intrinsic
def _transform_16(context: Any, address: Any) -> Any:
    """The transform of 16 float32 at an address, in place.

    In each stage, a pair of entries a, b becomes a + b, a - b: to each its partner is added, and b is negated before.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        pointer = b.inttoptr(arguments[0], _FLOATS.as_pointer())
        x = b.load(pointer)
        x.align = 4
        for h in (1, 2, 4, 8):
            order = ir.Constant(_BITS, [i ^ h for i in range(_LANES)])
            flips = ir.Constant(_BITS, [0x80000000 if i & h else 0 for i in range(_LANES)])
            partner = b.shuffle_vector(x, ir.Constant(_FLOATS, ir.Undefined), order)
            x = b.fadd(partner, b.bitcast(b.xor(b.bitcast(x, _BITS), flips), _FLOATS))
        b.store(x, pointer).align = 4
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic
def _butterflies_16(context: Any, address: Any, distance: Any) -> Any:
    """The sums and differences of 16 float32 at an address and 16 others at a distance in bytes, in their places."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        first, second = (b.inttoptr(x, _FLOATS.as_pointer()) for x in (arguments[0], b.add(arguments[0], arguments[1])))
        x, y = b.load(first), b.load(second)
        x.align = y.align = 4
        b.store(b.fadd(x, y), first).align = 4
        b.store(b.fsub(x, y), second).align = 4
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@subkernel
def transform(address, count, block):
    """The Hadamard transform of each block of `count` float32 at an address, in place. block: a power of two."""
    not_inlined()
    step = 1
    if block >= _LANES:
        for i in range(0, count, _LANES):
            _transform_16(address + np.uint64(4 * i))
        step = _LANES
        while step < block:
            for first in range(0, count, 2 * step):
                for i in range(first, first + step, _LANES):
                    _butterflies_16(address + np.uint64(4 * i), np.uint64(4 * step))
            step *= 2
        return
    while step < block:
        for first in range(0, count, 2 * step):
            for i in range(first, first + step):
                a, b = address + np.uint64(4 * i), address + np.uint64(4 * (i + step))
                x, y = float_at(a), float_at(b)
                put_float(a, x + y)
                put_float(b, x - y)
        step *= 2


# ---- rotary positions


@intrinsic
def _rotary(context: Any, address: Any, half: Any, cosine: Any, sine: Any) -> Any:
    """Turn the entries i and i + half of a head, a and b, into a c - b s and b c + a s, in place; all addresses."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        address, half, cosine, sine = arguments
        second = b.add(address, b.mul(half, _number(4)))

        def body(kind: Any) -> Any:
            def turn(i: Any, state: list[Any]) -> list[Any]:
                x, y = _at(b, address, i, kind), _at(b, second, i, kind)
                c, s = _at(b, cosine, i, kind), _at(b, sine, i, kind)
                _put(b, address, i, b.fsub(b.fmul(x, c), b.fmul(y, s)))
                _put(b, second, i, b.fadd(b.fmul(y, c), b.fmul(x, s)))
                return []

            return turn

        vectors = b.mul(b.udiv(half, _number(_LANES)), _number(_LANES))
        _loop(b, _number(0), vectors, _LANES, [], body(_FLOATS))
        _loop(b, vectors, half, 1, [], body(ir.FloatType()))
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.uint64, types.uint64), generate


def _put(b: Any, address: Any, index: Any, value: Any) -> None:
    """Write to memory at an index of float32."""
    place = b.inttoptr(b.add(address, b.mul(index, _number(4))), value.type.as_pointer())
    b.store(value, place).align = 4


@subkernel
def rotary(address, size, cosine, sine):
    """Turn a head to its position, in place. cosine, sine: addresses of size / 2 float32."""
    _rotary(address, size // 2, cosine, sine)
