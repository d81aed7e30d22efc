"""The readout site: a memory of bits that tilts what the LM says (spec/FORMAT.md, "Memories").

Position t sees a window of the memory. Seeded parities of the window, through a seeded sign matrix of that position,
are a vector to add to the LM's last hidden state; what it moves the logits of the best tokens by, times a factor that
follows the LM's entropy, is added to them. The window takes in new bits at the pace of the LM's own entropy, which
both sides know exactly. An encoder looks for the bits under which the chunk's tokens become likely (beam search, as in
the trellis of a tail-less convolutional code).
"""

from dataclasses import dataclass

import numpy as np

from memcodec.coding.distribution import COMPETITORS, MOST_LIFT, Look, frequency, log2_units
from memcodec.errors import FormatError
from memcodec.lm import arithmetic
from memcodec.lm.compiled import Team, apart, kernel, ones_in, part
from memcodec.lm.product import COLUMNS, multiply
from memcodec.memory import LookAt, Report
from memcodec.memory.seeded import word, words
from memcodec.memory.settings import MOST_SHARE, SHARE_STEPS, Readout

WINDOW = 24  # bits of the memory that a position sees
FEATURES = 64  # parities of the window
MOST_NEW = 4  # bits that a position takes in at most
MOST_ENTROPY = 6 * 1024  # units of entropy that count, at a position

_PARITY_STREAM, _SIGN_STREAM = 1, 2
_TILT = (
    1.8685079606336419  # 1.1 log2(e) sqrt(2 ln 2): times the root of share and entropy, both in 1/1024, it is in units
)
_REACH = np.int32(MOST_LIFT << 10)
_QUIET_END = 10  # tokens at the end of a chunk whose entropy asks for no bits: these would steer too little


@dataclass(frozen=True)
class Steering:
    """What steering needs of an LM. head: int8 [vocabulary, hidden]; scale: float32 [vocabulary]; unit: float64."""

    head: np.ndarray
    scale: np.ndarray
    unit: float
    parities: np.ndarray

    @classmethod
    def of(cls, head: np.ndarray, scale: np.ndarray, spread: float) -> "Steering":
        """spread: mean squared distance of the head's rows from their mean."""
        return cls(head, scale, 1.0 / np.sqrt(FEATURES * max(spread, 1e-30)), parity_tables())


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

    def fit(self, chunks: list[np.ndarray], look: LookAt, report: Report) -> tuple[list[bytes], list[Look]]:
        """Look at the chunks, then search for their memories."""
        looks = look([None] * len(chunks))
        assert self._settings is not None and self._steering is not None and self._team is not None
        return search(looks, self._steering, self._settings, self._team), looks


def share_steps(settings: Readout) -> int:
    """The memory share in steps of 1/1024."""
    return round(settings.share * SHARE_STEPS)


def parity_tables() -> np.ndarray:
    """Features of each byte of a window as bits, uint64 [3, 256]: those of a window are the exclusive or of three."""
    masks = words(_PARITY_STREAM, 0, FEATURES)
    tables = np.zeros((WINDOW // 8, 256), dtype=np.uint64)
    for bit in range(WINDOW):
        odd = np.bitwise_or.reduce((masks >> np.uint64(bit) & np.uint64(1)) << np.arange(FEATURES, dtype=np.uint64))
        tables[bit // 8, np.arange(256) >> bit % 8 & 1 == 1] ^= odd
    return tables


# ---- what both sides compute


@part
def until(share, energy, bits):
    """How many bits of the memory have entered, once the entropies so far (capped) add up to `energy`."""
    return min(share * energy >> 20, bits)


@part
def capped(entropy):
    """The entropy of a position, as far as it counts."""
    return np.int64(min(entropy, np.int32(MOST_ENTROPY)))


@part
def features_of(window, parities):
    """The 64 parities of a window, as bits."""
    low, middle, high = window & 255, (window >> 8) & 255, window >> 16
    return parities[0, low] ^ parities[1, middle] ^ parities[2, high]


@part
def tilt_of(share, entropy):
    """The factor of the moves at a position, float64, in units."""
    return _TILT * np.sqrt(np.float64(share * capped(entropy)))


@part
def steer(position, features, tilt, unit, head, scale, ids, moves, vector):
    """What a memory moves the logits of tokens by, in units: int32 into `moves`, for ids int32 up to the first -1.

    vector: int32 [hidden], to use: the sign matrix of this position times the features.
    """
    apart()
    hidden = len(vector)
    for i in range(np.uint64(hidden)):
        vector[i] = np.int32(FEATURES) - np.int32(2) * np.int32(
            ones_in(word(_SIGN_STREAM, np.uint64(position) * np.uint64(hidden) + i) ^ features)
        )
    for k in range(len(moves)):
        moves[k] = 0
        if ids[k] >= 0:
            row = head[ids[k]]
            total = np.int32(0)
            for i in range(np.uint64(hidden)):
                total += np.int32(row[i]) * vector[i]
            move = np.rint(np.float64(total) * (np.float64(scale[ids[k]]) * unit) * tilt)
            moves[k] = np.int32(min(max(move, np.float64(-_REACH)), np.float64(_REACH)))


# ---- the search


def memory_bytes(entropy: np.ndarray, share: int) -> int:
    """How many bytes of memory an encoder gives a chunk with these entropies, int32 [tokens]."""
    loud = np.minimum(entropy[: max(0, len(entropy) - _QUIET_END)], MOST_ENTROPY).astype(np.int64)
    return int(share * int(loud.sum()) >> 20) // 8


def search(looks: list[Look], steering: Steering, settings: Readout, team: Team) -> list[bytes]:
    """Memories of chunks: for each, the bits under which its tokens cost least. The same bits on every machine."""
    share = share_steps(settings)
    longest = max((len(look.tokens) for look in looks), default=1)
    sizes = [memory_bytes(look.entropy, share) if share else 0 for look in looks]
    found = [np.zeros(8 * size, dtype=np.uint8) for size in sizes]
    effort = settings.effort
    states = -(-effort // COLUMNS) * COLUMNS
    rooms = [_room(longest, states, steering.head.shape[1]) for _ in range(min(team.workers, max(1, len(looks))))]

    def work(worker: int, workers: int) -> None:
        for i in range(worker, len(looks), workers):
            if sizes[i]:
                look = looks[i]
                _search(look.tokens, look.ids, look.below, look.total, look.entropy, look.near, share, effort,
                        steering.unit, steering.head, steering.scale, steering.parities, arithmetic.powers(),
                        arithmetic.logarithms(), *rooms[worker], found[i])  # fmt: skip

    if looks:
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


@part
def _respond(position, ids, head, signs, rows, responses):
    """How each feature moves each competitor: int32 [COMPETITORS, FEATURES], sums over the head's integers."""
    hidden = head.shape[1]
    inner = hidden + hidden % 2
    half = inner // 2 * 2 * COLUMNS
    for i in range(hidden):
        bits = word(_SIGN_STREAM, np.uint64(position) * np.uint64(hidden) + np.uint64(i))
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


@part
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


@part
def _expand(features, out, start):
    """64 bits as signs, int16 [FEATURES]."""
    for j in range(np.uint64(FEATURES)):
        out[np.uint64(start) + j] = np.int16(1) - np.int16(2) * np.int16(features >> j & np.uint64(1))


@part
def _costs(count, products, factors, below, rest, target, otherwise, logarithms, costs):
    """Add to each state's cost what the true token costs under its tilt, in units.

    below: float32 [COMPETITORS], units; rest: frequency of the tokens that are not steered, of 16 bits; target: which
    competitor the token is, or -1; otherwise: its units below the best, unsteered.
    """
    apart()
    most = f4(_REACH)
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


@part
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
