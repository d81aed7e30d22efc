"""The exact LM once more, in plain numpy on int64, one sequence and one operation at a time: slow and easy to check."""

import math
from fractions import Fraction

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.weights import ExactWeights

f4, f8 = np.float32, np.float64


def integers(x: np.ndarray, limit: int) -> tuple[np.ndarray, np.float32]:
    """round(x * (limit / max|x|)), int64, and max|x| / limit."""
    most = max(np.abs(x).max(), f4(2.0**-100))
    return np.rint(x * (f4(limit) / most)).astype(np.int64), most / f4(limit)


def moments(x: np.ndarray) -> tuple[int, int, float]:
    found, _ = integers(x, 32767)
    unit = f8(max(np.abs(x).max(), f4(2.0**-100))) / f8(32767)
    return int(found.sum()), int((found * found).sum()), unit


def root_scale(x: np.ndarray, epsilon: float) -> np.float32:
    _, squares, unit = moments(x)
    return f4(1.0 / math.sqrt(squares / f8(len(x)) * (unit * unit) + epsilon))


def norm(x: np.ndarray, gain: np.ndarray, shift: np.ndarray | None, epsilon: float) -> tuple[np.ndarray, np.float32]:
    limit = arithmetic.highest_input(len(x))
    if shift is None:
        found, unit = integers(x * gain, limit)
        return found, unit * root_scale(x, epsilon)
    total, squares, unit = moments(x)
    mean = f4(f8(total) / f8(len(x)) * unit)
    spread = f8(len(x) * squares - total * total) / (f8(len(x)) * f8(len(x)))
    scale = f4(1.0 / math.sqrt(spread * (unit * unit) + epsilon))
    return integers((x - mean) * scale * gain + shift, limit)


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

    def head(self, x: np.ndarray, gain: str, layer: int, position: int) -> tuple[np.ndarray, np.float32]:
        """One head, normed and rotated, and a factor of its scale."""
        scale = f4(1)
        if self.a.head_norm:
            scale = root_scale(x, self.a.epsilon)
            x = x * self.t[gain][layer]
        if self.a.rotary is not None:
            cosine, sine = self.t["cosine"][position], self.t["sine"][position]
            a, b = np.split(x, 2)
            x = np.concatenate([a * cosine - b * sine, b * cosine + a * sine])
        return x, scale

    def attend(self, q: np.ndarray, factor: np.float32, keys: list, values: list) -> np.ndarray:
        units = []
        for k, scale in keys:
            y = f4(int(q @ k)) * factor * scale
            units.append(int(np.rint(min(max(y, f4(-(2.0**29))), f4(2.0**29)))))
        below = [max(units) - unit for unit in units]
        powers = arithmetic.powers()
        weights = [int(powers[b % 1024]) >> 10 + b // 1024 if b < 21 * 1024 else 0 for b in below]
        portions = [f4(w) * scale for w, (_, scale) in zip(weights, values, strict=True)]
        most = max(portions)
        shares = [int(np.rint(p * (f4(32767) / most))) for p in portions]
        shift = next(s for s in range(40) if sum(shares) >> s <= 65536)
        shares = [(s + (1 << shift >> 1)) >> shift for s in shares]
        mixed = sum(s * v for s, (v, _) in zip(shares, values, strict=True))
        assert np.abs(mixed).max() < 2**24
        return mixed.astype(f4) * f4(f8(most) * f8(1 << shift) / (f8(32767) * f8(sum(weights))))

    def __call__(self, tokens: list[int], vectors: np.ndarray | None = None) -> np.ndarray:
        a, t = self.a, self.t
        rows = [t["embedding"][i].astype(f4) * t["embedding.scale"][i] for i in tokens]
        rows = [*(vectors if vectors is not None else []), *rows]
        cache: list[tuple[list, list]] = [([], []) for _ in range(a.layers * a.key_heads)]
        return np.stack([self.position(row, p, cache) for p, row in enumerate(rows)])

    def position(self, x: np.ndarray, position: int, cache: list[tuple[list, list]]) -> np.ndarray:
        a, t = self.a, self.t
        shifts = {n: t.get(n) for n in ("attention.shift", "mlp.shift", "shift")}
        if a.rotary is None:
            x = x + t["position"][position]
        for layer in range(a.layers):
            shift = None if shifts["attention.shift"] is None else shifts["attention.shift"][layer]
            y = self.linear("qkv", layer, *norm(x, t["attention.gain"][layer], shift, a.epsilon))
            heads = y.reshape(-1, a.head_size)
            z = []
            for group in range(a.key_heads):
                keys, values = cache[layer * a.key_heads + group]
                k, scale = self.head(heads[a.heads + group], "key.gain", layer, position)
                k, unit = integers(k, 127)
                keys.append((k, unit * scale))
                values.append(integers(heads[a.heads + a.key_heads + group], 127))
                for e in range(a.heads // a.key_heads):
                    q, scale = self.head(heads[group * (a.heads // a.key_heads) + e], "query.gain", layer, position)
                    q, unit = integers(q, arithmetic.highest_query(a.head_size))
                    factor = unit * scale * arithmetic.attention_scale(a.head_size)
                    z.append(self.attend(q, factor, keys, values))
            flat = np.concatenate(z)
            x = x + self.linear("mix", layer, *integers(flat, arithmetic.highest_input(len(flat))))
            shift = None if shifts["mlp.shift"] is None else shifts["mlp.shift"][layer]
            y = self.linear("up", layer, *norm(x, t["mlp.gain"][layer], shift, a.epsilon))
            index = np.rint(np.clip(y[: a.inner], f4(-20), f4(20)) * f4(512)).astype(np.int64) + 10240
            z = y[: a.inner] * arithmetic.gate(a.gate)[index]
            if a.gated:
                z = z * y[a.inner :]
            x = x + self.linear("down", layer, *integers(z, arithmetic.highest_input(len(z))))
        y = self.linear("embedding" if a.tied else "head", None, *norm(x, t["gain"], shifts["shift"], a.epsilon))
        y = np.clip(y * arithmetic.LOGIT_SCALE, f4(-(2.0**29)), f4(2.0**29))
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
        return self.vector(t["embedding"][i].astype(f4) * t["embedding.scale"][i])

    def vector(self, x: np.ndarray) -> np.ndarray:
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
