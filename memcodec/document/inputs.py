"""The types that callers may pass as documents and messages: bytes, text, open files."""

import io
import os
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, TypeVar

from memcodec.document.source import Source
from memcodec.errors import EncodeError

Binary = bytes | bytearray | memoryview
Data = Binary | str
T = TypeVar("T")


def as_bytes(data: Any, name: str) -> bytes:
    """The bytes of bytes-like data, or of text as UTF-8. name: of the parameter, for the errors.

    Raises EncodeError for text that UTF-8 cannot encode, TypeError for other types.
    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise EncodeError(
                f"{name}: text with a lone surrogate at {error.start:,} cannot be encoded as UTF-8: give bytes"
            ) from None
    try:
        return memoryview(data).tobytes()
    except TypeError:
        advice = f": {_OF_A_FILE}" if isinstance(data, os.PathLike) else ""
        raise TypeError(f"{name}: give bytes, bytes-like data or str, not {type(data).__name__}{advice}") from None


_OF_A_FILE = "the bytes of a file are open(path, 'rb').read()"


def as_binary(data: Any, name: str) -> bytes:
    """The bytes of bytes-like data. Raises TypeError for other types, text and names of files included."""
    if isinstance(data, bytes):
        return data
    try:
        return memoryview(data).tobytes()
    except TypeError:
        is_file = isinstance(data, str | os.PathLike) or hasattr(data, "read")
        advice = f": {_OF_A_FILE}" if is_file else ""
        raise TypeError(f"{name}: give bytes or bytes-like data, not {type(data).__name__}{advice}") from None


def as_many(items: Iterable[T], name: str) -> Iterable[T]:
    """The same iterable. Raises TypeError for a single text, the bytes of a single document, a mapping or a table.

    Of these, the names of keys or columns would be taken.
    """
    if isinstance(items, str | bytes | bytearray | memoryview):
        raise TypeError(f"{name}: give a list of them, not one {type(items).__name__}")
    if isinstance(items, Mapping) or hasattr(items, "columns"):
        raise TypeError(f"{name}: give a list of them, or one column, not {type(items).__name__}")
    return items


def as_source(data: "Data | BinaryIO | Source", name: str) -> Source:
    """A `Source` of bytes-like data, text, or a file open for reading. Raises as `as_bytes`."""
    if isinstance(data, Source):
        return data
    if isinstance(data, io.TextIOBase):
        raise TypeError(f"{name}: the file is open for text: open it with mode 'rb'")
    if isinstance(data, bytes | bytearray | memoryview | str) or not hasattr(data, "read"):
        return Source.of(as_bytes(data, name))
    return Source(data)


def check_type(name: str, given: object, wanted: type, example: str) -> None:
    """Raise TypeError unless `given` is a `wanted`. example: an expression that returns one, for the message."""
    if not isinstance(given, wanted):
        raise TypeError(f"{name}: give a {wanted.__name__}, such as {example}, not {type(given).__name__}")
