"""The exact LM's kernels for GPUs, in Triton: the same bits as `kernels`, as tests check in Triton's interpreter.

Every element of a float32 or float64 goes through one IEEE operation at a time, and only integers are summed. The names
are those of spec/FORMAT.md, section 3. `launch` compiles without contraction to fused operations and without flushing
of small numbers to zero; divisions of float32 are `div_rn`, since `/` is not rounded correctly there. Rows are
contiguous; each program takes a block of rows, and masks cut the blocks at the edges. Sizes and constants of the model
are `constexpr`, so that a kernel is compiled once for each kind of layer.
"""

from typing import Any

import numpy as np

from memcodec.errors import needs_triton
from memcodec.lm import arithmetic

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise needs_triton(error) from error

_TINY_BITS = tl.constexpr(int(np.float32(arithmetic.TINY).view(np.int32)))
_LARGEST = tl.constexpr(float(arithmetic.LARGEST))
_SHARE = tl.constexpr(float(arithmetic.SHARE))
_FAR = tl.constexpr(arithmetic.FAR)
_ONE = tl.constexpr(1 << arithmetic.ATTENTION_BITS)
_END = tl.constexpr(arithmetic.EXP2_END)
_C1, _C2, _C3 = (tl.constexpr(coefficient) for coefficient in arithmetic.EXP2[1:])
_LOGIT_SCALE = tl.constexpr(float(arithmetic.LOGIT_SCALE))
_REACH = tl.constexpr(float(arithmetic.GATE_REACH))
_UNSEEN = tl.constexpr(-(1 << 30))  # the logit of a position that a query does not attend to
_MAGIC = tl.constexpr(1.5 * 2.0**23)  # x + _MAGIC has no bits below 1, so that the addition rounds x to an integer
_MAGIC_BITS = tl.constexpr(0x4B400000)  # of _MAGIC as float32
_WHOLE = tl.constexpr(2.0**23)  # from here on, a float32 is an integer

# What `product` does with its results.
STORE, ADD, UNITS, SUMS = 0, 1, 2, 3
_ADD, _UNITS, _SUMS = tl.constexpr(ADD), tl.constexpr(UNITS), tl.constexpr(SUMS)

TILE_FIELDS = 4  # of a tile of `attend`: slot, first row, rows, position of the first row


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, registers: int | None = None, **constants: Any
) -> None:
    """Start a kernel, compiled so that each operation is rounded once and nothing is flushed to zero.

    registers: the most that a thread may have, so that more programs run at one time. None: no limit.
    """
    options = {"num_warps": warps, "maxnreg": registers, "enable_fp_fusion": False, "enable_reflect_ftz": False}
    kernel[grid](*arguments, **constants, **options)


# ---- one vector, or a block of them


@triton.jit
def _rounded(x):
    """round(x) as int32, for |x| up to 2**22; any integer for a NaN."""
    return (x + _MAGIC).to(tl.int32, bitcast=True) - _MAGIC_BITS


@triton.jit
def _in_units(x):
    """round(clamp(x, 2**29)) as int32; 0 for a NaN."""
    x = tl.where(x == x, tl.minimum(tl.maximum(x, -_FAR), _FAR), 0.0)
    up = tl.where(x < 0.0, -_WHOLE, _WHOLE)
    return tl.where(tl.abs(x) < _WHOLE, (x + up) - up, x).to(tl.int32)


@triton.jit
def _exp2(below):
    """`arithmetic.exp2` of int32; of anything if `below` is negative."""
    below = tl.minimum(tl.maximum(below, 0), _END)
    fraction = below & 1023
    weight = _C2 - ((fraction * _C3) >> 10)
    weight = _C1 - ((fraction * weight) >> 10)
    weight = _ONE - ((fraction * weight) >> 10)
    return weight >> (below >> 10)


@triton.jit
def _largest(x):
    """max(max|x|, 2**-100) over the last axis of [rows, entries]; a NaN, or infinity, if there is one.

    Floats without their sign are ordered like their bits, and the bits of NaN are the largest.
    """
    bits = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    return tl.maximum(bits, _TINY_BITS).to(tl.float32, bitcast=True)


@triton.jit
def _integers(x, largest):
    """round(x * (127 / largest)), int32 [rows, entries]. largest: float32 [rows]."""
    return _rounded(x * tl.div_rn(_LARGEST, largest)[:, None])


@triton.jit
def _root_scale(squares, largest, SIZE: tl.constexpr, EPSILON: tl.constexpr):
    """1 by the root of the mean square plus epsilon, float32 [rows], from sums of squares of integers, int32 [rows]."""
    unit = largest.to(tl.float64) / 127.0
    mean = squares.to(tl.float64) / SIZE
    return (1.0 / tl.sqrt(mean * (unit * unit) + EPSILON)).to(tl.float32)


@triton.jit
def _hadamard(x, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr):
    """The transform of blocks of 2**STAGES entries of float32 [ROWS, WIDTH]."""
    i = tl.arange(0, WIDTH)
    for stage in tl.static_range(STAGES):
        partner = tl.gather(x, tl.broadcast_to((i ^ (1 << stage))[None, :], [ROWS, WIDTH]), 1)
        x = tl.where((i & (1 << stage))[None, :] == 0, x + partner, partner - x)
    return x


# ---- stages of a pass


@triton.jit(do_not_specialize=["rows"])
def embed(
    tokens, positions, embedding, scale, vectors, learned, x, rows,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, LEARNED: tl.constexpr,
):  # fmt: skip
    """The residual stream before the first layer: x float32 [rows, SIZE].

    tokens: int32 [rows], -1 - i for vectors[i], float32 [n, SIZE]; learned: positions, float32 [positions, SIZE].
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, WIDTH)
    live, inside = row < rows, (i < SIZE)[None, :]
    token = tl.load(tokens + row, mask=live, other=0)
    is_token = token >= 0
    at = (token.to(tl.int64) * SIZE)[:, None] + i[None, :]
    entry = tl.load(embedding + at, mask=(live & is_token)[:, None] & inside, other=0).to(tl.float32)
    entry = entry * tl.load(scale + token, mask=live & is_token, other=0.0)[:, None]
    at = ((-1 - token).to(tl.int64) * SIZE)[:, None] + i[None, :]
    vector = tl.load(vectors + at, mask=(live & (token < 0))[:, None] & inside, other=0.0)
    y = tl.where(is_token[:, None], entry, vector)
    if LEARNED:
        position = tl.load(positions + row, mask=live, other=0)
        at = (position.to(tl.int64) * SIZE)[:, None] + i[None, :]
        y = y + tl.load(learned + at, mask=live[:, None] & inside, other=0.0)
    tl.store(x + (row.to(tl.int64) * SIZE)[:, None] + i[None, :], y, mask=live[:, None] & inside)


@triton.jit(do_not_specialize=["rows"])
def quantize(
    x, integers, scales, rows,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """quantize(x), or with NORM norm(x), of float32 [rows, SIZE]: int8 [rows, SIZE] and scales, float32 [rows]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (i < SIZE)[None, :]
    at = (row.to(tl.int64) * SIZE)[:, None] + i[None, :]
    y = tl.load(x + at, mask=inside, other=0.0)
    largest = _largest(y)
    n = _integers(y, largest)
    scale = tl.div_rn(largest, _LARGEST)
    if NORM:
        scale = scale * _root_scale(tl.sum(n * n, axis=1), largest, SIZE, EPSILON)
    tl.store(integers + at, n.to(tl.int8), mask=inside)
    tl.store(scales + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def product(
    v, s, weights, scale, bias, out, rows,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, BIAS: tl.constexpr, KIND: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """linear(v, s, W): v int8 [rows, INNER], s float32 [rows], weights int8 [COLUMNS, INNER], scale, bias float32.

    KIND: STORE to out, float32 [rows, COLUMNS]; ADD to it; or store logits in UNITS, or the SUMS, int32.
    """
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    k = tl.arange(0, DEPTH)
    left = v + (m.to(tl.int64) * INNER)[:, None] + k[None, :]
    right = weights + (n.to(tl.int64) * INNER)[None, :] + k[:, None]
    total = tl.zeros((ROWS, WIDTH), dtype=tl.int32)
    for first in range(0, INNER, DEPTH):
        inside = k < INNER - first
        a = tl.load(left + first, mask=(m < rows)[:, None] & inside[None, :], other=0)
        b = tl.load(right + first, mask=(n < COLUMNS)[None, :] & inside[:, None], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    y = total.to(tl.float32) * tl.load(s + m, mask=m < rows, other=0.0)[:, None]
    y = y * tl.load(scale + n, mask=n < COLUMNS, other=0.0)[None, :]
    if BIAS:
        y = y + tl.load(bias + n, mask=n < COLUMNS, other=0.0)[None, :]
    at = out + (m.to(tl.int64) * COLUMNS)[:, None] + n[None, :]
    inside = (m < rows)[:, None] & (n < COLUMNS)[None, :]
    if KIND == _ADD:
        y = tl.load(at, mask=inside, other=0.0) + y
    if KIND == _SUMS:
        tl.store(at, total, mask=inside)
    elif KIND == _UNITS:
        tl.store(at, _in_units(y * _LOGIT_SCALE), mask=inside)
    else:
        tl.store(at, y, mask=inside)


@triton.jit(do_not_specialize=["rows", "room"])
def heads(
    y, slots, positions, query_gain, key_gain, cosine, sine, q, q_scale, cached, scales, rows, room,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
    BLOCK: tl.constexpr, GAINS: tl.constexpr, ROTARY: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Heads of queries, keys and values, y float32 [rows, HEADS + 2 * KEY_HEADS, SIZE], as integers and scales.

    Queries go to q, int8 [rows, HEADS, SIZE], and q_scale, float32 [rows, HEADS]; keys and values to their places in
    the cache of a layer: int8 [slots, 2 * KEY_HEADS, room, SIZE], and scales, float32 [slots, 2 * KEY_HEADS, room].
    slots, positions: int32 [rows]. Each program takes BLOCK heads.
    """
    TOTAL: tl.constexpr = HEADS + 2 * KEY_HEADS
    HALF: tl.constexpr = SIZE // 2
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # of a row and a head
    i = tl.arange(0, WIDTH)
    row, head = pair // TOTAL, pair % TOTAL
    live = row < rows
    is_query, is_value = head < HEADS, head >= HEADS + KEY_HEADS
    inside = live[:, None] & (i < SIZE)[None, :]
    start = (pair.to(tl.int64) * SIZE)[:, None]
    value = tl.load(y + start + i[None, :], mask=inside, other=0.0)
    x = value
    position = tl.load(positions + row, mask=live, other=0)
    if GAINS:
        largest = _largest(x)
        n = _integers(x, largest)
        root = _root_scale(tl.sum(n * n, axis=1), largest, SIZE, EPSILON)
        of_query = tl.load(query_gain + i, mask=i < SIZE, other=0.0)[None, :]
        of_key = tl.load(key_gain + i, mask=i < SIZE, other=0.0)[None, :]
        x = x * tl.where(is_query[:, None], of_query, of_key)
    if ROTARY:
        j = tl.where(i < HALF, i + HALF, i - HALF)  # each entry's partner
        partner = tl.load(y + start + j[None, :], mask=inside, other=0.0)
        if GAINS:
            of_query = tl.load(query_gain + j, mask=i < SIZE, other=0.0)[None, :]
            of_key = tl.load(key_gain + j, mask=i < SIZE, other=0.0)[None, :]
            partner = partner * tl.where(is_query[:, None], of_query, of_key)
        at = (position * HALF)[:, None] + tl.where(i < HALF, i, i - HALF)[None, :]
        c, s = tl.load(cosine + at, mask=inside, other=0.0), tl.load(sine + at, mask=inside, other=0.0)
        turned, moved = x * c, partner * s
        x = tl.where((i < HALF)[None, :], turned - moved, turned + moved)
    x = tl.where(is_value[:, None], value, _hadamard(x, BLOCK, WIDTH, STAGES))
    largest = _largest(x)
    n = _integers(x, largest).to(tl.int8)
    scale = tl.div_rn(largest, _LARGEST)
    if GAINS:
        scale = tl.where(is_value, scale, scale * root)
    at = row * HEADS + head
    tl.store(q + (at.to(tl.int64) * SIZE)[:, None] + i[None, :], n, mask=inside & is_query[:, None])
    tl.store(q_scale + at, scale, mask=live & is_query)
    slot = tl.load(slots + row, mask=live, other=0)
    at = (slot.to(tl.int64) * (2 * KEY_HEADS) + (head - HEADS)) * room + position
    tl.store(cached + (at * SIZE)[:, None] + i[None, :], n, mask=inside & (head >= HEADS)[:, None])
    tl.store(scales + at, scale, mask=live & (head >= HEADS))


@triton.jit
def _attention_logits(
    q, factor, keys, scales, first, end, SIZE: tl.constexpr, WIDTH: tl.constexpr, PANEL: tl.constexpr
):
    """Logits of queries, int8 [rows, WIDTH], at PANEL positions from `first` on, int32 [rows, PANEL].

    factor: float32 [rows]; keys: int8 [positions, SIZE] and their scales, of a head.
    """
    p, i = first + tl.arange(0, PANEL), tl.arange(0, WIDTH)
    inside = (p < end)[None, :] & (i < SIZE)[:, None]
    k = tl.load(keys + (p.to(tl.int64) * SIZE)[None, :] + i[:, None], mask=inside, other=0)
    t = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32)
    return _in_units(t * factor[:, None] * tl.load(scales + p, mask=p < end, other=0.0)[None, :])


@triton.jit(do_not_specialize=["room"])
def attend(
    q, q_scale, cached, scales, tiles, z, room,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, FACTOR: tl.constexpr,
    ROWS: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    """Attention of the queries of tiles over the cache of a layer: z float32 [rows, HEADS, SIZE].

    A tile is some consecutive rows of one sequence, int32 [TILE_FIELDS]; a program takes a tile and a head of keys,
    with all heads of queries that share it, ROWS in all. The arguments are those of `heads`. Three passes over the
    positions: for the largest logit, for the sum of powers and the largest portion, and for the values.
    """
    REPEAT: tl.constexpr = HEADS // KEY_HEADS
    tile, key_head = tiles + tl.program_id(0) * 4, tl.program_id(1)
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
    keys, key_scale = cached + of_keys * SIZE, scales + of_keys

    top = tl.full((ROWS,), _UNSEEN, tl.int32)
    for first in range(0, end, PANEL):
        units = _attention_logits(queries, factor, keys, key_scale, first, end, SIZE, WIDTH, PANEL)
        top = tl.maximum(top, tl.max(tl.where((first + panel)[None, :] <= last, units, _UNSEEN), axis=1))

    most = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.int64)
    wrong = factor - factor  # 0, or NaN if a number is not finite, which a comparison could hide
    for first in range(0, end, PANEL):
        p = first + panel
        units = _attention_logits(queries, factor, keys, key_scale, first, end, SIZE, WIDTH, PANEL)
        e = _exp2(top[:, None] - tl.where(p[None, :] <= last, units, _UNSEEN))
        total += tl.sum(e, axis=1).to(tl.int64)
        k_scale = tl.load(key_scale + p, mask=p < end, other=0.0)
        v_scale = tl.load(scales + of_values + p, mask=p < end, other=0.0)
        most = tl.maximum(most, tl.max(e.to(tl.float32) * v_scale[None, :], axis=1))
        wrong += tl.sum((k_scale - k_scale) + (v_scale - v_scale), axis=0)

    ratio = tl.div_rn(_SHARE, most)
    mixed = tl.zeros((ROWS, WIDTH), dtype=tl.int32)
    for first in range(0, end, PANEL):
        p = first + panel
        units = _attention_logits(queries, factor, keys, key_scale, first, end, SIZE, WIDTH, PANEL)
        e = _exp2(top[:, None] - tl.where(p[None, :] <= last, units, _UNSEEN))
        v_scale = tl.load(scales + of_values + p, mask=p < end, other=0.0)
        share = _rounded((e.to(tl.float32) * v_scale[None, :]) * ratio[:, None])
        at_values = ((of_values + p) * SIZE)[:, None] + i[None, :]
        values = tl.load(cached + at_values, mask=(p < end)[:, None] & (i < SIZE)[None, :], other=0)
        # Shares are up to 255, and products are of int8: 128 is subtracted first, and added again for all positions.
        mixed = tl.dot((share - 128).to(tl.int8), values, mixed, out_dtype=tl.int32)
        mixed += 128 * tl.sum(values.to(tl.int32), axis=0)[None, :]
    scale = (most.to(tl.float64) / (255 * total).to(tl.float64)).to(tl.float32) + wrong
    tl.store(z + vectors, mixed.to(tl.float32) * scale[:, None], mask=inside)


@triton.jit
def _gated(
    y, row, live, first,
    INNER: tl.constexpr, GATED: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """hadamard(z, D) of WIDTH entries of z from `first` on, for some rows of y."""
    i = first + tl.arange(0, WIDTH)
    inside = live[:, None] & (i < INNER)[None, :]
    at = y + (row.to(tl.int64) * (INNER * (1 + GATED)))[:, None] + i[None, :]
    g = tl.load(at, mask=inside, other=0.0)
    n = tl.minimum(tl.maximum(g, -_REACH), _REACH)
    u = n * (A + B * (n * n))
    e = _exp2(_rounded(tl.abs(u) * _LOGIT_SCALE))
    z = g * tl.div_rn(tl.where(u < 0.0, e, _ONE).to(tl.float32), (e + _ONE).to(tl.float32))
    if GATED:
        z = z * tl.load(at + INNER, mask=inside, other=0.0)
    return _hadamard(z, ROWS, WIDTH, STAGES)


@triton.jit(do_not_specialize=["rows"])
def gate(
    y, integers, scales, rows,
    INNER: tl.constexpr, GATED: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """quantize(hadamard(z, D)), with z the gate of y, float32 [rows, INNER, or twice as many if GATED].

    int8 [rows, INNER] and scales, float32 [rows]. In two passes of WIDTH entries each, a multiple of D = 2**STAGES: for
    the largest entry, and for the integers.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    most = tl.zeros((ROWS,), dtype=tl.int32)  # bits, see `_largest`
    for first in range(0, INNER, WIDTH):
        z = _gated(y, row, live, first, INNER, GATED, A, B, ROWS, WIDTH, STAGES)
        most = tl.maximum(most, _largest(z).to(tl.int32, bitcast=True))
    largest = most.to(tl.float32, bitcast=True)
    for first in range(0, INNER, WIDTH):
        z = _gated(y, row, live, first, INNER, GATED, A, B, ROWS, WIDTH, STAGES)
        i = first + tl.arange(0, WIDTH)
        at = integers + (row.to(tl.int64) * INNER)[:, None] + i[None, :]
        tl.store(at, _integers(z, largest).to(tl.int8), mask=live[:, None] & (i < INNER)[None, :])
    tl.store(scales + row, tl.div_rn(largest, _LARGEST), mask=live)
