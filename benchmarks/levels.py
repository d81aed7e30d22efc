"""What each level costs: bytes of the file, seconds to encode with and without verification, seconds to decode.

    python benchmarks/levels.py [--bytes N] [--levels 1,6,9] [--runs N] [--only-bytes] [--out FOLDER]

The beginning of five texts (corpora.py), 20 KB of each, as whole files; each is decoded and compared. Each time is the
least of --runs. With --only-bytes, files are not timed, nor decoded. Writes levels.json, levels.md and levels.png.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora
import matplotlib

from memcodec.bench.comparison import Text
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.container import unpack
from memcodec.document.spans import zstd_size
from memcodec.levels import LEVELS, GroupRule

matplotlib.use("Agg")

import matplotlib.pyplot as plt

TIMES = {"encode_seconds": "encode, s", "verified_seconds": "and verify, s", "decode_seconds": "decode, s"}
_COLOURS = ("#1f5fa8", "#c8553d", "#9aa3ad")


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--levels", default=",".join(map(str, sorted(LEVELS))))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only-bytes", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = {name: Text.cut(name, whole, options.bytes, "").data for name, whole in contents().items()}
    codec = Codec.load(device="cpu")
    codec.decode(codec.encode(texts["English novel"][:2000]))  # compiles the kernels
    about = {"date": today(), "machine": machine(), "bytes": {name: len(data) for name, data in texts.items()}}
    about["zstd"] = {name: zstd_size(data) for name, data in texts.items()}
    rows: list[dict[str, Any]] = []
    for level in map(int, options.levels.split(",")):
        for name, data in texts.items():
            rows.append({"level": level, "text": name} | measure(codec, data, level, options.runs, options.only_bytes))
            print(rows[-1], flush=True)
            (options.out / "levels.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
        (options.out / "levels.md").write_text(render(rows))
    draw(rows, options.out / "levels.png")


def contents() -> dict[str, bytes]:
    """The five texts, whole."""
    named = {corpus.name: corpus for corpus in corpora.CORPORA}
    return {
        "English novel": corpora.contents(named["alice29"]),
        "Spanish messages": corpora.contents(named["django-es"]),
        "Chinese messages": corpora.contents(corpora.django("zh_Hans", "")),
        "Python": corpora.contents(named["click-core"]),
        "JSON": corpora.contents(named["json-schemas"]),
    }


def measure(codec: Codec, data: bytes, level: int, runs: int, only_bytes: bool) -> dict[str, Any]:
    """The file of a text at a level: its bytes, its groups, and the times."""
    blob = codec.encode(data, level=level, verify=False)
    found: dict[str, Any] = {"file_bytes": len(blob), "groups": len(unpack(blob).groups)}
    if only_bytes:
        return found
    if codec.decode(blob) != data:
        raise SystemExit("levels: error: does not decode to its input")
    actions: dict[str, Callable[[], object]] = {
        "encode_seconds": lambda: codec.encode(data, level=level, verify=False),
        "verified_seconds": lambda: codec.encode(data, level=level),
        "decode_seconds": lambda: codec.decode(blob),
    }
    return found | {name: min(_seconds(action) for _ in range(runs)) for name, action in actions.items()}


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def render(rows: list[dict[str, Any]]) -> str:
    """The settings of the levels, with the bytes of each text and all times, in Markdown."""
    texts = list(dict.fromkeys(row["text"] for row in rows))
    times = [name for name in TIMES if name in rows[0]]
    head = ["level", "groups aimed at", "tokens of a group, at most", "memory share", "effort", "tokens of a chunk"]
    head += [*texts, "bytes together", *(TIMES[name] for name in times)]
    lines = ["| " + " | ".join(head) + " |", "| ---: |" + " ---: |" * (len(head) - 1)]
    for level in dict.fromkeys(row["level"] for row in rows):
        here = {row["text"]: row for row in rows if row["level"] == level}
        if len(here) < len(texts):
            break
        sizes = [here[text]["file_bytes"] for text in texts]
        settings = LEVELS[level]
        cells = [str(level), f"{settings.rule.fewest}", _lengths(settings.rule), f"{settings.share:g}"]
        cells += [f"{settings.effort:,}" if settings.share else "", f"{settings.chunk_tokens:,}"]
        cells += [f"{size:,}" for size in (*sizes, sum(sizes))]
        cells += [f"{sum(row[name] for row in here.values()):.1f}" for name in times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _lengths(rule: GroupRule) -> str:
    """The most tokens of a group: in a text with fewer groups than are aimed at, and in a long text."""
    return "all" if rule.longest is None else f"{rule.shortest:,} to {rule.longest:,}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bytes over seconds, a point for each level; without times, bytes over levels."""
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    levels = list(dict.fromkeys(row["level"] for row in rows))
    sizes = [_sum(rows, level, "file_bytes") for level in levels]
    times = [name for name in TIMES if name in rows[0]]
    for name, colour in zip(times, _COLOURS, strict=False):
        seconds = [_sum(rows, level, name) for level in levels]
        axes.plot(seconds, sizes, "o-", color=colour, markersize=4, label=TIMES[name].removesuffix(", s"))
        for level, x, y in zip(levels, seconds, sizes, strict=True):
            axes.annotate(str(level), (x, y), textcoords="offset points", xytext=(3, 4), fontsize=8)
    if times:
        axes.set_xscale("log")
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.plot(levels, sizes, "o-", color=_COLOURS[0], markersize=4)
    axes.set_xlabel("seconds, all texts together" if times else "level")
    axes.set_ylabel("bytes, all texts together")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _sum(rows: list[dict[str, Any]], level: int, name: str) -> float:
    return sum(row[name] for row in rows if row["level"] == level)


if __name__ == "__main__":
    main()
