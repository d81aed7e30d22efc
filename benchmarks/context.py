"""The effect of context: bytes, seconds, and the bytes that must be decoded to reach a place in the middle.

    python benchmarks/context.py [FILE...] [--contexts 0,200,1000,auto,max] [--shares 0.1] [--bytes N] [--out FOLDER]

Whole files on disk, encoded without verification, decoded and compared. Without files: alice29, whole. Writes
context.json and context.md to --out.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import corpora

from memcodec import container
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.document.spans import zstd_size
from memcodec.settings import Context, Readout


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--contexts", default="0,200,1000,auto,max")
    parser.add_argument("--shares", default="0.1")
    parser.add_argument("--bytes", type=int, help="the first of each file alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    alice = next(corpus for corpus in corpora.CORPORA if corpus.name == "alice29")
    texts = {path.name: path.read_bytes() for path in options.files} or {"alice29": corpora.contents(alice)}
    codec = Codec.load(device="cpu")
    codec.decode(codec.encode(next(iter(texts.values()))[:2000]))  # compiles the kernels
    rows = []
    for name, whole in texts.items():
        data = whole[: options.bytes]
        if not data:
            raise SystemExit(f"context: error: {name}: it is empty")
        for share in map(float, options.shares.split(",")):
            for context in options.contexts.split(","):
                row = measure(codec, data, int(context) if context.isdecimal() else context, share)
                rows.append({"text": name, "bytes": len(data), "zstd": zstd_size(data)} | row)
                print(rows[-1], flush=True)
                found = {"date": today(), "machine": machine(), "rows": rows}
                (options.out / "context.json").write_text(json.dumps(found, indent=1) + "\n")
                (options.out / "context.md").write_text(render(rows))


def measure(codec: Codec, data: bytes, context: Context, share: float) -> dict[str, Any]:
    """Measure one context."""
    start = time.perf_counter()
    blob = codec.encode(data, site=Readout(share), context=context, verify=False)
    encoded = time.perf_counter()
    back = codec.decode(blob)
    decoded = time.perf_counter()
    if back != data:
        raise SystemExit("context: error: does not decode to its input")
    parsed = container.unpack(blob)
    sizes = parsed.sizes
    groups = [sum(chunk.tokens for chunk in group.chunks) for group in parsed.groups]
    return {
        "share": share, "context": context, "file_bytes": len(blob), "parts": sizes,
        "index_bytes": len(blob) - sizes.get("memories", 0) - sizes.get("corrections", 0) - sizes.get("stored", 0),
        "encode_seconds": encoded - start, "decode_seconds": decoded - encoded, "groups": len(groups),
        "chunks": len(parsed.chunks),
        "reach_bytes": len(data) * sum(n * n for n in groups) / max(1, sum(groups)) ** 2 / 2,
    }  # fmt: skip


def render(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    head = ("text", "share", "context", "groups", "file", "bits per byte", "corrections", "memories", "the rest")
    lines = ["| " + " | ".join([*head, "encode, s", "decode, s", "decoded to reach a place"]) + " |"]
    lines.append("| --- |" + " ---: |" * 11)
    for row in rows:
        parts = row["parts"]
        cells = [
            f"{row['text']}, {row['bytes']:,}", f"{row['share']:g}", row["context"], f"{row['groups']:,}",
            f"{row['file_bytes']:,}", f"{8 * row['file_bytes'] / row['bytes']:.3f}", f"{parts.get('corrections', 0):,}",
            f"{parts.get('memories', 0):,}", f"{row['index_bytes']:,}", f"{row['encode_seconds']:.0f}",
            f"{row['decode_seconds']:.0f}", f"{row['reach_bytes']:,.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
