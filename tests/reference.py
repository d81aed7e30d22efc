"""The exact LM once more, in plain numpy on int64, one sequence and one operation at a time: slow and easy to check."""

import math
from fractions import Fraction

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.seeded import words
from memcodec.lm.weights import ExactWeights

f4, f8 = np.float32, np.float64


def largest(x: np.ndarray) -> np.float32:
    return max(np.abs(x).max(), f4(2.0**-100))


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """round(x * (127 / a)), int64, and a / 127, with a = max|x|."""
    return np.rint(x * (f4(127) / largest(x))).astype(np.int64), largest(x) / f4(127)


def root_scale(x: np.ndarray, epsilon: float) -> np.float32:
    n, _ = quantize(x)
    u = f8(largest(x)) / 127
    return f4(1 / math.sqrt(int(n @ n) / len(x) * (u * u) + epsilon))


def norm(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.float32]:
    n, scale = quantize(x)
    return n, scale * root_scale(x, epsilon)


def power_of_two(size: int) -> int:
    """The largest that divides a size."""
    return next(1 << i for i in range(size) if size % (2 << i))


def hadamard(x: np.ndarray, block: int) -> np.ndarray:
    """The transform of each block of a vector, in its own type, not scaled."""
    x, h = x.copy(), 1
    while h < block:
        for i in range(len(x)):
            if i // h % 2 == 0:
                x[i], x[i + h] = x[i] + x[i + h], x[i] - x[i + h]
        h *= 2
    return x


def rotate(x: np.ndarray) -> np.ndarray:
    """The rotation of a vector, float64."""
    n = len(x)
    k = power_of_two(n).bit_length() - 1
    m = n >> k
    x = np.where(words(26, 0, n) >> np.uint64(63), -x.astype(f8), x.astype(f8)).reshape(1 << k, m)
    if m > 1:
        for run in x:
            run -= in_order(run) * (2 / m)
    for column in range(m):
        x[:, column] = hadamard(x[:, column], 1 << k)
    return x.reshape(-1) * (2.0 ** (-(k // 2)) if k % 2 == 0 else 2.0 ** (-(k + 1) // 2) * 1.4142135623730951)


def in_order(x: np.ndarray) -> float:
    """The sum from the first entry to the last, float64."""
    total = x[0]
    for entry in x[1:]:
        total = total + entry
    return total


def exp2(below: int) -> int:
    f = below % 1024
    t = 242403 - (f * 41553 >> 10)
    u = 725186 - (f * t >> 10)
    return (1048576 - (f * u >> 10)) >> below // 1024 if below < 21504 else 0


def gate(g: np.float32, name: str) -> np.float32:
    """g times a sigmoid, from the integer powers."""
    first, second = arithmetic.gate(name)
    near = min(max(g, f4(-20)), f4(20))
    u = near * (first + second * (near * near))
    e = exp2(int(np.rint(abs(u) * f4(1024 * math.log2(math.e)))))
    return g * (f4(e if u < 0 else 1048576) / f4(1048576 + e))


class Reference:
    """Logits of one sequence of tokens (or of vectors before them), int64 [positions, vocabulary]."""

    def __init__(self, weights: ExactWeights) -> None:
        self.a = weights.architecture
        self.t = weights.tensors

    def linear(self, name: str, layer: int | None, x: np.ndarray, scale: np.float32) -> np.ndarray:
        at = slice(None) if layer is None else layer
        sums = self.t[name][at].astype(np.int64) @ x
        assert np.abs(sums).max() < 2**31
        y = sums.astype(f4) * scale * self.t[name + ".scale"][at]
        return y + self.t[name + ".bias"][at] if name + ".bias" in self.t else y

    def vector(self, v: np.ndarray) -> np.ndarray:
        """What enters the residual stream for a vector of a memory, float32."""
        v = v.astype(f8)
        return rotate(v - in_order(v) / len(v) if self.a.layer_norm else v).astype(f4)

    def head(self, x: np.ndarray, gain: str, layer: int, position: int) -> tuple[np.ndarray, np.float32]:
        """A head of queries or keys, as integers and their scale."""
        a, factor = self.a, None
        if a.head_norm:
            factor = root_scale(x, a.epsilon)
            x = x * self.t[gain][layer]
        if a.rotary is not None:
            cosine, sine = self.t["cosine"][position], self.t["sine"][position]
            first, second = np.split(x, 2)
            x = np.concatenate([first * cosine - second * sine, second * cosine + first * sine])
        n, scale = quantize(hadamard(x, power_of_two(a.head_size)))
        return n, scale if factor is None else scale * factor

    def attend(self, q: np.ndarray, scale: np.float32, keys: list, values: list) -> np.ndarray:
        """One head of queries over all positions so far."""
        size = self.a.head_size
        factor = scale * f4(1024 * math.log2(math.e) / (math.sqrt(size) * power_of_two(size)))
        units = []
        for k, scale in keys:
            y = f4(int(q @ k)) * factor * scale
            units.append(int(np.rint(min(max(y, f4(-(2.0**29))), f4(2.0**29)))))
        powers = [exp2(max(units) - unit) for unit in units]
        portions = [f4(e) * scale for e, (_, scale) in zip(powers, values, strict=True)]
        most = max(portions)
        shares = [int(np.rint(w * (f4(255) / most))) for w in portions]
        mixed = sum(share * v for share, (v, _) in zip(shares, values, strict=True))
        assert np.abs(mixed).max() < 2**31
        return mixed.astype(f4) * f4(f8(most) / (255 * sum(powers)))

    def __call__(self, tokens: list[int], vectors: np.ndarray | None = None) -> np.ndarray:
        a, t = self.a, self.t
        rows = [t["embedding"][i].astype(f4) * t["embedding.scale"][i] for i in tokens]
        rows = [*(self.vector(v) for v in (vectors if vectors is not None else [])), *rows]
        cache: list[tuple[list, list]] = [([], []) for _ in range(a.layers * a.key_heads)]
        return np.stack([self.position(row, p, cache) for p, row in enumerate(rows)])

    def position(self, x: np.ndarray, position: int, cache: list[tuple[list, list]]) -> np.ndarray:
        a, t = self.a, self.t
        if a.rotary is None:
            x = x + t["position"][position]
        for layer in range(a.layers):
            heads = self.linear("qkv", layer, *norm(x, a.epsilon)).reshape(-1, a.head_size)
            z = []
            for group in range(a.key_heads):
                keys, values = cache[layer * a.key_heads + group]
                keys.append(self.head(heads[a.heads + group], "key.gain", layer, position))
                values.append(quantize(heads[a.heads + a.key_heads + group]))
                for e in range(a.heads // a.key_heads):
                    q, scale = self.head(heads[group * (a.heads // a.key_heads) + e], "query.gain", layer, position)
                    z.append(self.attend(q, scale, keys, values))
            x = x + self.linear("mix", layer, *quantize(np.concatenate(z)))
            y = self.linear("up", layer, *norm(x, a.epsilon))
            z = np.array([gate(g, a.gate) for g in y[: a.inner]])
            if a.gated:
                z = z * y[a.inner :]
            x = x + self.linear("down", layer, *quantize(hadamard(z, min(power_of_two(a.inner), 128))))
        y = self.linear("head", None, *norm(x, a.epsilon))
        y = np.clip(y * f4(1024 * math.log2(math.e)), f4(-(2.0**29)), f4(2.0**29))
        return np.rint(y).astype(np.int64)


class Stepping:
    """The same, a token or vector at a time."""

    def __init__(self, weights: ExactWeights) -> None:
        self.reference = Reference(weights)
        self.restart()

    def restart(self) -> None:
        a = self.reference.a
        self.place, self.cache = 0, [([], []) for _ in range(a.layers * a.key_heads)]

    def token(self, i: int) -> np.ndarray:
        t = self.reference.t
        return self._step(t["embedding"][i].astype(f4) * t["embedding.scale"][i])

    def vector(self, v: np.ndarray) -> np.ndarray:
        return self._step(self.reference.vector(v))

    def _step(self, x: np.ndarray) -> np.ndarray:
        self.place += 1
        return self.reference.position(x, self.place - 1, self.cache)


def bits(logits: np.ndarray, tokens: list[int]) -> float:
    """Bits of tokens under logits in units: -log2 softmax, float64."""
    nats = logits * (math.log(2) / 1024)
    top = nats.max(axis=1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(nats - top).sum(axis=1))
    return float((total - nats[np.arange(len(tokens)), tokens]).sum() / math.log(2))


def share(value: float) -> Fraction:
    return Fraction(round(value * 1024), 1024)
