"""Memory over time of long jobs, which should not rise with the amount of work done.

    python benchmarks/memory.py [--bytes N] [--model M] [--no-verify] [--carried] [--out FOLDER]

Runs commands that compress (with verification, unless --no-verify is set) and decompress N bytes, and records their
resident memory twice a second. The text consists of the benchmark's texts, then translations into other languages, then
sources. Writes memory.json and memory.md to --out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import corpora

from memcodec.bench.results import machine, today
from memcodec.models.registry import DEFAULT_MODEL

INTERVAL = 0.5  # seconds
# The text must not repeat itself, because zstd would then make it smaller.
LANGUAGES = (
    *("de", "fr", "it", "pt", "nl", "pl", "cs", "sv", "da", "fi", "hu", "ro", "el", "uk", "bg", "sr", "tr", "ar"),
    *("he", "fa", "hi", "th", "ko", "ja", "zh_Hans", "zh_Hant", "vi", "id", "ca", "eu"),
)
PARTS = 8  # parts of the time, for each of which the highest memory is shown


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=1 << 20)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--carried", action="store_true", help="use the LM even if zstd is smaller: for tiny models")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = text(options.bytes)
        (work / "text").write_bytes(data)
        more = ["--no-verify"] if options.no_verify else []
        given = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
        compress = watch(["compress", "-q", "text", *more, "--model", given], work, options.carried)
        size = (work / "text.memz").stat().st_size
        decompress = watch(["decompress", "-q", "text.memz", "-o", "back", "--model", given], work)
        if (work / "back").read_bytes() != data:
            sys.exit("memory: error: does not decode to its input")
    found: dict[str, Any] = {
        "date": today(), "machine": machine(), "model": options.model, "bytes": len(data), "file_bytes": size,
        "interval": INTERVAL, "compress": compress, "decompress": decompress,
    }  # fmt: skip
    (options.out / "memory.json").write_text(json.dumps(found) + "\n")
    (options.out / "memory.md").write_text(render(found))
    print(render(found))


def text(size: int) -> bytes:
    """A text of `size` bytes."""
    with zipfile.ZipFile(corpora.fetch(corpora.DJANGO)) as wheel:
        members = tuple(name for name in sorted(wheel.namelist()) if name.endswith(".py"))
    sources = corpora.Corpus("django", "a framework's sources", corpora.DJANGO, members)
    found = b""
    for corpus in (*corpora.CORPORA, *(corpora.django(language, "") for language in LANGUAGES), sources):
        found += corpora.contents(corpus)
        if len(found) >= size:
            return found[:size]
    sys.exit(f"memory: error: --bytes {size}: there are {len(found):,}")


_CARRIED = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from force_lm import store_nothing
from memcodec_cli import main
with store_nothing():
    main()
"""


def watch(command: list[str], folder: Path, carried: bool = False) -> list[int]:
    """The resident bytes of a command over time."""
    program = ["-c", _CARRIED] if carried else ["-m", "memcodec_cli"]
    process = subprocess.Popen([sys.executable, *program, *command], cwd=folder)
    found = []
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
        found += [int(line.split()[1]) * 1024 for line in lines]
        time.sleep(INTERVAL)
    if process.returncode:
        sys.exit(f"memory: error: {' '.join(command)} failed")
    return found


def render(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    about = found["machine"]
    lines = [
        f"{found['date']}, {about['processor']}, {found['bytes']:,} bytes, {found['file_bytes']:,} compressed.",
        "",
    ]
    lines += [f"| highest MB, by eighths of the time | s |{' |' * PARTS}", f"| --- | ---: |{' ---: |' * PARTS}"]
    for what in ("compress", "decompress"):
        samples = found[what]
        ends = [len(samples) * i // PARTS for i in range(PARTS + 1)]
        highest = [max(samples[a:b], default=0) / 1e6 for a, b in pairwise(ends)]
        cells = " | ".join(f"{n:.0f}" for n in highest)
        lines.append(f"| {what} | {len(samples) * found['interval']:.0f} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
