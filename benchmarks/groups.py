"""What the length of groups costs: bytes of the file, and seconds to encode and decode, from many short groups to one.

    python benchmarks/groups.py [--sizes 1000,10000,100000] [--lengths 200,400,...] [--only-bytes] [--out FOLDER]

The texts are the beginnings of a novel and of a Python module (corpora.py); above 150,000 bytes, four English texts are
joined instead. --lengths has the greatest numbers of tokens of a group that are tried, one after the other. All other
settings are those of level 6. Files are not verified, but decoded and compared with the text.
With --only-bytes, files are not decoded. Writes groups.json, groups.md and groups.png.
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import corpora
import matplotlib

from memcodec.bench.comparison import Text
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.container import unpack
from memcodec.levels import DEFAULT_LEVEL, LEVELS, GroupRule

matplotlib.use("Agg")

import matplotlib.pyplot as plt

LENGTHS = (200, 400, 800, 1200, 2000, 4000, 8000)
_COLOURS = ("#1f5fa8", "#c8553d", "#9aa3ad", "#5a9367", "#8a6fb0", "#c9a227")
_TIMES = (1, 2, 4, 8, 16)  # that are marked in the plot
_JOINED = 150_000  # bytes from which four texts are joined


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000", help="bytes of a text")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens of a group, at most")
    parser.add_argument("--only-bytes", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    codec = Codec.load(device="cpu")
    codec.decode(codec.encode(corpora.contents(corpora.CORPORA[0])[:2000]))  # compiles the kernels
    rows: list[dict[str, Any]] = []
    for size in map(int, options.sizes.split(",")):
        for name, data in texts(size).items():
            rows += measure(codec, name, data, list(map(int, options.lengths.split(","))), options.only_bytes)
            about = {"date": today(), "machine": machine(), "rows": rows}
            (options.out / "groups.json").write_text(json.dumps(about, indent=1) + "\n")
            (options.out / "groups.md").write_text(render(rows))
    draw(rows, options.out / "groups.png")


def texts(size: int) -> dict[str, bytes]:
    """The beginning of each text."""
    named = {corpus.name: corpus for corpus in corpora.CORPORA}
    if size > _JOINED:
        parts = [corpora.contents(named[name]) for name in ("alice29", "lcet10", "plrabn12", "asyoulik")]
        return {"English": Text.cut("English", b"".join(parts), size, "").data}
    return {name: Text.cut(name, corpora.contents(named[name]), size, "").data for name in ("alice29", "click-core")}


def measure(codec: Codec, name: str, data: bytes, lengths: list[int], only_bytes: bool) -> list[dict[str, Any]]:
    """The file of a text with groups of each length, up to one group."""
    kept, rows = LEVELS[DEFAULT_LEVEL], []
    for longest in lengths:
        LEVELS[DEFAULT_LEVEL] = replace(kept, rule=GroupRule(1, 1, longest))
        start = time.perf_counter()
        blob = codec.encode(data, verify=False)
        row = {"text": name, "bytes": len(data), "longest": longest, "groups": len(unpack(blob).groups)}
        row |= {"file_bytes": len(blob), "encode_seconds": time.perf_counter() - start}
        if not only_bytes:
            start = time.perf_counter()
            if codec.decode(blob) != data:
                raise SystemExit("groups: error: does not decode to its input")
            row["decode_seconds"] = time.perf_counter() - start
        rows.append(row)
        print(row, flush=True)
        if row["groups"] == 1:
            break
    LEVELS[DEFAULT_LEVEL] = kept
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = ["| text | bytes | tokens of a group, at most | groups | file | change | encode, s | decode, s |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    before: dict[str, Any] = {}
    for row in rows:
        change = ""
        if before.get("text") == row["text"] and before.get("bytes") == row["bytes"]:
            change = f"{100 * (row['file_bytes'] / before['file_bytes'] - 1):+.1f} %"
        decode = f"{row['decode_seconds']:.1f}" if "decode_seconds" in row else ""
        lines.append(
            f"| {row['text']} | {row['bytes']:,} | {row['longest']:,} | {row['groups']} | {row['file_bytes']:,} | "
            f"{change} | {row['encode_seconds']:.1f} | {decode} |"
        )
        before = row
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """For each text and size, bytes compared with one group (or the longest groups), over seconds to decode."""
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    curves = dict.fromkeys((row["text"], row["bytes"]) for row in rows if "decode_seconds" in row)
    for (text, size), colour in zip(curves, cycle(_COLOURS), strict=False):
        here = [row for row in rows if (row["text"], row["bytes"]) == (text, size)]
        least, fastest = here[-1]["file_bytes"], min(row["decode_seconds"] for row in here)
        points = [(row["decode_seconds"] / fastest, 100 * (row["file_bytes"] / least - 1)) for row in here]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=f"{text}, {size:,} bytes")
        for row, point in zip(here, points, strict=True):
            axes.annotate(f"{row['longest']:,}", point, textcoords="offset points", xytext=(3, 4), fontsize=7)
    axes.set_xscale("log")
    axes.set_xticks(_TIMES, [str(time) for time in _TIMES], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("time to decode, compared with the fastest")
    axes.set_ylabel("bytes more than with the longest groups, %")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
