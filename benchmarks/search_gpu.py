"""The search for memories on a GPU: whether it finds what the CPU finds, and how long its parts take.

    python benchmarks/search_gpu.py [chunks] [vocabulary] [sizes, such as tile=128,warps=32,registers=64]

Predictions are made up, of 200 tokens a chunk; the head of the LM has a hidden size of 576 and random entries.
"""

import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from memcodec.coding.distribution import BLOCK, COMPETITORS, Predictions, frequencies
from memcodec.coding.steering import Steering
from memcodec.lm import arithmetic
from memcodec.lm.team import Team
from memcodec.lm.weights import Head
from memcodec.memory import search_gpu
from memcodec.memory.search import memory_bytes, search

HIDDEN, TOKENS, DISTINCT = 576, 200, 50
SHARE = 102  # 0.1


def chunk_of(seed: int, vocabulary: int) -> Predictions:
    """Returns random predictions: logits of competitors fall by random steps; tokens are drawn from them."""
    random = np.random.default_rng(seed)
    ids = np.stack([random.choice(vocabulary, COMPETITORS + 1, replace=False) for _ in range(TOKENS)]).astype(np.int32)
    steps = random.exponential(random.uniform(50, 900, (TOKENS, 1)), (TOKENS, COMPETITORS + 1))
    below = (np.cumsum(steps, axis=1) - steps[:, :1]).astype(np.int32)
    counts = frequencies(below)
    total = counts.sum(axis=1) + counts[:, -1] * 20
    place = (random.uniform(size=(TOKENS, 1)) * total[:, None] > np.cumsum(counts, axis=1)).sum(axis=1)
    others = random.integers(0, vocabulary, TOKENS)
    tokens = np.where(place > COMPETITORS, others, ids[np.arange(TOKENS), np.minimum(place, COMPETITORS)])
    near = random.integers(4000, 12000, (TOKENS, BLOCK)).astype(np.int32)
    entropy = np.minimum(steps.mean(axis=1) ** -1 * 1e6, 9000).astype(np.int32)
    return Predictions(tokens.astype(np.int64), ids, below, total, entropy, np.zeros((TOKENS, 1), np.int64), near)


def coder_of(head: Head, device: torch.device) -> Any:
    """What the search needs of a coder."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    tensors = {"head": tensor(head.integers), "head.scale": tensor(head.scale)}
    lm = SimpleNamespace(tensors=tensors, device=device, architecture=SimpleNamespace(hidden=HIDDEN))
    return SimpleNamespace(
        lm=lm, tensor=tensor, powers=tensor(arithmetic.powers()), logarithms=tensor(arithmetic.logarithms())
    )


def main() -> None:
    """Compare and time the search at the efforts of some levels."""
    given = dict(enumerate(sys.argv[1:]))
    chunks, vocabulary = int(given.get(0, 1250)), int(given.get(1, 49152))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = search_gpu.ON_GPU if device.type == "cuda" else search_gpu.INTERPRETED
    pairs = [pair.split("=") for pair in given.get(2, "").split(",") if pair]
    sizes = base._replace(**{name: int(value) for name, value in pairs})
    random = np.random.default_rng(0)
    integers = np.clip(np.round(random.standard_normal((vocabulary, HIDDEN)) * 35), -127, 127).astype(np.int8)
    scale = random.uniform(0.003, 0.006, vocabulary).astype(np.float32)
    spread = float(HIDDEN * np.mean((integers[:1000] * scale[:1000, None]) ** 2))
    head = Head(integers, scale, spread)
    steering, finder, team = Steering.of(head), search_gpu.GpuSearch(coder_of(head, device), sizes), Team(2)
    some = [chunk_of(seed, vocabulary) for seed in range(min(chunks, DISTINCT))]
    predictions = [some[i % len(some)] for i in range(chunks)]

    def timed(work: Any, *arguments: Any) -> tuple[float, Any]:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        found = work(*arguments)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return round(time.perf_counter() - start, 5), found

    bytes_of = [memory_bytes(one.entropy, SHARE) for one in predictions]
    for effort in (64, 512, 4096):
        few = predictions[:3]
        same = finder(few, steering, SHARE, effort, team) == search(few, steering, SHARE, effort, team)
        whole, _ = timed(finder, predictions, steering, SHARE, effort, team)
        packing, packed = timed(finder._pack, predictions)
        finding, runs = timed(search_gpu._runs_of, packed, bytes_of, SHARE)
        preparing, prepared = timed(finder._prepared, packed, steering, SHARE)
        searching, _ = timed(finder._beam, prepared, runs, steering, effort)
        flags = prepared[3][:, 2].cpu().numpy()
        print(
            f"effort {effort}: same {same}; {chunks} chunks in {whole} s: pack {packing}, runs {finding},"
            f" upload and prepare {preparing}, beam {searching}; runs of {len(packed.tokens) / len(runs.runs):.2f}"
            f" positions, near {np.mean(flags & 2 > 0):.2f}, narrow {np.mean(flags & 4 > 0):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
