"""The bytes of a document, in memory, in a file or from a pipe: read in pieces, and more than once."""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from memcodec.errors import EncodeError

PIECE_BYTES = 1 << 20  # read at one time
_SPOOLED = 1 << 22  # bytes of a pipe that are kept in memory; more go to disk


class Source:
    """The bytes of a document, which may be read more than once. size: in bytes."""

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        """file: read from its current position; if it cannot seek, it is copied into a temporary file.

        name: for error messages.
        """
        self._name = name or getattr(file, "name", "the input")
        try:
            self._first = file.tell()
            self.size = file.seek(0, os.SEEK_END) - self._first
        except (OSError, ValueError):  # a pipe
            copy: Any = tempfile.SpooledTemporaryFile(_SPOOLED)  # noqa: SIM115 (open as long as this is)
            shutil.copyfileobj(file, copy)
            self._copy = file = copy
            self._first, self.size = 0, copy.tell()
        self._file = file
        self._before = self._state()

    _copy: Any = None

    def __del__(self) -> None:
        if self._copy is not None:
            self._copy.close()

    @classmethod
    def of(cls, data: "bytes | Source") -> "Source":
        """A source of bytes; a source is returned as it is."""
        return data if isinstance(data, Source) else cls(io.BytesIO(data))

    def read(self, start: int, end: int) -> bytes:
        """Bytes from `start` to `end`. Raises EncodeError if the file has become shorter; OSError."""
        self._file.seek(self._first + start)
        data = self._file.read(end - start)
        if len(data) != end - start:
            raise EncodeError(f"{self._name}: became shorter while it was read")
        return data

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes from `start` to `end` (default: all), in pieces of PIECE_BYTES. Raises as `read`."""
        end = self.size if end is None else end
        for at in range(start, end, PIECE_BYTES):
            yield self.read(at, min(at + PIECE_BYTES, end))

    def digest(self) -> bytes:
        """The SHA-256 of the document."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.digest()

    def check_unchanged(self) -> None:
        """Raise EncodeError if the file was changed after the source was made."""
        if self._state() != self._before:
            raise EncodeError(f"{self._name}: changed while it was read: try again")

    def _state(self) -> tuple[int, int] | None:
        try:
            status = os.fstat(self._file.fileno())
        except (OSError, ValueError):  # not a file on disk
            return None
        return status.st_size, status.st_mtime_ns
