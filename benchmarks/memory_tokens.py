"""The experiment of the memory token paper (arXiv 2506.15001) for any model: one memory per text, decoded greedily.

    python benchmarks/memory_tokens.py
    python benchmarks/memory_tokens.py en:alice.txt es:quijote.txt --lengths 30,60,120,240 --model FOLDER
    python benchmarks/memory_tokens.py --compare

Pieces of the given lengths in tokens are cut from random places of the files, mostly in the middle of a sentence. The
language before the colon groups the results. Without files, the texts are four English books and the Spanish messages
of a program, from the package index (corpora.py). All pieces of one length are fitted side by side, then decoded by the
cached greedy loop from the stored (quantized) memory alone. Writes results.json, table.md and, with matplotlib,
accuracy.png to --out. Results of other lengths and widths that are there, with the same settings, are kept. Runs on a
GPU if there is one. The defaults are a small experiment for two CPU cores.

`--compare` fits the texts of the first length with each of several settings (COMPARED), and writes comparison.json and
comparison.md instead.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import torch

from memcodec.codec import Codec
from memcodec.memory import fitting as fits
from memcodec.memory.fitting import write
from memcodec.memory.vectors import unpack
from memcodec.models.registry import DEFAULT_MODEL
from memcodec.settings import Prompt

_COLUMNS = {
    "texts": "texts",
    "exact": "exact",
    "teacher_forced": "tokens, teacher-forced",
    "greedy": "tokens, greedy",
    "prefix": "horizon",
    "vectors": "vectors",
    "memory_bytes": "memory, bytes",
    "lm_bits": "bound, bytes",
    "steps": "steps",
    "seconds": "s per text",
}

# The margin, in logits, at which a token counts as written: small, since here the LM in floating point decodes.
OBJECTIVE = fits.Objective(sure=2e-3)

# Each changes one setting of Prompt or of the objective.
COMPARED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "learning rate 1": {"learning_rate": 1.0},
    "learning rate 4": {"learning_rate": 4.0},
    "learning rate 64": {"learning_rate": 64.0},
    "4 tokens ahead": {"ahead": 4},
    "all tokens at once": {"ahead": None},
    "slack 0": {"slack": 0.0},
    "slack 1": {"slack": 1.0},
}


def main() -> None:
    """Run the experiment, or the comparison of settings."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--lengths", default="16,32", help="numbers of tokens, separated by commas")
    parser.add_argument("--texts", type=int, default=10, help="texts of each length and language")
    parser.add_argument("--vectors", default="1", help="1 to 64, or auto")
    parser.add_argument("--bits", default="16", help="bits per dimension, separated by commas: 1, 2, 3, 4, 8, 16")
    parser.add_argument("--seed", type=int, default=0, help="seed of the places and of the fits")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--steps", type=int, default=Prompt.steps, help="the most steps per text")
    parser.add_argument("--patience", type=int, default=Prompt.patience, help="see Prompt")
    parser.add_argument("--learning-rate", type=float, default=Prompt.learning_rate, help="see Prompt")
    parser.add_argument("--ahead", type=int, default=OBJECTIVE.ahead, help="see Objective; 0: all tokens at once")
    parser.add_argument("--slack", type=float, default=OBJECTIVE.slack, help="see Objective")
    parser.add_argument("--sure", type=float, default=OBJECTIVE.sure, help="see Objective")
    args = parser.parse_args()
    vectors = None if args.vectors == "auto" else int(args.vectors)
    base = Prompt(
        vectors=vectors, steps=args.steps, patience=args.patience, learning_rate=args.learning_rate, seed=args.seed
    )
    objective = fits.Objective(args.ahead or None, args.slack, args.sure)
    codec = Codec.load(args.model, device=args.device, threads=args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    documents = read(codec, args.files)
    names = [Path(name).name for name in args.files]
    settings = about(codec, base, objective) | {"files": names}
    lengths, widths = ([int(number) for number in listed.split(",")] for listed in (args.lengths, args.bits))
    if args.compare:
        texts = cut(documents, lengths[0], args.texts, args.seed)
        compare(codec, texts, replace(base, bits=widths[0]), objective, settings, args.out)
        return
    rows = earlier(args.out / "results.json", settings)
    for length in lengths:
        texts = cut(documents, length, args.texts, args.seed)
        for bits in widths:
            rows = [row for row in rows if (row["length"], row["bits"]) != (length, bits)]
            rows = sorted(
                rows + fit_texts(codec, texts, replace(base, bits=bits), objective), key=lambda row: row["length"]
            )
            save(args.out / "results.json", settings, rows)
            (args.out / "table.md").write_text(table(rows, ("language", "length", "bits")))
    print(table(rows, ("language", "length", "bits")))
    plot(rows, codec.name, args.out / "accuracy.png")


def arguments(about: str) -> argparse.ArgumentParser:
    """A parser with the options that both scripts about the prompt site have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="[LANGUAGE:]FILE")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory_tokens")
    return parser


def compare(
    codec: Codec, texts: list[tuple[str, np.ndarray]], base: Prompt, objective: fits.Objective,
    settings: dict[str, Any], folder: Path,
) -> None:  # fmt: skip
    """Fit the same texts once with each of the COMPARED settings."""
    rows: list[dict[str, Any]] = []
    for name, changes in COMPARED.items():
        changed = {key: value for key, value in changes.items() if hasattr(base, key)}
        aim = {key: value for key, value in changes.items() if hasattr(objective, key)}
        found = fit_texts(codec, texts, replace(base, **changed), replace(objective, **aim))
        rows += [row | {"setting": name} for row in found]
        save(folder / "comparison.json", settings, rows)
        (folder / "comparison.md").write_text(table(rows, ("setting",)))
    print(table(rows, ("setting",)))


def save(path: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the results, with the settings and the versions."""
    path.write_text(json.dumps(settings | {"texts": rows}, indent=1, ensure_ascii=False) + "\n")


def about(codec: Codec, base: Prompt, objective: fits.Objective) -> dict[str, Any]:
    """The settings that must agree for results to be comparable."""
    fitting = asdict(replace(base, bits=16)) | asdict(objective)
    return {
        "model": codec.name,
        "identity": codec.model.identity.hex(),
        "device": device_name(codec),
        "fitting": fitting,
    }


def earlier(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run with the same settings, so that one table can show lengths of several runs."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    rows: list[dict[str, Any]] = found.pop("texts")
    if found != settings:
        raise SystemExit(f"memory_tokens: error: {path} has results with other settings: give another --out")
    return rows


def device_name(codec: Codec) -> str:
    """The name of the device on which the LM runs."""
    return torch.cuda.get_device_name() if codec.floats.device.type == "cuda" else str(codec.floats.device)


def read(codec: Codec, files: list[str]) -> dict[str, list[np.ndarray]]:
    """The token ids of the files, int64 [tokens] each, by language; without files, those of the built-in texts."""
    documents: dict[str, list[np.ndarray]] = {}
    for name in files:
        language, colon, path = name.rpartition(":")
        text = Path(path).read_text(errors="replace")
        documents.setdefault(language if colon else "-", []).append(codec.tokenizer.encode(text))
    if not files:
        for corpus in corpora.CORPORA:
            if corpus.english or corpus.name == "django-es":
                text = corpora.contents(corpus).decode()
                documents.setdefault("en" if corpus.english else "es", []).append(codec.tokenizer.encode(text))
    return documents


def cut(documents: dict[str, list[np.ndarray]], length: int, count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """`count` pieces of `length` tokens per language, from random places of its files in turn: (language, ids)."""
    generator = np.random.default_rng(seed)
    pieces = []
    for language, files in documents.items():
        for number in range(count):
            ids = files[number % len(files)]
            if len(ids) < length:
                raise SystemExit(
                    f"memory_tokens: error: a text of {language} has only {len(ids)} tokens: give shorter --lengths"
                )
            start = int(generator.integers(0, len(ids) - length + 1))
            pieces.append((language, ids[start : start + length]))
    return pieces


def fit_texts(
    codec: Codec, texts: list[tuple[str, np.ndarray]], fitting: Prompt, objective: fits.Objective
) -> list[dict[str, Any]]:
    """Fit and decode texts of one length. Returns a row of results for each text."""

    def report(step: fits.FitStep) -> None:
        if step.step % 50 == 0:
            print(
                f"{fitting.bits} bits, {step.vectors} vectors, step {step.step}: {step.chunks} texts to go, "
                f"loss {step.loss:.3f}, accuracy {step.accuracy:.3f}",
                flush=True,
            )

    began = time.monotonic()
    found = fits.fit(codec.floats, [ids for _, ids in texts], fitting, report, objective=objective)
    seconds = (time.monotonic() - began) / len(texts)
    rows = []
    for (language, ids), fit in zip(texts, found, strict=True):
        vectors = unpack(fit.memory, codec.floats.embedding_size, fitting.bits)
        (written,) = write(codec.floats, vectors[None], len(ids))
        right = written == ids
        before = fits.after_prefix(codec.floats, torch.from_numpy(vectors)[None].to(codec.floats.device))
        forced = (
            codec.floats.logits(codec.floats.hidden(torch.from_numpy(ids)[None], before))[0].argmax(dim=1).cpu().numpy()
        )
        rows.append(
            {
                "language": language,
                "length": len(ids),
                "vectors": len(vectors),
                "bits": fitting.bits,
                "memory_bytes": len(fit.memory),
                "lm_bits": float(codec.token_bits(ids).sum()),
                "exact": bool(right.all()),
                "teacher_forced": float((forced == ids).mean()),
                "greedy": float(right.mean()),
                "prefix": int(right.cumprod().sum()),
                "steps": fit.steps,
                "seconds": seconds,
                "text": codec.tokenizer.decode(ids).decode(errors="replace"),
            }
        )
    return rows


def table(rows: list[dict[str, Any]], by: tuple[str, ...]) -> str:
    """A Markdown table of the means of rows that agree in the columns `by`."""
    columns = {name: name for name in by} | {name: title for name, title in _COLUMNS.items() if name not in by}
    lines = ["| " + " | ".join(columns.values()) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for key in dict.fromkeys(tuple(row[name] for name in by) for row in rows):
        group = [row for row in rows if tuple(row[name] for name in by) == key]
        mean = {name: float(np.mean([row[name] for row in group])) for name in _COLUMNS if name != "texts"}
        cells = [*map(str, key), f"{len(group)}", f"{sum(row['exact'] for row in group)}"]
        cells += [f"{mean['teacher_forced']:.1%}", f"{mean['greedy']:.1%}", f"{mean['prefix']:.1f}"]
        cells += [f"{mean['vectors']:.3g}", f"{mean['memory_bytes']:.0f}", f"{mean['lm_bits'] / 8:.0f}"]
        cells += [f"{mean['steps']:.0f}", f"{mean['seconds']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], model: str, path: Path) -> None:
    """Plot accuracy and steps by length, with a line for each language and width. Does nothing without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: install matplotlib (pip install memcodec[bench])")
        return
    figure, (right, long) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (language, bits) in enumerate(sorted({(row["language"], row["bits"]) for row in rows})):
        group = [row for row in rows if (row["language"], row["bits"]) == (language, bits)]
        lengths = sorted({row["length"] for row in group})

        def means(measure: str, group: list[Any] = group, lengths: list[int] = lengths) -> list[float]:
            return [float(np.mean([row[measure] for row in group if row["length"] == length])) for length in lengths]

        style = {"color": f"C{number}", "marker": "os^dv"[number % 5], "label": f"{language}, {bits} bits"}
        right.plot(lengths, means("greedy"), "-", **style)
        right.plot(lengths, means("teacher_forced"), ":", color=f"C{number}")
        long.plot(lengths, means("steps"), "-", **style)
    right.set(ylabel="share of correct tokens (dotted: teacher-forced)", ylim=(0, 1.04))
    long.set(ylabel="steps", ylim=(0, None))
    for axes in (right, long):
        axes.set_xlabel("tokens of the text")
        axes.spines[["top", "right"]].set_visible(False)
    long.legend(frameon=False, fontsize=8)
    figure.suptitle(f"One memory per text: {model}")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
