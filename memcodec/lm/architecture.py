"""What an LM computes, as data: read from the config.json of a model, and part of the identity of the LM."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memcodec.errors import ModelNotFoundError

MAX_POSITIONS = 8192  # of an exact LM, even if the model was trained on more: its tables have this size
GATES = ("silu", "gelu", "gelu_tanh")

Config = dict[str, Any]


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (RoFormer, arXiv 2104.09864): theta, and the scaling of Llama 3.1 and others.

    scaling: "default", "linear" (uses factor) or "llama3" (uses all four numbers).
    """

    theta: float
    scaling: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    trained: int = 8192  # positions in the training, before the scaling


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer. Sizes are numbers of entries; positions: the number that the LM can tell apart.

    key_heads: heads of keys and values, each shared by heads / key_heads query heads; inner: the width of the MLP;
    gated: the MLP computes gate(g) * u; layer_norm: LayerNorm with shifts instead of RMSNorm; head_norm: RMSNorm of the
    queries and keys of each head; rotary: None for learned positions.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    positions: int
    epsilon: float
    gate: str
    gated: bool = True
    layer_norm: bool = False
    head_norm: bool = False
    tied: bool = False
    rotary: Rotary | None = None

    def to_json(self) -> str:
        """A line of JSON that is the same for every description of the same LM."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """The inverse of `to_json`. Raises ValueError, TypeError or LookupError."""
        fields = json.loads(text)
        rotary = fields.pop("rotary")
        return cls(**fields, rotary=None if rotary is None else Rotary(**rotary))


def read(folder: Path) -> tuple[str, Architecture]:
    """The family and the architecture of a model folder. Raises ModelNotFoundError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFoundError(f"{folder}: its config.json cannot be read ({error})") from error
    return describe(config, folder.name)


def describe(config: Config, name: str) -> tuple[str, Architecture]:
    """The family and the architecture of a config.json. Raises ModelNotFoundError if it is not one of FAMILIES."""
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise ModelNotFoundError(
            f"{name}: the architecture {family[:40]!r} is not supported; memcodec has {', '.join(FAMILIES)}"
        )
    try:
        architecture = FAMILIES[family](config)
        _check(architecture)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ModelNotFoundError(f"{name}: its config.json is not supported: {reason}") from error
    return family, architecture


def _check(a: Architecture) -> None:
    sizes = (a.vocabulary, a.hidden, a.layers, a.heads, a.key_heads, a.head_size, a.inner, a.positions)
    if min(sizes) < 1 or a.layers > 1024 or a.vocabulary > 1 << 18:
        raise ValueError("a size is out of range")
    if a.heads % a.key_heads or a.hidden % 2 or a.head_size % 2 or a.inner % 2 or (a.heads * a.head_size) % 2:
        raise ValueError("sizes of layers and heads must be even, and heads must be a multiple of key heads")
    if a.heads // a.key_heads > 256:
        raise ValueError("more than 256 heads of queries for each one of keys")
    if a.head_size > 512 or max(a.hidden, a.heads * a.head_size) > 1 << 15 or a.inner > 1 << 17:
        raise ValueError("a size is too large for sums of 32 bits")
    if not 0 < a.epsilon < 1:
        raise ValueError("epsilon is out of range")
    if (r := a.rotary) is not None:
        fine = 1 <= r.theta < 1e12 and 1 <= r.factor < 1e6 and 0 < r.low < r.high < 1e6 and 1 <= r.trained < 1 << 30
        if not fine:
            raise ValueError("rotary positions out of range")


def _gate(name: str) -> str:
    known = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    if name not in known:
        raise ValueError(f"the activation {name!r}")
    return known[name]


def _rotary(config: Config, theta: float) -> Rotary:
    """From the fields of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or theta)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if config.get("partial_rotary_factor", scaling.get("partial_rotary_factor", 1)) not in (None, 1, 1.0):
        raise ValueError("rotary positions on only part of each head")
    if kind == "default":
        return Rotary(theta)
    if kind == "linear":
        return Rotary(theta, "linear", float(scaling["factor"]))
    if kind == "llama3":
        numbers = float(scaling["factor"]), float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        return Rotary(theta, "llama3", *numbers, int(scaling["original_max_position_embeddings"]))
    raise ValueError(f"rotary positions scaled by {kind!r}")


def _llama(config: Config, **more: Any) -> Architecture:
    """Llama, and families that differ from it in names and options only."""
    heads = int(config["num_attention_heads"])
    positions = min(int(config.get("max_position_embeddings", 2048)), MAX_POSITIONS)
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        positions = min(positions, int(config["sliding_window"]))  # within the window, attention is the same without it
    if config.get("pretraining_tp", 1) not in (None, 1):
        raise ValueError("tensor-parallel pretraining")
    return Architecture(
        vocabulary=int(config["vocab_size"]),
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        key_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        inner=int(config["intermediate_size"]),
        positions=positions,
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        gate=_gate(config.get("hidden_act", "silu")),
        tied=bool(config.get("tie_word_embeddings", False)),
        rotary=_rotary(config, 10_000.0),
        **more,
    )


def _qwen2(config: Config) -> Architecture:
    return _llama({"use_sliding_window": False} | config)


def _qwen3(config: Config) -> Architecture:
    return _llama({"use_sliding_window": False, "head_dim": 128} | config, head_norm=True)


def _gpt2(config: Config) -> Architecture:
    if not config.get("scale_attn_weights", True) or config.get("scale_attn_by_inverse_layer_idx", False):
        raise ValueError("attention that is not scaled by the size of a head")
    hidden, heads = int(config["n_embd"]), int(config["n_head"])
    if heads < 1 or hidden % heads:
        raise ValueError(f"a hidden size of {hidden} for {heads} heads")
    return Architecture(
        vocabulary=int(config["vocab_size"]),
        hidden=hidden,
        layers=int(config["n_layer"]),
        heads=heads,
        key_heads=heads,
        head_size=hidden // heads,
        inner=int(config.get("n_inner") or 4 * hidden),
        positions=min(int(config.get("n_positions", 1024)), MAX_POSITIONS),
        epsilon=float(config.get("layer_norm_epsilon", 1e-5)),
        gate=_gate(config.get("activation_function", "gelu_new")),
        gated=False,
        layer_norm=True,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


FAMILIES: dict[str, Callable[[Config], Architecture]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
}


def frequencies(rotary: Rotary, head_size: int, power: Callable[[float, float], float]) -> list[float]:
    """The angle in radians by which each of head_size / 2 pairs of entries turns per position.

    power: a function that computes base ** exponent.
    """
    result = []
    for i in range(head_size // 2):
        frequency = 1.0 / power(rotary.theta, 2 * i / head_size)
        if rotary.scaling == "linear":
            frequency /= rotary.factor
        elif rotary.scaling == "llama3":
            turns = rotary.trained * frequency / (2 * math.pi)  # over the positions of the training
            blend = (turns - rotary.low) / (rotary.high - rotary.low)
            blend = min(max(blend, 0.0), 1.0)
            frequency = (1 - blend) * frequency / rotary.factor + blend * frequency
        result.append(frequency)
    return result
