"""The predictions of the LM at each position of groups whose tokens are known, as the encoder needs them."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, repeat, tee
from typing import TypeVar

import numpy as np

from memcodec.coding.distribution import Predictions
from memcodec.coding.placed import predictor_of, thread_setup_of
from memcodec.lm.ahead import Ahead
from memcodec.lm.model import ExactLM
from memcodec.passes import Known, Run, passes

_Item = TypeVar("_Item")
_Step = tuple[list[list[np.ndarray]], Predictions]  # the groups that were read before the predictions of a chunk


def predict(
    lm: ExactLM, groups: Iterable[list[np.ndarray]], context: int, vectors: Iterable[np.ndarray | None]
) -> Iterator[Predictions]:
    """The LM's predictions at each position of groups of chunks, int64 [tokens] each: one `Predictions` for each chunk.

    context: the most tokens that the LM sees before a position; vectors: the input embeddings between the prefix and
    each group, float32 [n, hidden], or None.
    """
    batch: list[_Predicted] = []
    rows = longest = 0
    most = lm.capacity
    for chunks, given in zip(groups, vectors, strict=False):
        group = _Predicted(chunks, given)
        alone = group.rows > most.rows or len(group.known.tokens) > context
        room = (len(batch) + 1) * max(longest, group.rows)  # positions of all caches, each as long as the longest
        if batch and (alone or rows + group.rows > most.rows or len(batch) == most.sequences or room > most.positions):
            yield from _predict_together(lm, batch, context)
            batch, rows, longest = [], 0, 0
        if alone:
            yield from _predict_together(lm, [group], context)
        else:
            batch.append(group)
            rows, longest = rows + group.rows, max(longest, group.rows)
    if batch:
        yield from _predict_together(lm, batch, context)


class _Predicted:
    """A group whose predictions are being computed. rows: of all its passes, about."""

    def __init__(self, chunks: list[np.ndarray], vectors: np.ndarray | None) -> None:
        self.known = Known(np.concatenate(chunks), vectors)
        self.rows = len(self.known.tokens) + (0 if vectors is None else len(vectors))
        self._lengths = deque(map(len, chunks))  # of the chunks that are not complete
        self._parts: list[Predictions] = []  # of the first of these chunks
        self._room = self._lengths[0]  # positions of this chunk that are missing
        self._finished: deque[Predictions] = deque()

    def add(self, found: Predictions) -> None:
        """The predictions of the next positions."""
        at = 0
        while at < len(found.tokens):
            part = found.part(at, at + self._room)
            self._parts.append(part)
            at, self._room = at + len(part.tokens), self._room - len(part.tokens)
            if not self._room:
                self._finished.append(Predictions.joined(self._parts))
                self._parts = []
                self._lengths.popleft()
                self._room = self._lengths[0] if self._lengths else 0

    def finished(self) -> Iterator[Predictions]:
        """The chunks that were completed since the last call."""
        while self._finished:
            yield self._finished.popleft()

    @property
    def is_finished(self) -> bool:
        """Whether all chunks are complete."""
        return not self._lengths


def _predict_together(lm: ExactLM, batch: list[_Predicted], context: int) -> Iterator[Predictions]:
    """The predictions for groups in common passes: all chunks of the first group, then those of the next one.

    The host reads the predictions of one block of rows while a GPU computes those of the next one.
    """
    predict_rows = predictor_of(lm)
    computed: list[tuple[list[Run], Callable[[], Predictions]]] = []
    blocks = (block for one in passes(lm, [group.known for group in batch], context, lm.capacity.rows)
              for block in one.rows())  # fmt: skip
    for block in chain(blocks, [None]):
        before, computed = computed, []
        if block is not None:
            runs, logits = block
            tokens = [batch[run.slot].known.tokens[run.position : run.position + run.count] for run in runs]
            computed.append((runs, predict_rows(np.concatenate(tokens), logits)))
        for runs, wait in before:
            found, at = wait(), 0
            for run in runs:
                batch[run.slot].add(found.part(at, at + run.count))
                at += run.count
        for group in batch:
            yield from group.finished()
            if not group.is_finished:
                break


@contextmanager
def streams(
    lm: ExactLM, groups: Iterable[list[np.ndarray]], context: int, ahead: bool, found: Callable[[int], None]
) -> Iterator[tuple[Iterator[list[np.ndarray]], Iterator[Predictions]]]:
    """Two streams, groups and the predictions of their chunks, of which either may be read ahead of the other.

    ahead: another thread reads and predicts groups in advance, up to about `Capacity.fitted` tokens; found: is called
    with the number of tokens of each chunk whose predictions are there.
    """
    if not ahead:
        ours, theirs = tee(groups)
        yield ours, _noticed(predict(lm, theirs, context, repeat(None)), found)
        return
    read: deque[list[np.ndarray]] = deque()
    predictions: deque[Predictions] = deque()
    steps = Ahead(
        _steps(lm, groups, context), lambda step: len(step[1].tokens), lm.capacity.fitted, thread_setup_of(lm)
    )

    def taken(queue: deque[_Item]) -> Iterator[_Item]:
        while True:
            while not queue:
                if (step := next(steps, None)) is None:
                    return
                read.extend(step[0])
                predictions.append(step[1])
                found(len(step[1].tokens))
            yield queue.popleft()

    with closing(steps):
        yield taken(read), taken(predictions)


def _steps(lm: ExactLM, groups: Iterable[list[np.ndarray]], context: int) -> Generator[_Step, None, None]:
    read: list[list[np.ndarray]] = []

    def noted() -> Iterator[list[np.ndarray]]:
        for group in groups:
            read.append(group)
            yield group

    for predictions in predict(lm, noted(), context, repeat(None)):
        yield read.copy(), predictions
        read.clear()


def _noticed(stream: Iterator[Predictions], found: Callable[[int], None]) -> Iterator[Predictions]:
    for predictions in stream:
        found(len(predictions.tokens))
        yield predictions
