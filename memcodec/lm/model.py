"""The exact LM as the codec sees it: passes over new positions of some sequences, and their logits."""

import ctypes
import os
import sys
from copy import copy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from memcodec.errors import EncodeError
from memcodec.lm import arithmetic, kernels, selftest
from memcodec.lm.architecture import Architecture
from memcodec.lm.compiled import Team, team_of
from memcodec.lm.product import COLUMNS, TILE_ROWS, columns_of, multiply_matrices, panels
from memcodec.lm.sequences import Rows, SequenceInput, Sequences, check_numbers, check_pass, check_step
from memcodec.lm.weights import ExactWeights, Head

compute: Any = kernels  # kernels, which have no types
PAGE = 2 * COLUMNS  # positions in a cache are a multiple of it
_READ_ROWS = 400  # positions of a prefix in one pass


class ExactLM:
    """A frozen LM whose logits are the same integers on every machine.

    identity: SHA-256 of all that is computed with; positions: that it can tell apart; prefix: int64, the token ids
    before every chunk.
    """

    def __init__(
        self, weights: ExactWeights, device: str = "auto", threads: int | None = None, kernels: str = "auto"
    ) -> None:
        """device: "auto", "cpu" or "cuda"; threads: on the CPU, by default one a core that this process may use.

        kernels: "numba" (CPU only), "torch", or "auto". Raises ModelNotFoundError and MachineError.
        """
        self.architecture: Architecture = weights.architecture
        self.prefix = np.array(weights.prefix, dtype=np.int64)
        self.identity = weights.identity
        self.positions = weights.architecture.positions
        self.vocabulary = weights.architecture.vocabulary
        if threads is not None and not 1 <= threads <= 1024:
            raise EncodeError(f"threads {threads}: give 1 to 1024")
        if kernels not in ("auto", "numba", "torch") or (kernels == "numba" and device not in ("auto", "cpu")):
            raise EncodeError(f"kernels {kernels!r} on {device!r}: give auto or torch, or numba on the CPU")
        self._start: Any = None
        self._unprimed_length = len(self.prefix)
        self.team = team_of(threads or cores())
        name = "embedding" if weights.architecture.tied else "head"
        tensors = weights.tensors
        self.head = Head(tensors[name], tensors[name + ".scale"], float(tensors["spread"][0]))
        self.device = "cpu" if kernels == "numba" else find_device(device)
        self._device_lm: Any = None  # a DeviceLM, where torch computes
        if self.device != "cpu" or kernels == "torch":
            from memcodec.lm.device import DeviceLM

            slowly = _slowly_on_device(self.device)
            self._device_lm = DeviceLM(weights, self.device, slowly)
        else:
            self.sizes = _sizes(weights.architecture, _slowly_on_cpu(self.team))
            self.weights = _pack(weights)

    def sequences(self, slots: int, positions: int, rows: int) -> Sequences:
        """Room for so many sequences of so many positions, and so many rows in one pass at most."""
        if self._device_lm is not None:
            return self._device_lm.sequences(slots, positions)
        return CpuSequences(self, slots, positions, rows)

    def new_sequences(self, slots: int, positions: int, rows: int) -> Sequences:
        """The same, for sequences that have read the prefix; on the CPU they share what is cached of it."""
        if self._device_lm is not None:
            return self._device_lm.sequences(slots, positions, self.start)
        return CpuSequences(self, slots, positions, rows, self.start)

    @property
    def start(self) -> Any:
        """What the prefix leaves: `Start`, or what a device has of it; with the logits of a first token."""
        if self._start is None:
            if self._device_lm is not None:
                self._start = self._device_lm.start(self.prefix)
            else:
                self._start = _start_of(self)
        return self._start

    @property
    def own_prefix(self) -> int:
        """Positions of the prefix that each sequence has in its own cache; the rest is shared."""
        return len(self.prefix) % PAGE if self._device_lm is None else len(self.prefix)

    @property
    def is_unprimed(self) -> bool:
        """Whether only the prefix that all documents share stands before a first token, and no primer."""
        return len(self.prefix) == self._unprimed_length

    def behind(self, tokens: np.ndarray) -> "ExactLM":
        """The same LM, where more tokens belong to the prefix, int64 [tokens]. Raises EncodeError where too many."""
        other = copy(self)
        other.prefix, other._start = np.concatenate([self.prefix, tokens]), None
        if len(other.prefix) >= self.positions:
            raise EncodeError(f"a primer of {len(tokens)} tokens: this model has {self.positions} positions")
        return other


@dataclass(frozen=True)
class Start:
    """What a prefix leaves on the CPU, int8 and float32 [layers, key_heads, ...].

    shared: its positions in whole pages, whose keys and values all sequences read; what is left, each has a copy of.
    logits: int32 [columns], of what follows.
    """

    length: int
    shared: int
    keys: np.ndarray  # [..., shared * head_size]
    values: np.ndarray  # [..., width, shared]
    rest_keys: np.ndarray  # [..., PAGE * head_size]
    rest_values: np.ndarray  # [..., width / COLUMNS, PAGE * COLUMNS]
    key_scale: np.ndarray  # [..., length]
    value_scale: np.ndarray
    logits: np.ndarray


def _start_of(lm: ExactLM) -> Start:
    a, n = lm.architecture, len(lm.prefix)
    sequences = CpuSequences(lm, 1, n, min(n, _READ_ROWS))
    for first in range(0, n, _READ_ROWS):
        part = lm.prefix[first : first + _READ_ROWS]
        sequences.forward([SequenceInput(0, part)])
    logits = sequences.logits(slice(len(part) - 1, len(part)))[0].copy()
    cache, shared = sequences._cache, n // PAGE * PAGE
    keys = cache.keys[:, 0]
    values = cache.values[:, 0].reshape(a.layers, a.key_heads, -1, cache.key_scale.shape[3] * COLUMNS)
    rest_keys = np.zeros((a.layers, a.key_heads, PAGE * a.head_size), dtype=np.int8)
    rest_values = np.zeros((*values.shape[:3], PAGE * COLUMNS), dtype=np.int8)
    if n > shared:
        rest_keys[:] = keys[..., shared * a.head_size :]
        rest_values[:] = values[..., shared * COLUMNS :]
    return Start(
        n, shared, np.ascontiguousarray(keys[..., : shared * a.head_size]),
        np.ascontiguousarray(values[..., : shared * COLUMNS]), rest_keys, rest_values,
        cache.key_scale[:, 0, :, :n].copy(), cache.value_scale[:, 0, :, :n].copy(), logits,
    )  # fmt: skip


class CpuSequences:
    """`Sequences` on the CPU."""

    def __init__(self, lm: ExactLM, slots: int, positions: int, rows: int, start: Start | None = None) -> None:
        a = lm.architecture
        self._positions = min(positions, lm.positions)
        shared = 0 if start is None else start.shared
        own = max(1, -(-(positions - shared) // PAGE)) * PAGE
        positions = shared + own
        width = -(-a.head_size // COLUMNS) * COLUMNS
        heads = (a.layers, slots, a.key_heads)
        self._lm = lm
        self._first = 0 if start is None else start.length
        self._lengths = np.full(slots, self._first, dtype=np.int64)
        keys = np.zeros((*heads, own * a.head_size), dtype=np.int8)
        values = np.zeros((*heads, own * width), dtype=np.int8)
        scales = [np.zeros((*heads, positions), dtype=np.float32) for _ in range(2)]
        common = [np.zeros(0, dtype=np.int8)] * 2
        if start is not None:
            common = [start.keys.reshape(-1), start.values.reshape(-1)]
            keys[..., : PAGE * a.head_size] = start.rest_keys[:, None]
            values.reshape(*heads, -1, own * COLUMNS)[..., : PAGE * COLUMNS] = start.rest_values[:, None]
            scales[0][..., : start.length] = start.key_scale[:, None]
            scales[1][..., : start.length] = start.value_scale[:, None]
        self._cache = kernels.Cache(
            keys, keys.reshape(-1), scales[0], values, values.reshape(-1), scales[1], shared, *common
        )
        w = lm.weights
        mixed = a.heads * a.head_size
        widest = max(w.qkv_scale.shape[1], -(-a.inner // COLUMNS) * COLUMNS, a.hidden, mixed)
        workers = lm.team.workers
        tall = max(TILE_ROWS, a.heads // a.key_heads)
        inputs = np.empty((rows, max(a.hidden, mixed, a.inner)), dtype=np.int16)
        self._room = kernels.Room(
            np.empty((rows, a.hidden), dtype=np.float32),
            inputs,
            inputs.reshape(-1),
            np.empty(rows, dtype=np.float32),
            np.empty((rows, widest), dtype=np.float32),
            np.empty((rows, mixed), dtype=np.int16),
            np.empty((rows, a.heads), dtype=np.float32),
            _rooms(workers, 2 * tall * COLUMNS, np.int32),
            _rooms(workers, COLUMNS, np.float32),
            _rooms(workers, COLUMNS, np.int32),
            _rooms(workers, tall * a.head_size, np.int16),
            _rooms(workers, tall, np.float32),
            _rooms(workers, tall * positions, np.int32),
            _rooms(workers, positions, np.float32),
            _rooms(workers, tall * positions, np.int16),
            np.zeros(1, dtype=np.int64),
        )
        self._logits = np.empty((0, len(w.head_scale)), dtype=np.int32)

    def forward(self, pieces: list[SequenceInput]) -> None:
        """One pass."""
        lm = self._lm
        check_pass(pieces, self._lengths, self._positions, lm.vocabulary)
        slots = np.array([piece.slot for piece in pieces], dtype=np.int64)
        counts = np.array([len(piece.tokens) for piece in pieces], dtype=np.int64)
        starts = self._lengths[slots]
        tokens, vectors = [], [np.empty((0, lm.architecture.hidden), dtype=np.float32)]
        seen = 0
        for piece in pieces:
            if piece.vectors is None:
                tokens.append(piece.tokens)
            else:
                tokens.append(np.where(piece.tokens < 0, piece.tokens - seen, piece.tokens))
                vectors.append(piece.vectors)
                seen += len(piece.vectors)
        flat, given = np.concatenate(tokens), np.concatenate(vectors)
        row_slot = np.repeat(slots, counts)
        row_position = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)])
        self._compute(flat, given, row_slot, row_position, slots, starts, counts)

    def step(self, tokens: np.ndarray) -> None:
        """One token of each of the first sequences."""
        lm = self._lm
        check_step(tokens, self._lengths, self._positions, lm.vocabulary)
        slots = np.arange(len(tokens))
        starts = self._lengths[: len(tokens)].copy()
        nothing = np.empty((0, lm.architecture.hidden), dtype=np.float32)
        self._compute(tokens, nothing, slots, starts, slots, starts, np.ones(len(tokens), dtype=np.int64))

    def _compute(
        self, flat: np.ndarray, given: np.ndarray, row_slot: np.ndarray, row_position: np.ndarray, slots: np.ndarray,
        starts: np.ndarray, counts: np.ndarray,
    ) -> None:  # fmt: skip
        """One pass: each row's token, slot and position; each sequence's slot, start and new positions."""
        lm, room = self._lm, self._room
        if len(flat) > len(room.x):
            raise EncodeError(f"{len(flat)} rows in a pass: there is room for {len(room.x)}")
        rows = (flat, given, row_slot, row_position, slots, starts, counts)
        room.barrier[0] = 0

        def work(worker: int, workers: int) -> None:
            compute.forward(lm.sizes, lm.weights, self._cache, room, *rows, worker, workers)

        lm.team.run(work)
        check_numbers(room.input_scale[: len(flat)])
        self._lengths[slots] += counts

    def restart(self) -> None:
        """Begin anew."""
        self._lengths[:] = self._first

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of some rows of the last pass."""
        lm, room, w = self._lm, self._room, self._lm.weights
        inputs, scale = room.inputs[rows], room.input_scale[rows]
        if len(self._logits) < len(inputs):
            self._logits = np.empty((len(inputs), len(w.head_scale)), dtype=np.int32)
        out, flat = self._logits[: len(inputs)], inputs.reshape(-1)

        def work(worker: int, workers: int) -> None:
            compute.logits_of(lm.sizes, w.head, w.head_scale, flat, inputs.shape[1], len(inputs), scale,
                          room.tile, out, worker, workers)  # fmt: skip

        lm.team.run(work)
        return out


def logits_of(lm: ExactLM, tokens: np.ndarray) -> np.ndarray:
    """Logits that follow each of some tokens, which nothing precedes, int32 [tokens, vocabulary]."""
    sequences = lm.sequences(1, len(tokens), len(tokens))
    sequences.forward([SequenceInput(0, tokens)])
    return sequences.logits(slice(None, len(tokens)))[:, : lm.vocabulary].copy()


# ---- what is at hand


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_device(name: str) -> str:
    """The device that a name means here; torch is asked only where there may be another than the CPU.

    Raises ModelNotFoundError, MachineError.
    """
    if name == "cpu" or (name == "auto" and not (_has_cuda_driver() and find_spec("torch"))):
        return "cpu"
    from memcodec.lm.device import check_device

    return check_device(name)


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


@cache
def _slowly_on_cpu(team: Team) -> bool:
    """Whether the CPU's kernels must multiply one by one, run by these threads. Raises MachineError."""

    def make(slowly: bool) -> tuple[selftest.Product, selftest.Logits]:
        def logits(weights: ExactWeights, tokens: np.ndarray) -> np.ndarray:
            lm = ExactLM.__new__(ExactLM)
            lm.architecture, lm.vocabulary = weights.architecture, weights.architecture.vocabulary
            lm.positions, lm.team, lm._device_lm = weights.architecture.positions, team, None
            lm._start = None
            lm.sizes, lm.weights = _sizes(weights.architecture, slowly), _pack(weights)
            return logits_of(lm, tokens)

        return (lambda left, right: multiply_matrices(left, right, slowly)), logits

    return selftest.choose(make, "the CPU")


@cache
def _slowly_on_device(device: str) -> bool:
    """Whether torch's integer products on a device must be made of float32's. Raises MachineError."""
    from memcodec.lm.device import DeviceLM, product_of

    def make(slowly: bool) -> tuple[selftest.Product, selftest.Logits]:
        def logits(weights: ExactWeights, tokens: np.ndarray) -> np.ndarray:
            sequences = DeviceLM(weights, device, slowly).sequences(1, len(tokens))
            sequences.forward([SequenceInput(0, tokens)])
            return sequences.logits(slice(None))

        return (lambda left, right: product_of(left, right, device, slowly)), logits

    return selftest.choose(make, f"{device}, with torch")


def _sizes(a: Architecture, slowly: bool) -> kernels.Sizes:
    limits = [np.float32(arithmetic.highest_input(n)) for n in (a.hidden, a.heads * a.head_size, a.inner)]
    return compute.Sizes(
        a.hidden, a.layers, a.heads, a.key_heads, a.head_size, a.inner, int(a.gated), int(a.layer_norm),
        int(a.head_norm), int(a.rotary is not None), int(slowly), float(a.epsilon),
        arithmetic.attention_scale(a.head_size), *limits, np.float32(arithmetic.highest_query(a.head_size)),
    )  # fmt: skip


def _rooms(workers: int, size: int, dtype: type) -> np.ndarray:
    """Room for each worker, [workers, size or more], far enough from the next one's that no cache line is shared."""
    return np.empty((workers, size + 256 // np.dtype(dtype).itemsize), dtype=dtype)


def _gate_columns(inner: int) -> np.ndarray:
    """As `columns_of`, for rows of a gate and then of what it gates: 16 of each in turn."""
    half = COLUMNS // 2
    blocks = np.full((-(-inner // half), 2, half), -1, dtype=np.int64)
    for row in range(inner):
        for which in range(2):
            blocks[row // half, which, row % half] = which * inner + row
    return blocks.reshape(-1)


def _pack(exact: ExactWeights) -> kernels.Weights:
    """The weights as the kernels want them."""
    a, tensors = exact.architecture, exact.tensors

    def row(name: str, size: int, fill: float, count: int | None = a.layers) -> np.ndarray:
        shape = (size,) if count is None else (count, size)
        return tensors.get(name, np.full(shape, fill, dtype=np.float32))

    def linear(name: str, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = _gate_columns(a.inner) if name == "up" and a.gated else columns_of(rows)
        packed = np.stack([panels(layer, columns) for layer in tensors[name]])
        scale, bias = (
            np.where(columns < 0, np.float32(0), x[:, columns])
            for x in (tensors[name + ".scale"], row(name + ".bias", rows, 0))
        )
        return packed, scale, bias

    heads = (a.heads + 2 * a.key_heads) * a.head_size
    head = "embedding" if a.tied else "head"
    words = columns_of(a.vocabulary)
    head_scale = np.where(words < 0, np.float32(0), tensors[head + ".scale"][words])
    flat = np.zeros((1, a.head_size // 2), dtype=np.float32)
    return compute.Weights(
        tensors["embedding"], tensors["embedding.scale"],
        tensors.get("position", np.empty((0, a.hidden), dtype=np.float32)),
        row("attention.gain", a.hidden, 1), row("attention.shift", a.hidden, 0),
        row("mlp.gain", a.hidden, 1), row("mlp.shift", a.hidden, 0),
        row("query.gain", a.head_size, 1), row("key.gain", a.head_size, 1),
        *linear("qkv", heads), *linear("mix", a.hidden),
        *linear("up", (1 + a.gated) * a.inner), *linear("down", a.hidden),
        row("gain", a.hidden, 1, None), row("shift", a.hidden, 0, None),
        panels(tensors[head], words), head_scale,
        tensors.get("cosine", flat), tensors.get("sine", flat), arithmetic.gate(a.gate), arithmetic.powers(),
    )  # fmt: skip
