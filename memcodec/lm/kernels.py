"""The exact LM on a CPU: fused kernels over all rows of a pass (spec/FORMAT.md, in the same order and with its names).

A pass takes new positions of several sequences at the same time. All workers of a team call `forward` together: each
does its share of a stage and waits for the others at a barrier. No float32 becomes a float64, because numba keeps typed
float32 as it is; every operation is one IEEE operation, and sums are sums of integers. The arguments are described in
`layout`.
"""

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.attention import attention_stage, head_stage
from memcodec.lm.compiled import kernel, not_inlined, subkernel, wait_for_all
from memcodec.lm.norms import integer_stage, norm_stage
from memcodec.lm.product import COLUMNS, TILE_ROWS, multiply

f4 = np.float32
u8 = np.uint64  # for indices in inner loops (see `norms`)
_FAR = f4(arithmetic.FAR)
_GATE_STEPS, _GATE_REACH = f4(arithmetic.GATE_STEPS), f4(arithmetic.GATE_REACH)
_GATE_MIDDLE = np.int32(arithmetic.GATE_STEPS * arithmetic.GATE_REACH)
_LOGIT_SCALE = arithmetic.LOGIT_SCALE
# Not literals, since numba gives each integer literal a type of its own.
_ZERO, _ONE, _COLUMNS = np.int64(0), np.int64(1), np.int64(COLUMNS)


@subkernel
def _share_of(panels, rows, worker, workers):
    """How a product is divided into units, each one panel and a range of rows.

    Returns the worker's first unit and the end of its units, the ranges for each panel, and the rows of a range.
    """
    ranges = 1
    if panels < 4 * workers:
        ranges = min((rows + TILE_ROWS - 1) // TILE_ROWS, (4 * workers + panels - 1) // panels)
    height = (rows + ranges - 1) // ranges
    height = (height + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    ranges = (rows + height - 1) // height
    units = panels * ranges
    return units * worker // workers, units * (worker + 1) // workers, ranges, height


@subkernel
def _product_stage(
    fallback, space, rows, inner, weights, scale, bias, width, out, adding, worker, workers
):  # fmt: skip
    """The columns of a linear layer, written to `out` or added to it. width: the number of columns of `out`."""
    not_inlined()
    flat, stride, tile = space.flat, space.inputs.shape[1], space.tile[worker]
    panels = len(scale) // COLUMNS
    first, last, ranges, height = _share_of(panels, rows, worker, workers)
    for unit in range(first, last):
        column = unit // ranges * COLUMNS
        top = unit % ranges * height
        for m0 in range(top, min(top + height, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - m0)
            multiply(
                flat, m0 * stride, stride, count, weights, column * inner, inner // 2, tile, _ZERO, _COLUMNS, fallback
            )
            for r in range(count):
                s = space.input_scale[m0 + r]
                t, c, row = u8(r * COLUMNS), u8(column), out[m0 + r]
                for j in range(u8(min(COLUMNS, width - column))):
                    y = f4(tile[t + j]) * s * scale[c + j] + bias[c + j]
                    if adding:
                        row[c + j] += y
                    else:
                        row[c + j] = y


@subkernel
def _up_stage(sizes, space, rows, weights, scale, bias, table, worker, workers):
    """The first layer of an MLP with its gate, into the outputs. table: the gate, float32 [20481]."""
    not_inlined()
    flat, stride, tile, out = space.flat, space.inputs.shape[1], space.tile[worker], space.outputs
    gates, steps = space.gates[worker], space.steps[worker]
    panels = len(scale) // COLUMNS
    inner = sizes.hidden
    first, last, ranges, height = _share_of(panels, rows, worker, workers)
    gated, half = sizes.gated, u8(COLUMNS // 2)
    for unit in range(first, last):
        column = unit // ranges * COLUMNS
        top = unit % ranges * height
        for m0 in range(top, min(top + height, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - m0)
            multiply(flat, m0 * stride, stride, count, weights, column * inner, inner // 2, tile, _ZERO, _COLUMNS,
                     sizes.fallback)  # fmt: skip
            for r in range(count):
                s = space.input_scale[m0 + r]
                t, c, row = u8(r * COLUMNS), u8(column), out[m0 + r]
                for j in range(u8(COLUMNS)):  # if gated, half of the steps are not needed, but the loop is faster
                    y = f4(tile[t + j]) * s * scale[c + j] + bias[c + j]
                    gates[j] = y
                    near = min(max(y, -_GATE_REACH), _GATE_REACH)
                    step = np.int32(np.rint(near * _GATE_STEPS)) + _GATE_MIDDLE
                    # A NaN would become an undefined index of the table, so the index is clamped too.
                    steps[j] = min(max(step, np.int32(0)), np.int32(2) * _GATE_MIDDLE)
                if gated:
                    to = c >> u8(1)
                    for j in range(half):  # a loop of its own: table look-ups are not vectorized, products are
                        row[to + j] = table[u8(steps[j])]
                    for j in range(half):
                        row[to + j] = gates[j] * row[to + j] * gates[half + j]
                else:
                    for j in range(u8(COLUMNS)):
                        row[c + j] = table[u8(steps[j])]
                    for j in range(u8(COLUMNS)):
                        row[c + j] = gates[j] * row[c + j]


@kernel
def logits_of(sizes, head, head_scale, flat, stride, input_scale, tiles, out, worker, workers):
    """Logits in units, int32 [rows, columns of the head], of rows as `forward` leaves them."""
    panels, inner, tile, rows = len(head_scale) // COLUMNS, sizes.hidden, tiles[worker], len(input_scale)
    first, last, ranges, height = _share_of(panels, rows, worker, workers)
    for unit in range(first, last):
        column = unit // ranges * COLUMNS
        top = unit % ranges * height
        for m0 in range(top, min(top + height, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - m0)
            multiply(flat, m0 * stride, stride, count, head, column * inner, inner // 2, tile, _ZERO, _COLUMNS,
                     sizes.fallback)  # fmt: skip
            for r in range(count):
                s = input_scale[m0 + r]
                t, c, row = u8(r * COLUMNS), u8(column), out[m0 + r]
                for j in range(u8(COLUMNS)):
                    y = f4(tile[t + j]) * s * head_scale[c + j]
                    row[c + j] = np.int32(np.rint(min(max(y * _LOGIT_SCALE, -_FAR), _FAR)))


@kernel
def forward(sizes, weights, cache, space, rows, worker, workers):
    """One pass over new positions of some sequences. Leaves the inputs of the head in the workspace."""
    n, hidden, mixed, inner = len(rows.tokens), sizes.hidden, sizes.heads * sizes.head_size, sizes.inner
    x, outputs, barrier, fallback = space.x, space.outputs, space.barrier, sizes.fallback
    for m in range(worker, n, workers):
        token = rows.tokens[m]
        if token < 0:
            x[m] = rows.vectors[-1 - token]
        else:
            scale, row = weights.embedding_scale[token], weights.embedding[token]
            for i in range(u8(hidden)):
                x[m, i] = f4(row[i]) * scale
        if not sizes.rotary:
            position = weights.position[rows.position[m]]
            for i in range(u8(hidden)):
                x[m, i] += position[i]
    waits = np.int64(0)
    for layer in range(sizes.layers):
        # A worker embeds and norms the same rows, so the first norm need not wait.
        norm_stage(sizes, space, n, weights.attention_gain[layer], weights.attention_shift[layer], worker, workers)
        wait_for_all(barrier, waits, workers)
        _product_stage(fallback, space, n, hidden, weights.qkv[layer], weights.qkv_scale[layer],
                       weights.qkv_bias[layer], outputs.shape[1], outputs, _ZERO, worker, workers)  # fmt: skip
        wait_for_all(barrier, waits + 1, workers)
        head_stage(sizes, weights, cache, space, rows, layer, worker, workers)
        wait_for_all(barrier, waits + 2, workers)
        attention_stage(sizes, weights.powers, cache, space, rows, layer, worker, workers)
        wait_for_all(barrier, waits + 3, workers)
        integer_stage(space, n, mixed, sizes.mixed_limit, worker, workers)
        wait_for_all(barrier, waits + 4, workers)
        _product_stage(fallback, space, n, mixed, weights.mix[layer], weights.mix_scale[layer],
                       weights.mix_bias[layer], hidden, x, _ONE, worker, workers)  # fmt: skip
        wait_for_all(barrier, waits + 5, workers)
        norm_stage(sizes, space, n, weights.mlp_gain[layer], weights.mlp_shift[layer], worker, workers)
        wait_for_all(barrier, waits + 6, workers)
        _up_stage(sizes, space, n, weights.up[layer], weights.up_scale[layer], weights.up_bias[layer], weights.gate,
                  worker, workers)  # fmt: skip
        wait_for_all(barrier, waits + 7, workers)
        integer_stage(space, n, inner, sizes.inner_limit, worker, workers)
        wait_for_all(barrier, waits + 8, workers)
        _product_stage(fallback, space, n, inner, weights.down[layer], weights.down_scale[layer],
                       weights.down_bias[layer], hidden, x, _ONE, worker, workers)  # fmt: skip
        wait_for_all(barrier, waits + 9, workers)
        waits += 10
    norm_stage(sizes, space, n, weights.gain, weights.shift, worker, workers)
    wait_for_all(barrier, waits, workers)
