"""Groups of chunks, the unit of work of an engine: encode groups, and decode several side by side.

Arguments and results are arrays and bytes, so that another process or machine can process a batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, repeat, tee

import numpy as np

from memcodec.coding import corrections
from memcodec.coding.distribution import Predictions, with_prior
from memcodec.coding.steering import Steering
from memcodec.document.plan import windows
from memcodec.errors import FormatError
from memcodec.lm.layout import PAGE
from memcodec.lm.model import ExactLM
from memcodec.lm.sequences import SequenceInput, Sequences
from memcodec.memory.site import Report, Site
from memcodec.progress import Reporter

PASS_ROWS = 400  # positions in one full pass: the activations of more do not fit the processor's cache
HEAD_ROWS = 48  # positions whose logits exist at one time: 9 MB at a vocabulary of 49152
FIT_CHUNKS = 32  # chunks whose memories are fitted together
CACHE_POSITIONS = 1 << 15  # the most in the key-value cache of one batch: 400 MB with the default model

_PASS_SLOTS = 64  # sequences in one full pass: each has a cache
_FIRST_ROOM = 1024  # tokens of a group that a decoder allocates before it has decoded any
_NO_TOKENS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class EncodedGroup:
    """An encoded group: the number of tokens and the memory of each chunk, and the corrections of all chunks."""

    lengths: tuple[int, ...]
    memories: tuple[bytes, ...]
    corrections: bytes

    @property
    def tokens(self) -> int:
        """The tokens of all its chunks."""
        return sum(self.lengths)


# ---- predictions of the LM


def predict(
    lm: ExactLM, groups: Iterable[list[np.ndarray]], context: int, vectors: Iterable[np.ndarray | None]
) -> Iterator[Predictions]:
    """The LM's predictions at each position of groups of chunks, int64 [tokens] each: one `Predictions` for each chunk.

    context: the most tokens that the LM sees before a position; vectors: the input embeddings between the prefix and
    each group, float32 [n, hidden], or None.
    """
    batch: list[tuple[list[np.ndarray], np.ndarray | None]] = []
    rows = 0
    for chunks, given in zip(groups, vectors, strict=False):
        tokens = sum(map(len, chunks))
        own = tokens + (0 if given is None else len(given))
        alone = own > PASS_ROWS or tokens > context
        if batch and (alone or rows + own > PASS_ROWS or len(batch) == _PASS_SLOTS):
            yield from _predict_side_by_side(lm, batch)
            batch, rows = [], 0
        if alone:
            yield from _predict_in_windows(lm, chunks, context, given)
        else:
            batch.append((chunks, given))
            rows += own
    if batch:
        yield from _predict_side_by_side(lm, batch)


def _predict_side_by_side(
    lm: ExactLM, batch: list[tuple[list[np.ndarray], np.ndarray | None]]
) -> Iterator[Predictions]:
    """The predictions for groups that fit one pass together."""
    pieces = [_input_of(slot, given, np.concatenate(chunks)[:-1]) for slot, (chunks, given) in enumerate(batch)]
    counts = [len(piece.tokens) for piece in pieces]
    sequences = lm.new_sequences(len(batch), len(lm.prefix) + max(counts), sum(counts))
    if any(counts):
        sequences.forward([piece for piece in pieces if len(piece.tokens)])
    begin = 0  # rows of the groups before
    for (chunks, given), count in zip(batch, counts, strict=True):
        row = begin - 1 + (0 if given is None else len(given))  # the row before the first token of a chunk
        for tokens in chunks:
            found = Predictions.empty(tokens, lm.vocabulary)
            done = 0
            while done < len(tokens):
                at = row + done
                if at < begin:
                    n, logits = 1, _first_logits(lm)
                else:
                    n = min(HEAD_ROWS, len(tokens) - done)
                    logits = sequences.logits(slice(at, at + n))
                found.fill(done, logits, lm.vocabulary, lm.team)
                done += n
            row += len(tokens)
            yield found
        begin += count


def _first_logits(lm: ExactLM) -> np.ndarray:
    """The logits of the first token of a group that has no vectors before it, int32 [1, vocabulary].

    A primer is context, so that the LM needs no prior behind one.
    """
    logits = lm.start.logits[: lm.vocabulary]
    return (with_prior(logits) if lm.is_unprimed else logits)[None]


def _predict_in_windows(
    lm: ExactLM, chunks: list[np.ndarray], context: int, vectors: np.ndarray | None
) -> Iterator[Predictions]:
    """The predictions for one group, in several passes, and in windows if it is longer than the context."""
    tokens = np.concatenate(chunks)
    given = 0 if vectors is None else len(vectors)
    sequences = lm.new_sequences(1, len(lm.prefix) + given + min(len(tokens), context), PASS_ROWS)
    waiting = iter(chunks)
    found, filled = Predictions.empty(next(waiting), lm.vocabulary), 0
    for window in windows(len(tokens), context):
        sequences.restart()
        whole = _input_of(0, vectors if not window.first else None, tokens[window.start : window.last - 1])
        at = len(whole.tokens) - (window.last - window.first)  # the position before the token `first`
        for start in range(-PASS_ROWS if at < 0 else 0, len(whole.tokens), PASS_ROWS):
            end = min(start + PASS_ROWS, len(whole.tokens))
            if start < 0:
                end = 0
            else:
                sequences.forward([SequenceInput(0, whole.tokens[start:end], whole.vectors)])
            while at < end:
                n = min(HEAD_ROWS, end - at, len(found.tokens) - filled)
                logits = _first_logits(lm) if at < 0 else sequences.logits(slice(at - start, at - start + n))
                found.fill(filled, logits, lm.vocabulary, lm.team)
                at, filled = at + n, filled + n
                if filled == len(found.tokens):
                    yield found
                    found, filled = Predictions.empty(next(waiting, _NO_TOKENS), lm.vocabulary), 0


def _input_of(slot: int, vectors: np.ndarray | None, tokens: np.ndarray) -> SequenceInput:
    """The first pass of a sequence, after the prefix: vectors, if there are any, then tokens."""
    if vectors is None:
        return SequenceInput(slot, tokens)
    return SequenceInput(slot, np.concatenate([-1 - np.arange(len(vectors)), tokens]), vectors)


# ---- encoding


def encode_groups(
    lm: ExactLM, site: Site, groups: Iterable[list[np.ndarray]], context: int, report: Report = lambda _: None
) -> Iterator[EncodedGroup]:
    """Encode groups of chunks, int64 [tokens] each: fit their memories and write their corrections, group by group.

    groups: are read as they are needed, some in advance; context: the most tokens of its group that the LM sees before
    each token; report: is called with the number of tokens that are done of groups that are not finished.
    """
    ours, theirs = tee(groups)
    chunks = ((number, group, chunk) for number, group in enumerate(ours) for chunk in group)
    stream = predict(lm, theirs, context, repeat(None))
    writing: dict[int, _Group] = {}  # groups that are not finished, by number
    waiting = 0  # tokens of these groups that are done
    while batch := list(islice(chunks, FIT_CHUNKS)):
        tokens = [chunk for _, _, chunk in batch]

        def predict_under(
            vectors: list[np.ndarray | None], tokens: list[np.ndarray] = tokens, waiting: int = waiting
        ) -> list[Predictions]:
            if any(given is not None for given in vectors):
                return list(predict(lm, [[chunk] for chunk in tokens], context, vectors))
            predictions = []
            for found in islice(stream, len(tokens)):
                predictions.append(found)
                report(waiting + sum(len(known.tokens) for known in predictions))
            return predictions

        memories, predictions = site.fit(tokens, predict_under, report)
        states = [writing.setdefault(number, _Group(lm, site, group)) for number, group, _ in batch]
        corrections.write(
            [state.encoder for state in states], predictions, memories if site.share else [b""] * len(batch), lm.team
        )
        waiting += sum(map(len, tokens))
        for (number, _, _), state, memory in zip(batch, states, memories, strict=True):
            state.memories.append(memory)
            if len(state.memories) == len(state.lengths):
                waiting -= sum(state.lengths)
                yield EncodedGroup(state.lengths, tuple(state.memories), writing.pop(number).encoder.finish())


def encode_all(
    lm: ExactLM, site: Site, groups: Iterable[list[np.ndarray]], context: int, reporter: Reporter
) -> Iterator[EncodedGroup]:
    """`encode_groups` with reports of progress."""
    for encoded in encode_groups(lm, site, groups, context, reporter.ahead):
        reporter.finish(encoded.lengths)
        yield encoded


class _Group:
    """A group that is being encoded."""

    def __init__(self, lm: ExactLM, site: Site, group: list[np.ndarray]) -> None:
        self.lengths = tuple(map(len, group))
        self.memories: list[bytes] = []
        self.encoder = corrections.Encoder(Steering.of(lm.head), site.share)


# ---- decoding


def decode_batch(
    lm: ExactLM, site: Site, batch: list[EncodedGroup], context: int, report: Report = lambda _: None
) -> list[np.ndarray]:
    """Decode groups side by side, greedily: the token ids of each, int64 [tokens].

    report: is called with the number of tokens that are done.
    """
    order = sorted(range(len(batch)), key=lambda i: -batch[i].tokens)
    rows = [batch[i] for i in order]
    vectors = [site.vectors(row.memories[0]) for row in rows]
    before = [0 if given is None else len(given) for given in vectors]
    longest = max(n + min(row.tokens, context) for n, row in zip(before, rows, strict=True))
    sequences = lm.new_sequences(len(rows), len(lm.prefix) + longest, max(sum(before), PASS_ROWS, len(rows)))
    decoder = corrections.Decoder(rows, Steering.of(lm.head), site.share, lm.team)
    written = np.empty((len(rows), min(rows[0].tokens, _FIRST_ROOM)), dtype=np.int64)
    live, done = len(rows), 0
    for window in windows(rows[0].tokens, context):
        for t in range(window.first, window.last):
            if t == written.shape[1]:  # memory grows with the decoded tokens, not with the length that the file states
                more = np.empty((len(rows), min(t, rows[0].tokens - t)), dtype=np.int64)
                written = np.concatenate([written, more], axis=1)
            while rows[live - 1].tokens <= t:
                live -= 1
            if t == 0 and any(before):
                sequences.forward([_input_of(slot, given, _NO_TOKENS) for slot, given in enumerate(vectors)])
                logits = sequences.logits(np.cumsum(before) - 1)
            elif t == window.start:
                sequences.restart()
                logits = np.repeat(_first_logits(lm), live, axis=0)
            else:
                if t == window.first:
                    _refill(sequences, written[:live, window.start : t - 1])
                sequences.step(written[:live, t - 1])
                logits = sequences.logits(slice(live))
            written[:live, t] = decoder.step(t, logits)
            done += live
            report(done)
    result = [_NO_TOKENS] * len(batch)
    for slot, i in enumerate(order):
        result[i] = written[slot, : rows[slot].tokens]
    return result


def _refill(sequences: Sequences, kept: np.ndarray) -> None:
    """Restart sequences with the tokens that stay in the window, int64 [rows, tokens].

    A pass over many tokens computes the same integers as one step for each.
    """
    sequences.restart()
    count = kept.shape[1]
    together = max(1, PASS_ROWS // max(count, 1))
    for first in range(0, len(kept), together):
        for start in range(0, count, PASS_ROWS):
            slots = range(first, min(first + together, len(kept)))
            sequences.forward([SequenceInput(slot, kept[slot, start : start + PASS_ROWS]) for slot in slots])


def decode_all(
    lm: ExactLM, site: Site, groups: list[EncodedGroup], context: int, batch: int, reporter: Reporter
) -> Iterator[np.ndarray]:
    """The token ids of each group, int64 [tokens], decoded in batches. Raises FormatError for impossible groups."""
    for together in batches(lm, site, groups, context, batch):
        _check_positions(lm, site, together, context)
        tokens = decode_batch(lm, site, together, context, reporter.ahead)
        reporter.finish([n for group in together for n in group.lengths])
        yield from tokens


def _check_positions(lm: ExactLM, site: Site, batch: list[EncodedGroup], context: int) -> None:
    """Raise FormatError for groups that do not fit the model's positions."""
    for group in batch:
        given = site.vectors(group.memories[0])
        if given is not None and len(group.memories) > 1:
            raise FormatError("damaged index: vectors in the middle of a group")
        before = len(lm.prefix) + (0 if given is None else len(given))
        if before + min(group.tokens, context) > lm.positions:
            raise FormatError(f"damaged index: groups longer than the model's {lm.positions} positions")


def batches(
    lm: ExactLM, site: Site, groups: list[EncodedGroup], context: int, size: int
) -> Iterator[list[EncodedGroup]]:
    """Groups in the fewest batches, of similar size, that have at most `size` groups and fit the key-value cache.

    The cache has as many positions for each group of a batch as the longest of them needs, so that a long group makes
    only its own batch smaller.
    """
    vectors = [site.vectors(group.memories[0]) for group in groups]
    before = max((len(given) for given in vectors if given is not None), default=0) + lm.own_prefix
    needed = [-(-(before + min(group.tokens, context)) // PAGE) * PAGE for group in groups]
    start = 0
    while left := len(groups) - start:
        longest = list(accumulate(needed[start : start + size], max))
        count = sum(n == 1 or n * most <= CACHE_POSITIONS for n, most in enumerate(longest, 1))
        count = -(-left // -(-left // count))
        yield groups[start : start + count]
        start += count
