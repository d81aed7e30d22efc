"""Bytes by length and language, and those of zstd and brotli: python benchmarks/sizes.py [--lengths N,N] [--out FOLDER]

The beginning of each text, cut between characters, as a whole file; each is decoded and compared. Writes sizes.json and
sizes.md to --out. All languages except English are messages of a framework (corpora.py).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import brotli
import corpora
import zstandard

from memcodec.bench.comparison import Text
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.frames import FrameSettings
from memcodec.settings import Readout

LANGUAGES = {
    "de": "German", "es": "Spanish", "fr": "French", "pl": "Polish", "ru": "Russian", "ar": "Arabic",
    "zh_Hans": "Chinese", "ja": "Japanese",
}  # fmt: skip
COLUMNS = ("zstd -19", "brotli 11", "memcodec", "no memory", "frame")


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="100,300,1000,3000,10000")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    codec = Codec.load(device="cpu")
    rows = []
    for length in map(int, options.lengths.split(",")):
        cut = texts(length)
        found = measure(codec, list(cut.values()))
        rows += [{"text": n, "length": length} | row for n, row in zip(cut, found, strict=True)]
        print(length, flush=True)
        about = {"date": today(), "machine": machine(), "rows": rows}
        (options.out / "sizes.json").write_text(json.dumps(about, indent=1) + "\n")
        (options.out / "sizes.md").write_text(render(rows))


def texts(length: int) -> dict[str, bytes]:
    """The beginnings of the eleven texts, by name."""
    named = {corpus.name: corpus for corpus in corpora.CORPORA}
    whole = {
        "English prose": corpora.contents(named["alice29"]),
        "Python": corpora.contents(named["click-core"]),
        "JSON": corpora.contents(named["json-schemas"]),
    }
    whole |= {name: corpora.contents(corpora.django(code, "")) for code, name in LANGUAGES.items()}
    return {name: Text.cut(name, data, length, "").data for name, data in whole.items()}


def measure(codec: Codec, documents: list[bytes]) -> list[dict[str, Any]]:
    """The bytes of each document under each codec. All are decoded and compared."""
    files = [codec.encode(data) for data in documents]  # one by one, like single files
    bare = [codec.encode(data, site=Readout(share=0)) for data in documents]
    settings = FrameSettings(max_bytes=1 << 20)
    framed = codec.encode_frames(documents, settings)
    backs = codec.decode_many(files), codec.decode_many(bare), codec.decode_frames(framed, settings)
    if any(back != documents for back in backs):
        raise SystemExit("sizes: error: a document was not restored")
    rows = []
    for data, file, other, frame in zip(documents, files, bare, framed, strict=True):
        zstd = len(zstandard.ZstdCompressor(level=19, write_checksum=True).compress(data))
        sizes = (zstd, len(brotli.compress(data)), len(file), len(other), len(frame))
        rows.append({"bytes": len(data)} | dict(zip(COLUMNS, sizes, strict=True)))
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """A table for each length, with the smallest file in bold."""
    lines = []
    for length in dict.fromkeys(row["length"] for row in rows):
        lines += [
            f"**{length:,} bytes**",
            "",
            "| | " + " | ".join(COLUMNS) + " |",
            "| --- |" + " ---: |" * len(COLUMNS),
        ]
        for row in (row for row in rows if row["length"] == length):
            least = min(row[name] for name in COLUMNS[:-1])
            cells = [f"**{row[name]:,}**" if row[name] == least else f"{row[name]:,}" for name in COLUMNS]
            lines.append(f"| {row['text']} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
