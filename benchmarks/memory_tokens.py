"""The experiment of the memory token paper (arXiv 2506.15001) for any model: one memory a text, decoded greedily.

    python benchmarks/memory_tokens.py en:alice29.txt en:lcet10.txt es:quijote.txt --lengths 30,60,120,240

Pieces of the given lengths in tokens are cut from random places of the files, which mostly is the middle of a
sentence; a language before the colon groups the results. All pieces of one length are fitted side by side, then
decoded by the cached greedy loop from the stored (quantized) memory alone. Writes results.json, table.md and, with
matplotlib, accuracy.png to --out. Runs on a GPU where there is one; on two CPU cores keep to one or two lengths and
about ten texts (`--lengths 16 --texts 10 --steps 300`: five minutes).
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memcodec import prompt
from memcodec.codec import DEFAULT_MARGIN, Codec
from memcodec.models import DEFAULT_MODEL

_COLUMNS = {
    "language": "language",
    "length": "tokens",
    "vectors": "vectors",
    "bits": "bits",
    "texts": "texts",
    "exact": "texts exact",
    "teacher_forced": "tokens, teacher-forced",
    "greedy": "tokens, greedy",
    "prefix": "horizon",
    "steps": "steps",
    "seconds": "s a text",
}


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="[LANGUAGE:]FILE")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--lengths", default="30,60,120,240", help="tokens, by commas")
    parser.add_argument("--texts", type=int, default=10, help="texts of each length and language")
    parser.add_argument("--vectors", default="1", help="1 to 64, or auto")
    parser.add_argument("--bits", default="16", help="bits per dimension, by commas: of 1, 2, 3, 4, 8, 16")
    parser.add_argument("--steps", type=int, default=prompt.Fitting.steps)
    parser.add_argument("--learning-rate", type=float, default=prompt.Fitting.learning_rate)
    parser.add_argument("--ahead", type=int, default=prompt.Fitting.ahead, help="0: the whole text at once")
    parser.add_argument("--slack", type=float, default=prompt.Fitting.slack)
    parser.add_argument("--start", type=float, default=prompt.Fitting.start)
    parser.add_argument("--seed", type=int, default=0, help="of the places and of the fits")
    parser.add_argument("--out", type=Path, default=Path("memory_tokens"))
    args = parser.parse_args()
    codec = Codec.load(args.model, args.device, args.threads)
    rows: list[dict[str, Any]] = []
    args.out.mkdir(parents=True, exist_ok=True)
    for length in map(int, args.lengths.split(",")):
        texts = cut(codec, args.files, length, args.texts, args.seed)
        for bits in map(int, args.bits.split(",")):
            fitting = prompt.Fitting(
                vectors=None if args.vectors == "auto" else int(args.vectors), bits=bits, steps=args.steps,
                learning_rate=args.learning_rate, ahead=args.ahead or None, slack=args.slack, start=args.start,
                seed=args.seed,
            )  # fmt: skip
            rows += fit_texts(codec, texts, fitting)
            facts = {"model": codec.model.name, "device": str(codec.lm.device), "fitting": asdict(fitting)}
            (args.out / "results.json").write_text(json.dumps(facts | {"texts": rows}, indent=1))
            summary = table(rows)
            (args.out / "table.md").write_text(summary)
    print(summary)
    plot(rows, codec.model.name, args.out / "accuracy.png")


def cut(codec: Codec, files: list[str], length: int, count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """`count` pieces of `length` tokens a language, from random places of its files in turn: (language, ids)."""
    generator = np.random.default_rng(seed)
    by_language: dict[str, list[np.ndarray]] = {}
    for name in files:
        language, colon, path = name.rpartition(":")
        text = Path(path).read_text(errors="replace")
        by_language.setdefault(language if colon else "-", []).append(codec.tokenizer.encode(text))
    pieces = []
    for language, documents in by_language.items():
        for number in range(count):
            ids = documents[number % len(documents)]
            start = int(generator.integers(0, len(ids) - length + 1))
            pieces.append((language, ids[start : start + length]))
    return pieces


def fit_texts(codec: Codec, texts: list[tuple[str, np.ndarray]], fitting: prompt.Fitting) -> list[dict[str, Any]]:
    """Fit and decode texts of one length; one row of results a text."""

    def report(step: prompt.FitStep) -> None:
        if step.step % 50 == 0:
            print(
                f"{fitting.bits} bits, {step.vectors} vectors, step {step.step}: {step.chunks} texts to go, "
                f"loss {step.loss:.3f}, accuracy {step.accuracy:.3f}",
                flush=True,
            )

    began = time.monotonic()
    fits = prompt.fit(codec.lm, [ids for _, ids in texts], fitting, DEFAULT_MARGIN, report)
    seconds = (time.monotonic() - began) / len(texts)
    rows = []
    for (language, ids), fit in zip(texts, fits, strict=True):
        vectors = prompt.unpack(fit.memory, codec.lm.hidden_size, fitting.bits)
        (written,) = prompt.write(codec.lm, vectors[None], len(ids))
        right = written == ids
        rows.append(
            {
                "language": language,
                "length": len(ids),
                "vectors": len(vectors),
                "bits": fitting.bits,
                "memory_bytes": len(fit.memory),
                "lm_bits": float(codec.token_bits(ids).sum()),
                "exact": bool(right.all()),
                "teacher_forced": fit.written / len(ids),
                "greedy": float(right.mean()),
                "prefix": int(right.cumprod().sum()),
                "steps": fit.steps,
                "seconds": seconds,
                "text": codec.tokenizer.decode(ids).decode(errors="replace"),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Means by language, length and bits, as Markdown."""
    lines = ["| " + " | ".join(_COLUMNS.values()) + " |", "| " + " | ".join("---" for _ in _COLUMNS) + " |"]
    for key in sorted({(row["language"], row["length"], row["bits"]) for row in rows}):
        group = [row for row in rows if (row["language"], row["length"], row["bits"]) == key]
        mean = {
            name: float(np.mean([row[name] for row in group]))
            for name in _COLUMNS
            if name in group[0] and name != "language"
        }
        cells = [
            key[0], f"{key[1]}", f"{mean['vectors']:.3g}", f"{key[2]}", f"{len(group)}",
            f"{sum(row['exact'] for row in group)}", f"{mean['teacher_forced']:.1%}", f"{mean['greedy']:.1%}",
            f"{mean['prefix']:.1f}", f"{mean['steps']:.0f}", f"{mean['seconds']:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], model: str, path: Path) -> None:
    """Accuracy against length, one line a language and width; without matplotlib, nothing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: install matplotlib (pip install memcodec[bench])")
        return
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for number, (language, bits) in enumerate(sorted({(row["language"], row["bits"]) for row in rows})):
        lengths = sorted({row["length"] for row in rows if (row["language"], row["bits"]) == (language, bits)})
        for measure, style in (("teacher_forced", "--"), ("greedy", "-")):
            means = [
                np.mean(
                    [
                        row[measure]
                        for row in rows
                        if (row["language"], row["bits"], row["length"]) == (language, bits, n)
                    ]
                )
                for n in lengths
            ]
            label = f"{language}, {bits} bits, {measure.replace('_', ' ')}"
            axes.plot(lengths, means, style, marker="o", color=f"C{number}", label=label)
    axes.set(
        xlabel="tokens of the text", ylabel="share of tokens right", ylim=(0, 1.02), title=f"One memory a text: {model}"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
