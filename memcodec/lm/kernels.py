"""The exact LM on a CPU: fused kernels over all rows of a pass (spec/FORMAT.md, in the same order and with its names).

A pass takes new positions of several sequences at the same time. All workers of a team call `forward` together. A stage
is divided into units of work, each of which is taken by a worker that is free, unless there are few rows; then they
wait for each other. numba keeps typed float32 as it is, so nothing is a float64 that is not meant to be; every
operation is one IEEE operation, and sums are sums of integers. The arguments are described in `layout`.
"""

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.attention import attention_stage, head_stage
from memcodec.lm.compiled import COUNTERS_APART, kernel, not_inlined, subkernel, taken, wait_for_all
from memcodec.lm.exp2 import EXP2_ONE, exp2
from memcodec.lm.instructions import COLUMNS, QUAD
from memcodec.lm.layout import FEW_ROWS, STAGES
from memcodec.lm.product import TILE_ROWS, multiply
from memcodec.lm.quantize import root_scale, to_integers, transform

f32 = np.float32
u64 = np.uint64  # for indices in inner loops: numba checks an index that may be negative, and then does not vectorize
_FAR, _LARGEST = f32(arithmetic.FAR), f32(arithmetic.LARGEST)
_GATE_REACH = f32(arithmetic.GATE_REACH)
_LOGIT_SCALE = arithmetic.LOGIT_SCALE
_UNITS = 12  # units of work of a stage for each worker that are aimed at
# Not literals, since numba gives each integer literal a type of its own.
_ZERO, _COLUMNS = np.int64(0), np.int64(COLUMNS)
_HEAD_STAGE = np.int64(1)  # of the counters, when logits are computed after a pass
# What the inputs of a product are made from: a norm of the residual stream, the outputs of attention, or those of the
# gate. Numbers of one type, like those above.
_NORMED, _MIXED, _GATED = np.int64(0), np.int64(1), np.int64(2)


@subkernel
def _next_unit(counters, stage, unit, units, few, worker, workers):
    """The next unit of a stage for this worker, or `units` at the end. unit: the one before, or -1.

    With few rows, weights are read at the speed of memory, which is highest if each worker reads on without gaps.
    """
    if few:
        first = units * worker // workers
        following = max(unit + 1, first)
        return following if following < units * (worker + 1) // workers else units
    return taken(counters, stage)


@subkernel
def _units_of(panels, rows, workers):
    """How a product is divided into units, each one panel and a range of rows.

    Returns the ranges for each panel, and the rows of a range.
    """
    ranges = 1
    if panels < _UNITS * workers:
        ranges = min((rows + TILE_ROWS - 1) // TILE_ROWS, (_UNITS * workers + panels - 1) // panels)
    height = (rows + ranges - 1) // ranges
    height = (height + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    return (rows + height - 1) // height, height


@subkernel
def _product_stage(
    plain, space, first, rows, inner, weights, scale, bias, width, out, stage, worker, workers, adding
):  # fmt: skip
    """A linear layer of `rows` rows of inputs from `first` on, written to `out` or added to it.

    width: the number of columns of `out`.
    """
    not_inlined()
    stride, tile = space.inputs.shape[1], space.tile[worker]
    panels, whole = len(scale) // COLUMNS, (inner + QUAD - 1) // QUAD * QUAD
    ranges, height = _units_of(panels, rows, workers)
    few, units = rows <= FEW_ROWS, panels * ranges
    unit = _next_unit(space.counters, stage, -1, units, few, worker, workers)
    while unit < units:
        column, top = unit // ranges * COLUMNS, unit % ranges * height
        for m0 in range(top, min(top + height, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - m0)
            multiply(space.flat, (first + m0) * stride, stride, count, space.input_offset, first + m0, weights,
                     column * whole, whole // QUAD, tile, _ZERO, _COLUMNS, plain)  # fmt: skip
            for r in range(count):
                s = space.input_scale[first + m0 + r]
                t, c, row = u64(r * COLUMNS), u64(column), out[m0 + r]
                for j in range(u64(min(COLUMNS, width - column))):
                    y = f32(tile[t + j]) * s * scale[c + j] + bias[c + j]
                    if adding:
                        row[c + j] += y
                    else:
                        row[c + j] = y
        unit = _next_unit(space.counters, stage, unit, units, few, worker, workers)


@subkernel
def _up_stage(sizes, space, first, rows, weights, scale, bias, stage, worker, workers):
    """The first layer of an MLP with its gate, into the outputs."""
    not_inlined()
    stride, tile, out, gates = space.inputs.shape[1], space.tile[worker], space.outputs, space.gates[worker]
    panels, whole = len(scale) // COLUMNS, (sizes.hidden + QUAD - 1) // QUAD * QUAD
    ranges, height = _units_of(panels, rows, workers)
    gated, half = sizes.gated, u64(COLUMNS // 2)
    width = half if gated else u64(COLUMNS)
    few, units = rows <= FEW_ROWS, panels * ranges
    unit = _next_unit(space.counters, stage, -1, units, few, worker, workers)
    while unit < units:
        column, top = unit // ranges * COLUMNS, unit % ranges * height
        for m0 in range(top, min(top + height, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - m0)
            multiply(space.flat, (first + m0) * stride, stride, count, space.input_offset, first + m0, weights,
                     column * whole, whole // QUAD, tile, _ZERO, _COLUMNS, sizes.plain)  # fmt: skip
            for r in range(count):
                s = space.input_scale[first + m0 + r]
                t, c, row = u64(r * COLUMNS), u64(column), out[m0 + r]
                for j in range(u64(COLUMNS)):
                    gates[j] = f32(tile[t + j]) * s * scale[c + j] + bias[c + j]
                to = c >> u64(1) if gated else c
                for j in range(width):
                    g = gates[j]
                    near = min(max(g, -_GATE_REACH), _GATE_REACH)
                    u = near * (sizes.gate_first + sizes.gate_second * (near * near))
                    e = exp2(np.int32(np.rint(abs(u) * _LOGIT_SCALE)))
                    z = g * (f32(e if u < f32(0.0) else EXP2_ONE) / f32(np.int32(e + EXP2_ONE)))
                    row[to + j] = z * gates[half + j] if gated else z
        unit = _next_unit(space.counters, stage, unit, units, few, worker, workers)


@subkernel
def _inputs_stage(sizes, space, rows, source, few, worker, workers):
    """The inputs of the next product, complete when this returns; returns their first row.

    source: what they are made from. few: each worker makes all of them for itself, and nobody waits.
    """
    not_inlined()
    first, step = worker, workers
    base = np.int64(0)
    if few:
        first, step = np.int64(0), np.int64(1)
        base = len(space.x) + worker * FEW_ROWS
    x, outputs = space.x.ctypes.data, space.outputs.ctypes.data
    inputs, stride = space.inputs.ctypes.data, space.inputs.shape[1]
    count, most, offset, squares = sizes.hidden, f32(0.0), np.int32(0), np.int32(0)
    for m in range(first, rows, step):
        out = inputs + u64((base + m) * stride)
        root = f32(1.0)
        if source == _NORMED:
            most, offset, squares = to_integers(x + u64(4 * m * sizes.hidden), count, out)
            root = root_scale(most, squares, count, sizes.epsilon)
        elif source == _MIXED:
            count = sizes.heads * sizes.head_size
            most, offset, _ = to_integers(outputs + u64(4 * m * space.outputs.shape[1]), count, out)
        else:
            count, row = sizes.inner, space.row[worker]
            y = space.outputs[m]
            for i in range(u64(count)):
                row[i] = y[i]
            transform(row.ctypes.data, count, sizes.inner_block)
            most, offset, _ = to_integers(row.ctypes.data, count, out)
        space.input_scale[base + m] = most / _LARGEST * root
        space.input_offset[base + m] = offset
    if not few:
        wait_for_all(space.counters[:COUNTERS_APART], workers)
    return base


@kernel
def logits_of(sizes, head, head_scale, head_bias, space, rows, out, worker, workers):
    """Logits in units, int32 [rows, columns of the head].

    rows: of the inputs as `forward` leaves them, int64 [rows].
    """
    panels, tile = len(head_scale) // COLUMNS, space.tile[worker]
    whole, stride = (sizes.hidden + QUAD - 1) // QUAD * QUAD, space.inputs.shape[1]
    ranges, height = _units_of(panels, len(rows), workers)
    few, units = len(rows) <= FEW_ROWS, panels * ranges
    unit = _next_unit(space.counters, _HEAD_STAGE, -1, units, few, worker, workers)
    while unit < units:
        column, top = unit // ranges * COLUMNS, unit % ranges * height
        m0 = top
        end = min(top + height, len(rows))
        while m0 < end:
            count = 1  # rows that follow each other
            while count < TILE_ROWS and m0 + count < end and rows[m0 + count] == rows[m0] + count:
                count += 1
            first = rows[m0]
            multiply(space.flat, first * stride, stride, count, space.input_offset, first, head, column * whole,
                     whole // QUAD, tile, _ZERO, _COLUMNS, sizes.plain)  # fmt: skip
            for r in range(count):
                s = space.input_scale[first + r]
                t, c, row = u64(r * COLUMNS), u64(column), out[m0 + r]
                for j in range(u64(COLUMNS)):
                    y = f32(tile[t + j]) * s * head_scale[c + j] + head_bias[c + j]
                    row[c + j] = np.int32(np.rint(min(max(y * _LOGIT_SCALE, -_FAR), _FAR)))
            m0 += count
        unit = _next_unit(space.counters, _HEAD_STAGE, unit, units, few, worker, workers)


@subkernel
def _embed(sizes, weights, space, rows, worker, workers):
    """The residual stream before the first layer."""
    x = space.x
    for m in range(worker, len(rows.tokens), workers):
        token = rows.tokens[m]
        if token < 0:
            for i in range(u64(sizes.hidden)):
                x[m, i] = rows.vectors[-1 - token, i]
        else:
            scale, row = weights.embedding_scale[token], weights.embedding[token]
            for i in range(u64(sizes.hidden)):
                x[m, i] = f32(row[i]) * scale
        if not sizes.rotary:
            position = weights.position[rows.position[m]]
            for i in range(u64(sizes.hidden)):
                x[m, i] += position[i]


@kernel
def forward(sizes, weights, cache, space, rows, worker, workers):
    """One pass over new positions of some sequences. Leaves the inputs of the head in the workspace."""
    n, hidden, mixed, inner = len(rows.tokens), sizes.hidden, sizes.heads * sizes.head_size, sizes.inner
    x, outputs, plain, barrier = space.x, space.outputs, sizes.plain, space.counters[:COUNTERS_APART]
    few = n <= FEW_ROWS and workers > 1
    single = True  # whether no sequence has more than one row
    for count in rows.counts:
        single = single and count <= 1
    _embed(sizes, weights, space, rows, worker, workers)
    if few:  # otherwise, a worker norms the rows that it has embedded
        wait_for_all(barrier, workers)
    stage = np.int64(1)
    for layer in range(sizes.layers):
        first = _inputs_stage(sizes, space, n, _NORMED, few, worker, workers)
        _product_stage(plain, space, first, n, hidden, weights.qkv[layer], weights.qkv_scale[layer],
                       weights.qkv_bias[layer], outputs.shape[1], outputs, stage, worker, workers, False)  # fmt: skip
        wait_for_all(barrier, workers)
        if not single:
            head_stage(sizes, weights, cache, space, rows, layer, stage + 1, worker)
            wait_for_all(barrier, workers)
        attention_stage(sizes, weights, cache, space, rows, layer, stage + 2, worker, workers, single)
        wait_for_all(barrier, workers)
        first = _inputs_stage(sizes, space, n, _MIXED, few, worker, workers)
        _product_stage(plain, space, first, n, mixed, weights.mix[layer], weights.mix_scale[layer],
                       weights.mix_bias[layer], hidden, x, stage + 3, worker, workers, True)  # fmt: skip
        wait_for_all(barrier, workers)
        first = _inputs_stage(sizes, space, n, _NORMED, few, worker, workers)
        _up_stage(sizes, space, first, n, weights.up[layer], weights.up_scale[layer], weights.up_bias[layer],
                  stage + 4, worker, workers)  # fmt: skip
        wait_for_all(barrier, workers)
        first = _inputs_stage(sizes, space, n, _GATED, few, worker, workers)
        _product_stage(plain, space, first, n, inner, weights.down[layer], weights.down_scale[layer],
                       weights.down_bias[layer], hidden, x, stage + 5, worker, workers, True)  # fmt: skip
        wait_for_all(barrier, workers)
        stage += STAGES
    _inputs_stage(sizes, space, n, _NORMED, False, worker, workers)
