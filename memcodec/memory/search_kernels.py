"""The search for memories on a GPU, in Triton: the same memories as `search` finds on the CPU, as tests check.

`prepare` computes what does not depend on states, for all positions of all chunks side by side; `beam` is the search:
a program takes a chunk, then another one. Every result that states are compared by is the same as on the CPU:

- Moves, `lower` and powers are in bits here (1,024 units), and the frequencies of `_masses` are multiplied by 4,096:
  factors that are powers of two change exponents only. Every other operation is rounded as on the CPU.
- Signs are 64 and -64, and sums of products begin with the bits of a float32 that has units of 1/64. So a sum is the
  bits of this float32 plus the product, and needs no conversion. Features are in another order (see `_feature`).
- The competitor that is the true token changes places with the first one. Only integers are summed over competitors.
- The limit of costs below which states are kept is found by bisection: a state is kept if it is among the first
  `wanted` by bucket and number.

The states of a program are written by some of its threads and read by others, with a barrier between.
"""

import numpy as np
import triton
import triton.language as tl

from memcodec.coding import distribution, steering
from memcodec.coding.gpu_kernels import frequency, log2_units, sign_words
from memcodec.lm.gpu_kernels import MAGIC, MAGIC_BITS, WHOLE
from memcodec.memory import search

RUN_FIELDS = 3  # of a run of positions with the same states: first position, position after the last, bits that enter
POSITION_FIELDS = 3  # of a position, see `prepare`

_COMPETITORS = tl.constexpr(distribution.COMPETITORS)
_LISTED = tl.constexpr(distribution.COMPETITORS + 1)
_BLOCK = tl.constexpr(distribution.BLOCK)
_FEATURES = tl.constexpr(steering.FEATURES)
_QUADS = tl.constexpr(steering.FEATURES // 4)
_MOST_ENTROPY = tl.constexpr(steering.MOST_ENTROPY)
_REACH = tl.constexpr(float(steering.REACH) / 1024)
_TILT = tl.constexpr(steering.TILT)
_WINDOW = tl.constexpr((1 << steering.WINDOW) - 1)
_RUN_FIELDS, _POSITION_FIELDS = tl.constexpr(RUN_FIELDS), tl.constexpr(POSITION_FIELDS)
_BUCKETS_BITS, _UNITS_BITS = tl.constexpr(search.BUCKETS_BITS), tl.constexpr(search.UNITS_BITS)
_BUCKETS = tl.constexpr(1 << search.BUCKETS_BITS)

_BASE, _BASE_BITS = tl.constexpr(1.5 * 2.0**17), tl.constexpr(0x48400000)  # a float32 with units of 1/64
_TOP_BITS, _SIGN_BITS = tl.constexpr(0x80808080 - (1 << 32)), tl.constexpr(0x40404040)
_UNIT = tl.constexpr(1.0 / 1024.0)
_SCALE_BITS, _SCALE_UNITS = tl.constexpr(float(search.SCALE_BITS)), tl.constexpr(search.SCALE_BITS * 1024)
_C1, _C2, _C3 = (tl.constexpr(float(np.float32(coefficient)) * 4096.0) for coefficient in search.POWER_OF_TWO)
_ONE = tl.constexpr(4096.0)
_FAR_AWAY = tl.constexpr(1024.0)  # 2**20 units: `lower` of competitors that do not exist
_FAR, _FAR_UNITS = tl.constexpr(int(distribution.FAR)), tl.constexpr(float(distribution.FAR))
_MOST_REST = tl.constexpr(search.MOST_REST)
_NO_COST = tl.constexpr((1 << 31) - 1)
_LAST_KEY = tl.constexpr((1 << 63) - 1)

HAS_TARGET, IS_NEAR, IS_NARROW = 1, 2, 4  # flags of a position
_HAS_TARGET, _IS_NEAR, _IS_NARROW = (tl.constexpr(n) for n in (HAS_TARGET, IS_NEAR, IS_NARROW))


# ---- what does not depend on states


@triton.jit
def _feature(place):
    """The feature at a place of the panel: byte i of quad q is bit 8 * i + q % 8 of half q // 8 of the features."""
    quad, byte = place // 4, place % 4
    return quad // 8 * 32 + byte * 8 + quad % 8


@triton.jit
def _responses(position, ids, head, ROWS: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    """`search._respond` for a list of tokens, int32 [ROWS, FEATURES], with features in the order of the panel."""
    row = (tl.maximum(ids, 0).to(tl.int64) * SIZE)[:, None]
    shift = _feature(tl.arange(0, _FEATURES)).to(tl.uint64)[None, :]
    total = tl.zeros((ROWS, _FEATURES), dtype=tl.int32)
    for first in range(0, SIZE, DEPTH):
        i = first + tl.arange(0, DEPTH)
        signs = 1 - 2 * ((sign_words(position, i, SIZE)[:, None] >> shift) & 1).to(tl.int8)
        rows = tl.load(head + row + i[None, :], mask=(i < SIZE)[None, :], other=0)
        total = tl.dot(rows, signs, total, out_dtype=tl.int32)
    return total


@triton.jit(do_not_specialize=["chunks", "share"])
def prepare(
    ids, below, tokens, totals, entropies, near, head, scale, powers, starts, lengths,
    panel, factors, lower, about, chunks, share,
    CHUNKS: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """What `beam` needs of each position, for a position of CHUNKS chunks at one time.

    ids, below: int32 [positions, COMPETITORS + 1]; tokens, totals: int64 [positions]; entropies, near: int32
    [positions]: see `Predictions`, near of the true token only. starts: int64 [chunks], the first position of each;
    lengths: int32 [chunks]. head: int8 [vocabulary, SIZE]; scale: float32 [vocabulary].

    Writes `panel`, int8 [positions, COMPETITORS, FEATURES]; factors and lower, float32 [positions, COMPETITORS], in
    bits; about: int32 [positions, POSITION_FIELDS]: `rest` less 1, `unsteered`, and flags: HAS_TARGET if the true token
    is steered; IS_NEAR if no move can be beyond REACH; IS_NARROW if no sum of frequencies can be beyond int32.
    """
    ROWS: tl.constexpr = CHUNKS * _COMPETITORS
    t = tl.program_id(0)
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    length = tl.load(lengths + chunk, mask=chunk < chunks, other=0)
    if t < tl.max(length, axis=0):
        live = t < length
        position = tl.load(starts + chunk, mask=live, other=0) + t
        k = tl.arange(0, _COMPETITORS)[None, :]
        listed = position[:, None] * _LISTED
        found = tl.load(ids + listed + k, mask=live[:, None], other=-1)
        token = tl.load(tokens + position, mask=live, other=-2).to(tl.int32)
        target = tl.max(tl.where(found == token[:, None], k, -1), axis=1)
        other = tl.where(k == 0, target[:, None], tl.where(k == target[:, None], 0, k))
        source = listed + tl.where(target[:, None] < 0, k, other)
        chosen = tl.load(ids + source, mask=live[:, None], other=-1)
        valid = chosen >= 0
        units = tl.load(below + source, mask=valid, other=0)
        counts = tl.where(valid, frequency(units, powers), 0)
        rest = tl.load(totals + position, mask=live, other=0) - tl.sum(counts, axis=1)
        rest = tl.minimum(rest >> 12, _MOST_REST).to(tl.int32)
        least = tl.where(valid, units.to(tl.float32) * _UNIT, _FAR_AWAY)

        responses = _responses(t, tl.reshape(chosen, [ROWS]), head, ROWS, SIZE, DEPTH)
        most = tl.maximum(tl.max(tl.abs(responses), axis=1), 1)
        scaled = responses.to(tl.float32) * tl.div_rn(127.0, most.to(tl.float32))[:, None]
        rounded = (scaled + MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS
        column = position[:, None] * _COMPETITORS + k
        row = tl.reshape(column, [ROWS]) * _FEATURES
        place = tl.arange(0, _FEATURES)[None, :]
        is_live = tl.reshape((live[:, None] & (k >= 0)).to(tl.int32), [ROWS]) > 0
        tl.store(panel + row[:, None] + place, rounded.to(tl.int8), mask=is_live[:, None])

        entropy = tl.load(entropies + position, mask=live, other=0)
        capped = tl.minimum(entropy, _MOST_ENTROPY).to(tl.int64)
        tilt = _TILT * tl.sqrt((share * capped).to(tl.float64))
        scales = tl.load(scale + chosen, mask=valid, other=0.0).to(tl.float64)
        unit = tl.reshape(most, [CHUNKS, _COMPETITORS]).to(tl.float64) / 127.0
        factor = tl.where(valid, (unit * (scales * UNIT) * tilt[:, None]).to(tl.float32), 0.0) * _UNIT
        tl.store(factors + column, factor, mask=live[:, None])
        tl.store(lower + column, least, mask=live[:, None])

        reach = tl.reshape(tl.sum(tl.abs(rounded), axis=1), [CHUNKS, _COMPETITORS]).to(tl.float32) * tl.abs(factor)
        power = tl.maximum((tl.minimum(reach, _REACH) - least) + _SCALE_BITS, -1.0)
        weight = tl.full((CHUNKS, _COMPETITORS), 1, tl.int64) << (tl.floor(power).to(tl.int64) + 1)
        mass = tl.sum(weight, axis=1) + rest + 1
        near_enough = tl.max(reach, axis=1) <= _REACH
        is_narrow = mass < _NO_COST
        field = about + position * _POSITION_FIELDS
        tl.store(field, rest, mask=live)
        tl.store(field + 1, tl.minimum(tl.load(near + position, mask=live, other=0), _FAR), mask=live)
        flags = tl.where(target >= 0, _HAS_TARGET, 0) + tl.where(near_enough, _IS_NEAR, 0)
        tl.store(field + 2, flags + tl.where(is_narrow, _IS_NARROW, 0), mask=live)


# ---- the search


@triton.jit
def _kept(costs, kept, count, wanted, STATES: tl.constexpr):
    """`search._cheapest`: writes the numbers of the states that are kept, int16; returns how many there are."""
    state = tl.arange(0, STATES)
    cost = tl.load(costs + state, mask=state < count, other=_NO_COST)
    least = tl.min(cost, axis=0)
    apart = (cost - least).to(tl.uint32, bitcast=True) >> _UNITS_BITS
    bucket = tl.minimum(apart, _BUCKETS - 1).to(tl.int32)
    bucket = tl.where(state < count, bucket, _BUCKETS)
    limit, before = tl.zeros((), dtype=tl.int32), tl.zeros((), dtype=tl.int32)
    step = tl.full((), _BUCKETS // 2, tl.int32)
    for _ in range(_BUCKETS_BITS):  # the last limit with at most `wanted` states in the buckets before it
        fewer = tl.sum((bucket < limit + step).to(tl.int32), axis=0)
        enough = fewer <= wanted
        limit, before = tl.where(enough, limit + step, limit), tl.where(enough, fewer, before)
        step = step >> 1
    left = wanted - before
    is_equal = bucket == limit
    counted = tl.cumsum((bucket < limit).to(tl.int32) + (is_equal.to(tl.int32) << 16), axis=0)
    equal = counted >> 16
    place = (counted & 0xFFFF) + tl.minimum(equal, left) - 1
    tl.store(kept + place, state.to(tl.int16), mask=(bucket < limit) | (is_equal & (equal <= left)))
    return tl.minimum(count, wanted)


@triton.jit
def _signs(features, TILE: tl.constexpr):
    """64 bits as bytes, 64 or -64, int8 [TILE, FEATURES], in the order of `_feature`. features: int64 [TILE]."""
    quad = tl.arange(0, _QUADS)[None, :]
    low, high = features.to(tl.int32), (features >> 32).to(tl.int32)
    half = tl.where(quad < 8, low[:, None], high[:, None])
    four = ((half << (7 - quad % 8)) & _TOP_BITS) ^ _SIGN_BITS
    even = tl.join(four.to(tl.int8), (four >> 16).to(tl.int8))
    odd = tl.join((four >> 8).to(tl.int8), (four >> 24).to(tl.int8))
    return tl.reshape(tl.join(even, odd), [TILE, _FEATURES])


@triton.jit
def _masses(sums, factor, lower, rest, NEAR: tl.constexpr, NARROW: tl.constexpr):
    """The sum of frequencies of each state, float32 [TILE]. sums: of products, see above; NEAR, NARROW: flags."""
    move = (sums.to(tl.float32, bitcast=True) - _BASE) * factor[None, :]
    if not NEAR:
        move = tl.minimum(tl.maximum(move, -_REACH), _REACH)
    power = tl.maximum((move - lower[None, :]) + _SCALE_BITS, -1.0)
    whole = tl.floor(power)
    fraction = power - whole
    value = _C3 * fraction + _C2
    value = value * fraction + _C1
    value = value * fraction + _ONE
    bits = (value + MAGIC).to(tl.uint32, bitcast=True) << 18  # the bits of MAGIC are gone
    shift = tl.full((), MAGIC_BITS + 30, tl.int32) - (whole + MAGIC).to(tl.int32, bitcast=True)  # 30 - whole
    count = bits >> shift.to(tl.uint32, bitcast=True)
    if NARROW:
        mass = (tl.sum(count.to(tl.int32, bitcast=True), axis=1) + (rest + 1)).to(tl.float32)
    else:
        mass = (tl.sum(count.to(tl.int64), axis=1) + (rest.to(tl.int64) + 1)).to(tl.float32)
    return mass


@triton.jit
def _cost(sums, factors, lower, about, logarithms, TILE: tl.constexpr):
    """The cost of the true token of a position in each state of a tile, int32 [TILE]. See `search._costs`."""
    k = tl.arange(0, _COMPETITORS)
    factor, least = tl.load(factors + k), tl.load(lower + k)
    rest, unsteered, flags = tl.load(about), tl.load(about + 1), tl.load(about + 2)
    if (flags & _IS_NARROW) == 0:
        mass = _masses(sums, factor, least, rest, False, False)
    elif (flags & _IS_NEAR) == 0:
        mass = _masses(sums, factor, least, rest, False, True)
    else:
        mass = _masses(sums, factor, least, rest, True, True)
    product = tl.sum(tl.where(k[None, :] == 0, sums, 0), axis=1)  # of the first competitor
    # Four threads have each state of a tile so far; from here on, each thread has one state.
    both = (product.to(tl.int64) << 32) | (mass.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    both = tl.gather(both, tl.arange(0, TILE), 0)
    product, mass = (both >> 32).to(tl.int32), both.to(tl.int32).to(tl.float32, bitcast=True)
    cost = log2_units(mass, logarithms) - _SCALE_UNITS
    move = (product.to(tl.float32, bitcast=True) - _BASE) * tl.load(factors)
    move = tl.minimum(tl.maximum(move, -_REACH), _REACH)
    units = tl.minimum((tl.load(lower) - move) * 1024.0, _FAR_UNITS)
    up = tl.where(units < 0.0, -WHOLE, WHOLE)
    units = tl.where(tl.abs(units) < WHOLE, (units + up) - up, units)
    return cost + tl.where((flags & _HAS_TARGET) != 0, units.to(tl.int32), unsteered)


@triton.jit(do_not_specialize=["chunks", "effort", "room"])
def beam(
    panel, factors, lower, about, runs, chunk_runs, parities, logarithms, windows, costs, kept, entered,
    chunks, effort, room,
    STATES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The bits that enter at each run of positions under the best memory of each chunk: entered, int32 [runs].

    panel, factors, lower, about: of `prepare`; runs: int32 [runs, RUN_FIELDS]; chunk_runs: int32 [chunks, 2], the first
    run of each chunk and how many it has; parities: int64 [3, 256]; windows, costs: buffers, int32 [programs, 2,
    STATES], before and after new bits enter, in turn; kept: int16 [programs, room, STATES / 2], the states that were
    kept before each run, of up to `room`. STATES: a power of two, as many as `effort` at least.
    """
    HALF: tl.constexpr = STATES // 2
    program = tl.program_id(0)
    windows += program.to(tl.int64) * (2 * STATES)
    costs += program.to(tl.int64) * (2 * STATES)
    kept += program.to(tl.int64) * room * HALF
    state, k, place = tl.arange(0, STATES), tl.arange(0, _COMPETITORS), tl.arange(0, _FEATURES)
    for chunk in range(program, chunks, tl.num_programs(0)):
        first_run, run_count = tl.load(chunk_runs + chunk * 2), tl.load(chunk_runs + chunk * 2 + 1)
        tl.store(windows, 0)
        tl.store(costs, 0)
        tl.debug_barrier()
        count, now = tl.full((), 1, tl.int32), tl.zeros((), dtype=tl.int32)
        for i in range(run_count):
            run = runs + (first_run + i) * _RUN_FIELDS
            start, end, new = tl.load(run), tl.load(run + 1), tl.load(run + 2)
            old_windows, old_costs, row = windows + now * STATES, costs + now * STATES, kept + i * HALF
            count = _kept(old_costs, row, count, tl.maximum(effort >> new, 1), STATES) << new
            now = 1 - now
            tl.debug_barrier()
            for first in range(0, count, TILE):
                one = first + tl.arange(0, TILE)
                live = one < count
                parent = tl.load(row + (one >> new), mask=live, other=0).to(tl.int32)
                window = tl.load(old_windows + parent, mask=live, other=0) << new
                window = (window | (one & ((1 << new) - 1))) & _WINDOW
                cost = tl.load(old_costs + parent, mask=live, other=0)
                tl.store(windows + now * STATES + one, window, mask=live)
                features = tl.load(parities + (window & 255)) ^ tl.load(parities + 256 + ((window >> 8) & 255))
                signs = _signs(features ^ tl.load(parities + 512 + (window >> 16)), TILE)
                for step in range(end - start):
                    position = start.to(tl.int64) + step
                    at = position * _COMPETITORS
                    columns = tl.load(panel + (at + k)[None, :] * _FEATURES + place[:, None])
                    base = tl.full((TILE, _COMPETITORS), _BASE_BITS, tl.int32)
                    sums = tl.dot(signs, columns, base, out_dtype=tl.int32)
                    field = about + position * _POSITION_FIELDS
                    cost += _cost(sums, factors + at, lower + at, field, logarithms, TILE)
                tl.store(costs + now * STATES + one, cost, mask=live)
            tl.debug_barrier()
        cost = tl.load(costs + now * STATES + state, mask=state < count, other=0).to(tl.int64)
        key = tl.where(state < count, cost * (1 << 32) + state, _LAST_KEY)
        best = (tl.min(key, axis=0) & 0xFFFFFFFF).to(tl.int32)
        for i in range(run_count):
            last = run_count - 1 - i
            new = tl.load(runs + (first_run + last) * _RUN_FIELDS + 2)
            tl.store(entered + first_run + last, best & ((1 << new) - 1))
            best = tl.load(kept + last * HALF + (best >> new)).to(tl.int32)
        tl.debug_barrier()  # before the states of the next chunk are written
