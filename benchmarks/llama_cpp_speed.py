"""The speed of the exact LM beside llama.cpp, with the same model, on the same cores, in turns.

    python benchmarks/llama_cpp_speed.py PYTHON [--turns 3]

PYTHON is the interpreter of an environment with llama-cpp-python, which has to be compiled (`pip install
llama-cpp-python`), so that this is no part of `make bench`. Measures passes of 2 x 200 tokens, and steps of 1, 16 and
64 sequences at position 64, of llama.cpp with the formats Q4_0, Q4_1 and Q8_0. Prints a table of medians in Markdown.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from versions import LENGTH, pass_speed, seconds, step_speed

POSITION = 64  # at which steps are measured
ROWS = (1, 16, 64)
FORMATS = {"Q4_1": 0, "Q4_0": 2, "Q8_0": 7}  # the built-in model has the first; the numbers are llama.cpp's `ftype`
_KEPT: list[Any] = []  # callbacks, to which llama.cpp keeps only pointers
ONE_ROW, ALL_ROWS = "pass of 2 x 200 tokens, logits of two", "pass of 2 x 200 tokens, all logits"


def main() -> None:
    """Measure in turns, or, with --measure or --make, in one of the environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, nargs="?")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_formats(options.make)
    elif options.measure:
        print(json.dumps(of_memcodec() if options.measure == "memcodec" else of_llama(options.measure)))
    elif options.python is None:
        parser.error("give the interpreter of an environment with llama-cpp-python")
    else:
        print(compare(options.python, options.turns))


def compare(python: Path, turns: int) -> str:
    """Measure both in turns; returns the table."""
    from memcodec.models.registry import BUILT_IN, download

    (source,) = BUILT_IN.values()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "Q4_1.gguf"
        download(source, Path(folder), None).rename(first)
        run([python, __file__, "--make", first])
        commands: dict[str, list[Any]] = {"memcodec": [sys.executable, __file__, "--measure", "memcodec"]}
        for name in FORMATS:
            commands[f"llama.cpp {name}"] = [python, __file__, "--measure", first.with_stem(name)]
        run(commands["memcodec"])  # converts the model and compiles
        found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(turns):
            for name, command in commands.items():
                found[name].append(json.loads(run(command).splitlines()[-1]))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    return render(found)


def run(command: list[Any]) -> str:
    """The output of a command."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def render(found: dict[str, list[dict[str, float]]]) -> str:
    """A table in Markdown."""
    lines = [f"| tokens/s | {' | '.join(found)} |", "| --- |" + " ---: |" * len(found)]
    for key in found["memcodec"][0]:
        cells = [f"{statistics.median(one[key] for one in rows):,.0f}" for rows in found.values()]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_memcodec() -> dict[str, float]:
    """Tokens a second of the exact LM, logits included."""
    from memcodec import Codec

    lm = Codec.load(device="cpu").lm
    result = {ONE_ROW: pass_speed(lm, 2), ALL_ROWS: pass_speed(lm, 2 * LENGTH)}
    return result | {step_name(rows): step_speed(lm, rows, POSITION) for rows in ROWS}


def of_llama(path: str) -> dict[str, float]:
    """Tokens a second of llama.cpp, logits included."""
    import llama_cpp as llama

    llama.llama_backend_init()
    llama.llama_log_set(quiet(llama), ctypes.c_void_p())
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama_cpp_speed: error: llama.cpp cannot read {path}")

    def context(sequences: int, length: int) -> Any:
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = sequences * length, 512, 512
        settings.n_seq_max, settings.n_threads, settings.n_threads_batch = sequences, os.cpu_count(), os.cpu_count()
        return llama.llama_init_from_model(model, settings)

    def decode(context: Any, batch: Any) -> None:
        if llama.llama_decode(context, batch):
            raise SystemExit("llama_cpp_speed: error: llama.cpp cannot decode")
        llama.llama_get_logits_ith(context, -1)  # waits for the result

    def batch_of(sequences: int, first: int, length: int, logits: Callable[[int], bool]) -> Any:
        batch = llama.llama_batch_init(sequences * length, 0, 1)
        batch.n_tokens = sequences * length
        for row in range(sequences * length):
            batch.token[row] = 100 + 7919 * (row + first) % 40_000
            batch.pos[row] = first + row % length
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, row // length
            batch.logits[row] = logits(row % length)
        return batch

    result = {}
    for name, logits in ((ONE_ROW, lambda at: at == LENGTH - 1), (ALL_ROWS, lambda at: True)):
        both = context(2, 256)
        batch = batch_of(2, 0, LENGTH, logits)

        def full(both: Any = both, batch: Any = batch) -> None:
            llama.llama_memory_clear(llama.llama_get_memory(both), False)
            decode(both, batch)

        result[name] = 2 * LENGTH / seconds(full, 9)
    for rows in ROWS:
        many = context(rows, 256)
        for at in range(0, POSITION, 8):
            decode(many, batch_of(rows, at, 8, lambda at: at == 7))
        steps = iter([batch_of(rows, POSITION + at, 1, lambda at: True) for at in range(41)])
        result[step_name(rows)] = rows / seconds(lambda many=many, steps=steps: decode(many, next(steps)), 40)  # type: ignore[misc]
    return result


def step_name(rows: int) -> str:
    """The row of the table."""
    return f"steps of {rows} sequences at position {POSITION}"


def quiet(llama: Any) -> Any:
    """A callback that ignores messages."""
    _KEPT.append(llama.llama_log_callback(lambda *_: None))
    return _KEPT[-1]


def make_formats(first: Path) -> None:
    """Write the model in the other formats beside a GGUF file."""
    import llama_cpp as llama

    llama.llama_log_set(quiet(llama), ctypes.c_void_p())
    for name, number in FORMATS.items():
        if name != first.stem:
            settings = llama.llama_model_quantize_default_params()
            settings.ftype, settings.allow_requantize = number, True
            target = str(first.with_stem(name)).encode()
            if llama.llama_model_quantize(str(first).encode(), target, ctypes.byref(settings)):
                raise SystemExit(f"llama_cpp_speed: error: llama.cpp cannot write {name}")


if __name__ == "__main__":
    main()
