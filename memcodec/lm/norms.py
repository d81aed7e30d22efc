"""Rows of float32 as integers for the next product, and norms; kernels for the CPU."""

import math

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.compiled import float_of, not_inlined, subkernel

f4 = np.float32
u8 = np.uint64  # for indices in inner loops: numba checks an index that may be negative, and then does not vectorize
_TINY = f4(arithmetic.TINY)
_HIGHEST = f4(arithmetic.HIGHEST)
_ZERO = np.int64(0)


@subkernel
def largest(values, start, count):
    """max |x|, at least TINY. Floats without their sign are ordered like their bits."""
    bits = values.view(np.int32)
    most = np.int32(0)
    for i in range(u8(start), u8(start + count)):
        most = max(most, bits[i] & np.int32(0x7FFFFFFF))
    return max(float_of(most), _TINY)


@subkernel
def to_integers(values, start, count, limit, out, out_start):
    """Write round(x * (limit / max|x|)) into `out`; returns the scale, max|x| / limit."""
    not_inlined()
    most = largest(values, start, count)
    factor = limit / most
    for i in range(u8(count)):
        out[u8(out_start) + i] = np.int32(np.rint(values[u8(start) + i] * factor))
    return most / limit


@subkernel
def _moments(values, start, count):
    """Sum and sum of squares of round(x * (32767 / max|x|)), int64, and max|x| / 32767, float64."""
    most = largest(values, start, count)
    factor = _HIGHEST / most
    total, squares = np.int64(0), np.int64(0)
    for i in range(u8(start), u8(start + count)):
        x = np.int64(np.int32(np.rint(values[i] * factor)))
        total += x
        squares += x * x
    return total, squares, np.float64(most) / np.float64(_HIGHEST)


@subkernel
def root_scale(values, start, count, epsilon):
    """1 / sqrt(mean square + epsilon), float32."""
    _, squares, unit = _moments(values, start, count)
    mean = np.float64(squares) / np.float64(count)
    return f4(1.0 / math.sqrt(mean * (unit * unit) + epsilon))


@subkernel
def _norm_row(sizes, x, gain, shift, normed, out):
    """One row through a norm, as integers for the next product; returns their scale. normed: a buffer, [hidden]."""
    not_inlined()
    count = sizes.hidden
    if sizes.layer_norm:
        total, squares, unit = _moments(x, _ZERO, count)
        mean = f4(np.float64(total) / np.float64(count) * unit)
        spread = np.float64(count * squares - total * total) / (np.float64(count) * np.float64(count))
        scale = f4(1.0 / math.sqrt(spread * (unit * unit) + sizes.epsilon))
        for i in range(count):
            normed[i] = (x[i] - mean) * scale * gain[i] + shift[i]
        return to_integers(normed, _ZERO, count, sizes.input_limit, out, _ZERO)
    scale = root_scale(x, _ZERO, count, sizes.epsilon)
    for i in range(count):
        normed[i] = x[i] * gain[i]
    return to_integers(normed, _ZERO, count, sizes.input_limit, out, _ZERO) * scale


@subkernel
def norm_stage(sizes, space, rows, gain, shift, worker, workers):
    """The residual stream through a norm, as inputs of the next product. Uses the outputs as a buffer."""
    for m in range(worker, rows, workers):
        space.input_scale[m] = _norm_row(sizes, space.x[m], gain, shift, space.outputs[m], space.inputs[m])


@subkernel
def integer_stage(space, rows, count, limit, worker, workers):
    """The outputs of the previous stage as inputs of the next product."""
    not_inlined()
    for m in range(worker, rows, workers):
        space.input_scale[m] = to_integers(space.outputs[m], _ZERO, count, limit, space.inputs[m], _ZERO)
