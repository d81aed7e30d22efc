"""Inserting the bytes of references into the carried bytes of a document, which come in order."""

import tempfile
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memcodec.document.references import Reference
from memcodec.document.source import SPOOLED_BYTES

_PIECE = 1 << 20  # bytes of a reference that are handled at one time


@dataclass(frozen=True)
class Lost:
    """Bytes of the document that a damaged file has lost, from `start` to `end`; chunks: their numbers.

    Bytes that repeat lost ones have no chunks.
    """

    start: int
    end: int
    chunks: tuple[int, ...] = ()


class Sources:
    """The carried bytes that references repeat, and no others: kept when they are decoded, on disk if they are many."""

    def __init__(self, references: Iterable[Reference]) -> None:
        self._starts: list[int] = []  # of the ranges that are repeated, in order; they do not touch
        self._ends: list[int] = []
        for start, end in sorted((one.start, one.start + one.size) for one in references):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)
        self._kept: list[tuple[int, int, int]] = []  # where kept bytes start and end, and their place in the file
        self._size = 0  # of the file
        self._file: Any = None

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, start: int, data: bytes) -> None:
        """Keep what is repeated of the carried bytes from `start` on."""
        end = start + len(data)
        for i in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            first, last = max(start, self._starts[i]), min(end, self._ends[i])
            if not self.has(first, last):
                self._write(first, data[first - start : last - start])

    def _write(self, start: int, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115 (open as long as this is)
        self._file.seek(self._size)
        self._file.write(data)
        before = self._kept[-1] if self._kept else (0, -1, 0)
        if before[1] == start and before[2] + start - before[0] == self._size:
            self._kept[-1] = before[0], start + len(data), before[2]
        else:
            insort(self._kept, (start, start + len(data), self._size))
        self._size += len(data)

    def has(self, start: int, end: int) -> bool:
        """Whether these carried bytes are kept."""
        return all(isinstance(piece, bytes) for piece in self.read(start, end))

    def read(self, start: int, end: int) -> Iterator[bytes | Lost]:
        """Carried bytes in pieces, with a `Lost` for those that are not kept."""
        while start < end:
            i = bisect_right(self._kept, (start, 1 << 63, 0)) - 1
            if i >= 0 and self._kept[i][1] > start:
                first, last, place = self._kept[i]
                stop = min(end, last, start + _PIECE)
                self._file.seek(place + start - first)
                yield bytes(self._file.read(stop - start))
            else:
                stop = min(end, self._kept[i + 1][0]) if i + 1 < len(self._kept) else end
                yield Lost(start, stop)
            start = stop


def insert(pieces: Iterable[bytes | Lost], references: Sequence[Reference]) -> Iterator[bytes | Lost]:
    """A document in pieces, from its carried bytes in pieces. What repeats lost bytes is lost too.

    A `Lost` that is given has its place in the carried bytes, and one that is returned its place in the document.
    """
    sources = Sources(references)
    following = deque(references)
    at = place = 0  # carried bytes that are done, bytes of the document that are returned
    for piece in pieces:
        if isinstance(piece, bytes):
            sources.keep(at, piece)
        done, size = 0, _size(piece)
        while following and following[0].at <= at + size:
            one = following.popleft()
            for part in (_part(piece, done, one.at - at), *sources.read(one.start, one.start + one.size)):
                yield from _placed(part, place)
                place += _size(part)
            done = one.at - at
        yield from _placed(_part(piece, done, size), place)
        at, place = at + size, place + size - done


def _size(piece: bytes | Lost) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.end - piece.start


def _part(piece: bytes | Lost, start: int, end: int) -> bytes | Lost:
    """Some bytes of a piece."""
    if isinstance(piece, bytes):
        return piece[start:end]
    return replace(piece, start=piece.start + start, end=piece.start + end)


def _placed(piece: bytes | Lost, start: int) -> Iterator[bytes | Lost]:
    """A piece, unless it is empty; a `Lost` with this place in the document."""
    if _size(piece):
        yield piece if isinstance(piece, bytes) else replace(piece, start=start, end=start + _size(piece))
