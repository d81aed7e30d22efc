"""Rows of float32 as 8-bit integers for the next product, with and without a norm; kernels for the CPU."""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from memcodec.lm import arithmetic
from memcodec.lm.compiled import float_of, not_inlined, subkernel
from memcodec.lm.product import QUAD, ZERO

f4 = np.float32
u8 = np.uint64  # for indices in inner loops: numba checks an index that may be negative, and then does not vectorize
_TINY = f4(arithmetic.TINY)
_LARGEST = f4(arithmetic.LARGEST)
_LANES = 16
_FLOATS, _BITS = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(ir.IntType(32), _LANES)


@subkernel
def largest(values, start, count):
    """max |x|, at least TINY. Floats without their sign are ordered like their bits."""
    bits = values.view(np.int32)
    most = np.int32(0)
    for i in range(u8(start), u8(start + count)):
        most = max(most, bits[i] & np.int32(0x7FFFFFFF))
    return max(float_of(most), _TINY)


@subkernel
def to_integers(values, start, count, out, out_start):
    """Write round(x * (127 / max|x|)) into `out`, int8, with zeros up to a whole quad.

    Returns max|x|, the offset for `product.multiply`, and the sum of the squares of the integers.
    """
    not_inlined()
    most = largest(values, start, count)
    factor = _LARGEST / most
    total, squares = np.int32(0), np.int32(0)
    for i in range(u8(count)):
        integer = np.int32(np.rint(values[u8(start) + i] * factor))
        out[u8(out_start) + i] = np.int8(integer)
        total = np.int32(total + integer)
        squares = np.int32(squares + integer * integer)
    for i in range(count, (count + QUAD - 1) // QUAD * QUAD):
        out[out_start + i] = np.int8(0)
    return most, np.int32(-ZERO * total), squares


@subkernel
def root_scale(most, squares, count, epsilon):
    """1 / sqrt(mean square + epsilon), float32, from the results of `to_integers`."""
    unit = np.float64(most) / np.float64(_LARGEST)
    return f4(1.0 / math.sqrt(np.float64(squares) / np.float64(count) * (unit * unit) + epsilon))


@subkernel
def norm_row(values, count, epsilon, space, row):
    """A row through a norm, as row `row` of the inputs of the next product."""
    inputs = space.flat
    most, offset, squares = to_integers(values, np.int64(0), count, inputs, row * space.inputs.shape[1])
    space.input_scale[row] = most / _LARGEST * root_scale(most, squares, count, epsilon)
    space.input_offset[row] = offset


@subkernel
def plain_row(values, count, space, row):
    """A row as row `row` of the inputs of the next product."""
    most, offset, _ = to_integers(values, np.int64(0), count, space.flat, row * space.inputs.shape[1])
    space.input_scale[row] = most / _LARGEST
    space.input_offset[row] = offset


# ---- the Hadamard transform


@intrinsic
def _transform_16(context: Any, address: Any) -> Any:
    """The transform of 16 float32 at an address, in place.

    In each stage, an entry becomes its partner plus itself, or, if it is the second of the two, plus its negative.
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


@subkernel
def transform(values, start, count, block):
    """The Hadamard transform of each block of `count` entries, float32, in place. block: a power of two."""
    not_inlined()
    step = 1
    if block >= _LANES:
        address = values.ctypes.data + np.uint64(4 * start)
        for i in range(u8(count // _LANES)):
            _transform_16(address + u8(4 * _LANES) * i)
        step = _LANES
    while step < block:
        for first in range(start, start + count, 2 * step):
            a, b = u8(first), u8(first + step)
            for i in range(u8(step)):
                x, y = values[a + i], values[b + i]
                values[a + i] = x + y
                values[b + i] = x - y
        step *= 2
