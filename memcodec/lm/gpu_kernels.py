"""The exact LM's kernels for GPUs, in Triton: the same bits as `kernels`, as tests check in Triton's interpreter.

Every element of a float32 or float64 goes through one IEEE operation at a time, and only integers are summed. The names
are those of spec/FORMAT.md, section 3. `launch` compiles without contraction to fused operations and without flushing
of small numbers to zero; divisions of float32 are `div_rn`, since `/` is not rounded correctly there. Rows are
contiguous; each program takes a block of rows, and masks cut the blocks at the edges. Sizes and constants of the model
are `constexpr`, so that a kernel is compiled once for each kind of layer.
"""

import threading
from typing import Any

import numpy as np

from memcodec.errors import needs_triton
from memcodec.lm import arithmetic

try:
    import torch
    import triton
    import triton.language as tl
except ImportError as error:
    raise needs_triton(error) from error

_TINY_BITS = tl.constexpr(int(np.float32(arithmetic.TINY).view(np.int32)))
_LARGEST = tl.constexpr(float(arithmetic.LARGEST))
_FAR = tl.constexpr(arithmetic.FAR)
_ONE = tl.constexpr(1 << arithmetic.ATTENTION_BITS)
_END = tl.constexpr(arithmetic.EXP2_END)
_C1, _C2, _C3 = (tl.constexpr(coefficient) for coefficient in arithmetic.EXP2[1:])
_LOGIT_SCALE = tl.constexpr(float(arithmetic.LOGIT_SCALE))
_REACH = tl.constexpr(float(arithmetic.GATE_REACH))
MAGIC = tl.constexpr(1.5 * 2.0**23)  # x + MAGIC has no bits below 1, so that the addition rounds x to an integer
MAGIC_BITS = tl.constexpr(0x4B400000)  # of MAGIC as float32
WHOLE = tl.constexpr(2.0**23)  # from here on, a float32 is an integer

# What `product` does with its results.
STORE, ADD, UNITS, SUMS = 0, 1, 2, 3
_ADD, _UNITS, _SUMS = tl.constexpr(ADD), tl.constexpr(UNITS), tl.constexpr(SUMS)

# The interpreter runs one kernel at a time, and the first launch of a kernel is not made for two threads.
_turn = threading.Lock()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    warps: int = 4,
    stages: int = 3,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Start a kernel, compiled so that each operation is rounded once and nothing is flushed to zero.

    stages: of loads that are started in advance, in a loop over products; registers: the most that a thread may have,
    so that more programs run at one time. None: no limit.
    """
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        torch.cuda.set_device(device)  # each thread of torch has one; Triton starts its kernels there
    with _turn:
        kernel[grid](*arguments, **constants, **options, enable_fp_fusion=False, enable_reflect_ftz=False)


# ---- one vector, or a block of them


@triton.jit
def rounded(x):
    """round(x) as int32, for |x| up to 2**22; any integer for a NaN."""
    return (x + MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS


@triton.jit
def in_units(x):
    """round(clamp(x, 2**29)) as int32; 0 for a NaN."""
    x = tl.where(x == x, tl.minimum(tl.maximum(x, -_FAR), _FAR), 0.0)
    up = tl.where(x < 0.0, -WHOLE, WHOLE)
    return tl.where(tl.abs(x) < WHOLE, (x + up) - up, x).to(tl.int32)


@triton.jit
def exp2(below):
    """`arithmetic.exp2` of int32; any integer if `below` is negative."""
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
    return rounded(x * tl.div_rn(_LARGEST, largest)[:, None])


@triton.jit
def _root_scale(squares, largest, SIZE: tl.constexpr, EPSILON: tl.constexpr):
    """1 / sqrt(mean square + epsilon), float32 [rows], from sums of squares of integers, int32 [rows]."""
    unit = largest.to(tl.float64) / 127.0
    mean = squares.to(tl.float64) / SIZE
    return (1.0 / tl.sqrt(mean * (unit * unit) + EPSILON)).to(tl.float32)


@triton.jit
def _hadamard(x, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr):
    """The transform of blocks of 2**STAGES entries of float32 [ROWS, WIDTH].

    The sum of two numbers is one addition, in which threads exchange less than with `tl.gather`.
    """
    for stage in tl.static_range(STAGES):
        pairs = tl.reshape(x, [ROWS, WIDTH >> (stage + 1), 2, 1 << stage])
        is_first = (tl.arange(0, 2) == 0)[None, None, :, None]
        plus = tl.sum(pairs, axis=2, keep_dims=True)
        minus = tl.sum(tl.where(is_first, pairs, -pairs), axis=2, keep_dims=True)
        x = tl.reshape(tl.where(is_first, plus, minus), [ROWS, WIDTH])
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
        tl.store(at, in_units(y * _LOGIT_SCALE), mask=inside)
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
    e = exp2(rounded(tl.abs(u) * _LOGIT_SCALE))
    z = g * tl.div_rn(tl.where(u < 0.0, e, _ONE).to(tl.float32), (e + _ONE).to(tl.float32))
    if GATED:
        z = z * tl.load(at + INNER, mask=inside, other=0.0)
    return _hadamard(z, ROWS, WIDTH, STAGES)


@triton.jit
def _store_gated(z, most, integers, row, live, first, INNER: tl.constexpr, WIDTH: tl.constexpr):
    """quantize(z), of entries from `first` on. most: the bits of the largest entry of each row."""
    i = first + tl.arange(0, WIDTH)
    at = integers + (row.to(tl.int64) * INNER)[:, None] + i[None, :]
    n = _integers(z, most.to(tl.float32, bitcast=True))
    tl.store(at, n.to(tl.int8), mask=live[:, None] & (i < INNER)[None, :])


@triton.jit(do_not_specialize=["rows"])
def gate(
    y, integers, scales, rows,
    INNER: tl.constexpr, GATED: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """quantize(hadamard(z, D)), with z the gate of y, float32 [rows, INNER, or twice as many if GATED].

    int8 [rows, INNER] and scales, float32 [rows]. WIDTH entries at one time, a multiple of D = 2**STAGES; if
    that is not all, in two passes: for the largest entry, and for the integers.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    most = tl.zeros((ROWS,), dtype=tl.int32)  # bits, see `_largest`
    for first in range(0, INNER, WIDTH):
        z = _gated(y, row, live, first, INNER, GATED, A, B, ROWS, WIDTH, STAGES)
        most = tl.maximum(most, _largest(z).to(tl.int32, bitcast=True))
        if WIDTH >= INNER:
            _store_gated(z, most, integers, row, live, first, INNER, WIDTH)
    if WIDTH < INNER:
        for first in range(0, INNER, WIDTH):
            z = _gated(y, row, live, first, INNER, GATED, A, B, ROWS, WIDTH, STAGES)
            _store_gated(z, most, integers, row, live, first, INNER, WIDTH)
    tl.store(scales + row, tl.div_rn(most.to(tl.float32, bitcast=True), _LARGEST), mask=live)
