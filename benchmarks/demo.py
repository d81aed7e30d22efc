"""`make demo`: compress, inspect and decompress a real text, and compare its size with gzip and zstd.

The text is a part of lcet10 (Canterbury corpus), downloaded with pip as in the benchmarks, or a FILE: demo.py FILE
"""

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import corpora

from memcodec.document.spans import zstd_size

BYTES = 8192


def run(*words: str) -> None:
    """Print a command, and run it."""
    print("\n$", *words, flush=True)
    subprocess.run(words, check=True)


def main() -> None:
    """Run the commands that a new user would run."""
    with tempfile.TemporaryDirectory() as folder:
        text, packed, back = (Path(folder) / name for name in ("lcet10.txt", "lcet10.txt.memz", "back.txt"))
        if len(sys.argv) > 1:
            text.write_bytes(Path(sys.argv[1]).read_bytes())
        else:
            lcet10 = next(corpus for corpus in corpora.CORPORA if corpus.name == "lcet10")
            text.write_bytes(corpora.contents(lcet10)[:BYTES])
        run("memcodec", "models", "pull", "smollm2-135m")
        run("memcodec", "compress", str(text))
        run("memcodec", "inspect", str(packed))
        run("memcodec", "decompress", str(packed), "-o", str(back))
        run("cmp", str(text), str(back))
        data = text.read_bytes()
        sizes = {
            "original": len(data),
            "gzip -9": len(gzip.compress(data, 9)),
            "zstd -19": zstd_size(data),
            "memcodec": packed.stat().st_size,
        }
        print("\nthe same bytes came back; sizes:")
        for name, size in sizes.items():
            print(f"{name:10} {size:7,} bytes  {len(data) / size:5.2f}x  {'#' * round(60 * size / len(data))}")


if __name__ == "__main__":
    main()
