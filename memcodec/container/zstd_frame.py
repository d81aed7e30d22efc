"""Reading a single zstd frame that may be hostile, in bounded memory."""

from collections.abc import Iterator

import zstandard

WINDOW = 25  # the largest window that a reader must support, in bits: it is kept in memory
_STEP = 64  # bytes that zstd is given at one time: they expand to 2 MB at most, in blocks of 128 KB


def expand(
    frame: bytes | memoryview, most: int, dictionary: zstandard.ZstdCompressionDict | None = None
) -> Iterator[bytes]:
    """The content of one zstd frame in pieces, which end after more than `most` bytes.

    Raises ZstdError if the frame is damaged or needs a larger window, or if bytes are missing at its end or follow it.
    """
    unpacker = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << WINDOW).decompressobj()
    total = at = 0
    while at < len(frame) and not unpacker.eof:
        piece = unpacker.decompress(frame[at : at + _STEP])
        at += _STEP
        total += len(piece)
        if piece:
            yield piece
        if total > most:
            return
    if not unpacker.eof or unpacker.unused_data or at < len(frame):
        raise zstandard.ZstdError("bytes are missing at the end of the frame, or too many")
