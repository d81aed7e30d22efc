"""Kill memcodec at random moments, and check which files remain.

    python benchmarks/crashes.py [--kills N] [--model M] [--out FOLDER]

`kill -9` of compress, compress --resume and decompress: half of the kills at any moment, half just after a temporary
file appears. After each kill, the input must be unchanged, and the output absent or identical to that of an
uninterrupted run; after the next complete run, nothing else may be in the folder. Then Ctrl-C: how long the command
takes to end. Writes crashes.json.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from force_lm import store_nothing

from memcodec.bench.results import machine, today
from memcodec.codec import Codec

TINY = Path(__file__).parent.parent / "spec" / "vectors" / "tiny" / "model"
WAYS = ("compress", "resume", "decompress")
EVERY = 10  # kills before each complete run
BYTES = 40_000
_AFTER = {"compress": 0.004, "decompress": 0.02}  # the most seconds between the temporary file and the kill


def main() -> None:
    """Kill and interrupt commands, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of each command")
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    found: dict[str, Any] = {"date": today(), "machine": machine(), "model": Path(options.model).name}
    with tempfile.TemporaryDirectory() as folder:
        found["kills"] = [kill(way, options.kills, options.model, Path(folder) / way) for way in WAYS]
        found["interrupts"] = [interrupt(way, 20, Path(folder) / f"{way}-int") for way in ("compress", "decompress")]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "crashes.json").write_text(json.dumps(found, indent=1) + "\n")
    if any(row["wrong"] for row in [*found["kills"], *found["interrupts"]]):
        sys.exit("crashes: error: something is wrong, see crashes.json")


def words(size: int, seed: int = 0) -> bytes:
    """Lines of made-up words."""
    rng = random.Random(seed)
    known = ["".join(rng.choice("aeioubdfglmnprst") for _ in range(rng.randrange(2, 9))) for _ in range(400)]
    text = ""
    while len(text) < size:
        text += " ".join(rng.choice(known) for _ in range(12)) + ".\n"
    return text[:size].encode()


def packed(data: bytes, model: str) -> bytes:
    """A file whose text is encoded with the LM, even if zstd would make it smaller."""
    with store_nothing():
        return Codec.load(model, device="cpu").encode(data, context=0, chunk_tokens=60)


def kill(way: str, count: int, model: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Kill one command `count` times."""
    folder.mkdir(exist_ok=True)
    text = words(BYTES)
    given, made = ("text.memz", "text") if way == "decompress" else ("text", "text.memz")
    data = packed(text, model) if way == "decompress" else text
    (folder / given).write_bytes(data)
    command = [sys.executable, "-m", "memcodec_cli", "decompress" if way == "decompress" else "compress", given]
    command += ["--model", model, "-q", "-T", "1", "--device", "cpu"]
    command += [] if way == "decompress" else ["--context", "0", "--chunk-tokens", "60", "--effort", "32"]
    start = time.monotonic()
    subprocess.run(command, cwd=folder, check=True)
    lasts = time.monotonic() - start
    expected = (folder / made).read_bytes()
    (folder / made).unlink()
    print(f"kill -9 of {way}, {count} times; a complete run takes {lasts:.1f} s", flush=True)
    rng, wrong, complete, with_temporary = random.Random(seed), [], 0, 0
    for number in range(count):
        process = subprocess.Popen([*command, *(["--resume"] if way == "resume" else [])], cwd=folder)
        before = names(folder)
        if number % 2:
            while process.poll() is None and names(folder) == before:
                time.sleep(0.001)
            time.sleep(rng.random() * _AFTER.get(way, lasts / 4))
        else:
            time.sleep(rng.random() * lasts)
        process.kill()
        process.wait()
        with_temporary += names(folder) - {given, made} != set()
        if (folder / given).read_bytes() != data:
            wrong.append(f"kill {number}: the input has changed")
        if (folder / made).exists():
            complete += 1
            if (folder / made).read_bytes() != expected:
                wrong.append(f"kill {number}: the output is not complete")
            (folder / made).unlink()
        if number % EVERY == EVERY - 1 or number == count - 1:
            done = subprocess.run([*command, *(["--resume"] if way == "resume" else [])], cwd=folder)
            if done.returncode or (folder / made).read_bytes() != expected:
                wrong.append(f"kill {number}: the next run does not write the same as an uninterrupted one")
            if names(folder) != {given, made}:
                wrong.append(f"kill {number}: after the next run there is {sorted(names(folder) - {given, made})}")
            (folder / made).unlink(missing_ok=True)
    return {"way": way, "kills": count, "complete": complete, "with_temporary": with_temporary, "seconds": lasts,
            "wrong": wrong}  # fmt: skip


def interrupt(way: str, count: int, folder: Path) -> dict[str, Any]:
    """Press Ctrl-C during the work with the default model, and measure the seconds until the command has ended."""
    print(f"Ctrl-C of {way}, {count} times", flush=True)
    folder.mkdir(exist_ok=True)
    text = words(20_000)
    given = "text.memz" if way == "decompress" else "text"
    (folder / given).write_bytes(packed(text, "smollm2-135m") if way == "decompress" else text)
    command = [sys.executable, "-m", "memcodec_cli", way, given, "-q", "--device", "cpu"]
    rng, wrong, waits = random.Random(0), [], []
    for number in range(count):
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, preexec_fn=_listen)
        time.sleep(2.5 + 3 * rng.random())  # the model is loaded, and the work has begun
        if process.poll() is not None:
            wrong.append(f"{number}: ended before Ctrl-C")
            for name in names(folder) - {given}:  # otherwise the next command refuses to overwrite it
                (folder / name).unlink()
            continue
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        waits.append(time.monotonic() - start)
        if process.returncode != 130 or said != b"memcodec: error: interrupted\n" or names(folder) != {given}:
            wrong.append(f"{number}: status {process.returncode}, {said!r}, {sorted(names(folder))}")
    shutil.rmtree(folder)
    return {"way": way, "interrupts": count, "longest": max(waits, default=0.0), "wrong": wrong}


def _listen() -> None:
    """Enable Ctrl-C in a process, which it would ignore if its parent were a background job of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def names(folder: Path) -> set[str]:
    """The names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


if __name__ == "__main__":
    main()
