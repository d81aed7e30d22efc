"""What a model loses by weights and activations of eight bits: its predictions in float32 beside those of the exact LM.

The float pass runs over a short text, layer by layer, while the weights are converted. No file depends on it.
"""

import numpy as np

from memcodec.errors import ModelNotFoundError
from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture
from memcodec.lm.model import ExactLM, logits_of
from memcodec.lm.weights import ExactWeights
from memcodec.models.layers import Layer, Linear, Norm
from memcodec.models.tokenizer import ByteTokenizer

MOST_LOST = 0.25  # bits a token, which are some 6 % of what plain text takes

TEXT = """\
The council met on 14 March to hear what the survey of the bridge had found. "Nothing that cannot be mended," said
the engineer, "but not before winter."

def mean(values: list[float]) -> float:
    return sum(values) / len(values)

Der Zug nach Wien fährt heute von Gleis 7. {"name": "pump-3", "pressure": 2.71, "on": true}
"""


class FloatPass:
    """The LM in float32 over some tokens. `logits`: after `finish`, in nats, float32 [tokens, vocabulary]."""

    def __init__(self, architecture: Architecture, tokens: np.ndarray) -> None:
        self.tokens = tokens[: architecture.positions]
        self._a = architecture
        self._cosine, self._sine = (table[: len(self.tokens), None] for table in arithmetic.rotation(architecture))

    @classmethod
    def of(cls, architecture: Architecture, tokenizer: ByteTokenizer) -> "FloatPass":
        """Returns a pass over the prefix and TEXT, without tokens that the model does not have."""
        tokens = np.concatenate([np.array(tokenizer.prefix(), dtype=np.int64), tokenizer.encode(TEXT)])
        return cls(architecture, tokens[tokens < architecture.vocabulary])

    def start(self, embedding: np.ndarray, position: np.ndarray | None) -> None:
        """Read the tokens. embedding: [vocabulary, hidden]; position: [positions, hidden]."""
        self._x = embedding[self.tokens].astype(np.float32)
        if position is not None:
            self._x += position[: len(self.tokens)]

    @np.errstate(all="ignore")
    def layer(self, layer: Layer) -> None:
        """Go through the next layer."""
        a = self._a
        heads = _apply(layer.qkv, self._norm(self._x, layer.attention_norm)).reshape(len(self.tokens), -1, a.head_size)
        queries, keys, values = np.split(heads, [a.heads, a.heads + a.key_heads], axis=1)
        queries = self._placed(queries, layer.heads.get("query.gain"))
        keys = self._placed(keys, layer.heads.get("key.gain"))
        keys, values = (np.repeat(x, a.heads // a.key_heads, axis=1) for x in (keys, values))
        scores = np.einsum("qhe,khe->hqk", queries, keys) / np.sqrt(np.float32(a.head_size))
        scores += np.triu(np.full(scores.shape[1:], -np.inf, dtype=np.float32), 1)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        mixed = np.einsum("hqk,khe->qhe", weights / weights.sum(axis=2, keepdims=True), values)
        self._x += _apply(layer.mix, mixed.reshape(len(self.tokens), -1))
        up = _apply(layer.up, self._norm(self._x, layer.mlp_norm))
        if a.gated:
            gate, up = np.split(up, 2, axis=1)
            self._x += _apply(layer.down, self._gate(gate) * up)
        else:
            self._x += _apply(layer.down, self._gate(up))

    @np.errstate(all="ignore")
    def finish(self, head: np.ndarray, norm: Norm) -> None:
        """Compute the logits. head: [vocabulary, hidden]."""
        self.logits = _apply(Linear(head), self._norm(self._x, norm))

    def _norm(self, x: np.ndarray, norm: Norm) -> np.ndarray:
        if self._a.layer_norm:
            x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + self._a.epsilon) * norm.gain
        return x if norm.shift is None else x + norm.shift

    def _placed(self, x: np.ndarray, gain: np.ndarray | None) -> np.ndarray:
        """Queries or keys, [tokens, heads, head_size], turned to their positions."""
        if gain is not None:
            x = x / np.sqrt(np.square(x).mean(axis=2, keepdims=True) + self._a.epsilon) * gain
        if self._a.rotary is None:
            return x
        first, second = np.split(x, 2, axis=2)
        cosine, sine = self._cosine, self._sine
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=2)

    def _gate(self, x: np.ndarray) -> np.ndarray:
        first, second = arithmetic.gate(self._a.gate)
        return x / (1 + np.exp(-x * (first + second * x * x)))


def _apply(linear: Linear, x: np.ndarray) -> np.ndarray:
    y = x.astype(np.float32) @ linear.matrix.T.astype(np.float32)
    return y if linear.bias is None else y + linear.bias


def check(weights: ExactWeights, computed: FloatPass, name: str) -> None:
    """Raise ModelNotFoundError if the exact LM predicts much worse than the LM in float32. name: for the message."""
    exact = logits_of(ExactLM(weights, "cpu"), computed.tokens)
    lost = lost_bits(computed.logits, exact)
    if not lost <= MOST_LOST:  # also if it is not a number
        raise ModelNotFoundError(
            f"{name}: its predictions are inaccurate with eight bits: {lost:.2f} bits per token worse than in float32 "
            f"(limit {MOST_LOST}): choose another model"
        )


@np.errstate(all="ignore")
def lost_bits(logits: np.ndarray, exact: np.ndarray) -> float:
    """The bits that a token costs more, on average, if it is drawn as `logits` say and coded as `exact` says.

    That is their Kullback-Leibler divergence. logits: in nats, float [tokens, vocabulary]; exact: in units, integers.
    """
    expected = _log2(logits / np.log(2))
    return float((np.exp2(expected) * (expected - _log2(exact / arithmetic.UNIT))).sum(axis=1).mean())


def _log2(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities. logits: to the base 2."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log2(np.exp2(shifted).sum(axis=1, keepdims=True))
    return result
