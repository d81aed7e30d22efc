"""From coded groups to the parts of a container, and from decoded ones to the document."""

from collections.abc import Iterable, Iterator

import numpy as np

from memcodec import document
from memcodec.chunks import Coded
from memcodec.container import Chunk, Container, Part, Segment, StoredSpan, chunk_checksum, document_hash
from memcodec.errors import ChecksumError
from memcodec.tokens import ByteTokenizer

_SEGMENT_BYTES, _CHUNK_BYTES = 2, 1.5  # what they cost in the index


def parts_of(
    spans: list[document.Span],
    runs: list[list[np.ndarray]],
    coded: Iterator[Coded],
    tokenizer: ByteTokenizer,
    store: bool,
) -> list[Part]:
    """Parts of a document, from its spans, the chunks of each that is text, and its groups as they are coded.

    store: whether to store groups that zstd makes smaller.
    """
    parts: list[Part] = []
    group, at = Coded((), (), b""), 0
    chunks_of = iter(runs)
    for span in spans:
        if isinstance(span, document.Stored):
            parts.append(StoredSpan.of(span.data))
            continue
        run: list[tuple[Segment, bytes]] = []
        left = next(chunks_of)
        while left:
            if at == len(group.lengths):
                group, at = next(coded), 0
            count = min(len(left), len(group.lengths) - at)
            data = [tokenizer.decode(tokens) for tokens in left[:count]]
            chunks = tuple(
                Chunk(len(tokens), memory, chunk_checksum(piece))
                for tokens, memory, piece in zip(left, group.memories[at : at + count], data, strict=False)
            )
            run.append((Segment(sum(map(len, data)), chunks, None if at else group.corrections), b"".join(data)))
            left, at = left[count:], at + count
        whole_groups = _whole(run, at == len(group.lengths))
        for stretch, alone in whole_groups:
            parts += _store_losers(stretch) if store and alone else [segment for segment, _ in stretch]
    return _merged(parts)


def _whole(run: list[tuple[Segment, bytes]], ends: bool) -> list[tuple[list[tuple[Segment, bytes]], bool]]:
    """A run's first segment where its group began before, its last where that goes on, and what is between.

    ends: whether the last group ends with the run. Those between may be stored, each by itself.
    """
    first = int(run[0][0].corrections is None)
    last = len(run) if ends else max(first, len(run) - 1)
    found = [(run[:first], False), (run[first:last], True), (run[last:], False)]
    return [(stretch, alone) for stretch, alone in found if stretch]


def _store_losers(run: list[tuple[Segment, bytes]]) -> list[Part]:
    """Store the stretches of some groups that zstd makes smaller: all, else the halves, and so on."""
    segments = [segment for segment, _ in run]
    lm_size = sum(
        sum(len(chunk.memory) + _CHUNK_BYTES for chunk in segment.chunks) + len(segment.corrections or b"")
        for segment in segments
    )
    lm_size += _SEGMENT_BYTES * len(run)
    joined = b"".join(data for _, data in run)
    zstd = min(document.zstd_size(joined), len(joined)) + 4 * _SEGMENT_BYTES
    if zstd <= lm_size:
        return [StoredSpan.of(joined)]
    if len(run) == 1 or zstd > 3 * lm_size:
        return list(segments)
    half = len(run) // 2
    return _store_losers(run[:half]) + _store_losers(run[half:])


def _merged(parts: list[Part]) -> list[Part]:
    """Stored neighbours as one."""
    result: list[Part] = []
    for part in parts:
        if isinstance(part, StoredSpan) and result and isinstance(result[-1], StoredSpan):
            result[-1] = StoredSpan.of(result[-1].read() + part.read())
        else:
            result.append(part)
    return result


def document_of(parsed: Container, groups: Iterable[np.ndarray], tokenizer: ByteTokenizer | None) -> bytes:
    """The document, from the tokens of its groups, int64 [tokens] each. Raises ChecksumError, FormatError."""
    pieces = []
    written = iter(groups)
    tokens, number = np.empty(0, dtype=np.int64), 0
    for part in parsed.parts:
        if isinstance(part, StoredSpan):
            pieces.append(part.read())
            continue
        if part.corrections is not None:
            tokens = next(written)
        size = 0
        for chunk in part.chunks:
            assert tokenizer is not None
            data, tokens = tokenizer.decode(tokens[: chunk.tokens]), tokens[chunk.tokens :]
            if chunk_checksum(data) != chunk.checksum:
                raise ChecksumError(f"chunk {number} does not match its checksum: damaged file")
            pieces.append(data)
            size += len(data)
            number += 1
        if size != part.size:
            raise ChecksumError(f"the chunks up to {number - 1} have not the length that the index says: damaged file")
    result = b"".join(pieces)
    if len(result) != parsed.size or document_hash(result) != parsed.sha256:
        raise ChecksumError("the decoded bytes do not match the original's SHA-256")
    return result
