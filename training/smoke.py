"""Whether training runs here, and how fast: the built-in model's shape with random weights.

python training/smoke.py [--tokens N] [--layers 30] [--steps 10]
"""

import argparse
import time

import data
import numpy as np
import torch
from transformer import MATRICES, Adapter, Shape, Transformer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, help="a step (default: 65,536 on a GPU, 2,048 on a CPU)")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = a.tokens or data.STEP[device.type]
    s = Shape(a.layers, 576, 9, 3, 64, 1536, 49152, 1e5, 1e-5)
    sizes = {"qkv": (960, 576), "mix": (576, 576), "up": (3072, 576), "down": (576, 1536)}
    weights = {name: torch.randn(s.layers, *size, device=device).bfloat16() / 24 for name, size in sizes.items()}
    weights["embedding"] = torch.randn(s.vocabulary, s.hidden, device=device).bfloat16() / 24
    for name, shape in (("attention.gain", (s.layers, 576)), ("mlp.gain", (s.layers, 576)), ("gain", (576,))):
        weights[name] = torch.ones(shape, device=device)
    model = Transformer(s, weights)
    if device.type == "cuda":
        model.compile()
    adapter = Adapter(weights, 16, MATRICES, 16, True).to(device)
    ids = np.random.default_rng(0).integers(0, s.vocabulary, 3_000_000)
    names = ["code/python", "prose/en"]
    documents = data.Documents(ids.astype(np.uint16), np.arange(0, 3_000_001, 1500), np.arange(2000) % 2, names)
    sampler = iter(data.Sampler(documents, 2026, tokens, 0))
    for step in range(a.steps):
        start = time.perf_counter()
        loss = model.loss(next(sampler).to(device), adapter)
        loss.backward()
        value = float(loss)
        seconds = time.perf_counter() - start
        print(f"step {step}: {value:.3f} nats, {tokens / seconds:,.0f} tokens/s, {seconds:.2f} s", flush=True)
    if device.type == "cuda":
        print(f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB, {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
