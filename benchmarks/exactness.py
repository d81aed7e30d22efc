"""The exact LM in every environment that this machine can imitate, and compared with float32.

    python benchmarks/exactness.py [--out FOLDER] [--quick]

For each environment (instruction sets of the kernels, of numba, oneDNN and ATen), a separate process hashes the logits
of the default model and of a tiny model of every architecture: numba and torch, full and cached passes, batches 1, 3
and 64, 1 and 2 threads; of the default model also those after a text that is longer than the groups of level 6. All
hashes of a model must be equal, and so must be its identities, since each process converts it anew. Then the bits per
token of the benchmark's texts are measured, with the exact LM and in float32. Writes exactness.json and exactness.md to
--out.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import corpora
import numpy as np

from memcodec.bench.comparison import Text
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.document import spans
from memcodec.document.plan import cut_chunks
from memcodec.lm import instructions
from memcodec.lm.sequences import SequenceInput

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
BYTES = 20_480
SHORT, TINY_SHORT, LONG = 10, 40, 1500  # tokens
_ATEN: tuple[dict[str, str], ...] = ({}, {"ATEN_CPU_CAPABILITY": "default"}, {"ATEN_CPU_CAPABILITY": "avx2"})
_ONEDNN = tuple({"ONEDNN_MAX_CPU_ISA": isa} for isa in ("SSE41", "AVX2", "AVX512_CORE"))
# Processors for which numba compiles, with the best instructions that each has.
_PROCESSORS = {"x86-64-v2": "vectors-16", "x86-64-v3": "vectors-32", "skylake-avx512": "vectors-64"}


def environments() -> list[dict[str, str]]:
    """The variables that are set in each process; none in the first."""
    available = instructions.available()
    processors = [
        {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "MEMCODEC_INSTRUCTIONS": name}
        for processor, name in _PROCESSORS.items()
        if name in available and platform.machine() in ("x86_64", "AMD64")
    ]
    return [*_ATEN, *_ONEDNN, *({"MEMCODEC_INSTRUCTIONS": name} for name in available[1:]), *processors]


def main() -> None:
    """Compute the hashes in every environment, then measure bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="only tiny models, and 2 KB of each text")
    parser.add_argument("--hash", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hash:
        print(json.dumps(hashes(json.loads(options.hash))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        names = {family: make_tiny(family, Path(folder) / family) for family in FAMILIES}
        if not options.quick:
            names["smollm2-135m"] = "smollm2-135m"
        rows = [run(changes, names) for changes in environments()]
    found: dict[str, Any] = {
        "date": today(),
        "machine": machine(),
        "environments": rows,
        "different": {
            name: len({h for row in rows for h in row["hashes"][name].values()}) for name in rows[0]["hashes"]
        },
        "different_identities": {name: len({row["identities"][name] for row in rows}) for name in names},
        "bits": bits(2048 if options.quick else BYTES),
    }
    (options.out / "exactness.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "exactness.md").write_text(render(found))
    print(render(found))
    if any(count != 1 for kind in ("different", "different_identities") for count in found[kind].values()):
        sys.exit("exactness: error: hashes differ")


def run(changes: dict[str, str], names: dict[str, str]) -> dict[str, Any]:
    """The hashes from a process with some variables set."""
    start = time.monotonic()
    command = [sys.executable, __file__, "--hash", json.dumps(names)]
    done = subprocess.run(command, env=os.environ | changes, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"exactness: error: {changes}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    print(changes or "as it is", f"{time.monotonic() - start:.0f} s", flush=True)
    return {"variables": changes, **found}


def hashes(names: dict[str, str]) -> dict[str, Any]:
    """By model: a hash for each way to compute the same logits; the instructions, and the products that torch needs."""
    from memcodec.lm import model
    from memcodec.lm.device import needs_fallback
    from memcodec.models.registry import convert_model, resolve

    result: dict[str, dict[str, str]] = {}
    identities: dict[str, str] = {}
    for name, folder in names.items():
        weights, _ = convert_model(resolve(folder), None)  # not from the cache
        identities[name] = weights.identity.hex()
        count, found = (SHORT if name == folder else TINY_SHORT), {}
        long: dict[str, str] = {}  # hashes of the last logits
        for kernels, threads, plain in (("numba", 1, None), ("numba", 2, None), ("numba", 2, True), ("torch", 2, None)):
            if plain and name == folder:
                continue  # it would take minutes
            lm = model.ExactLM(weights, "cpu", threads, kernels, plain)
            tokens = np.arange(1, count + 1) * 37 % lm.vocabulary
            way = f"{kernels}, {threads} threads" + (", plain products" if plain else "")
            found[f"{way}, full pass"] = digest(model.logits_of(lm, tokens))
            if name == folder:
                passes = lm.sequences(1, LONG, LONG)
                passes.forward([SequenceInput(0, np.arange(1, LONG + 1) * 37 % lm.vocabulary)])
                long[way] = digest(passes.logits(np.array([LONG - 1]))[:, : lm.vocabulary])
            for batch in (1, 3, 64):
                sequences = lm.sequences(batch, count, batch)
                steps = []
                for t in range(count):
                    sequences.step(np.full(batch, tokens[t]))
                    steps.append(sequences.logits(slice(None, batch))[:, : lm.vocabulary].copy())
                for row in {0, batch - 1}:
                    name_ = f"{way}, cached, batch {batch}, row {row}"
                    found[name_] = digest(np.stack([step[row] for step in steps]))
        result[name] = found
        if long:
            result[f"{name}, {LONG} tokens"] = long
    return {
        "hashes": result,
        "identities": identities,
        "instructions": instructions.CHOSEN.name,
        "torch_products": "float32" if needs_fallback("cpu") else "int8",
    }


def digest(logits: np.ndarray) -> str:
    """The beginning of the SHA-256 of logits."""
    return hashlib.sha256(np.ascontiguousarray(logits, dtype="<i4").tobytes()).hexdigest()[:16]


def make_tiny(family: str, folder: Path) -> str:
    """Make a random model of a family, with a tokenizer of single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
                             "num_attention_heads": 4, "num_key_value_heads": 2,
                             "max_position_embeddings": 512}  # fmt: skip
    if family == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}
    torch.manual_seed(len(family))
    config: Any = AutoConfig.for_model(family, vocab_size=300, initializer_range=0.2, **sizes)
    lm: Any = AutoModelForCausalLM
    lm.from_config(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def bits(size: int) -> list[dict[str, Any]]:
    """Bits per token of the beginning of each text, exact and in float32, in chunks of up to 200 tokens."""
    import torch

    codec = Codec.load(device="cpu")
    rows = []
    for corpus in corpora.CORPORA:
        text = Text.cut(corpus.name, corpora.contents(corpus), size).data
        runs = [span.tokens for span in spans.spans_of(text, codec.tokenizer) if isinstance(span, spans.Text)]
        cut = [chunk for run in runs for chunk in cut_chunks(run, 200)]
        exact = sum(float(codec.token_bits(chunk).sum()) for chunk in cut)
        floats = 0.0
        with torch.no_grad():
            for chunk in cut:
                ids = torch.from_numpy(chunk)[None]
                scores = torch.log_softmax(codec.floats.logits(codec.floats.hidden(ids))[0].double(), dim=1)
                floats -= scores.gather(1, ids[0][:, None]).sum().item() / np.log(2)
        tokens = sum(map(len, cut))
        rows.append({"text": corpus.name, "kind": corpus.kind, "bytes": len(text), "tokens": tokens,
                     "exact": exact / tokens, "float32": float(floats) / tokens})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def render(found: dict[str, Any]) -> str:
    """Two tables in Markdown."""
    lines = ["| variables | instructions | torch's products | hashes | all equal |", "| --- | --- | --- | ---: | --- |"]
    for row in found["environments"]:
        variables = ", ".join(f"{k}={v}" for k, v in row["variables"].items() if v) or "none"
        count = sum(map(len, row["hashes"].values()))
        same = all(
            set(some.values()) == set(found["environments"][0]["hashes"][name].values())
            for name, some in row["hashes"].items()
        )
        products = f"{row['instructions']} | {row['torch_products']}"
        lines.append(f"| {variables} | {products} | {count} | {'yes' if same else 'NO'} |")
    lines += ["", "| text | bytes | tokens | float32, bits per token | exact | difference |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in found["bits"]:
        change = row["exact"] / row["float32"] - 1
        lines.append(
            f"| {row['text']} ({row['kind']}) | {row['bytes']:,} | {row['tokens']:,} | {row['float32']:.4f} | "
            f"{row['exact']:.4f} | {change:+.2%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
