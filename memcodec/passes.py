"""Full passes of the LM over groups whose tokens are known, which compute the logits at many positions at once.

The encoder reads its groups in such passes, and so does the verification of what it has written. How groups are cut
into passes changes no logit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from memcodec.coding.distribution import with_prior
from memcodec.coding.placed import repeated_rows, to_coder
from memcodec.document.plan import Window, windows
from memcodec.lm.model import ExactLM
from memcodec.lm.sequences import SequenceInput


class Known(NamedTuple):
    """A group whose tokens are known, int64 [tokens].

    vectors: the input embeddings between the prefix and the group, float32 [n, hidden], or None.
    """

    tokens: np.ndarray
    vectors: np.ndarray | None = None


@dataclass(frozen=True)
class Run:
    """Consecutive positions of one group, `count` from `position` on, and the rows of a pass that predict them.

    slot: the number of the group among those of the pass; row: the first of the rows.
    """

    slot: int
    position: int
    row: int
    count: int

    def part(self, first: int, count: int) -> "Run":
        """Up to `count` of its positions, without the first ones."""
        return Run(self.slot, self.position + first, self.row + first, min(count, self.count - first))


class Pass(NamedTuple):
    """One pass. runs: what it predicts, at least one; logits: returns those of rows, int64 [n] (see `passes`).

    head_rows: the number of rows whose logits may exist at one time.
    """

    runs: list[Run]
    logits: Callable[[np.ndarray], Any]
    head_rows: int

    def blocks(self, runs: list[Run]) -> Iterator[tuple[list[Run], Any]]:
        """The logits of some runs in blocks of about `head_rows`, each with the parts of the runs that it predicts.

        A block has equally many positions of each run, so that several workers can decode it. The next block
        overwrites the logits.
        """
        each = max(1, self.head_rows // len(runs))
        for first in range(0, max(run.count for run in runs), each):
            parts = [run.part(first, each) for run in runs if run.count > first]
            yield parts, self._logits_of(parts)

    def rows(self) -> Iterator[tuple[list[Run], Any]]:
        """The logits of all runs in blocks of `head_rows`, one run after the other, each with the parts it predicts.

        The next block overwrites the logits.
        """
        parts: list[Run] = []
        room = self.head_rows
        for i, run in enumerate(self.runs):
            while run.count:
                part = run.part(0, room)
                parts.append(part)
                room, run = room - part.count, run.part(part.count, run.count)
                if not room or (i == len(self.runs) - 1 and not run.count):
                    yield parts, self._logits_of(parts)
                    parts, room = [], self.head_rows

    def _logits_of(self, parts: list[Run]) -> Any:
        return self.logits(np.concatenate([np.arange(part.row, part.row + part.count) for part in parts]))


def passes(lm: ExactLM, groups: list[Known], context: int, rows: int) -> Iterator[Pass]:
    """The passes over groups side by side, in windows if they are longer than the context, of about `rows` rows each.

    context: the most tokens that the LM sees before a position. Groups have at least one token each, and their
    positions are predicted in ascending order. The logits are where the coder is (`Sequences.placed_logits`).
    """
    longest, head_rows = max(len(group.tokens) for group in groups), lm.capacity.head_rows
    room = max(min(len(tokens), context) + (0 if given is None else len(given)) for tokens, given in groups)
    sequences = lm.new_sequences(len(groups), len(lm.prefix) + room, max(rows, len(groups)))
    for window in windows(longest, context):
        sequences.restart()
        inputs = [
            _input_of(slot, group, window) for slot, group in enumerate(groups) if len(group.tokens) > window.first
        ]
        first = [
            Run(one.slot, window.first, 0, 1) for one in inputs if window.start == window.first and not _given(one)
        ]
        if first:
            yield Pass(first, partial(_first_rows, lm, begins=window.first == 0), head_rows)
        done = 0
        while live := [one for one in inputs if len(one.tokens) > done]:
            left = sum(len(one.tokens) - done for one in live)
            each = left if left <= rows else max(1, rows // len(live))
            pieces = [SequenceInput(one.slot, one.tokens[done : done + each], one.vectors) for one in live]
            sequences.forward(pieces)
            if runs := _runs(pieces, window, done):
                yield Pass(runs, sequences.placed_logits, head_rows)
            done += each


def _input_of(slot: int, group: Known, window: Window) -> SequenceInput:
    """What the LM reads of a group in a window: all but its last token, which predicts nothing that is wanted."""
    end = min(window.last, len(group.tokens))
    return input_of(slot, None if window.first else group.vectors, group.tokens[window.start : end - 1])


def _runs(pieces: list[SequenceInput], window: Window, done: int) -> list[Run]:
    """What a pass over pieces of groups predicts, each after `done` inputs of the window."""
    runs = []
    row = 0
    for piece in pieces:
        position = window.start + done + 1 - _given(piece)  # that the first row predicts
        read = max(0, window.first - position)  # rows of vectors, and of tokens that the last window predicted
        if read < len(piece.tokens):
            runs.append(Run(piece.slot, position, row, len(piece.tokens)).part(read, len(piece.tokens)))
        row += len(piece.tokens)
    return runs


def input_of(slot: int, vectors: np.ndarray | None, tokens: np.ndarray) -> SequenceInput:
    """The input of a sequence after the prefix: vectors, if there are any, then tokens."""
    if vectors is None:
        return SequenceInput(slot, tokens)
    return SequenceInput(slot, np.concatenate([-1 - np.arange(len(vectors)), tokens]), vectors)


def _given(one: SequenceInput) -> int:
    """The number of vectors in the input of a sequence."""
    return 0 if one.vectors is None else len(one.vectors)


_firsts: WeakKeyDictionary[ExactLM, dict[bool, Any]] = WeakKeyDictionary()


def first_logits(lm: ExactLM, begins: bool) -> Any:
    """The logits of a token that has nothing but the prefix before it, int32 [1, vocabulary], on its device.

    begins: whether it is the first token of a group. Then the prior of tokens is applied, unless there is a primer,
    which already is context. With a context of one token, other tokens too have only the prefix before them.
    """
    kept = _firsts.setdefault(lm, {})
    has_prior = begins and lm.is_unprimed
    if has_prior not in kept:
        logits = lm.prefix_state.logits[: lm.vocabulary]
        kept[has_prior] = to_coder(lm, (with_prior(logits) if has_prior else logits)[None])
    return kept[has_prior]


def _first_rows(lm: ExactLM, rows: np.ndarray, begins: bool) -> Any:
    """As `first_rows`, for as many groups as rows are asked for."""
    return first_rows(lm, len(rows), begins)


def first_rows(lm: ExactLM, count: int, begins: bool) -> Any:
    """As `first_logits` for several groups: int32 [count, vocabulary]."""
    return repeated_rows(first_logits(lm, begins), count)
