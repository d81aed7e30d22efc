"""The speed of the exact LM, compared with transformers in float32, and of the codec, compared with the LM alone.

    python benchmarks/speed.py [--out FOLDER]

Everything is measured in one run on this machine. Figures that are compared are measured in turn; each is the median of
a few rounds. Writes speed.json and speed.md to --out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import corpora
import numpy as np

from memcodec import container
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.document.spans import Text, spans_of
from memcodec.lm.model import cores
from memcodec.lm.sequences import ON_CPU, SequenceInput
from memcodec.models.checkpoint import open_checkpoint
from memcodec.models.registry import DEFAULT_MODEL, resolve

POSITION = 100  # at which the cached steps are measured
ROUNDS = 5
BYTES = 20_480


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    text = corpora.contents(next(corpus for corpus in corpora.CORPORA if corpus.name == "alice29"))[:BYTES]
    found: dict[str, Any] = {"date": today(), "machine": machine(), "processes": processes(text)}
    codec = Codec.load(device="cpu")
    found["threads"] = codec.lm.team.workers
    found["codec"] = codec_speed(codec, text)
    found["lm"] = lm_speed(codec)
    found["by_threads"] = by_threads(text)
    found["by_batch"] = by_batch(codec, text)
    (options.out / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "speed.md").write_text(render(found))
    print(render(found))


def in_turn(*works: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The median seconds of each, measured in turn (A B A B ...), after a first run that is not counted."""
    for work in works:
        work()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            seconds[i].append(time.perf_counter() - start)
    return [statistics.median(some) for some in seconds]


def lm_speed(codec: Codec) -> list[dict[str, Any]]:
    """Tokens per second, head included: cached steps by batch, and a full pass of 8 chunks of 200 tokens."""
    import torch
    from transformers import DynamicCache

    torch.set_grad_enabled(False)
    torch.set_num_threads(codec.lm.team.workers)
    floats, lm = codec.floats.model, codec.lm
    rows = np.random.default_rng(0).integers(0, lm.vocabulary, (8, 200))
    ids = torch.from_numpy(rows)

    def exact_pass() -> None:
        for pair in range(0, 8, 2):
            sequences = lm.sequences(2, 200, 400)
            sequences.forward([SequenceInput(slot, rows[pair + slot]) for slot in range(2)])
            for start in range(0, 400, ON_CPU.head_rows):
                sequences.logits(slice(start, start + ON_CPU.head_rows))

    result = []
    theirs, ours = in_turn(lambda: floats(ids), exact_pass, rounds=3)
    result.append({"what": "full pass, 8 chunks of 200 tokens", "transformers": 1600 / theirs, "exact": 1600 / ours})
    for batch in (1, 8, 32, 64, 128):
        known = torch.from_numpy(np.resize(rows, (batch, POSITION)))
        cache = DynamicCache()
        floats(known, past_key_values=cache, use_cache=True, logits_to_keep=1)
        sequences = lm.sequences(batch, 2 * POSITION, batch * POSITION)
        sequences.forward([SequenceInput(slot, row) for slot, row in enumerate(known.numpy())])
        last = known[:, -1:]
        steps = 8 if batch < 32 else 3

        def their_steps(cache: Any = cache, last: Any = last, steps: int = steps) -> None:
            for _ in range(steps):
                floats(last, past_key_values=cache, use_cache=True)

        def our_steps(sequences: Any = sequences, last: Any = last, steps: int = steps, batch: int = batch) -> None:
            for _ in range(steps):
                sequences.step(last.numpy()[:, 0])
                sequences.logits(slice(None, batch))

        theirs, ours = in_turn(their_steps, our_steps)
        tokens = batch * steps
        result.append({"what": f"cached steps, batch {batch}", "transformers": tokens / theirs, "exact": tokens / ours})
    return result


def by_threads(text: bytes) -> list[dict[str, Any]]:
    """The speed of the codec by the number of threads."""
    rows = []
    codecs = [Codec.load(device="cpu", threads=threads) for threads in range(1, cores() + 1)]
    blob = codecs[0].encode(text, verify=False)
    encode = in_turn(*(partial(codec.encode, text, verify=False) for codec in codecs), rounds=2)
    decode = in_turn(*(partial(codec.decode, blob) for codec in codecs), rounds=2)
    for codec, a, b in zip(codecs, encode, decode, strict=True):
        rows.append({"threads": codec.lm.team.workers, "encode": len(text) / a, "decode": len(text) / b})
    return rows


def by_batch(codec: Codec, text: bytes) -> list[dict[str, Any]]:
    """The speed of decoding by batch size, with chunks without context."""
    blob = codec.encode(text, context=0, verify=False)
    batches = (1, 4, 16, 64)
    seconds = in_turn(*(partial(codec.decode, blob, batch=batch) for batch in batches), rounds=1)
    return [{"batch": batch, "decode": len(text) / s} for batch, s in zip(batches, seconds, strict=True)]


def codec_speed(codec: Codec, text: bytes) -> dict[str, Any]:
    """The codec, and the LM alone on the same groups."""
    lm = codec.lm
    (span,) = spans_of(text, codec.tokenizer)
    assert isinstance(span, Text)
    blob = codec.encode(text, verify=False)
    lengths = [sum(chunk.tokens for chunk in group.chunks) for group in container.unpack(blob).groups]
    groups = np.split(span.tokens, np.cumsum(lengths)[:-1])

    def lm_pass() -> None:
        for tokens in groups:
            rows = len(lm.prefix) + len(tokens) - 1
            sequences = lm.sequences(1, rows, rows)
            sequences.forward([SequenceInput(0, np.concatenate([lm.prefix, tokens[:-1]]))])
            for start in range(0, rows, ON_CPU.head_rows):
                sequences.logits(slice(start, min(start + ON_CPU.head_rows, rows)))

    def lm_loop() -> None:
        sequences = lm.sequences(len(lengths), max(lengths) + 1, len(lengths))
        token = lm.prefix[-1]
        for t in range(max(lengths)):
            live = sum(length > t for length in lengths)
            sequences.step(np.full(live, token))
            sequences.logits(slice(None, live))

    lengths.sort(reverse=True)
    full, encode, loop, decode = in_turn(
        lm_pass, lambda: codec.encode(text, verify=False), lm_loop, lambda: codec.decode(blob), rounds=3
    )
    return {
        "bytes": len(text), "tokens": sum(lengths), "groups": len(lengths), "full_pass": full, "encode": encode,
        "lm_loop": loop, "decode": decode,
    }  # fmt: skip


def processes(text: bytes) -> list[dict[str, Any]]:
    """Whole commands, including the start: seconds of wall clock and peak resident memory."""
    folder = resolve(DEFAULT_MODEL).path
    assert open_checkpoint(folder)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "short").write_bytes(text[:100])
        (work / "text").write_bytes(text[:2048])
        (work / "longer").write_bytes(text)
        (work / "noise").write_bytes(np.random.default_rng(0).bytes(50_000_000))
        for what, command in (
            ("compress 100 bytes", ["compress", "-f", "short"]),
            ("decompress them", ["decompress", "-f", "short.memz"]),
            ("compress 2 KB, with verification", ["compress", "-f", "text"]),
            ("decompress them", ["decompress", "-f", "text.memz"]),
            ("compress 20 KB, with verification", ["compress", "-f", "longer"]),
            ("decompress them", ["decompress", "-f", "longer.memz"]),
            ("compress 50 MB of noise", ["compress", "-f", "noise"]),
            ("decompress them", ["decompress", "-f", "noise.memz"]),
        ):
            rows.append({"what": what} | run([sys.executable, "-m", "memcodec_cli", *command], work))
            print(rows[-1], flush=True)
    return rows


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """The median seconds and the largest peak of three runs, after a first one that is not counted."""
    seconds, peaks = [], []
    for _ in range(4):
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - start)
        peaks.append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        if status:
            sys.exit(f"speed: error: {' '.join(command)} failed")
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": max(peaks[1:])}


def render(found: dict[str, Any]) -> str:
    """The tables in Markdown."""
    about = found["machine"]
    lines = [f"{found['date']}, {about['processor']}, {found['threads']} threads.", ""]
    lines += ["| tokens/s | transformers, float32 | exact LM | ratio |", "| --- | ---: | ---: | ---: |"]
    for row in found["lm"]:
        ratio = row["exact"] / row["transformers"]
        lines.append(f"| {row['what']} | {row['transformers']:.0f} | {row['exact']:.0f} | {ratio:.2f} |")
    lines += ["", "| threads | encode, bytes/s | decode, bytes/s |", "| ---: | ---: | ---: |"]
    lines += [f"| {row['threads']} | {row['encode']:,.0f} | {row['decode']:,.0f} |" for row in found["by_threads"]]
    lines += ["", "| batch | decode, bytes/s |", "| ---: | ---: |"]
    lines += [f"| {row['batch']} | {row['decode']:,.0f} |" for row in found["by_batch"]]
    codec = found["codec"]
    lines += ["", f"| {codec['bytes']:,} bytes, {codec['tokens']:,} tokens, {codec['groups']} groups | s | ratio |"]
    lines += ["| --- | ---: | ---: |", f"| LM alone, full pass | {codec['full_pass']:.2f} | |"]
    lines.append(
        f"| encode, without verification | {codec['encode']:.2f} | {codec['encode'] / codec['full_pass']:.2f} |"
    )
    lines.append(f"| LM alone, cached steps | {codec['lm_loop']:.2f} | |")
    lines.append(f"| decode | {codec['decode']:.2f} | {codec['decode'] / codec['lm_loop']:.2f} |")
    lines += ["", "| whole command, start included | s | peak memory |", "| --- | ---: | ---: |"]
    for row in found["processes"]:
        lines.append(f"| {row['what']} | {row['seconds']:.2f} | {row['peak_bytes'] / 1e6:.0f} MB |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
