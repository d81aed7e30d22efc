"""The search for memories on a GPU (see `search`): what the kernels of `search_kernels` need, and what they find."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from memcodec.coding import gpu_check
from memcodec.coding.distribution import BLOCK, COMPETITORS, Predictions
from memcodec.coding.gpu import Coder
from memcodec.coding.steering import FEATURES, MOST_NEW, Steering, capped, new_bits
from memcodec.lm.compiled import kernel
from memcodec.lm.gpu_kernels import launch
from memcodec.lm.gpu_sizes import power_of_two
from memcodec.lm.team import Team, team_of
from memcodec.memory import search_kernels
from memcodec.memory.search import memory_bytes, search
from memcodec.memory.search_kernels import POSITION_FIELDS, RUN_FIELDS

MOST_STATES = 1 << 12  # more are searched on the CPU: a program selects among all its states at one time
_kernels: Any = search_kernels  # functions in Triton have no types
_TESTED_SHARE = 512


class Sizes(NamedTuple):
    """How much of the search a program takes: no result depends on it. All but the last three are powers of two.

    tile: the most states at one time, of which each thread has one; chunks, depth: chunks at one time, and entries of
    the hidden state, when positions are prepared; warps, registers: of a multiprocessor, and of a thread; programs: if
    there are no multiprocessors; scratch, positions: the most bytes and positions at one time.
    """

    tile: int
    chunks: int
    depth: int
    warps: int
    registers: int
    programs: int
    scratch: int
    positions: int


ON_GPU = Sizes(tile=256, chunks=4, depth=64, warps=16, registers=128, programs=1, scratch=1 << 30, positions=1 << 18)
# The interpreter takes the same time for a large block as for a small one.
INTERPRETED = ON_GPU._replace(tile=MOST_STATES, chunks=8, depth=1024, programs=2)


class _Packed(NamedTuple):
    """Chunks one after the other, the longest first, as arrays that are uploaded."""

    ids: np.ndarray  # int32 [positions, COMPETITORS + 1]
    below: np.ndarray  # int32 [positions, COMPETITORS + 1]
    tokens: np.ndarray  # int64 [positions]
    totals: np.ndarray  # int64 [positions]
    entropies: np.ndarray  # int32 [positions]
    near: np.ndarray  # int32 [positions], of the true tokens
    starts: np.ndarray  # int64 [chunks]
    lengths: np.ndarray  # int32 [chunks]


class _Runs(NamedTuple):
    """Runs of positions with the same states: a run begins where bits enter, or with a chunk."""

    runs: np.ndarray  # int32 [runs, RUN_FIELDS]
    chunk_runs: np.ndarray  # int32 [chunks, 2], the first run of each chunk and how many it has
    bits: np.ndarray  # int64 [runs], the number of the first bit that enters, among those of all chunks


@kernel
def _find_runs(share, entropies, starts, lengths, sizes, runs, chunk_runs, bits):
    """Fill arrays that have room for a run at each position; returns how many runs there are. sizes: int64, bytes."""
    count, before = 0, np.int64(0)
    for chunk in range(len(starts)):
        used, entropy_sum, room = np.int64(0), np.int64(0), 8 * sizes[chunk]
        chunk_runs[chunk, 0] = count
        for t in range(starts[chunk], starts[chunk] + lengths[chunk]):
            entropy_sum += capped(entropies[t])
            new = new_bits(share, entropy_sum, used, room)
            if new > 0 or t == starts[chunk]:
                runs[count, 0], runs[count, 2], bits[count] = t, new, before + used
                count += 1
            runs[count - 1, 1] = t + 1
            used += new
        chunk_runs[chunk, 1] = count - chunk_runs[chunk, 0]
        before += room
    return count


def _runs_of(packed: _Packed, sizes: list[int], share: int) -> _Runs:
    positions = len(packed.tokens)
    runs = np.empty((positions, RUN_FIELDS), dtype=np.int32)
    bits, chunk_runs = np.empty(positions, dtype=np.int64), np.empty((len(sizes), 2), dtype=np.int32)
    count = _find_runs(
        share, packed.entropies, packed.starts, packed.lengths, np.array(sizes, dtype=np.int64), runs, chunk_runs, bits
    )
    return _Runs(runs[:count], chunk_runs, bits[:count])


class GpuSearch:
    """`search.search` on the device of an LM."""

    def __init__(self, coder: Coder, sizes: Sizes | None = None) -> None:
        self._coder = coder
        self._on_cuda = coder.lm.device.type == "cuda"
        self._sizes = sizes or (ON_GPU if self._on_cuda else INTERPRETED)
        self._staged: dict[int, torch.Tensor] = {}  # bytes of each field of `_Packed`, which are used again

    def __call__(
        self, predictions: list[Predictions], steering: Steering, share: int, effort: int, team: Team
    ) -> list[bytes]:
        """Returns for each chunk the cheapest memory that the beam search finds: see `search.search`."""
        if effort > MOST_STATES:
            return search(predictions, steering, share, effort, team)
        sizes = [memory_bytes(predicted.entropy, share) if share else 0 for predicted in predictions]
        memories = [b""] * len(predictions)
        lengths = [len(predicted.tokens) for predicted in predictions]
        searched = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -lengths[i])
        for some in self._batches(searched, lengths):
            found = self._found([predictions[i] for i in some], [sizes[i] for i in some], steering, share, effort)
            for i, memory in zip(some, found, strict=True):
                memories[i] = memory
        return memories

    def _batches(self, chunks: list[int], lengths: list[int]) -> Iterator[list[int]]:
        """Chunks that are searched together."""
        some, positions = list[int](), 0
        for i in chunks:
            if some and positions + lengths[i] > self._sizes.positions:
                yield some
                some, positions = [], 0
            some.append(i)
            positions += lengths[i]
        if some:
            yield some

    def _found(
        self, predictions: list[Predictions], sizes: list[int], steering: Steering, share: int, effort: int
    ) -> list[bytes]:
        """The memories of some chunks, the longest first. sizes: in bytes, none of them 0."""
        packed = self._pack(predictions)
        runs = _runs_of(packed, sizes, share)
        prepared = self._prepared(packed, steering, share)
        entered = self._beam(prepared, runs, steering, effort).cpu().numpy()
        bits, new = np.zeros(8 * sum(sizes), dtype=np.uint8), runs.runs[:, 2]
        for i in range(MOST_NEW):
            some = np.flatnonzero(i < new)
            bits[runs.bits[some] + i] = entered[some] >> (new[some] - 1 - i) & 1
        memory = np.packbits(bits, bitorder="little").tobytes()
        ends = list(accumulate(sizes))
        return [memory[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _pack(self, predictions: list[Predictions]) -> _Packed:
        """The arrays of chunks, which the next call overwrites."""
        near = [one.near[np.arange(len(one.tokens)), one.tokens % BLOCK] for one in predictions]
        parts = [*zip(*[(one.ids, one.below, one.tokens, one.total, one.entropy) for one in predictions], strict=True)]
        lengths = np.array([len(one.tokens) for one in predictions], dtype=np.int32)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        ids, below, tokens, totals, entropies, of_tokens = map(self._joined, range(6), (*parts, near))
        return _Packed(ids, below, tokens, totals, entropies, of_tokens, starts, lengths)

    def _joined(self, field: int, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Arrays one after the other, in memory from which the GPU copies without a detour."""
        size = sum(part.nbytes for part in parts)
        if field not in self._staged or len(self._staged[field]) < size:
            self._staged[field] = torch.empty(power_of_two(size), dtype=torch.uint8, pin_memory=self._on_cuda)
        first = parts[0]
        out: np.ndarray = self._staged[field].numpy()[:size].view(first.dtype).reshape(-1, *first.shape[1:])
        np.concatenate(parts, out=out)
        return out

    def _prepared(self, packed: _Packed, steering: Steering, share: int) -> list[torch.Tensor]:
        """What `prepare` writes."""
        coder, positions, chunks = self._coder, len(packed.tokens), len(packed.lengths)
        t, device, hidden = coder.lm.tensors, coder.lm.device, coder.lm.architecture.hidden
        # The arrays in pinned memory are not changed before the host has waited for what the search finds.
        given = [torch.from_numpy(array).to(device, non_blocking=True) for array in packed[:6]]
        given += [coder.tensor(packed.starts), coder.tensor(packed.lengths)]
        prepared = [
            torch.empty(positions, COMPETITORS, FEATURES, dtype=torch.int8, device=device),
            *(torch.empty(positions, COMPETITORS, dtype=torch.float32, device=device) for _ in range(2)),
            torch.empty(positions, POSITION_FIELDS, dtype=torch.int32, device=device),
        ]
        launch(
            _kernels.prepare, (int(packed.lengths[0]), -(-chunks // self._sizes.chunks)), *given[:6], t["head"],
            t["head.scale"], coder.powers, *given[6:], *prepared, chunks, share, warps=8,
            CHUNKS=self._sizes.chunks, SIZE=hidden, DEPTH=max(min(power_of_two(hidden), self._sizes.depth), 32),
            UNIT=float(steering.unit),
        )  # fmt: skip
        return prepared

    def _beam(self, prepared: list[torch.Tensor], runs: _Runs, steering: Steering, effort: int) -> torch.Tensor:
        """What `beam` finds, int32 [runs]."""
        coder, device = self._coder, self._coder.lm.device
        states = max(power_of_two(effort), 64)
        tile = min(states, self._sizes.tile)
        warps, programs = max(tile // 32, 4), self._sizes.programs
        room = int(runs.chunk_runs[:, 1].max())
        if self._on_cuda:
            programs = torch.cuda.get_device_properties(device).multi_processor_count * (self._sizes.warps // warps)
        scratch = states * (2 * 4 + 2 * 4 + room)  # bytes of a program
        programs = max(1, min(programs, len(runs.chunk_runs), self._sizes.scratch // scratch))
        windows, costs = (torch.empty(programs, 2, states, dtype=torch.int32, device=device) for _ in range(2))
        kept = torch.empty(programs, room, states // 2, dtype=torch.int16, device=device)
        entered = torch.empty(len(runs.runs), dtype=torch.int32, device=device)
        launch(
            _kernels.beam, (programs,), *prepared, coder.tensor(runs.runs), coder.tensor(runs.chunk_runs),
            coder.tensor(steering.parities.view(np.int64)), coder.logarithms, windows, costs, kept, entered,
            len(runs.chunk_runs), effort, room, warps=warps, registers=self._sizes.registers, STATES=states, TILE=tile,
        )  # fmt: skip
        return entered


@cache
def failure(device: str) -> str:
    """Why the search cannot be used on a device of torch; empty if it finds what the search on the CPU finds.

    With the effort whose kernels are those of the default.
    """
    return gpu_check.failure(_searches_exactly, "the search for memories", device)


def _searches_exactly(of: gpu_check.Example) -> bool:
    settings = of.steering, _TESTED_SHARE, MOST_STATES, team_of(1)
    return GpuSearch(of.coder)([of.expected], *settings) == search([of.expected], *settings)
