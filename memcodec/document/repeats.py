"""What repeats in a document: text that occurred before is left out, and a reference says where it occurred.

Every SAMPLE_BYTES of carried text, a sample enters a table; a rolling hash finds the samples that occur again, as in
rsync (Tridgell, 1999) and the long-distance matching of zstd. The bytes themselves are always compared. A repeat of
2 * SAMPLE_BYTES - 1 bytes has a whole sample in it wherever it begins. The kernels call none of another file, so that
numba notices itself when they change.
"""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from memcodec.document.references import Reference
from memcodec.document.source import Source
from memcodec.lm.compiled import kernel, subkernel

LEAST_BYTES = 400  # of a reference: shorter repeats may cost more in the index than the LM needs (docs/context.md)
TOKEN_BYTES = 4  # about: of text that the LM sees, and of which it predicts a copy for less than a reference costs
SAMPLE_BYTES = 48

_MOST_REFERENCES = 1 << 21  # in one document
_MOST_SLOTS = 1 << 22  # of the table, 8 bytes each: enough for 100 MB of text; after that, new samples replace old ones
_BUCKET = 8  # slots in which a sample may be: a cache line
_FIRST_READ = 512  # bytes of a source that are compared first, then more at a time

_MULTIPLIER = 0x9E3779B97F4A7C15
_POWER = pow(_MULTIPLIER, SAMPLE_BYTES - 1, 1 << 64)  # what the first byte of a sample was multiplied by
_POSITION_BITS = 40
_POSITION_MASK = (1 << _POSITION_BITS) - 1


class Repeats:
    """Finds what repeats in the text of a document, from its beginning to its end."""

    def __init__(self, source: Source, seen_tokens: int = 0) -> None:
        """seen_tokens: what repeats text so near before it is left to the LM."""
        self._source = source
        self._nearest = TOKEN_BYTES * seen_tokens
        samples = source.size // SAMPLE_BYTES
        self._table = np.zeros(min(max(_BUCKET, 1 << (2 * samples).bit_length()), _MOST_SLOTS), dtype=np.uint64)
        # Of each reference so far: where it begins and ends in the document, and the bytes in all up to it.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._left_out: list[int] = []

    def _carried(self, place: int) -> int:
        """The number of carried bytes before a place in the document, which no reference has in its middle."""
        count = bisect_right(self._ends, place)
        return place - (self._left_out[count - 1] if count else 0)

    def cut(self, found: list[str | bytes], start: int) -> tuple[list[str | bytes], list[Reference]]:
        """What is carried of text (str) and bytes that begin at `start` of the document, and the references to it."""
        carried: list[str | bytes] = []
        references: list[Reference] = []
        for part in found:
            if isinstance(part, bytes):
                carried.append(part)
            else:
                for piece in self._cut(part, start):
                    if isinstance(piece, Reference):
                        references.append(piece)
                    else:
                        carried.append(piece)
            start += len(part if isinstance(part, bytes) else part.encode())
        return carried, references

    def _cut(self, text: str, start: int) -> Iterator[str | Reference]:
        """Text that begins at `start` of the document: what is carried of it, and references, in order."""
        encoded = text.encode()
        data = np.frombuffer(encoded, dtype=np.uint8)
        done = at = fresh = 0  # bytes that are returned, bytes in which samples were looked up, and entered
        while len(self._starts) < _MOST_REFERENCES:
            at, place, fresh = _next_repeat(data, at, fresh, start, self._table)
            if place < 0:
                break
            first, size = self._extended(encoded, done, at, place, start)
            if size < LEAST_BYTES or start + at - place < self._nearest:
                at = max(at, first + size - SAMPLE_BYTES) + 1  # behind the samples that are a part of this repeat
                continue
            source = place - (at - first)
            if first > done:
                yield encoded[done:first].decode()
            yield Reference(self._carried(start + first), self._carried(source), size)
            _enter_all(data, fresh, first, start, self._table)
            self._starts.append(start + first)
            done = at = fresh = first + size
            self._ends.append(start + done)
            self._left_out.append(size + (self._left_out[-1] if self._left_out else 0))
        _enter_all(data, fresh, len(data), start, self._table)
        if done < len(data):
            yield encoded[done:].decode()

    def _extended(self, text: bytes, done: int, at: int, place: int, start: int) -> tuple[int, int]:
        """The first byte and the size of the longest repeat in text with byte `at`, which may be that at `place`.

        The text begins at `start` of the document; its first `done` bytes are taken. Whole characters only.
        """
        number = bisect_right(self._starts, place)
        low = self._ends[number - 1] if number else 0  # the carried bytes around the place end here, and at `high`
        if place < low:
            return at, 0
        back = min(SAMPLE_BYTES, at - done, place - low)
        before, ours = self._source.read(place - back, place), text[at - back : at]
        first = at
        while first > at - back and ours[first - 1 - (at - back)] == before[first - 1 - (at - back)]:
            first -= 1
        high = min(self._starts[number] if number < len(self._starts) else start + first, start + first)
        size, most = 0, min(len(text) - at, high - place)
        step = _FIRST_READ
        while size < most:
            count = min(step, most - size)
            same = _common(text[at + size : at + size + count], self._source.read(place + size, place + size + count))
            size += same
            if same < count:
                break
            step *= 2
        last = at + size
        while first < last and text[first] & 0xC0 == 0x80:  # in the middle of a character
            first += 1
        while first < last < len(text) and text[last] & 0xC0 == 0x80:
            last -= 1
        return first, last - first


def _common(first: bytes, second: bytes) -> int:
    """The number of bytes at the beginning of two equally long strings that are the same."""
    if first == second:
        return len(first)
    return int(np.argmax(np.frombuffer(first, np.uint8) != np.frombuffer(second, np.uint8)))


@subkernel
def _hash(data, start):
    """The hash of the sample that begins at a byte, uint64."""
    value = np.uint64(0)
    for i in range(start, start + SAMPLE_BYTES):
        value = value * np.uint64(_MULTIPLIER) + np.uint64(data[i])
    return value


@subkernel
def _bucket(value, table):
    """The first slot for a hash."""
    mixed = (value ^ (value >> np.uint64(32))) * np.uint64(_MULTIPLIER)
    return (mixed >> np.uint64(32)) & np.uint64(len(table) - _BUCKET)


@subkernel
def _mark(value):
    """The bits of a hash that an entry of the table has above its position."""
    mixed = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed & ~np.uint64(_POSITION_MASK)


@subkernel
def _enter(data, start, origin, table):
    """Enter a sample, unless an equal one is there; it takes an empty slot, or that of the oldest."""
    value = _hash(data, start)
    bucket, mark = _bucket(value, table), _mark(value)
    position = np.uint64(origin + start + 1)  # 0 is an empty slot
    oldest, least = bucket, np.uint64(_POSITION_MASK)
    for slot in range(bucket, bucket + np.uint64(_BUCKET)):
        entry = table[slot]
        if entry == 0:
            oldest = slot
            break
        if entry & ~np.uint64(_POSITION_MASK) == mark:
            return
        if entry & np.uint64(_POSITION_MASK) < least:
            oldest, least = slot, entry & np.uint64(_POSITION_MASK)
    table[oldest] = mark | position


@kernel
def _enter_all(data, start, end, origin, table):
    """Enter the samples of data from `start` to `end`. data: uint8, begins at `origin` of the document."""
    for at in range(start, end - SAMPLE_BYTES + 1, SAMPLE_BYTES):
        _enter(data, at, origin, table)


@kernel
def _next_repeat(data, at, fresh, origin, table):
    """The first sample from `at` on that is in the table: where it is in data and in the document (-1 if nowhere).

    data: uint8, begins at `origin` of the document; fresh: the next sample to be entered, which is done SAMPLE_BYTES
    behind: a repeat may begin so much before the sample that is found. Returns `fresh` too.
    """
    if at + SAMPLE_BYTES > len(data):
        return at, -1, fresh
    value = _hash(data, at)
    while True:
        if fresh + 2 * SAMPLE_BYTES <= at:
            _enter(data, fresh, origin, table)
            fresh += SAMPLE_BYTES
        bucket, mark = _bucket(value, table), _mark(value)
        for slot in range(bucket, bucket + np.uint64(_BUCKET)):
            entry = table[slot]
            if entry == 0:
                break
            if entry & ~np.uint64(_POSITION_MASK) == mark:
                return at, np.int64(entry & np.uint64(_POSITION_MASK)) - 1, fresh
        if at + SAMPLE_BYTES >= len(data):
            return at, -1, fresh
        dropped = np.uint64(data[at]) * np.uint64(_POWER)
        value = (value - dropped) * np.uint64(_MULTIPLIER) + np.uint64(data[at + SAMPLE_BYTES])
        at += 1
