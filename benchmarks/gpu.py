"""The exact LM and the codec on a GPU, beside the CPU of the same machine: the same bits, and how fast.

    python benchmarks/gpu.py [--out FOLDER] [--text FILE] [--model MODEL]

Compares logits, files made on one and decoded on the other, and measures passes and steps by rows. Needs a CUDA device.
Writes gpu.json and gpu.md to --out. A machine without a network needs a model directory: config.json, tokenizer.json,
model.gguf and adapter.safetensors of the folder that `memcodec models path` prints, and numba, gguf, zstandard,
platformdirs and filelock.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.lm.model import ExactLM
from memcodec.lm.sequences import SequenceInput
from memcodec.settings import DEFAULT_MODEL, Readout

ROWS = (1, 16, 64, 256, 1024)
POSITION = 64  # of the steps


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--text", type=Path, default=Path(__file__).parent.parent / "README.md")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    text = options.text.read_bytes()
    cpu, gpu = (Codec.load(options.model, device=device) for device in ("cpu", "cuda"))
    found: dict[str, Any] = {"date": today(), "machine": machine(), "gpu": torch.cuda.get_device_name()}
    found["torch"] = torch.__version__
    found["same"] = same(cpu, gpu, text)
    print(json.dumps(found, indent=1), flush=True)
    found["speed"] = {name: [speed(codec.lm, rows) for rows in ROWS] for name, codec in (("cpu", cpu), ("cuda", gpu))}
    (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "gpu.md").write_text(render(found))
    print(render(found))


def same(cpu: Codec, gpu: Codec, text: bytes) -> dict[str, bool]:
    """Whether logits and files are equal, and whether each decodes what the other made."""
    tokens = cpu.tokenizer.encode(text.decode())[:600]
    hashes = [logits_hash(codec.lm, tokens) for codec in (cpu, gpu)]
    stepped = logits_hash(gpu.lm, tokens[:100], steps=True) == logits_hash(cpu.lm, tokens[:100])
    site = Readout(effort=256)
    files = [codec.encode(text[:4000], site=site, verify=False) for codec in (cpu, gpu)]
    return {
        "logits of a pass": hashes[0] == hashes[1],
        "logits of steps": stepped,
        "files": files[0] == files[1],
        "CPU's file on the GPU": gpu.decode(files[0]) == text[:4000],
        "GPU's file on the CPU": cpu.decode(files[1]) == text[:4000],
    }


def logits_hash(lm: ExactLM, tokens: np.ndarray, steps: bool = False) -> str:
    """SHA-256 of the logits of one sequence, in one pass or token by token."""
    digest = hashlib.sha256()
    sequences = lm.sequences(1, len(tokens), len(tokens))
    if steps:
        for token in tokens:
            sequences.step(np.array([token]))
            digest.update(np.ascontiguousarray(sequences.logits(slice(1))).tobytes())
        return digest.hexdigest()
    sequences.forward([SequenceInput(0, tokens)])
    for start in range(0, len(tokens), 48):
        digest.update(np.ascontiguousarray(sequences.logits(slice(start, min(start + 48, len(tokens))))).tobytes())
    return digest.hexdigest()


def speed(lm: ExactLM, rows: int, seconds: float = 1.0) -> dict[str, float]:
    """Tokens per second of steps of `rows` sequences, with the logits copied to the host."""
    ids = np.random.default_rng(0).integers(0, lm.vocabulary, (rows, POSITION))
    sequences = lm.sequences(rows, POSITION + 512, max(rows, 400))
    together = max(1, 400 // POSITION)
    for first in range(0, rows, together):
        some = range(first, min(first + together, rows))
        sequences.forward([SequenceInput(slot, ids[slot]) for slot in some])
    done, start = -2, 0.0
    while done < 2 or time.perf_counter() - start < seconds:
        if done == 0:
            start = time.perf_counter()
        sequences.step(ids[:, done])
        sequences.logits(slice(rows))
        done += 1
    return {"rows": rows, "tokens_per_second": rows * done / (time.perf_counter() - start)}


def render(found: dict[str, Any]) -> str:
    """The tables."""
    lines = [f"{found['date']}, {found['gpu']}, torch {found['torch']}.", ""]
    lines += ["| equal on CPU and GPU | |", "| --- | --- |"]
    lines += [f"| {what} | {'yes' if equal else '**no**'} |" for what, equal in found["same"].items()]
    lines += ["", "| rows of a step | CPU, tokens/s | GPU, tokens/s |", "| ---: | ---: | ---: |"]
    for ours, theirs in zip(found["speed"]["cpu"], found["speed"]["cuda"], strict=True):
        lines.append(f"| {ours['rows']} | {ours['tokens_per_second']:,.0f} | {theirs['tokens_per_second']:,.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
