"""Write a tiny model and its test vectors if they are missing. Existing ones stay.

Usage: PYTHONPATH=benchmarks python spec/make_tiny.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from force_lm import store_nothing
from make_vectors import ENGLISH, MIXED
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from memcodec.codec import Codec
from memcodec.primer import Primer
from memcodec.settings import Prompt, Readout

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
VECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "share-0": (ENGLISH, {"site": Readout(0)}),
    "share-0.1": (ENGLISH, {}),
    "share-0.5-context-30": (ENGLISH, {"site": Readout(0.5, 256), "chunk_tokens": 40, "context": 30}),
    "context-max": (MIXED + ENGLISH, {"chunk_tokens": 60, "context": "max"}),
    "primer": (ENGLISH, {"chunk_tokens": 60, "context": 50}),
    "references": (ENGLISH + MIXED + ENGLISH[300:] + MIXED + ENGLISH[40:300], {"chunk_tokens": 60, "context": 100}),
    "prompt": (ENGLISH[:120], {"site": Prompt(2, 4, 30), "chunk_tokens": 20}),
}


def main() -> None:
    """Write missing files."""
    folder = Path(__file__).parent / "vectors" / "tiny"
    if not (folder / "model").exists():
        (folder / "model").mkdir(parents=True)
        make_model(folder / "model")
    codec = Codec.load(str(folder / "model"), device="cpu")
    if not (folder / "primer.safetensors").exists():
        Primer.from_texts([MIXED], 90, codec).save(folder / "primer.safetensors")
    primer = Primer.load(folder / "primer.safetensors")
    for name, (text, settings) in VECTORS.items():
        if (folder / f"{name}.memz").exists():
            continue
        used = codec.with_primer(primer if name == "primer" else None)
        data = text.encode() + (b"" if name == "prompt" else b"\xff\xfe\x00" + text[:200].encode())
        (folder / f"{name}.bin").write_bytes(data)
        with store_nothing(references=name == "references"):
            (folder / f"{name}.memz").write_bytes(used.encode(data, **settings))


def make_model(folder: Path) -> None:
    """Make random weights in float16, and a tokenizer that is trained on a short text."""
    rng, c = np.random.default_rng(0), CONFIG
    hidden, inner, size = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["num_attention_heads"]
    keys = size * c["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{x}_proj.weight": (n, hidden) for x, n in (("q", hidden), ("k", keys), ("v", keys))}
        shapes |= {f"{at}self_attn.o_proj.weight": (hidden, hidden), f"{at}mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{at}mlp.{x}_proj.weight": (inner, hidden) for x in ("gate", "up")}
        shapes |= {f"{at}{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
    tensors = {name: rng.normal(0, 0.15, shape).astype(np.float16) + np.float16(len(shape) == 1)
               for name, shape in shapes.items()}  # fmt: skip
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(c, indent=1) + "\n")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=c["vocab_size"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([ENGLISH, MIXED], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
