"""What the exact LM says of the next token, as integer frequencies (spec/FORMAT.md, "Distribution").

The frequency of a token that is d units of logit below the best is 2**(28 - d / 1024), rounded down, and 1 more: no
token is impossible. `Predictions` keep of each position what encoding and the search need, in some 3 KB instead of all
logits.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.compiled import bits_of, kernel, not_inlined, subkernel
from memcodec.lm.team import Team

COMPETITORS = 32  # the best tokens, which a memory steers; one more is known, as their rival
BLOCK = 256  # tokens whose frequencies are summed
CELL = 32  # tokens whose largest logit is known
FREQUENCY_BITS = 28  # of the best token's frequency
MOST_LIFT = 12  # bits by which steering changes a frequency at most

# How far an LM is trusted before it has seen much: at the first positions of a group, its logits count times the first
# number and the rarity of tokens times the second, both in 1/1024. Read off the standard library's argparse.py and
# this project's LICENSE, 40 places each (docs/context.md).
EARLY = np.array([(512, 512), (731, 256), (788, 102), *[(853, 102)] * 3, *[(914, 0)] * 14], dtype=np.int64)
LATE = len(EARLY)
_RARE = 100  # byte-level BPE numbers tokens as it merges them, the frequent ones first: p ~ 1 / (id + 100)
_MOST_BELOW = np.int32(1 << 20)

_FAR = np.int32((FREQUENCY_BITS + 1) << 10)  # so many units below the best, a frequency is 1
_SHIFT = np.int32(arithmetic.ONE - FREQUENCY_BITS)
_LIFT = np.int64(MOST_LIFT)
_LOWEST = np.int32(-(2**31))


@subkernel
def frequency(below, powers):
    """The frequency of a token so many units below the best, int64; negative where steering put it above."""
    units = min(below, _FAR)
    shift = np.int64(_SHIFT) + _LIFT + np.int64(units >> np.int32(10))
    return (np.int64(powers[units & np.int32(1023)]) << _LIFT >> shift) + np.int64(1)


@subkernel
def log2_units(value, logarithms):
    """log2 of a positive integer, in units: of its float32, exponent and the first ten bits of the fraction."""
    bits = bits_of(np.float32(value))
    return ((bits >> np.int32(23)) - np.int32(127)) * np.int32(1024) + logarithms[
        (bits >> np.int32(13)) & np.int32(1023)
    ]


@subkernel
def temper(logits, vocabulary, position, early, rarity):
    """Trust the LM less at the first positions of a group, in place: flatter logits, and a prior of the tokens' ids."""
    if position >= len(early):
        return
    factor, weight = early[position, 0], early[position, 1]
    best = _LOWEST
    for i in range(np.uint64(vocabulary)):
        best = max(best, logits[i])
    for i in range(np.uint64(vocabulary)):
        below = np.int64(min(best - logits[i], _MOST_BELOW))
        logits[i] = -np.int32((below * factor >> 10) + (np.int64(rarity[i]) * weight >> 10))


@subkernel
def summarize_row(logits, vocabulary, powers, logarithms, cells, ids, below, blocks):
    """One position: gives the best logit, the sum of all frequencies, and the entropy in units.

    logits: int32 [vocabulary or more]. Fills cells, int32 [vocabulary / CELL]; ids and below (units), int32
    [COMPETITORS + 1], the best tokens, of equals the one with the lower id first, -1 where there are fewer; blocks,
    int64 [vocabulary / BLOCK], sums of frequencies.
    """
    not_inlined()
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
            units = min(best - logits[i], _FAR)
            one = powers[np.uint64(units & np.int32(1023))] >> (_SHIFT + (units >> np.int32(10)))
            mass += one
            weighted += np.int64(one) * np.int64(units)
        mass += np.int64(min(BLOCK, vocabulary - block * BLOCK))
        blocks[block] = mass
        total += mass
        moment += weighted
    entropy = log2_units(total, logarithms) - np.int32(FREQUENCY_BITS * 1024) + np.int32(moment // total)
    return best, total, max(entropy, np.int32(0))


@subkernel
def _best_tokens(logits, vocabulary, cells, ids, values):
    """The best tokens and their logits, in order. A token that is among them is in a cell whose best is."""
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
    """Into a list that falls, behind its equals; the last one drops out."""
    k = len(ids) - 1
    while k > 0 and (ids[k - 1] < 0 or values[k - 1] < value):
        ids[k], values[k] = ids[k - 1], values[k - 1]
        k -= 1
    ids[k], values[k] = new, value


@dataclass(frozen=True)
class Predictions:
    """Positions as the encoder needs them.

    ids, below: the best tokens and by how many units they are below the best, int32 [positions, COMPETITORS + 1];
    total: sums of frequencies, int64 [positions]; entropy: units, int32 [positions]; blocks: int64 [positions, blocks];
    near: units below the best of the tokens in the true token's block, int32 [positions, BLOCK].
    """

    tokens: np.ndarray
    ids: np.ndarray
    below: np.ndarray
    total: np.ndarray
    entropy: np.ndarray
    blocks: np.ndarray
    near: np.ndarray

    @classmethod
    def empty(cls, tokens: np.ndarray, vocabulary: int) -> "Predictions":
        """Room for the positions that predict `tokens`, int64 [positions]."""
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

    def fill(self, first: int, logits: np.ndarray, vocabulary: int, team: Team, position: int) -> None:
        """Take in the positions from `first` on: logits int32 [rows, vocabulary or more], which are written over.

        position: of the first of them in its group, LATE where the LM has a memory to read before it.
        """
        rows = slice(first, first + len(logits))
        parts = [x[rows] for x in (self.tokens, self.ids, self.below, self.total, self.entropy, self.blocks, self.near)]
        cells = np.empty((team.workers, -(-vocabulary // CELL)), dtype=np.int32)
        tables = arithmetic.powers(), arithmetic.logarithms(), EARLY, rarity(vocabulary)
        team.run(
            lambda worker, workers: _predict(logits, vocabulary, position, *tables, *parts, cells, worker, workers)
        )

    def bits(self) -> float:
        """Bits of the tokens under these frequencies: what an ideal coder with them would need."""
        rows = np.arange(len(self.tokens))
        found = frequencies(self.near[rows, self.tokens % BLOCK])
        return float((np.log2(self.total.astype(float)) - np.log2(found.astype(float))).sum())


@kernel
def _predict(
    logits, vocabulary, position, powers, logarithms, early, rarity, tokens, ids, below, total, entropy, blocks, near,
    cells, worker, workers,
):  # fmt: skip
    for m in range(worker, len(logits), workers):
        row = logits[m]
        temper(row, vocabulary, position + m, early, rarity)
        best, total[m], entropy[m] = summarize_row(
            row, vocabulary, powers, logarithms, cells[worker], ids[m], below[m], blocks[m]
        )
        first = tokens[m] // BLOCK * BLOCK
        for i in range(min(BLOCK, vocabulary - first)):
            near[m, i] = best - row[first + i]


@cache
def rarity(vocabulary: int) -> np.ndarray:
    """How rare each token is before anything is known, in units, int32 [vocabulary]."""
    value = np.arange(_RARE, vocabulary + _RARE).astype(np.float32)
    bits = value.view(np.int32)
    return ((bits >> 23) - 127) * 1024 + arithmetic.logarithms()[(bits >> 13) & 1023]


def frequencies(below: np.ndarray) -> np.ndarray:
    """Frequencies of tokens so many units below the best, unsteered: int32 [...] -> int64 [...]."""
    units = np.minimum(below, _FAR)
    return (arithmetic.powers()[units & 1023].astype(np.int64) >> (_SHIFT + (units >> 10))) + 1
