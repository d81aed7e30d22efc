"""The means of what the norms of a model return, written into its adapter: the conversion corrects rounding with them.

    python training/means.py ADAPTER [TEXT...] [--model FOLDER] [--tokens 2000]

The texts must not be among those that are measured; a few thousand tokens of several kinds and languages are enough
(docs/training.md). Without any, they are the first document of 4,000 characters or more of each of the 30 kinds and
languages that are most often read in training (build/training/selected.jsonl.zst). The model is the built-in one with
ADAPTER, or FOLDER, which must have the rest of ADAPTER in it. Other tensors of ADAPTER stay as they are; without the
file, it is made.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import data
import evaluate
import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from memcodec.models.checkpoint import open_checkpoint
from memcodec.models.floats import FrozenLM
from memcodec.models.tokenizer import ByteTokenizer

SEQUENCE = 400  # tokens after the prefix
GRID = 2.0**-8  # to which means are rounded, so that the file packs well
TEXTS = 30  # that are taken from the corpus
LEAST = 4000  # characters of each of these


def norms_of(model: Any) -> dict[str, Any]:
    """The norms of hidden states, by the names of their gains; those of heads are no part of a residual stream."""
    found = {name: module for name, module in model.named_modules() if "Norm" in type(module).__name__}
    return {f"{name}.weight": module for name, module in found.items() if not name.endswith(("q_norm", "k_norm"))}


def before_gain(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What a norm returns for x before its gain, float64."""
    x = x.double()
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
    if "LayerNorm" in type(module).__name__:
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def means_of(lm: FrozenLM, sequences: list[np.ndarray], prefix: int) -> dict[str, np.ndarray]:
    """The mean of each norm over the tokens of all sequences, without the prefix; float32 [hidden]."""
    norms = norms_of(lm.model)
    sums = {name: torch.zeros(1, dtype=torch.float64) for name in norms}

    def watch(name: str, module: Any) -> Any:
        def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] = sums[name] + before_gain(module, inputs[0][0, prefix:]).sum(0)

        return module.register_forward_pre_hook(add)

    handles = [watch(name, module) for name, module in norms.items()]
    with torch.no_grad():
        for tokens in sequences:
            lm.hidden(torch.from_numpy(tokens)[None])
    for handle in handles:
        handle.remove()
    count = sum(len(tokens) - 1 for tokens in sequences)  # the LM does not read the last token
    means = {name: (total / count).numpy() for name, total in sums.items()}
    return {name: (np.rint(mean / GRID) * GRID).astype(np.float32) for name, mean in means.items()}


def chosen(documents: Iterable[tuple[str, str]], count: int = TEXTS) -> list[str]:
    """The first long document of each of the names, "kind/language", that are most often read in training."""
    sizes, first = Counter[str](), dict[str, str]()
    for name, text in documents:
        sizes[name] += len(text)
        if len(text) >= LEAST:
            first.setdefault(name, text)
    names = list(sizes)
    often = dict(zip(names, data.shares_of(names, np.array(list(sizes.values()))), strict=True))
    return [first[name] for name in sorted(first, key=lambda name: (-often[name], name))[:count]]


def add_means(folder: Path, adapter: Path, texts: list[str], most: int) -> None:
    """Write the means over the first `most` tokens of each text into an adapter. folder: of the model with it."""
    tokenizer = ByteTokenizer(folder)
    prefix = list(tokenizer.prefix())
    sequences = []
    for text in texts:
        tokens = tokenizer.encode(text)[:most].astype(np.int64)
        sequences += [tokens[start : start + SEQUENCE] for start in range(0, len(tokens) - 1, SEQUENCE)]
    means = means_of(FrozenLM.load(folder, prefix), sequences, len(prefix))
    tensors, metadata = {}, {"shared": json.dumps({})}
    if adapter.is_file():
        with safe_open(adapter, "np") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
    known = open_checkpoint(folder).names()  # some families' checkpoints lack the prefix of transformers' names
    tensors |= {f"{name if name in known else name.partition('.')[2]}.mean": mean for name, mean in means.items()}
    save_file(tensors, adapter, metadata)
    read = sum(len(s) - 1 for s in sequences)
    print(f"{adapter}: {adapter.stat().st_size:,} bytes, {len(means)} means over {read:,} tokens")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--model", type=Path, help="folder of another model than the built-in one")
    parser.add_argument("--tokens", type=int, default=2000, help="of each text")
    a = parser.parse_args()
    texts = [path.read_bytes().decode() for path in a.texts] or chosen(data.read(data.SELECTED))
    with tempfile.TemporaryDirectory() as place:
        present = a.adapter if a.adapter.is_file() else None
        folder = a.model or evaluate.model_folder(Path(place) / "model", present)
        add_means(folder, a.adapter, texts, a.tokens)


if __name__ == "__main__":
    main()
