"""Comparing encoded files with their documents before they are returned."""

from collections.abc import Callable, Iterable

from memcodec import container
from memcodec.container import Container
from memcodec.document.source import PIECE_BYTES, Source
from memcodec.errors import ChecksumError, FormatError, MachineError


def verify(
    finished: Iterable[tuple[Source, bytes]],
    decode_many: Callable[[list[Container]], list[bytes]],
    decode_pieces: Callable[[Container], Iterable[bytes]],
) -> None:
    """Decode files, small ones in common batches, and compare them with their documents. Raises MachineError.

    decode_many: decodes small files; decode_pieces: decodes a large one, piece by piece.
    """
    small: list[tuple[Source, Container]] = []
    large: list[tuple[Source, Container]] = []
    for source, blob in finished:
        (small if source.size <= PIECE_BYTES else large).append((source, container.unpack(blob)))
    try:
        for (source, _), document in zip(small, decode_many([parsed for _, parsed in small]), strict=True):
            _compare(source, [document])
        for source, parsed in large:
            _compare(source, decode_pieces(parsed))
    except (FormatError, ChecksumError) as error:
        raise MachineError(f"the encoded file does not decode here ({error}): nothing was written") from error


def _compare(source: Source, pieces: Iterable[bytes]) -> None:
    """Raise MachineError if the decoded pieces are not the bytes of a document."""
    at = 0
    for piece in pieces:
        end = min(at + len(piece), source.size)
        if source.read(at, end) != piece:
            raise MachineError("the encoded file decodes to other bytes here: nothing was written")
        at = end
    if at != source.size:
        raise MachineError("the encoded file decodes to fewer bytes here: nothing was written")
