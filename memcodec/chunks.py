"""Groups of chunks, the unit of work: plan them for a document's tokens, encode some, decode some side by side.

What goes in and comes out are arrays and bytes, so that a batch can be done by another process or machine.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat, tee

import numpy as np

from memcodec.coding import corrections
from memcodec.coding.distribution import LATE, Look
from memcodec.container import MAX_CONTEXT, Group, lengths
from memcodec.errors import FormatError
from memcodec.lm.model import PAGE, ExactLM
from memcodec.lm.passes import Piece, Sequences
from memcodec.memory import Report, Site
from memcodec.memory.settings import Context
from memcodec.progress import Reporter

PASS_ROWS = 400  # positions in one full pass: with more of them, activations leave the processor's cache
HEAD_ROWS = 48  # positions whose logits exist at one time: 9 MB at a vocabulary of 49152
FIT_CHUNKS = 32  # chunks whose memories are fitted together
CACHE_POSITIONS = 1 << 15  # in the key-value cache of one batch at most, whatever its size: 400 MB of the default model

AUTO_GROUPS = 48  # groups that `context="auto"` leaves, so that they fill a batch
AUTO_TOKENS = 400  # in a group of its at most: attention over more costs a tenth of the speed (docs/context.md)
GROUP_CONTEXTS = 4  # length of a group, in contexts, where their size is given

_PASS_SLOTS = 64  # sequences in one full pass: each has a cache
_FIRST_ROOM = 1024  # tokens of a group that a decoder makes room for before it has seen any
_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Coded:
    """A group as a decoder needs it: tokens and memory of each chunk, and the corrections of all."""

    lengths: tuple[int, ...]
    memories: tuple[bytes, ...]
    corrections: bytes

    @classmethod
    def of(cls, group: Group) -> "Coded":
        """A group as a file has it."""
        memories = tuple(chunk.memory for chunk in group.chunks)
        return cls(tuple(chunk.tokens for chunk in group.chunks), memories, group.corrections)

    @property
    def tokens(self) -> int:
        """Of all its chunks."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Window:
    """What the LM has before it: tokens `start` to `first` of a group, and then `first` to `last` as they come."""

    start: int
    first: int
    last: int


def cut(tokens: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """A run of tokens, int64 [tokens], as the fewest chunks of at most `chunk_tokens`, of lengths as even as can be."""
    return np.split(tokens, np.cumsum(lengths(len(tokens), chunk_tokens))[:-1]) if len(tokens) else []


@dataclass(frozen=True)
class Plan:
    """How a block's tokens are cut. runs: chunks of each run between stored spans; groups: the same chunks;
    context: tokens of its group that the LM sees before each at most."""

    runs: list[list[np.ndarray]]
    groups: list[list[np.ndarray]]
    context: int


def seen(context: Context, positions: int) -> int:
    """Tokens that the LM sees before each, at most. positions: that it has for tokens."""
    most = min(positions, MAX_CONTEXT)
    return most if context in ("auto", "max", 0) else min(int(context), most)


def plan(runs: list[np.ndarray], chunk_tokens: int, context: Context, positions: int, alone: bool = True) -> Plan:
    """Cut runs of tokens, int64 [tokens] each, into groups of chunks, of lengths as even as can be.

    positions: that the LM has for tokens. context: 0, each chunk is a group; "max", all are one; "auto", as long as
    AUTO_GROUPS of them remain, up to AUTO_TOKENS; a number, GROUP_CONTEXTS times as long, so that most tokens see it.
    alone: nothing else fills a batch with these.
    """
    total, most = sum(map(len, runs)), min(positions, MAX_CONTEXT)
    if not total:
        return Plan([], [], 1)
    if context == 0:
        single = [cut(run, chunk_tokens) for run in runs]
        longest = max((len(chunk) for chunks in single for chunk in chunks), default=1)
        return Plan(single, [[chunk] for chunks in single for chunk in chunks], min(longest, most))
    if context == "max":
        count = 1
    elif context == "auto":
        fewest = min(-(-total // chunk_tokens), AUTO_GROUPS) if alone else 1
        count = max(fewest, -(-total // min(AUTO_TOKENS, most)))
    else:
        count = total // (GROUP_CONTEXTS * context)
    count = max(1, min(count, total))
    ends = [total * i // count for i in range(1, count + 1)]
    by_run: list[list[np.ndarray]] = []
    groups: list[list[np.ndarray]] = [[]]
    at = 0
    for run in runs:
        chunks: list[np.ndarray] = []
        done = 0
        while done < len(run):
            if at == ends[len(groups) - 1]:
                groups.append([])
            taken = min(len(run) - done, ends[len(groups) - 1] - at)
            some = cut(run[done : done + taken], chunk_tokens)
            chunks += some
            groups[-1] += some
            done, at = done + taken, at + taken
        by_run.append(chunks)
    longest = max(sum(map(len, group)) for group in groups)
    return Plan(by_run, [group for group in groups if group], max(1, min(seen(context, positions), longest)))


def windows(tokens: int, context: int) -> Iterator[Window]:
    """How the LM's window moves along a group: when a token would have more than `context` before it, by half."""
    start, first = 0, 0
    while first < tokens:
        last = min(tokens, start + context + 1)
        yield Window(start, first, last)
        start, first = last - context // 2, last


# ---- what the LM says


def look(
    lm: ExactLM, groups: Iterable[list[np.ndarray]], context: int, vectors: Iterable[np.ndarray | None]
) -> Iterator[Look]:
    """What the LM says at each position of groups of chunks, int64 [tokens] each: a `Look` a chunk, in order.

    context: tokens that it sees before a position, at most; vectors: what stands between the prefix and each group.
    """
    batch: list[tuple[list[np.ndarray], np.ndarray | None]] = []
    rows = 0
    for chunks, given in zip(groups, vectors, strict=False):
        tokens = sum(map(len, chunks))
        own = tokens + (0 if given is None else len(given))
        alone = own > PASS_ROWS or tokens > context
        if batch and (alone or rows + own > PASS_ROWS or len(batch) == _PASS_SLOTS):
            yield from _look_side_by_side(lm, batch)
            batch, rows = [], 0
        if alone:
            yield from _look_along(lm, chunks, context, given)
        else:
            batch.append((chunks, given))
            rows += own
    if batch:
        yield from _look_side_by_side(lm, batch)


def _look_side_by_side(lm: ExactLM, batch: list[tuple[list[np.ndarray], np.ndarray | None]]) -> Iterator[Look]:
    """Groups that fit a pass together."""
    pieces = [_piece(slot, given, np.concatenate(chunks)[:-1]) for slot, (chunks, given) in enumerate(batch)]
    counts = [len(piece.tokens) for piece in pieces]
    sequences = lm.begun(len(batch), len(lm.prefix) + max(counts), sum(counts))
    if any(counts):
        sequences.forward([piece for piece in pieces if len(piece.tokens)])
    begin = 0  # rows of the groups before
    for (chunks, given), count in zip(batch, counts, strict=True):
        row = begin - 1 + (0 if given is None else len(given))  # that a chunk's first token follows
        first = row if given is None and lm.is_cold else None
        for tokens in chunks:
            found = Look.empty(tokens, lm.vocabulary)
            done = 0
            while done < len(tokens):
                at = row + done
                if at < begin:
                    n, logits = 1, lm.start.logits[None].copy()
                else:
                    n = min(HEAD_ROWS, len(tokens) - done)
                    logits = sequences.logits(slice(at, at + n))
                found.fill(done, logits, lm.vocabulary, lm.team, LATE if first is None else at - first)
                done += n
            row += len(tokens)
            yield found
        begin += count


def _look_along(lm: ExactLM, chunks: list[np.ndarray], context: int, vectors: np.ndarray | None) -> Iterator[Look]:
    """One group, in passes one behind the other, in windows where it is longer than the context."""
    tokens = np.concatenate(chunks)
    early = 0 if vectors is None and lm.is_cold else LATE
    given = 0 if vectors is None else len(vectors)
    sequences = lm.begun(1, len(lm.prefix) + given + min(len(tokens), context), PASS_ROWS)
    waiting = iter(chunks)
    found, filled, done = Look.empty(next(waiting), lm.vocabulary), 0, 0
    for window in windows(len(tokens), context):
        sequences.restart()
        whole = _piece(0, vectors if not window.first else None, tokens[window.start : window.last - 1])
        at = len(whole.tokens) - (window.last - window.first)  # the position that the token `first` follows
        for start in range(-PASS_ROWS if at < 0 else 0, len(whole.tokens), PASS_ROWS):
            end = min(start + PASS_ROWS, len(whole.tokens))
            if start < 0:
                end = 0
            else:
                sequences.forward([Piece(0, whole.tokens[start:end], whole.vectors)])
            while at < end:
                n = min(HEAD_ROWS, end - at, len(found.tokens) - filled)
                logits = lm.start.logits[None].copy() if at < 0 else sequences.logits(slice(at - start, at - start + n))
                found.fill(filled, logits, lm.vocabulary, lm.team, done + early)
                at, filled, done = at + n, filled + n, done + n
                if filled == len(found.tokens):
                    yield found
                    found, filled = Look.empty(next(waiting, _NOTHING), lm.vocabulary), 0


def _piece(slot: int, vectors: np.ndarray | None, tokens: np.ndarray) -> Piece:
    """The start of a sequence, behind the prefix: vectors, tokens."""
    if vectors is None:
        return Piece(slot, tokens)
    return Piece(slot, np.concatenate([-1 - np.arange(len(vectors)), tokens]), vectors)


# ---- encoding


def encode(
    lm: ExactLM, site: Site, groups: Iterable[list[np.ndarray]], context: int, report: Report = lambda _: None
) -> Iterator[Coded]:
    """Fit the memories of groups of chunks, int64 [tokens] each, and write their corrections: group after group.

    groups: are taken as they are needed, some ahead; context: tokens of its group that the LM sees before each, at
    most; report: is told how many tokens of the next group are done.
    """
    ours, theirs = tee(groups)
    chunks = ((number, group, chunk) for number, group in enumerate(ours) for chunk in group)
    stream = look(lm, theirs, context, repeat(None))
    writing: dict[int, _Group] = {}
    waiting = 0  # tokens that are done, of groups that are not
    while some := list(islice(chunks, FIT_CHUNKS)):
        tokens = [chunk for _, _, chunk in some]

        def look_at(
            vectors: list[np.ndarray | None], tokens: list[np.ndarray] = tokens, waiting: int = waiting
        ) -> list[Look]:
            if any(given is not None for given in vectors):
                return list(look(lm, [[chunk] for chunk in tokens], context, vectors))
            looks = []
            for found in islice(stream, len(tokens)):
                looks.append(found)
                report(waiting + sum(len(known.tokens) for known in looks))
            return looks

        memories, looks = site.fit(tokens, look_at, report)
        own = [writing.setdefault(number, _Group(lm, site, group)) for number, group, _ in some]
        corrections.write(
            [group.encoder for group in own], looks, memories if site.share else [b""] * len(some), lm.team
        )
        waiting += sum(map(len, tokens))
        for (number, _, _), group, memory in zip(some, own, memories, strict=True):
            group.memories.append(memory)
            if len(group.memories) == len(group.lengths):
                waiting -= sum(group.lengths)
                yield Coded(group.lengths, tuple(group.memories), writing.pop(number).encoder.finish())


def encode_all(
    lm: ExactLM, site: Site, groups: Iterable[list[np.ndarray]], context: int, reporter: Reporter
) -> Iterator[Coded]:
    """The same, with reports of what is done."""
    for coded in encode(lm, site, groups, context, reporter.ahead):
        reporter.finish(list(coded.lengths))
        yield coded


class _Group:
    """A group while it is encoded."""

    def __init__(self, lm: ExactLM, site: Site, group: list[np.ndarray]) -> None:
        self.lengths = tuple(map(len, group))
        self.memories: list[bytes] = []
        self.encoder = corrections.Encoder(lm.steering, site.share)


# ---- decoding


def decode(
    lm: ExactLM, site: Site, batch: list[Coded], context: int, report: Report = lambda _: None
) -> list[np.ndarray]:
    """Decode some groups side by side, greedily: the token ids of each, int64 [tokens].

    report: is told how many tokens are done so far.
    """
    order = sorted(range(len(batch)), key=lambda i: -batch[i].tokens)
    rows = [batch[i] for i in order]
    vectors = [site.vectors(row.memories[0]) for row in rows]
    before = [0 if given is None else len(given) for given in vectors]
    longest = max(n + min(row.tokens, context) for n, row in zip(before, rows, strict=True))
    sequences = lm.begun(len(rows), len(lm.prefix) + longest, max(sum(before), PASS_ROWS, len(rows)))
    late = any(before) or not lm.is_cold
    decoder = corrections.Decoder(rows, lm.steering, site.share, lm.team, late)
    written = np.empty((len(rows), min(rows[0].tokens, _FIRST_ROOM)), dtype=np.int64)
    live, done = len(rows), 0
    for window in windows(rows[0].tokens, context):
        for t in range(window.first, window.last):
            if t == written.shape[1]:  # room follows what was decoded, not what a file says
                more = np.empty((len(rows), min(t, rows[0].tokens - t)), dtype=np.int64)
                written = np.concatenate([written, more], axis=1)
            while rows[live - 1].tokens <= t:
                live -= 1
            if t == 0 and any(before):
                sequences.forward([_piece(slot, given, _NOTHING) for slot, given in enumerate(vectors)])
                logits = sequences.logits(np.cumsum(before) - 1)
            elif t == window.start:
                sequences.restart()
                logits = np.repeat(lm.start.logits[None], live, axis=0)
            else:
                if t == window.first:
                    _refill(sequences, written[:live, window.start : t - 1])
                sequences.step(written[:live, t - 1])
                logits = sequences.logits(slice(live))
            written[:live, t] = decoder.step(t, logits)
            done += live
            report(done)
    result = [_NOTHING] * len(batch)
    for slot, i in enumerate(order):
        result[i] = written[slot, : rows[slot].tokens]
    return result


def _refill(sequences: Sequences, kept: np.ndarray) -> None:
    """Begin sequences anew with the tokens that are kept, int64 [rows, tokens].

    Integers are the same in a pass as in steps.
    """
    sequences.restart()
    count = kept.shape[1]
    together = max(1, PASS_ROWS // max(count, 1))
    for first in range(0, len(kept), together):
        for start in range(0, count, PASS_ROWS):
            slots = range(first, min(first + together, len(kept)))
            sequences.forward([Piece(slot, kept[slot, start : start + PASS_ROWS]) for slot in slots])


def decode_all(
    lm: ExactLM, site: Site, groups: list[Coded], context: int, batch: int, reporter: Reporter
) -> Iterator[np.ndarray]:
    """The token ids of each group, int64 [tokens], decoded in batches. Raises FormatError for what no encoder makes."""
    for some in batches(lm, site, groups, context, batch):
        _check_positions(lm, site, some, context)
        found = decode(lm, site, some, context, reporter.ahead)
        reporter.finish([n for group in some for n in group.lengths])
        yield from found


def _check_positions(lm: ExactLM, site: Site, batch: list[Coded], context: int) -> None:
    for coded in batch:
        given = site.vectors(coded.memories[0])
        if given is not None and len(coded.memories) > 1:
            raise FormatError("damaged index: vectors in the middle of a group")
        before = len(lm.prefix) + (0 if given is None else len(given))
        if before + min(coded.tokens, context) > lm.positions:
            raise FormatError(f"damaged index: groups longer than the model's {lm.positions} positions")


def batches(lm: ExactLM, site: Site, groups: list[Coded], context: int, size: int) -> Iterator[list[Coded]]:
    """Groups in the fewest batches of at most `size`, that the key-value cache holds, as even as can be."""
    vectors = (site.vectors(group.memories[0]) for group in groups)
    before = max((len(given) for given in vectors if given is not None), default=0) + lm.own_prefix
    longest = before + max((min(group.tokens, context) for group in groups), default=1)
    size = max(1, min(size, CACHE_POSITIONS // (-(-longest // PAGE) * PAGE)))
    for ends in np.array_split(np.arange(len(groups)), -(-len(groups) // size)) if groups else []:
        yield groups[ends[0] : ends[-1] + 1]
