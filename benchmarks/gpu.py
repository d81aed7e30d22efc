"""The exact LM and the codec on a GPU, beside the CPU of the same machine: the same bits, and how fast.

    python benchmarks/gpu.py [--minutes 8] [--out FOLDER] [--model MODEL] [--device cuda]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --rehearse      # on the CPU, with a tiny model: hours become a minute

One script for the time that a GPU is at hand. It goes through the parts below in order, writes gpu.json and gpu.md to
--out after each, and starts no part after --minutes. A part that fails is written down as an error, and the next one
runs. benchmarks/gpu_carry.py prepares a folder with everything that it needs on a machine without a network.
"""

import argparse
import hashlib
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exactness import FAMILIES, make_tiny

from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.coding.corrections import EncodedGroup
from memcodec.container import assembly
from memcodec.files.archive import Archive
from memcodec.levels import LEVELS
from memcodec.lm import selftest
from memcodec.lm.choice import implementation_of
from memcodec.lm.model import ExactLM
from memcodec.lm.sequences import SequenceInput
from memcodec.lm.team import team_of
from memcodec.primer import Primer
from memcodec.settings import DEFAULT_MODEL, Prompt, Readout

ROOT = Path(__file__).parent.parent
TEXTS = ("README.md", "docs/exact.md", "spec/FORMAT.md", "memcodec/groups.py", "docs/training.md")
ROWS, POSITIONS = (64, 256, 1024, 4096), (100, 400, 1600)
# Bytes, level and documents. Level 9 makes one group of a document, so that many documents fill a batch.
FILES = (
    (1_000_000, 6, 1),
    (1_000_000, 1, 1),
    (1_000_000, 9, 64),
    (8_000_000, 6, 1),
    (8_000_000, 1, 1),
    (8_000_000, 9, 512),
)
MEMORY_SPEED = {"H100": 3.35e12, "H200": 4.8e12, "A100": 1.55e12, "4090": 1.01e12}  # bytes a second, of the data sheets


class Run:
    """The codecs, the sizes of this run, and what was found so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.end = time.perf_counter() + options.minutes * 60
        self.small = options.rehearse
        self.device = "cpu" if options.rehearse else options.device
        self.is_cuda = self.device.startswith("cuda")
        self.kernels = "triton" if options.rehearse else "auto"
        if options.rehearse:
            assembly.STORE_SMALLER = False  # otherwise zstd would take all of the short texts
        self.model = make_tiny("llama", folder / "rehearsal") if options.rehearse else options.model
        self.found: dict[str, Any] = {"date": today(), "machine": machine(), "seconds": {}, "errors": {}}
        self.codecs: dict[str, Codec] = {}

    def codec(self, name: str) -> Codec:
        """The codec on the "cpu" or the "gpu", loaded once."""
        if name not in self.codecs:
            device, kernels = ("cpu", "numba") if name == "cpu" else (self.device, self.kernels)
            self.codecs[name] = Codec.load(self.model, device=device, kernels=kernels)
        return self.codecs[name]

    def part(self, name: str, measure: "Callable[[Run], Any]") -> None:
        """Run a part, if there is time, and write everything that is known."""
        if time.perf_counter() > self.end:
            self.found["errors"][name] = "no time was left"
        else:
            start = time.perf_counter()
            try:
                self.found[name] = measure(self)
            except Exception:
                self.found["errors"][name] = traceback.format_exc(limit=-4)
            self.found["seconds"][name] = round(time.perf_counter() - start, 2)
        self.write()
        print(name, json.dumps(self.found.get(name, self.found["errors"].get(name))), flush=True)

    def write(self) -> None:
        """gpu.json and gpu.md."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        (self.options.out / "gpu.json").write_text(json.dumps(self.found, indent=1) + "\n")
        (self.options.out / "gpu.md").write_text(render(self.found))


def main() -> None:
    """All parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--text", type=Path, help="the text that is encoded, of 8 MB: gpu_carry.py makes one")
    parser.add_argument("--parts", help="names, with commas; all by default")
    options = parser.parse_args()
    chosen = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        run = Run(options, Path(folder))
        for name in dict.fromkeys(["card", *chosen]):  # floors depend on the card
            run.part(name, PARTS[name])


# ---- the same bits


def card(run: Run) -> dict[str, Any]:
    """The device, its driver, and the versions of what computes there."""
    import triton

    found = {"torch": torch.__version__, "triton": triton.__version__, "device": run.device}
    if run.is_cuda:
        properties: Any = torch.cuda.get_device_properties(torch.device(run.device))
        found |= {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
        found["processors"] = properties.multi_processor_count
    return found


def self_test(run: Run) -> dict[str, str]:
    """What each kind of kernels says: what it is, or why it cannot be used."""
    found = {}
    for kernels in ("triton", "torch"):
        try:
            weights = selftest.tiny("gated")
            found[kernels] = implementation_of(weights, run.device, kernels, None, team_of(1))[1].kernels
        except Exception as error:
            found[kernels] = f"{type(error).__name__}: {error}"
    from memcodec.coding import gpu_check
    from memcodec.memory import search_gpu

    found["coder"] = gpu_check.failure_of_coder(run.device) or "exact"
    found["search"] = search_gpu.failure(run.device) or "exact"
    return found


def same_logits(run: Run) -> dict[str, bool]:
    """Whether logits of passes and steps are equal: a tiny LM of every architecture, and the model."""
    count = 4 if run.small else 300
    found = {}
    for family in FAMILIES[: 1 if run.small else None]:
        folder = make_tiny(family, run.folder / family)
        lms = [
            Codec.load(folder, device=device, kernels=kernels).lm
            for device, kernels in (("cpu", "numba"), (run.device, run.kernels))
        ]
        found[family] = equal_logits(lms, count)
    found["model"] = equal_logits([run.codec("cpu").lm, run.codec("gpu").lm], count)
    return found


def equal_logits(lms: list[ExactLM], count: int) -> bool:
    """Whether a pass and steps over some tokens have the same hash on two implementations."""
    tokens = np.random.default_rng(0).integers(0, lms[0].vocabulary, count)
    passes = [logits_hash(lm, tokens) for lm in lms]
    return passes[0] == passes[1] and logits_hash(lms[1], tokens[:40], steps=True) == logits_hash(lms[0], tokens[:40])


def logits_hash(lm: ExactLM, tokens: np.ndarray, steps: bool = False) -> str:
    """SHA-256 of the logits of one sequence, in one pass or token by token."""
    digest = hashlib.sha256()
    sequences = lm.sequences(1, len(tokens), len(tokens))
    if steps:
        for token in tokens:
            sequences.step(np.array([token]))
            digest.update(np.ascontiguousarray(sequences.logits(slice(1))[:, : lm.vocabulary]).tobytes())
        return digest.hexdigest()
    sequences.forward([SequenceInput(0, tokens)])
    for start in range(0, len(tokens), 48):
        rows = sequences.logits(slice(start, min(start + 48, len(tokens))))
        digest.update(np.ascontiguousarray(rows[:, : lm.vocabulary]).tobytes())
    return digest.hexdigest()


def same_files(run: Run) -> dict[str, bool]:
    """Whether files, an archive, frames and a primer are equal, and each side decodes what the other made."""
    cpu, gpu = run.codec("cpu"), run.codec("gpu")
    size, count = (4, 1) if run.small else (4000, len(TEXTS))
    texts = [(ROOT / name).read_bytes()[:size] for name in TEXTS[:count]]
    site, found = Readout(effort=16 if run.small else 256), {}
    for name, text in zip(TEXTS, texts, strict=False):
        made = [codec.encode(text, site=site, verify=False) for codec in (cpu, gpu)]
        decoded = [gpu.decode(made[0]), cpu.decode(made[1])]
        found[name] = made[0] == made[1] and decoded == [text, text]
    messages = [text[: min(size, 200) // 2] for text in texts]
    frames = [codec.encode_frames(messages) for codec in (cpu, gpu)]
    found["frames"] = frames[0] == frames[1] and gpu.decode_frames(frames[0]) == messages
    paths = [run.folder / name for name in ("cpu.memz", "gpu.memz")]
    for path, codec in zip(paths, (cpu, gpu), strict=True):
        Archive.create(path, messages, codec=codec)
    found["archive"] = paths[0].read_bytes() == paths[1].read_bytes() and list(Archive(paths[0], gpu)) == messages
    primer = Primer.from_texts([text[: min(size, 40)].decode() for text in texts], model=cpu)
    primed = [codec.with_primer(primer) for codec in (cpu, gpu)]
    made = [codec.encode(texts[0][:size], site=site, verify=False) for codec in primed]
    found["primer"] = made[0] == made[1] and primed[1].decode(made[0]) == texts[0][:size]
    return found


# ---- speed


def steps(run: Run) -> list[dict[str, float]]:
    """Seconds of a step by stage, and its floor: the time in which memory is read that must be read."""
    lm: Any = run.codec("gpu").lm
    rows_of, positions_of = ((2,), (3,)) if run.small else (ROWS, POSITIONS)
    room = lm.capacity.positions  # half of the memory
    return [step(run, lm, rows, at) for at in positions_of for rows in rows_of if run.small or rows * (at + 41) <= room]


def step(run: Run, lm: Any, rows: int, position: int, repeats: int = 20) -> dict[str, float]:
    """One setting: steps of decoding, and the logits and sums that are a part of them. The lowest of some times."""
    from memcodec.coding import gpu
    from memcodec.coding.steering import Steering

    a, coder = lm.architecture, gpu.Coder(lm.implementation)
    count = 1 if run.small else repeats
    sequences = lm.sequences(rows, position + 2 * count + 1, rows)
    read_already(sequences, position)
    ends = np.full(rows, 2 * count + 1)
    groups = [EncodedGroup((2 * count + 1,), (b"",), bytes(64))] * rows
    decoder, written = gpu.GpuDecoder(groups, Steering.of(lm.head), 0, coder), np.zeros((rows, 2 * count + 1), np.int64)
    decoder.steps(sequences, written, 1, count + 1, ends, lambda _: None)  # compiles and captures
    seconds, _ = timed(run, partial(decoder.steps, sequences, written, count + 1, 2 * count + 1, ends, lambda _: None))
    sequences.step(np.zeros(rows, dtype=np.int64))
    times: dict[str, list[float]] = {"logits": [], "sums": []}
    for _ in range(1 if run.small else 6):
        one, logits = timed(run, partial(sequences.placed_logits, slice(None)))
        times["logits"].append(one)
        times["sums"].append(timed(run, partial(coder.sums, logits))[0])
    size = a.layers * 2 * a.key_heads * (a.head_size + 4)
    read = rows * position * size + sum(w.nbytes for w in lm.implementation.tensors.values())
    speed = next((speed for name, speed in MEMORY_SPEED.items() if name in str(run.found.get("card"))), 0)
    found = {"rows": rows, "position": position, "step": seconds / count}
    found |= {stage: min(some) for stage, some in times.items()}
    return found | {"floor": read / speed if speed else 0.0}


def read_already(sequences: Any, position: int) -> None:
    """Make sequences as if they had read some tokens, whose keys and values do not matter."""
    sequences.lengths[:] = position
    sequences.cache.scales.fill_(0.01)


def timed(run: Run, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of something, until the device has finished it, and what it returns."""
    cuda: Any = torch.cuda
    if run.is_cuda:
        cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if run.is_cuda:
        cuda.synchronize()
    return time.perf_counter() - start, result


def profile(run: Run) -> dict[str, dict[str, float]]:
    """Microseconds of each kernel in a step of 1,024 rows and in a pass of 20 sequences, by torch's profiler."""
    lm, rows, tokens = run.codec("gpu").lm, 1024, np.zeros(800, dtype=np.int64)
    if not run.is_cuda:
        return {}
    steps, passes = lm.sequences(rows, 420, rows), lm.sequences(20, 800, 16000)
    read_already(steps, 400)

    def one_pass() -> None:
        passes.restart()
        passes.forward([SequenceInput(slot, tokens) for slot in range(20)])
        passes.placed_logits(slice(1000))

    return {"step": profiled(lambda: steps.step(tokens[:1].repeat(rows))), "pass": profiled(one_pass)}


def profiled(work: Callable[[], None]) -> dict[str, float]:
    """Microseconds of each kernel that some work starts, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    cuda: Any = torch.cuda
    work()
    cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CUDA]) as measured:
        work()
        cuda.synchronize()
    found = {event.key: event.device_time_total for event in measured.key_averages() if event.device_time_total}
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:16])


def files(run: Run) -> list[dict[str, Any]]:
    """Bytes a second of encoding and decoding by level, with and without memories; without references.

    Without --text, the text is that of this repository, repeated to reach the size.
    """
    codec, found = run.codec("gpu"), list[dict[str, Any]]()
    if run.options.text:
        text = run.options.text.read_bytes()
    else:
        text = b"".join(sorted(path.read_bytes() for path in [*ROOT.rglob("*.md"), *ROOT.rglob("*.py")]))
    for size, level, count in ((4, 6, 1),) if run.small else FILES:
        data = (text * (size // len(text) + 1))[:size]
        documents = [data[start : start + size // count] for start in range(0, size, size // count)]
        for share in (0.0, LEVELS[level].share)[: 1 + (LEVELS[level].share > 0)]:
            settings = {"level": level, "site": Readout(share), "verify": False, "references": False}
            encode, blobs = timed(run, partial(encoded, codec, documents, settings))
            decode, decoded = timed(run, partial(codec.decode_many, blobs))
            assert decoded == documents
            found.append({"bytes": size, "level": level, "documents": count, "memory_share": share,
                          "size": sum(map(len, blobs)), "encode": size / encode, "decode": size / decode})  # fmt: skip
            run.found["files"] = found
            run.write()
            if time.perf_counter() > run.end:
                return found
    return found


def encoded(codec: Codec, documents: list[bytes], settings: dict[str, Any]) -> list[bytes]:
    """The files of some documents."""
    return list(codec.encode_many(documents, **settings))


def frames_a_second(run: Run) -> dict[str, float]:
    """Frames a second, of messages of 100 bytes."""
    codec, count = run.codec("gpu"), 1 if run.small else 2048
    text = (ROOT / TEXTS[0]).read_bytes()
    length = 3 if run.small else 100
    messages = [text[i * 7 % 4000 :][:length] for i in range(count)]
    encode, frames = timed(run, partial(codec.encode_frames, messages))
    decode, _ = timed(run, partial(codec.decode_frames, frames))
    return {"encode": count / encode, "decode": count / decode}


def memory(run: Run) -> dict[str, int]:
    """The most bytes that were allocated on the device so far."""
    return {"bytes": torch.cuda.max_memory_allocated()} if run.is_cuda else {}


def prompts(run: Run) -> dict[str, float]:
    """The prompt site: seconds for a text, and whether it is decoded."""
    text = (ROOT / TEXTS[0]).read_bytes()[: 3 if run.small else 600]
    codec = run.codec("gpu")
    site = Prompt(vectors=1, steps=2) if run.small else Prompt(vectors=16)
    seconds, blob = timed(run, partial(codec.encode, text, site=site, chunk_tokens=128, verify=False))
    return {"seconds": seconds, "decoded": run.codec("cpu").decode(blob) == text}


PARTS: dict[str, Callable[[Run], Any]] = {
    "card": card, "self-test": self_test, "same logits": same_logits, "same files": same_files, "steps": steps,
    "profile": profile, "files": files, "frames": frames_a_second, "memory": memory, "prompt": prompts,
}  # fmt: skip


def render(found: dict[str, Any]) -> str:
    """The tables."""
    lines = [f"{found['date']}. {', '.join(f'{k} {v}' for k, v in found.get('card', {}).items())}.", ""]
    for name in ("self-test", "same logits", "same files", "frames", "memory", "prompt", "errors", "seconds"):
        if found.get(name):
            lines += [f"| {name} | |", "| --- | --- |"]
            lines += [f"| {k} | {' / '.join(str(v).splitlines())} |" for k, v in found[name].items()] + [""]
    for name in ("steps", "files"):
        if rows := found.get(name):
            lines += ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---:" for _ in rows[0]) + " |"]
            lines += ["| " + " | ".join(f"{v:.6g}" for v in row.values()) + " |" for row in rows] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
