"""The speed of Ray workers: python benchmarks/cluster.py [--bytes N] [--workers 1,2] [--out FOLDER]

The beginning of alice29, encoded (without verification) and decoded in this process, by as many threads as there are
workers, and by Ray workers with 1 thread each; then again while one of them is killed. All files must be the same.
Before that, each codec encodes and decodes a text with at least one task for each worker, which is not measured; start
is the time until all workers have loaded the model. Writes cluster.json and cluster.md to --out.
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora
import ray
from force_lm import store_nothing

from memcodec import Progress
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.engines.ray import RayEngine

TASK_BYTES = 14_000  # of alice29: more than a task of encoding, 3,200 tokens, in 16 groups; one of decoding has 8


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=65536)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    alice = next(corpus for corpus in corpora.CORPORA if corpus.name == "alice29")
    whole = corpora.contents(alice)
    data = whole[: options.bytes]
    rows: list[dict[str, Any]] = []
    files: list[bytes] = []
    counts = list(map(int, options.workers.split(",")))

    def add(name: str, codec: Codec, started: float, progress: Callable[[Progress], None] | None = None) -> None:
        start = time.perf_counter()
        blob = codec.encode(data, verify=False, progress=progress)
        between = time.perf_counter()
        files.append(blob)
        if codec.decode(blob) != data or blob != files[0]:
            raise SystemExit(f"cluster: error: {name}: another file, or another text")
        seconds = {"encode": between - start, "decode": time.perf_counter() - between}
        rows.append({"name": name, "start": started, "file": len(blob)} | seconds)
        print(rows[-1], flush=True)
        found = {"date": today(), "machine": machine(), "bytes": len(data), "rows": rows}
        (options.out / "cluster.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "cluster.md").write_text(render(rows, len(data)))

    def warm_up(codec: Codec, workers: int) -> None:
        codec.decode(codec.encode(whole[: workers * TASK_BYTES], context=0, verify=False))

    def have_loaded(engine: RayEngine) -> bool:
        return all(ray.get([one.__ray_call__.remote(lambda worker: bool(worker._lms)) for one in engine.workers()]))

    for threads in counts:
        codec = Codec.load(device="cpu", threads=threads)
        warm_up(codec, threads)
        add(f"this process, threads: {threads}", codec, 0.0)
    here = Codec.load(device="cpu", threads=1)
    with store_nothing():
        short = here.encode(whole[: max(counts) * 2000], context=0, chunk_tokens=16, verify=False)  # many groups
    ray.init(num_cpus=max(counts), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for workers in counts:
        with RayEngine(workers=workers) as engine:
            start = time.perf_counter()
            on_ray = here.with_engine(engine)
            while not have_loaded(engine):
                on_ray.decode(short, batch=8)  # a few tasks for each worker
            started = time.perf_counter() - start
            warm_up(on_ray, workers)
            add(f"Ray, workers: {workers}", on_ray, started)
            if workers > 1:
                pid = ray.get(engine.workers()[0].__ray_call__.remote(lambda _: os.getpid()))
                add(f"Ray, workers: {workers}, one killed at the start", on_ray, 0.0, _killer(pid))
    ray.shutdown()


def _killer(pid: int) -> Callable[[Progress], None]:
    killed: list[int] = []

    def kill(_: Progress) -> None:
        if not killed:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    return kill


def render(rows: list[dict[str, Any]], size: int) -> str:
    """The table."""
    lines = ["| | start, s | encode, s | bytes/s | decode, s | bytes/s |", "| --- |" + " ---: |" * 5]
    for row in rows:
        start = f"{row['start']:.1f}" if row["start"] else ""
        cells = [f"{row[way]:.1f} | {size / row[way]:,.0f}" for way in ("encode", "decode")]
        lines.append(f"| {row['name']} | {start} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
