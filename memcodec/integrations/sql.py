"""SQL functions that turn text into frames and back, for connections of sqlite3 and DuckDB.

    memz(text)   memz(text, primer)      a frame, as a BLOB
    unmemz(blob) unmemz(blob, primer)    the text

NULL stays NULL. primer: what `Primer.to_bytes` returned, from a table or another query; without it, the codec's own.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from memcodec.codec import Codec
from memcodec.document.inputs import check_type
from memcodec.errors import EncodeError, FormatError, MissingDependencyError
from memcodec.frames import FrameSettings
from memcodec.primer import Primer

ENCODE, DECODE = "memz", "unmemz"
_PRIMERS = 8  # of those that were used last, a connection keeps the LM's state

# Turns some values, none of them NULL, into others, with one codec.
Batch = Callable[[Codec, list[Any]], list[Any]]


def register(
    connection: Any,
    codec: Codec,
    settings: FrameSettings = FrameSettings(),  # noqa: B008 (frozen)
) -> None:
    """Give a connection of sqlite3 or DuckDB the functions `memz` and `unmemz`.

    DuckDB calls them with up to 2,048 rows at one time; sqlite3 calls them for each row, so that many rows are faster
    with `Codec.encode_frames` and `executemany`. settings: of the frames. Raises TypeError for another connection,
    MissingDependencyError.
    """
    check_type("codec", codec, Codec, "memcodec.Codec.load()")
    settings.check()
    codec_of = _codecs(codec)

    def encode(with_: Codec, texts: list[Any]) -> list[Any]:
        for text in texts:
            if not isinstance(text, str):
                raise EncodeError(f"{ENCODE} takes text, not {type(text).__name__}: CAST the value AS TEXT")
        return with_.encode_frames(texts, settings)

    def decode(with_: Codec, frames: list[Any]) -> list[Any]:
        for frame in frames:
            if not isinstance(frame, bytes):
                raise FormatError(f"{DECODE} takes a BLOB that {ENCODE} made, not {type(frame).__name__}")
        return [_text(message) for message in with_.decode_frames(frames, settings)]

    if isinstance(connection, sqlite3.Connection):
        add = _add_to_sqlite
    elif type(connection).__module__.split(".")[0] in ("duckdb", "_duckdb"):
        add = _add_to_duckdb
    else:
        kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
        raise TypeError(f"connection: give one of sqlite3 or DuckDB, not {kind}")
    add(connection, ENCODE, encode, codec_of)
    add(connection, DECODE, decode, codec_of)


def _codecs(codec: Codec) -> Callable[[bytes | None], Codec]:
    """The codec with a primer as bytes, or with its own for None."""

    @lru_cache(maxsize=_PRIMERS)
    def with_primer(primer: bytes) -> Codec:
        return codec.with_primer(Primer.from_bytes(primer, "primer of an SQL function"))

    return lambda primer: codec if primer is None else with_primer(primer)


def _primer(value: Any) -> bytes:
    """A primer as an argument. Raises FormatError for NULL: the query that should give it found none."""
    if not isinstance(value, bytes):
        found = "NULL: the query for it found none" if value is None else type(value).__name__
        raise FormatError(f"the primer must be a BLOB of Primer.to_bytes, not {found}")
    return value


def _text(message: bytes) -> str:
    try:
        return message.decode()
    except UnicodeDecodeError:
        raise FormatError(f"{DECODE}: the message is not UTF-8: use Codec.decode_frame, which returns bytes") from None


def _add_to_sqlite(
    connection: sqlite3.Connection, name: str, batch: Batch, codec_of: Callable[[bytes | None], Codec]
) -> None:
    def one(value: Any, *primer: Any) -> Any:
        if value is None:
            return None
        return batch(codec_of(_primer(primer[0]) if primer else None), [value])[0]

    for arguments in (1, 2):
        connection.create_function(name, arguments, one, deterministic=True)


def _add_to_duckdb(connection: Any, name: str, batch: Batch, codec_of: Callable[[bytes | None], Codec]) -> None:
    try:
        import duckdb
        import pyarrow
    except ImportError as error:
        what = f"SQL functions in DuckDB need {error.name or error}"
        raise MissingDependencyError(
            f"{what}: install the extra sql, in a clone with pip install -c constraints.txt '.[sql]'"
        ) from error
    kind = pyarrow.binary() if name == ENCODE else pyarrow.string()

    def many(*columns: Any) -> Any:
        if len(columns) > 2:
            raise FormatError(f"{name} with {len(columns)} arguments: give one, and a primer")
        values = columns[0].to_pylist()
        primers = columns[1].to_pylist() if len(columns) == 2 else [None] * len(values)
        rows_of: dict[bytes | None, list[int]] = {}
        for row, value in enumerate(values):
            if value is not None:
                rows_of.setdefault(_primer(primers[row]) if len(columns) == 2 else None, []).append(row)
        result: list[Any] = [None] * len(values)
        for primer, rows in rows_of.items():
            new = batch(codec_of(primer), [values[row] for row in rows])
            for row, value in zip(rows, new, strict=True):
                result[row] = value
        return pyarrow.array(result, kind)

    with suppress(duckdb.InvalidInputException):  # there is none of an earlier call
        connection.remove_function(name)
    returned = "BLOB" if name == ENCODE else "VARCHAR"
    connection.create_function(name, many, None, returned, type="arrow", null_handling="special")
