"""Steering: how the bits of a memory move logits, for the encoder and the decoder (spec/FORMAT.md, "Memories")."""

from functools import cache
from typing import NamedTuple

import numpy as np

from memcodec.coding.distribution import MOST_LIFT
from memcodec.lm.compiled import not_inlined, ones_in, subkernel
from memcodec.lm.seeded import word, words
from memcodec.lm.weights import Head

WINDOW = 24  # bits of the memory that a position sees
FEATURES = 64  # parities of the window
MOST_NEW = 4  # the most bits that enter the window at a position
MOST_ENTROPY = 6 * 1024  # the most units of entropy that count at a position

PARITY_STREAM, SIGN_STREAM = 1, 2
# 1.1 log2(e) sqrt(2 ln 2): multiplied by the root of share times entropy, both in 1/1024, it is in units.
TILT = 1.8685079606336419
REACH = np.int32(MOST_LIFT << 10)


class Steering(NamedTuple):
    """The data of an LM that steering needs."""

    head: np.ndarray  # int8 [vocabulary, hidden]
    scale: np.ndarray  # float32 [vocabulary]
    unit: float  # 1 / (standard deviation of an unscaled move)
    parities: np.ndarray  # uint64 [3, 256], see `parity_tables`

    @classmethod
    def of(cls, head: Head) -> "Steering":
        """Returns the data for steering, from the head of an LM (`ExactLM.head`)."""
        unit = 1.0 / np.sqrt(FEATURES * max(head.spread, 1e-30))
        return cls(head.integers, head.scale, unit, parity_tables())


@cache
def parity_tables() -> np.ndarray:
    """Features of each byte of a window as bits, uint64 [3, 256]; a window's features are the exclusive or of three."""
    masks = words(PARITY_STREAM, 0, FEATURES)
    tables = np.zeros((WINDOW // 8, 256), dtype=np.uint64)
    for bit in range(WINDOW):
        odd = np.bitwise_or.reduce((masks >> np.uint64(bit) & np.uint64(1)) << np.arange(FEATURES, dtype=np.uint64))
        tables[bit // 8, np.arange(256) >> bit % 8 & 1 == 1] ^= odd
    return tables


# The state of a reader of memory bits, an int64 array: bits read, the sum of capped entropies, window.
USED, ENTROPY_SUM, WINDOW_BITS = range(3)
READER_STATE = 3


@subkernel
def capped(entropy):
    """The entropy of a position, limited to MOST_ENTROPY."""
    return np.int64(min(entropy, np.int32(MOST_ENTROPY)))


@subkernel
def new_bits(share, entropy_sum, used, count):
    """The number of bits that enter at a position. entropy_sum: of capped entropies; used, count: bits read, of all."""
    return min(min(share * entropy_sum >> 20, count) - used, MOST_NEW)


@subkernel
def read_bits(share, entropy, memories, first, count, state):
    """Read new bits of a memory into the window. state: int64 [READER_STATE or more].

    The memory has `count` bits from bit `first` of `memories` on, uint8, the lowest bit of a byte first. They stay
    packed, since a hostile file may have any number of them.
    """
    state[ENTROPY_SUM] += capped(entropy)
    new = new_bits(share, state[ENTROPY_SUM], state[USED], count)
    for i in range(new):
        place = first + state[USED] + i
        bit = np.int64(memories[place >> 3]) >> (place & 7) & 1
        state[WINDOW_BITS] = ((state[WINDOW_BITS] << 1) | bit) & ((1 << WINDOW) - 1)
    state[USED] += new


@subkernel
def features_of(window, parities):
    """The 64 parities of a window, as bits."""
    low, middle, high = window & 255, (window >> 8) & 255, window >> 16
    return parities[0, low] ^ parities[1, middle] ^ parities[2, high]


@subkernel
def tilt_of(share, entropy):
    """The factor of moves at a position, float64, in units."""
    return TILT * np.sqrt(np.float64(share * capped(entropy)))


@subkernel
def steer(position, features, tilt, steering, ids, moves, vector):
    """Write the moves of the logits of some tokens, in units, int32. ids: int32, up to the first -1.

    vector: a buffer, int32 [hidden], for the product of this position's sign matrix and the features.
    """
    not_inlined()
    head, scale, unit = steering.head, steering.scale, steering.unit
    hidden = len(vector)
    for i in range(np.uint64(hidden)):
        vector[i] = np.int32(FEATURES) - np.int32(2) * np.int32(
            ones_in(word(SIGN_STREAM, np.uint64(position) * np.uint64(hidden) + i) ^ features)
        )
    for k in range(len(moves)):
        moves[k] = 0
        if ids[k] >= 0:
            row = head[ids[k]]
            total = np.int32(0)
            for i in range(np.uint64(hidden)):
                total += np.int32(row[i]) * vector[i]
            move = np.rint(np.float64(total) * (np.float64(scale[ids[k]]) * unit) * tilt)
            moves[k] = np.int32(min(max(move, np.float64(-REACH)), np.float64(REACH)))
