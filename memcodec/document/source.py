"""The bytes of a document, in memory, in a file or from a pipe: read in pieces, and more than once."""

import hashlib
import io
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from memcodec.errors import EncodeError

PIECE_BYTES = 1 << 20  # read at one time
SPOOLED_BYTES = 1 << 22  # of a temporary file that stay in memory; more go to disk


class Source:
    """The bytes of a document, which may be read more than once. size: in bytes."""

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        """file: read from its current position; if it cannot seek, or only read, it is copied into a temporary file.

        name: for error messages. Raises EncodeError for a device that has no end.
        """
        self._name = name or getattr(file, "name", "the input")
        self._reading = threading.Lock()  # a thread may encode what another one reads again
        try:
            if not _has_size(file, self._name):
                raise io.UnsupportedOperation
            self._first = file.tell()
            self.size = file.seek(0, os.SEEK_END) - self._first
        except (OSError, ValueError, AttributeError):  # a pipe, or an object that has only `read`
            copy: Any = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115 (open as long as this is)
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
        with self._reading:
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
        """What changes if another process writes to the file; None if no other process can, or if it is not known."""
        if isinstance(self._file, tempfile.SpooledTemporaryFile):  # whose `fileno` would move it to disk
            return None
        try:
            status = os.fstat(self._file.fileno())
        except (OSError, ValueError, AttributeError):  # not a file on disk
            return None
        return status.st_size, status.st_mtime_ns


def _has_size(file: BinaryIO, name: str) -> bool:
    """Whether seeking to the end of a file finds its size: not in a device, nor in the files of /proc and /sys.

    Raises EncodeError for a device that is neither a terminal nor empty: it may have no end.
    """
    if isinstance(file, tempfile.SpooledTemporaryFile):  # whose `fileno` would move it to disk
        return True
    try:
        found = os.fstat(file.fileno())
    except (OSError, ValueError, AttributeError):  # not a file on disk
        return True
    if stat.S_ISCHR(found.st_mode):
        if not os.isatty(file.fileno()) and found.st_rdev != Path(os.devnull).stat().st_rdev:
            raise EncodeError(
                f"{name}: is a device, which may have no end: pipe as much of it as you want, as with head -c 10000"
            )
        return False
    has_blocks = getattr(found, "st_blocks", 1) > 0  # files of the kernel have none, and report a size of 0 or 4096
    return not stat.S_ISREG(found.st_mode) or has_blocks or found.st_size > _MADE_WHEN_READ


_MADE_WHEN_READ = 1 << 16  # size up to which a file without blocks is read like a pipe
