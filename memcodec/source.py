"""A document's bytes, wherever they are: read in pieces, and more than once; and files written whole or not at all."""

import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from memcodec.errors import EncodeError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

PIECE_BYTES = 1 << 20
_SPOOLED = 1 << 22  # bytes of a pipe that are kept in memory


class Source:
    """A document's bytes, read in pieces, and more than once."""

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        """file: read from where it stands; where it cannot seek, it is read whole, into a temporary file."""
        self._name = name or getattr(file, "name", "the input")
        try:
            self._first = file.tell()
            self.size = file.seek(0, os.SEEK_END) - self._first
        except (OSError, ValueError):  # a pipe, in Python's words
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
        """Of bytes, or what is one already."""
        return data if isinstance(data, Source) else cls(io.BytesIO(data))

    def read(self, start: int, end: int) -> bytes:
        """Bytes from `start` to `end`. Raises EncodeError where the file has become shorter; OSError."""
        self._file.seek(self._first + start)
        data = self._file.read(end - start)
        if len(data) != end - start:
            raise EncodeError(f"{self._name}: became shorter while it was read")
        return data

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The same, piece by piece."""
        end = self.size if end is None else end
        for at in range(start, end, PIECE_BYTES):
            yield self.read(at, min(at + PIECE_BYTES, end))

    def digest(self) -> bytes:
        """The SHA-256 of all."""
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
        return found.digest()

    def check_unchanged(self) -> None:
        """Raise EncodeError where the file was written to since."""
        if self._state() != self._before:
            raise EncodeError(f"{self._name}: changed while it was read: try again")

    def _state(self) -> tuple[int, int] | None:
        try:
            found = os.fstat(self._file.fileno())
        except (OSError, ValueError):  # not a file of the system's
            return None
        return found.st_size, found.st_mtime_ns


def replace(
    path: Path, pieces: Iterable[bytes], mode: int = 0o666, before: Callable[[Path], object] = lambda _: None
) -> int:
    """Write a file beside the one of a name, which it then becomes; gives its size. Leaves nothing behind an error.

    mode: permissions, before the umask; before: is called with the finished file, before it gets its name.
    """
    target = path.resolve()
    old = target.stat() if target.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):  # a device or a pipe: a rename would replace it
        with target.open("wb") as device:
            return sum(device.write(piece) for piece in pieces)
    _sweep(target.parent)
    temporary, file = _beside(target, mode)
    try:
        size = 0
        for piece in pieces:
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()
        if old is not None:
            temporary.chmod(stat.S_IMODE(old.st_mode))
        before(temporary)
        temporary.replace(target)
        _flush(target.parent)
        return size
    finally:
        with suppress(OSError):  # what could not be written is not tried again
            file.close()
        temporary.unlink(missing_ok=True)


def _beside(target: Path, mode: int) -> tuple[Path, BinaryIO]:
    """A new file in the folder of another, held while it is written."""
    while True:
        temporary = target.with_name(f".memcodec-{secrets.token_hex(6)}")
        file: BinaryIO = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        if hold(file) is not False and temporary.exists():  # not taken for abandoned before it was held
            return temporary, file
        file.close()


def hold(file: BinaryIO) -> bool | None:
    """Lock an open file as long as it is open: False where another process has it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


_TEMPORARY = re.compile(r"\.memcodec-[0-9a-f]{12}")
_swept: set[Path] = set()


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left in a folder; looks once a process, as folders may be large."""
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError), path.open("rb") as file:
                    if hold(file):
                        path.unlink()


def _flush(folder: Path) -> None:
    """See to it that a name in a folder outlives a crash, where the system can."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
