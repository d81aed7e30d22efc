"""Train the adapter, on a GPU or a CPU: bfloat16, the LM frozen, AdamW on the low-rank factors.

    python training/train.py --minutes 8 --out build/training/run
    python training/train.py --minutes 600 --out build/training/run --resume

Needs torch, numpy and safetensors alone, and the files that weights.py and data.py wrote; no memcodec. From time to
time and at the end it evaluates, and writes into --out: state.safetensors (to resume from), adapter.safetensors
(float32) and log.jsonl (one line an evaluation). --resume goes on from there, if the texts, the weights and the parts
of the adapter are the same. Evaluations are not counted as minutes of training.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import data
import numpy as np
import torch
import weights as stored
from outputs import complete
from safetensors import safe_open
from safetensors.torch import save_file
from transformer import MATRICES, POSITIONS, Adapter, Transformer, attention_by_sequence

EVALUATE_EVERY = {"cuda": 60.0, "cpu": 600.0}  # seconds of training, by device
Texts = dict[str, list[np.ndarray]]  # chunks of token ids, by the name of a text


@dataclass
class Options:
    """The settings of a run: see the help of the command."""

    minutes: float
    out: Path
    rate: float = 2e-3
    rank: int = 16
    embedding_rank: int = 16
    matrices: tuple[str, ...] = MATRICES
    gains: bool = True
    tokens: int = data.STEP["cuda"]
    seed: int = 0
    resume: bool = False
    evaluate_every: float = 60.0
    export: Path | None = None
    lengths: tuple[int, int] = (data.SHORTEST, data.LONGEST)
    mix: Mapping[str, float] = field(default_factory=lambda: data.MIX)


def schedule(fraction: float, step: int) -> float:
    """Returns the factor of the learning rate: a short warm-up, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / 30) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0))))


class Run:
    """One training run."""

    def __init__(self, model: Transformer, documents: data.Documents, prefix: int, options: Options) -> None:
        self.model = model
        self.options = options
        self.prefix = prefix
        self.device = model.weights["embedding"].device
        o = options
        self.adapter = Adapter(model.weights, o.rank, o.matrices, o.embedding_rank, o.gains).to(self.device)
        groups = self.adapter.groups(o.rate, o.rate / 4)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.step, self.seconds, self.seen = 0, 0.0, 0
        self.trained_on = {
            "texts": documents.sha256, "weights": model.sha256, "rank": o.rank, "embedding rank": o.embedding_rank,
            "matrices": list(o.matrices), "gains": o.gains,
        }  # fmt: skip
        for folder in filter(None, (o.out, o.export)):
            folder.mkdir(parents=True, exist_ok=True)
        if o.resume and (o.out / "state.safetensors").exists():
            self._resume()
        # With the step in the seed, a run that is resumed reads other batches than before.
        self.sampler = iter(data.Sampler(documents, prefix, o.tokens, [o.seed, self.step], o.lengths, o.mix))

    def start_from(self, factors: dict[str, torch.Tensor]) -> None:
        """Begin with the additions of another adapter, which has the same ones."""
        with torch.no_grad():
            for name, p in self.adapter.factors.items():
                p.copy_(factors[name])

    def train(self, texts: Texts) -> dict[str, float]:
        """Train for the minutes of the options; returns the bits per token of each text at the end."""
        whole, mean, since = self.options.minutes * 60, None, time.monotonic()
        begun, evaluated = since - self.seconds, self.seconds
        while self.seconds < whole:
            factor = schedule(self.seconds / whole, self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            batch = next(self.sampler).to(self.device)
            loss = self.model.loss(batch, self.adapter)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step, self.seen = self.step + 1, self.seen + self.options.tokens
            self.seconds = time.monotonic() - begun
            value = loss.detach() / math.log(2)
            mean = value if mean is None else 0.98 * mean + 0.02 * value
            if self.step % 20 == 0:
                speed = self.seen / (time.monotonic() - begun)
                print(
                    f"step {self.step} {self.seen / 1e6:.1f} M tokens {speed:,.0f} tokens/s {float(mean):.4f} bits",
                    flush=True,
                )
            if self.seconds - evaluated > self.options.evaluate_every:
                bits = float(mean)  # waits until the device has finished the step
                paused, evaluated = time.monotonic(), self.seconds
                self.evaluate(texts, bits)
                begun += time.monotonic() - paused
        return self.evaluate(texts, float(mean if mean is not None else 0))

    def evaluate(self, texts: Texts, mean: float) -> dict[str, float]:
        """Bits per token of each text, written to the log; saves the run."""
        found = bits_by_text(self.model, texts, self.prefix, self.options.tokens, self.adapter)
        line = {
            "step": self.step,
            "tokens": self.seen,
            "seconds": round(self.seconds, 1),
            "training": mean,
            "bits": found,
        }
        with (self.options.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.save()
        return found

    def save(self) -> None:
        """Write the state, which has everything to resume from, and the adapter alone."""
        factors = {name: p.detach().cpu().contiguous() for name, p in self.adapter.factors.items()}
        about = {"step": self.step, "seconds": self.seconds, "seen": self.seen, "trained on": self.trained_on}
        state = {f"{name}:factor": values for name, values in factors.items()}
        for name, p in self.adapter.factors.items():
            for key, value in self.optimizer.state[p].items():
                state[f"{name}:{key}"] = value.detach().cpu().contiguous()
        for name, tensors in (("state", state), ("adapter", factors)):
            with complete(self.options.out / f"{name}.safetensors") as part:
                save_file(tensors, part, {"run": json.dumps(about)})
        if self.options.export:
            export(factors, self.options.export)
            shutil.copy(self.options.out / "log.jsonl", self.options.export)

    def _resume(self) -> None:
        path = self.options.out / "state.safetensors"
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["run"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        before = about.get("trained on", {})
        if other := [what for what, value in self.trained_on.items() if before.get(what) != value]:
            raise SystemExit(f"train: error: {path}: is of a run with other {', '.join(other)}: give another --out")
        self.start_from({name: state.pop(f"{name}:factor") for name in self.adapter.factors})
        for name, value in state.items():
            factor, key = name.rsplit(":", 1)
            self.optimizer.state[self.adapter.factors[factor]][key] = value.to(self.device)
        self.step, self.seconds, self.seen = about["step"], about["seconds"], about["seen"]


def export(factors: dict[str, torch.Tensor], folder: Path, most: int = 14_000_000) -> None:
    """Write the adapter as adapter-1.safetensors, adapter-2.safetensors, ... of at most `most` bytes, to be carried."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, value in factors.items():
        if shards[-1] and sum(v.nbytes for v in shards[-1].values()) + value.nbytes > most:
            shards.append({})
        shards[-1][name] = value
    for n, shard in enumerate(shards, 1):
        save_file(shard, folder / f"adapter-{n}.safetensors")


def bits_by_text(
    model: Transformer, texts: Texts, prefix: int, tokens: int, adapter: Adapter | None = None
) -> dict[str, float]:
    """Mean bits per token of each text, whose chunks are put into batches of `tokens` tokens."""
    pending = [(name, chunk) for name, chunks in texts.items() for chunk in chunks]
    sums: dict[str, list[float]] = {name: [0.0, 0] for name in texts}
    while pending:
        some, room = [], max(tokens, data.CHUNK)
        while pending and len(pending[0][1]) <= room:
            room -= len(pending[0][1])
            some.append(pending.pop(0))
        batch = data.batch_of([chunk for _, chunk in some], prefix, max(tokens, data.CHUNK))
        costs = model.bits(batch.to(model.weights["embedding"].device), adapter).cpu().double()
        for (name, chunk), start in zip(some, batch.ends.tolist(), strict=False):
            sums[name][0] += float(costs[start : start + len(chunk)].sum())
            sums[name][1] += len(chunk)
    return {name: total / count for name, (total, count) in sums.items() if count}


def render(found: dict[str, float], before: dict[str, float]) -> str:
    """Bits per token and the change in percent, a line each, and the mean change."""
    changes = {name: 100 * (found[name] / before[name] - 1) for name in found}
    lines = [f"{name:28} {before[name]:7.4f} {found[name]:7.4f} {changes[name]:+6.2f} %" for name in found]
    if changes:
        lines.append(f"{'mean':28} {'':15} {sum(changes.values()) / len(changes):+6.2f} %")
    return "\n".join(lines)


def set_up(device: torch.device, path: Path) -> tuple[Transformer, int]:
    """The LM, compiled on a GPU, and its prefix."""
    shape, prefix, loaded = stored.load(path, device, torch.bfloat16)
    model = Transformer(shape, loaded)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        model.compile()
    return model, prefix[0]


def check_attention(model: Transformer, documents: data.Documents, prefix: int) -> float:
    """The largest difference in bits of a token between attention as it is used and one sequence after the other."""
    sequences = [documents.ids[n * 700 : n * 700 + 50 * n + 20].astype("int64") for n in range(9)]
    batch = data.batch_of(sequences, prefix, 65536).to(model.weights["embedding"].device)
    counts = batch.targets >= 0
    used = model.bits(batch)[counts]
    kept, model.attention = model.attention, attention_by_sequence
    plain = model.bits(batch)[counts]
    model.attention = kept
    return float((used - plain).abs().max())


def lengths(given: str) -> tuple[int, int]:
    """Two numbers of tokens with a comma. Raises ValueError, ArgumentTypeError."""
    shortest, longest = map(int, given.split(","))
    if not 0 < shortest <= longest <= POSITIONS:
        raise argparse.ArgumentTypeError(f"{given}: give two numbers from 1 to {POSITIONS}, the smaller one first")
    return shortest, longest


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, required=True, help="of training, those before --resume included, without evaluations"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter, the state and the log")
    parser.add_argument("--rate", type=float, default=Options.rate, help="highest learning rate")
    parser.add_argument("--rate-from", type=Path, help="best.json of sweep.py, times 0.7, instead of --rate")
    parser.add_argument("--rank", type=int, default=Options.rank)
    parser.add_argument("--embedding-rank", type=int, default=Options.embedding_rank)
    parser.add_argument("--matrices", default=",".join(MATRICES), help="which get an addition, with commas")
    parser.add_argument("--no-gains", action="store_true", help="leave the norms alone")
    parser.add_argument("--tokens", type=int, help="a step (default: 65,536 on a GPU, 2,048 on a CPU)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--evaluate-every",
        type=float,
        help="seconds of training (default: 60 on a GPU, 600 on a CPU, where it is slow)",
    )
    parser.add_argument("--export", type=Path, help="folder for the adapter in pieces of 14 MB, at every evaluation")
    parser.add_argument("--weights", type=Path, default=stored.WEIGHTS)
    parser.add_argument("--corpus", type=Path, nargs="+", default=[data.TOKENS], help="files of data.py")
    parser.add_argument("--evaluation", type=Path, default=data.EVALUATION, help="if it does not exist, none")
    parser.add_argument(
        "--lengths", type=lengths, default=f"{data.SHORTEST},{data.LONGEST}",
        help=f"tokens of a sequence, from and to, at most {POSITIONS}",
    )  # fmt: skip
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, prefix = set_up(device, a.weights)
    documents = data.Documents.load(a.corpus[0])
    for more in a.corpus[1:]:
        documents = documents.joined(data.Documents.load(more))
    chunks = data.CHUNKS if device.type == "cuda" else 2
    texts = data.evaluated(a.evaluation, chunks) if a.evaluation.exists() else {}
    rate = 0.7 * json.loads(a.rate_from.read_text())["rate"] if a.rate_from else a.rate
    options = Options(
        a.minutes, a.out, rate, a.rank, a.embedding_rank, tuple(a.matrices.split(",")), not a.no_gains,
        data.STEP[device.type] if a.tokens is None else a.tokens, a.seed, a.resume,
        EVALUATE_EVERY[device.type] if a.evaluate_every is None else a.evaluate_every, a.export, a.lengths,
    )  # fmt: skip
    run = Run(model, documents, prefix, options)
    before = bits_by_text(model, texts, prefix, options.tokens)
    print(render(run.train(texts), before))


if __name__ == "__main__":
    main()
