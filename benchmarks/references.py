"""What references save: bytes and seconds with and without them, in turns, and how much of a document they stand for.

    python benchmarks/references.py [FILE or FOLDER...] [--suffix .py] [--files N] [--bytes N] [--find] [--verify]

A folder is one document: its files of a suffix (--suffix), the first N in order of their paths, joined. Without
arguments: alice29, the JSON schemas and 120 Python files of Django. --find only looks for references, without a model.
--seen is how many tokens before a repeat the LM sees: 600 at level 6, the default, and 8000 at level 9. With --verify,
each file is decoded and compared. Writes references.json and references.md to --out.
"""

import argparse
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import corpora

from memcodec import container
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.document.references import Reference, joined
from memcodec.document.repeats import Repeats
from memcodec.document.source import Source
from memcodec.document.spans import cut_blocks, find_text

FILES = 120


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*")
    parser.add_argument("--suffix", default=".py", help="of the files of a folder")
    parser.add_argument("--files", type=int, default=FILES, help="of a folder, at most")
    parser.add_argument("--bytes", type=int, help="the first of each document alone")
    parser.add_argument("--find", action="store_true", help="encode nothing")
    parser.add_argument("--seen", type=int, default=600, help="tokens before a repeat that the LM sees")
    parser.add_argument("--verify", action="store_true", help="decode and compare")
    parser.add_argument("--rounds", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = {path.name: document(path, options.suffix, options.files) for path in options.paths} or defaults()
    codec = None if options.find else Codec.load(device="cpu")
    rows: list[dict[str, Any]] = []
    first = next(iter(texts.values()))
    find(first[:10_000], options.seen)  # compiles the kernels
    if codec is not None:
        codec.decode(codec.encode(first[:2000]))
    for name, whole in texts.items():
        data = whole[: options.bytes]
        row = {"text": name, "bytes": len(data)} | find(data, options.seen)
        if codec is not None:
            row |= encode(codec, data, options.verify, options.rounds)
        rows.append(row)
        print(json.dumps(row), flush=True)
        found = {"date": today(), "machine": machine(), "rows": rows}
        (options.out / "references.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "references.md").write_text(render(rows))


def document(path: Path, suffix: str, files: int) -> bytes:
    """The bytes of a file, or of the files of a folder."""
    if path.is_file():
        return path.read_bytes()
    return b"".join(one.read_bytes() for one in sorted(path.rglob(f"*{suffix}"))[:files])


def defaults() -> dict[str, bytes]:
    """The documents that are measured if none is named."""
    named = {corpus.name: corpus for corpus in corpora.CORPORA}
    with zipfile.ZipFile(corpora.fetch(corpora.DJANGO)) as wheel:
        sources = [name for name in wheel.namelist() if name.endswith(".py") and wheel.getinfo(name).file_size > 2000]
        python = b"".join(wheel.read(name) for name in sources[:FILES])
    texts = {name: corpora.contents(named[name]) for name in ("alice29", "json-schemas")}
    return texts | {f"{FILES} Python files": python}


def find(data: bytes, seen_tokens: int) -> dict[str, Any]:
    """The share of a document in references, their number, their bytes in the index, and the CPU time to find them."""
    source = Source.of(data)
    blocks = [find_text(block) for block in cut_blocks(source)]
    references: list[Reference] = []
    begin = time.process_time()
    finder = Repeats(source, seen_tokens)
    for found in blocks:
        references += finder.cut(found)[1]
    seconds = time.process_time() - begin
    references = joined(references)
    share = sum(one.size for one in references) / max(len(data), 1)
    size = len(container.pack_references(references))
    return {"share": share, "references": len(references), "index": size, "find seconds": seconds}


def encode(codec: Codec, data: bytes, verify: bool, rounds: int) -> dict[str, Any]:
    """The bytes of a file with and without references, and the CPU time of encoding each, in turns."""
    sizes: dict[str, int] = {}
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, references in (("with", True), ("without", False)):
            begin = time.process_time()
            blob = codec.encode(data, verify=False, references=references)
            seconds.setdefault(name, []).append(time.process_time() - begin)
            sizes[name] = len(blob)
            if verify and codec.decode(blob) != data:
                raise SystemExit("references: error: a document was not restored")
    return {name: sizes[name] for name in sizes} | {f"{name} seconds": min(seconds[name]) for name in seconds}


def render(rows: list[dict[str, Any]]) -> str:
    """A table of all documents."""
    titles = ("text", "bytes", "share", "references", "their index", "found, MB/s", "file", "without", "encode, CPU s",
              "without")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * 9]
    for row in rows:
        cells = [f"{row['bytes']:,}", f"{row['share']:.1%}", f"{row['references']:,}", f"{row['index']:,}"]
        cells.append(f"{row['bytes'] / row['find seconds'] / 1e6:.0f}")
        cells += [f"{row[name]:,}" if name in row else "" for name in ("with", "without")]
        cells += [f"{row[name]:.0f}" if name in row else "" for name in ("with seconds", "without seconds")]
        lines.append(f"| {row['text']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
