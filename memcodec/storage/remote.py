"""URLs (`s3://...`, `memory://...`), read and written with fsspec; written completely or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from memcodec.storage.write import replace

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+(::[a-zA-Z0-9+.-]+)*://")
WAITING_BYTES = 1 << 24  # of a result that wait in memory until the last one has arrived; more go to disk
_PIECE = 1 << 20  # bytes that are written at one time


def is_url(path: object) -> bool:
    """Whether a path is a URL, for fsspec."""
    return isinstance(path, str) and _URL.match(path) is not None


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """The file of a URL, open for reading. Raises OSError with the URL as its file name."""
    with ExitStack() as stack:
        with _named(url):
            file = stack.enter_context(_fsspec().open(url, "rb"))
        yield cast(BinaryIO, _NamedFile(file, url))


class _NamedFile:
    """A file of fsspec that is read: its errors, and not those of what is done with its bytes, have its URL."""

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url

    def read(self, size: int = -1) -> bytes:
        with _named(self._url):
            return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _named(self._url):
            return int(self._file.seek(offset, whence))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def read(url: str) -> bytes:
    """The bytes of a URL. Raises as `opened`."""
    with opened(url) as file:
        return file.read()


def exists(url: str) -> bool:
    """Whether the file of a URL exists. Raises as `opened`."""
    with _named(url):
        system, path = _fsspec().core.url_to_fs(url)
        return bool(system.exists(path))


def write(url: str, pieces: Iterable[bytes], before: Callable[[], object] = lambda: None) -> int:
    """Write the file of a URL after the last piece has arrived; returns its size. Raises as `opened`.

    before: is called when all pieces are there, and may raise an error.

    After an error or Ctrl-C there is no part of it: a local file, an object in memory or one in a bucket stays as it
    was; a file that some other system has written to already is removed if it is new.
    """
    with tempfile.SpooledTemporaryFile(WAITING_BYTES) as spool:
        for piece in pieces:
            spool.write(piece)
        size = spool.tell()
        spool.seek(0)
        before()
        with _named(url):
            target = _fsspec().open(url, "wb")  # opens nothing yet
            _write(target, spool)
    return size


def _write(target: Any, data: Any) -> None:
    """Write a file of fsspec. target: an OpenFile; data: an open file."""
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.implementations.memory import MemoryFileSystem

    kind = type(target.fs)  # a cache of files passes itself off as the file system behind it
    if issubclass(kind, LocalFileSystem):
        Path(target.path).parent.mkdir(parents=True, exist_ok=True)
        replace(Path(target.path), iter(partial(data.read, _PIECE), b""))
    elif issubclass(kind, MemoryFileSystem):  # whose `open` puts an empty file there at once
        target.fs.pipe_file(target.path, data.read())
    else:
        _upload(target, data)


def _upload(target: Any, data: Any) -> None:
    """Write a file of fsspec, which would finish an upload when it is closed, even after an error.

    target: an OpenFile; data: an open file.
    """
    from fsspec.implementations.cached import LocalTempFile

    system, path = target.fs, target.path
    try:
        is_new = not system.exists(path)
    except Exception:  # in some places one may write, and not ask
        is_new = False
    try:
        with target as file:
            try:
                shutil.copyfileobj(data, file, _PIECE)
            except BaseException:
                for name, value in (("forced", True), ("autocommit", False)):  # of buffered and of temporary files
                    with suppress(AttributeError):
                        setattr(file, name, value)
                if isinstance(file, LocalTempFile):  # of simplecache::, which would read this part later
                    with suppress(OSError):
                        Path(file.fn).unlink()
                raise
    except BaseException:
        with suppress(Exception):
            if is_new and system.exists(path):
                system.rm_file(path)
        raise


def _fsspec() -> Any:
    import fsspec

    return fsspec


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Turn all errors of fsspec into OSErrors with the URL as their file name."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(2, os.strerror(2), url) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), url) from error
    except ImportError as error:  # the library of this kind of URL
        packages = "requests aiohttp" if url.startswith(("http:", "https:")) else ""
        advice = f"these URLs need more packages: pip install {packages}" if packages else str(error)
        raise OSError(22, " ".join(advice.split()), url) from error
    except MemoryError:
        raise
    except Exception as error:  # an unknown protocol, or an error of a library, such as zipfile.BadZipFile
        raise OSError(22, " ".join(str(error).split()) or type(error).__name__, url) from error
