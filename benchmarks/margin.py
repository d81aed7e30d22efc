"""How far logits differ between batch sizes, threads, attention kernels, cached steps and full passes.

    python benchmarks/margin.py TEXT... [--model NAME] [--device DEVICE]

One chunk of 200 tokens is taken from each text. Prints the table of docs/margin.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from memcodec.codec import Codec
from memcodec.lm import FrozenLM

TOKENS = 200


def cached(lm: FrozenLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits by cached steps, float32 [rows, tokens, vocabulary]."""
    step = lm.start(len(ids), TOKENS)
    return torch.stack([lm.logits(step(ids[:, t - 1] if t else None)) for t in range(TOKENS)], dim=1).cpu()


def report(name: str, first: torch.Tensor, second: torch.Tensor) -> None:
    """Print the largest difference of a logit, and of a gap between two of the best 1000."""
    change = (first[: len(second)] - second).double()
    best = first[: len(second)].topk(min(1000, first.shape[-1]), dim=-1).indices
    change_best = change.gather(-1, best)
    gap = (change_best.amax(dim=-1) - change_best.amin(dim=-1)).max()
    print(f"{name:40} {change.abs().max():.2e} {gap:.2e}", flush=True)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    codec = Codec.load(arguments.model, "cpu")
    rows = [
        codec.tokenizer.encode(path.read_text(encoding="utf-8", errors="ignore"))[:TOKENS] for path in arguments.texts
    ]
    ids = torch.from_numpy(np.stack([row for row in rows if len(row) == TOKENS]))
    reference = codec.lm.logits(codec.lm.hidden(ids))
    print(f"{'against a full pass, SDPA, CPU':40} logit    gap")
    report("cached steps", reference, cached(codec.lm, ids))
    report("cached steps, batch 2", reference, cached(codec.lm, ids[:2]))
    report("cached steps, batch x 8", reference, cached(codec.lm, ids.repeat(8, 1))[: len(ids)])
    report("full pass of 1 chunk", reference, codec.lm.logits(codec.lm.hidden(ids[:1])))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    report("1 thread", reference, codec.lm.logits(codec.lm.hidden(ids)))
    torch.set_num_threads(threads)
    for attention, device in (("eager", "cpu"), ("sdpa", arguments.device)):
        if (attention, device) != ("sdpa", "cpu"):
            other = Codec.load(arguments.model, device, attention=attention).lm
            report(f"{attention}, {device}, full pass", reference, other.logits(other.hidden(ids)).cpu())
            report(f"{attention}, {device}, cached steps", reference, cached(other, ids))


if __name__ == "__main__":
    main()
