"""The documents of .memz files as one seekable file, decoded where they are read: ranges, and `MemzFile`."""

import bisect
import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from memcodec.codec import Codec
from memcodec.container import HASH_BYTES, Container, Segment, StoredSpan
from memcodec.container.assembly import DecodedChunk, LocatedPart, decoded_chunks, located_parts
from memcodec.container.insertion import Sources
from memcodec.document.references import Reference, Slice, slices_of
from memcodec.errors import ChecksumError

_KEPT_BYTES = 1 << 22  # decoded bytes that are kept for the next read
_MOST_GROUPS = 64  # that are decoded ahead of a reader
# Of a stored span that is being read: number of its part, start of the current piece, this piece, the pieces after it.
_NO_SPAN: tuple[int, int, bytes, Iterator[bytes]] = (-1, 0, b"", iter(()))


class Decoded(io.RawIOBase):
    """The documents of concatenated files, decoded where they are read."""

    def __init__(self, files: list[Container], codec_for: Callable[[Container], Codec]) -> None:
        """codec_for: returns the codec of a file, when it is first needed."""
        self._codec_for = codec_for
        self._parts: list[tuple[Container, LocatedPart]] = []
        self._starts = [0]  # of the parts, in the carried bytes of all documents together
        self._slices: list[Slice] = []  # of all documents together
        references: list[Reference] = []
        size = 0  # of the documents
        for file in files:
            before = self._starts[-1]
            references += (replace(one, start=before + one.start) for one in file.references)
            for one in slices_of(file.carried, file.references):
                self._slices.append(replace(one, start=size + one.start, carried=before + one.carried))
            size += file.size
            for located in located_parts(file):
                self._parts.append((file, located))
                self._starts.append(self._starts[-1] + located.part.size)
        self._size = size
        self._sources = Sources(references)
        self._position = 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # decoded segments, by the number of their part
        self._kept_bytes = 0
        self._span = _NO_SPAN  # the stored span being read
        self._groups_at_once = 1
        self._reads_in_order = -1  # how many decoded batches followed each other without a gap
        self._next_part = 0  # the part after the last decoded batch
        self._checks = _WholeChecks(files)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if base is None:
            raise ValueError(f"whence {whence}: give 0, 1 or 2")
        if base + offset < 0:
            # A ValueError as that of io.BytesIO, and an OSError as that of a file, on which zipfile relies.
            raise io.UnsupportedOperation(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read from the part or the reference at the current position, to its end at most."""
        if self._position >= self._size or not len(buffer):
            return 0
        one = self._slices[bisect.bisect_right(self._slices, self._position, key=lambda one: one.start) - 1]
        first = self._position - one.start
        most = min(one.size - first, len(buffer))
        data = (self._copied if one.repeats else self._carried)(one.carried + first, most)
        buffer[: len(data)] = data
        self._checks.update(self._position, data)
        self._position += len(data)
        return len(data)

    def _copied(self, start: int, most: int) -> bytes:
        """The carried bytes that a reference repeats, from `start` on: at least one, and at most `most`."""
        kept = next(self._sources.read(start, start + most))
        if isinstance(kept, bytes):
            return kept
        order = self._reads_in_order, self._next_part  # reading continues after the reference
        self._reads_in_order, self._next_part = -1, 0
        try:
            return self._carried(start, kept.end - start)
        finally:
            self._reads_in_order, self._next_part = order

    def _carried(self, start: int, most: int) -> bytes:
        """Carried bytes of one part, from `start` on: at least one, and at most `most`."""
        number = bisect.bisect_right(self._starts, start) - 1
        first = start - self._starts[number]
        part = self._parts[number][1].part
        if isinstance(part, StoredSpan):
            return self._stored(number, part, first)[:most]
        return self._segment(number)[first : first + most]

    def _stored(self, number: int, part: StoredSpan, first: int) -> bytes:
        """Bytes of a stored span from `first` on, to the end of one of its pieces."""
        current, start, piece, pieces = self._span
        if current != number or first < start:
            start, piece, pieces = 0, b"", part.pieces()
        self._span = _NO_SPAN  # if an error ends the pieces, the next read begins with the first one again
        while first >= start + len(piece):
            start, piece = start + len(piece), next(pieces)
            if start + len(piece) == part.size:
                for _ in pieces:  # to the end, where the whole span is checked
                    pass
            self._sources.keep(self._starts[number] + start, piece)
        self._span = number, start, piece, pieces
        return piece[first - start :]

    def _segment(self, number: int) -> bytes:
        """The bytes of a segment."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        self._reads_in_order = self._reads_in_order + 1 if number == self._next_part else 0
        self._groups_at_once = max(1, min(1 << max(self._reads_in_order, 0) >> 1, _MOST_GROUPS))  # 1, 1, 2, 4, ...
        self._decode(number)
        return self._kept[number]

    def _decode(self, number: int) -> None:
        """Decode the group that a part belongs to, and the groups after it that are decoded with it."""
        file, wanted = self._parts[number]
        first = number
        while not self._starts_group(first, wanted.group):
            first -= 1
        last_group = wanted.group + self._groups_at_once - 1
        segments: list[int] = []
        end = first
        while end < len(self._parts) and self._parts[end][0] is file and self._parts[end][1].group <= last_group:
            if isinstance(self._parts[end][1].part, Segment):
                segments.append(end)
            end += 1
        self._next_part = end
        codec = self._codec_for(file)
        located = [self._parts[i][1] for i in segments]
        groups = sorted({one.group for one in located})
        tokens = codec.tokens(file, numbers=groups)
        number_of = {id(one): i for one, i in zip(located, segments, strict=True)}
        data: dict[int, list[bytes]] = {i: [] for i in segments}
        for chunk in decoded_chunks(located, tokens, codec.tokenizer):
            assert isinstance(chunk, DecodedChunk)
            if chunk.damage:
                raise ChecksumError(chunk.damage)
            data[number_of[id(chunk.within)]].append(chunk.data)
        self._keep({i: b"".join(pieces) for i, pieces in data.items()})

    def _starts_group(self, number: int, group: int) -> bool:
        located = self._parts[number][1]
        return located.group == group and isinstance(located.part, Segment) and located.part.corrections is not None

    def _keep(self, decoded: dict[int, bytes]) -> None:
        for number, data in decoded.items():
            self._sources.keep(self._starts[number], data)
            self._kept_bytes += len(data) - len(self._kept.pop(number, b""))
            self._kept[number] = data
        while len(self._kept) > len(decoded) and self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])


class _WholeChecks:
    """Checks the SHA-256 of each document that is read from its beginning to its end."""

    def __init__(self, files: list[Container]) -> None:
        ends = accumulate(file.size for file in files)
        self._documents = [(end, file.sha256) for end, file in zip(ends, files, strict=True) if file.size]
        self._position = 0  # everything before it was read without gaps, and is right as far as that is known
        self._number = 0  # of the document there
        self._digest = hashlib.sha256()  # of what was read of it

    def update(self, position: int, data: bytes) -> None:
        """Take bytes that were read at a position. Raises ChecksumError."""
        if position != self._position:
            return
        number, digest = self._number, self._digest.copy()  # after an error, the next read finds it again
        while data:
            end, expected = self._documents[number]
            inside, data = data[: end - position], data[end - position :]
            digest.update(inside)
            position += len(inside)
            if position == end:
                if digest.digest()[:HASH_BYTES] != expected:
                    raise ChecksumError("the decoded bytes do not match the original's SHA-256")
                number, digest = number + 1, hashlib.sha256()
        self._position, self._number, self._digest = position, number, digest
