"""From encoded groups to the parts of a container, and from decoded groups back to the document."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise

import numpy as np

from memcodec.coding.corrections import EncodedGroup
from memcodec.container.insertion import Lost, insert
from memcodec.container.layout import (
    HASH_BYTES,
    Chunk,
    Container,
    Group,
    ModelId,
    Part,
    Segment,
    Settings,
    StoredSpan,
    chunk_checksum,
)
from memcodec.container.write import describe, pack
from memcodec.container.zstd_estimate import estimated_size, estimated_sizes
from memcodec.document.blocks import Block
from memcodec.document.references import CarriedBytes, Reference
from memcodec.document.references import joined as joined_references
from memcodec.document.source import Source
from memcodec.document.spans import Text, has_text, zstd_size
from memcodec.errors import ChecksumError, FormatError
from memcodec.lm.team import Team
from memcodec.models.tokenizer import ByteTokenizer

STORE_SMALLER = True  # False in tests and benchmarks of tiny models, which zstd beats (benchmarks/force_lm.py)
_SEGMENT_BYTES, _CHUNK_BYTES = 2, 1.5  # the approximate cost of each in the index
_STORED_BYTES = 4 * _SEGMENT_BYTES  # of a stored span, and of the runs that it parts
_NO_TOKENS = np.empty(0, dtype=np.int64)


# ---- encoding


@dataclass(frozen=True)
class SourceRange:
    """Carried bytes that will be stored, from `start` to `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class _SegmentBytes:
    """A segment with its bytes, which begin at `start` of the carried bytes."""

    segment: Segment
    data: bytes
    start: int


EncodedPart = Segment | SourceRange | Reference


def parts_of(block: Block, encoded: Iterator[EncodedGroup], tokenizer: ByteTokenizer, store: bool) -> list[EncodedPart]:
    """The references and the other parts of a block, whose groups are the next ones of `encoded`.

    store: groups that zstd makes smaller are stored instead.
    """
    parts: list[EncodedPart] = [*block.references]
    start = block.carried
    group, used = EncodedGroup((), (), b""), 0  # the group of the next chunk, and how many of its chunks are used
    runs = iter(block.plan.runs)
    for span in block.spans:
        if not isinstance(span, Text):
            parts.append(SourceRange(start, start + span.size))
            start += span.size
            continue
        run: list[_SegmentBytes] = []
        chunks = next(runs)
        decoded = tokenizer.decode_each(chunks)
        while chunks:
            if used == len(group.lengths):
                group, used = next(encoded), 0
            count = min(len(chunks), len(group.lengths) - used)
            texts = decoded[:count]
            described = tuple(
                Chunk(len(tokens), memory, chunk_checksum(text))
                for tokens, memory, text in zip(chunks, group.memories[used : used + count], texts, strict=False)
            )
            segment = Segment(sum(map(len, texts)), described, None if used else group.corrections)
            run.append(_SegmentBytes(segment, b"".join(texts), start))
            start += segment.size
            chunks, decoded, used = chunks[count:], decoded[count:], used + count
        for segments, storable in _storable(run, used == len(group.lengths)):
            if store and storable and STORE_SMALLER:
                parts += _store_smaller(segments, tokenizer.team)
            else:
                parts += [one.segment for one in segments]
    return parts


def _storable(run: list[_SegmentBytes], ends: bool) -> list[tuple[list[_SegmentBytes], bool]]:
    """A run of segments in up to three pieces, each with whether its segments may be stored instead.

    A segment may be stored if it is a whole group: not the first if its group began before the run, and not the last if
    its group goes on after the run. ends: the last group ends with the run.
    """
    first = int(run[0].segment.corrections is None)
    last = len(run) if ends else max(first, len(run) - 1)
    pieces = [(run[:first], False), (run[first:last], True), (run[last:], False)]
    return [(segments, storable) for segments, storable in pieces if segments]


def _store_smaller(run: list[_SegmentBytes], team: Team) -> list[Segment | SourceRange]:
    """A run of whole groups, stored where zstd makes it smaller: all of it, or in its halves, and so on."""
    lm_sizes = [_lm_size(one.segment) for one in run]
    least = estimated_sizes([one.data for one in run])  # the least that zstd needs for each, after those before it
    stored: list[range] = []
    left = [range(len(run))]
    while left:
        # Where each segment needs more than the LM does, no part can be smaller.
        left = [some for some in left if any(least[i] <= lm_sizes[i] for i in some)]
        rooms = [sum(lm_sizes[i] for i in some) - _STORED_BYTES for some in left]
        tried = [sum(least[i] for i in some) <= room for some, room in zip(left, rooms, strict=True)]
        joined = [b"".join(run[i].data for i in some) for some in compress(left, tried)]
        sizes = iter(team.each(zstd_size, joined))
        halves: list[range] = []
        for some, room, is_tried in zip(left, rooms, tried, strict=True):
            if is_tried and min(next(sizes), sum(len(run[i].data) for i in some)) <= room:
                stored.append(some)
            elif len(some) > 1:
                half = len(some) // 2
                halves += [some[:half], some[half:]]
        left = halves
    ends = {some.start: some.stop for some in stored}
    parts: list[Segment | SourceRange] = []
    at = 0
    while at < len(run):
        end = ends.get(at, at + 1)
        last = run[end - 1]
        parts.append(SourceRange(run[at].start, last.start + len(last.data)) if at in ends else run[at].segment)
        at = end
    return parts


def _lm_size(segment: Segment) -> float:
    """About the bytes of a segment in a file."""
    chunks = sum(len(chunk.memory) + _CHUNK_BYTES for chunk in segment.chunks)
    return chunks + len(segment.corrections or b"") + _SEGMENT_BYTES


def container_of(source: Source, parts: list[EncodedPart], model: ModelId, settings: Settings) -> Container:
    """The container of a document with these parts, of all its blocks; adjacent ranges are stored as one span."""
    references = [part for part in parts if isinstance(part, Reference)]
    joined: list[Segment | SourceRange] = []
    for part in parts:
        if isinstance(part, Reference):
            continue
        if isinstance(part, SourceRange) and joined and isinstance(before := joined[-1], SourceRange):
            joined[-1] = SourceRange(before.start, part.end)
        else:
            joined.append(part)
    carried = CarriedBytes(source, references)
    final: list[Part] = [_stored(carried, part) if isinstance(part, SourceRange) else part for part in joined]
    return describe(source.size, source.digest()[:HASH_BYTES], final, model, settings, joined_references(references))


def stored(source: Source) -> Container:
    """The container that stores a whole document, and needs no model."""
    whole: list[Part] = [_stored(CarriedBytes(source, []), SourceRange(0, source.size))] if source.size else []
    return describe(source.size, source.digest()[:HASH_BYTES], whole)


def smaller_of(source: Source, blob: bytes) -> bytes:
    """The file of a document that the LM encoded, or the file that stores it whole if that is not larger."""
    if not STORE_SMALLER or estimated_size(source) > len(blob):
        return blob
    whole = pack(stored(source))
    return whole if len(whole) <= len(blob) else blob


def _stored(carried: CarriedBytes, place: SourceRange) -> StoredSpan:
    return StoredSpan.of_pieces(lambda: carried.pieces(place.start, place.end), place.end - place.start)


def without_model(source: Source) -> bytes | None:
    """The file of a document that needs no LM; None if it has text. Raises EncodeError if it changed."""
    if has_text(source):
        return None
    blob = pack(stored(source))
    source.check_unchanged()
    return blob


# ---- decoding


@dataclass(frozen=True)
class LocatedPart:
    """A part of a container. start: where it begins in the carried bytes.

    chunk: the number of its first chunk in the file (at a stored span, of the next one); group: the number of its group
    in the file (at a stored span, of the last one before it).
    """

    part: Part
    start: int
    chunk: int
    group: int


def located_parts(parsed: Container) -> Iterator[LocatedPart]:
    """The parts of a container, in order, with their places."""
    start, chunk, group = 0, 0, -1
    for part in parsed.parts:
        if isinstance(part, Segment) and part.corrections is not None:
            group += 1
        yield LocatedPart(part, start, chunk, group)
        start += part.size
        if isinstance(part, Segment):
            chunk += len(part.chunks)


@dataclass(frozen=True)
class DecodedChunk:
    """A chunk with its token ids, int64 [tokens], and its bytes, which begin at `start` of the carried bytes.

    within: the segment that it belongs to; number: its number in the file; damage: why the bytes cannot be right, empty
    if they match the index.
    """

    within: LocatedPart
    number: int
    start: int
    tokens: np.ndarray
    data: bytes
    damage: str


def decoded_chunks(
    located: Iterable[LocatedPart], groups: Iterable[np.ndarray], tokenizer: ByteTokenizer | None
) -> Iterator[LocatedPart | DecodedChunk]:
    """The chunks of some parts, one by one, and the stored spans unchanged, in order.

    groups: the token ids of the groups that the segments belong to, int64 [tokens] each; tokenizer: None if there are
    only stored spans.
    """
    tokens_of = iter(groups)
    left = _NO_TOKENS  # tokens of the current group that are not used yet
    for place in located:
        part = place.part
        if isinstance(part, StoredSpan):
            yield place
            continue
        assert tokenizer is not None
        if part.corrections is not None:
            left = next(tokens_of)
        ends = list(accumulate((chunk.tokens for chunk in part.chunks), initial=0))
        runs = [left[start:end] for start, end in pairwise(ends)]
        left = left[ends[-1] :]
        size = 0
        for i, (chunk, tokens, data) in enumerate(zip(part.chunks, runs, tokenizer.decode_each(runs), strict=True)):
            number, start = place.chunk + i, place.start + size
            size += len(data)
            damage = ""
            if chunk_checksum(data) != chunk.checksum:
                damage = f"chunk {number} does not match its checksum: damaged file"
            elif size > part.size or (i == len(part.chunks) - 1 and size != part.size):
                damage = f"the chunks up to {number} do not have the length that the index says: damaged file"
            yield DecodedChunk(place, number, start, tokens, data, damage)


def encoded_groups(groups: Iterable[Group]) -> list[EncodedGroup]:
    """Groups of a file in the form that a decoder takes."""
    return [
        EncodedGroup(
            tuple(chunk.tokens for chunk in group.chunks),
            tuple(chunk.memory for chunk in group.chunks),
            group.corrections,
        )
        for group in groups
    ]


def document_of(parsed: Container, groups: Iterable[np.ndarray], tokenizer: ByteTokenizer | None) -> Iterator[bytes]:
    """The document in pieces, from the token ids of its groups, int64 [tokens] each.

    Raises ChecksumError, FormatError; the whole is checked after the last piece.
    """
    whole, size = hashlib.sha256(), 0
    for piece in insert(_carried_pieces(parsed, groups, tokenizer), parsed.references):
        assert isinstance(piece, bytes)
        whole.update(piece)
        size += len(piece)
        yield piece
    if size != parsed.size or whole.digest()[:HASH_BYTES] != parsed.sha256:
        raise ChecksumError("the decoded bytes do not match the original's SHA-256")


def _carried_pieces(
    parsed: Container, groups: Iterable[np.ndarray], tokenizer: ByteTokenizer | None
) -> Iterator[bytes]:
    for found in decoded_chunks(located_parts(parsed), groups, tokenizer):
        if isinstance(found, DecodedChunk):
            if found.damage:
                raise ChecksumError(found.damage)
            yield found.data
        elif isinstance(found.part, StoredSpan):
            yield from found.part.pieces()


def salvage_of(
    parsed: Container, groups: Iterable[np.ndarray], tokenizer: ByteTokenizer | None
) -> Iterator[bytes | Lost]:
    """The document in pieces, as `document_of`, with a `Lost` for what does not match its checksum.

    After the first lost chunk of a group, the rest of the group is lost too, because its context is; and so is what
    repeats lost bytes.
    """
    return insert(_carried_salvage(parsed, groups, tokenizer), parsed.references)


def _carried_salvage(
    parsed: Container, groups: Iterable[np.ndarray], tokenizer: ByteTokenizer | None
) -> Iterator[bytes | Lost]:
    """The carried bytes in pieces, with a `Lost` for what does not match its checksum."""
    broken_group = broken_part = -1  # the group whose context is lost; the first chunk of the part that was reported
    for found in decoded_chunks(located_parts(parsed), groups, tokenizer):
        if isinstance(found, LocatedPart):
            assert isinstance(found.part, StoredSpan)
            try:
                for _ in found.part.pieces():  # the end shows whether it is right, and it may be too large to keep
                    pass
            except (ChecksumError, FormatError):
                yield Lost(found.start, found.start + found.part.size)
            else:
                yield from found.part.pieces()
            continue
        place = found.within
        if place.group != broken_group and not found.damage:
            yield found.data
        elif place.chunk != broken_part:
            assert isinstance(place.part, Segment)
            broken_group, broken_part = place.group, place.chunk
            start = max(place.start, min(found.start, place.start + place.part.size))
            last = place.chunk + len(place.part.chunks)
            yield Lost(start, place.start + place.part.size, tuple(range(found.number, last)))
