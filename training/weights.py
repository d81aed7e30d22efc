"""Weights for training on a machine that has no memcodec: the built-in model's tensors as they are in its GGUF file.

    python training/weights.py    # writes weights.safetensors (96 MB) and tokenizer.json to build/training

Quantized blocks stay as they are (Q4_1 and Q8_0, as spec/FORMAT.md dequantizes them), which is a third of bfloat16.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from outputs import complete
from safetensors import safe_open
from safetensors.numpy import save_file
from transformer import MATRICES, Shape

BUILD = Path(__file__).resolve().parent.parent / "build" / "training"
WEIGHTS = BUILD / "weights.safetensors"
_STACKS = {
    "qkv": ("attn_q", "attn_k", "attn_v"), "mix": ("attn_output",), "up": ("ffn_gate", "ffn_up"), "down": ("ffn_down",),
    "attention.gain": ("attn_norm",), "mlp.gain": ("ffn_norm",),
}  # fmt: skip
_WHOLE = {"embedding": "token_embd.weight", "gain": "output_norm.weight"}


def export(target: Path = WEIGHTS) -> None:
    """Write the tensors of the built-in model, its shape and its prefix into one file."""
    import gguf

    from memcodec.models import registry
    from memcodec.models.tokenizer import ByteTokenizer

    folder = registry.resolve(registry.DEFAULT_MODEL).path
    config = json.loads((folder / "config.json").read_text())
    about = {
        "layers": config["num_hidden_layers"], "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"], "key_heads": config["num_key_value_heads"],
        "head_size": config["hidden_size"] // config["num_attention_heads"], "inner": config["intermediate_size"],
        "vocabulary": config["vocab_size"], "theta": config["rope_theta"], "epsilon": config["rms_norm_eps"],
    }  # fmt: skip
    reader = gguf.GGUFReader(folder / "model.gguf")
    tensors = {f"{t.tensor_type.name}/{t.name}": np.ascontiguousarray(t.data) for t in reader.tensors}
    prefix = list(ByteTokenizer(folder).prefix())
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "tokenizer.json", target.parent)
    with complete(target) as part:
        save_file(tensors, part, {"shape": json.dumps(about), "prefix": json.dumps(prefix)})


def load(path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Shape, list[int], dict[str, torch.Tensor]]:
    """The shape, the prefix (token ids) and the stacked weights, matrices in `dtype`, gains in float32."""
    with safe_open(path, "np") as file:
        about = file.metadata()
        found = {name.split("/", 1)[1]: _dequantized(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    shape = Shape(**json.loads(about["shape"]))
    weights = {name: found[source] for name, source in _WHOLE.items()}
    for name, parts in _STACKS.items():
        layers = [
            [_in_order(found[f"blk.{n}.{part}.weight"], part, shape) for part in parts] for n in range(shape.layers)
        ]
        weights[name] = np.stack([np.concatenate(layer) for layer in layers])
    moved = {
        name: torch.from_numpy(value).to(device, dtype if name in (*MATRICES, "embedding") else torch.float32)
        for name, value in weights.items()
    }
    return shape, json.loads(about["prefix"]), moved


def _dequantized(name: str, data: np.ndarray) -> np.ndarray:
    """A tensor in float32, from blocks of 32 entries."""
    kind = name.split("/", 1)[0]
    if kind == "F32":
        return data
    blocks = data.reshape(-1, {"Q4_1": 20, "Q8_0": 34}[kind])
    if kind == "Q8_0":
        values = blocks[:, 2:].view(np.int8).astype(np.float32) * blocks[:, :2].copy().view(np.float16).astype(
            np.float32
        )
    else:
        scale, least = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
        halves = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        values = halves.astype(np.float32) * scale + least
    return values.reshape(data.shape[0], -1)


def _in_order(values: np.ndarray, part: str, shape: Shape) -> np.ndarray:
    """Rows of query and key heads in Hugging Face's order: GGUF has entries that turn together side by side."""
    heads = {"attn_q": shape.heads, "attn_k": shape.key_heads}.get(part)
    if heads is None:
        return values
    return values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


if __name__ == "__main__":
    export()
