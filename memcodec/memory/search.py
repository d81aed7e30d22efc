"""The search for memories of the readout site: beam search, as in a trellis of a convolutional code; kernels.

Position t sees a window of the memory (see `steering`). A state is a window and the cost of the tokens so far. When
new bits enter the window, the cheapest states branch into all values of these bits.
"""

from typing import NamedTuple

import numpy as np

from memcodec.coding.distribution import COMPETITORS, FAR, Predictions, Tables, frequency, log2_units, new_tables
from memcodec.coding.steering import (
    FEATURES,
    MOST_ENTROPY,
    REACH,
    SIGN_STREAM,
    WINDOW,
    Steering,
    capped,
    features_of,
    new_bits,
    tilt_of,
)
from memcodec.lm.compiled import allocating, not_inlined, ones_in, subkernel
from memcodec.lm.cpu import needs_fallback
from memcodec.lm.instructions import COLUMNS, PANEL_ROW, QUAD
from memcodec.lm.product import ZERO, multiply, padded
from memcodec.lm.seeded import word
from memcodec.lm.team import Team

_QUIET_END = 10  # tokens at the end of a chunk whose entropy adds no bits, since such bits would steer too few tokens
BUCKETS_BITS, UNITS_BITS = 13, 2  # of costs, when the cheapest states are selected: buckets, and units in each
SCALE_BITS = 16  # of frequencies in the search
POWER_OF_TWO = (0.696065, 0.224494, 0.079441)  # of a fraction: 1, and a cubic with these coefficients
MOST_REST = (1 << 31) - 2  # the limit of `rest`, which flat distributions over many tokens exceed
_BUCKETS, _BUCKET_UNITS = 1 << BUCKETS_BITS, np.int32(1 << UNITS_BITS)
_MOST_REST = np.int64(MOST_REST)
f32 = np.float32
_C1, _C2, _C3 = (f32(coefficient) for coefficient in POWER_OF_TWO)


class _Buffers(NamedTuple):
    """The arrays of one search."""

    signs: np.ndarray  # uint8, the sign matrix of a position as panels
    rows: np.ndarray  # int8 [COMPETITORS * inner], rows of the head
    responses: np.ndarray  # int32 [COMPETITORS * FEATURES], see `_respond`
    panel: np.ndarray  # uint8, see `_as_panel`
    features: np.ndarray  # int8 [states * FEATURES], signs
    offsets: np.ndarray  # int32 [COMPETITORS or states], of rows or features (see `product.multiply`)
    products: np.ndarray  # int32 [states * COLUMNS]
    windows: np.ndarray  # int64 [2, states], before and after new bits enter, in turn
    costs: np.ndarray  # int32 [2, states], units
    kept: np.ndarray  # int32 [states]
    buckets: np.ndarray  # int32 [_BUCKETS]
    parents: np.ndarray  # int32 [positions, states], the state that each state came from
    entered: np.ndarray  # uint8 [positions, states], the bits that entered
    plain: int  # see `product.multiply`


def new_buffers(longest: int, states: int, hidden: int, plain: bool) -> _Buffers:
    """Buffers for chunks of up to `longest` tokens. plain: see `product.multiply`."""
    inner = padded(hidden)
    return _Buffers(
        signs=np.zeros(FEATURES * inner, dtype=np.uint8),
        rows=np.zeros(COMPETITORS * inner, dtype=np.int8),
        responses=np.empty(COMPETITORS * FEATURES, dtype=np.int32),
        panel=np.empty(FEATURES * COLUMNS, dtype=np.uint8),
        features=np.empty(states * FEATURES, dtype=np.int8),
        offsets=np.empty(max(COMPETITORS, states), dtype=np.int32),
        products=np.empty(states * COLUMNS, dtype=np.int32),
        windows=np.empty((2, states), dtype=np.int64),
        costs=np.empty((2, states), dtype=np.int32),
        kept=np.empty(states, dtype=np.int32),
        buckets=np.empty(_BUCKETS, dtype=np.int32),
        parents=np.empty((longest, states), dtype=np.int32),
        entered=np.empty((longest, states), dtype=np.uint8),
        plain=int(plain),
    )


def memory_bytes(entropy: np.ndarray, share: int) -> int:
    """Bytes of the memory of a chunk with these entropies, int32 [tokens]. share: in 1/1024."""
    counted = np.minimum(entropy[: max(0, len(entropy) - _QUIET_END)], MOST_ENTROPY).astype(np.int64)
    return int(share * int(counted.sum()) >> 20) // 8


def search(predictions: list[Predictions], steering: Steering, share: int, effort: int, team: Team) -> list[bytes]:
    """Returns for each chunk the cheapest memory that a beam search finds. The same bits on every machine.

    share: in 1/1024; effort: states that are tried for each token.
    """
    longest = max((len(predicted.tokens) for predicted in predictions), default=1)
    sizes = [memory_bytes(predicted.entropy, share) if share else 0 for predicted in predictions]
    memories = [np.zeros(8 * size, dtype=np.uint8) for size in sizes]
    states = -(-effort // COLUMNS) * COLUMNS
    searches = min(team.workers, max(1, len(predictions)))
    plain = needs_fallback(team)
    buffers = [new_buffers(longest, states, steering.head.shape[1], plain) for _ in range(searches)]
    tables: Tables = new_tables()

    def work(worker: int, workers: int) -> None:
        for i in range(worker, len(predictions), workers):
            if sizes[i]:
                _search(predictions[i], share, effort, steering, tables, buffers[worker], memories[i])

    if predictions:
        team.run(work)
    return [np.packbits(bits, bitorder="little").tobytes() for bits in memories]


@subkernel
def _respond(position, ids, head, buffers):
    """How each feature moves each competitor, int32 [COMPETITORS, FEATURES], as sums over the integers of the head."""
    signs, rows, offsets = buffers.signs, buffers.rows, buffers.offsets
    hidden = head.shape[1]
    inner = (hidden + QUAD - 1) // QUAD * QUAD
    half = inner * COLUMNS
    for i in range(hidden):
        bits = word(SIGN_STREAM, np.uint64(position) * np.uint64(hidden) + np.uint64(i))
        base = np.uint64(i // QUAD * PANEL_ROW + i % QUAD)
        for j in range(np.uint64(COLUMNS)):
            signs[base + np.uint64(QUAD) * j] = np.uint8(ZERO + 1) - np.uint8(2) * np.uint8(bits >> j & np.uint64(1))
        base += np.uint64(half)
        bits >>= np.uint64(COLUMNS)
        for j in range(np.uint64(COLUMNS)):
            signs[base + np.uint64(QUAD) * j] = np.uint8(ZERO + 1) - np.uint8(2) * np.uint8(bits >> j & np.uint64(1))
    for k in range(COMPETITORS):
        row, total = head[max(ids[k], 0)], np.int32(0)
        for i in range(np.uint64(hidden)):
            rows[np.uint64(k * inner) + i] = row[i]
            total += np.int32(row[i])
        offsets[k] = np.int32(-ZERO) * total
    for panel in range(2):
        multiply(rows, np.int64(0), inner, np.int64(COMPETITORS), offsets, np.int64(0), signs, np.int64(panel * half),
                 inner // QUAD, buffers.responses, np.int64(panel * COLUMNS), np.int64(FEATURES),
                 buffers.plain)  # fmt: skip


@subkernel
def _as_panel(responses, ids, steering, tilt, panel, factors):
    """Round responses to one byte each, into a panel with a column for each competitor.

    factors: float32 [COMPETITORS], the units of a product.
    """
    for k in range(COMPETITORS):
        most = np.int32(1)
        for j in range(FEATURES):
            most = max(most, abs(responses[k * FEATURES + j]))
        factor = f32(127.0) / f32(most)
        for j in range(FEATURES):
            rounded = np.int32(np.rint(f32(responses[k * FEATURES + j]) * factor))
            panel[j // QUAD * PANEL_ROW + QUAD * k + j % QUAD] = np.uint8(rounded + np.int32(ZERO))
        factors[k] = f32(0.0)
        if ids[k] >= 0:
            factors[k] = f32(np.float64(most) / 127.0 * (np.float64(steering.scale[ids[k]]) * steering.unit) * tilt)


@subkernel
def _expand(features, out, start):
    """64 bits as signs, int8 [FEATURES]; returns their offset."""
    for j in range(np.uint64(FEATURES)):
        out[np.uint64(start) + j] = np.int8(1) - np.int8(2) * np.int8(features >> j & np.uint64(1))
    return np.int32(-ZERO) * np.int32(np.int64(FEATURES) - np.int64(2) * ones_in(features))


@subkernel
def _costs(count, products, factors, below, rest, target, unsteered, logarithms, costs):
    """Add the cost of the true token, in units, to the cost of each state.

    below: float32 [COMPETITORS], units; rest: the frequency of all tokens that are not steered, scaled to 16 bits;
    target: the competitor that is the true token, or -1; unsteered: the token's units below the best if it is none.
    """
    not_inlined()
    most = f32(REACH)
    for s in range(count):
        base = np.uint64(s * COLUMNS)
        mass = rest
        for k in range(np.uint64(COLUMNS)):
            move = min(max(f32(products[base + k]) * factors[k], -most), most)
            power = (move - below[k]) * f32(1.0 / 1024.0) + f32(SCALE_BITS)
            power = max(power, f32(-1.0))
            whole = np.floor(power)
            fraction = power - whole
            value = _C3 * fraction + _C2
            value = value * fraction + _C1
            value = value * fraction + f32(1.0)
            doubled = np.int32(np.rint(value * f32(4096.0))) << np.int32(18) >> (np.int32(30) - np.int32(whole))
            mass += doubled
        cost = log2_units(mass, logarithms) - np.int32(SCALE_BITS * 1024)
        if target >= 0:
            at = base + np.uint64(target)
            move = min(max(f32(products[at]) * factors[target], -most), most)
            cost += np.int32(np.rint(min(below[target] - move, f32(FAR))))
        else:
            cost += min(unsteered, FAR)
        costs[s] += cost


@subkernel
def _cheapest(count, wanted, costs, buckets, kept):
    """Write the numbers of about the cheapest states to `kept`, in rising order; returns how many there are.

    Costs are compared in steps of _BUCKET_UNITS; among equals, lower numbers are kept.
    """
    if count <= wanted:
        for s in range(count):
            kept[s] = s
        return count
    least = costs[0]
    for s in range(count):
        least = min(least, costs[s])
    last = np.int32(_BUCKETS - 1)
    for b in range(_BUCKETS):
        buckets[b] = 0
    for s in range(count):
        buckets[min((costs[s] - least) // _BUCKET_UNITS, last)] += 1
    limit, before = 0, 0
    while before + buckets[limit] <= wanted:
        before += buckets[limit]
        limit += 1
    left, n = wanted - before, 0
    for s in range(count):
        bucket = min((costs[s] - least) // _BUCKET_UNITS, last)
        if bucket < limit or (bucket == limit and left > 0):
            left -= bucket == limit
            kept[n] = s
            n += 1
    return n


@allocating
def _trace(best, steps, share, entropy, parents, entered, memory):
    """Write the bits that led to the state `best`, from the last step to the first."""
    used, entropy_sum, number = np.int64(0), np.int64(0), 0
    ranges = np.empty((steps, 2), dtype=np.int64)
    for t in range(len(entropy)):
        entropy_sum += capped(entropy[t])
        new = new_bits(share, entropy_sum, used, np.int64(len(memory)))
        if new > 0:
            ranges[number, 0], ranges[number, 1] = used, new
            used += new
            number += 1
    for step in range(steps - 1, -1, -1):
        start, new = ranges[step]
        for i in range(new):
            memory[start + i] = entered[step, best] >> (new - 1 - i) & 1
        best = parents[step, best]


@allocating
def _search(chunk, share, effort, steering, tables, buffers, memory):
    """Search the memory of one chunk; writes its bits to `memory`."""
    count, now, steps = np.int64(1), 0, 0
    windows, costs, features, products = buffers.windows, buffers.costs, buffers.features, buffers.products
    kept, parents, entered = buffers.kept, buffers.parents, buffers.entered
    windows[0, 0], costs[0, 0] = 0, 0
    used, entropy_sum, bits = np.int64(0), np.int64(0), np.int64(len(memory))
    factors = np.empty(COMPETITORS, dtype=np.float32)
    lower = np.empty(COMPETITORS, dtype=np.float32)
    tokens, ids, below, near, entropy = chunk.tokens, chunk.ids, chunk.below, chunk.near, chunk.entropy
    for t in range(len(tokens)):
        entropy_sum += capped(entropy[t])
        new = new_bits(share, entropy_sum, used, bits)
        if new > 0:
            used += new
            n = _cheapest(count, max(1, effort >> new), costs[now], buffers.buckets, kept)
            branches, after = 1 << new, 1 - now
            for s in range(n):
                for b in range(branches):
                    at = s * branches + b
                    windows[after, at] = ((windows[now, kept[s]] << new) | b) & ((1 << WINDOW) - 1)
                    costs[after, at] = costs[now, kept[s]]
                    parents[steps, at] = kept[s]
                    entered[steps, at] = b
            count, now, steps = np.int64(n * branches), after, steps + 1
        tilt = tilt_of(share, entropy[t])
        _respond(t, ids[t], steering.head, buffers)
        _as_panel(buffers.responses, ids[t], steering, tilt, buffers.panel, factors)
        for s in range(count):
            seen = features_of(windows[now, s], steering.parities)
            buffers.offsets[s] = _expand(seen, features, s * FEATURES)
        multiply(features, np.int64(0), np.int64(FEATURES), count, buffers.offsets, np.int64(0), buffers.panel,
                 np.int64(0), np.int64(FEATURES // QUAD), products, np.int64(0), np.int64(COLUMNS),
                 buffers.plain)  # fmt: skip
        rest, target = chunk.total[t], -1
        for k in range(COMPETITORS):
            lower[k] = f32(1 << 20)
            if ids[t, k] >= 0:
                rest -= frequency(below[t, k], tables.powers)
                lower[k] = f32(below[t, k])
                if ids[t, k] == tokens[t]:
                    target = k
        unsteered = near[t, tokens[t] % near.shape[1]]
        rest = min(rest >> np.int64(12), _MOST_REST)
        _costs(count, products, factors, lower, np.int32(rest) + np.int32(1), target, unsteered,
               tables.logarithms, costs[now])  # fmt: skip
    best = 0
    for s in range(count):
        if costs[now, s] < costs[now, best]:
            best = s
    _trace(best, steps, share, entropy, parents, entered, memory)
