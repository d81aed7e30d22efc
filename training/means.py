"""The means of what the norms of a model return, written into its adapter: the conversion corrects rounding with them.

    python training/means.py MODEL_FOLDER ADAPTER TEXT... [--tokens 2000]

The texts must not be among those that are measured; a few thousand tokens of several kinds and languages are enough
(docs/training.md). Other tensors of ADAPTER stay as they are; without the file, it is made. MODEL_FOLDER is the model
with the rest of the adapter in it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from memcodec.models.checkpoint import open_checkpoint
from memcodec.models.floats import FrozenLM
from memcodec.models.tokenizer import ByteTokenizer

SEQUENCE = 400  # tokens after the prefix
GRID = 2.0**-8  # to which means are rounded, so that the file packs well


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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=2000, help="of each text")
    a = parser.parse_args()
    tokenizer = ByteTokenizer(a.model)
    prefix = list(tokenizer.prefix())
    sequences = []
    for path in a.texts:
        tokens = tokenizer.encode(path.read_bytes().decode())[: a.tokens].astype(np.int64)
        sequences += [tokens[start : start + SEQUENCE] for start in range(0, len(tokens) - 1, SEQUENCE)]
    means = means_of(FrozenLM.load(a.model, prefix), sequences, len(prefix))
    tensors, metadata = {}, {"shared": json.dumps({})}
    if a.adapter.is_file():
        with safe_open(a.adapter, "np") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
    known = open_checkpoint(a.model).names()  # some families' checkpoints lack the prefix of transformers' names
    tensors |= {f"{name if name in known else name.partition('.')[2]}.mean": mean for name, mean in means.items()}
    save_file(tensors, a.adapter, metadata)
    read = sum(len(s) - 1 for s in sequences)
    print(f"{a.adapter}: {a.adapter.stat().st_size:,} bytes, {len(means)} means over {read:,} tokens")


if __name__ == "__main__":
    main()
