"""GGUF files of the Llama family, such as those of built-in models: config.json, tokenizer.json and float weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from memcodec.errors import ModelNotFoundError, first_line

FILE_NAME = "model.gguf"  # in a model folder

_LAYER_NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
          "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
          "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
          "ffn_norm": "post_attention_layernorm"}  # fmt: skip
_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
          "output.weight": "lm_head.weight"}  # fmt: skip
_ADVICE = "replace it, or remove it from the folder and put safetensors files there"
_CONTROL = 3  # the type of a special token


class GGUFCheckpoint:
    """The dequantized tensors of a GGUF file, under the names that Hugging Face gives them."""

    def __init__(self, path: Path) -> None:
        """Raises ModelNotFoundError."""
        import gguf

        self._path = path
        with _reading(path):
            reader = gguf.GGUFReader(path)
            family = str(_field(reader, "general.architecture"))
            if family != "llama":
                raise ModelNotFoundError(f"{path}: GGUF of the kind {family!r}, not llama: {_ADVICE}")
            heads = [int(_field(reader, f"llama.attention.head_count{suffix}")) for suffix in ("", "_kv")]
            self._heads = dict(zip(("attn_q", "attn_k"), heads, strict=True))
            self._tensors = {_name(tensor.name): tensor for tensor in reader.tensors}

    def mean(self, name: str, size: int) -> np.ndarray | None:
        """None: a GGUF file has no means of norms."""
        return None

    def names(self) -> set[str]:
        """All names."""
        return set(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32. Raises ModelNotFoundError."""
        import gguf

        tensor = self._tensors[name]
        with _reading(self._path):
            values: np.ndarray = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            heads = self._heads.get(tensor.name.split(".")[-2])
            if heads is not None:  # GGUF stores the two entries of a head that are rotated together next to each other
                values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        return values


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the reader raises for damaged files and unknown names and types into a ModelNotFoundError."""
    try:
        yield
    except (ModelNotFoundError, OSError, MemoryError):
        raise
    except Exception as error:  # the reader raises various types
        why = f"it has no {error.args[0]}" if isinstance(error, KeyError) and error.args else first_line(error)
        raise ModelNotFoundError(f"{path}: it cannot be read as GGUF weights of a Llama ({why}): {_ADVICE}") from error


def describe(path: Path, folder: Path) -> None:
    """Write the config.json and the tokenizer.json of a GGUF file into a folder."""
    import gguf

    reader = gguf.GGUFReader(path)
    config = {
        "model_type": "llama",
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": _field(reader, "llama.embedding_length"),
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": _field(reader, "llama.attention.head_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "rms_norm_eps": _field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": _field(reader, "llama.rope.freq_base"),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _tokenizer(reader).save(str(folder / "tokenizer.json"))


def _tokenizer(reader: Any) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    kinds = _field(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split: Any = byte_level
    if _field(reader, "tokenizer.ggml.pre") == "smollm":  # which has single digits as tokens
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    block, number, tensor, kind = name.split(".")
    return f"model.layers.{number}.{_LAYER_NAMES[tensor]}.{kind}" if block == "blk" else name
