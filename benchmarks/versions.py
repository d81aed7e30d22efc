"""The speed of this version beside another one, in turns: passes and steps of the LM, commands, and frames.

    python benchmarks/versions.py OLD_CHECKOUT [--turns 3] [--quick]
    python benchmarks/versions.py OLD_CHECKOUT [--turns 1] --texts eight,eleven,alice29,alice29-smallest,english

With --texts, the bytes of whole texts, and the seconds to encode and decode them, are measured instead: the eight texts
of 20 KB of the reports, the eleven texts of 10 KB of sizes.py, alice29, alice29 at --best (in version 0.2.0: --context
max without memories), and 1 MiB of English. Decoded texts are compared.

OLD_CHECKOUT is a checkout of another version with its own `.venv` (`make .venv/.ready` makes it), such as 0.2.0 (commit
b6e8200). Each turn measures both versions, one after the other; each runs in processes and a cache of its own. Prints a
table of medians in Markdown, with the ratio to the other version, and what the memory of the machine allows.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

POSITION = 200  # at which steps are measured
ROWS = (1, 4, 16, 64)
LENGTH = 200  # tokens of each of the two sequences of a pass
LINES = 1000  # messages
SMALLEST = "alice29-smallest"
TEXT = "The quick brown fox jumps over the lazy dog near the bank of the river. "


def main() -> None:
    """Measure both versions in turns, or, with --measure, this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the LM only")
    parser.add_argument("--text", type=Path, default=Path(__file__).parent.parent / "docs" / "messages.md")
    parser.add_argument("--texts", help="names of whole texts, with commas between them")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure-texts", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure or options.measure_texts:
        sys.path.insert(0, str(Path.cwd()))
        folder = options.measure_texts
        print(json.dumps(of_texts(folder) if folder else measure(options.quick, options.text)))
        return
    if options.old is None:
        parser.error("give the folder of a checkout of another version")
    checkouts = {"new": Path(__file__).parent.parent.resolve(), "old": options.old.resolve()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        if options.texts:
            write_texts(options.texts.split(","), Path(folder) / "texts")
        for turn in range(options.turns + (not options.texts)):  # the first converts the model and compiles
            for name, checkout in checkouts.items():
                what = ["--measure", *["--quick"] * options.quick, "--text", options.text.resolve()]
                if options.texts:
                    what = ["--measure-texts", Path(folder) / "texts"]
                command = [checkout / ".venv" / "bin" / "python", Path(__file__).resolve(), *what]
                env = os.environ | {"MEMCODEC_CACHE": str(Path(folder) / name)}
                done = subprocess.run(command, cwd=checkout, env=env, stdout=subprocess.PIPE, check=True)
                if turn or options.texts:
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
                    print(name, found[name][-1], file=sys.stderr, flush=True)
    print(render(found))


def render(found: dict[str, list[dict[str, float]]]) -> str:
    """A table in Markdown."""
    lines = ["| | old | new | new / old |", "| --- | ---: | ---: | ---: |"]
    for key in found["new"][0]:
        old, new = (statistics.median(one[key] for one in found[name]) for name in ("old", "new"))
        lines.append(f"| {key} | {old:,.4g} | {new:,.4g} | {new / old:.2f} |")
    return "\n".join(lines)


def measure(quick: bool, text: Path) -> dict[str, float]:
    """The figures of the version that this process imports, from the folder that it runs in."""
    from memcodec import Codec

    codec: Any = Codec.load(device="cpu")
    result = of_lm(codec.lm)
    if not quick:
        result |= of_commands(text.read_bytes()[:20_480]) | of_frames(codec)
    return result | {"memory read by two threads, GB/s": bandwidth()}


def write_texts(names: list[str], folder: Path) -> None:
    """Write the texts of each name to files of a folder with that name."""
    import corpora
    import sizes

    alice = {"alice29": corpora.contents(corpora.CORPORA[0])}
    known: dict[str, Callable[[], dict[str, bytes]]] = {
        "eight": lambda: {text.name: text.data for text in corpora.load(20_480)},
        "eleven": lambda: sizes.texts(10_000),
        "alice29": lambda: alice,
        SMALLEST: lambda: alice,
        "english": lambda: {"english": b"".join(map(corpora.contents, corpora.CORPORA[:4]))[: 1 << 20]},
    }
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"versions: error: no texts are called {unknown[0]!r}: give {', '.join(known)}")
    for name in names:
        (folder / name).mkdir(parents=True)
        for text, data in known[name]().items():
            (folder / name / text).write_bytes(data)


def of_texts(folder: Path) -> dict[str, float]:
    """Bytes of the files of all texts of each folder, and seconds to encode and decode them."""
    from memcodec import Codec

    codec: Any = Codec.load(device="cpu")
    codec.decode(codec.encode(TEXT.encode() * 40))  # compiles, or loads what was compiled
    result: dict[str, float] = {}
    for place in sorted(folder.iterdir()):
        settings = smallest() if place.name == SMALLEST else {}
        texts = [path.read_bytes() for path in sorted(place.iterdir())]
        start = time.perf_counter()
        blobs = [codec.encode(data, verify=False, **settings) for data in texts]
        encoded = time.perf_counter()
        if any(codec.decode(blob) != data for blob, data in zip(blobs, texts, strict=True)):
            raise SystemExit(f"versions: error: {place.name}: a decoded text differs")
        decoded = time.perf_counter()
        result[f"{place.name}: bytes"] = sum(map(len, blobs))
        result[f"{place.name}: encode, s"] = encoded - start
        result[f"{place.name}: decode, s"] = decoded - encoded
        if not settings:  # with verification, 0.2.0 would need as much time again as to decode
            start = time.perf_counter()
            for data in texts:
                codec.encode(data)
            result[f"{place.name}: encode and verify, s"] = time.perf_counter() - start
        print(result, file=sys.stderr, flush=True)
    return result


def smallest() -> dict[str, Any]:
    """The settings of the smallest files, in the version that this process imports."""
    try:
        importlib.import_module("memcodec.levels")
    except ImportError:  # version 0.2.0
        from memcodec import Readout

        return {"site": Readout(0.0), "context": "max"}
    return {"level": 9}


def of_lm(lm: Any) -> dict[str, float]:
    """Tokens a second of a full pass and of steps, head included."""
    result = {"full pass of 2 x 200 tokens, tokens/s": pass_speed(lm, 2 * LENGTH)}
    for rows in ROWS:
        result[f"steps of {rows} rows at position {POSITION}, tokens/s"] = step_speed(lm, rows, POSITION)
    return result


def pass_speed(lm: Any, logits: int) -> float:
    """Tokens a second of a pass of two sequences of LENGTH tokens, with the logits of the last positions."""
    made, tokens = input_type(), random_tokens(2, LENGTH)
    sequences = lm.sequences(2, 256, 2 * LENGTH)

    def full() -> None:
        sequences.restart()
        sequences.forward([made(i, tokens[i]) for i in range(2)])
        sequences.logits(slice(2 * LENGTH - logits, 2 * LENGTH))

    return 2 * LENGTH / seconds(full, 9)


def step_speed(lm: Any, rows: int, position: int) -> float:
    """Tokens a second of steps of some rows from a position on, with their logits."""
    made, tokens = input_type(), random_tokens(rows, position)
    sequences = lm.sequences(rows, position + LENGTH, 8 * rows)
    for at in range(0, position, 8):
        sequences.forward([made(i, tokens[i, at : at + 8]) for i in range(rows)])

    def step() -> None:
        sequences.step(tokens[:, 0].copy())
        sequences.logits(slice(0, rows))

    return rows / seconds(step, 40)


def random_tokens(rows: int, length: int) -> np.ndarray:
    """Token ids, int64 [rows, length]."""
    return np.random.default_rng(1).integers(100, 40_000, (rows, length))


def input_type() -> Any:
    """What a sequence is given, in the version that this process imports."""
    try:
        from memcodec.lm.sequences import SequenceInput
    except ImportError:
        from memcodec.lm.passes import Piece  # type: ignore[import-not-found] # version 0.2.0

        return Piece
    return SequenceInput


def of_commands(data: bytes) -> dict[str, float]:
    """Seconds of whole commands."""
    with tempfile.TemporaryDirectory() as folder:
        source, packed = Path(folder) / "text", Path(folder) / "text.memz"
        source.write_bytes(data)
        command = [sys.executable, "-m", "memcodec_cli"]
        return {
            f"compress {len(data):,} bytes with verification, s": seconds(
                lambda: run([*command, "compress", "-f", source, "-o", packed]), 1
            ),
            "decompress them, s": seconds(lambda: run([*command, "decompress", "-f", packed, "-o", source]), 1),
        }


def run(command: list[Any]) -> None:
    """Run a command that prints nothing."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def of_frames(codec: Any) -> dict[str, float]:
    """Messages a second, encoded and decoded as frames: log lines of 139 bytes."""
    lines = [
        f'{{"time":"2026-11-{1 + i % 28:02}T12:{i % 60:02}:07Z","level":"info",'
        f'"user":{7919 * i % 100_000:05},"text":"{TEXT}"}}'
        for i in range(LINES)
    ]
    messages = [line[:139].encode() for line in lines]
    start = time.perf_counter()
    frames = codec.encode_frames(messages)
    middle = time.perf_counter()
    assert codec.decode_frames(frames) == messages
    return {"frames encoded a second": LINES / (middle - start), "decoded": LINES / (time.perf_counter() - middle)}


def bandwidth() -> float:
    """GB a second that two threads read, from an array that is larger than the caches."""
    from concurrent.futures import ThreadPoolExecutor

    array = np.ones(1 << 25, dtype=np.uint64)
    halves = np.split(array, 2)
    with ThreadPoolExecutor(2) as pool:
        return float(array.nbytes / seconds(lambda: list(pool.map(np.bitwise_or.reduce, halves)), 9) / 1e9)


def seconds(function: Callable[[], Any], times: int) -> float:
    """The median of some calls, after one that does not count if there are more than one."""
    found = []
    for _ in range(times + (times > 1)):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found[times > 1 :])


if __name__ == "__main__":
    main()
