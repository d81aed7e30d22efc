"""The readout site: a memory of bits that tilts what the LM says (spec/FORMAT.md, "Memories").

Position t sees a window of the memory. Seeded parities of the window, through a seeded sign matrix of that position,
are a vector to add to the LM's last hidden state; what it moves the logits of the best tokens by, times a factor that
follows the LM's entropy, is added to them. The window takes in new bits at the pace of the LM's own entropy, which
both sides know exactly. An encoder looks for the bits under which the chunk's tokens become likely (beam search, as in
the trellis of a tail-less convolutional code).
"""

import numpy as np

from memcodec.coding.distribution import COMPETITORS, Predictions, frequency, log2_units
from memcodec.coding.steering import (
    FEATURES,
    MOST_ENTROPY,
    MOST_NEW,
    REACH,
    SIGN_STREAM,
    WINDOW,
    Steering,
    capped,
    features_of,
    tilt_of,
    until,
)
from memcodec.errors import FormatError
from memcodec.lm import arithmetic
from memcodec.lm.compiled import kernel, not_inlined, subkernel
from memcodec.lm.product import COLUMNS, multiply
from memcodec.lm.seeded import word
from memcodec.lm.team import Team
from memcodec.memory.site import Predict, Report
from memcodec.settings import MOST_SHARE, SHARE_STEPS, Readout

_QUIET_END = 10  # tokens at the end of a chunk whose entropy asks for no bits: these would steer too little


class ReadoutSite:
    """Memories of bits that tilt what the LM says."""

    name = "readout"

    def __init__(
        self, share: int, settings: Readout | None = None, steering: Steering | None = None, team: Team | None = None
    ):
        """share: in steps of 1/1024; the rest is for searches."""
        self.share = share
        self.fields: tuple[int, ...] = (share,)
        self._settings = settings
        self._steering = steering
        self._team = team

    @classmethod
    def in_header(cls, fields: tuple[int, ...]) -> "ReadoutSite":
        """The site of a file, for a decoder. Raises FormatError."""
        if len(fields) != 1 or fields[0] > MOST_SHARE:
            raise FormatError("damaged index: a memory share that cannot be")
        return cls(fields[0])

    def vectors(self, memory: bytes) -> np.ndarray | None:
        """What the LM reads between the prefix and the first token: nothing."""
        return None

    def fit(self, chunks: list[np.ndarray], predict: Predict, report: Report) -> tuple[list[bytes], list[Predictions]]:
        """Look at the chunks, then search for their memories."""
        predictions = predict([None] * len(chunks))
        assert self._settings is not None and self._steering is not None and self._team is not None
        return search(predictions, self._steering, self._settings, self._team), predictions


def share_steps(settings: Readout) -> int:
    """The memory share in steps of 1/1024."""
    return round(settings.share * SHARE_STEPS)


# ---- the search


def memory_bytes(entropy: np.ndarray, share: int) -> int:
    """How many bytes of memory an encoder gives a chunk with these entropies, int32 [tokens]."""
    loud = np.minimum(entropy[: max(0, len(entropy) - _QUIET_END)], MOST_ENTROPY).astype(np.int64)
    return int(share * int(loud.sum()) >> 20) // 8


def search(predictions: list[Predictions], steering: Steering, settings: Readout, team: Team) -> list[bytes]:
    """Memories of chunks: for each, the bits under which its tokens cost least. The same bits on every machine."""
    share = share_steps(settings)
    longest = max((len(predicted.tokens) for predicted in predictions), default=1)
    sizes = [memory_bytes(predicted.entropy, share) if share else 0 for predicted in predictions]
    found = [np.zeros(8 * size, dtype=np.uint8) for size in sizes]
    effort = settings.effort
    states = -(-effort // COLUMNS) * COLUMNS
    rooms = [_room(longest, states, steering.head.shape[1]) for _ in range(min(team.workers, max(1, len(predictions))))]

    def work(worker: int, workers: int) -> None:
        for i in range(worker, len(predictions), workers):
            if sizes[i]:
                p = predictions[i]
                _search(p.tokens, p.ids, p.below, p.total, p.entropy, p.near, share, effort,
                        steering.unit, steering.head, steering.scale, steering.parities, arithmetic.powers(),
                        arithmetic.logarithms(), *rooms[worker], found[i])  # fmt: skip

    if predictions:
        team.run(work)
    return [np.packbits(bits, bitorder="little").tobytes() for bits in found]


def _room(longest: int, states: int, hidden: int) -> tuple[np.ndarray, ...]:
    """What one search needs: signs, rows and responses, features, products, windows, costs, kept states, ancestry."""
    inner = hidden + hidden % 2
    return (
        np.zeros(2 * (inner // 2) * 2 * COLUMNS, dtype=np.int8),
        np.zeros(COMPETITORS * inner, dtype=np.int16),
        np.empty(COMPETITORS * FEATURES, dtype=np.int32),
        np.empty(FEATURES // 2 * 2 * COLUMNS, dtype=np.int8),
        np.empty(states * FEATURES, dtype=np.int16),
        np.empty(states * COLUMNS, dtype=np.int32),
        np.empty((2, states), dtype=np.int64),
        np.empty((2, states), dtype=np.int32),
        np.empty(states, dtype=np.int32),
        np.empty(_BUCKETS, dtype=np.int32),
        np.empty((longest, states), dtype=np.int32),
        np.empty((longest, states), dtype=np.uint8),
    )


_BUCKETS = 1 << 13
_BUCKET_UNITS = np.int32(4)
_SCALE_BITS = 16  # of frequencies in the search
f4 = np.float32


@subkernel
def _respond(position, ids, head, signs, rows, responses):
    """How each feature moves each competitor: int32 [COMPETITORS, FEATURES], sums over the head's integers."""
    hidden = head.shape[1]
    inner = hidden + hidden % 2
    half = inner // 2 * 2 * COLUMNS
    for i in range(hidden):
        bits = word(SIGN_STREAM, np.uint64(position) * np.uint64(hidden) + np.uint64(i))
        base = np.uint64((i >> 1) * 2 * COLUMNS + (i & 1))
        for j in range(np.uint64(COLUMNS)):
            signs[base + np.uint64(2) * j] = np.int8(1) - np.int8(2) * np.int8(bits >> j & np.uint64(1))
        base += np.uint64(half)
        for j in range(np.uint64(COLUMNS)):
            signs[base + np.uint64(2) * j] = np.int8(1) - np.int8(2) * np.int8(
                bits >> (j + np.uint64(32)) & np.uint64(1)
            )
    for k in range(COMPETITORS):
        row = head[max(ids[k], 0)]
        for i in range(np.uint64(hidden)):
            rows[np.uint64(k * inner) + i] = row[i]
    for panel in range(2):
        multiply(rows, np.int64(0), inner, np.int64(COMPETITORS), signs, np.int64(panel * half), inner // 2, responses,
                 np.int64(panel * COLUMNS), np.int64(FEATURES), np.int64(0))  # fmt: skip


@subkernel
def _as_panel(responses, ids, scale, unit, tilt, panel, factors):
    """Responses rounded to a byte each, as a panel with a column a competitor, and what a product means in units."""
    for k in range(COMPETITORS):
        most = np.int32(1)
        for j in range(FEATURES):
            most = max(most, abs(responses[k * FEATURES + j]))
        factor = f4(127.0) / f4(most)
        for j in range(FEATURES):
            rounded = np.int32(np.rint(f4(responses[k * FEATURES + j]) * factor))
            panel[(j >> 1) * 2 * COLUMNS + 2 * k + (j & 1)] = rounded
        factors[k] = f4(0.0)
        if ids[k] >= 0:
            factors[k] = f4(np.float64(most) / 127.0 * (np.float64(scale[ids[k]]) * unit) * tilt)


@subkernel
def _expand(features, out, start):
    """64 bits as signs, int16 [FEATURES]."""
    for j in range(np.uint64(FEATURES)):
        out[np.uint64(start) + j] = np.int16(1) - np.int16(2) * np.int16(features >> j & np.uint64(1))


@subkernel
def _costs(count, products, factors, below, rest, target, otherwise, logarithms, costs):
    """Add to each state's cost what the true token costs under its tilt, in units.

    below: float32 [COMPETITORS], units; rest: frequency of the tokens that are not steered, of 16 bits; target: which
    competitor the token is, or -1; otherwise: its units below the best, unsteered.
    """
    not_inlined()
    most = f4(REACH)
    for s in range(count):
        base = np.uint64(s * COLUMNS)
        mass = rest
        for k in range(np.uint64(COLUMNS)):
            move = min(max(f4(products[base + k]) * factors[k], -most), most)
            power = (move - below[k]) * f4(1.0 / 1024.0) + f4(_SCALE_BITS)
            power = max(power, f4(-1.0))
            whole = np.floor(power)
            fraction = power - whole
            value = f4(0.079441) * fraction + f4(0.224494)
            value = value * fraction + f4(0.696065)
            value = value * fraction + f4(1.0)
            doubled = np.int32(np.rint(value * f4(4096.0))) << np.int32(18) >> (np.int32(30) - np.int32(whole))
            mass += doubled
        cost = log2_units(mass, logarithms) - np.int32(_SCALE_BITS * 1024)
        if target >= 0:
            at = base + np.uint64(target)
            move = min(max(f4(products[at]) * factors[target], -most), most)
            cost += np.int32(np.rint(below[target] - move))
        else:
            cost += otherwise
        costs[s] += cost


@subkernel
def _cheapest(count, wanted, costs, buckets, kept):
    """Numbers of about the cheapest states, in order, ties by number; gives how many."""
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


@kernel
def _search(
    tokens, ids, below, total, entropy, near, share, effort, unit, head, scale, parities, powers, logarithms,
    signs, rows, responses, panel, features, products, windows, costs, kept, buckets, parents, entries, found,
):  # fmt: skip
    """Beam search over the memory of one chunk. A state is a window and what it has cost so far."""
    count, now, steps = np.int64(1), 0, 0
    windows[0, 0], costs[0, 0] = 0, 0
    used, energy, bits = np.int64(0), np.int64(0), np.int64(len(found))
    factors = np.empty(COMPETITORS, dtype=np.float32)
    lower = np.empty(COMPETITORS, dtype=np.float32)
    for t in range(len(tokens)):
        energy += capped(entropy[t])
        fresh = min(until(share, energy, bits) - used, MOST_NEW)
        if fresh > 0:
            used += fresh
            branches = 1 << fresh
            n = _cheapest(count, max(1, effort >> fresh), costs[now], buckets, kept)
            new = 1 - now
            for s in range(n):
                for b in range(branches):
                    at = s * branches + b
                    windows[new, at] = ((windows[now, kept[s]] << fresh) | b) & ((1 << WINDOW) - 1)
                    costs[new, at] = costs[now, kept[s]]
                    parents[steps, at] = kept[s]
                    entries[steps, at] = b
            count, now, steps = np.int64(n * branches), new, steps + 1
        tilt = tilt_of(share, entropy[t])
        _respond(t, ids[t], head, signs, rows, responses)
        _as_panel(responses, ids[t], scale, unit, tilt, panel, factors)
        for s in range(count):
            _expand(features_of(windows[now, s], parities), features, s * FEATURES)
        multiply(features, np.int64(0), np.int64(FEATURES), count, panel, np.int64(0), np.int64(FEATURES // 2),
                 products, np.int64(0), np.int64(COLUMNS), np.int64(0))  # fmt: skip
        rest, target = total[t], -1
        for k in range(COMPETITORS):
            lower[k] = f4(1 << 20)
            if ids[t, k] >= 0:
                rest -= frequency(below[t, k], powers)
                lower[k] = f4(below[t, k])
                if ids[t, k] == tokens[t]:
                    target = k
        otherwise = near[t, tokens[t] % near.shape[1]]
        _costs(count, products, factors, lower, np.int32(rest >> 12) + np.int32(1), target, otherwise, logarithms,
               costs[now])  # fmt: skip
    best = 0
    for s in range(count):
        if costs[now, s] < costs[now, best]:
            best = s
    # Back along the ancestors, and along the schedule of new bits.
    used, energy, number = np.int64(0), np.int64(0), 0
    ends = np.empty((steps, 2), dtype=np.int64)
    for t in range(len(tokens)):
        energy += capped(entropy[t])
        fresh = min(until(share, energy, bits) - used, MOST_NEW)
        if fresh > 0:
            ends[number, 0], ends[number, 1] = used, fresh
            used += fresh
            number += 1
    for step in range(steps - 1, -1, -1):
        start, fresh = ends[step]
        for i in range(fresh):
            found[start + i] = entries[step, best] >> (fresh - 1 - i) & 1
        best = parents[step, best]
