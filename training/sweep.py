"""Compare choices of the adapter side by side: short runs on the same data, each changing one thing.

    python training/sweep.py --seconds 12 --out build/training/sweep

Writes sweep.json (the bits of every text after each run) and, for train.py --rate-from, best.json: the learning rate
whose run did best.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import data
import torch
import train
import weights as stored

LENGTHS = ((20, 200), (256, 256), (500, 2000))  # tokens of a sequence, instead of 20 to 2,000
MIXES = {"every kind equally often": dict.fromkeys(data.MIX, 1.0), "more prose": data.MIX | {"prose": 0.6}}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run")
    parser.add_argument("--out", type=Path, default=data.ROOT / "training" / "sweep")
    parser.add_argument("--tokens", type=int, help="a step (default: 32,768 on a GPU, 2,048 on a CPU)")
    parser.add_argument("--corpus", type=Path, default=data.TOKENS)
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = a.tokens or {"cuda": 32768, "cpu": data.STEP["cpu"]}[device.type]
    model, prefix = train.set_up(device, stored.WEIGHTS)
    documents = data.Documents.load(a.corpus)
    texts = data.evaluated(data.EVALUATION, 6)
    print("attention differs by", train.check_attention(model, documents, prefix), "bits a token", flush=True)
    before = train.bits_by_text(model, texts, prefix, tokens)
    base = train.Options(a.seconds / 60, a.out / "run", tokens=tokens, evaluate_every=1e9)
    train.Run(model, documents, prefix, replace(base, minutes=0.05)).train(texts)  # compiles
    rates = (1e-3, 2e-3, 4e-3, 8e-3)
    results: dict[str, dict[str, float]] = {"none": before}

    def run(name: str, options: train.Options) -> float:
        """Train with some options, and return the mean change in percent."""
        results[name] = train.Run(model, documents, prefix, options).train(texts)
        others = [text for text in texts if not text.startswith("held out")]
        changes = [100 * (results[name][text] / before[text] - 1) for text in others]
        print(f"== {name}: {sum(changes) / len(changes):+.3f} %, worst {max(changes):+.2f} %", flush=True)
        (a.out / "sweep.json").write_text(json.dumps(results, indent=1))
        return sum(changes) / len(changes)

    found = {rate: run(f"rate {rate:g}", replace(base, rate=rate)) for rate in rates}
    best = min(found, key=found.__getitem__)
    (a.out / "best.json").write_text(json.dumps({"rate": best}))
    base = replace(base, rate=best)
    run("rank 4", replace(base, rank=4, embedding_rank=4))
    run("rank 8", replace(base, rank=8, embedding_rank=8))
    run("rank 32", replace(base, rank=32, embedding_rank=32))
    run("no embedding", replace(base, embedding_rank=0))
    run("no gains", replace(base, gains=False))
    run("attention alone", replace(base, matrices=("qkv", "mix")))
    run("gated layers alone", replace(base, matrices=("up", "down")))
    for lengths in LENGTHS:
        run(f"sequences of {lengths[0]} to {lengths[1]} tokens", replace(base, lengths=lengths))
    for name, mix in MIXES.items():
        run(name, replace(base, mix=mix))


if __name__ == "__main__":
    main()
