"""Attention over the cached keys and values; kernels for the CPU (spec/FORMAT.md, in the same order)."""

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.compiled import fetch, float_at, float_of, not_inlined, put_float, subkernel, taken
from memcodec.lm.exp2 import exp2
from memcodec.lm.instructions import COLUMNS, PANEL_ROW, QUAD
from memcodec.lm.product import TILE_ROWS, multiply, multiply_shares
from memcodec.lm.quantize import root_scale, rotary, to_integers, transform

f32 = np.float32
u64 = np.uint64  # for indices in inner loops (see `kernels`)
_LARGEST, _SHARE = f32(arithmetic.LARGEST), f32(arithmetic.SHARE)
_FAR, _INFINITY = f32(arithmetic.FAR), f32(np.inf)
_ZEROS = np.uint32(0x80808080)  # added to the bytes of a quad without a carry, 128 each
_SUMMED = 1024  # weights whose sum fits 32 bits
_UNITS = 4  # units of work for each worker that are aimed at, where rows can be taken separately
_ZERO, _COLUMNS = np.int64(0), np.int64(COLUMNS)  # not literals, since numba gives each literal a type of its own


# ---- queries, keys and values of new rows


@subkernel
def _positioned(sizes, head, gain, cosine, sine, integers):
    """A head of a query or key, in place: normed, turned to its position, and transformed; returns a factor of its
    scale. Addresses of float32; integers: of a buffer of bytes."""
    size = sizes.head_size
    scale = f32(1.0)
    if sizes.head_norm:
        most, _, squares = to_integers(head, size, integers)
        scale = root_scale(most, squares, size, sizes.epsilon)
        for i in range(size):
            at = np.uint64(4 * i)
            put_float(head + at, float_at(head + at) * float_at(gain + at))
    if sizes.rotary:
        rotary(head, size, cosine, sine)
    transform(head, size, sizes.head_block)
    return scale


@subkernel
def _store_key(integers, size, keys, base, position):
    """Write a key into the panels that begin at `base`, where it is a column."""
    whole = (size + QUAD - 1) // QUAD * QUAD
    at = u64(base + position // COLUMNS * (COLUMNS * whole) + position % COLUMNS * QUAD) // u64(QUAD)
    quads, stored = integers.view(np.uint32), keys.view(np.uint32)
    for i in range(u64(whole // QUAD)):
        stored[at + i * u64(COLUMNS)] = quads[i] ^ _ZEROS


@subkernel
def _store_value(integers, size, store, base, position, positions):
    """Write a value into the panels that begin at `base`, where it is every fourth byte of the row of a quad."""
    at = base + position // QUAD * PANEL_ROW + position % QUAD
    for d0 in range(0, size, COLUMNS):
        panel = u64(d0 * positions + at)
        for i in range(u64(min(COLUMNS, size - d0))):
            store[panel + u64(QUAD) * i] = integers[u64(d0) + i]


@subkernel
def _head_rows(sizes, weights, cache, space, rows, layer, group, m, integers):
    """The queries of a row that use one key head, as integers; its key and value, into the cache."""
    size, repeat = sizes.head_size, sizes.heads // sizes.key_heads
    whole = (size + QUAD - 1) // QUAD * QUAD
    slot, position = rows.slot[m], rows.position[m]
    own = cache.key_scale.shape[3] - cache.shared
    angle = np.uint64(2 * size * (position if sizes.rotary else 0))  # bytes
    cosine, sine = weights.cosine.ctypes.data + angle, weights.sine.ctypes.data + angle
    y, head_bytes = space.outputs.ctypes.data + np.uint64(4 * m * space.outputs.shape[1]), np.uint64(4 * size)
    buffer, gains = integers.ctypes.data, np.uint64(4 * layer * size)
    for e in range(repeat):
        head = y + head_bytes * np.uint64(group * repeat + e)
        factor = _positioned(sizes, head, weights.query_gain.ctypes.data + gains, cosine, sine, buffer)
        at = (group * len(space.x) + m) * repeat + e
        most, offset, _ = to_integers(head, size, space.queries.ctypes.data + np.uint64(at * whole))
        space.query_scale[at] = most / _LARGEST * factor * sizes.attention_scale
        space.query_offset[at] = offset
    slot_head = (layer * cache.keys.shape[1] + slot) * sizes.key_heads + group
    head = y + head_bytes * np.uint64(sizes.heads + group)
    factor = _positioned(sizes, head, weights.key_gain.ctypes.data + gains, cosine, sine, buffer)
    most, _, _ = to_integers(head, size, buffer)
    cache.key_scale[layer, slot, group, position] = most / _LARGEST * factor
    _store_key(integers, size, cache.flat_keys, slot_head * cache.keys.shape[3], position - cache.shared)
    most, _, _ = to_integers(head + head_bytes * np.uint64(sizes.key_heads), size, buffer)
    cache.value_scale[layer, slot, group, position] = most / _LARGEST
    values_at = slot_head * cache.values.shape[3]
    _store_value(integers, size, cache.flat_values, values_at, position - cache.shared, own)
    sound = most < _INFINITY and cache.key_scale[layer, slot, group, position] < _INFINITY
    for e in range(repeat):
        sound = sound and space.query_scale[(group * len(space.x) + m) * repeat + e] < _INFINITY
    if not sound:  # softmax could hide it, so that it would not reach the last scale, which is checked
        space.x[m, 0] = f32(np.nan)


@subkernel
def head_stage(sizes, weights, cache, space, rows, layer, stage, worker):
    """Heads of each row: queries as integers; keys and values into the cache."""
    not_inlined()
    integers = space.shares[worker].view(np.int8)
    units = len(rows.slot) * sizes.key_heads
    unit = taken(space.counters, stage)
    while unit < units:
        m, group = unit // sizes.key_heads, unit % sizes.key_heads
        _head_rows(sizes, weights, cache, space, rows, layer, group, m, integers)
        unit = taken(space.counters, stage)


# ---- attention


@subkernel
def _softmax(scores, at, count, factor, key_scale, value_scale, portions, shares):
    """Attention weights of `count` positions, as integers; returns the scale of the sum of their products with values.

    scores: int32, products of the query with the keys, from `at` on; portions: a buffer; shares: uint8, the result,
    from `at` on.
    """
    not_inlined()
    at = u64(at)
    count = u64(count)
    most = np.int32(-(2**31))
    for n in range(count):
        y = f32(scores[at + n]) * factor * key_scale[n]
        unit = np.int32(np.rint(min(max(y, -_FAR), _FAR)))
        scores[at + n] = unit
        most = max(most, unit)
    bits = portions.view(np.int32)
    total, top = np.int64(0), np.int32(0)
    for first in range(u64(0), count, u64(_SUMMED)):
        part = np.int32(0)
        for n in range(first, min(count, first + u64(_SUMMED))):
            weight = exp2(np.int32(most - scores[at + n]))
            part = np.int32(part + weight)
            portions[n] = f32(weight) * value_scale[n]
        total += np.int64(part)
    for n in range(count):
        top = max(top, bits[n])  # the bits of portions, none of which is negative
    c = float_of(top)
    factor = _SHARE / c
    for n in range(count):
        shares[at + n] = np.uint8(np.int32(np.rint(portions[n] * factor)))
    return f32(np.float64(c) / (np.float64(_SHARE) * np.float64(total)))


@subkernel
def _alike(slots, row, end):
    """How many rows from `row` on, and before `end`, are of the same sequence. slots: int64 [rows]."""
    count = 1
    while row + count < end and slots[row + count] == slots[row]:
        count += 1
    return count


@subkernel
def _attend(sizes, cache, space, rows, layer, group, first, count, worker):
    """Attention of `count` rows from `first` on, over the keys and values of one key head, into the outputs.

    The rows may be of several sequences; those of one follow each other.
    """
    size, repeat, positions = sizes.head_size, sizes.heads // sizes.key_heads, cache.key_scale.shape[3]
    whole = (size + QUAD - 1) // QUAD * QUAD
    width = (size + COLUMNS - 1) // COLUMNS * COLUMNS
    shared, plain = cache.shared, sizes.plain
    scores, shares, portions = space.scores[worker], space.shares[worker], space.portions[worker]
    tile, scales = space.tile[worker], space.share_scale[worker]
    second = len(tile) // 2
    query = (group * len(space.x) + first) * repeat
    shared_head = layer * sizes.key_heads + group
    for panel in range(shared // COLUMNS):
        multiply(space.queries, query * whole, whole, count * repeat, space.query_offset, query, cache.shared_keys,
                 (shared_head * shared + panel * COLUMNS) * whole, whole // QUAD, scores, panel * COLUMNS, positions,
                 plain)  # fmt: skip
    at = 0
    while at < count:  # the rows of one sequence after those of another
        slot, alike = rows.slot[first + at], _alike(rows.slot, first + at, first + count)
        head = (layer * cache.keys.shape[1] + slot) * sizes.key_heads + group
        key_scale, value_scale = cache.key_scale[layer, slot, group], cache.value_scale[layer, slot, group]
        end = rows.position[first + at + alike - 1] + 1 - shared
        row = at * repeat
        values_at = cache.flat_values.ctypes.data + np.uint64(head * cache.values.shape[3])
        for d0 in range(0, size, COLUMNS):
            fetch(values_at + np.uint64(d0 * (positions - shared)), end * COLUMNS)
        for panel in range((end + COLUMNS - 1) // COLUMNS):
            multiply(space.queries, (query + row) * whole, whole, alike * repeat, space.query_offset, query + row,
                     cache.flat_keys, head * cache.keys.shape[3] + panel * COLUMNS * whole, whole // QUAD, scores,
                     row * positions + shared + panel * COLUMNS, positions, plain)  # fmt: skip
        quads = (end + QUAD - 1) // QUAD
        for r in range(row, row + alike * repeat):
            visible = rows.position[first + r // repeat] + 1
            scales[r] = _softmax(scores, r * positions, visible, space.query_scale[query + r], key_scale, value_scale,
                                 portions, shares)  # fmt: skip
            for n in range(visible, shared + QUAD * quads):
                shares[r * positions + n] = 0
        at += alike
    for d0 in range(0, size, COLUMNS):
        if shared:
            multiply_shares(shares, _ZERO, positions, count * repeat, cache.shared_values,
                            (shared_head * width + d0) * shared, shared // QUAD, tile, second, _COLUMNS,
                            plain)  # fmt: skip
        at = 0
        while at < count:
            slot, alike = rows.slot[first + at], _alike(rows.slot, first + at, first + count)
            head = (layer * cache.keys.shape[1] + slot) * sizes.key_heads + group
            end = rows.position[first + at + alike - 1] + 1 - shared
            row = at * repeat
            multiply_shares(shares, row * positions + shared, positions, alike * repeat, cache.flat_values,
                            head * cache.values.shape[3] + d0 * (positions - shared), (end + QUAD - 1) // QUAD, tile,
                            row * COLUMNS, _COLUMNS, plain)  # fmt: skip
            at += alike
        if shared:
            for i in range(u64(count * repeat * COLUMNS)):
                tile[i] = np.int32(tile[i] + tile[u64(second) + i])
        for r in range(count * repeat):
            y, scale = space.outputs[first + r // repeat], scales[r]
            to, t = u64((group * repeat + r % repeat) * size + d0), u64(r * COLUMNS)
            for j in range(u64(min(COLUMNS, size - d0))):
                y[to + j] = f32(tile[t + j]) * scale


@subkernel
def attention_stage(sizes, weights, cache, space, rows, layer, stage, worker, workers, single):
    """Attention into the outputs: each new position attends to all keys and values of its sequence so far.

    A unit of work is one key head and a few rows. single: whether no sequence has more than one row. If so, rows have
    nothing in common but a shared prefix, and this stage also does the work of `head_stage` for them.
    """
    not_inlined()
    n = len(rows.slot)
    at_once = TILE_ROWS // (sizes.heads // sizes.key_heads)
    if single:
        at_once = min(at_once, n * sizes.key_heads // (_UNITS * workers))
    at_once = max(1, at_once)
    blocks = (n + at_once - 1) // at_once
    integers = space.shares[worker].view(np.int8)
    unit = taken(space.counters, stage)
    while unit < blocks * sizes.key_heads:
        first, group = unit // sizes.key_heads * at_once, unit % sizes.key_heads
        count = min(at_once, n - first)
        if single:
            for m in range(first, first + count):
                _head_rows(sizes, weights, cache, space, rows, layer, group, m, integers)
        _attend(sizes, cache, space, rows, layer, group, first, count, worker)
        unit = taken(space.counters, stage)
