"""The full benchmark: measures missing results, then writes report.md, its plots and results/report.json.

    python benchmarks/run.py [--bytes N | --full] [--out FOLDER]

Results are kept in the cache, so an interrupted run continues where it stopped, and a second only writes the report.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import corpora
import plots
import report

from memcodec.bench import rivals, table
from memcodec.bench.comparison import CONTEXT_MAX_ROW, Bench, Row, Text, memory_benefit
from memcodec.bench.results import Store, digest, machine, today
from memcodec.codec import Codec
from memcodec.errors import MemcodecError
from memcodec.models.registry import BUILT_IN, DEFAULT_MODEL
from memcodec.settings import DEFAULT_SHARE, Readout

DEFAULT_BYTES = 20_480  # of each text: a quarter of an hour on 2 CPU cores
PROMPT_BYTES = 512
SIZES = (256, 1024, 4096, 16384, 65536, 262144, 1048576)
CURVE_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
NO_CONTEXT = "memcodec 0, context 0"
ENGLISH = tuple(corpus.name for corpus in corpora.CORPORA if corpus.english)
SIZE_NAMES = tuple(name for name, rival in rivals.RIVALS.items() if not rival.dictionary)


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description="Compare memcodec with other compressors and with its limits.")
    parser.add_argument("--bytes", type=int, default=DEFAULT_BYTES, help=f"bytes of each text ({DEFAULT_BYTES})")
    parser.add_argument("--full", action="store_true", help="whole texts: many hours on a CPU")
    parser.add_argument(
        "--sizes", default=",".join(map(str, SIZES)), help="sizes of one text, in bytes; the largest takes 20 minutes"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the report")
    options = parser.parse_args()
    start = time.monotonic()

    def say(what: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        print(f"{minutes:3}:{seconds:02} {what}", file=sys.stderr, flush=True)

    try:
        say("texts and model")
        texts = corpora.load(None if options.full else options.bytes)
        bench = Bench(Codec.load(DEFAULT_MODEL), Store(), say)
        found = measure(bench, texts, [int(size) for size in options.sizes.split(",")])
    except MemcodecError as error:
        sys.exit(f"bench: error: {error}")
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; the results so far are kept")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results").mkdir(exist_ok=True)  # not tracked
    (options.out / "results" / "report.json").write_text(to_json(found))
    (options.out / "report.md").write_text(report.render(found))
    plots.draw(found, options.out)
    print(table.render(found["rows"]))
    say(f"{bench.store.measured} measured, {bench.store.reused} kept from before; wrote {options.out / 'report.md'}")


def to_json(found: dict[str, Any]) -> str:
    """JSON with one line for each entry of a list: short, and readable in a diff."""
    parts = []
    for name, value in found.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(entry, default=asdict) for entry in value)
            parts.append(f" {json.dumps(name)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value, default=asdict)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def measure(bench: Bench, texts: list[Text], sizes: list[int]) -> dict[str, Any]:
    """Everything that the report shows. Fast measurements come first, so that an interrupted run has most rows."""
    rows = list(bench.compare(texts))
    rows += [bench.memcodec(text, Readout(0), NO_CONTEXT, context=0) for text in texts]
    rows += [bench.memcodec(text, Readout(0), CONTEXT_MAX_ROW, context="max") for text in texts]
    sample = texts[0]
    books = b"".join(text.whole for text in texts if text.name in ENGLISH)  # the first is the whole text of the sample
    by_size = [Text.cut(sample.name, books, size) for size in sizes if size <= len(books)]
    sized: list[Row] = []
    for text in by_size:
        for name in SIZE_NAMES:
            sized += bench.rival(name, text)
        sized += [bench.limit("bound", text), bench.memcodec(text, Readout(DEFAULT_SHARE))]
    wholes = [(len(text.whole), zstd_bytes(bench, text)) for text in texts if text.name in ENGLISH]
    model_bytes = BUILT_IN[DEFAULT_MODEL].wheel_bytes
    counted = [row for row in rows if row.text in ENGLISH]
    prompt_text = Text.cut(sample.name, sample.whole, PROMPT_BYTES)
    return {
        "date": today(),
        "machine": machine() | {"threads": bench.threads, "device": bench.codec.lm.device},
        "rivals": {name: rival.version for name, rival in rivals.RIVALS.items()},
        "model": {
            "name": bench.codec.name,
            "identity": bench.codec.lm.identity.hex(),
            "download_bytes": model_bytes,
        },
        "texts": [
            {
                "name": text.name,
                "about": text.about,
                "bytes": len(text.data),
                "whole_bytes": len(text.whole),
                "sha256": digest(text.data),
            }
            for text in texts
        ],
        "rows": rows,
        "sizes": sized,
        "curve": curve(bench, sample),
        "efforts": bench.efforts(sample),
        "prompt": bench.prompt(prompt_text),
        "prompt_bytes": len(prompt_text.data),
        "prompt_zstd": zstd_bytes(bench, Text(prompt_text.name, prompt_text.data, prompt_text.data)),
        "break_even": {
            "texts": list(ENGLISH),
            "zstd_whole": wholes,
            "bytes": break_even(counted, wholes, model_bytes, "memcodec 0.1"),
        },
    }


def curve(bench: Bench, text: Text, shares: Sequence[float] = CURVE_SHARES) -> list[dict[str, Any]]:
    """Bits of memory and corrections per token, efficiency and hits, by memory share."""
    rows = [bench.memcodec(text, Readout(share)) for share in shares]
    return [memory_benefit(share, row, rows[0]) for share, row in zip(shares, rows, strict=True)]


def break_even(rows: Sequence[Row], wholes: Sequence[tuple[int, int]], model_bytes: int, codec: str) -> float | None:
    """The bytes of text from which on the files and the model are smaller than with zstd -19; None if there are none.

    rows: of the texts to use; wholes: (bytes, zstd -19 bytes) of the same texts in full, which zstd compresses better.
    """
    own = [row for row in rows if row.codec == codec]
    ours = sum(row.file_bytes for row in own) / sum(row.original_bytes for row in own)
    theirs = sum(size for _, size in wholes) / sum(size for size, _ in wholes)
    return model_bytes / (theirs - ours) if theirs > ours else None


def zstd_bytes(bench: Bench, text: Text) -> int:
    """The bytes of a whole text under zstd -19."""
    (row,) = bench.rival("zstd -19", Text(text.name, text.whole, text.whole))
    return int(row.file_bytes)


if __name__ == "__main__":
    main()
