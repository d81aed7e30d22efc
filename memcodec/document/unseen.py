"""Finds how much of a repeat the LM does not see, because it occurs neither in the context nor earlier in the repeat.

Text is compared in grams, GRAM_BYTES from each byte on, by their hashes: a table says where each gram occurred last. It
is brought up to date only when a repeat is examined, so that text without repeats takes no time. References and stored
bytes, which the LM does not read, are not in the table and do not count in distances.
"""

from typing import NamedTuple

import numpy as np

from memcodec.document.table_entries import MULTIPLIER, POSITION_BITS, POSITION_MASK
from memcodec.lm.compiled import kernel, subkernel

GRAM_BYTES = 8

_SLOTS = 4  # of the table, at least, for each gram: of two with the same slot, the later one is kept
_CHANGES = 1024  # grams of a repeat that are entered while it is examined; its later ones are compared with no more


class Grams(NamedTuple):
    """Where grams occurred in what the LM reads.

    places: entries of grams (see `_entry`), uint64 [slots]; entered: the byte of the document up to which grams are in
    the table, how many references are before it, and how many bytes that the LM does not read, int64 [3]; changes:
    slots and what was in them, while a repeat is examined, uint64 [_CHANGES, 2].
    """

    places: np.ndarray
    entered: np.ndarray
    changes: np.ndarray

    @classmethod
    def of(cls, seen: int) -> "Grams":
        """Returns an empty table. seen: how many bytes of text before a repeat the LM sees."""
        places = np.zeros(1 << (_SLOTS * (seen + _CHANGES)).bit_length(), dtype=np.uint64)
        return cls(places, np.zeros(3, dtype=np.int64), np.empty((_CHANGES, 2), dtype=np.uint64))


@kernel
def is_unseen(window, first, size, origin, starts, ends, least, seen, grams):
    """Whether `least` bytes or more of a repeat are in no gram that the LM sees.

    window: a part of the document that begins at `origin`, with `seen` bytes before the repeat or more, uint8; first:
    where the repeat begins in it, not before that of the previous call; starts, ends: of the references so far, all
    before the repeat; seen: as in `Grams.of`, 0 if all is unseen.
    """
    if seen == 0:
        return True
    _enter(window, first, origin, starts, ends, seen, grams)
    read = origin + first - grams.entered[2]
    oldest = np.uint64(max(read - seen, 0))
    covered, missing, changed = first, least, 0
    for at in range(first, first + size):
        if at + GRAM_BYTES <= first + size:
            slot, entry = _entry(window, at, read + at - first, grams.places)
            before = grams.places[slot]
            is_equal = (before ^ entry) >> np.uint64(POSITION_BITS) == 0
            if is_equal and before & np.uint64(POSITION_MASK) > oldest:
                covered = at + GRAM_BYTES
            elif changed < len(grams.changes):
                grams.changes[changed, 0], grams.changes[changed, 1] = slot, before
                grams.places[slot] = entry
                changed += 1
        if covered <= at:
            missing -= 1
            if missing == 0:
                break
    for i in range(changed - 1, -1, -1):  # the LM does not read the repeat if it becomes a reference
        grams.places[grams.changes[i, 0]] = grams.changes[i, 1]
    return missing == 0


@kernel
def skip(window, first, size, origin, starts, ends, seen, grams):
    """Leave out some bytes that are stored, and not read by the LM. The arguments are those of `is_unseen`."""
    _enter(window, first, origin, starts, ends, seen, grams)
    grams.entered[0] = origin + first + size
    grams.entered[2] += size


@subkernel
def _enter(window, first, origin, starts, ends, seen, grams):
    """Bring the table up to date with the text before a place, or with as much of it as is seen."""
    at, reference, left_out = grams.entered[0], grams.entered[1], grams.entered[2]
    while True:
        is_last = reference == len(starts)
        end = origin + first if is_last else starts[reference]
        at = max(at, end - seen, origin)
        while at + GRAM_BYTES <= end:
            slot, entry = _entry(window, at - origin, at - left_out, grams.places)
            grams.places[slot] = entry
            at += 1
        if is_last:
            break
        left_out += ends[reference] - starts[reference]
        at = ends[reference]
        reference += 1
    grams.entered[0], grams.entered[1], grams.entered[2] = at, reference, left_out


@subkernel
def _entry(window, at, read, places):
    """The slot of the gram at a byte, and its entry, uint64: bits of its hash, and what the LM read up to its first."""
    gram = np.uint64(0)
    for i in range(at, at + GRAM_BYTES):
        gram = (gram << np.uint64(8)) | np.uint64(window[i])
    mixed = gram * np.uint64(MULTIPLIER)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(MULTIPLIER)
    slot = (mixed >> np.uint64(16)) & np.uint64(len(places) - 1)
    return slot, (mixed & ~np.uint64(POSITION_MASK)) | np.uint64(read + 1)
