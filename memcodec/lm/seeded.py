"""The integer generator of all seeded constants of the format (spec/FORMAT.md, "Memories").

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in counter mode: word i of a stream is a pure function of (stream, i).
It consists of 64-bit integer operations only, so it is the same on every platform and with every library version.
"""

import numpy as np

from memcodec.lm.compiled import subkernel

GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1

_golden, _first, _second = np.uint64(GOLDEN), np.uint64(FIRST), np.uint64(SECOND)


def words(stream: int, start: int, count: int) -> np.ndarray:
    """Words `start` to `start + count` of a stream of the generator, as uint64 [count]."""
    base = ((stream << 40) + start + 1) * GOLDEN & _MASK
    with np.errstate(over="ignore"):
        z = np.uint64(base) + np.arange(count, dtype=np.uint64) * _golden
        z = (z ^ (z >> np.uint64(30))) * _first
        z = (z ^ (z >> np.uint64(27))) * _second
    return z ^ (z >> np.uint64(31))


@subkernel
def word(stream, index):
    """One word of a stream, uint64, for kernels."""
    z = ((np.uint64(stream) << np.uint64(40)) + np.uint64(index) + np.uint64(1)) * _golden
    z = (z ^ (z >> np.uint64(30))) * _first
    z = (z ^ (z >> np.uint64(27))) * _second
    return z ^ (z >> np.uint64(31))
