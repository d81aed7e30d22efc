"""The conversion of float weights to the integers of the exact LM (spec/FORMAT.md, "Conversion").

Gains and shifts of norms become a part of the layers that read the norms; what writes to the residual stream loses its
mean if the norms are LayerNorm, which makes them RMSNorm (SliceGPT, arXiv 2401.15024); everything is rotated (see
`lm.rotation`). Each operation is a single IEEE operation on float64, so the integers are the same on every machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memcodec.errors import ModelNotFoundError
from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture
from memcodec.lm.rotation import centre, hadamard, products_with, rotate
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

    def _full(self, name: str) -> str:
        return name if name in self._names else self._base + name

    def mean(self, name: str, size: int) -> np.ndarray | None:
        """The mean of what a norm returns before its gain, float32 [size], if it is known."""
        return self._source.mean(self._full(name), size)

    def read(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A tensor of this shape, in which None stands for any length. Raises ModelNotFoundError."""
        full = self._full(name)
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
    layer_of = _gpt2_layer if family == "gpt2" else _llama_layer
    stacked: dict[str, list[np.ndarray]] = {}
    for layer in range(a.layers):
        if progress is not None:
            progress("converting the weights", layer, a.layers + 4)
        for key, values in _rotated(a, layer_of(a, checkpoint, layer)).items():
            stacked.setdefault(key, []).append(values)
    tensors: Tensors = {key: np.stack(stacked.pop(key)) for key in list(stacked)}
    names = _NAMES[family]
    embedding = checkpoint.read(names.embedding, (a.vocabulary, a.hidden))
    if progress is not None:
        progress("converting the weights", a.layers, a.layers + 4)
    tensors |= _stored_in_blocks("embedding", embedding, lambda rows: Linear(_written(a, rows)))
    if progress is not None:
        progress("converting the weights", a.layers + 2, a.layers + 4)
    head = embedding if a.tied else checkpoint.read(names.head, (a.vocabulary, a.hidden))
    norm = _norm(a, checkpoint, names.norm)
    tensors |= _stored_in_blocks("head", head, lambda rows: _read(Linear(rows), norm), norm.mean)
    if names.position:
        position = checkpoint.read(names.position, (None, a.hidden))[: a.positions]
        if len(position) < a.positions:
            raise ModelNotFoundError(f"{name}: {names.position} has fewer rows than config.json has positions")
        tensors["position"] = _written(a, position).astype(np.float32)
    tensors["spread"] = np.array([spread(tensors["head"], tensors["head.scale"])])
    if a.rotary is not None:
        tensors["cosine"], tensors["sine"] = arithmetic.rotation(a)
    return ExactWeights(a, {key: np.ascontiguousarray(value) for key, value in tensors.items()}, prefix, tokenizer)


# ---- what reads and writes the residual stream, rotated (spec/FORMAT.md, "Conversion", in the same order)


@dataclass(frozen=True)
class Linear:
    """A linear layer. matrix: [rows, inner]; bias: [rows], or None."""

    matrix: np.ndarray
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class Norm:
    """What a norm does after it divides. gain, shift: [hidden]; shift: None for RMSNorm.

    mean: of what it returns before its gain, over some text, if it is known, rotated.
    """

    gain: np.ndarray
    shift: np.ndarray | None
    mean: np.ndarray | None


@dataclass(frozen=True)
class Layer:
    """The float weights of a layer. heads: gains of the norms of heads, by the name of their tensor."""

    attention_norm: Norm
    qkv: Linear
    mix: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear
    heads: dict[str, np.ndarray]


def _rotated(a: Architecture, layer: Layer) -> Tensors:
    """The exact tensors of a layer."""
    size, first = a.head_size, (a.heads + a.key_heads) * a.head_size
    qkv = _read(layer.qkv, layer.attention_norm)
    values = rotate(qkv.matrix[first:].reshape(a.key_heads, size, -1).swapaxes(1, 2).reshape(-1, size))
    qkv.matrix[first:] = values.reshape(a.key_heads, -1, size).swapaxes(1, 2).reshape(-1, a.hidden)
    if qkv.bias is not None:
        qkv.bias[first:] = rotate(qkv.bias[first:].reshape(-1, size)).reshape(-1)
    mix = rotate(layer.mix.matrix.reshape(-1, size)).reshape(a.hidden, -1)
    block = arithmetic.block_of(a.inner, arithmetic.MOST_ROTATED)
    down = hadamard(layer.down.matrix, block) / block
    result: Tensors = {name: gain.astype(np.float32) for name, gain in layer.heads.items()}
    return (
        result
        | _stored("qkv", qkv, layer.attention_norm.mean)
        | _stored("mix", _writing(a, Linear(mix, layer.mix.bias)))
        | _stored("up", _read(layer.up, layer.mlp_norm), layer.mlp_norm.mean)
        | _stored("down", _writing(a, Linear(down, layer.down.bias)))
    )


def _read(linear: Linear, norm: Norm) -> Linear:
    """A layer that reads the residual stream through a norm, with the norm in it, and rotated."""
    bias = None if linear.bias is None else linear.bias.astype(np.float64)
    if norm.shift is not None:
        shifted = products_with(linear.matrix, norm.shift.astype(np.float64))
        bias = shifted if bias is None else bias + shifted
    return Linear(rotate(linear.matrix.astype(np.float64) * norm.gain.astype(np.float64)), bias)


def _written(a: Architecture, rows: np.ndarray) -> np.ndarray:
    """Vectors that are added to the residual stream, rotated, and without their mean if the norms are LayerNorm."""
    return rotate(centre(rows) if a.layer_norm else rows)


def _writing(a: Architecture, linear: Linear) -> Linear:
    """A layer whose outputs are added to the residual stream, rotated."""
    bias = None if linear.bias is None else _written(a, linear.bias[None])[0]
    return Linear(_written(a, linear.matrix.T).T, bias)


def _stored(name: str, linear: Linear, mean: np.ndarray | None = None) -> Tensors:
    """A layer as exact tensors.

    mean: of its inputs, rotated, float64 [inner]. What the rounding of the matrix does to it is made up for in the
    bias: in an LM, half of the squares of what a norm returns belong to its mean (Nagel et al., "Data-Free Quantization
    through Weight Equalization and Bias Correction", arXiv 1906.04721).
    """
    integers, scale = to_rows(linear.matrix)
    result: Tensors = {name: integers, name + ".scale": scale}
    bias = linear.bias
    if mean is not None:
        lost = products_with(linear.matrix - integers * scale.astype(np.float64)[:, None], mean)
        bias = lost if bias is None else bias + lost
    if bias is not None:
        result[name + ".bias"] = bias.astype(np.float32)
    return result


def _stored_in_blocks(
    name: str, matrix: np.ndarray, change: Callable[[np.ndarray], Linear], mean: np.ndarray | None = None
) -> Tensors:
    """The rows of a large matrix, changed and then stored, a few at a time: float64 takes much memory."""
    blocks = [_stored(name, change(matrix[start : start + _BLOCK]), mean) for start in range(0, len(matrix), _BLOCK)]
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


_BLOCK = 4096  # rows


def to_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [rows, inner] as int8 with a scale for each row, float32: round(w * (127 / max|w|)), and max|w| / 127."""
    most = np.maximum(np.abs(matrix).max(axis=1), arithmetic.TINY)
    return (
        np.rint(matrix * (arithmetic.LARGEST / most)[:, None]).astype(np.int8),
        (most / arithmetic.LARGEST).astype(np.float32),
    )


# ---- the names of tensors


@dataclass(frozen=True)
class _Names:
    """The names of the tensors outside of layers."""

    embedding: str
    norm: str
    position: str = ""
    head: str = "lm_head.weight"


_NAMES = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _Names("embed_tokens.weight", "norm")) | {
    "gpt2": _Names("wte.weight", "ln_f", "wpe.weight")
}


def _norm(a: Architecture, c: _NamedTensors, name: str) -> Norm:
    gain = c.read(name + ".weight", (a.hidden,))
    shift = c.read(name + ".bias", (a.hidden,)) if a.layer_norm else None
    mean = c.mean(name + ".weight", a.hidden)
    return Norm(gain, shift, None if mean is None else rotate(mean[None])[0])


def _linear(c: _NamedTensors, parts: dict[str, int], inner: int) -> Linear:
    """Layers by name, with their numbers of rows, as one: one after the other."""
    matrix = np.concatenate([c.read(f"{name}.weight", (rows, inner)) for name, rows in parts.items()])
    if not c.has(f"{next(iter(parts))}.bias"):
        return Linear(matrix)
    return Linear(matrix, np.concatenate([c.read(f"{name}.bias", (rows,)) for name, rows in parts.items()]))


def _llama_layer(a: Architecture, c: _NamedTensors, layer: int) -> Layer:
    at = f"layers.{layer}."
    attention, mlp = at + "self_attn.", at + "mlp."
    widths = {"q": a.heads * a.head_size, "k": a.key_heads * a.head_size, "v": a.key_heads * a.head_size}
    heads = {}
    if a.head_norm:
        heads = {
            f"{name}.gain": c.read(f"{attention}{name[0]}_norm.weight", (a.head_size,)) for name in ("query", "key")
        }
    return Layer(
        attention_norm=_norm(a, c, at + "input_layernorm"),
        qkv=_linear(c, {f"{attention}{name}_proj": rows for name, rows in widths.items()}, a.hidden),
        mix=_linear(c, {f"{attention}o_proj": a.hidden}, a.heads * a.head_size),
        mlp_norm=_norm(a, c, at + "post_attention_layernorm"),
        up=_linear(c, {f"{mlp}gate_proj": a.inner, f"{mlp}up_proj": a.inner}, a.hidden),
        down=_linear(c, {f"{mlp}down_proj": a.hidden}, a.inner),
        heads=heads,
    )


def _gpt2_layer(a: Architecture, c: _NamedTensors, layer: int) -> Layer:
    at = f"h.{layer}."

    def linear(name: str, rows: int, inner: int) -> Linear:
        """GPT-2 stores its matrices transposed."""
        return Linear(c.read(f"{at}{name}.weight", (inner, rows)).T, c.read(f"{at}{name}.bias", (rows,)))

    return Layer(
        attention_norm=_norm(a, c, at + "ln_1"),
        qkv=linear("attn.c_attn", 3 * a.hidden, a.hidden),
        mix=linear("attn.c_proj", a.hidden, a.hidden),
        mlp_norm=_norm(a, c, at + "ln_2"),
        up=linear("mlp.c_fc", a.inner, a.hidden),
        down=linear("mlp.c_proj", a.hidden, a.inner),
        heads={},
    )
