"""The exact LM's distribution of the next token, as integer frequencies (spec/FORMAT.md, "Distribution").

The frequency of a token whose logit is d units below the best is 2**(28 - d / 1024), rounded down, plus 1: no token is
impossible. `Predictions` hold what encoding and the search need for each position, in about 3 KB instead of all logits.
"""

from typing import NamedTuple

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.compiled import bits_of, kernel, not_inlined, subkernel
from memcodec.lm.team import Team

COMPETITORS = 32  # the best tokens, which a memory steers; the next one, their rival, is known too
BLOCK = 256  # tokens in a block, whose frequencies are summed
CELL = 32  # tokens in a cell, whose largest logit is computed
FREQUENCY_BITS = 28  # of the best token's frequency
MOST_LIFT = 12  # the most bits by which steering changes a frequency

# At the first token of a group, the LM has no context and is trusted less: logits are multiplied by the first number
# and the rarity of tokens by the second, both in 1/1024. Measured on 500 sequences of the validation set of training/.
_CONFIDENCE, _PRIOR = 704, 64
_RARE = 100  # byte-level BPE assigns ids in the order of its merges, frequent tokens first: p ~ 1 / (id + 100)
_MOST_BELOW = 1 << 20

FAR = np.int32((FREQUENCY_BITS + 1) << 10)  # from this many units below the best on, a frequency is 1
_SHIFT = np.int32(arithmetic.ONE - FREQUENCY_BITS)
_LIFT = np.int64(MOST_LIFT)
_LOWEST = np.int32(-(2**31))


class Tables(NamedTuple):
    """Tables that the distribution is computed with."""

    powers: np.ndarray  # int32 [1024], see `arithmetic`
    logarithms: np.ndarray  # int32 [1024], see `arithmetic`


def new_tables() -> Tables:
    """The tables that kernels of the coder take."""
    return Tables(arithmetic.powers(), arithmetic.logarithms())


@subkernel
def frequency(below, powers):
    """The frequency of a token, int64. below: units below the best; negative if steering moved it above."""
    units = min(below, FAR)
    shift = np.int64(_SHIFT) + _LIFT + np.int64(units >> np.int32(10))
    return (np.int64(powers[units & np.int32(1023)]) << _LIFT >> shift) + np.int64(1)


@subkernel
def log2_units(value, logarithms):
    """log2 of a positive integer, in units, from the exponent of its float32 and the first ten bits of the fraction."""
    bits = bits_of(np.float32(value))
    return ((bits >> np.int32(23)) - np.int32(127)) * np.int32(1024) + logarithms[
        (bits >> np.int32(13)) & np.int32(1023)
    ]


@subkernel
def summarize_row(logits, vocabulary, tables, cells, ids, below, blocks):
    """One position: returns the best logit, the sum of all frequencies, and the entropy in units.

    logits: int32 [vocabulary or more]. Writes `ids` and `below`, int32 [COMPETITORS + 1]: the best tokens and their
    units below the best, lower ids first among equals, -1 for missing tokens; and `blocks`, int64 [vocabulary / BLOCK],
    sums of frequencies. cells: a buffer, int32 [vocabulary / CELL].
    """
    not_inlined()
    powers = tables.powers
    best = _LOWEST
    for cell in range(len(cells)):
        first = np.uint64(cell * CELL)
        top = _LOWEST
        for i in range(first, min(first + np.uint64(CELL), np.uint64(vocabulary))):
            top = max(top, logits[i])
        cells[cell] = top
        best = max(best, top)
    _best_tokens(logits, vocabulary, cells, ids, below)
    for k in range(len(ids)):
        below[k] = best - below[k]
    total, moment = np.int64(0), np.int64(0)
    for block in range(len(blocks)):
        first = np.uint64(block * BLOCK)
        mass, weighted = np.int64(0), np.int64(0)
        for i in range(first, min(first + np.uint64(BLOCK), np.uint64(vocabulary))):
            units = min(best - logits[i], FAR)
            one = powers[np.uint64(units & np.int32(1023))] >> (_SHIFT + (units >> np.int32(10)))
            mass += one
            weighted += np.int64(one) * np.int64(units)
        mass += np.int64(min(BLOCK, vocabulary - block * BLOCK))
        blocks[block] = mass
        total += mass
        moment += weighted
    entropy = log2_units(total, tables.logarithms) - np.int32(FREQUENCY_BITS * 1024) + np.int32(moment // total)
    return best, total, max(entropy, np.int32(0))


@subkernel
def _best_tokens(logits, vocabulary, cells, ids, values):
    """The best tokens and their logits, in order. They are in the cells with the largest maxima."""
    count = len(ids)
    for k in range(count):
        ids[k], values[k] = np.int32(-1), _LOWEST
    if len(cells) > count:
        for cell in range(len(cells)):
            if cells[cell] > values[count - 1]:
                _insert(ids, values, np.int32(cell), cells[cell])
    threshold = values[count - 1]
    for k in range(count):
        ids[k], values[k] = np.int32(-1), _LOWEST
    for cell in range(len(cells)):
        if cells[cell] >= threshold:
            for i in range(cell * CELL, min((cell + 1) * CELL, vocabulary)):
                if logits[i] > values[count - 1] or ids[count - 1] < 0:
                    _insert(ids, values, np.int32(i), logits[i])


@subkernel
def _insert(ids, values, new, value):
    """Insert into a descending list, after equal values; the last entry drops out."""
    k = len(ids) - 1
    while k > 0 and (ids[k - 1] < 0 or values[k - 1] < value):
        ids[k], values[k] = ids[k - 1], values[k - 1]
        k -= 1
    ids[k], values[k] = new, value


class Predictions(NamedTuple):
    """The distributions at some positions, as far as an encoder needs them."""

    tokens: np.ndarray  # int64 [positions], the true ones
    ids: np.ndarray  # int32 [positions, COMPETITORS + 1], the best tokens, -1 if there are fewer
    below: np.ndarray  # int32 [positions, COMPETITORS + 1], their units below the best
    total: np.ndarray  # int64 [positions], sums of frequencies
    entropy: np.ndarray  # int32 [positions], units
    blocks: np.ndarray  # int64 [positions, vocabulary / BLOCK], sums of frequencies
    near: np.ndarray  # int32 [positions, BLOCK], units below the best of the tokens in the true token's block

    @classmethod
    def empty(cls, tokens: np.ndarray, vocabulary: int) -> "Predictions":
        """Uninitialized arrays for the positions of `tokens`, int64 [positions]."""
        n = len(tokens)
        return cls(
            tokens,
            np.empty((n, COMPETITORS + 1), dtype=np.int32),
            np.empty((n, COMPETITORS + 1), dtype=np.int32),
            np.empty(n, dtype=np.int64),
            np.empty(n, dtype=np.int32),
            np.empty((n, -(-vocabulary // BLOCK)), dtype=np.int64),
            np.empty((n, BLOCK), dtype=np.int32),
        )

    @classmethod
    def joined(cls, parts: "list[Predictions]") -> "Predictions":
        """The predictions of several runs of positions (at least one), one after the other."""
        return parts[0] if len(parts) == 1 else cls(*map(np.concatenate, zip(*parts, strict=True)))

    def part(self, first: int, last: int) -> "Predictions":
        """The positions from `first` to `last`, in the same memory."""
        return Predictions(*(array[first:last] for array in self))

    def fill(self, first: int, logits: np.ndarray, vocabulary: int, team: Team) -> None:
        """Write the positions from `first` on: logits int32 [rows, vocabulary or more]."""
        rows = self.part(first, first + len(logits))
        cells = np.empty((team.workers, -(-vocabulary // CELL)), dtype=np.int32)
        tables = new_tables()
        team.run(
            lambda worker, workers: _predict(logits, vocabulary, tables, rows, cells, worker, workers)
        )  # fmt: skip

    def bits(self) -> float:
        """Bits of the tokens under these frequencies: what an ideal coder would need."""
        rows = np.arange(len(self.tokens))
        counts = frequencies(self.near[rows, self.tokens % BLOCK])
        return float((np.log2(self.total.astype(float)) - np.log2(counts.astype(float))).sum())


@kernel
def _predict(logits, vocabulary, tables, rows, cells, worker, workers):
    tokens, ids, below, near, blocks = rows.tokens, rows.ids, rows.below, rows.near, rows.blocks
    for m in range(worker, len(logits), workers):
        row = logits[m]
        best, rows.total[m], rows.entropy[m] = summarize_row(
            row, vocabulary, tables, cells[worker], ids[m], below[m], blocks[m]
        )
        first = tokens[m] // BLOCK * BLOCK
        for i in range(min(BLOCK, vocabulary - first)):
            near[m, i] = best - row[first + i]


def with_prior(logits: np.ndarray) -> np.ndarray:
    """The logits of the first token of a group, int32 [vocabulary]: flattened, with a prior that depends on ids."""
    numbers = np.arange(_RARE, len(logits) + _RARE).astype(np.float32).view(np.int32)
    rarity = ((numbers >> 23) - 127) * 1024 + arithmetic.logarithms()[(numbers >> 13) & 1023]
    below = np.minimum(logits.max() - logits.astype(np.int64), _MOST_BELOW)
    flattened: np.ndarray = -((below * _CONFIDENCE >> 10) + (rarity.astype(np.int64) * _PRIOR >> 10))
    return flattened.astype(np.int32)


def frequencies(below: np.ndarray) -> np.ndarray:
    """Frequencies of unsteered tokens, int64 [...]. below: units below the best, int32 [...]."""
    units = np.minimum(below, FAR)
    return (arithmetic.powers()[units & 1023].astype(np.int64) >> (_SHIFT + (units >> 10))) + 1
