"""The least that zstd's best level may need for some bytes, from a faster level, which takes a tenth of the time.

The LM makes most texts so much smaller than any level of zstd that its best one need not be tried. On prose, code, DNA,
logs, JSON, tables and random words of a few, level 12 needs at most 1.21 times as many bytes as the best one; level 7
needs up to 2.5 times as many. It needs more where the best level finds a period or a count (lines with increasing
numbers, drawings of characters): such bytes have many digits, or the faster level makes them so small too that the best
one is always tried.
"""

from typing import Any

import zstandard

from memcodec.document.source import Source

_LEVEL = 12
_MOST_GAIN, _MOST_GAIN_OF_NUMBERS = 1.6, 2.5  # how much smaller the best level is at most
_NUMBERS = 1 / 5  # from this share of digits on, bytes are numbers
_REGULAR = 1 / 16  # bytes of which the faster level needs less than this share are very regular
_NEAR_BYTES = 1 << 20  # from this size on, a document may repeat what the faster level does not look so far back for
_FAR: dict[str, Any] = {"window_log": 23, "enable_ldm": True}  # the window of level 19
_DIGITS = b"0123456789"


def least_sizes(pieces: list[bytes]) -> list[float]:
    """About the least that zstd -19 needs for each of several pieces, behind those before it.

    Any of these pieces that follow each other need at least the sum, since zstd knows less before them.
    """
    stream = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=sum(map(len, pieces)))
    found = []
    for piece in pieces:
        packed = len(stream.compress(piece)) + len(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        found.append(_least(packed, len(piece), _digits_in(piece)))
    return found


def least_size(source: Source) -> float:
    """About the least that zstd -19 needs for a document."""
    options = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, source_size=source.size, **(_FAR if source.size > _NEAR_BYTES else {})
    )
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj(size=source.size)
    packed = digits = 0
    for piece in source.pieces():
        packed += len(stream.compress(piece))
        digits += _digits_in(piece)
    return _least(packed + len(stream.flush()), source.size, digits)


def _least(packed: int, size: int, digits: int) -> float:
    """packed: bytes in the faster level; digits: how many of the `size` bytes are digits."""
    gain = _MOST_GAIN_OF_NUMBERS if digits > _NUMBERS * size else _MOST_GAIN
    return packed / gain if packed > _REGULAR * size else 0.0


def _digits_in(data: bytes) -> int:
    return len(data) - len(data.translate(None, _DIGITS))
