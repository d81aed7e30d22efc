"""Attention of the exact LM on GPUs, in Triton: the part of `gpu_kernels` that reads the cache (see there)."""

import triton
import triton.language as tl

from memcodec.lm import arithmetic
from memcodec.lm.gpu_kernels import exp2, in_units, rounded

_SHARE = tl.constexpr(float(arithmetic.SHARE))
_NEAR, _NEAR_TOP = tl.constexpr(2.0**22), tl.constexpr(1 << 21)  # see `_powers`
_UNSEEN = tl.constexpr(-(1 << 30))  # the logit of a position that a query does not attend to

ROOM = 16  # the number of positions of a cache is a multiple of it; otherwise Triton compiles kernels again
TILE_FIELDS = 4  # of a tile of `attend`: slot, first row, rows, position of the first row
_ROOM, _TILE_FIELDS = tl.constexpr(ROOM), tl.constexpr(TILE_FIELDS)


@triton.jit
def _logits(q, factor, keys, scales, first, end, SIZE: tl.constexpr, WIDTH: tl.constexpr, PANEL: tl.constexpr):
    """Logits of queries, int8 [rows, WIDTH], at PANEL positions from `first` on, float32 [rows, PANEL], not rounded.

    factor: float32 [rows]; keys: int8 [positions, SIZE] and their scales, of a head.
    """
    p, i = first + tl.arange(0, PANEL), tl.arange(0, WIDTH)
    inside = (p < end)[None, :] & (i < SIZE)[:, None]
    k = tl.load(keys + (p.to(tl.int64) * SIZE)[None, :] + i[:, None], mask=inside, other=0)
    t = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32)
    return t * factor[:, None] * tl.load(scales + p, mask=p < end, other=0.0)[None, :]


@triton.jit
def _powers(x, top, seen, NEAR: tl.constexpr):
    """exp2 of the units of logits below the largest, int32 [rows, positions]; 0 where `seen` is false.

    NEAR: all of `top` is between -2**21 and 2**21, so that what is below -2**22 has the power 0.
    """
    units = rounded(tl.maximum(x, -_NEAR)) if NEAR else in_units(x)
    return exp2(top[:, None] - tl.where(seen, units, _UNSEEN))


@triton.jit
def _mixed(
    queries, factor, keys, scales, values, value_scales, top, last, end,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PANEL: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """Outputs of `attend`, float32 [ROWS, WIDTH], from the largest logit of each row in units, top: int32 [ROWS]."""
    i, panel = tl.arange(0, WIDTH), tl.arange(0, PANEL)
    most = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.int64)
    wrong = factor - factor  # 0, or NaN if a number is not finite, which a comparison could hide
    for first in range(0, end, PANEL):
        p = first + panel
        x = _logits(queries, factor, keys, scales, first, end, SIZE, WIDTH, PANEL)
        e = _powers(x, top, p[None, :] <= last, NEAR)
        total += tl.sum(e, axis=1).to(tl.int64)
        k_scale = tl.load(scales + p, mask=p < end, other=0.0)
        v_scale = tl.load(value_scales + p, mask=p < end, other=0.0)
        most = tl.maximum(most, tl.max(e.to(tl.float32) * v_scale[None, :], axis=1))
        wrong += tl.sum((k_scale - k_scale) + (v_scale - v_scale), axis=0)

    ratio = tl.div_rn(_SHARE, most)
    mixed = tl.zeros((ROWS, WIDTH), dtype=tl.int32)
    half = tl.full((ROWS, PANEL), 64, tl.int8)
    for first in range(0, end, PANEL):
        p = first + panel
        x = _logits(queries, factor, keys, scales, first, end, SIZE, WIDTH, PANEL)
        e = _powers(x, top, p[None, :] <= last, NEAR)
        v_scale = tl.load(value_scales + p, mask=p < end, other=0.0)
        share = rounded((e.to(tl.float32) * v_scale[None, :]) * ratio[:, None])
        at = (p.to(tl.int64) * SIZE)[:, None] + i[None, :]
        v = tl.load(values + at, mask=(p < end)[:, None] & (i < SIZE)[None, :], other=0)
        # Shares are up to 255, and products are of int8: 128 is subtracted first, and added again as twice 64.
        mixed = tl.dot((share - 128).to(tl.int8), v, mixed, out_dtype=tl.int32)
        mixed = tl.dot(half, v, mixed, out_dtype=tl.int32)
        mixed = tl.dot(half, v, mixed, out_dtype=tl.int32)
    scale = (most.to(tl.float64) / (255 * total).to(tl.float64)).to(tl.float32) + wrong
    return mixed.to(tl.float32) * scale[:, None]


@triton.jit
def attend(
    q, q_scale, cached, scales, tiles, z, room,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, FACTOR: tl.constexpr,
    ROWS: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    """Attention of the queries of tiles over the cache of a layer: z float32 [rows, HEADS, SIZE].

    A tile is some consecutive rows of one sequence, int32 [TILE_FIELDS]; a program takes a tile and a head of keys,
    with all heads of queries that share it, ROWS in all. The other arguments are those of `gpu_kernels.heads`. Three
    passes over the positions: for the largest logit, for the sum of powers and the largest portion, and for the values.
    """
    REPEAT: tl.constexpr = HEADS // KEY_HEADS
    tile, key_head = tiles + tl.program_id(0) * _TILE_FIELDS, tl.program_id(1)
    slot, first_row, count, position = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    m, i, panel = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, PANEL)
    step = m // REPEAT
    live, end = step < count, position + count
    last = tl.minimum(position + step, end - 1)[:, None]  # rows that are not live attend too, and are not stored
    at = (first_row + step) * HEADS + key_head * REPEAT + m % REPEAT
    inside = live[:, None] & (i < SIZE)[None, :]
    vectors = (at.to(tl.int64) * SIZE)[:, None] + i[None, :]
    queries = tl.load(q + vectors, mask=inside, other=0)
    factor = tl.load(q_scale + at, mask=live, other=0.0) * FACTOR
    of_keys = (slot.to(tl.int64) * (2 * KEY_HEADS) + key_head) * room
    of_values = of_keys + room * KEY_HEADS
    keys, key_scales, values, value_scales = (
        cached + of_keys * SIZE,
        scales + of_keys,
        cached + of_values * SIZE,
        scales + of_values,
    )

    best = tl.full((ROWS,), float("-inf"), tl.float32)
    for first in range(0, end, PANEL):
        x = _logits(queries, factor, keys, key_scales, first, end, SIZE, WIDTH, PANEL)
        best = tl.maximum(best, tl.max(tl.where((first + panel)[None, :] <= last, x, float("-inf")), axis=1))
    top = in_units(best)  # rounding keeps the order
    if tl.max(tl.abs(top), axis=0) < _NEAR_TOP:
        out = _mixed(queries, factor, keys, key_scales, values, value_scales, top, last, end,
                     SIZE, WIDTH, ROWS, PANEL, True)  # fmt: skip
        tl.store(z + vectors, out, mask=inside)
    else:
        out = _mixed(queries, factor, keys, key_scales, values, value_scales, top, last, end,
                     SIZE, WIDTH, ROWS, PANEL, False)  # fmt: skip
        tl.store(z + vectors, out, mask=inside)


@triton.jit
def _weights(x, top, seen, v_scale):
    """Powers of logits, float32 [rows, positions], their sum, and their largest product with a scale of the values."""
    e = exp2(top[:, None] - tl.where(seen, in_units(x), _UNSEEN))
    portion = tl.where(e > 0, e.to(tl.float32) * v_scale[None, :], 0.0)
    return e, tl.sum(e, axis=1), tl.max(portion, axis=1)


@triton.jit
def _shares(e, v_scale, most):
    """Shares minus 128, int8, since they go up to 255 and products take int8. Unseen positions may have any scale."""
    share = rounded((e.to(tl.float32) * v_scale[None, :]) * tl.div_rn(_SHARE, most)[:, None])
    return (tl.where(e > 0, share, 0) - 128).to(tl.int8)


@triton.jit
def attend_step(
    q, q_scale, cached, scales, slots, positions, logits, shares, z, room,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, FACTOR: tl.constexpr,
    ROWS: tl.constexpr, HEIGHT: tl.constexpr, PANEL: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """`attend` for rows that are one position of a sequence each: keys and values are read once.

    Products of keys and of values have HEIGHT rows, of which ROWS, a power of two, hold the queries of a head of keys;
    the computation between them is for ROWS rows. Logits, float32 [rows, HEADS, room], and shares, int8 of the same
    shape, are exchanged through global memory, since other threads read them than wrote them. slots, positions: int32
    [rows]; PANEL: positions in a product; SPAN: positions at one time between products.
    """
    REPEAT: tl.constexpr = HEADS // KEY_HEADS
    LAST: tl.constexpr = HEIGHT - 1
    row, key_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot, end = tl.load(slots + row).to(tl.int64), tl.load(positions + row) + 1
    whole = (end + (_ROOM - 1)) // _ROOM * _ROOM  # positions that are read, so that threads read several at one time
    i, m, r, span = tl.arange(0, WIDTH), tl.arange(0, HEIGHT), tl.arange(0, ROWS), tl.arange(0, SPAN)
    first_head = row * HEADS + key_head * REPEAT
    of_keys = (slot * (2 * KEY_HEADS) + key_head) * room
    of_values = of_keys + room * KEY_HEADS
    live, used = m < REPEAT, r < REPEAT
    queries_at = ((first_head + m) * SIZE)[:, None] + i[None, :]
    queries = tl.load(q + queries_at, mask=live[:, None] & (i < SIZE)[None, :], other=0)
    factor = tl.load(q_scale + first_head + m, mask=live, other=0.0) * FACTOR
    best = tl.full((HEIGHT,), float("-inf"), tl.float32)
    for first in range(0, whole, PANEL):
        p = first + tl.arange(0, PANEL)
        inside = (p < whole)[None, :] & (i < SIZE)[:, None]
        k = tl.load(cached + of_keys * SIZE + (p * SIZE)[None, :] + i[:, None], mask=inside, other=0)
        t = tl.dot(queries, k, out_dtype=tl.int32).to(tl.float32)
        x = t * factor[:, None] * tl.load(scales + of_keys + p, mask=p < whole, other=0.0)[None, :]
        at = logits + ((first_head + m) * room)[:, None] + p[None, :]
        tl.store(at, x, mask=live[:, None] & (p < whole)[None, :])
        best = tl.maximum(best, tl.max(tl.where((p < end)[None, :], x, float("-inf")), axis=1))
    top = tl.sum(tl.where(m[:, None] == r[None, :], in_units(best)[:, None], 0), axis=0)  # of ROWS rows
    tl.debug_barrier()  # all logits are written before other threads read them

    at = ((first_head + r) * room)[:, None] + span[None, :]
    wrong = 0.0  # or NaN if a number is not finite, which a comparison could hide
    if whole <= SPAN:
        inside = used[:, None] & (span < whole)[None, :]
        x = tl.load(logits + at, mask=inside, other=0.0)
        k_scale = tl.load(scales + of_keys + span, mask=span < whole, other=0.0)
        v_scale = tl.load(scales + of_values + span, mask=span < whole, other=0.0)
        e, total, most = _weights(x, top, used[:, None] & (span < end)[None, :], v_scale)
        wrong += tl.sum(tl.where(span < end, (k_scale - k_scale) + (v_scale - v_scale), 0.0), axis=0)
        total, most = tl.where(used, total, 1).to(tl.int64), tl.where(used, most, 1.0)  # other rows are not stored
        tl.store(shares + at, _shares(e, v_scale, most), mask=inside)
    else:
        most, total = tl.zeros((ROWS,), dtype=tl.float32), tl.zeros((ROWS,), dtype=tl.int64)
        for first in range(0, whole, SPAN):
            p = first + span
            inside = used[:, None] & (p < whole)[None, :]
            x = tl.load(logits + at + first, mask=inside, other=0.0)
            k_scale = tl.load(scales + of_keys + p, mask=p < whole, other=0.0)
            v_scale = tl.load(scales + of_values + p, mask=p < whole, other=0.0)
            e, some, largest = _weights(x, top, used[:, None] & (p < end)[None, :], v_scale)
            wrong += tl.sum(tl.where(p < end, (k_scale - k_scale) + (v_scale - v_scale), 0.0), axis=0)
            most, total = tl.maximum(most, largest), total + some.to(tl.int64)
            tl.store(logits + at + first, e.to(tl.float32, bitcast=True), mask=inside)
        most, total = tl.where(used, most, 1.0), tl.where(used, total, 1)
        tl.debug_barrier()
        for first in range(0, whole, SPAN):
            p = first + span
            inside = used[:, None] & (p < whole)[None, :]
            e = tl.load(logits + at + first, mask=inside, other=0.0).to(tl.int32, bitcast=True)
            v_scale = tl.load(scales + of_values + p, mask=p < whole, other=0.0)
            tl.store(shares + at + first, _shares(e, v_scale, most), mask=inside)
    tl.debug_barrier()

    mixed = tl.zeros((HEIGHT, WIDTH), dtype=tl.int32)
    for first in range(0, whole, PANEL):
        p = first + tl.arange(0, PANEL)
        share_at = shares + ((first_head + m) * room)[:, None] + p[None, :]
        share = tl.load(share_at, mask=live[:, None] & (p < whole)[None, :], other=0)
        share = tl.where((m == LAST)[:, None], 1, share).to(tl.int8)  # a row that sums the values
        inside = (p < whole)[:, None] & (i < SIZE)[None, :]
        values = tl.load(cached + of_values * SIZE + (p * SIZE)[:, None] + i[None, :], mask=inside, other=0)
        mixed = tl.dot(share, values, mixed, out_dtype=tl.int32)
    sums = tl.sum(tl.where((m == LAST)[:, None], mixed, 0), axis=0)
    numbers = (most.to(tl.float64) / (255 * total).to(tl.float64)).to(tl.float32)
    scale = tl.sum(tl.where(m[:, None] == r[None, :], numbers[None, :], 0.0), axis=1)  # of HEIGHT rows
    scale = scale + (wrong + (factor - factor))
    out = (mixed + 128 * sums[None, :]).to(tl.float32) * scale[:, None]
    tl.store(z + queries_at, out, mask=live[:, None] & (i < SIZE)[None, :])
