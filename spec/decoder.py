"""A second decoder of memcodec files, written from FORMAT.md alone, with numpy, and zstandard for stored spans.

    python spec/decoder.py FILE MODEL [--primer P] > document

MODEL is a folder of a Llama model (config.json, tokenizer.json, *.safetensors or model.gguf), such as the one that
`memcodec models path smollm2-135m` names. It is slow (about 5 tokens a second with that model) and meant to be
read: its sections have the numbers of the page. A file that breaks a rule of the page raises an AssertionError.
"""

import argparse
import hashlib
import json
import math
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

f4, f8 = np.float32, np.float64
Array = np.ndarray
Tensors = dict[str, Array]

P = [round(2**30 * 2 ** (-i / 1024)) for i in range(1024)]
L = [round(1024 * math.log2(1 + i / 1024)) for i in range(1024)]
POWERS = np.array(P, dtype=np.int64)


# ---- 1. container


class Bytes:
    """Reads bytes from the front."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.at += count
        assert self.at <= len(self.data), "cut"
        return bytes(self.data[self.at - count : self.at])

    def number(self, size: int) -> int:
        """A number of `size` bytes, the lowest first."""
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        """LEB128, of at most 9 bytes."""
        value = 0
        for i in range(9):
            byte = self.number(1)
            value += byte % 128 << 7 * i
            if byte < 128:
                break
        assert byte < 128 and value < 2**62, "a number is too long"
        return value

    def column(self, count: int) -> list[int]:
        """A column of `count` numbers."""
        least, width = self.varint(), self.number(1)
        assert width <= 62, "the numbers of a column are too long"
        found: list[int] = []
        while len(found) < count:
            n = min(64, count - len(found))
            packed = self.number((n * width + 7) // 8)
            found += [least + (packed >> i * width) % 2**width for i in range(n)]
        return found


def safetensors(blob: bytes) -> tuple[dict[str, str], dict[str, tuple[str, list[int], bytes]]]:
    """The metadata, and the type, shape and bytes of each tensor by name, of a file that is trusted."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    data = blob[8 + length :]
    return metadata, {k: (v["dtype"], v["shape"], data[slice(*v["data_offsets"])]) for k, v in header.items()}


def container(blob: memoryview) -> tuple[dict[str, str], dict[str, memoryview], int]:
    """The metadata and the tensors of the file at the beginning of `blob`, and the length of this file."""
    length = int.from_bytes(blob[:8], "little")
    assert length <= 65536, "not a memcodec file"
    text, end = bytes(blob[8 : 8 + length]), 8 + length
    assert text[:1] == b"{" and b'"memcodec"' in text[:504], "not a memcodec file"
    tensors, offset = {}, 0
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__")
        assert all(isinstance(value, str) for value in metadata.values()), "metadata that is not text"
        assert {"document"} <= header.keys() <= {"memories", "document"}, "another tensor, or no document"
        for name in [name for name in ("memories", "document") if name in header]:
            kind, shape, offsets = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
            size = offsets[1] - offset
            right = (kind, shape, offsets) == ("U8", [size], [offset, offset + size]) and size >= 0
            assert right, f"the tensor {name} is not where it should be"
            tensors[name] = blob[end : end + size]
            assert len(tensors[name]) == size, "cut"
            offset, end = offset + size, end + size
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise AssertionError("the header cannot be read") from error
    return metadata, tensors, end


class File:
    """The index of a file, and its parts. Other files may follow it."""

    def __init__(self, blob: bytes | memoryview) -> None:
        metadata, tensors, self.length = container(memoryview(blob))
        assert metadata.get("memcodec") == "3", "another version of the format"
        checksum = int.from_bytes(blob[self.length - 4 : self.length], "little")
        assert zlib.crc32(blob[: self.length - 4]) == checksum, "the file is damaged"
        rest = Bytes(tensors["document"][:-4])
        apart = Bytes(tensors["memories"]) if "memories" in tensors else rest
        self.hash = rest.take(16)
        self.size, runs, stored, references = (rest.varint() for _ in range(4))
        assert stored in (runs, runs - 1), "the numbers of runs and of stored spans do not match"
        assert max(stored, references) <= 2**21, "too many stored spans or references"
        runs_of = [rest.varint() for _ in range(runs)]
        self.runs = [number // 2 for number in runs_of]
        assert sum(self.runs) <= 2**21, "too many segments"
        # Whether each segment begins a group.
        self.begins = [i > 0 or number % 2 == 0 for number in runs_of for i in range(number // 2)]
        assert 1 not in runs_of and self.begins[:1] != [False], "a run continues a group that does not exist"
        spans = [(rest.varint(), rest.varint(), rest.number(1), rest.number(4)) for _ in range(stored)]
        assert all(size for size, *_ in spans), "a stored span without bytes"
        assert all(method <= 1 for _, _, method, _ in spans), "an unknown method of a stored span"
        self.references = [(rest.varint(), rest.varint(), rest.varint()) for _ in range(references)]
        self.sizes: list[int] = []  # the bytes of each segment
        self.memories: list[bytes] = []
        if self.begins:
            assert "model" in metadata, "chunks without a model"
            self.identity = rest.take(8)
            self._read_settings(rest)
            tokens, self.sizes = rest.column(len(self.begins)), rest.column(len(self.begins))
            assert all(1 <= n <= size for n, size in zip(tokens, self.sizes, strict=True)), "a wrong number of tokens"
            count = sum(-(-total // self.chunk_tokens) for total in tokens)
            assert count <= 2**21, "too many chunks"
            assert self.site == 0 or count == sum(self.begins), "vectors in the middle of a group"
            self.chunks: list[list[int]] = []  # the tokens of the chunks of each segment
            for total in tokens:
                n = -(-total // self.chunk_tokens)
                self.chunks.append([total // n + 1] * (total % n) + [total // n] * (n - total % n))
            corrections, memory = rest.column(sum(self.begins)), rest.column(count)
            self.checksums = rest.take(count)
            self.memories = [apart.take(n) for n in memory]
        self._check_sizes(sum(self.sizes) + sum(size for size, *_ in spans))
        self.stored = [self._stored(size, rest.take(packed), *about) for size, packed, *about in spans]
        self.corrections = [rest.take(n) for n in corrections] if self.begins else []
        assert all(part.at == len(part.data) for part in (rest, apart)), "the index does not add up"

    def _read_settings(self, rest: Bytes) -> None:
        self.site, self.chunk_tokens, self.context, fields = (rest.varint() for _ in range(4))
        assert self.site < 4 and fields <= 8, "an unknown site"
        assert 1 <= self.chunk_tokens <= 4096, "chunk tokens out of range"
        assert 1 <= self.context <= 32768, "a context out of range"
        self.fields = [rest.varint() for _ in range(fields)]
        self.primer = rest.take(8) if self.site >= 2 else b""
        self.site %= 2
        if self.site == 0:
            assert fields == 1 and self.fields[0] <= 512, "a memory share out of range"
        else:
            assert fields == 2 and self.fields[0] in (1, 2, 3, 4, 8, 16), "bits per dimension out of range"

    def _check_sizes(self, carried: int) -> None:
        """Check the references, and the size of the document. carried: the number of carried bytes."""
        at = copied = 0
        for gap, more, back in self.references:
            at, copied = at + gap, copied + 32 + more
            assert 32 + more + back <= at <= carried, "a reference to bytes that are not there"
        assert carried + copied == self.size, "the lengths do not add up to the document's"

    def _stored(self, size: int, packed: bytes, method: int, checksum: int) -> bytes:
        data = expand(packed, size) if method == 1 else packed
        assert (len(data), zlib.crc32(data)) == (size, checksum), "a stored span is damaged"
        return data


def expand(frame: bytes, size: int) -> bytes:
    """The bytes of one zstd frame that should have `size` of them; not many more, if it has more."""
    import zstandard

    data = bytearray()
    unpacker = zstandard.ZstdDecompressor(max_window_size=2**25).decompressobj()
    try:
        for start in range(0, len(frame), 32):  # few at a time, which expand to 1 MiB at most
            assert not unpacker.eof, "bytes after the zstd frame of a stored span"
            data += unpacker.decompress(frame[start : start + 32])
            if len(data) > size:
                return bytes(data)
    except zstandard.ZstdError as error:
        raise AssertionError("zstd cannot read a stored span") from error
    assert unpacker.eof and not unpacker.unused_data, "bytes are missing at the end of a zstd frame, or follow it"
    return bytes(data)


def files_of(blob: bytes) -> list[File]:
    """The files that were concatenated, at least one."""
    files, at = [File(blob)], 0
    while (at := at + files[-1].length) < len(blob):
        files.append(File(memoryview(blob)[at:]))
    return files


# ---- 2. tokens


def stand_ins() -> dict[str, int]:
    """The printable characters that GPT-2 uses for the 256 bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def bytes_of_ids(tokenizer: dict[str, Any]) -> dict[int, bytes]:
    """The bytes of each id, from a tokenizer.json."""
    byte_of = stand_ins()
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"] | added
    assert len(set(ids.values())) == len(ids), "two tokens with one id"
    found = {}
    for token, i in ids.items():
        whole = token not in added and all(c in byte_of for c in token)
        found[i] = bytes(byte_of[c] for c in token) if whole else token.encode()
    return dict(sorted(found.items()))


def prefix_of(tokenizer: dict[str, Any]) -> list[int]:
    """The ids of `...`, from the merges of the tokenizer."""
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in tokenizer["model"]["merges"]]
    rank = {pair: i for i, pair in enumerate(merges)}
    parts = ["."] * 3
    while pairs := [p for p in pairwise(parts) if p in rank]:
        best = min(pairs, key=lambda pair: rank[pair])
        i = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == best)
        parts[i : i + 2] = ["".join(best)]
    return [tokenizer["model"]["vocab"][part] for part in parts]


def table_hash(table: dict[int, bytes]) -> str:
    """The tokenizer hash."""
    ids, lengths = (np.array(x, dtype="<u4").tobytes() for x in (list(table), [len(b) for b in table.values()]))
    return hashlib.sha256(ids + lengths + b"".join(table.values())).hexdigest()


# ---- 3. the exact LM: weights


class Safetensors:
    """Float weights in *.safetensors, and config.json."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors: dict[str, tuple[str, list[int], bytes]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            if path.name not in ("exact.safetensors", "adapter.safetensors"):
                self.tensors |= safetensors(path.read_bytes())[1]

    def read(self, name: str) -> Array:
        """float32."""
        kind, shape, data = self.tensors[name]
        if kind == "BF16":
            return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
        types = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
        return np.frombuffer(data, types[kind]).astype(f4).reshape(shape)


_GGUF = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         "token_embd": "model.embed_tokens", "output_norm": "model.norm"}  # fmt: skip


class GGUF:
    """Float weights and config.json from a GGUF file: F32, Q4_1 and Q8_0."""

    def __init__(self, path: Path) -> None:
        self.blob, self.at = path.read_bytes(), 8
        assert self.blob[:4] == b"GGUF"
        tensors, fields = self.unpack("Q"), self.unpack("Q")
        known = {self.string(): self.value(self.unpack("I")) for _ in range(fields)}
        self.places = {}
        for _ in range(tensors):
            name, dimensions = self.string(), self.unpack("I")
            shape = [self.unpack("Q") for _ in range(dimensions)][::-1]
            self.places[name] = shape, self.unpack("I"), self.unpack("Q")
        align = known.get("general.alignment", 32)
        self.data = -(-self.at // align) * align
        self.heads = known["llama.attention.head_count"], known["llama.attention.head_count_kv"]
        self.config = {
            "vocab_size": len(known["tokenizer.ggml.tokens"]), "hidden_size": known["llama.embedding_length"],
            "intermediate_size": known["llama.feed_forward_length"], "num_hidden_layers": known["llama.block_count"],
            "num_attention_heads": self.heads[0], "num_key_value_heads": self.heads[1],
            "max_position_embeddings": known["llama.context_length"], "tie_word_embeddings": True,
            "rms_norm_eps": float(f4(known["llama.attention.layer_norm_rms_epsilon"])),
            "rope_theta": known["llama.rope.freq_base"],
        }  # fmt: skip

    def unpack(self, kind: str) -> Any:
        """One number."""
        (found,) = struct.unpack_from("<" + kind, self.blob, self.at)
        self.at += struct.calcsize(kind)
        return found

    def string(self) -> str:
        """A string: its length, then its bytes."""
        length = self.unpack("Q")
        self.at += length
        return self.blob[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        """A value of a type of GGUF."""
        if kind == 8:
            return self.string()
        if kind == 9:
            inner, count = self.unpack("I"), self.unpack("Q")
            return [self.value(inner) for _ in range(count)]
        return self.unpack("BbHhIif?__QqD"[kind] if kind != 12 else "d")

    def read(self, name: str) -> Array:
        """A tensor, float32, in the order of Hugging Face."""
        block = name.split(".")[2] if name.startswith("model.layers.") else ""
        parts = {theirs: own for own, theirs in _GGUF.items()}
        own = parts[name.removeprefix(f"model.layers.{block}.").removesuffix(".weight")]
        shape, kind, offset = self.places[f"blk.{block}.{own}.weight" if block else f"{own}.weight"]
        count, start = math.prod(shape), self.data + offset
        if kind == 0:
            found = np.frombuffer(self.blob, "<f4", count, start)
        elif kind == 3:  # Q4_1: blocks of 32: d, m, then 16 bytes: lower halves first, then the upper ones
            raw = np.frombuffer(self.blob, "u1", count // 32 * 20, start).reshape(-1, 20)
            d, m = (raw[:, i : i + 2].copy().view("<f2").astype(f4) for i in (0, 2))
            found = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1).astype(f4) * d + m
        else:
            assert kind == 8, "a GGUF type that is not on the page"
            raw = np.frombuffer(self.blob, "u1", count // 32 * 34, start).reshape(-1, 34)
            found = raw[:, 2:].copy().view("i1").astype(f4) * raw[:, :2].copy().view("<f2").astype(f4)
        found = found.reshape(shape)
        if own in ("attn_q", "attn_k"):  # entries 2 i + k of a head go to i + k h/2
            heads = self.heads[own == "attn_k"]
            found = found.reshape(heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        return found


class Adapted:
    """Float weights, with the additions of adapter.safetensors."""

    def __init__(self, source: Safetensors | GGUF, path: Path) -> None:
        self.source, self.config = source, source.config
        metadata, self.tensors = safetensors(path.read_bytes())
        self.shared: dict[str, str] = json.loads(metadata.get("shared", "{}"))

    def tensor(self, name: str) -> Array:
        """float32; products of the integers of two int8 tensors are exact."""
        kind, shape, data = self.tensors[name]
        return np.frombuffer(data, {"F32": "<f4", "I8": "i1"}[kind]).astype(f4).reshape(shape)

    def read(self, name: str) -> Array:
        """float32."""
        w = self.source.read(name)
        if name + ".add" in self.tensors:
            return w + self.tensor(name + ".add")
        if name + ".b" in self.tensors:
            a, b = self.tensor(self.shared.get(name, name) + ".a"), self.tensor(name + ".b")
            for r, scale in enumerate(self.tensor(name + ".scale")):
                w = w + (b[:, r, None] * a[r]) * scale
        return w

    def mean(self, norm: str, size: int) -> Array | None:
        """The mean of what a norm returns, or None if there are none of any norm."""
        if norm + ".mean" in self.tensors:
            return self.tensor(norm + ".mean")
        return np.zeros(size, dtype=f4) if any(name.endswith(".mean") for name in self.tensors) else None


# ---- 3. the exact LM: conversion


def hadamard(x: Array, block: int, step: int = 1) -> Array:
    """The transform of each `block` entries that are `step` apart in the last axis of x, in its own type."""
    h = step
    while h < block * step:
        pairs = x.reshape(-1, 2, h)
        a, b = pairs[:, 0], pairs[:, 1]
        x, h = np.stack([a + b, a - b], axis=1).reshape(x.shape), h * 2
    return x


def power_of_two(n: int) -> int:
    """The largest power of two that divides n."""
    return n & -n


def rotate(x: Array) -> Array:
    """`rotate` of each row (the last axis), float64."""
    n = x.shape[-1]
    block = power_of_two(n)
    k, m = block.bit_length() - 1, n // block
    turned = x.astype(f8) * np.array([-1.0 if word(26, i) >> 63 else 1.0 for i in range(n)])
    if m > 1:
        runs = turned.reshape(-1, m)
        t = runs[:, 0]
        for column in runs.T[1:]:
            t = t + column
        turned = (runs - (t * (2 / m))[:, None]).reshape(x.shape)
    scale = 2.0 ** -(k // 2) if k % 2 == 0 else 2.0 ** -((k + 1) // 2) * 1.4142135623730951
    return hadamard(turned, block, m) * scale


def rotate_columns(w: Array) -> Array:
    """`rotate` of each column of a matrix (or of each one of several)."""
    return rotate(w.swapaxes(-1, -2)).swapaxes(-1, -2)


def stored(w: Array) -> tuple[Array, Array]:
    """A matrix, float64, as int8 with a scale for each row."""
    a = np.maximum(np.abs(w).max(axis=1), 2.0**-100)
    return np.rint(w * (127 / a)[:, None]).astype(np.int8), (a / 127).astype(f4)


def tensors_of(name: str, w: Array, mean: Array | None = None) -> Tensors:
    """The same by name, and the bias that corrects it if the mean of its inputs is known."""
    integers, scale = stored(w)
    result = {name: integers, name + ".scale": scale}
    if mean is not None:
        lost, mu = w - integers * scale.astype(f8)[:, None], rotate(mean)
        total = lost[:, 0] * mu[0]
        for k in range(1, len(mu)):
            total = total + lost[:, k] * mu[k]
        result[name + ".bias"] = total.astype(f4)
    return result


def tensors_of_large(name: str, w: Array, gain: Array | float, mean: Array | None = None) -> Tensors:
    """The same of the rotated rows of a large matrix, a part at a time."""
    parts = [tensors_of(name, rotate(part * gain), mean) for part in np.split(w, range(4096, len(w), 4096))]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def spread_of(head: Array, scale: Array) -> float:
    """The spread of the head."""
    largest = float(scale.max())
    x = np.rint(head * (scale.astype(f8) / largest * 256)[:, None]).astype(np.int64)
    n = len(x)
    excess = n * int((x * x).sum()) - sum(int(c) ** 2 for c in x.sum(axis=0))
    return excess / (n * n) * (largest / 256) * (largest / 256)


class Weights:
    """The integers, scales and tables of a Llama model, their architecture and identity."""

    def __init__(self, folder: Path) -> None:
        gguf = folder / "model.gguf"
        plain = GGUF(gguf) if gguf.is_file() else Safetensors(folder)
        adapter = folder / "adapter.safetensors"
        source = Adapted(plain, adapter) if adapter.is_file() else plain
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        self.bytes_of = bytes_of_ids(tokenizer)
        self.prefix = prefix_of(tokenizer)
        c = source.config
        rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
        assert rope.get("rope_type", "default") == "default", "scaled rotary positions are not supported here"
        theta = float(rope.get("rope_theta") or c["rope_theta"])
        heads, hidden = c["num_attention_heads"], c["hidden_size"]
        self.a: dict[str, Any] = {
            "epsilon": float(c["rms_norm_eps"]), "gate": "silu", "gated": True, "head_norm": False,
            "head_size": c.get("head_dim") or hidden // heads, "heads": heads, "hidden": hidden,
            "inner": c["intermediate_size"], "key_heads": c["num_key_value_heads"], "layer_norm": False,
            "layers": c["num_hidden_layers"],
            "positions": min(c["max_position_embeddings"], c.get("sliding_window") or 8192, 8192),
            "rotary": {"factor": 1.0, "high": 4.0, "low": 1.0, "scaling": "default", "theta": theta, "trained": 8192},
            "tied": bool(c.get("tie_word_embeddings", False)), "vocabulary": c["vocab_size"],
        }  # fmt: skip
        stacked: dict[str, list[Array]] = {}
        for layer in range(self.a["layers"]):
            for key, part in self.layer(source, f"model.layers.{layer}.").items():
                stacked.setdefault(key, []).append(part)
        self.t: Tensors = {name: np.stack(parts) for name, parts in stacked.items()}
        embedding = source.read("model.embed_tokens.weight")
        head = embedding if self.a["tied"] else source.read("lm_head.weight")
        gain = source.read("model.norm.weight").astype(f8)
        self.t |= tensors_of_large("embedding", embedding, 1.0)
        self.t |= tensors_of_large("head", head, gain, self.mean(source, "model.norm"))
        self.t["spread"] = np.array([spread_of(self.t["head"], self.t["head.scale"])])
        size = self.a["head_size"]
        angles = [
            [p * (1.0 / math.pow(theta, 2 * i / size)) for i in range(size // 2)] for p in range(self.a["positions"])
        ]
        for name, function in (("cosine", math.cos), ("sine", math.sin)):
            self.t[name] = np.array([[round(2**16 * function(x)) / 2**16 for x in row] for row in angles], dtype=f4)

    def layer(self, source: "Safetensors | GGUF | Adapted", at: str) -> Tensors:
        """The tensors of one layer, with the norms in them, and rotated."""
        size, groups = self.a["head_size"], self.a["key_heads"]
        block = min(power_of_two(self.a["inner"]), 128)

        def read(*parts: str) -> Array:
            return np.concatenate([source.read(f"{at}{part}.weight") for part in parts]).astype(f8)

        qkv = rotate(read(*(f"self_attn.{x}_proj" for x in "qkv")) * read("input_layernorm"))
        values = qkv[-groups * size :]  # a part of qkv, which changes with it
        values[:] = rotate_columns(values.reshape(groups, size, -1)).reshape(values.shape)
        mix = read("self_attn.o_proj")
        up = rotate(read("mlp.gate_proj", "mlp.up_proj") * read("post_attention_layernorm"))
        return (
            tensors_of("qkv", qkv, self.mean(source, at + "input_layernorm"))
            | tensors_of("mix", rotate_columns(rotate(mix.reshape(-1, size)).reshape(mix.shape)))
            | tensors_of("up", up, self.mean(source, at + "post_attention_layernorm"))
            | tensors_of("down", rotate_columns(hadamard(read("mlp.down_proj"), block) / block))
        )

    def mean(self, source: "Safetensors | GGUF | Adapted", norm: str) -> Array | None:
        """The mean of what a norm returns, if the adapter has means."""
        return source.mean(norm + ".weight", self.a["hidden"]) if isinstance(source, Adapted) else None

    def identity(self) -> bytes:
        """SHA-256 of everything that takes part in the computation."""
        tables = "073b39bb194a7e6301fb985eddef3634d706cfbb62d8244e60cb65e80e924b4c"
        text = json.dumps(self.a, sort_keys=True, separators=(",", ":"))
        about = [text, self.prefix, table_hash(self.bytes_of), tables]
        digest = hashlib.sha256(json.dumps(about, separators=(",", ":")).encode())
        for name, tensor in sorted(self.t.items()):
            digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode() + tensor.tobytes())
        return digest.digest()


# ---- 3. the exact LM: a pass


def quantize(x: Array) -> tuple[Array, np.float32]:
    """Integers (as float64, in which their sums are exact) and their scale."""
    a = max(np.abs(x).max(), f4(2.0**-100))
    return np.rint(x * (f4(127) / a)).astype(f8), a / f4(127)


def norm(x: Array, epsilon: float) -> tuple[Array, np.float32]:
    """The same, normed."""
    n, s = quantize(x)
    u = f8(max(np.abs(x).max(), f4(2.0**-100))) / 127
    return n, s * f4(1 / math.sqrt(float(n @ n) / len(x) * (u * u) + epsilon))


def exp2(d: Array) -> Array:
    """2^(20 - d/1024), nearly, in integers."""
    f, whole = d % 1024, np.minimum(d // 1024, 21)
    t = 242403 - ((f * 41553) >> 10)
    u = 725186 - ((f * t) >> 10)
    return np.where(d < 21504, (1048576 - ((f * u) >> 10)) >> whole, 0)


def silu(g: Array) -> Array:
    """The gate of Llama models."""
    near = np.clip(g, f4(-20), f4(20))
    e = exp2(np.rint(np.abs(near) * f4(1024 * math.log2(math.e))).astype(np.int64))
    return g * (np.where(near < 0, e, 2**20).astype(f4) / (2**20 + e).astype(f4))


class LM:
    """The model, with the cache of one sequence."""

    def __init__(self, weights: Weights) -> None:
        self.w, self.a, t = weights, weights.a, weights.t
        self.matrices = {name: t[name].astype(f8) for name in ("qkv", "mix", "up", "down")}
        self.head = t["head"].astype(f8)
        self.restart()

    def restart(self) -> None:
        """Begin again at position 0."""
        self.position = 0
        self.keys: list[list[Array]] = [[] for _ in range(self.a["layers"] * self.a["key_heads"])]
        self.values: list[list[Array]] = [[] for _ in self.keys]
        self.scales: list[list[tuple[np.float32, np.float32]]] = [[] for _ in self.keys]

    def linear(self, name: str, layer: int, v: Array, s: np.float32) -> Array:
        """`linear` of one layer."""
        y = (self.matrices[name][layer] @ v).astype(f4) * s * self.w.t[name + ".scale"][layer]
        return y + self.w.t[name + ".bias"][layer] if name + ".bias" in self.w.t else y

    def turn(self, x: Array) -> Array:
        """Rotary positions of one head, and its transform."""
        c, s = self.w.t["cosine"][self.position], self.w.t["sine"][self.position]
        a, b = np.split(x, 2)
        return hadamard(np.concatenate([a * c - b * s, b * c + a * s]), power_of_two(len(x)))

    def attend(self, q: Array, sq: np.float32, kept: int) -> Array:
        """One head of queries over all positions so far."""
        sk, sv = (np.array(x, dtype=f4) for x in zip(*self.scales[kept], strict=True))
        factor = sq * f4(1024 * math.log2(math.e) / (math.sqrt(len(q)) * power_of_two(len(q))))
        t = (np.stack(self.keys[kept]) @ q).astype(f4)
        units = np.rint(np.clip(t * factor * sk, f4(-(2.0**29)), f4(2.0**29))).astype(np.int64)
        e = exp2(units.max() - units)
        w = e.astype(f4) * sv
        c = w.max()
        b = np.rint(w * (f4(255) / c)).astype(f8)
        return (b @ np.stack(self.values[kept])).astype(f4) * f4(f8(c) / (255 * int(e.sum())))

    def token(self, i: int) -> Array:
        """Read a token, and return the logits of the next one."""
        return self.read(self.w.t["embedding"][i].astype(f4) * self.w.t["embedding.scale"][i])

    def vector(self, v: Array) -> Array:
        """The same for a vector of a memory."""
        return self.read(rotate(v).astype(f4))

    def read(self, x: Array) -> Array:
        """The logits after an entry of the residual stream, float32 [hidden] -> int64 [vocabulary]."""
        a, size = self.a, self.a["head_size"]
        groups, repeat = a["key_heads"], a["heads"] // a["key_heads"]
        for layer in range(a["layers"]):
            y = self.linear("qkv", layer, *norm(x, a["epsilon"])).reshape(-1, size)
            z = []
            for g in range(groups):
                kept = layer * groups + g
                k, sk = quantize(self.turn(y[a["heads"] + g]))
                v, sv = quantize(y[a["heads"] + groups + g])
                self.keys[kept].append(k)
                self.values[kept].append(v)
                self.scales[kept].append((sk, sv))
                for j in range(g * repeat, (g + 1) * repeat):
                    z.append(self.attend(*quantize(self.turn(y[j])), kept))
            x = x + self.linear("mix", layer, *quantize(np.concatenate(z)))
            gate, up = np.split(self.linear("up", layer, *norm(x, a["epsilon"])), 2)
            mixed = hadamard(silu(gate) * up, min(power_of_two(len(up)), 128))
            x = x + self.linear("down", layer, *quantize(mixed))
        self.position += 1
        v, s = norm(x, a["epsilon"])
        y = (self.head @ v).astype(f4) * s * self.w.t["head.scale"]
        y = y + self.w.t["head.bias"] if "head.bias" in self.w.t else y
        return np.rint(np.clip(y * f4(1024 * math.log2(math.e)), f4(-(2.0**29)), f4(2.0**29))).astype(np.int64)


# ---- 4. distribution


def frequency(d: Array) -> Array:
    """F(d), int64."""
    d = np.minimum(d, 29696)
    shift = 2 + (d >> 10)
    p = POWERS[d & 1023]
    return np.where(shift >= 0, p >> np.maximum(shift, 0), p << np.maximum(-shift, 0)) + 1


def log2u(n: int) -> int:
    """The logarithm to base 2, in units."""
    fraction, exponent = math.frexp(float(f4(n)))
    return 1024 * (exponent - 1) + L[int((fraction * 2 - 1) * 1024)]


def tempered(row: Array) -> Array:
    """The logits at the first position of a group."""
    rare = np.array([log2u(i + 100) for i in range(len(row))])
    return -((np.minimum(row.max() - row, 2**20) * 704 >> 10) + (64 * rare >> 10))


def entropy(below: Array) -> int:
    """The entropy in units."""
    f = frequency(below)
    total = int(f.sum())
    return max(0, log2u(total) - 28672 + int(((f - 1) * np.minimum(below, 29696)).sum()) // total)


# ---- 5. memories


def word(stream: int, index: int) -> int:
    """SplitMix64."""
    z = (stream * 2**40 + index + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


class Readout:
    """The memory of one chunk, bit by bit."""

    def __init__(self, memory: bytes, share: int, weights: Weights) -> None:
        self.bits = [byte >> i & 1 for byte in memory for i in range(8)]
        self.share, self.head, self.scale = share, weights.t["head"], weights.t["head.scale"]
        self.unit = 1 / math.sqrt(64 * max(float(weights.t["spread"][0]), 1e-30))
        self.entropy_sum = self.used = self.window = 0

    def moves(self, t: int, units: int, competitors: list[int]) -> list[int]:
        """The move of each competitor at token t of the chunk, in units."""
        if not self.share:
            return [0] * len(competitors)
        capped = min(units, 6144)
        self.entropy_sum += capped
        wanted = min(self.share * self.entropy_sum >> 20, len(self.bits))
        for _ in range(min(wanted - self.used, 4)):
            self.window = (self.window * 2 + self.bits[self.used]) % 2**24
            self.used += 1
        f = sum((self.window & word(1, j)).bit_count() % 2 << j for j in range(64))
        d = self.head.shape[1]
        p = np.array([64 - 2 * (word(2, t * d + i) ^ f).bit_count() for i in range(d)])
        tilt = 1.8685079606336419 * math.sqrt(self.share * capped)
        sums = [int(p @ self.head[k].astype(np.int64)) for k in competitors]
        found = [round(n * (float(self.scale[k]) * self.unit) * tilt) for n, k in zip(sums, competitors, strict=True)]
        return [min(max(move, -12288), 12288) for move in found]


def vectors_of(memory: bytes, bits: int, dimensions: int) -> Array:
    """The vectors of a memory at the prompt site, float32."""
    size = 2 * dimensions if bits == 16 else 2 + (dimensions * bits + 7) // 8
    assert len(memory) % size == 0 and 1 <= len(memory) // size <= 64, "a memory that is not 1 to 64 vectors"
    if bits == 16:
        vectors = np.frombuffer(memory, dtype="<f2").reshape(-1, dimensions).astype(f4)
    else:
        rest, found = Bytes(memory), []
        for _ in range(len(memory) // size):
            (scale,) = struct.unpack("<e", rest.take(2))
            levels = rest.number(size - 2)
            found.append([(2 * ((levels >> i * bits) % 2**bits) + 1 - 2**bits) * scale for i in range(dimensions)])
        vectors = np.array(found, dtype=f4)
    assert np.isfinite(vectors).all(), "a memory with an entry that is not a number"
    return vectors


# ---- 7. range coder


class Coder:
    """Decodes bits from corrections."""

    def __init__(self, data: bytes) -> None:
        self.data = iter(data)
        self.range, self.code = 2**32 - 1, 0
        for _ in range(4):
            self._shift()

    def _shift(self) -> None:
        self.code = (self.code * 256 + next(self.data, 0)) % 2**32

    def bit(self, part: int, whole: int) -> int:
        """A bit whose 0 has the probability part / whole."""
        p = min(max((part << 16) // whole, 1), 65535)
        bound = (self.range >> 16) * p
        bit = int(self.code >= bound)
        self.range = self.range - bound if bit else bound
        self.code -= bound if bit else 0
        while self.range < 2**24:
            self.range *= 256
            self._shift()
        return bit


# ---- 6. corrections, and the whole file


def token(coder: Coder, row: Array, moves_of: Callable[[int, list[int]], list[int]]) -> int:
    """Decode one token. row: logits in units; moves_of: returns moves for an entropy and competitors."""
    below = row.max() - row
    order = np.lexsort((np.arange(len(row)), below))[:33].tolist()
    competitors, rival = order[:32], order[32:33]
    changed = frequency(below)
    moves = np.array(moves_of(entropy(below), competitors))
    changed[competitors] = frequency(below[competitors] - moves)
    winner = max([*competitors, *rival], key=lambda k: int(changed[k]))  # the first of the largest
    total = int(changed.sum())
    if not coder.bit(int(changed[winner]), total):
        return int(winner)
    changed[winner] = 0
    size = 256
    while size < len(row):
        size *= 2
    first = 0
    while size > 1:
        size //= 2
        lower, both = int(changed[first : first + size].sum()), int(changed[first : first + 2 * size].sum())
        if coder.bit(lower, both) if 0 < lower < both else lower == 0:
            first += size
    return first


def group_of(file: File, number: int) -> Iterator[tuple[int, bytes]]:
    """The tokens and the memory of each chunk of the group that begins with segment `number`."""
    n = sum(map(len, file.chunks[:number]))
    for segment in range(number, len(file.begins)):
        if segment > number and file.begins[segment]:
            return
        for tokens in file.chunks[segment]:
            yield tokens, file.memories[n]
            n += 1


def ids_of(file: File, number: int, corrections: bytes, prefix: list[int], lm: LM) -> list[int]:
    """The tokens of one group."""
    coder, ids, start = Coder(corrections), list[int](), 0
    cold = file.site == 0 and not file.primer
    group = list(group_of(file, number))
    vectors = np.empty((0, 0), dtype=f4)
    if file.site == 1:
        assert file.fields[1] == lm.a["hidden"], "vectors of another number of dimensions"
        vectors = vectors_of(group[0][1], *file.fields)
    seen = len(prefix) + len(vectors) + min(sum(tokens for tokens, _ in group), file.context)
    assert seen <= lm.a["positions"], "a group that is longer than the positions of the model"
    for tokens, memory in group:
        readout = Readout(memory, file.fields[0] if file.site == 0 else 0, lm.w)
        for t in range(tokens):
            if not ids or len(ids) - start > file.context:
                start = len(ids) - file.context // 2 if ids else 0
                lm.restart()
                for i in [*prefix, *ids[start:]]:
                    row = lm.token(i)
                for vector in vectors if not ids else []:
                    row = lm.vector(vector)
            else:
                row = lm.token(ids[-1])
            if cold and not ids:
                row = tempered(row)
            ids.append(token(coder, row, lambda h, some, t=t, r=readout: r.moves(t, h, some)))  # type: ignore[misc]
    return ids


def with_references(carried: bytes, references: list[tuple[int, int, int]]) -> bytes:
    """A document, from its carried bytes; references: three numbers of each."""
    pieces, at = list[bytes](), 0
    for gap, more, back in references:
        pieces.append(carried[at : at + gap])
        at, size = at + gap, 32 + more
        pieces.append(carried[at - back - size : at - back])
    return b"".join([*pieces, carried[at:]])


def document_of(file: File, primer: list[int], lm: LM | None) -> bytes:
    """The document of one file. primer: its ids, if there is one; lm: None if there are only stored spans."""
    spans, corrections, pieces, segment, n = iter(file.stored), iter(file.corrections), list[bytes](), 0, 0
    ids: list[int] = []
    for run in file.runs:
        for _ in range(run):
            assert lm is not None, "the file needs its model"
            if file.begins[segment]:
                given = np.array(primer, dtype="<i4").tobytes()
                assert not file.primer or hashlib.sha256(given).digest()[:8] == file.primer, "another primer"
                prefix = lm.w.prefix + (primer if file.primer else [])
                ids = ids_of(file, segment, next(corrections), prefix, lm)
            size = 0
            for count in file.chunks[segment]:
                piece = b"".join(lm.w.bytes_of.get(i, b"") for i in ids[:count])
                ids = ids[count:]
                assert zlib.crc32(piece) % 2**8 == file.checksums[n], f"chunk {n} is damaged"
                pieces.append(piece)
                size += len(piece)
                n += 1
            assert size == file.sizes[segment], "a segment of another length than the index says"
            segment += 1
        pieces += [span for span in [next(spans, None)] if span is not None]
    document = with_references(b"".join(pieces), file.references)
    assert len(document) == file.size and hashlib.sha256(document).digest()[:16] == file.hash, "the document is damaged"
    return document


def decode(blob: bytes, weights: Weights | None, primer: list[int] | None = None, lm: LM | None = None) -> bytes:
    """The documents of concatenated files. primer: its ids; lm: used instead of an LM with these weights."""
    files = files_of(blob)
    if weights is not None and lm is None and any(file.begins for file in files):
        lm = LM(weights)
    return b"".join(document_of(file, primer or [], lm) for file in files)


def main() -> None:
    """Decode a file to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--primer", type=Path)
    options = parser.parse_args()
    blob = options.file.read_bytes()
    weights, primer = Weights(options.model), None
    if needed := {file.identity for file in files_of(blob) if file.begins}:
        assert needed == {weights.identity()[:8]}, "another model"
    if options.primer:
        primer = np.frombuffer(safetensors(options.primer.read_bytes())[1]["tokens"][2], "<i4").tolist()
    sys.stdout.buffer.write(decode(blob, weights, primer))


if __name__ == "__main__":
    main()
