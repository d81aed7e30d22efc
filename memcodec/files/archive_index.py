"""Reading the index of an archive, whose numbers stay in arrays (spec/FRAMES.md, "Archive")."""

import struct
import zlib

import numpy as np

from memcodec import container
from memcodec.container import Reader
from memcodec.errors import ChecksumError, EncodeError, FormatError

VERSION = "archive 1"  # in place of the format version of a file of one document
MAX_DOCUMENTS = 1 << 21  # as chunks in a file: a reader keeps up to a few hundred bytes of each
_DOCUMENTS_PER_BYTE = 4  # at most: of documents that are the same as others, the index has at least two bits


def check_count(count: int) -> None:
    """Raise EncodeError for more documents than a reader accepts."""
    if count > MAX_DOCUMENTS:
        raise EncodeError(f"{count:,} documents: an archive has {MAX_DOCUMENTS:,} at most; make several")


def read_count(reader: Reader) -> int:
    """The number of documents. Raises FormatError."""
    count = reader.varint()
    if count > min(MAX_DOCUMENTS, _DOCUMENTS_PER_BYTE * len(reader)):
        raise FormatError("damaged archive: more documents than the file has room for")
    return count


def read_places(reader: Reader, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the frame of each document ends, int64, and the number of the document whose frame it has, int32.

    A document has its own frame, or that of an earlier document; its own frame is then empty. Raises FormatError.
    """
    lengths = reader.array(count) if count else np.empty(0, dtype=np.int64)
    sources = np.arange(count, dtype=np.int32)
    repeats = np.flatnonzero(lengths == 0)
    if len(repeats):
        earlier = reader.array(len(repeats))
        wrong = (earlier >= repeats) | (lengths[np.minimum(earlier, repeats)] == 0)
        if wrong.any():
            number = repeats[wrong.argmax()]
            raise FormatError(f"damaged archive: document {number} refers to a document that has no frame before it")
        sources[repeats] = earlier
    if lengths.max(initial=0) > len(reader) or lengths.sum() != len(reader):  # without the first, the sum could wrap
        raise FormatError("damaged archive: lengths do not add up to the file's")
    return lengths.cumsum(), sources


def tensors_of(blob: bytes) -> tuple[dict[str, str], dict[str, memoryview]]:
    """Metadata and tensors of an archive. Raises FormatError, ChecksumError."""
    view = memoryview(blob)
    container.check_start(blob[: container.START])
    if not container.is_archive(blob):
        raise FormatError("not an archive: a file of one document is read with memcodec decompress")
    metadata, tensors, *_ = container.read_tensors(view, ("primer", "archive"))
    if metadata.get("memcodec") != VERSION:
        raise FormatError(
            f"archive version {metadata.get('memcodec', '')[:20]!r} is not supported: install a newer memcodec"
        )
    if "archive" not in tensors or len(tensors["archive"]) < 4:
        raise FormatError("damaged archive: it has no index")
    if zlib.crc32(view[:-4]) != struct.unpack("<I", view[-4:])[0]:
        raise ChecksumError("damaged file: its checksum does not match")
    return metadata, tensors
