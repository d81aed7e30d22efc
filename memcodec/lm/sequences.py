"""Passes of an LM over new positions of some sequences: what goes in, what comes out, and what must hold of both."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from memcodec.errors import EncodeError, ModelNotFoundError

Rows = slice | np.ndarray


@dataclass(frozen=True)
class SequenceInput:
    """New positions of one sequence: int64 [positions], token ids; -1 - i is vectors[i], float32 [n, hidden]."""

    slot: int
    tokens: np.ndarray
    vectors: np.ndarray | None = None


class Sequences(Protocol):
    """Some sequences on their way through an LM: what is cached of each, and the logits of the last pass."""

    def forward(self, pieces: list[SequenceInput]) -> None:
        """One pass; the pieces' slots differ and rise."""

    def step(self, tokens: np.ndarray) -> None:
        """One pass over a token of each of the first sequences, int64 [rows]."""

    def restart(self) -> None:
        """Begin all of them anew, where they began: at position 0, or behind the prefix."""

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of some rows of the last pass, int32 [rows, columns >= vocabulary] in units.

        What is returned is written over by the next call.
        """


def check_numbers(scales: np.ndarray) -> None:
    """Raise ModelNotFoundError where a pass left what is no number, float32 [rows]: it stays so through all layers."""
    if not np.isfinite(scales).all():
        raise ModelNotFoundError("the model's activations go beyond float32: memcodec cannot use it")


def check_step(tokens: np.ndarray, lengths: np.ndarray, room: int, vocabulary: int) -> None:
    """As `check_pass`, for a step."""
    if lengths[: len(tokens)].max(initial=0) >= room:
        raise EncodeError(f"{room + 1} positions: there is room for {room}")
    if not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise EncodeError(f"a token that the model does not have: it has {vocabulary}")


def check_pass(pieces: list[SequenceInput], lengths: np.ndarray, room: int, vocabulary: int) -> None:
    """Raise EncodeError where a pass would go beyond what there is: kernels look at no bounds.

    lengths: positions of each slot so far, int64 [slots]; room: positions of a slot.
    """
    for piece in pieces:
        if lengths[piece.slot] + len(piece.tokens) > room:
            raise EncodeError(f"{lengths[piece.slot] + len(piece.tokens)} positions: there is room for {room}")
        given = 0 if piece.vectors is None else len(piece.vectors)
        if len(piece.tokens) and not -given <= piece.tokens.min() <= piece.tokens.max() < vocabulary:
            raise EncodeError(f"a token that the model does not have: it has {vocabulary}")
