"""Attention over the cached keys and values; kernels for the CPU (spec/FORMAT.md, in the same order)."""

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.compiled import float_of, not_inlined, subkernel
from memcodec.lm.norms import largest, root_scale, to_integers
from memcodec.lm.product import COLUMNS, TILE_ROWS, multiply

f4 = np.float32
u8 = np.uint64  # for indices in inner loops (see `norms`)
_HIGHEST = f4(arithmetic.HIGHEST)
_WEIGHT = f4(arithmetic.WEIGHT)
_FAR = f4(arithmetic.FAR)
_ATTENTION_SHIFT = np.int32(arithmetic.ONE - arithmetic.ATTENTION_BITS)
_ATTENTION_END = np.int32((arithmetic.ATTENTION_BITS + 1) << 10)  # units below the largest from which on a weight is 0
_MASS = arithmetic.MASS
_ZERO, _COLUMNS = np.int64(0), np.int64(COLUMNS)  # not literals (see `kernels`)


# ---- queries, keys and values of new rows


@subkernel
def _rotate(sizes, values, start, gain, cosine, sine):
    """One head of a query or key, normed and rotated to its position, in place; returns a factor of its scale."""
    not_inlined()
    size = sizes.head_size
    scale = f4(1.0)
    if sizes.head_norm:
        scale = root_scale(values, start, size, sizes.epsilon)
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
    """Write a key into the panels that begin at `base`, where it is a column."""
    at = u8(base + position // COLUMNS * (COLUMNS * size) + position % COLUMNS * 2)
    first, step, two, one = u8(start), u8(2 * COLUMNS), u8(2), u8(1)
    for i in range(u8(size // 2)):
        keys[at + i * step] = np.int32(np.rint(values[first + two * i] * factor))
        keys[at + i * step + one] = np.int32(np.rint(values[first + two * i + one] * factor))


@subkernel
def _store_value(values, start, size, factor, store, base, position, positions):
    """Write a value into the panels that begin at `base`, where it is every second byte of the row of a pair."""
    at = base + position // 2 * 2 * COLUMNS + position % 2
    for d0 in range(0, size, COLUMNS):
        panel, first = u8(d0 * positions + at), u8(start + d0)
        for i in range(u8(min(COLUMNS, size - d0))):
            store[panel + u8(2) * i] = np.int32(np.rint(values[first + i] * factor))


@subkernel
def head_stage(sizes, weights, cache, space, rows, layer, worker, workers):
    """Heads of each row: queries as integers; keys and values into the cache."""
    not_inlined()
    size, heads, key_heads = sizes.head_size, sizes.heads, sizes.key_heads
    keys_size, values_size = cache.keys.shape[3], cache.values.shape[3]
    own = cache.key_scale.shape[3] - cache.shared
    keys, values, outputs = cache.flat_keys, cache.flat_values, space.outputs
    query_gain, key_gain = weights.query_gain[layer], weights.key_gain[layer]
    for m in range(worker, len(rows.slot), workers):
        y, slot, position = outputs[m], rows.slot[m], rows.position[m]
        own_position = position - cache.shared
        angle = position if sizes.rotary else 0
        cosine, sine, row = weights.cosine[angle], weights.sine[angle], space.queries[m]
        for head in range(heads):
            scale = _rotate(sizes, y, head * size, query_gain, cosine, sine)
            scale = to_integers(y, head * size, size, sizes.query_limit, row, head * size) * scale
            space.query_scale[m, head] = scale * sizes.attention_scale
        for group in range(key_heads):
            sequence = (layer * cache.keys.shape[1] + slot) * key_heads + group
            at = (heads + group) * size
            scale = _rotate(sizes, y, at, key_gain, cosine, sine)
            most = largest(y, at, size)
            _store_key(y, at, size, _WEIGHT / most, keys, sequence * keys_size, own_position)
            cache.key_scale[layer, slot, group, position] = most / _WEIGHT * scale
            at = (heads + key_heads + group) * size
            most = largest(y, at, size)
            _store_value(y, at, size, _WEIGHT / most, values, sequence * values_size, own_position, own)
            cache.value_scale[layer, slot, group, position] = most / _WEIGHT


# ---- attention


@subkernel
def _softmax(scores, start, count, factor, key_scale, value_scale, powers, portions, shares):
    """Softmax of a query's products with keys, times the scales of the values, as integers; returns their scale.

    scores: int32, of which the products are [start, start + count); portions: a buffer, float32; shares: int16, written
    to from `start` on.
    """
    not_inlined()
    most = np.int32(-(2**31))
    at, count = u8(start), u8(count)
    for n in range(count):
        y = min(max(f4(scores[at + n]) * factor * key_scale[n], -_FAR), _FAR)
        unit = np.int32(np.rint(y))
        scores[at + n] = unit
        most = max(most, unit)
    weights = portions.view(np.int32)
    for n in range(count):
        scores[at + n] = min(most - scores[at + n], _ATTENTION_END)
    for n in range(count):  # a loop of its own: table look-ups are not vectorized, the shifts below are
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
        top = max(top, weights[n])  # the bits of portions, none of which is negative
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
        shares[at + n] = (scores[at + n] + half) >> shift
    return f4(np.float64(c) * np.float64(1 << shift) / (np.float64(_HIGHEST) * np.float64(total)))


@subkernel
def attention_stage(sizes, powers, cache, space, rows, layer, worker, workers):
    """Attention into the outputs: of each sequence, the new positions attend to all keys and values so far.

    One key head of one sequence is a unit of work. Its queries are taken in blocks of up to TILE_ROWS rows.
    """
    not_inlined()
    size, repeat, positions = sizes.head_size, sizes.heads // sizes.key_heads, cache.key_scale.shape[3]
    width = (size + COLUMNS - 1) // COLUMNS * COLUMNS
    keys, values, shared = cache.flat_keys, cache.flat_values, cache.shared
    shared_keys, shared_values, fallback = cache.shared_keys, cache.shared_values, sizes.fallback
    queries, query_scale, outputs = space.queries, space.query_scale, space.outputs
    tile, scores, shares = space.tile[worker], space.scores[worker], space.shares[worker]
    query_block, scales, portions = space.query_block[worker], space.block_scale[worker], space.portions[worker]
    second = len(tile) // 2
    at_once = max(1, TILE_ROWS // repeat)
    first_row = np.int64(0)  # of the sequence
    for unit in range(len(rows.slots) * sizes.key_heads):
        sequence, group = unit // sizes.key_heads, unit % sizes.key_heads
        slot, start, count = rows.slots[sequence], rows.starts[sequence], rows.counts[sequence]
        if group == 0 and sequence > 0:
            first_row += rows.counts[sequence - 1]
        if unit % workers != worker:
            continue
        own_head = (layer * cache.keys.shape[1] + slot) * sizes.key_heads + group
        shared_head = layer * sizes.key_heads + group
        keys_start, values_start = own_head * cache.keys.shape[3], own_head * cache.values.shape[3]
        key_scale, value_scale = cache.key_scale[layer, slot, group], cache.value_scale[layer, slot, group]
        for b0 in range(0, count, at_once):
            new = min(at_once, count - b0)
            for i in range(new):
                row = queries[first_row + b0 + i]
                for e in range(repeat):
                    scales[i * repeat + e] = query_scale[first_row + b0 + i, group * repeat + e]
                first, to = u8(group * repeat * size), u8(i * repeat * size)
                for j in range(u8(repeat * size)):
                    query_block[to + j] = row[first + j]
            block = new * repeat  # rows of the block
            end = start + b0 + new - shared
            for panel in range(shared // COLUMNS):
                multiply(query_block, _ZERO, size, block, shared_keys, (shared_head * shared + panel * COLUMNS) * size,
                         size // 2, scores, panel * COLUMNS, positions, fallback)  # fmt: skip
            for panel in range((end + COLUMNS - 1) // COLUMNS):
                multiply(query_block, _ZERO, size, block, keys, keys_start + panel * COLUMNS * size, size // 2, scores,
                         shared + panel * COLUMNS, positions, fallback)  # fmt: skip
            pairs = (end + 1) // 2
            for r in range(block):
                visible = start + b0 + r // repeat + 1
                scales[r] = _softmax(scores, r * positions, visible, scales[r], key_scale, value_scale, powers,
                                     portions, shares)  # fmt: skip
                for n in range(visible, shared + 2 * pairs):
                    shares[r * positions + n] = 0
            for d0 in range(0, size, COLUMNS):
                multiply(shares, shared, positions, block, values, values_start + d0 * (positions - shared), pairs,
                         tile, _ZERO, _COLUMNS, fallback)  # fmt: skip
                if shared:
                    multiply(shares, _ZERO, positions, block, shared_values, (shared_head * width + d0) * shared,
                             shared // 2, tile, second, _COLUMNS, fallback)  # fmt: skip
                    for i in range(u8(block * COLUMNS)):
                        tile[i] += tile[u8(second) + i]
                for r in range(block):
                    y, scale = outputs[first_row + b0 + r // repeat], scales[r]
                    first, t = u8((group * repeat + r % repeat) * size + d0), u8(r * COLUMNS)
                    for j in range(u8(min(COLUMNS, size - d0))):
                        y[first + j] = f4(tile[t + j]) * scale
