"""Paths that are URLs (`s3://...`, `memory://...`), by fsspec: read as they are, written whole or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+(::[a-zA-Z0-9+.-]+)*://")
_SPOOLED = 1 << 24  # bytes that wait in memory


def is_url(path: object) -> bool:
    """Whether a path is for fsspec."""
    return isinstance(path, str) and _URL.match(path) is not None


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """What is there, to be read. Raises OSError that names it."""
    with _named(url), _fsspec().open(url, "rb") as file:
        yield file


def read(url: str) -> bytes:
    """All of it. Raises OSError that names it."""
    with opened(url) as file:
        return file.read()


def exists(url: str) -> bool:
    """Whether something is there. Raises OSError that names it."""
    with _named(url):
        system, path = _fsspec().core.url_to_fs(url)
        return bool(system.exists(path))


def write(url: str, pieces: Iterable[bytes]) -> int:
    """Write it when the last piece is there; gives its size. Raises OSError that names it."""
    with tempfile.SpooledTemporaryFile(_SPOOLED) as spool:
        for piece in pieces:
            spool.write(piece)
        size = spool.tell()
        spool.seek(0)
        with _named(url), _fsspec().open(url, "wb") as file:
            shutil.copyfileobj(spool, file)
    return size


def _fsspec() -> Any:
    import fsspec

    return fsspec


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Everything that goes wrong there is an OSError with the URL as its file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(2, os.strerror(2), url) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), url) from error
    except (ValueError, ImportError) as error:  # no such protocol, or its library is not installed
        raise OSError(22, " ".join(str(error).split()), url) from error
