"""The coder's part of a step on a GPU: logits stay there, and only what the host needs is copied."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from memcodec.coding import gpu_kernels
from memcodec.coding.corrections import Decoder, Group
from memcodec.coding.distribution import BLOCK, COMPETITORS, Predictions
from memcodec.coding.steering import Steering
from memcodec.lm import arithmetic
from memcodec.lm.gpu import GpuLM
from memcodec.lm.gpu_kernels import launch
from memcodec.lm.gpu_sizes import power_of_two
from memcodec.lm.team import team_of

_kernels: Any = gpu_kernels  # functions in Triton have no types
_ALONE = team_of(1)
_DEPTH = 64  # entries of the hidden state at one time, in a product for steering


class _Sums(NamedTuple):
    """What `cells` and `blocks` find in each row: int64 [rows, ...]."""

    keys: torch.Tensor  # [rows, cells]
    masses: torch.Tensor  # [rows, blocks]
    moments: torch.Tensor


class Coder:
    """The kernels of `gpu_kernels` for an LM."""

    def __init__(self, lm: GpuLM) -> None:
        self.lm = lm
        self.vocabulary = lm.vocabulary
        self.powers, self.logarithms = self.tensor(arithmetic.powers()), self.tensor(arithmetic.logarithms())
        cells, blocks = -(-lm.vocabulary // gpu_kernels.CELL), -(-lm.vocabulary // BLOCK)
        self.sizes = {
            "VOCABULARY": lm.vocabulary, "CELLS": cells, "WIDTH": power_of_two(cells), "BLOCKS": blocks,
        }  # fmt: skip
        self.block_width = power_of_two(blocks)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array on the device."""
        return torch.from_numpy(np.array(array)).to(self.lm.device)

    def placed(self, logits: Any) -> torch.Tensor:
        """Logits on the device, from there or from the host."""
        return logits if isinstance(logits, torch.Tensor) else self.tensor(logits)

    def sums(self, logits: torch.Tensor) -> _Sums:
        """Over int32 [rows, vocabulary]: two launches."""
        rows, cells, blocks = len(logits), self.sizes["CELLS"], self.sizes["BLOCKS"]
        keys, masses, moments = (
            torch.empty(rows, n, dtype=torch.int64, device=self.lm.device) for n in (cells, blocks, blocks)
        )
        piece = min(max(self.lm.tiles.entries * 2 // gpu_kernels.CELL, 1), self.sizes["WIDTH"])
        launch(
            _kernels.cells, (rows, -(-cells // piece)), logits, keys,
            VOCABULARY=self.vocabulary, CELLS=cells, PIECE=piece,
        )  # fmt: skip
        piece = min(max(self.lm.tiles.entries * 2 // BLOCK, 1), self.block_width)
        launch(
            _kernels.blocks, (rows, -(-blocks // piece)), logits, keys, self.powers, masses, moments,
            **self.sizes, PIECE=piece,
        )  # fmt: skip
        return _Sums(keys, masses, moments)


def predictions(tokens: np.ndarray, logits: Any, coder: Coder) -> Callable[[], Predictions]:
    """The predictions of some tokens, int64 [rows], from logits on the device, int32 [rows, vocabulary].

    They are on their way to the host: calling the result waits for them.
    """
    logits = coder.placed(logits)
    rows, device = len(logits), coder.lm.device
    sums = coder.sums(logits)
    ids, below = (torch.empty(rows, COMPETITORS + 1, dtype=torch.int32, device=device) for _ in range(2))
    totals = torch.empty(rows, dtype=torch.int64, device=device)
    entropies = torch.empty(rows, dtype=torch.int32, device=device)
    near = torch.zeros(rows, BLOCK, dtype=torch.int32, device=device)
    launch(
        _kernels.summarize, (rows,), logits, *sums, coder.logarithms, coder.tensor(tokens.astype(np.int32)), ids, below,
        totals, entropies, near, **coder.sizes, BLOCK_WIDTH=coder.block_width,
    )  # fmt: skip
    found = (ids, below, totals, entropies, sums.masses, near)
    if device.type != "cuda":
        return lambda: Predictions(tokens, *(tensor.numpy() for tensor in found))
    # Pinned memory is used again once nobody has it; new memory would take longer than the copy.
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in found]
    for copy, tensor in zip(copies, found, strict=True):
        copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(device))

    def wait() -> Predictions:
        done.synchronize()
        return Predictions(tokens, *(copy.numpy() for copy in copies))

    return wait


class GpuDecoder:
    """`corrections.Decoder` on the device: the tokens of a step are all that is copied to the host."""

    def __init__(self, rows: Sequence[Group], steering: Steering, share: int, coder: Coder) -> None:
        """share: in steps of 1/1024; with 0, memories are ignored."""
        self._coder, self._share = coder, share
        self._streams = [coder.tensor(array) for array in Decoder(rows, steering, share, _ALONE).streams]
        self._parities = coder.tensor(steering.parities.view(np.int64))
        hidden = coder.lm.architecture.hidden
        self._constants: dict[str, Any] = {
            "LEVELS": max(8, (coder.vocabulary - 1).bit_length()), "SIZE": hidden, "UNIT": float(steering.unit),
            "DEPTH": min(power_of_two(hidden), _DEPTH), "BLOCK_WIDTH": coder.block_width,
        }  # fmt: skip

    def step(self, position: int, logits: Any) -> np.ndarray:
        """The tokens at one position of the first groups, int64 [rows]. logits: int32 [rows, vocabulary]."""
        count = len(logits)
        return self.read(np.arange(count), np.full(count, position), np.ones(count, dtype=np.int64), logits)

    def read(self, groups: np.ndarray, positions: np.ndarray, counts: np.ndarray, logits: Any) -> np.ndarray:
        """The tokens at some positions of different groups, int64 [rows].

        groups, positions, counts: int64 [n]: of each group, its number, the position after those that were read, and
        how many are to be read; logits: int32 [rows, vocabulary], of the first group, then of the next one.
        """
        coder = self._coder
        logits = coder.placed(logits)
        rows, t = len(logits), coder.lm.tensors
        runs = coder.tensor(np.stack([groups, positions, np.cumsum(counts) - counts, counts], axis=1).astype(np.int32))
        tokens = torch.empty(rows, dtype=torch.int32, device=coder.lm.device)
        launch(
            _kernels.decode, (len(groups),), logits, *coder.sums(logits), coder.powers, coder.logarithms, t["head"],
            t["head.scale"], self._parities, *self._streams, runs, tokens, self._share,
            **coder.sizes, **self._constants,
        )  # fmt: skip
        found: np.ndarray = tokens.cpu().numpy().astype(np.int64)
        return found
