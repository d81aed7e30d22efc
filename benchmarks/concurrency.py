"""Several threads and processes at the same time: python benchmarks/concurrency.py [--rounds N] [--out FOLDER]

Threads that share one codec encode and decode different texts. Processes that start at the same moment, with nothing in
the cache, compile the same kernels and convert the same model; all must write the same file. The model is the tiny one
in spec/vectors. Writes concurrency.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from crashes import TINY, words
from force_lm import store_nothing

from memcodec import Codec
from memcodec.bench.results import machine, today

THREADS, PROCESSES = 4, 3


def main() -> None:
    """Run all cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="rounds of each thread")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [threads(Codec.load(str(TINY), device="cpu"), options.rounds), processes()]
    found = {"date": today(), "machine": machine(), "rows": rows}
    (options.out / "concurrency.json").write_text(json.dumps(found, indent=1) + "\n")
    if any(row["wrong"] for row in rows):
        sys.exit("concurrency: error: something is wrong, see concurrency.json")


def threads(codec: Codec, rounds: int) -> dict[str, Any]:
    """Threads that share a codec encode and decode texts whose files are known."""
    wrong: list[str] = []

    def work(number: int) -> None:
        try:
            for i in range(rounds):
                data, expected = known[(number + i) % len(known)]
                blob = codec.encode(data, chunk_tokens=30)
                if blob != expected or codec.decode(blob) != data:
                    wrong.append(f"thread {number}, round {i}")
        except BaseException as error:
            wrong.append(f"thread {number}: {error!r}")

    with store_nothing():
        texts = [words(300 + 40 * i, i) for i in range(7)]
        known = [(data, codec.encode(data, chunk_tokens=30)) for data in texts]
        started = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
    row = {"what": f"{THREADS} threads that share a codec", "cases": 2 * THREADS * rounds, "wrong": wrong}
    print(row, flush=True)
    return row


_FIRST_USE = """
import hashlib, sys
from memcodec import Codec
sys.path.append(sys.argv[3])
from force_lm import store_nothing
data = open(sys.argv[2], "rb").read()
codec = Codec.load(sys.argv[1], device="cpu")
with store_nothing():
    blob = codec.encode(data)
assert codec.decode(blob) == data
print(hashlib.sha256(blob).hexdigest())
"""


def processes() -> dict[str, Any]:
    """Processes that start together with an empty cache, and one more that uses the filled cache."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_bytes(words(2000))
        command = [sys.executable, "-c", _FIRST_USE, str(TINY), str(Path(folder) / "text"), str(Path(__file__).parent)]
        environment = os.environ | {"MEMCODEC_CACHE": str(Path(folder) / "cache")}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = [subprocess.Popen(command, env=environment, **pipes) for _ in range(PROCESSES)]
        said = [(*process.communicate(), process.returncode) for process in running]
        last = subprocess.run(command, env=environment, **pipes)
        said.append((last.stdout, last.stderr, last.returncode))
    wrong += [f"process {i}: {one}" for i, one in enumerate(said) if one != (said[-1][0], "", 0)]
    row = {"what": f"{PROCESSES} processes on first use, and one after them", "cases": len(said), "wrong": wrong}
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
