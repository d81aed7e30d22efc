"""A model's weights as the integers of the exact LM: made once from float weights, kept as one safetensors file.

The file holds matrices row by row, as they are hashed; each implementation lays them out as it likes when it loads
them. The hash over all of it, tables of positions, architecture, tokenizer and prefix included, is the LM's identity:
who has the same one computes the same bits.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy

from memcodec.errors import ModelNotFoundError
from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture
from memcodec.models import ByteProgress
from memcodec.tokens import PREFIX

Tensors = dict[str, np.ndarray]

_FORMAT = "1"  # of the kept file; another one is made anew


@dataclass(frozen=True)
class ExactWeights:
    """Integers, scales and tables of one LM.

    tensors, all layers stacked: matrices int8 [layers, rows, inner] with scales float32 [layers, rows], and by the same
    name biases, gains and shifts, float32. prefix: the token ids before every chunk; tokenizer: the hash of its bytes.
    """

    architecture: Architecture
    tensors: Tensors
    prefix: tuple[int, ...]
    tokenizer: bytes

    @cached_property
    def identity(self) -> bytes:
        """SHA-256 of all that is computed with (spec/FORMAT.md, "Identity")."""
        digest = hashlib.sha256()
        about = [self.architecture.to_json(), list(self.prefix), self.tokenizer.hex(), arithmetic.tables_hash()]
        digest.update(json.dumps(about, separators=(",", ":")).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode())
            digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        return digest.digest()

    def save(self, path: Path, more: Mapping[str, str]) -> None:
        """Write the file, whole or not at all. more: metadata of the caller's. Raises OSError."""
        about = {
            "format": _FORMAT,
            "architecture": self.architecture.to_json(),
            "prefix": json.dumps(list(self.prefix)),
            "tokenizer": self.tokenizer.hex(),
            "identity": self.identity.hex(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
        try:
            safetensors.numpy.save_file(self.tensors, temporary, about | dict(more))
            temporary.replace(path)
        except safetensors.SafetensorError as error:  # what the library makes of a full disk
            raise OSError(str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> tuple["ExactWeights", dict[str, str]]:
        """What `save` wrote, and its metadata, with the identity computed anew. Raises ValueError where it differs."""
        try:
            with safetensors.safe_open(path, "np") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.get("format") != _FORMAT:
                raise ValueError("another version's")
            found = cls(
                Architecture.from_json(about["architecture"]),
                tensors,
                tuple(int(i) for i in json.loads(about["prefix"])),
                bytes.fromhex(about["tokenizer"]),
            )
        except (safetensors.SafetensorError, LookupError, TypeError) as error:
            raise ValueError(f"damaged ({type(error).__name__})") from error
        if found.identity.hex() != about.get("identity"):
            raise ValueError("damaged: its hash does not match")
        return found, about


# ---- float weights, as models come


class Source(Protocol):
    """Float weights by the names of Hugging Face's checkpoints."""

    def names(self) -> set[str]:
        """All names."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32."""


class SafetensorsSource(Source):
    """The safetensors files of a model folder; nothing else is read, nothing is unpickled."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelNotFoundError."""
        self._places: dict[str, tuple[Path, dict[str, Any], int]] = {}
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelNotFoundError(f"{folder}: no safetensors weights there")
        for path in files:
            try:
                size = path.stat().st_size
                with path.open("rb") as file:
                    length = int.from_bytes(file.read(8), "little")
                    header = json.loads(file.read(min(length, size)))
                for name, entry in header.items():
                    if name != "__metadata__":
                        start, end = entry["data_offsets"]
                        if not 0 <= start <= end <= size - 8 - length:
                            raise ValueError("it is cut")
                        if not (isinstance(entry["dtype"], str) and all(n >= 0 for n in entry["shape"])):
                            raise ValueError("its header is damaged")
                        self._places[name] = path, entry, 8 + length
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise ModelNotFoundError(f"{path}: its weights do not read ({error})") from error

    def names(self) -> set[str]:
        """All names."""
        return set(self._places)

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32. Raises ModelNotFoundError."""
        path, entry, base = self._places[name]
        kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
        kind = np.dtype(kinds[entry["dtype"]]) if entry["dtype"] in kinds else None
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if kind is None or int(np.prod(shape)) * kind.itemsize != end - start:
            raise ModelNotFoundError(f"{path}: {name} is of the type {entry['dtype']}, which memcodec does not read")
        raw = np.fromfile(path, dtype=kind, count=(end - start) // kind.itemsize, offset=base + start).reshape(shape)
        if entry["dtype"] == "BF16":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.astype(np.float32)


# ---- conversion


class _Checkpoint:
    """Reads what a family calls each part, and checks its shape."""

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._folder = name
        self._names = source.names()
        self._base = "model." if any(n.startswith("model.") for n in self._names) else ""
        if any(n.startswith("transformer.") for n in self._names):
            self._base = "transformer."

    def has(self, name: str) -> bool:
        return name in self._names or self._base + name in self._names

    def read(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A tensor of a shape; None: of any length there."""
        full = name if name in self._names else self._base + name
        if full not in self._names:
            raise ModelNotFoundError(f"{self._folder}: its weights lack {full}")
        found = self._source.read(full)
        if found.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, found.shape, strict=True)):
            raise ModelNotFoundError(f"{self._folder}: {full} has the shape {found.shape}, not {shape}")
        if not np.isfinite(found).all():
            raise ModelNotFoundError(f"{self._folder}: {full} holds what is no finite number")
        return found


def convert(
    architecture: Architecture,
    family: str,
    source: Source,
    name: str,
    prefix: tuple[int, ...],
    tokenizer: bytes,
    progress: ByteProgress | None = None,
) -> ExactWeights:
    """Make the integers of an LM from its float weights. name: for messages. Raises ModelNotFoundError."""
    a = architecture
    if not prefix or max(prefix) >= a.vocabulary:
        raise ModelNotFoundError(f"{name}: its tokenizer has no tokens for {PREFIX!r} that the model has too")
    checkpoint = _Checkpoint(source, name)
    parts = _gpt2_parts if family == "gpt2" else _llama_parts
    tensors: Tensors = {}
    stacked: dict[str, list[np.ndarray]] = {}
    for layer in range(a.layers):
        if progress is not None:
            progress("making integers of the weights", layer, a.layers + 2)
        for part, values in parts(a, checkpoint, layer):
            if values.ndim == 2:
                integers, scale = to_rows(values)
                stacked.setdefault(part, []).append(integers)
                stacked.setdefault(part + ".scale", []).append(scale)
            else:
                stacked.setdefault(part, []).append(values)
    for part in list(stacked):
        tensors[part] = np.stack(stacked.pop(part))
    embedding, norm, position, head_name = _NAMES[family]
    tensors["embedding"], tensors["embedding.scale"] = to_rows(checkpoint.read(embedding, (a.vocabulary, a.hidden)))
    if progress is not None:
        progress("making integers of the weights", a.layers + 1, a.layers + 2)
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
    """float32 [rows, inner] as int8 with a scale a row: round(w * (127 / max|w|)), and max|w| / 127."""
    most = np.maximum(np.abs(matrix).max(axis=1), np.float32(arithmetic.TINY))
    highest = np.float32(arithmetic.WEIGHT)
    return np.rint(matrix * (highest / most)[:, None]).astype(np.int8), most / highest


def spread(matrix: np.ndarray, scale: np.ndarray) -> float:
    """Mean squared distance of a matrix's rows from their mean, from sums of integers: the same on every machine.

    int8 [rows, inner], float32 [rows]. Entries are rounded to 1/256 of the largest scale.
    """
    largest = float(scale.max())
    squares, columns = 0, np.zeros(matrix.shape[1], dtype=np.int64)
    for start in range(0, len(matrix), 4096):
        factor = scale[start : start + 4096].astype(np.float64) / largest * 256
        entries = np.rint(matrix[start : start + 4096] * factor[:, None]).astype(np.int64)
        squares += int((entries * entries).sum())
        columns += entries.sum(axis=0)
    rows = len(matrix)
    excess = rows * squares - sum(int(column) ** 2 for column in columns)
    return excess / (rows * rows) * (largest / 256) * (largest / 256)


_NAMES = dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3"), ("embed_tokens.weight", "norm", "", "lm_head.weight")
) | {"gpt2": ("wte.weight", "ln_f", "wpe.weight", "lm_head.weight")}


def _llama_parts(a: Architecture, c: _Checkpoint, layer: int) -> Iterator[tuple[str, np.ndarray]]:
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


def _gpt2_parts(a: Architecture, c: _Checkpoint, layer: int) -> Iterator[tuple[str, np.ndarray]]:
    at = f"h.{layer}."
    for part, name, rows, inner in (
        ("qkv", "attn.c_attn", 3 * a.hidden, a.hidden),
        ("mix", "attn.c_proj", a.hidden, a.hidden),
        ("up", "mlp.c_fc", a.inner, a.hidden),
        ("down", "mlp.c_proj", a.hidden, a.inner),
    ):
        yield part, c.read(f"{at}{name}.weight", (inner, rows)).T  # GPT-2 has its matrices the other way round
        yield part + ".bias", c.read(f"{at}{name}.bias", (rows,))
    for part, name in (("attention", "ln_1"), ("mlp", "ln_2")):
        yield part + ".gain", c.read(f"{at}{name}.weight", (a.hidden,))
        yield part + ".shift", c.read(f"{at}{name}.bias", (a.hidden,))
