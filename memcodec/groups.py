"""Groups of chunks, the unit of work of an engine: encode groups, decode several side by side, and verify groups.

Arguments and results are arrays and bytes, so that another process or machine can process a batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, islice
from typing import Any

import numpy as np

from memcodec.coding import corrections
from memcodec.coding.corrections import EncodedGroup, live_groups
from memcodec.coding.distribution import Predictions
from memcodec.coding.placed import decoder_of, is_on_device
from memcodec.coding.steering import Steering
from memcodec.document.plan import windows
from memcodec.errors import FormatError, wrong_file
from memcodec.lm.layout import PAGE
from memcodec.lm.model import ExactLM
from memcodec.lm.sequences import READ_ROWS, Capacity, SequenceInput, Sequences
from memcodec.memory.site import Site
from memcodec.passes import Known, first_rows, input_of, passes
from memcodec.prediction import predict, streams
from memcodec.progress import Report, Reporter

FIT_CHUNKS = 32  # the number of chunks that are fitted together (`_next_batch` says when there are more or fewer)
FIT_TOKENS = 12_800  # fewer chunks are fitted together if they have this many tokens: each has 2.8 KB of predictions

_FIRST_ROOM = 1024  # tokens of a group that a decoder allocates before it has decoded any
_Chunk = tuple[int, list[np.ndarray], np.ndarray]  # the number of its group, the group, and the chunk
_NO_TOKENS = np.empty(0, dtype=np.int64)


# ---- encoding


def encode_groups(
    lm: ExactLM, site: Site, groups: Iterable[list[np.ndarray]], context: int, report: Report = lambda _: None
) -> Iterator[EncodedGroup]:
    """Encode groups of chunks, int64 [tokens] each: fit their memories and write their corrections, group by group.

    groups: are read as they are needed, some in advance, and by another thread if the coder is on a device; context:
    the most tokens of its group that the LM sees before each token; report: is called with the number of tokens that
    are done of groups that are not finished.
    """
    predicted = finished = 0  # tokens

    def found(tokens: int) -> None:
        nonlocal predicted
        predicted += tokens
        report(predicted - finished)

    writing: dict[int, _Group] = {}  # groups that are not finished, by number
    with streams(lm, groups, context, site.fits_apart and is_on_device(lm), found) as (ours, stream):
        chunks = ((number, group, chunk) for number, group in enumerate(ours) for chunk in group)
        while batch := _next_batch(lm, site, chunks):
            tokens = [chunk for _, _, chunk in batch]

            def predict_under(
                vectors: list[np.ndarray | None],
                tokens: list[np.ndarray] = tokens,
                stream: Iterator[Predictions] = stream,
            ) -> list[Predictions]:
                if any(given is not None for given in vectors):
                    return list(predict(lm, [[chunk] for chunk in tokens], context, vectors))
                return list(islice(stream, len(tokens)))

            memories, predictions = site.fit(tokens, predict_under, report)
            states = [writing.setdefault(number, _Group(lm, site, group)) for number, group, _ in batch]
            used = memories if site.share else [b""] * len(batch)
            corrections.write([state.encoder for state in states], predictions, used, lm.team)
            for (number, _, _), state, memory in zip(batch, states, memories, strict=True):
                state.memories.append(memory)
                if len(state.memories) == len(state.lengths):
                    finished += sum(state.lengths)
                    yield EncodedGroup(state.lengths, tuple(state.memories), writing.pop(number).encoder.finish())


def _next_batch(lm: ExactLM, site: Site, chunks: Iterator[_Chunk]) -> list[_Chunk]:
    """The chunks whose memories are fitted together next; none after the last one.

    If a memory does not depend on the other chunks, there are fewer than FIT_CHUNKS if these are long, because their
    predictions are kept in memory, but at least one for each thread that searches; and more if the LM can take more.
    """
    if not site.fits_apart:
        return list(islice(chunks, FIT_CHUNKS))
    fewest = min(lm.team.workers, FIT_CHUNKS) if site.share else 1
    batch: list[_Chunk] = []
    tokens = 0
    while len(batch) < fewest or (len(batch) < FIT_CHUNKS and tokens < FIT_TOKENS) or tokens < lm.capacity.fitted:
        if (one := next(chunks, None)) is None:
            break
        batch.append(one)
        tokens += len(one[2])
    return batch


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
    sequences = lm.new_sequences(len(rows), len(lm.prefix) + longest, max(sum(before), READ_ROWS, len(rows)))
    decoder = decoder_of(lm, rows, site.share)
    written = np.empty((len(rows), min(rows[0].tokens, _FIRST_ROOM)), dtype=np.int64)
    ends, done = np.array([row.tokens for row in rows]), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done)

    for window in windows(rows[0].tokens, context):
        t = window.first
        while t < window.last:
            if t == written.shape[1]:  # memory grows with the decoded tokens, not with the length that the file states
                more = np.empty((len(rows), min(t, rows[0].tokens - t)), dtype=np.int64)
                written = np.concatenate([written, more], axis=1)
            if t == window.start:
                live = live_groups(ends, t)
                given: list[np.ndarray | None] = vectors if t == 0 else [None] * live
                written[:live, t] = decoder.step(t, _first_logits(lm, sequences, given, begins=t == 0))
                advance(live)
                t += 1
                continue
            if t == window.first:
                _refill(sequences, written[: live_groups(ends, t), window.start : t - 1])
            last = min(window.last, written.shape[1])
            decoder.steps(sequences, written, t, last, ends, advance)
            t = last
    result = [_NO_TOKENS] * len(batch)
    for slot, i in enumerate(order):
        result[i] = written[slot, : rows[slot].tokens]
    return result


def _first_logits(lm: ExactLM, sequences: Sequences, vectors: list[np.ndarray | None], begins: bool) -> Any:
    """Returns the logits of the first token of sequences that have read the prefix and then read these vectors.

    begins: whether it is the first token of their groups too, and not only of a window.
    """
    sequences.restart()
    if all(given is None for given in vectors):
        return first_rows(lm, len(vectors), begins)
    sequences.forward([input_of(slot, given, _NO_TOKENS) for slot, given in enumerate(vectors)])
    return sequences.placed_logits(np.cumsum([0 if given is None else len(given) for given in vectors]) - 1)


def _refill(sequences: Sequences, kept: np.ndarray) -> None:
    """Restart sequences with the tokens that stay in the window, int64 [rows, tokens].

    A pass over many tokens computes the same integers as one step for each.
    """
    sequences.restart()
    count = kept.shape[1]
    together = max(1, READ_ROWS // max(count, 1))
    for first in range(0, len(kept), together):
        for start in range(0, count, READ_ROWS):
            slots = range(first, min(first + together, len(kept)))
            sequences.forward([SequenceInput(slot, kept[slot, start : start + READ_ROWS]) for slot in slots])


def decode_all(
    lm: ExactLM, site: Site, groups: list[EncodedGroup], context: int, batch: int | None, reporter: Reporter
) -> Iterator[np.ndarray]:
    """The token ids of each group, int64 [tokens], decoded in batches. Raises FormatError for impossible groups."""
    for together in batches(lm, site, groups, context, batch):
        _check_positions(lm, site, together, context)
        tokens = decode_batch(lm, site, together, context, reporter.ahead)
        reporter.finish([n for group in together for n in group.lengths])
        yield from tokens


# ---- verifying


def capacity_to_verify(capacity: Capacity) -> Capacity:
    """The capacity for verification: other passes than the encoder's, so that a result that depends on them is noticed.

    On a CPU, eight groups side by side are enough for several workers, and take little memory.
    """
    return replace(
        capacity,
        rows=max(1, capacity.rows * 4 // 5),
        sequences=max(1, capacity.sequences // 8),
        positions=capacity.positions // 4,
    )


def verify_all(
    lm: ExactLM,
    site: Site,
    groups: list[EncodedGroup],
    known: Iterable[list[np.ndarray]],
    context: int,
    reporter: Reporter,
) -> Iterator[np.ndarray]:
    """Verify in full passes, as fast as encoding, that groups decode to known tokens, and return these as `decode_all`.

    known: the chunks of each group, int64 [tokens] each. The decoder chooses each token after the known ones before it.
    If every choice is the known token, decoding in steps makes the same choices. Raises MachineError, FormatError.
    """
    waiting, most = iter(known), capacity_to_verify(lm.capacity)
    for together in batches(lm, site, groups, context, most.sequences, most.positions):
        _check_positions(lm, site, together, context)
        originals = list(islice(waiting, len(together)))
        if [group.lengths for group in together] != [tuple(map(len, chunks)) for chunks in originals]:
            raise wrong_file("the encoded file has other chunks than its document")
        tokens = [np.concatenate(chunks) for chunks in originals]
        decoded = _decode_known(lm, site, together, tokens, context, reporter.ahead)
        if not all(map(np.array_equal, decoded, tokens)):
            raise wrong_file("the encoded file decodes to other tokens here")
        reporter.finish([n for group in together for n in group.lengths])
        yield from decoded


def _decode_known(
    lm: ExactLM, site: Site, batch: list[EncodedGroup], tokens: list[np.ndarray], context: int, report: Report
) -> list[np.ndarray]:
    """What the decoder chooses at each position of groups after their known tokens, int64 [tokens] each."""
    groups = [Known(ids, site.vectors(group.memories[0])) for ids, group in zip(tokens, batch, strict=True)]
    decoder = decoder_of(lm, batch, site.share)
    decoded = [np.full(len(ids), -1, dtype=np.int64) for ids in tokens]
    done = 0
    # At least two passes, since the encoder reads small groups in one.
    rows = min(capacity_to_verify(lm.capacity).rows, -(-sum(map(len, tokens)) // 2))
    for one in passes(lm, groups, context, rows):
        for runs, logits in one.blocks(one.runs):
            slots, positions, counts = np.array([(run.slot, run.position, run.count) for run in runs]).T
            chosen = decoder.read(slots, positions, counts, logits)
            at = 0
            for run in runs:
                decoded[run.slot][run.position : run.position + run.count] = chosen[at : at + run.count]
                at += run.count
            done += len(chosen)
            report(done)
    return decoded


# ---- batches of decoding and verifying


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
    lm: ExactLM, site: Site, groups: list[EncodedGroup], context: int, size: int | None, positions: int | None = None
) -> Iterator[list[EncodedGroup]]:
    """Groups in the fewest batches, of similar size, that have at most `size` groups and fit the key-value cache.

    positions: the most in the cache, if a batch has more than one group. The cache has as many for each group of a
    batch as the longest of them needs, so that a long group makes only its own batch smaller. None: what suits the LM.
    """
    size, positions = size or lm.capacity.sequences, positions or lm.capacity.positions
    # One at a time: a hostile file may have millions of groups.
    counts = (len(given) for group in groups if (given := site.vectors(group.memories[0])) is not None)
    before = max(counts, default=0) + lm.own_prefix
    needed = [-(-(before + min(group.tokens, context)) // PAGE) * PAGE for group in groups]
    start = 0
    while left := len(groups) - start:
        longest = list(accumulate(needed[start : start + size], max))
        count = sum(n == 1 or n * most <= positions for n, most in enumerate(longest, 1))
        count = -(-left // -(-left // count))
        yield groups[start : start + count]
        start += count
