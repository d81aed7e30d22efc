"""Chunks, the unit of work: cut a run of tokens into them, encode some, decode some side by side.

What goes in and comes out are arrays and bytes, so that a batch can be done by another process or machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memcodec.coding import corrections
from memcodec.coding.distribution import Look
from memcodec.lm.model import PAGE, ExactLM
from memcodec.lm.passes import Piece
from memcodec.memory import Report, Site

PASS_ROWS = 400  # positions in one full pass: with more of them, activations leave the processor's cache
HEAD_ROWS = 48  # positions whose logits exist at one time: 9 MB at a vocabulary of 49152
FIT_CHUNKS = 32  # chunks whose memories are fitted together
CACHE_POSITIONS = 1 << 15  # in the key-value cache of one batch at most, whatever its size: 400 MB of the default model


@dataclass(frozen=True)
class Coded:
    """A chunk as a decoder needs it: how many tokens it has, its memory, its corrections."""

    tokens: int
    memory: bytes
    corrections: bytes


def cut(tokens: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """A run of tokens, int64 [tokens], as the fewest chunks of at most `chunk_tokens`, of lengths as even as can be."""
    return np.array_split(tokens, -(-len(tokens) // chunk_tokens)) if len(tokens) else []


def look(lm: ExactLM, chunks: list[np.ndarray], vectors: list[np.ndarray | None]) -> list[Look]:
    """What the LM says at each position of chunks, int64 [tokens] each, behind the prefix and vectors of their own."""
    result = []
    for batch in _passes(lm, chunks, vectors):
        before = [len(lm.prefix) + (0 if given is None else len(given)) for _, given in batch]
        counts = [n + len(tokens) - 1 for n, (tokens, _) in zip(before, batch, strict=True)]
        sequences = lm.sequences(len(batch), max(counts), sum(counts))
        sequences.forward([_piece(lm, slot, given, tokens[:-1]) for slot, (tokens, given) in enumerate(batch)])
        row = 0
        for first, count, (tokens, _) in zip(before, counts, batch, strict=True):
            found = Look.empty(tokens, lm.vocabulary)
            for start in range(0, len(tokens), HEAD_ROWS):
                at = row + first - 1 + start
                logits = sequences.logits(slice(at, at + min(HEAD_ROWS, len(tokens) - start)))
                found.fill(start, logits, lm.vocabulary, lm.team)
            row += count
            result.append(found)
    return result


def _piece(lm: ExactLM, slot: int, vectors: np.ndarray | None, tokens: np.ndarray) -> Piece:
    """The start of a sequence: the prefix, vectors, tokens."""
    if vectors is None:
        return Piece(slot, np.concatenate([lm.prefix, tokens]))
    return Piece(slot, np.concatenate([lm.prefix, -1 - np.arange(len(vectors)), tokens]), vectors)


def _passes(
    lm: ExactLM, chunks: list[np.ndarray], vectors: list[np.ndarray | None]
) -> Iterator[list[tuple[np.ndarray, np.ndarray | None]]]:
    """Chunks and their vectors in groups of at most PASS_ROWS positions, or of one chunk."""
    batch: list[tuple[np.ndarray, np.ndarray | None]] = []
    rows = 0
    for tokens, given in zip(chunks, vectors, strict=True):
        own = len(lm.prefix) + len(tokens) + (0 if given is None else len(given))
        if batch and rows + own > PASS_ROWS:
            yield batch
            batch, rows = [], 0
        batch.append((tokens, given))
        rows += own
    if batch:
        yield batch


def encode(lm: ExactLM, site: Site, chunks: list[np.ndarray], report: Report = lambda _: None) -> list[Coded]:
    """Fit the memories of some chunks, int64 [tokens] each, and write their corrections.

    report: is told how many tokens are done so far.
    """
    memories, looks = site.fit(chunks, lambda some, vectors: look(lm, some, vectors), report)
    steering = memories if site.share else [b""] * len(chunks)
    found = corrections.encode(looks, steering, lm.steering, site.share, lm.team)
    return [
        Coded(len(tokens), memory, fixes.data) for tokens, memory, fixes in zip(chunks, memories, found, strict=True)
    ]


def decode(lm: ExactLM, site: Site, batch: list[Coded], report: Report = lambda _: None) -> list[np.ndarray]:
    """Decode some chunks side by side, greedily: the token ids of each, int64 [tokens].

    report: is told how many tokens are done so far.
    """
    order = sorted(range(len(batch)), key=lambda i: -batch[i].tokens)
    rows = [batch[i] for i in order]
    vectors = [site.vectors(row.memory) for row in rows]
    before = [len(lm.prefix) + (0 if given is None else len(given)) for given in vectors]
    positions = max(n + row.tokens for n, row in zip(before, rows, strict=True))
    sequences = lm.sequences(len(rows), positions, sum(before))
    memories = [row.memory if site.share else b"" for row in rows]
    decoder = corrections.Decoder(memories, [row.corrections for row in rows], lm.steering, site.share, lm.team)
    written = np.zeros((len(rows), rows[0].tokens), dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    live, done = len(rows), 0
    for t in range(rows[0].tokens):
        while rows[live - 1].tokens <= t:
            live -= 1
        if t == 0:
            sequences.forward([_piece(lm, slot, given, nothing) for slot, given in enumerate(vectors)])
            logits = sequences.logits(np.cumsum(before) - 1)
        else:
            sequences.forward([Piece(slot, written[slot, t - 1 : t]) for slot in range(live)])
            logits = sequences.logits(slice(live))
        written[:live, t] = decoder.step(t, logits)
        done += live
        report(done)
    result = [nothing] * len(batch)
    for slot, i in enumerate(order):
        result[i] = written[slot, : rows[slot].tokens]
    return result


def batches(lm: ExactLM, site: Site, chunks: list[Coded], size: int) -> Iterator[list[int]]:
    """Numbers of chunks in batches of at most `size`, that the key-value cache holds."""
    vectors = (site.vectors(chunk.memory) for chunk in chunks)
    before = max((len(given) for given in vectors if given is not None), default=0) + len(lm.prefix)
    longest = before + max((chunk.tokens for chunk in chunks), default=1)
    size = max(1, min(size, CACHE_POSITIONS // (-(-longest // PAGE) * PAGE)))
    yield from (list(range(i, min(i + size, len(chunks)))) for i in range(0, len(chunks), size))
