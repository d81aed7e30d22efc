"""What repeats in a document: text that occurred before is left out, and a reference says where it occurred.

Every SAMPLE_BYTES of carried text, a sample enters a table; a rolling hash finds the samples that occur again, as in
rsync (Tridgell, 1999) and the long-distance matching of zstd. The bytes themselves are always compared. A repeat of
2 * SAMPLE_BYTES - 1 bytes has a whole sample in it wherever it begins.

The LM needs fewer bytes for a copy of text that it sees than a reference takes, so a repeat becomes a reference only if
enough of it is unseen.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from memcodec.document.references import MAX_REFERENCES, Reference
from memcodec.document.source import Source
from memcodec.document.table_entries import MARK_MULTIPLIER, MULTIPLIER, POSITION_BITS, POSITION_MASK
from memcodec.document.unseen import Grams, is_unseen, skip
from memcodec.lm.compiled import kernel, subkernel

SAMPLE_BYTES = 48
LEAST_BYTES = 2 * SAMPLE_BYTES  # of a reference: a repeat of this length always contains a whole sample
UNSEEN_BYTES = 64  # of these, at least, that the LM does not see (docs/context.md)
TOKEN_BYTES = 4  # of text in a token, about
WINDOW_BYTES = 1 << 24  # of the document that are kept in memory; what is farther back is read again

_MOST_SLOTS = 1 << 22  # of the table, 8 bytes each: enough for 100 MB of text; after that, new samples replace old ones
_BUCKET = 8  # slots in which a sample may be: a cache line
_CHARACTER_BYTES = 4  # at most
_FIRST_READ = 1 << 12  # bytes of text before the window that are compared first, then more at a time

_POWER = pow(MULTIPLIER, SAMPLE_BYTES - 1, 1 << 64)  # what the first byte of a sample was multiplied by


class Repeats:
    """Finds what repeats in the text of a document, from its beginning to its end."""

    def __init__(self, source: Source, seen_tokens: int = 0) -> None:
        """seen_tokens: about how many tokens before a repeat the LM sees; 0: all of every repeat counts as unseen."""
        self._source = source
        self._seen = TOKEN_BYTES * seen_tokens
        self._grams = Grams.of(self._seen)
        samples = source.size // SAMPLE_BYTES
        self._table = np.zeros(min(max(_BUCKET, 1 << (2 * samples).bit_length()), _MOST_SLOTS), dtype=np.uint64)
        # The last bytes of the document so far, and where they begin in it.
        self._kept = np.empty(min(source.size, WINDOW_BYTES), dtype=np.uint8)
        self._origin = self._size = 0
        # Of each reference so far: where it begins and ends in the document, and the bytes in all up to it.
        self._starts, self._ends, self._left_out = array("q"), array("q"), array("q")

    def _carried(self, place: int) -> int:
        """The number of carried bytes before a place in the document, which no reference has in its middle."""
        count = bisect_right(self._ends, place)
        return place - (self._left_out[count - 1] if count else 0)

    def cut(self, found: list[str | bytes]) -> tuple[list[str | bytes], list[Reference]]:
        """What is carried of the next text (str) and bytes of the document, and the references to what is carried."""
        carried: list[str | bytes] = []
        references: list[Reference] = []
        for part in found:
            if isinstance(part, bytes):
                self._skip(self._keep(part), len(part))
                carried.append(part)
                continue
            for piece in self._cut(self._keep(part.encode())):
                if isinstance(piece, Reference):
                    references.append(piece)
                else:
                    carried.append(piece)
        return carried, references

    def _keep(self, data: bytes) -> int:
        """Put the next bytes of the document, at most half a window, into it. Returns where they begin there."""
        if self._size + len(data) > len(self._kept):
            left_out = self._size - len(self._kept) // 2
            self._kept[: self._size - left_out] = self._kept[left_out : self._size].copy()
            self._origin, self._size = self._origin + left_out, self._size - left_out
        start = self._size
        self._size += len(data)
        self._kept[start : self._size] = np.frombuffer(data, dtype=np.uint8)
        return start

    def _skip(self, start: int, size: int) -> None:
        """Stored bytes of the window, which the LM does not read."""
        if self._seen:
            window = self._kept[: self._size]
            skip(
                window, start, size, self._origin, _array(self._starts), _array(self._ends), self._seen, self._grams
            )  # fmt: skip

    def _cut(self, start: int) -> Iterator[str | Reference]:
        """The text from `start` of the window to its end: what is carried of it, and references, in order."""
        window = self._kept[: self._size]
        done = at = fresh = start  # up to where it is returned, samples were looked up, and entered
        while len(self._starts) < MAX_REFERENCES:
            at, first, size, place, fresh = _next_repeat(
                window, done, at, fresh, self._origin, self._table, _array(self._starts), _array(self._ends),
                LEAST_BYTES, UNSEEN_BYTES, self._seen, self._grams,
            )  # fmt: skip
            if place < 0:
                break
            if place < self._origin:
                first, size = self._extended(window, done, at, place)
                if size < LEAST_BYTES or not is_unseen(
                    window, first, size, self._origin, _array(self._starts), _array(self._ends),
                    UNSEEN_BYTES, self._seen, self._grams,
                ):  # fmt: skip
                    at = max(at, first + size - SAMPLE_BYTES) + 1
                    continue
            if first > done:
                yield window[done:first].tobytes().decode()
            yield Reference(self._carried(self._origin + first), self._carried(place - (at - first)), size)
            _enter_all(window, fresh, first, self._origin, self._table)
            done = fresh = first + size
            self._starts.append(self._origin + first)
            self._ends.append(self._origin + done)
            self._left_out.append(size + (self._left_out[-1] if self._left_out else 0))
            at = done
        _enter_all(window, fresh, len(window), self._origin, self._table)
        if done < len(window):
            yield window[done:].tobytes().decode()

    def _extended(self, window: np.ndarray, done: int, at: int, place: int) -> tuple[int, int]:
        """As `_extend` with a place of the document before the window."""
        low, high = _around(place, _array(self._starts), _array(self._ends))
        low, count = max(low, place - SAMPLE_BYTES), _FIRST_READ
        while True:
            end = min(place + count, high, self._origin + at)
            before = np.array(np.frombuffer(self._source.read(low, end), dtype=np.uint8))
            longest = self._origin + at - place
            first, size = _extend(window, done, at, before, place - low, 0, len(before), longest)
            if first + size - at < count - _CHARACTER_BYTES or end < place + count:
                return first, size
            count *= 8


def _array(numbers: "array[int]") -> np.ndarray:
    """The same memory, int64. The numbers must not grow while it is used."""
    return np.frombuffer(numbers, dtype=np.int64)


@subkernel
def _hash(data, start):
    """The hash of the sample that begins at a byte, uint64."""
    value = np.uint64(0)
    for i in range(start, start + SAMPLE_BYTES):
        value = value * np.uint64(MULTIPLIER) + np.uint64(data[i])
    return value


@subkernel
def _bucket(value, table):
    """The first slot for a hash."""
    mixed = (value ^ (value >> np.uint64(32))) * np.uint64(MULTIPLIER)
    return (mixed >> np.uint64(32)) & np.uint64(len(table) - _BUCKET)


@subkernel
def _mark(value):
    """The bits of a hash that an entry of the table has above its position."""
    mixed = (value ^ (value >> np.uint64(29))) * np.uint64(MARK_MULTIPLIER)
    return mixed & ~np.uint64(POSITION_MASK)


@subkernel
def _enter(data, start, origin, table):
    """Enter a sample, unless an equal one is there; it takes an empty slot, or that of the oldest."""
    value = _hash(data, start)
    bucket, mark = _bucket(value, table), _mark(value)
    position = np.uint64(origin + start + 1)  # 0 is an empty slot
    oldest, least = bucket, np.uint64(POSITION_MASK)
    for slot in range(bucket, bucket + np.uint64(_BUCKET)):
        entry = table[slot]
        if entry == 0:
            oldest = slot
            break
        if entry & ~np.uint64(POSITION_MASK) == mark:
            return
        if entry & np.uint64(POSITION_MASK) < least:
            oldest, least = slot, entry & np.uint64(POSITION_MASK)
    table[oldest] = mark | position


@kernel
def _enter_all(data, start, end, origin, table):
    """Enter the samples of data from `start` to `end`. data: uint8, begins at `origin` of the document."""
    for at in range(start, end - SAMPLE_BYTES + 1, SAMPLE_BYTES):
        _enter(data, at, origin, table)


@kernel
def _around(place, starts, ends):
    """Where the carried bytes around a place of the document begin and end: references are from `starts` to `ends`."""
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if starts[middle] <= place:
            low = middle + 1
        else:
            high = middle
    return (ends[low - 1] if low else 0), (starts[low] if low < len(starts) else 1 << POSITION_BITS)


@kernel
def _extend(ours, done, at, theirs, there, low, high, longest):
    """The first byte and the size of the longest repeat in `ours` with byte `at`, which is that at `there` of `theirs`.

    It begins at `done` at the earliest and has at most `longest` bytes; its source is from `low` to `high` of theirs.
    Whole characters only. Both: UTF-8, uint8.
    """
    first = at
    while first > max(done, at - SAMPLE_BYTES) and there - (at - first) > low:
        if ours[first - 1] != theirs[there - (at - first) - 1]:
            break
        first -= 1
    last, most = at, min(len(ours), at + high - there, first + longest)
    while last < most and ours[last] == theirs[there + last - at]:
        last += 1
    while first < last and ours[first] & 0xC0 == 0x80:  # in the middle of a character
        first += 1
    while first < last < len(ours) and ours[last] & 0xC0 == 0x80:
        last -= 1
    return first, last - first


@kernel
def _next_repeat(window, done, at, fresh, origin, table, starts, ends, least, unseen, seen, grams):
    """The next repeat in text from byte `at` of the window on, which begins at `origin` of the document.

    done: the end of the last reference, or the start of this text; fresh: the next sample to be entered, SAMPLE_BYTES
    late, because a repeat may begin up to that many bytes before the sample that is found. starts, ends: of the
    references so far; least: bytes of a repeat; unseen, seen, grams: see `unseen.is_unseen`. Returns where the sample
    is, the first byte and the size of the repeat, where the sample occurred in the document (-1 if nowhere; before the
    window, its repeat is not known yet), and `fresh`.
    """
    while at + SAMPLE_BYTES <= len(window):
        value, place = _hash(window, at), np.int64(-1)
        while True:
            if fresh + 2 * SAMPLE_BYTES <= at:
                _enter(window, fresh, origin, table)
                fresh += SAMPLE_BYTES
            bucket, mark = _bucket(value, table), _mark(value)
            for slot in range(bucket, bucket + np.uint64(_BUCKET)):
                entry = table[slot]
                if entry == 0:
                    break
                if entry & ~np.uint64(POSITION_MASK) == mark:
                    place = np.int64(entry & np.uint64(POSITION_MASK)) - 1
                    break
            if place >= 0:
                break
            if at + SAMPLE_BYTES >= len(window):
                return at, 0, 0, -1, fresh
            dropped = np.uint64(window[at]) * np.uint64(_POWER)
            value = (value - dropped) * np.uint64(MULTIPLIER) + np.uint64(window[at + SAMPLE_BYTES])
            at += 1
        if place < origin:
            return at, 0, 0, place, fresh
        low, high = _around(place, starts, ends)
        there = place - origin  # the repeat is at most so long that its source ends where it begins
        first, size = _extend(window, done, at, window, there, max(low - origin, 0), high - origin, at - there)
        is_near = origin + at - place <= seen  # then the LM sees all of it, since it read its source
        if size >= least and not is_near and is_unseen(
            window, first, size, origin, starts, ends, unseen, seen, grams
        ):  # fmt: skip
            return at, first, size, place, fresh
        at = max(at, first + size - SAMPLE_BYTES) + 1  # after the samples that are a part of this repeat
    return at, 0, 0, -1, fresh
