"""References: bytes of a document that are not carried, because they repeat carried bytes that stand before them.

The carried bytes are those that the LM encodes or that are stored, in order and without a gap. The document is the
carried bytes with the bytes of each reference inserted. Nothing refers to inserted bytes, so there are no chains.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from memcodec.document.source import Source

MAX_REFERENCES = 1 << 21  # of one document, and so in one file


@dataclass(frozen=True, slots=True)  # a file may have two million
class Reference:
    """`size` bytes of a document that are a copy of the carried bytes from `start` on.

    at: the number of carried bytes before them, at least start + size.
    """

    at: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Slice:
    """`size` bytes of a document, from `start` on, which are the carried bytes from `carried` on.

    repeats: whether a reference inserts them.
    """

    start: int
    size: int
    carried: int
    repeats: bool


def slices_of(carried: int, references: Iterable[Reference]) -> Iterator[Slice]:
    """A document with this number of carried bytes as slices of these, none of them empty."""
    start = done = 0
    for reference in references:
        if reference.at > done:
            yield Slice(start, reference.at - done, done, False)
            start, done = start + reference.at - done, reference.at
        yield Slice(start, reference.size, reference.start, True)
        start += reference.size
    if carried > done:
        yield Slice(start, carried - done, done, False)


def joined(references: Iterable[Reference]) -> list[Reference]:
    """The same references, with those joined that follow each other and repeat bytes that follow each other."""
    result: list[Reference] = []
    for one in references:
        last = result[-1] if result else None
        if last and last.at == one.at and last.start + last.size == one.start:
            result[-1] = replace(last, size=last.size + one.size)
        else:
            result.append(one)
    return result


class CarriedBytes:
    """The carried bytes of a document that an encoder reads."""

    def __init__(self, source: Source, references: Sequence[Reference]) -> None:
        self._source = source
        self.size = source.size - sum(one.size for one in references)
        self._cuts = [0, *(one.at for one in references)]
        self._inserted = list(accumulate((one.size for one in references), initial=0))  # up to each cut, with it

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Carried bytes from `start` to `end`, in pieces. Raises as `Source.read`."""
        while start < end:
            number = bisect_right(self._cuts, start) - 1
            stop = min(end, self._cuts[number + 1]) if number + 1 < len(self._cuts) else end
            yield from self._source.pieces(start + self._inserted[number], stop + self._inserted[number])
            start = stop
