"""From coded groups to the parts of a container, and from decoded ones to the document."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from memcodec.container.layout import (
    HASH_BYTES,
    Chunk,
    Container,
    Group,
    ModelId,
    Segment,
    Settings,
    StoredSpan,
    chunk_checksum,
)
from memcodec.container.write import describe
from memcodec.document.source import Source
from memcodec.document.spans import Span, Stored, zstd_size
from memcodec.errors import ChecksumError, FormatError
from memcodec.groups import EncodedGroup
from memcodec.models.tokenizer import ByteTokenizer

_SEGMENT_BYTES, _CHUNK_BYTES = 2, 1.5  # what they cost in the index


@dataclass(frozen=True)
class SourceRange:
    """Bytes of the document that are to be stored, from `start` to `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class _SegmentBytes:
    """A segment, with the bytes that it holds and where they begin."""

    segment: Segment
    data: bytes
    start: int


def encoded_groups(groups: Iterable[Group]) -> list[EncodedGroup]:
    """Groups of a file as a decoder needs them."""
    return [
        EncodedGroup(
            tuple(chunk.tokens for chunk in group.chunks),
            tuple(chunk.memory for chunk in group.chunks),
            group.corrections,
        )
        for group in groups
    ]


def parts_of(
    spans: list[Span],
    runs: list[list[np.ndarray]],
    start: int,
    coded: Iterator[EncodedGroup],
    tokenizer: ByteTokenizer,
    store: bool,
) -> list[Segment | SourceRange]:
    """Parts of a block, from its spans, the chunks of each that is text, and its groups as they are coded.

    start: of the block; store: whether to store groups that zstd makes smaller.
    """
    parts: list[Segment | SourceRange] = []
    group, at = EncodedGroup((), (), b""), 0
    chunks_of = iter(runs)
    for span in spans:
        if isinstance(span, Stored):
            parts.append(SourceRange(start, start + len(span.data)))
            start += len(span.data)
            continue
        run: list[_SegmentBytes] = []
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
            segment = Segment(sum(map(len, data)), chunks, None if at else group.corrections)
            run.append(_SegmentBytes(segment, b"".join(data), start))
            start += segment.size
            left, at = left[count:], at + count
        for stretch, alone in _whole(run, at == len(group.lengths)):
            parts += _store_losers(stretch) if store and alone else [piece.segment for piece in stretch]
    return parts


def _whole(run: list[_SegmentBytes], ends: bool) -> list[tuple[list[_SegmentBytes], bool]]:
    """A run's first segment where its group began before, its last where that goes on, and what is between.

    ends: whether the last group ends with the run. Those between may be stored, each by itself.
    """
    first = int(run[0].segment.corrections is None)
    last = len(run) if ends else max(first, len(run) - 1)
    found = [(run[:first], False), (run[first:last], True), (run[last:], False)]
    return [(stretch, alone) for stretch, alone in found if stretch]


def _store_losers(run: list[_SegmentBytes]) -> list[Segment | SourceRange]:
    """Store the stretches of some groups that zstd makes smaller: all, else the halves, and so on."""
    segments = [piece.segment for piece in run]
    lm_size = sum(
        sum(len(chunk.memory) + _CHUNK_BYTES for chunk in segment.chunks) + len(segment.corrections or b"")
        for segment in segments
    )
    lm_size += _SEGMENT_BYTES * len(run)
    joined = b"".join(piece.data for piece in run)
    zstd = min(zstd_size(joined), len(joined)) + 4 * _SEGMENT_BYTES
    if zstd <= lm_size:
        return [SourceRange(run[0].start, run[0].start + len(joined))]
    if len(run) == 1 or zstd > 3 * lm_size:
        return list(segments)
    half = len(run) // 2
    return _store_losers(run[:half]) + _store_losers(run[half:])


def container_of(source: Source, parts: list[Segment | SourceRange], model: ModelId, settings: Settings) -> Container:
    """The container of a document whose blocks have these parts, one after the other; stored neighbours as one."""
    joined: list[Segment | SourceRange] = []
    for part in parts:
        if isinstance(part, SourceRange) and joined and isinstance(before := joined[-1], SourceRange):
            joined[-1] = SourceRange(before.start, part.end)
        else:
            joined.append(part)
    found = [_stored(source, part) if isinstance(part, SourceRange) else part for part in joined]
    return describe(source.size, source.digest()[:HASH_BYTES], found, model, settings)


def stored(source: Source) -> Container:
    """The container that stores a whole document, and needs no model."""
    whole = [_stored(source, SourceRange(0, source.size))] if source.size else []
    return describe(source.size, source.digest()[:HASH_BYTES], list(whole))


def _stored(source: Source, place: SourceRange) -> StoredSpan:
    return StoredSpan.of_pieces(lambda: source.pieces(place.start, place.end), place.end - place.start)


@dataclass(frozen=True)
class Lost:
    """Bytes of the document that a damaged file does not give back, from `start` to `end`; chunks: their numbers."""

    start: int
    end: int
    chunks: tuple[int, ...] = ()


def salvage_of(
    parsed: Container, groups: Iterable[np.ndarray], tokenizer: ByteTokenizer | None
) -> Iterator[bytes | Lost]:
    """The document in pieces, as `document_of`, but for what does not match its checksum.

    In a group, what comes behind the first chunk that is lost is lost too: its context is.
    """
    written = iter(groups)
    tokens, number, place, broken = np.empty(0, dtype=np.int64), 0, 0, False
    for part in parsed.parts:
        end = place + part.size
        if isinstance(part, StoredSpan):
            try:
                yield from list(part.pieces())
            except (ChecksumError, FormatError):
                yield Lost(place, end)
            place = end
            continue
        if part.corrections is not None:
            tokens, broken = next(written), False
        first = number
        for chunk in part.chunks:
            if not broken:
                assert tokenizer is not None
                data, tokens = tokenizer.decode(tokens[: chunk.tokens]), tokens[chunk.tokens :]
                last = number == first + len(part.chunks) - 1
                broken = chunk_checksum(data) != chunk.checksum or place + len(data) > end
                broken = broken or (last and place + len(data) != end)
            if broken:
                yield Lost(place, end, tuple(range(number, first + len(part.chunks))))
                break
            yield data
            place += len(data)
            number += 1
        place, number = end, first + len(part.chunks)


def document_of(parsed: Container, groups: Iterable[np.ndarray], tokenizer: ByteTokenizer | None) -> Iterator[bytes]:
    """The document in pieces, from the tokens of its groups, int64 [tokens] each.

    Raises ChecksumError, FormatError; the whole is checked behind the last piece.
    """
    written = iter(groups)
    tokens, number = np.empty(0, dtype=np.int64), 0
    whole, length = hashlib.sha256(), 0
    for part in parsed.parts:
        if isinstance(part, StoredSpan):
            for piece in part.pieces():
                whole.update(piece)
                length += len(piece)
                yield piece
            continue
        if part.corrections is not None:
            tokens = next(written)
        size = 0
        for chunk in part.chunks:
            assert tokenizer is not None
            data, tokens = tokenizer.decode(tokens[: chunk.tokens]), tokens[chunk.tokens :]
            if chunk_checksum(data) != chunk.checksum:
                raise ChecksumError(f"chunk {number} does not match its checksum: damaged file")
            size += len(data)
            number += 1
            whole.update(data)
            yield data
        length += size
        if size != part.size:
            raise ChecksumError(f"the chunks up to {number - 1} have not the length that the index says: damaged file")
    if length != parsed.size or whole.digest()[:HASH_BYTES] != parsed.sha256:
        raise ChecksumError("the decoded bytes do not match the original's SHA-256")
