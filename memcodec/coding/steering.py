"""Steering: how the bits of a memory move logits, as encoder and decoder compute it (spec/FORMAT.md, "Memories")."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from memcodec.coding.distribution import MOST_LIFT
from memcodec.lm.compiled import not_inlined, ones_in, subkernel
from memcodec.lm.seeded import word, words
from memcodec.lm.weights import Head

WINDOW = 24  # bits of the memory that a position sees
FEATURES = 64  # parities of the window
MOST_NEW = 4  # bits that a position takes in at most
MOST_ENTROPY = 6 * 1024  # units of entropy that count, at a position

PARITY_STREAM, SIGN_STREAM = 1, 2
_TILT = (
    1.8685079606336419  # 1.1 log2(e) sqrt(2 ln 2): times the root of share and entropy, both in 1/1024, it is in units
)
REACH = np.int32(MOST_LIFT << 10)


@dataclass(frozen=True)
class Steering:
    """What steering needs of an LM. head: int8 [vocabulary, hidden]; scale: float32 [vocabulary]; unit: float64."""

    head: np.ndarray
    scale: np.ndarray
    unit: float
    parities: np.ndarray

    @classmethod
    def of(cls, head: Head) -> "Steering":
        """Of an LM's head (`ExactLM.head`)."""
        unit = 1.0 / np.sqrt(FEATURES * max(head.spread, 1e-30))
        return cls(head.integers, head.scale, unit, parity_tables())


@cache
def parity_tables() -> np.ndarray:
    """Features of each byte of a window as bits, uint64 [3, 256]: those of a window are the exclusive or of three."""
    masks = words(PARITY_STREAM, 0, FEATURES)
    tables = np.zeros((WINDOW // 8, 256), dtype=np.uint64)
    for bit in range(WINDOW):
        odd = np.bitwise_or.reduce((masks >> np.uint64(bit) & np.uint64(1)) << np.arange(FEATURES, dtype=np.uint64))
        tables[bit // 8, np.arange(256) >> bit % 8 & 1 == 1] ^= odd
    return tables


# ---- what both sides compute


@subkernel
def until(share, energy, bits):
    """How many bits of the memory have entered, once the entropies so far (capped) add up to `energy`."""
    return min(share * energy >> 20, bits)


@subkernel
def capped(entropy):
    """The entropy of a position, as far as it counts."""
    return np.int64(min(entropy, np.int32(MOST_ENTROPY)))


@subkernel
def features_of(window, parities):
    """The 64 parities of a window, as bits."""
    low, middle, high = window & 255, (window >> 8) & 255, window >> 16
    return parities[0, low] ^ parities[1, middle] ^ parities[2, high]


@subkernel
def tilt_of(share, entropy):
    """The factor of the moves at a position, float64, in units."""
    return _TILT * np.sqrt(np.float64(share * capped(entropy)))


@subkernel
def steer(position, features, tilt, unit, head, scale, ids, moves, vector):
    """What a memory moves the logits of tokens by, in units: int32 into `moves`, for ids int32 up to the first -1.

    vector: int32 [hidden], to use: the sign matrix of this position times the features.
    """
    not_inlined()
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
