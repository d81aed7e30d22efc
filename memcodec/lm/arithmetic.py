"""The numbers of the exact LM: constants, tables and rounding rules (spec/FORMAT.md is the definition).

Tables are computed with single IEEE float64 additions, multiplications and divisions only, which are the same on every
machine, and without functions of the C library. They are then rounded to a coarse grid, so that any other accurate
computation yields the same tables. Their hash is in the specification, and the self-test checks it.
"""

import hashlib
import math
from functools import cache

import numpy as np

from memcodec.lm.architecture import Architecture, frequencies

UNIT = 1024  # logits, entropies and costs are integers in 1/1024 bit
LARGEST = 127  # the largest integer of a weight, activation, query, key or value: int8
SHARE = 255  # the largest attention weight
TINY = 2.0**-100  # the least value used as the largest entry of a vector, so that no scale is subnormal
FAR = 2.0**29  # logits are clamped to plus or minus this, in units, so that two differ by less than 2**31
ONE = 30  # bits of the 1 in the table of powers
ATTENTION_BITS = 20  # bits of the 1 of `exp2`
EXP2 = (1 << ATTENTION_BITS, 725_186, 242_403, 41_553)  # coefficients of a cubic, see `exp2`
EXP2_END = (ATTENTION_BITS + 1) << 10  # from here on, `exp2` is 0
MOST_ROTATED = 128  # entries of a block of the Hadamard transform before the second matrix of an MLP, at most
# A gate is a sigmoid of x * (first + second * x**2); of gelu, the two least wrong ones (0.0003 at most).
GATES = {"silu": (1.0, 0.0), "gelu": (1.6, 0.0695), "gelu_tanh": (1.5957691216057308, 0.07135481627159866)}
GATE_REACH = 20  # the argument is limited to plus or minus this

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
LOGIT_SCALE = np.float32(UNIT * LOG2E)  # units in a nat

TABLES_SHA256 = "073b39bb194a7e6301fb985eddef3634d706cfbb62d8244e60cb65e80e924b4c"


def block_of(size: int, most: int = 1 << 30) -> int:
    """The largest power of two that divides a size and is at most `most`."""
    return min(size & -size, most)


def attention_scale(head_size: int) -> np.float32:
    """The factor that turns a product of a transformed query and key into units, float32."""
    return np.float32(UNIT * LOG2E / (math.sqrt(head_size) * block_of(head_size)))


def exp2(below: np.ndarray) -> np.ndarray:
    """Returns about 2**(20 - below / 1024), rounded down to an integer, for integers >= 0, int64.

    A cubic in integers, with a relative error below 1e-4 before the last shift rounds it down: vector instructions have
    products, but no table look-ups.
    """
    below = np.minimum(below, EXP2_END)
    fraction = below & 1023
    total = np.full_like(below, EXP2[3])
    for coefficient in EXP2[2::-1]:
        total = coefficient - (fraction * total >> 10)
    return total >> (below >> 10)


# ---- functions, as series of IEEE operations


def exp(x: np.ndarray) -> np.ndarray:
    """e to the x, float64, with a relative error of about 1e-15, for |x| up to 700."""
    halvings = np.rint(x * LOG2E)
    rest = x - halvings * 0.693147180369123816490 - halvings * 1.90821492927058770002e-10  # ln 2 in two parts
    total = term = np.ones_like(rest)
    for i in range(1, 18):
        term = term * rest / i
        total = total + term
    return np.ldexp(total, halvings.astype(np.int64))


def log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of normal positive numbers, float64."""
    fraction, exponent = np.frexp(x)  # exact
    small = fraction < 0.7071067811865476
    fraction = np.where(small, fraction * 2, fraction)
    exponent = exponent - small
    ratio = (fraction - 1) / (fraction + 1)
    square, term = ratio * ratio, ratio
    total = ratio
    for i in range(3, 40, 2):
        term = term * square
        total = total + term / i
    return 2 * total + exponent * LN2


def power(base: float, exponent: float) -> float:
    """base to the exponent, for a positive base."""
    return float(exp(exponent * log(np.array([base])))[0])


def cosine_sine(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of 0 to 1e5 radians, float64, with an error of about 1e-11."""
    quarter = np.rint(x * 0.6366197723675814)
    rest = x - quarter * 1.5707963267341256 - quarter * 6.077100506506192e-11
    square = rest * rest
    cosine, sine = np.ones_like(rest), rest
    term_c, term_s = cosine, sine
    for i in range(1, 12):
        term_c = -term_c * square / ((2 * i - 1) * (2 * i))
        term_s = -term_s * square / ((2 * i) * (2 * i + 1))
        cosine, sine = cosine + term_c, sine + term_s
    turn = quarter.astype(np.int64) % 4
    return (
        np.select([turn == 0, turn == 1, turn == 2], [cosine, -sine, -cosine], sine),
        np.select([turn == 0, turn == 1, turn == 2], [sine, cosine, -sine], -cosine),
    )


# ---- tables


def _on_grid(x: np.ndarray, bits: int) -> np.ndarray:
    return (np.rint(x * 2.0**bits) / 2.0**bits).astype(np.float32)


@cache
def powers() -> np.ndarray:
    """2**-(i/1024) in units of 2**-30, int32 [1024]."""
    return np.rint(exp(np.arange(UNIT) * (-LN2 / UNIT)) * 2.0**ONE).astype(np.int32)


@cache
def logarithms() -> np.ndarray:
    """log2(1 + i/1024) in units, int32 [1024]."""
    return np.rint(log(1 + np.arange(UNIT) / UNIT) * (LOG2E * UNIT)).astype(np.int32)


def gate(name: str) -> tuple[np.float32, np.float32]:
    """The coefficients of a gate, see `GATES`."""
    first, second = GATES[name]
    return np.float32(first), np.float32(second)


def rotation(architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines by position, on a grid of 2**-16, float32 [positions, head_size / 2]; empty if not rotary."""
    if architecture.rotary is None:
        empty = np.empty((0, architecture.head_size // 2), dtype=np.float32)
        return empty, empty
    steps = np.array(frequencies(architecture.rotary, architecture.head_size, power))
    cosine, sine = cosine_sine(np.arange(architecture.positions)[:, None] * steps)
    return _on_grid(cosine, 16), _on_grid(sine, 16)


@cache
def tables_hash() -> str:
    """SHA-256 over the tables that are the same for all models, in hexadecimal."""
    tables = [powers(), logarithms()]
    return hashlib.sha256(b"".join(table.tobytes() for table in tables)).hexdigest()
