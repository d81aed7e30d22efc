"""What single settings save and cost: bytes and seconds of one text, each with one setting changed (docs/settings.md).

    python benchmarks/settings.py [FILE] [--bytes 20480] [--runs 1]

FILE: alice29 unless another one is named. Encodes without verification, decodes and compares. Prints a table in
Markdown, with differences from the defaults in percent; seconds are the fastest of the runs.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import corpora

from memcodec.codec import Codec
from memcodec.settings import Readout

CHANGES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "--context 0": {"context": 0},
    "--context max": {"context": "max"},
    "--memory-share 0": {"site": Readout(share=0)},
    "--memory-share 0.2": {"site": Readout(share=0.2)},
    "--memory-share 0.5": {"site": Readout(share=0.5)},
    "--effort 256": {"site": Readout(effort=256)},
    "--effort 16384": {"site": Readout(effort=16384)},
    "--chunk-tokens 50": {"chunk_tokens": 50},
    "--chunk-tokens 50 --context 0": {"chunk_tokens": 50, "context": 0},
    "--chunk-tokens 400": {"chunk_tokens": 400},
    "--batch 4": {"batch": 4},  # of the decoder alone
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--bytes", type=int, default=20_480, help="the first of the file alone")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    named = {corpus.name: corpus for corpus in corpora.CORPORA}
    data = (options.file.read_bytes() if options.file else corpora.contents(named["alice29"]))[: options.bytes]
    codec = Codec.load(device="cpu")
    measure(codec, data[:2000], {}, 1)  # compiles the kernels
    print("| settings | bytes | | encode, s | | decode, s | |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    base: tuple[float, ...] = ()
    for name, change in CHANGES.items():
        found = measure(codec, data, change, options.runs)
        base = base or found
        cells = [f"{found[0]:,}", *(f"{seconds:.2f}" for seconds in found[1:])]
        changed = [f"{100 * (value / first - 1):+.1f} %" for value, first in zip(found, base, strict=True)]
        row = [cell for pair in zip(cells, changed, strict=True) for cell in pair]
        print(f"| `{name}` | {' | '.join(row)} |", flush=True)


def measure(codec: Codec, data: bytes, change: dict[str, Any], runs: int) -> tuple[float, ...]:
    """The bytes of the file, and the seconds to encode and to decode it."""
    encoding, decoding = [], []
    encode = {name: value for name, value in change.items() if name != "batch"}
    for _ in range(runs):
        start = time.perf_counter()
        blob = codec.encode(data, verify=False, **encode)
        middle = time.perf_counter()
        if codec.decode(blob, batch=change.get("batch")) != data:
            raise SystemExit("settings: error: the text was not restored")
        encoding.append(middle - start)
        decoding.append(time.perf_counter() - middle)
    return len(blob), min(encoding), min(decoding)


if __name__ == "__main__":
    main()
