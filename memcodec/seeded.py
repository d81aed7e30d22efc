"""The integer generator behind every seeded constant of the format (spec/FORMAT.md, "Seeded constants").

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in counter mode: word i of a stream is a pure function of
(stream, i), made of 64-bit integer operations only, so it is the same on every platform and library version.
"""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def words(stream: int, start: int, count: int) -> np.ndarray:
    """Words `start` to `start + count` of a stream of the generator, as uint64 [count]."""
    base = ((stream << 40) + start + 1) * _GOLDEN & _MASK
    with np.errstate(over="ignore"):
        z = np.uint64(base) + np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def signs(stream: int, start: int, rows: int) -> np.ndarray:
    """A sign matrix in {-1, +1}, float32 [rows, 64]: bit j of word `start + i` set means -1 at (i, j)."""
    octets = words(stream, start, rows).astype("<u8").view(np.uint8).reshape(rows, 8)
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    return np.float32(1) - np.float32(2) * bits.astype(np.float32)
