"""The coder's part of a step on a GPU: logits stay there, and only what the host needs is copied."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from memcodec.coding import gpu_kernels
from memcodec.coding.corrections import Decoder, EncodedGroup, live_groups
from memcodec.coding.distribution import BLOCK, COMPETITORS, Predictions
from memcodec.coding.steering import Steering
from memcodec.lm import arithmetic
from memcodec.lm.device import graph_of
from memcodec.lm.gpu import Buffers, GpuLM, GpuSequences, Pass
from memcodec.lm.gpu_kernels import launch
from memcodec.lm.gpu_sizes import power_of_two
from memcodec.lm.sequences import check_numbers
from memcodec.lm.team import team_of
from memcodec.lm.transfer import to_device, to_host
from memcodec.progress import Report

_kernels: Any = gpu_kernels  # functions in Triton have no types
_ALONE = team_of(1)
HISTORY = 64  # steps whose tokens stay on the device until they are copied
_ADVANCED = 128  # rows of a program of `advance`
_DEPTH = 64  # entries of the hidden state at one time, in a product for steering


class Sums(NamedTuple):
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
        cells, blocks = -(-lm.vocabulary // gpu_kernels.GPU_CELL), -(-lm.vocabulary // BLOCK)
        self.sizes = {
            "VOCABULARY": lm.vocabulary, "CELLS": cells, "WIDTH": power_of_two(cells), "BLOCKS": blocks,
        }  # fmt: skip
        self.block_width = power_of_two(blocks)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array on the device."""
        return to_device(array, self.lm.device)

    def placed(self, logits: Any) -> torch.Tensor:
        """Logits on the device, from there or from the host."""
        return logits if isinstance(logits, torch.Tensor) else self.tensor(logits)

    def new_sums(self, rows: int) -> Sums:
        """Room for the sums of some rows."""
        cells, blocks = self.sizes["CELLS"], self.sizes["BLOCKS"]
        return Sums(*(torch.empty(rows, n, dtype=torch.int64, device=self.lm.device) for n in (cells, blocks, blocks)))

    def sums(self, logits: torch.Tensor, into: Sums | None = None) -> Sums:
        """The sums of logits, int32 [rows, vocabulary], in two launches. into: written to, instead of new ones."""
        rows, cells, blocks = len(logits), self.sizes["CELLS"], self.sizes["BLOCKS"]
        keys, masses, moments = found = self.new_sums(rows) if into is None else into
        piece = min(max(self.lm.block_sizes.entries * 2 // gpu_kernels.GPU_CELL, 1), self.sizes["WIDTH"])
        launch(
            _kernels.cells, (rows, -(-cells // piece)), logits, keys,
            VOCABULARY=self.vocabulary, CELLS=cells, PIECE=piece,
        )  # fmt: skip
        piece = min(max(self.lm.block_sizes.entries * 2 // BLOCK, 1), self.block_width)
        launch(
            _kernels.blocks, (rows, -(-blocks // piece)), logits, keys, self.powers, masses, moments,
            **self.sizes, PIECE=piece,
        )  # fmt: skip
        return found


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
    found = to_host((ids, below, totals, entropies, sums.masses, near))
    return lambda: Predictions(tokens, *found())


class GpuDecoder:
    """`corrections.Decoder` on the device: the tokens of a step are all that is copied to the host."""

    def __init__(self, rows: Sequence[EncodedGroup], steering: Steering, share: int, coder: Coder) -> None:
        """share: in steps of 1/1024; with 0, memories are ignored."""
        self._coder, self._share = coder, share
        self._streams = [coder.tensor(array) for array in Decoder(rows, steering, share, _ALONE).streams]
        self._parities = coder.tensor(steering.parities.view(np.int64))
        self._steps: Steps | None = None
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
        runs = coder.tensor(np.stack([groups, positions, np.cumsum(counts) - counts, counts], axis=1).astype(np.int32))
        tokens = torch.empty(len(logits), dtype=torch.int32, device=coder.lm.device)
        self.launch(logits, coder.sums(logits), runs, tokens)
        found: np.ndarray = tokens.cpu().numpy().astype(np.int64)
        return found

    def launch(self, logits: torch.Tensor, sums: Sums, runs: torch.Tensor, tokens: torch.Tensor) -> None:
        """Start `gpu_kernels.decode`, which writes the tokens, int32 [rows]. runs: int32 [n, RUN_FIELDS]."""
        coder, t = self._coder, self._coder.lm.tensors
        launch(
            _kernels.decode, (len(runs),), logits, *sums, coder.powers, coder.logarithms, t["head"], t["head.scale"],
            self._parities, *self._streams, runs, tokens, self._share,
            **coder.sizes, **self._constants,
        )  # fmt: skip

    def steps(
        self, sequences: GpuSequences, written: np.ndarray, first: int, last: int, ends: np.ndarray, report: Report
    ) -> None:
        """`corrections.Decoder.steps`, which the host starts without waiting for them."""
        if self._steps is None or self._steps.sequences is not sequences:
            self._steps = Steps(self._coder, sequences)
        self._steps.run(self, written, first, last, ends, report)


def padded(rows: int) -> int:
    """The number of rows of a step with padding: few different numbers, so that few graphs are captured.

    Between one power of two and the next there are four of them.
    """
    unit = max(power_of_two(rows) // 8, 1)
    return -(-rows // unit) * unit


class Steps:
    """Steps of decoding that stay on the device, each of them one CUDA graph.

    Rows that nobody reads are added, so that few graphs are captured (`padded`): they are groups that have ended, or
    read the first position of a sequence that nobody uses. A decoder refers to its steps, but they do not refer to the
    decoder, so that the memory of the graphs is freed together with it.
    """

    def __init__(self, coder: Coder, sequences: GpuSequences) -> None:
        self.sequences = sequences
        self._coder = coder
        groups, device = len(sequences.lengths), coder.lm.device
        self._groups, self._width = groups, padded(groups)
        self._is_cuda = device.type == "cuda"
        numbers = np.zeros((4 + gpu_kernels.RUN_FIELDS, self._width), dtype=np.int32)
        self._host = numbers  # tokens, slots, positions, ends, and runs: what is copied before the first step
        self._placed = torch.zeros(*numbers.shape, dtype=torch.int32, device=device)
        self._history = torch.zeros(HISTORY, self._width, dtype=torch.int32, device=device)
        self._wrong = torch.zeros(1, dtype=torch.int32, device=device)
        self._logits = torch.empty(self._width, coder.vocabulary, dtype=torch.int32, device=device)
        self._sums = coder.new_sums(self._width)
        self._buffers = Buffers(coder.lm.architecture, self._width, device)
        self._buffers.of_attention(self._width * sequences.positions_of_heads)  # now: a graph keeps the address
        self._graphs: dict[int, Any] = {}  # by rows

    def run(
        self, decoder: GpuDecoder, written: np.ndarray, first: int, last: int, ends: np.ndarray, report: Report
    ) -> None:
        """Decode positions from `first` to last - 1 of groups (see `corrections.Decoder.steps`)."""
        self.place(written[:, first - 1], first, ends)
        self.sequences.check_room(np.minimum(ends[: live_groups(ends, first)], last) - first)
        before = first
        for t in range(first, last):
            live = live_groups(ends, t)
            self._step(decoder, min(padded(live), self._width))
            self.sequences.lengths[:live] += 1
            if t + 1 == last or (t + 1) % len(self._history) == 0:
                place = before % len(self._history)
                found = self._history[place : place + t + 1 - before].cpu().numpy()
                if self._wrong.cpu().numpy()[0]:
                    check_numbers(np.array([np.nan], dtype=np.float32))
                rows = min(len(written), self._groups)
                written[:rows, before : t + 1] = found[:, :rows].T
                report(sum(live_groups(ends, done) for done in range(before, t + 1)))
                before = t + 1

    def place(self, tokens: np.ndarray, first: int, ends: np.ndarray) -> torch.Tensor:
        """Copy what the first step reads to the device; returns the runs, int32 [rows, RUN_FIELDS]."""
        count, host = len(ends), self._host
        host[:] = 0
        host[0, :count] = np.where(ends > first, tokens, 0)  # a group that has ended may have no token there
        host[1] = self._groups  # the slot that nobody uses
        host[1, :count] = np.arange(count)
        host[2, :count] = self.sequences.lengths[:count]
        host[3, :count] = ends
        runs = host[4:].reshape(-1, gpu_kernels.RUN_FIELDS)
        runs[:, 2] = np.arange(self._width)
        runs[:, 0] = np.minimum(runs[:, 2], self._groups - 1)  # rows that nobody reads have a group that exists
        runs[:, 1], runs[:count, 3] = first, ends > first
        self._placed.copy_(torch.from_numpy(host))
        return self._runs

    @property
    def tokens(self) -> torch.Tensor:
        """What the next step reads, int32 [rows]."""
        return self._placed[0]

    @property
    def _runs(self) -> torch.Tensor:
        return self._placed[4:].view(-1, gpu_kernels.RUN_FIELDS)

    def _step(self, decoder: GpuDecoder, rows: int) -> None:
        """Start a step of some rows. The first one of this number is started kernel by kernel, then captured."""
        if graph := self._graphs.get(rows):
            graph.replay()
            return
        self._launch(decoder, rows)
        if self._is_cuda:
            self._graphs[rows] = graph_of(lambda: self._launch(decoder, rows), warm_up=False)

    def _launch(self, decoder: GpuDecoder, rows: int) -> None:
        placed, buffers, lm = self._placed, self._buffers, self._coder.lm
        tokens, slots, positions, ends = (placed[i, :rows] for i in range(4))
        runs = self._runs[:rows]
        lm.forward(Pass(tokens, slots, positions), buffers.x, buffers, self.sequences.cache)
        logits, sums = self._logits[:rows], Sums(*(one[:rows] for one in self._sums))
        lm.write_logits(buffers, logits)
        decoder.launch(logits, self._coder.sums(logits, sums), runs, tokens)
        launch(
            _kernels.advance, (-(-rows // _ADVANCED),), runs, positions, ends, tokens, self._history,
            buffers.input_scale, self._wrong, rows, self._width,
            BLOCK=_ADVANCED, HISTORY=len(self._history),
        )  # fmt: skip
