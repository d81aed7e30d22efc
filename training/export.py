"""From what train.py wrote to the file that memcodec loads: scaled, balanced by SVD, quantized to eight bits.

    python training/export.py build/training/run/adapter.safetensors adapter.safetensors --scale 0.6

--scale multiplies the additions: an adapter that was trained long loses on texts unlike its corpus, and a part of it
keeps most of what it gained (Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903; see
docs/training.md for what was measured).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HEAD_SIZE, HEADS, KEY_HEADS = 64, 9, 3  # of the built-in model
NAMES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "mix": ("self_attn.o_proj",),
    "up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",),
}  # fmt: skip
ROWS = {"qkv": (HEADS * HEAD_SIZE, KEY_HEADS * HEAD_SIZE, KEY_HEADS * HEAD_SIZE), "up": (1536, 1536)}
GAINS = {"attention/gain": "input_layernorm", "mlp/gain": "post_attention_layernorm"}


def balanced(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the same product b a whose columns and rows are orthogonal, each pair of the same length."""
    qb, rb = np.linalg.qr(b.astype(np.float64))
    qa, ra = np.linalg.qr(a.astype(np.float64).T)
    u, s, v = np.linalg.svd(rb @ ra.T)
    return np.sqrt(s)[:, None] * (v @ qa.T), (qb @ u) * np.sqrt(s)


def quantized(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 with a scale for each slice along the other axis."""
    scale = np.abs(x).max(axis=axis, keepdims=True) / 127
    return np.rint(x / scale).astype(np.int8), scale.squeeze(axis)


def export(factors: dict[str, np.ndarray], scale: float) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of an adapter file, and the names of matrices that share a factor."""
    tensors: dict[str, np.ndarray] = {}
    shared: dict[str, str] = {}

    def add(names: list[str], rows: tuple[int, ...], a: np.ndarray, b: np.ndarray) -> None:
        a, b = balanced(a, b * scale)
        whole, a_scale = quantized(a, 1)
        tensors[f"{names[0]}.a"] = whole
        for name, part in zip(names, np.split(b, np.cumsum(rows)[:-1]), strict=True):
            tensors[f"{name}.b"], b_scale = quantized(part, 0)
            tensors[f"{name}.scale"] = (a_scale * b_scale).astype(np.float32)
            if name != names[0]:
                shared[name] = names[0]

    for stack, parts in NAMES.items():
        if f"{stack}/a" in factors:
            a, b = factors[f"{stack}/a"], factors[f"{stack}/b"]
            for layer in range(len(a)):
                names = [f"model.layers.{layer}.{part}.weight" for part in parts]
                add(names, ROWS.get(stack, (b.shape[1],)), a[layer], b[layer])
    if "embedding/a" in factors:
        b = factors["embedding/b"]
        add(["model.embed_tokens.weight"], (len(b),), factors["embedding/a"], b)
    for name, part in GAINS.items():
        for layer, values in enumerate(factors.get(name, [])):
            tensors[f"model.layers.{layer}.{part}.weight.add"] = (values * scale).astype(np.float32)
    if "gain" in factors:
        tensors["model.norm.weight.add"] = (factors["gain"] * scale).astype(np.float32)
    return tensors, shared


def imported(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `export`, but for its rounding: what train.py writes, float32."""
    factors: dict[str, np.ndarray] = {}

    def factors_of(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [tensors[f"{name}.b"].astype(np.float64) * tensors[f"{name}.scale"] for name in names]
        a, b = balanced(tensors[f"{names[0]}.a"].astype(np.float64), np.concatenate(parts))
        return a.astype(np.float32), b.astype(np.float32)

    layers = sum(name.endswith(f"{NAMES['mix'][0]}.weight.a") for name in tensors)
    for stack, parts in NAMES.items():
        pairs = [factors_of([f"model.layers.{layer}.{part}.weight" for part in parts]) for layer in range(layers)]
        factors[f"{stack}/a"], factors[f"{stack}/b"] = (np.stack(some) for some in zip(*pairs, strict=True))
    factors["embedding/a"], factors["embedding/b"] = factors_of(["model.embed_tokens.weight"])
    for name, part in GAINS.items():
        factors[name] = np.stack([tensors[f"model.layers.{n}.{part}.weight.add"] for n in range(layers)])
    factors["gain"] = tensors["model.norm.weight.add"]
    return factors


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, nargs="+", help="file, or pieces, that train.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    a = parser.parse_args()
    factors = {name: value for path in a.trained for name, value in load_file(path).items()}
    tensors, shared = export(factors, a.scale)
    save_file(tensors, a.out, {"shared": json.dumps(shared), "scale": str(a.scale)})
    print(f"{a.out}: {a.out.stat().st_size:,} bytes, {len(tensors)} tensors")


if __name__ == "__main__":
    main()
