"""Files written completely or not at all: to a temporary file next to the target, which it then replaces."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]


def resolved(path: str | os.PathLike[str]) -> Path:
    """A path without links. Raises OSError for a link that leads to itself."""
    try:
        found = Path(path).resolve()
        is_loop = found.is_symlink()  # from Python 3.13 on
    except RuntimeError:  # before
        is_loop = True
    if is_loop:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return found


def permissions(found: os.stat_result) -> int:
    """The permissions of a file for another one, which may get another owner: without setuid, setgid and sticky."""
    return found.st_mode & 0o777


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the OSError of what `replace` cannot write: the folder is not there, or the path is one, or not allowed."""
    name = os.fspath(path)
    target = resolved(path)
    if not name or not target.parent.exists():
        number = errno.ENOENT
    elif not target.parent.is_dir():
        number = errno.ENOTDIR
    elif target.is_dir():
        number = errno.EISDIR
    elif not os.access(target if target.exists() and not target.is_file() else target.parent, os.W_OK):
        number = errno.EACCES
    else:
        return
    raise OSError(number, os.strerror(number), name)


def check_new(path: str | os.PathLike[str], advice: str) -> None:
    """As `check_writable`; raises FileExistsError, with the advice, if the file exists."""
    check_writable(path)
    if Path(path).exists():
        raise FileExistsError(f"{os.fspath(path)} exists: {advice}")


def replace(
    path: Path, pieces: Iterable[bytes], mode: int = 0o666, before: Callable[[Path], object] = lambda _: None
) -> int:
    """Write a file, or replace one, and return its size in bytes. After an error, the old file is unchanged.

    mode: permissions, before the umask; before: is called with the finished temporary file before it is renamed.
    Errors of the system name the path.
    """
    check_writable(path)  # whose errors name the path, not the file beside it
    try:
        return _replace(path, pieces, mode, before)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _replace(path: Path, pieces: Iterable[bytes], mode: int, before: Callable[[Path], object]) -> int:
    target = resolved(path)
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
            temporary.chmod(permissions(old))
        before(temporary)
        temporary.replace(target)
        _flush(target.parent)
        return size
    finally:
        with suppress(OSError):  # do not report a failed write again
            file.close()
        temporary.unlink(missing_ok=True)


def _beside(target: Path, mode: int) -> tuple[Path, BinaryIO]:
    """A new temporary file in the folder of the target, locked while it is written."""
    while True:
        temporary = target.with_name(f".memcodec-{secrets.token_hex(6)}")
        file: BinaryIO = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        if hold(file) is not False and temporary.exists():  # not removed, before the lock, by another process
            return temporary, file
        file.close()


def hold(file: BinaryIO) -> bool | None:
    """Lock an open file until it is closed. False if another process has locked it, None if locks are not supported."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


TEMPORARY = re.compile(r"\.memcodec-[0-9a-f]{12}")  # names of temporary files
_swept: set[Path] = set()


def _sweep(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder; once in a process, because folders may be large."""
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if TEMPORARY.fullmatch(path.name):
                with suppress(OSError), path.open("rb") as file:
                    if hold(file):
                        path.unlink()


def _flush(folder: Path) -> None:
    """Write the entries of a folder to disk, on systems that support it, so that a new name survives a crash."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
