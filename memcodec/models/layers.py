"""The float weights of a model, read layer by layer by the names that the families give them."""

from dataclasses import dataclass

import numpy as np

from memcodec.errors import ModelNotFoundError
from memcodec.lm.architecture import Architecture
from memcodec.lm.rotation import rotate
from memcodec.models.checkpoint import Checkpoint


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


class NamedTensors:
    """Reads tensors by their names, with or without the prefix of a family, and checks their shapes."""

    def __init__(self, source: Checkpoint, name: str) -> None:
        self._source = source
        self._folder = name
        self._names = source.names()
        self._base = "model." if any(n.startswith("model.") for n in self._names) else ""
        if any(n.startswith("transformer.") for n in self._names):
            self._base = "transformer."

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of this name, with or without the prefix of the family."""
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
            raise ModelNotFoundError(f"{self._folder}: its weights lack {full}: download the model again")
        tensor = self._source.read(full)
        if tensor.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, tensor.shape, strict=True)):
            raise ModelNotFoundError(
                f"{self._folder}: {full} has the shape {tensor.shape}, not {shape}: download the model again"
            )
        if not np.isfinite(tensor).all():
            raise ModelNotFoundError(
                f"{self._folder}: {full} has entries that are not finite: download the model again, or choose another"
            )
        return tensor


# ---- the names of tensors


@dataclass(frozen=True)
class Names:
    """The names of the tensors outside of layers."""

    embedding: str
    norm: str
    position: str = ""
    head: str = "lm_head.weight"


NAMES = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), Names("embed_tokens.weight", "norm")) | {
    "gpt2": Names("wte.weight", "ln_f", "wpe.weight")
}


def norm_of(a: Architecture, c: NamedTensors, name: str) -> Norm:
    """Returns a norm of hidden states by the name of its tensors, with its mean rotated. Raises ModelNotFoundError."""
    gain = c.read(name + ".weight", (a.hidden,))
    shift = c.read(name + ".bias", (a.hidden,)) if a.layer_norm else None
    mean = c.mean(name + ".weight", a.hidden)
    return Norm(gain, shift, None if mean is None else rotate(mean[None])[0])


def _linear(c: NamedTensors, parts: dict[str, int], inner: int) -> Linear:
    """Layers by name, with their numbers of rows, as one: one after the other."""
    matrix = np.concatenate([c.read(f"{name}.weight", (rows, inner)) for name, rows in parts.items()])
    if not c.has(f"{next(iter(parts))}.bias"):
        return Linear(matrix)
    return Linear(matrix, np.concatenate([c.read(f"{name}.bias", (rows,)) for name, rows in parts.items()]))


def llama_layer(a: Architecture, c: NamedTensors, layer: int) -> Layer:
    """Returns one layer of a model of the Llama, Mistral or Qwen family. Raises ModelNotFoundError."""
    at = f"layers.{layer}."
    attention, mlp = at + "self_attn.", at + "mlp."
    widths = {"q": a.heads * a.head_size, "k": a.key_heads * a.head_size, "v": a.key_heads * a.head_size}
    heads = {}
    if a.head_norm:
        heads = {
            f"{name}.gain": c.read(f"{attention}{name[0]}_norm.weight", (a.head_size,)) for name in ("query", "key")
        }
    return Layer(
        attention_norm=norm_of(a, c, at + "input_layernorm"),
        qkv=_linear(c, {f"{attention}{name}_proj": rows for name, rows in widths.items()}, a.hidden),
        mix=_linear(c, {f"{attention}o_proj": a.hidden}, a.heads * a.head_size),
        mlp_norm=norm_of(a, c, at + "post_attention_layernorm"),
        up=_linear(c, {f"{mlp}gate_proj": a.inner, f"{mlp}up_proj": a.inner}, a.hidden),
        down=_linear(c, {f"{mlp}down_proj": a.hidden}, a.inner),
        heads=heads,
    )


def gpt2_layer(a: Architecture, c: NamedTensors, layer: int) -> Layer:
    """Returns one layer of a GPT-2 model, with its matrices as [rows, inner]. Raises ModelNotFoundError."""
    at = f"h.{layer}."

    def linear(name: str, rows: int, inner: int) -> Linear:
        """GPT-2 stores its matrices transposed."""
        return Linear(c.read(f"{at}{name}.weight", (inner, rows)).T, c.read(f"{at}{name}.bias", (rows,)))

    return Layer(
        attention_norm=norm_of(a, c, at + "ln_1"),
        qkv=linear("attn.c_attn", 3 * a.hidden, a.hidden),
        mix=linear("attn.c_proj", a.hidden, a.hidden),
        mlp_norm=norm_of(a, c, at + "ln_2"),
        up=linear("mlp.c_fc", a.inner, a.hidden),
        down=linear("mlp.c_proj", a.hidden, a.inner),
        heads={},
    )
