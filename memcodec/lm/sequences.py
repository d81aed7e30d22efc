"""Passes of an LM over new positions of some sequences: their input, their results, and the checks of both."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from memcodec.errors import EncodeError, ModelNotFoundError

Rows = slice | np.ndarray


@dataclass(frozen=True)
class Capacity:
    """How much is computed at one time, so that the processor is busy and memory is enough. No result depends on it.

    rows: the most positions in one full pass; head_rows: the most of them whose logits exist at one time; sequences:
    the most in one full pass, and side by side in the steps of a decoder, each with a cache; positions: the most in the
    caches of a batch, if it has more than one sequence; fitted: memories are searched together for chunks of about this
    many tokens in all, or for as many as on a CPU (`groups.FIT_CHUNKS`), whichever is more.
    """

    rows: int
    head_rows: int
    sequences: int
    positions: int
    fitted: int = 0


# Activations of more rows do not fit the processor's cache. With the default model, logits take 9 MB, and the caches of
# a batch 400 MB.
ON_CPU = Capacity(rows=400, head_rows=48, sequences=64, positions=1 << 15)
READ_ROWS = ON_CPU.rows  # positions that are read in one pass where only the cache is wanted, such as a prefix


@dataclass(frozen=True)
class SequenceInput:
    """New positions of one sequence: token ids, int64 [positions]; -1 - i is vectors[i], float32 [n, hidden]."""

    slot: int
    tokens: np.ndarray
    vectors: np.ndarray | None = None


def joined(inputs: list[SequenceInput], hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of all inputs, int64 [rows], and their vectors, float32 [n, hidden]; -1 - i is vector i."""
    tokens, vectors = [], [np.empty((0, hidden), dtype=np.float32)]
    before = 0  # vectors of the previous sequences
    for one in inputs:
        if one.vectors is None:
            tokens.append(one.tokens)
        else:
            tokens.append(np.where(one.tokens < 0, one.tokens - before, one.tokens))
            vectors.append(one.vectors)
            before += len(one.vectors)
    return np.concatenate(tokens), np.concatenate(vectors)


class Sequences(Protocol):
    """The sequences that an LM is reading: the cache of each, and the logits of the last pass."""

    def forward(self, inputs: list[SequenceInput]) -> None:
        """One pass. The slots of the inputs must be in ascending order."""

    def step(self, tokens: np.ndarray) -> None:
        """One pass over one token of each of the first sequences, int64 [rows]."""

    def restart(self) -> None:
        """Return all sequences to where they began: position 0, or the end of the prefix."""

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of some rows of the last pass, int32 [rows, columns >= vocabulary] in units.

        The next call overwrites the returned array.
        """

    def placed_logits(self, rows: Rows) -> Any:
        """The same where the coder takes them: an array, or a tensor on a device if `Implementation.has_coder`."""


class Implementation(Protocol):
    """An implementation of the exact LM: for the CPU, in Triton, or in torch.

    kernels: a description of what computes its products, for measurements; has_coder: whether it has kernels for the
    coder, which then runs on the device where the logits are, not on the host (it becomes false if they fail their
    self-test); capacity: how much it computes at one time.
    """

    kernels: str
    has_coder: bool
    capacity: Capacity

    def sequences(self, slots: int, positions: int, rows: int, prefix: Any = None) -> Sequences:
        """A cache of `slots` sequences of `positions` positions, for passes of up to `rows` rows.

        prefix: what `prefix_state` returned for the prefix that the sequences have read; None without a prefix.
        """

    def prefix_state(self, prefix: np.ndarray) -> Any:
        """The state after a prefix, int64 [tokens]; its `logits` are those of the next token, int32 [columns]."""

    def own_positions(self, prefix: int) -> int:
        """The number of positions of a prefix of this length that each sequence stores; the others are stored once."""


def check_numbers(scales: np.ndarray) -> None:
    """Raise ModelNotFoundError if a pass left a NaN or infinity, which stays in a row through all layers.

    scales: of the rows, float32 [rows].
    """
    if not np.isfinite(scales).all():
        raise ModelNotFoundError("the model's activations exceed the range of float32: choose another model")


def check_step(tokens: np.ndarray, lengths: np.ndarray, limit: int, vocabulary: int) -> None:
    """Like `check_pass`, for a step."""
    if len(tokens) > len(lengths):
        raise EncodeError(f"{len(tokens)} sequences in a step: the cache has room for {len(lengths)}")
    if lengths[: len(tokens)].max(initial=0) >= limit:
        raise EncodeError(f"{limit + 1} positions in a sequence: the cache has room for {limit}")
    if not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise EncodeError(f"a token id out of range: give 0 to {vocabulary - 1}")


def check_pass(inputs: list[SequenceInput], lengths: np.ndarray, limit: int, vocabulary: int) -> None:
    """Raise EncodeError if a pass would exceed the cache or the vocabulary, since kernels check no bounds.

    lengths: positions of each slot so far, int64 [slots]; limit: positions of a slot.
    """
    slots = [one.slot for one in inputs]
    if slots and not (slots[0] >= 0 and slots[-1] < len(lengths) and all(a < b for a, b in pairwise(slots))):
        raise EncodeError(f"slots {slots[:10]}: give them in ascending order, from 0 to {len(lengths) - 1}")
    for one in inputs:
        if lengths[one.slot] + len(one.tokens) > limit:
            size = lengths[one.slot] + len(one.tokens)
            raise EncodeError(f"{size} positions in a sequence: the cache has room for {limit}")
        vectors = 0 if one.vectors is None else len(one.vectors)
        if len(one.tokens) and not -vectors <= one.tokens.min() <= one.tokens.max() < vocabulary:
            raise EncodeError(f"a token id out of range: give 0 to {vocabulary - 1}")
