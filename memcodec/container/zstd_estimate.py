"""An estimate of the least size under zstd -19 of some bytes, from level 12, which takes a tenth of the time.

The LM makes most texts so much smaller than zstd does that level 19 need not be tried. For prose, code, DNA, logs,
JSON, tables and random sequences of a few words, level 12 needs at most 1.21 times as many bytes as level 19; level 7
needs up to 2.5 times as many. Level 12 needs more where level 19 finds a period or a counter (lines with increasing
numbers, drawings of characters). Such bytes have many digits, or level 12 makes them so small that level 19 is tried.
"""

from typing import Any

import zstandard

from memcodec.document.source import Source

_LEVEL = 12
_MOST_GAIN, _MOST_GAIN_OF_NUMBERS = 1.6, 2.5  # the greatest ratio of level 12 to level 19, with a margin
_NUMBERS = 1 / 5  # from this share of digits on, bytes are numbers
_REGULAR = 1 / 16  # bytes of which level 12 needs less than this share are very regular
_NEAR_BYTES = 1 << 20  # a larger document may repeat text from farther back than level 12 finds it by default
_FAR: dict[str, Any] = {"window_log": 23, "enable_ldm": True}  # the window of level 19
_DIGITS = b"0123456789"


def estimated_sizes(pieces: list[bytes]) -> list[float]:
    """Returns about the least that zstd -19 needs for each of several consecutive pieces, after those before it.

    The sum over some consecutive pieces also holds for these alone, since zstd then has less earlier data to refer to.
    """
    stream = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=sum(map(len, pieces)))
    found = []
    for piece in pieces:
        packed = len(stream.compress(piece)) + len(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        found.append(_estimate(packed, len(piece), _digits_in(piece)))
    return found


def estimated_size(source: Source) -> float:
    """Returns about the least that zstd -19 needs for a document."""
    options = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, source_size=source.size, **(_FAR if source.size > _NEAR_BYTES else {})
    )
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj(size=source.size)
    packed = digits = 0
    for piece in source.pieces():
        packed += len(stream.compress(piece))
        digits += _digits_in(piece)
    return _estimate(packed + len(stream.flush()), source.size, digits)


def _estimate(packed: int, size: int, digits: int) -> float:
    """The estimate for `size` bytes. packed: their number under level 12; digits: how many of them are digits."""
    gain = _MOST_GAIN_OF_NUMBERS if digits > _NUMBERS * size else _MOST_GAIN
    return packed / gain if packed > _REGULAR * size else 0.0


def _digits_in(data: bytes) -> int:
    return len(data) - len(data.translate(None, _DIGITS))
