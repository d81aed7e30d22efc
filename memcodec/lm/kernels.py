"""The exact LM on a CPU: fused kernels over all rows of a pass (spec/FORMAT.md, in the same order and with its names).

A pass takes new positions of several sequences at once. All workers of a team call `forward` together: each does its
share of a stage and waits for the others. In every function float32 stays float32 (numba widens nothing that is typed),
an operation is one IEEE operation, and sums are sums of integers.
"""

import math
from typing import NamedTuple

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.compiled import float_of, kernel, not_inlined, subkernel, wait_for_all
from memcodec.lm.product import COLUMNS, TILE_ROWS, multiply

f4 = np.float32
u8 = np.uint64  # of indices in inner loops: one that may be negative is looked at each time, and nothing is vectorized
_TINY = f4(arithmetic.TINY)
_HIGHEST = f4(arithmetic.HIGHEST)
_WEIGHT = f4(arithmetic.WEIGHT)
_FAR = f4(arithmetic.FAR)
_GATE_STEPS, _GATE_REACH = f4(arithmetic.GATE_STEPS), f4(arithmetic.GATE_REACH)
_GATE_MIDDLE = np.int32(arithmetic.GATE_STEPS * arithmetic.GATE_REACH)
_LOGIT_SCALE = arithmetic.LOGIT_SCALE
_ATTENTION_SHIFT = np.int32(arithmetic.ONE - arithmetic.ATTENTION_BITS)
_ATTENTION_END = np.int32((arithmetic.ATTENTION_BITS + 1) << 10)  # at so many units below the largest, a weight is 0
_MASS = arithmetic.MASS
_ZERO, _ONE, _COLUMNS = (
    np.int64(0),
    np.int64(1),
    np.int64(COLUMNS),
)  # of one type everywhere: a literal is a type of its own to numba


class Sizes(NamedTuple):
    """What a kernel must know of the architecture; flags are 0 or 1. slowly: see `multiply`."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    gated: int
    layer_norm: int
    head_norm: int
    rotary: int
    slowly: int
    epsilon: float
    attention_scale: np.float32
    input_limit: np.float32  # highest_input of `hidden` entries
    mixed_limit: np.float32  # of heads * head_size
    inner_limit: np.float32  # of `inner`
    query_limit: np.float32


class Weights(NamedTuple):
    """Weights in panels, int8 [layers, bytes], with a scale and a bias a column, float32 [layers, columns]."""

    embedding: np.ndarray  # int8 [vocabulary, hidden]
    embedding_scale: np.ndarray  # float32 [vocabulary]
    position: np.ndarray  # float32 [positions, hidden]; empty with rotary positions
    attention_gain: np.ndarray  # float32 [layers, hidden]; so are the next three
    attention_shift: np.ndarray
    mlp_gain: np.ndarray
    mlp_shift: np.ndarray
    query_gain: np.ndarray  # float32 [layers, head_size]
    key_gain: np.ndarray
    qkv: np.ndarray
    qkv_scale: np.ndarray
    qkv_bias: np.ndarray
    mix: np.ndarray
    mix_scale: np.ndarray
    mix_bias: np.ndarray
    up: np.ndarray  # gated: each panel has 16 columns of the gate and the same 16 of what it gates
    up_scale: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    down_scale: np.ndarray
    down_bias: np.ndarray
    gain: np.ndarray  # float32 [hidden], of the last norm
    shift: np.ndarray
    head: np.ndarray  # int8 [bytes]
    head_scale: np.ndarray  # float32 [columns]
    cosine: np.ndarray  # float32 [positions, head_size / 2]
    sine: np.ndarray
    gate: np.ndarray  # float32 [20481]
    powers: np.ndarray  # int32 [1024]


class Cache(NamedTuple):
    """Keys and values of each slot (a sequence), in panels: positions are columns of keys, and pairs of values.

    The first positions may be shared by all slots; each slot's own come after them. Scales are each slot's, of all.
    """

    keys: np.ndarray  # int8 [layers, slots, key_heads, bytes]
    flat_keys: np.ndarray  # the same as one row
    key_scale: np.ndarray  # float32 [layers, slots, key_heads, positions]
    values: np.ndarray
    flat_values: np.ndarray
    value_scale: np.ndarray
    shared: int  # positions, whole panels
    shared_keys: np.ndarray  # int8 [layers * key_heads * bytes]
    shared_values: np.ndarray


class Room(NamedTuple):
    """What the stages of a pass hand to each other, and rooms of each worker's own."""

    x: np.ndarray  # float32 [rows, hidden]
    inputs: np.ndarray  # int16 [rows, widest], of the next product
    flat: np.ndarray  # the same as one row
    input_scale: np.ndarray  # float32 [rows]
    outputs: np.ndarray  # float32 [rows, widest]
    queries: np.ndarray  # int16 [rows, heads * head_size]
    query_scale: np.ndarray  # float32 [rows, heads]
    tile: np.ndarray  # int32 [workers, ...]
    gates: np.ndarray  # float32 [workers, COLUMNS]
    steps: np.ndarray  # int32 [workers, COLUMNS]
    some: np.ndarray  # int16 [workers, ...], a few queries
    scales: np.ndarray  # float32 [workers, ...]
    scores: np.ndarray  # int32 [workers, ...]
    portions: np.ndarray  # float32 [workers, positions]
    shares: np.ndarray  # int16 [workers, ...]
    barrier: np.ndarray  # int64 [1]


@subkernel
def largest(values, start, count):
    """max |x|, at least TINY: of floats without their sign, the order is that of their bits."""
    bits = values.view(np.int32)
    most = np.int32(0)
    for i in range(u8(start), u8(start + count)):
        most = max(most, bits[i] & np.int32(0x7FFFFFFF))
    return max(float_of(most), _TINY)


@subkernel
def to_integers(values, start, count, limit, out, out_start):
    """round(x * (limit / max|x|)) into `out`; gives the scale, max|x| / limit."""
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
def _root_scale(values, start, count, epsilon):
    """1 / sqrt(mean square + epsilon), float32."""
    _, squares, unit = _moments(values, start, count)
    mean = np.float64(squares) / np.float64(count)
    return f4(1.0 / math.sqrt(mean * (unit * unit) + epsilon))


@subkernel
def norm_row(sizes, x, gain, shift, normed, out):
    """One row through a norm, as integers for the next product; gives their scale. normed: float32 [hidden], to use."""
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
    scale = _root_scale(x, _ZERO, count, sizes.epsilon)
    for i in range(count):
        normed[i] = x[i] * gain[i]
    return to_integers(normed, _ZERO, count, sizes.input_limit, out, _ZERO) * scale


@subkernel
def _norm_stage(sizes, x, normed, inputs, input_scale, gain, shift, worker, workers):
    for m in range(worker, len(x), workers):
        input_scale[m] = norm_row(sizes, x[m], gain, shift, normed[m], inputs[m])


@subkernel
def _integer_stage(outputs, inputs, input_scale, rows, count, limit, worker, workers):
    """Outputs of the stage before as inputs of the next product."""
    not_inlined()
    for m in range(worker, rows, workers):
        input_scale[m] = to_integers(outputs[m], _ZERO, count, limit, inputs[m], _ZERO)


@subkernel
def _share_of(panels, rows, worker, workers):
    """How a product is cut: units of a panel and some rows; gives the worker's units, parts a panel, rows a part."""
    parts = 1
    if panels < 4 * workers:
        parts = min((rows + TILE_ROWS - 1) // TILE_ROWS, (4 * workers + panels - 1) // panels)
    height = (rows + parts - 1) // parts
    height = (height + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    parts = (rows + height - 1) // height
    units = panels * parts
    return units * worker // workers, units * (worker + 1) // workers, parts, height


@subkernel
def _product_stage(
    slowly, flat, stride, input_scale, rows, inner, weights, scale, bias, width, out, adding, tile, worker, workers
):
    """Columns of a linear layer into `out`, or added to it. flat: the inputs; width: columns that `out` has."""
    not_inlined()
    panels = len(scale) // COLUMNS
    first, last, parts, height = _share_of(panels, rows, worker, workers)
    for unit in range(first, last):
        column = unit // parts * COLUMNS
        top = unit % parts * height
        for m0 in range(top, min(top + height, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - m0)
            multiply(
                flat, m0 * stride, stride, count, weights, column * inner, inner // 2, tile, _ZERO, _COLUMNS, slowly
            )
            for r in range(count):
                s = input_scale[m0 + r]
                t, c, row = u8(r * COLUMNS), u8(column), out[m0 + r]
                for j in range(u8(min(COLUMNS, width - column))):
                    y = f4(tile[t + j]) * s * scale[c + j] + bias[c + j]
                    if adding:
                        row[c + j] += y
                    else:
                        row[c + j] = y


@subkernel
def _up_stage(
    sizes, flat, stride, input_scale, rows, weights, scale, bias, table, out, tile, gates, steps, worker, workers
):  # fmt: skip
    """The first layer of an MLP, with its gate. gates, steps: float32 and int32 [COLUMNS], to use."""
    not_inlined()
    panels = len(scale) // COLUMNS
    inner = sizes.hidden
    first, last, parts, height = _share_of(panels, rows, worker, workers)
    gated, half = sizes.gated, u8(COLUMNS // 2)
    for unit in range(first, last):
        column = unit // parts * COLUMNS
        top = unit % parts * height
        for m0 in range(top, min(top + height, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - m0)
            multiply(flat, m0 * stride, stride, count, weights, column * inner, inner // 2, tile, _ZERO, _COLUMNS,
                     sizes.slowly)  # fmt: skip
            for r in range(count):
                s = input_scale[m0 + r]
                t, c, row = u8(r * COLUMNS), u8(column), out[m0 + r]
                for j in range(u8(COLUMNS)):  # what is gated by others needs no gate of its own, and is quicker with it
                    y = f4(tile[t + j]) * s * scale[c + j] + bias[c + j]
                    gates[j] = y
                    near = min(max(y, -_GATE_REACH), _GATE_REACH)
                    step = np.int32(np.rint(near * _GATE_STEPS)) + _GATE_MIDDLE
                    steps[j] = min(max(step, np.int32(0)), np.int32(2) * _GATE_MIDDLE)  # what is no number is nowhere
                if gated:
                    to = c >> u8(1)
                    for j in range(half):  # apart from the products: a look-up in a table is none for vectors
                        row[to + j] = table[u8(steps[j])]
                    for j in range(half):
                        row[to + j] = gates[j] * row[to + j] * gates[half + j]
                else:
                    for j in range(u8(COLUMNS)):
                        row[c + j] = table[u8(steps[j])]
                    for j in range(u8(COLUMNS)):
                        row[c + j] = gates[j] * row[c + j]


@kernel
def logits_of(sizes, head, head_scale, flat, stride, rows, input_scale, tiles, out, worker, workers):
    """Logits in units, int32 [rows, columns of the head], of rows as `forward` leaves them."""
    panels, inner, tile = len(head_scale) // COLUMNS, sizes.hidden, tiles[worker]
    first, last, parts, height = _share_of(panels, rows, worker, workers)
    for unit in range(first, last):
        column = unit // parts * COLUMNS
        top = unit % parts * height
        for m0 in range(top, min(top + height, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - m0)
            multiply(flat, m0 * stride, stride, count, head, column * inner, inner // 2, tile, _ZERO, _COLUMNS,
                     sizes.slowly)  # fmt: skip
            for r in range(count):
                s = input_scale[m0 + r]
                t, c, row = u8(r * COLUMNS), u8(column), out[m0 + r]
                for j in range(u8(COLUMNS)):
                    y = f4(tile[t + j]) * s * head_scale[c + j]
                    row[c + j] = np.int32(np.rint(min(max(y * _LOGIT_SCALE, -_FAR), _FAR)))


@subkernel
def _turned(sizes, values, start, gain, cosine, sine):
    """One head of a query or key, normed and turned to its position, in place; gives a factor of its scale."""
    not_inlined()
    size = sizes.head_size
    scale = f4(1.0)
    if sizes.head_norm:
        scale = _root_scale(values, start, size, sizes.epsilon)
        for i in range(u8(size)):
            values[u8(start) + i] = values[u8(start) + i] * gain[i]
    if sizes.rotary:
        first, second = u8(start), u8(start + size // 2)
        for i in range(u8(size // 2)):
            a, b = values[first + i], values[second + i]
            values[first + i] = a * cosine[i] - b * sine[i]
            values[second + i] = b * cosine[i] + a * sine[i]
    return scale


@subkernel
def _store_key(values, start, size, factor, keys, base, position):
    """Into the panels that begin at `base`: a key is a column."""
    at = u8(base + position // COLUMNS * (COLUMNS * size) + position % COLUMNS * 2)
    first, step, two, one = u8(start), u8(2 * COLUMNS), u8(2), u8(1)
    for i in range(u8(size // 2)):
        keys[at + i * step] = np.int32(np.rint(values[first + two * i] * factor))
        keys[at + i * step + one] = np.int32(np.rint(values[first + two * i + one] * factor))


@subkernel
def _store_value(values, start, size, factor, store, base, position, positions):
    """Into the panels that begin at `base`: a value is every other byte of a pair's row."""
    at = base + position // 2 * 2 * COLUMNS + position % 2
    for d0 in range(0, size, COLUMNS):
        panel, first = u8(d0 * positions + at), u8(start + d0)
        for i in range(u8(min(COLUMNS, size - d0))):
            store[panel + u8(2) * i] = np.int32(np.rint(values[first + i] * factor))


@subkernel
def _head_stage(
    sizes, outputs, query_gain, key_gain, cosines, sines, cache, layer, row_slot, row_position, queries, query_scale,
    worker, workers,
):  # fmt: skip
    """Heads of each row: queries as integers, keys and values into the cache."""
    not_inlined()
    size, heads, key_heads = sizes.head_size, sizes.heads, sizes.key_heads
    keys_size, values_size = cache.keys.shape[3], cache.values.shape[3]
    own = cache.key_scale.shape[3] - cache.shared
    keys, values = cache.flat_keys, cache.flat_values
    for m in range(worker, len(outputs), workers):
        y, slot, position = outputs[m], row_slot[m], row_position[m]
        here = position - cache.shared
        place = position if sizes.rotary else 0
        cosine, sine, row = cosines[place], sines[place], queries[m]
        for head in range(heads):
            scale = _turned(sizes, y, head * size, query_gain, cosine, sine)
            scale = to_integers(y, head * size, size, sizes.query_limit, row, head * size) * scale
            query_scale[m, head] = scale * sizes.attention_scale
        for group in range(key_heads):
            sequence = (layer * cache.keys.shape[1] + slot) * key_heads + group
            at = (heads + group) * size
            scale = _turned(sizes, y, at, key_gain, cosine, sine)
            most = largest(y, at, size)
            _store_key(y, at, size, _WEIGHT / most, keys, sequence * keys_size, here)
            cache.key_scale[layer, slot, group, position] = most / _WEIGHT * scale
            at = (heads + key_heads + group) * size
            most = largest(y, at, size)
            _store_value(y, at, size, _WEIGHT / most, values, sequence * values_size, here, own)
            cache.value_scale[layer, slot, group, position] = most / _WEIGHT


@subkernel
def _share_out(scores, start, count, factor, key_scale, value_scale, powers, portions, shares, shares_start):
    """Softmax of one query's products with keys, times the values' scales, as integers; gives the scale of their sum.

    scores: int32, the products from `start` on; portions: float32, to use; shares: int16, where they go.
    """
    not_inlined()
    most = np.int32(-(2**31))
    at, here, count = u8(start), u8(shares_start), u8(count)
    for n in range(count):
        y = min(max(f4(scores[at + n]) * factor * key_scale[n], -_FAR), _FAR)
        unit = np.int32(np.rint(y))
        scores[at + n] = unit
        most = max(most, unit)
    weights = portions.view(np.int32)
    for n in range(count):
        scores[at + n] = min(most - scores[at + n], _ATTENTION_END)
    for n in range(count):  # apart from the shifts: a look-up in a table is none for vectors
        weights[n] = powers[u8(scores[at + n] & np.int32(1023))]
    total = np.int64(0)
    for n in range(count):
        weight = weights[n] >> (_ATTENTION_SHIFT + (scores[at + n] >> np.int32(10)))
        weights[n] = weight
        total += np.int64(weight)
    for n in range(count):
        portions[n] = f4(weights[n]) * value_scale[n]
    top = np.int32(0)
    for n in range(count):
        top = max(top, weights[n])  # the bits of portions, which are not negative
    c = float_of(top)
    factor = _HIGHEST / c
    mass = np.int32(0)
    for n in range(count):
        share = np.int32(np.rint(portions[n] * factor))
        scores[at + n] = share
        mass += share
    shift = np.int32(0)
    while mass >> shift > _MASS:
        shift += np.int32(1)
    half = np.int32(1) << shift >> np.int32(1)
    for n in range(count):
        shares[here + n] = (scores[at + n] + half) >> shift
    return f4(np.float64(c) * np.float64(1 << shift) / (np.float64(_HIGHEST) * np.float64(total)))


@subkernel
def _attend(
    sizes, outputs, queries, query_scale, powers, keys, keys_start, key_scale, values, values_start, value_scale,
    shared, shared_keys, shared_values, shared_at, some, scales, scores, portions, shares, tile, m0, start, count,
    group,
):  # fmt: skip
    """What the queries of one head of keys make of all keys and values so far, at new positions of one sequence.

    shared: positions that all sequences have, whose keys and values are those of head number `shared_at`.
    """
    not_inlined()
    size, repeat, positions = sizes.head_size, sizes.heads // sizes.key_heads, key_scale.shape[0]
    width = (size + COLUMNS - 1) // COLUMNS * COLUMNS
    second = len(tile) // 2
    at_once = max(1, TILE_ROWS // repeat)
    for b0 in range(0, count, at_once):
        block = min(at_once, count - b0)
        for i in range(block):
            row = queries[m0 + b0 + i]
            for e in range(repeat):
                scales[i * repeat + e] = query_scale[m0 + b0 + i, group * repeat + e]
            first, to = u8(group * repeat * size), u8(i * repeat * size)
            for j in range(u8(repeat * size)):
                some[to + j] = row[first + j]
        rows = block * repeat
        seen = start + b0 + block - shared
        for panel in range(shared // COLUMNS):
            multiply(some, _ZERO, size, rows, shared_keys, (shared_at * shared + panel * COLUMNS) * size, size // 2,
                     scores, panel * COLUMNS, positions, sizes.slowly)  # fmt: skip
        for panel in range((seen + COLUMNS - 1) // COLUMNS):
            multiply(some, _ZERO, size, rows, keys, keys_start + panel * COLUMNS * size, size // 2, scores,
                     shared + panel * COLUMNS, positions, sizes.slowly)  # fmt: skip
        pairs = (seen + 1) // 2
        for row in range(rows):
            own = start + b0 + row // repeat + 1
            scales[row] = _share_out(scores, row * positions, own, scales[row], key_scale, value_scale, powers,
                                     portions, shares, row * positions)  # fmt: skip
            for n in range(own, shared + 2 * pairs):
                shares[row * positions + n] = 0
        for d0 in range(0, size, COLUMNS):
            multiply(shares, shared, positions, rows, values, values_start + d0 * (positions - shared), pairs, tile,
                     _ZERO, _COLUMNS, sizes.slowly)  # fmt: skip
            if shared:
                multiply(shares, _ZERO, positions, rows, shared_values, (shared_at * width + d0) * shared, shared // 2,
                         tile, second, _COLUMNS, sizes.slowly)  # fmt: skip
                for i in range(u8(rows * COLUMNS)):
                    tile[i] += tile[u8(second) + i]
            for row in range(rows):
                y, scale = outputs[m0 + b0 + row // repeat], scales[row]
                first, t = u8((group * repeat + row % repeat) * size + d0), u8(row * COLUMNS)
                for j in range(u8(min(COLUMNS, size - d0))):
                    y[first + j] = f4(tile[t + j]) * scale


@kernel
def forward(
    sizes, weights, cache, room, tokens, vectors, row_slot, row_position, slots, starts, counts, worker, workers
):  # fmt: skip
    """One pass over new positions of some sequences, row after row; leaves inputs of the head in the room.

    tokens: int64 [rows]; -1 - i where the row is vectors[i], float32 [n, hidden], instead of a token; row_slot,
    row_position: int64 [rows]; slots, starts, counts: of each sequence, int64; rows are those of the first sequence,
    then of the second, and so on.
    """
    rows = len(tokens)
    x, inputs, input_scale, outputs = room.x[:rows], room.inputs[:rows], room.input_scale[:rows], room.outputs[:rows]
    queries, query_scale = room.queries[:rows], room.query_scale[:rows]
    flat, stride, tile, barrier = room.flat, inputs.shape[1], room.tile[worker], room.barrier
    some, scales, scores = room.some[worker], room.scales[worker], room.scores[worker]
    portions, shares = room.portions[worker], room.shares[worker]
    hidden, mixed, slowly = sizes.hidden, sizes.heads * sizes.head_size, sizes.slowly
    keys_size, values_size = cache.keys.shape[3], cache.values.shape[3]
    for m in range(worker, rows, workers):
        if tokens[m] < 0:
            x[m] = vectors[-1 - tokens[m]]
        else:
            scale, row = weights.embedding_scale[tokens[m]], weights.embedding[tokens[m]]
            for i in range(u8(hidden)):
                x[m, i] = f4(row[i]) * scale
        if not sizes.rotary:
            place = weights.position[row_position[m]]
            for i in range(u8(hidden)):
                x[m, i] += place[i]
    passed = np.int64(0)
    for layer in range(sizes.layers):
        # A worker embeds and norms the same rows, so there is nothing to wait for before the first norm.
        _norm_stage(sizes, x, outputs, inputs, input_scale, weights.attention_gain[layer],
                    weights.attention_shift[layer], worker, workers)  # fmt: skip
        wait_for_all(barrier, passed, workers)
        _product_stage(slowly, flat, stride, input_scale, rows, hidden, weights.qkv[layer], weights.qkv_scale[layer],
                       weights.qkv_bias[layer], outputs.shape[1], outputs, _ZERO, tile, worker, workers)  # fmt: skip
        wait_for_all(barrier, passed + 1, workers)
        _head_stage(sizes, outputs, weights.query_gain[layer], weights.key_gain[layer], weights.cosine, weights.sine,
                    cache, layer, row_slot, row_position, queries, query_scale, worker, workers)  # fmt: skip
        wait_for_all(barrier, passed + 2, workers)
        m0 = np.int64(0)
        for sequence in range(len(slots)):
            slot = slots[sequence]
            for group in range(sizes.key_heads):
                if (sequence * sizes.key_heads + group) % workers == worker:
                    at = (layer * cache.keys.shape[1] + slot) * sizes.key_heads + group
                    _attend(sizes, outputs, queries, query_scale, weights.powers, cache.flat_keys, at * keys_size,
                            cache.key_scale[layer, slot, group], cache.flat_values, at * values_size,
                            cache.value_scale[layer, slot, group], cache.shared, cache.shared_keys,
                            cache.shared_values, layer * sizes.key_heads + group, some, scales, scores, portions,
                            shares, tile, m0, starts[sequence], counts[sequence], group)  # fmt: skip
            m0 += counts[sequence]
        wait_for_all(barrier, passed + 3, workers)
        _integer_stage(outputs, inputs, input_scale, rows, mixed, sizes.mixed_limit, worker, workers)
        wait_for_all(barrier, passed + 4, workers)
        _product_stage(slowly, flat, stride, input_scale, rows, mixed, weights.mix[layer], weights.mix_scale[layer],
                       weights.mix_bias[layer], hidden, x, _ONE, tile, worker, workers)  # fmt: skip
        wait_for_all(barrier, passed + 5, workers)
        _norm_stage(sizes, x, outputs, inputs, input_scale, weights.mlp_gain[layer], weights.mlp_shift[layer], worker,
                    workers)  # fmt: skip
        wait_for_all(barrier, passed + 6, workers)
        _up_stage(sizes, flat, stride, input_scale, rows, weights.up[layer], weights.up_scale[layer],
                  weights.up_bias[layer], weights.gate, outputs, tile, room.gates[worker], room.steps[worker], worker,
                  workers)  # fmt: skip
        wait_for_all(barrier, passed + 7, workers)
        _integer_stage(outputs, inputs, input_scale, rows, sizes.inner, sizes.inner_limit, worker, workers)
        wait_for_all(barrier, passed + 8, workers)
        _product_stage(slowly, flat, stride, input_scale, rows, sizes.inner, weights.down[layer],
                       weights.down_scale[layer], weights.down_bias[layer], hidden, x, _ONE, tile, worker,
                       workers)  # fmt: skip
        wait_for_all(barrier, passed + 9, workers)
        passed += 10
    _norm_stage(sizes, x, outputs, inputs, input_scale, weights.gain, weights.shift, worker, workers)
    wait_for_all(barrier, passed, workers)
