"""The exact LM on a CPU: the state between passes, and the calls of the kernels."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from memcodec.errors import EncodeError
from memcodec.lm import kernels, layout, selftest
from memcodec.lm.instructions import CHOSEN, COLUMNS
from memcodec.lm.layout import PAGE
from memcodec.lm.product import multiply_matrices, padded
from memcodec.lm.rotation import rotated_vectors
from memcodec.lm.sequences import ON_CPU, READ_ROWS, Rows, SequenceInput, check_numbers, check_pass, check_step, joined
from memcodec.lm.team import Team
from memcodec.lm.weight_cache import AnyWeights
from memcodec.lm.weights import ExactWeights

_kernels: Any = kernels  # compiled functions have no types


@dataclass(frozen=True)
class PrefixState:
    """The state after a prefix: its keys and values, as in `layout.Cache`, [layers, key_heads, ...].

    shared: its positions in whole pages, whose keys and values are stored once for all sequences; each sequence has a
    copy of the rest. logits: int32 [columns], of the token after the prefix.
    """

    length: int
    shared: int
    keys: np.ndarray  # [..., shared * padded head_size]
    values: np.ndarray  # [..., width / COLUMNS, shared * COLUMNS]
    rest_keys: np.ndarray  # [..., PAGE * padded head_size]
    rest_values: np.ndarray  # [..., width / COLUMNS, PAGE * COLUMNS]
    key_scale: np.ndarray  # [..., length]
    value_scale: np.ndarray
    logits: np.ndarray


class CpuLM:
    """The layers on a CPU, run by the threads of a team."""

    def __init__(self, weights: AnyWeights, team: Team, plain: bool) -> None:
        """plain: see `product.multiply`."""
        self.kernels = f"numba, {'plain' if plain else CHOSEN.name}"
        self.has_coder = False
        self.capacity = ON_CPU
        self.architecture = weights.architecture
        self.vocabulary = weights.architecture.vocabulary
        self.team = team
        self.sizes = layout.sizes_of(weights.architecture, plain)
        self.weights = layout.pack(weights.architecture, weights.tensors, team)

    def sequences(self, slots: int, positions: int, rows: int, prefix: PrefixState | None = None) -> "CpuSequences":
        """A cache for `slots` sequences of `positions` positions, and buffers for passes of up to `rows` rows.

        prefix: the state after the prefix that they have read already.
        """
        return CpuSequences(self, slots, positions, rows, prefix)

    def prefix_state(self, prefix: np.ndarray) -> PrefixState:
        """The state after a prefix, int64 [tokens]."""
        a, n = self.architecture, len(prefix)
        sequences = CpuSequences(self, 1, n, min(n, READ_ROWS))
        for first in range(0, n, READ_ROWS):
            tokens = prefix[first : first + READ_ROWS]
            sequences.forward([SequenceInput(0, tokens)])
        logits = sequences.logits(slice(len(tokens) - 1, len(tokens)))[0].copy()
        cached, shared = sequences.cache, n // PAGE * PAGE
        keys, size = cached.keys[:, 0], padded(a.head_size)
        values = cached.values[:, 0].reshape(a.layers, a.key_heads, -1, cached.key_scale.shape[3] * COLUMNS)
        rest_keys = np.zeros((a.layers, a.key_heads, PAGE * size), dtype=np.uint8)
        rest_values = np.zeros((*values.shape[:3], PAGE * COLUMNS), dtype=np.int8)
        if n > shared:
            rest_keys[:] = keys[..., shared * size :]
            rest_values[:] = values[..., shared * COLUMNS :]
        return PrefixState(
            n, shared, np.ascontiguousarray(keys[..., : shared * size]),
            np.ascontiguousarray(values[..., : shared * COLUMNS]), rest_keys, rest_values,
            cached.key_scale[:, 0, :, :n].copy(), cached.value_scale[:, 0, :, :n].copy(), logits,
        )  # fmt: skip

    def own_positions(self, prefix: int) -> int:
        """The number of positions of a prefix of this length that each sequence stores itself."""
        return prefix % PAGE


class CpuSequences:
    """`Sequences` on a CPU."""

    def __init__(self, lm: CpuLM, slots: int, positions: int, rows: int, prefix: PrefixState | None = None) -> None:
        a = lm.architecture
        self._lm = lm
        self._positions = min(positions, a.positions)
        self._first = 0 if prefix is None else prefix.length
        self._lengths = np.full(slots, self._first, dtype=np.int64)
        shared = 0 if prefix is None else prefix.shared
        own = max(1, -(-(positions - shared) // PAGE)) * PAGE
        self.cache = layout.new_cache(a, slots, own, shared)
        if prefix is not None:
            self._copy(prefix, own)
        self._space = layout.new_workspace(a, lm.team.workers, rows, shared + own)
        self._count = 0  # rows of the last pass
        self._logits = np.empty((0, len(lm.weights.head_scale)), dtype=np.int32)

    def _copy(self, prefix: PrefixState, own: int) -> None:
        """Copy the state after a prefix into every slot."""
        a, c = self._lm.architecture, self.cache
        self.cache = c._replace(shared_keys=prefix.keys.reshape(-1), shared_values=prefix.values.reshape(-1))
        c.keys[..., : PAGE * padded(a.head_size)] = prefix.rest_keys[:, None]
        values = c.values.reshape(*c.values.shape[:3], -1, own * COLUMNS)
        values[..., : PAGE * COLUMNS] = prefix.rest_values[:, None]
        c.key_scale[..., : prefix.length] = prefix.key_scale[:, None]
        c.value_scale[..., : prefix.length] = prefix.value_scale[:, None]

    def forward(self, inputs: list[SequenceInput]) -> None:
        """One pass."""
        lm = self._lm
        check_pass(inputs, self._lengths, self._positions, lm.vocabulary)
        slots = np.array([one.slot for one in inputs], dtype=np.int64)
        counts = np.array([len(one.tokens) for one in inputs], dtype=np.int64)
        tokens, vectors = joined(inputs, lm.architecture.hidden)
        entering = rotated_vectors(vectors, lm.architecture.layer_norm)
        starts = self._lengths[slots]
        position = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)])
        rows = np.repeat(slots, counts)
        self._run(layout.Rows(tokens, entering, rows, position, slots, counts))

    def step(self, tokens: np.ndarray) -> None:
        """One token of each of the first sequences."""
        lm, tokens = self._lm, np.ascontiguousarray(tokens)  # another layout would compile all kernels again
        check_step(tokens, self._lengths, self._positions, lm.vocabulary)
        slots = np.arange(len(tokens))
        positions = self._lengths[: len(tokens)].copy()
        vectors = np.empty((0, lm.architecture.hidden), dtype=np.float32)
        ones = np.ones(len(tokens), dtype=np.int64)
        self._run(layout.Rows(tokens, vectors, slots, positions, slots, ones))

    def _run(self, rows: layout.Rows) -> None:
        lm, space, count = self._lm, self._space, len(rows.tokens)
        if count > len(space.x):
            raise EncodeError(f"{count} rows in a pass: there is room for {len(space.x)}")
        space.counters[:] = 0

        def work(worker: int, workers: int) -> None:
            _kernels.forward(lm.sizes, lm.weights, self.cache, space, rows, worker, workers)

        self._count = count
        lm.team.run(work)
        check_numbers(space.input_scale[:count])
        self._lengths[rows.slots] += rows.counts

    def restart(self) -> None:
        """Return all sequences to where they began."""
        self._lengths[:] = self._first

    def placed_logits(self, rows: Rows) -> np.ndarray:
        """The same as `logits`: they are on the host."""
        return self.logits(rows)

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of some rows of the last pass."""
        lm, space, w = self._lm, self._space, self._lm.weights
        taken = np.arange(self._count)[rows]
        if len(self._logits) < len(taken):
            self._logits = np.empty((len(taken), len(w.head_scale)), dtype=np.int32)
        out = self._logits[: len(taken)]
        space.counters[:] = 0

        def work(worker: int, workers: int) -> None:
            _kernels.logits_of(lm.sizes, w.head, w.head_scale, w.head_bias, space, taken, out, worker, workers)

        lm.team.run(work)
        return out


@cache
def needs_fallback(team: Team) -> bool:
    """Whether this machine needs the fallback products of the CPU kernels. Raises MachineError (see `selftest`)."""

    def implementation(plain: bool) -> tuple[selftest.Product, selftest.Logits]:
        def logits(weights: ExactWeights, tokens: np.ndarray) -> np.ndarray:
            sequences = CpuLM(weights, team, plain).sequences(1, len(tokens), len(tokens))
            sequences.forward([SequenceInput(0, tokens)])
            return sequences.logits(slice(None, len(tokens)))[:, : weights.architecture.vocabulary]

        return (lambda left, right: multiply_matrices(left, right, plain)), logits

    advice = "try MEMCODEC_INSTRUCTIONS=vectors-16, and report it"
    return selftest.choose(implementation, f"the CPU ({CHOSEN.name})", advice)
