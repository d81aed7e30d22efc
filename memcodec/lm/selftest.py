"""The self-test that an implementation of the exact LM must pass before it encodes or decodes anything.

It checks integer products at their extremes (8-bit products saturate silently on CPUs without VNNI), and known answers:
hashes of the logits of two tiny LMs made of seeded integers, which together have every kind of layer, and some entries
close to zero. It takes a few milliseconds. The hashes are in the specification (spec/FORMAT.md,
"Known answers").
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from memcodec.errors import MachineError
from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture, Rotary
from memcodec.lm.seeded import words
from memcodec.lm.weights import ExactWeights, Tensors, spread

_GATED = Architecture(
    vocabulary=71, hidden=48, layers=2, heads=6, key_heads=2, head_size=32, inner=384, positions=80, epsilon=1e-5,
    gate="silu", head_norm=True, rotary=Rotary(10_000.0, "llama3", 8.0, 1.0, 4.0, 32),
)  # fmt: skip
_PLAIN = Architecture(
    vocabulary=71, hidden=34, layers=2, heads=1, key_heads=1, head_size=34, inner=36, positions=80, epsilon=1e-5,
    gate="gelu_tanh", gated=False,
)  # fmt: skip
KNOWN_ANSWERS = {
    "gated": "c2eee764c86cff00c5646251130aac7c1840467d887a731f46eca6c98192b101",
    "plain": "93e9b235f6c6feeb76f4b193c627df1c111658ebf9a5c19825185e7332879c6e",
}
TOKENS = np.arange(75) * 29 % 71  # more than two panels of positions

# The parts of an implementation: integer products, int [rows, inner] times int8 [columns, inner]; logits of tokens.
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
Logits = Callable[[ExactWeights, np.ndarray], np.ndarray]


def tiny(name: str) -> ExactWeights:
    """One of the two LMs, "gated" or "plain", made of seeded integers."""
    a = _GATED if name == "gated" else _PLAIN
    stream = 16 if name == "gated" else 17
    at = 0

    def draw(*shape: int) -> np.ndarray:
        """Numbers from 0 to 2**16 - 1, int64."""
        nonlocal at
        count = int(np.prod(shape))
        drawn = words(stream, at, count)
        at += count
        return (drawn >> np.uint64(48)).astype(np.int64).reshape(shape)

    def near_one(*shape: int) -> np.ndarray:
        return ((draw(*shape) + 32768) / 65536).astype(np.float32)

    tensors: Tensors = {}

    def matrix(name: str, rows: int, inner: int, layers: int | None = a.layers) -> None:
        shape = (rows,) if layers is None else (layers, rows)
        tensors[name] = (draw(*shape, inner) % 255 - 127).astype(np.int8)
        tensors[name + ".scale"] = near_one(*shape) * np.float32(2.0**-9)

    heads = (a.heads + 2 * a.key_heads) * a.head_size
    matrix("embedding", a.vocabulary, a.hidden, None)
    tensors["embedding.scale"][5] = 2.0**-135  # smaller than any normal number
    tensors["embedding"][7] = 0
    for name, rows, inner in (("qkv", heads, a.hidden), ("mix", a.hidden, a.heads * a.head_size),
                              ("up", (1 + a.gated) * a.inner, a.hidden), ("down", a.hidden, a.inner)):  # fmt: skip
        matrix(name, rows, inner)
        tensors[name + ".bias"] = near_one(a.layers, rows) - np.float32(1)
    if a.head_norm:
        tensors["query.gain"], tensors["key.gain"] = near_one(a.layers, a.head_size), near_one(a.layers, a.head_size)
    if a.rotary is None:
        tensors["position"] = near_one(a.positions, a.hidden)
    else:
        tensors["cosine"], tensors["sine"] = arithmetic.rotation(a)
    matrix("head", a.vocabulary, a.hidden, None)
    tensors["head.bias"] = near_one(a.vocabulary) - np.float32(1)
    tensors["spread"] = np.array([spread(tensors["head"], tensors["head.scale"])])
    return ExactWeights(a, tensors, (3,), b"")


def answer(logits: np.ndarray) -> str:
    """The hash of logits, int [positions, vocabulary], as in the specification."""
    return hashlib.sha256(np.ascontiguousarray(logits, dtype="<i4").tobytes()).hexdigest()


def extremes() -> tuple[np.ndarray, np.ndarray]:
    """Activations, int64 [rows, inner], and weights, int8 [columns, inner], with the largest products."""
    inner, highest = 2088, arithmetic.LARGEST
    drawn = words(18, 0, 2 * inner)
    left, weights = ((drawn[i::2] % np.uint64(2 * highest + 1)).astype(np.int64) - highest for i in range(2))
    rows = [np.full(inner, highest), np.full(inner, -highest), np.where(np.arange(inner) % 2, highest, -highest), left]
    columns = [np.full(inner, 127), np.full(inner, -127), np.where(np.arange(inner) % 2, 127, -127), weights]
    return np.array(rows * 5), np.array(columns * 16, dtype=np.int8)


def passes(product: Product, logits: Logits) -> bool:
    """Whether an implementation passes the test."""
    left, right = extremes()
    if arithmetic.tables_hash() != arithmetic.TABLES_SHA256:
        return False
    if not np.array_equal(product(left, right), left @ right.astype(np.int64).T):
        return False
    return all(answer(logits(tiny(name), TOKENS)) == known for name, known in KNOWN_ANSWERS.items())


def choose(implementation: Callable[[bool], tuple[Product, Logits]], name: str, advice: str = "") -> bool:
    """Whether an implementation needs its fallback products on this machine.

    implementation: a function of whether to use the fallback; name: what the error calls it; advice: what the error
    says to do, if no other implementation will be tried. Raises MachineError if it is exact with neither.
    """
    for fallback in (False, True):
        try:
            if passes(*implementation(fallback)):
                return fallback
        except (RuntimeError, ArithmeticError) as error:  # such as an instruction or operation that does not exist
            reason: Any = error
        else:
            reason = "wrong sums or known answers"
    found = f"this machine does not compute exactly on {name} ({reason})"
    raise MachineError(f"{found}: {advice}" if advice else found)
