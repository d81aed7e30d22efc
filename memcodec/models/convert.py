"""The conversion of float weights to the integers of the exact LM (spec/FORMAT.md, "The exact LM")."""

from collections.abc import Iterator

import numpy as np

from memcodec.errors import ModelNotFoundError
from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture
from memcodec.lm.weights import ExactWeights, Tensors, spread
from memcodec.models.checkpoint import Checkpoint
from memcodec.models.tokenizer import PREFIX
from memcodec.progress import ByteProgress


class _NamedTensors:
    """Reads tensors by their names, with or without the prefix of a family, and checks their shapes."""

    def __init__(self, source: Checkpoint, name: str) -> None:
        self._source = source
        self._folder = name
        self._names = source.names()
        self._base = "model." if any(n.startswith("model.") for n in self._names) else ""
        if any(n.startswith("transformer.") for n in self._names):
            self._base = "transformer."

    def has(self, name: str) -> bool:
        return name in self._names or self._base + name in self._names

    def read(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A tensor of this shape, in which None stands for any length. Raises ModelNotFoundError."""
        full = name if name in self._names else self._base + name
        if full not in self._names:
            raise ModelNotFoundError(f"{self._folder}: its weights lack {full}")
        tensor = self._source.read(full)
        if tensor.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, tensor.shape, strict=True)):
            raise ModelNotFoundError(f"{self._folder}: {full} has the shape {tensor.shape}, not {shape}")
        if not np.isfinite(tensor).all():
            raise ModelNotFoundError(f"{self._folder}: {full} has entries that are not finite")
        return tensor


def convert(
    architecture: Architecture,
    family: str,
    source: Checkpoint,
    name: str,
    prefix: tuple[int, ...],
    tokenizer: bytes,
    progress: ByteProgress | None = None,
) -> ExactWeights:
    """Convert the float weights of an LM.

    family: see `architecture.FAMILIES`; name: for messages; prefix: token ids; tokenizer: its hash. Raises
    ModelNotFoundError.
    """
    a = architecture
    if not prefix or max(prefix) >= a.vocabulary:
        raise ModelNotFoundError(f"{name}: the tokens of {PREFIX!r} are missing in its tokenizer or its vocabulary")
    checkpoint = _NamedTensors(source, name)
    tensors_of = _gpt2_tensors if family == "gpt2" else _llama_tensors
    tensors: Tensors = {}
    stacked: dict[str, list[np.ndarray]] = {}
    for layer in range(a.layers):
        if progress is not None:
            progress("converting the weights", layer, a.layers + 2)
        for key, values in tensors_of(a, checkpoint, layer):
            if values.ndim == 2:
                integers, scale = to_rows(values)
                stacked.setdefault(key, []).append(integers)
                stacked.setdefault(key + ".scale", []).append(scale)
            else:
                stacked.setdefault(key, []).append(values)
    for key in list(stacked):
        tensors[key] = np.stack(stacked.pop(key))
    embedding, norm, position, head_name = _NAMES[family]
    tensors["embedding"], tensors["embedding.scale"] = to_rows(checkpoint.read(embedding, (a.vocabulary, a.hidden)))
    if progress is not None:
        progress("converting the weights", a.layers + 1, a.layers + 2)
    if not a.tied:
        tensors["head"], tensors["head.scale"] = to_rows(checkpoint.read(head_name, (a.vocabulary, a.hidden)))
    if position:
        tensors["position"] = checkpoint.read(position, (None, a.hidden))[: a.positions]
        if len(tensors["position"]) < a.positions:
            raise ModelNotFoundError(f"{name}: {position} has fewer rows than config.json has positions")
    head = "embedding" if a.tied else "head"
    tensors["spread"] = np.array([spread(tensors[head], tensors[head + ".scale"])])
    tensors["gain"] = checkpoint.read(norm + ".weight", (a.hidden,))
    if a.layer_norm:
        tensors["shift"] = checkpoint.read(norm + ".bias", (a.hidden,))
    if a.rotary is not None:
        tensors["cosine"], tensors["sine"] = arithmetic.rotation(a)
    return ExactWeights(a, {key: np.ascontiguousarray(value) for key, value in tensors.items()}, prefix, tokenizer)


def to_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, inner] as int8 with a scale for each row: round(w * (127 / max|w|)), and max|w| / 127."""
    most = np.maximum(np.abs(matrix).max(axis=1), np.float32(arithmetic.TINY))
    highest = np.float32(arithmetic.WEIGHT)
    return np.rint(matrix * (highest / most)[:, None]).astype(np.int8), most / highest


_NAMES = dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3"), ("embed_tokens.weight", "norm", "", "lm_head.weight")
) | {"gpt2": ("wte.weight", "ln_f", "wpe.weight", "lm_head.weight")}


def _llama_tensors(a: Architecture, c: _NamedTensors, layer: int) -> Iterator[tuple[str, np.ndarray]]:
    at = f"layers.{layer}."
    widths = {"q": a.heads * a.head_size, "k": a.key_heads * a.head_size, "v": a.key_heads * a.head_size}
    attention = at + "self_attn."
    yield "qkv", np.concatenate([c.read(f"{attention}{k}_proj.weight", (n, a.hidden)) for k, n in widths.items()])
    if c.has(f"{attention}q_proj.bias"):
        yield "qkv.bias", np.concatenate([c.read(f"{attention}{k}_proj.bias", (n,)) for k, n in widths.items()])
    yield "mix", c.read(f"{attention}o_proj.weight", (a.hidden, a.heads * a.head_size))
    if c.has(f"{attention}o_proj.bias"):
        yield "mix.bias", c.read(f"{attention}o_proj.bias", (a.hidden,))
    if a.head_norm:
        yield "query.gain", c.read(f"{attention}q_norm.weight", (a.head_size,))
        yield "key.gain", c.read(f"{attention}k_norm.weight", (a.head_size,))
    mlp = at + "mlp."
    yield "up", np.concatenate([c.read(f"{mlp}{k}_proj.weight", (a.inner, a.hidden)) for k in ("gate", "up")])
    if c.has(f"{mlp}up_proj.bias"):
        yield "up.bias", np.concatenate([c.read(f"{mlp}{k}_proj.bias", (a.inner,)) for k in ("gate", "up")])
    yield "down", c.read(f"{mlp}down_proj.weight", (a.hidden, a.inner))
    if c.has(f"{mlp}down_proj.bias"):
        yield "down.bias", c.read(f"{mlp}down_proj.bias", (a.hidden,))
    yield "attention.gain", c.read(at + "input_layernorm.weight", (a.hidden,))
    yield "mlp.gain", c.read(at + "post_attention_layernorm.weight", (a.hidden,))


def _gpt2_tensors(a: Architecture, c: _NamedTensors, layer: int) -> Iterator[tuple[str, np.ndarray]]:
    at = f"h.{layer}."
    for key, name, rows, inner in (
        ("qkv", "attn.c_attn", 3 * a.hidden, a.hidden),
        ("mix", "attn.c_proj", a.hidden, a.hidden),
        ("up", "mlp.c_fc", a.inner, a.hidden),
        ("down", "mlp.c_proj", a.hidden, a.inner),
    ):
        yield key, c.read(f"{at}{name}.weight", (inner, rows)).T  # GPT-2 stores its matrices transposed
        yield key + ".bias", c.read(f"{at}{name}.bias", (rows,))
    for key, name in (("attention", "ln_1"), ("mlp", "ln_2")):
        yield key + ".gain", c.read(f"{at}{name}.weight", (a.hidden,))
        yield key + ".shift", c.read(f"{at}{name}.bias", (a.hidden,))
