"""memz and unmemz in sqlite3 and DuckDB."""

import sqlite3
import sys
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

import memcodec
from memcodec import FrameSettings, MissingDependencyError, Primer
from memcodec.codec import Codec
from memcodec.integrations import sql

from .conftest import TEXT

TEXTS = ["The quick brown fox.", "Она продаёт.", "", None, "wood? " * 20, "The quick brown fox."]


@pytest.fixture(params=["sqlite3", "duckdb"])
def db(request: pytest.FixtureRequest) -> Iterator[Any]:
    connection: Any = sqlite3.connect(":memory:") if request.param == "sqlite3" else duckdb.connect()
    connection.execute("CREATE TABLE notes (id INTEGER, text TEXT)")
    connection.executemany("INSERT INTO notes VALUES (?, ?)", list(enumerate(TEXTS)))
    yield connection
    connection.close()


def column(db: Any, query: str, *values: Any) -> list[Any]:
    return [value for (value,) in db.execute(query, values).fetchall()]


def test_text_to_frames_and_back(db: Any, tiny: Codec) -> None:
    settings = FrameSettings(checksum=3)
    sql.register(db, tiny, settings)
    frames = column(db, "SELECT memz(text) FROM notes ORDER BY id")
    assert frames[3] is None
    texts = [text for text in TEXTS if text is not None]
    assert [frame for frame in frames if frame is not None] == tiny.encode_frames(texts, settings)
    assert column(db, "SELECT unmemz(memz(text)) FROM notes ORDER BY id") == TEXTS
    assert column(db, "SELECT unmemz(NULL)") == [None] == column(db, "SELECT memz(NULL)")
    assert column(db, "SELECT memz(text) FROM notes WHERE id > 99") == []
    assert column(db, "SELECT id FROM notes WHERE unmemz(memz(text)) LIKE '%wood%'") == [4]


def test_a_primer_from_a_table(db: Any, tiny: Codec) -> None:
    """Of the same row, or of a query; another one, or none, is an error."""
    primers = [Primer.from_texts([text], 30, tiny).to_bytes() for text in (TEXT, TEXT[::-1])]
    sql.register(db, tiny)
    db.execute("CREATE TABLE primers (kind INTEGER, value BLOB)")
    db.executemany("INSERT INTO primers VALUES (?, ?)", list(enumerate(primers)))
    primer = "(SELECT value FROM primers WHERE kind = 0)"
    frames = column(db, f"SELECT memz(text, {primer}) FROM notes ORDER BY id")
    primed = tiny.with_primer(Primer.from_bytes(primers[0]))
    assert frames[0] == primed.encode_frame(TEXTS[0]) != tiny.encode_frame(TEXTS[0])
    assert column(db, f"SELECT unmemz(memz(text, {primer}), {primer}) FROM notes ORDER BY id") == TEXTS
    each = "FROM notes JOIN primers ON id % 2 = kind ORDER BY id"
    assert column(db, f"SELECT memz(text, value) {each}")[0] == frames[0]
    assert column(db, f"SELECT unmemz(memz(text, value), value) {each}") == TEXTS
    assert column(db, "SELECT memz(NULL, NULL)") == [None]
    for wrong in ("NULL", "(SELECT value FROM primers WHERE kind = 9)", "'text'"):
        with pytest.raises((sqlite3.OperationalError, duckdb.Error)):
            column(db, f"SELECT memz(text, {wrong}) FROM notes")


def test_registered_again(db: Any, tiny: Codec) -> None:
    """The last codec counts."""
    primed = tiny.with_primer(Primer.from_texts([TEXT], 30, tiny))
    sql.register(db, tiny)
    sql.register(db, primed)
    assert column(db, "SELECT memz(text) FROM notes WHERE id = 0") == [primed.encode_frame(TEXTS[0])]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT memz(7)", "memz takes text, not int: CAST the value AS TEXT"),
        ("SELECT unmemz('text')", "unmemz takes a BLOB that memz made, not str"),
        ("SELECT memz('a', NULL)", "the primer must be a BLOB of Primer.to_bytes, not NULL"),
        ("SELECT memz('a', 'b')", "the primer must be a BLOB of Primer.to_bytes, not str"),
        ("SELECT unmemz(?)", "frame"),
    ],
)
def test_errors_say_what_is_wrong(
    db: Any, tiny: Codec, query: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqlite3 does not pass the text of an error on; it can be shown with enable_callback_tracebacks."""
    sql.register(db, tiny)
    seen: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: seen.append(str(about.exc_value)))
    sqlite3.enable_callback_tracebacks(True)
    try:
        with pytest.raises((sqlite3.OperationalError, duckdb.Error)) as found:
            column(db, query, *([tiny.encode_frame(b"\xff")] if "?" in query else []))
    finally:
        sqlite3.enable_callback_tracebacks(False)
    assert message in "".join(seen) + str(found.value)


def test_duckdb_calls_it_with_many_rows(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = Codec.encode_frames

    def counted(self: Codec, messages: list[Any], *more: Any) -> list[bytes]:
        calls.append(len(messages))
        return original(self, messages, *more)

    monkeypatch.setattr(Codec, "encode_frames", counted)
    with duckdb.connect() as db:
        sql.register(db, tiny)
        query = "SELECT count(memz(CASE WHEN i % 3 = 0 THEN NULL ELSE 'a' END)) FROM range(3000) t(i)"
        assert column(db, query) == [2000]
    assert sum(calls) == 2000 and len(calls) == 2


def test_other_connections_and_missing_packages(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"^connection: give one of sqlite3 or DuckDB, not builtins\.str$"):
        sql.register("notes.db", tiny)
    with pytest.raises(memcodec.EncodeError, match="checksum 9"):
        sql.register(sqlite3.connect(":memory:"), tiny, FrameSettings(checksum=9))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with duckdb.connect() as db, pytest.raises(MissingDependencyError, match=r"need pyarrow: install the extra sql, "):
        sql.register(db, tiny)
