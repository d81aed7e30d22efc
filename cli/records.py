"""Short documents: read from directories, JSON lines, CSV, or the lines of a text file."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from memcodec_cli import inputs
from memcodec_cli.names import STANDARD_STREAM, display_name
from memcodec_cli.options import field_option, option


class Record(NamedTuple):
    """A short document: where it was read, as errors name it; its key, "" if there is none; and its bytes."""

    where: str
    key: str
    document: bytes


@dataclass(frozen=True)
class RecordOptions:
    """Which fields of JSON lines or CSV are read."""

    field: str | None = field_option()
    key: str | None = option(
        "--key", metavar="NAME", help="Field of a JSON line, or column of a CSV file, that holds the key.  "
        "[default: no keys]",
    )  # fmt: skip


def read_records(name: str, field: str | None, key: str | None) -> Iterator[Record]:
    """The documents in a file or directory, by the suffix of its name.

    A directory: each file, with its path as key. .csv: one column. .jsonl, or others with a field or a key: of each
    line, the field of an object, or the string, or else the line itself. Others: each line. Raises ClickException,
    EncodeError, OSError.
    """
    path = Path(name)
    if name != STANDARD_STREAM and path.is_dir():
        yield from _read_directory(path)
        return
    data = inputs.read(name)
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from _read_csv(display_name(name), data, field, key)
        return
    is_json = kind == ".jsonl" or field is not None or key is not None
    for number, line in enumerate((data.removeprefix(codecs.BOM_UTF8) if is_json else data).splitlines(), 1):
        where = f"{display_name(name)}, line {number}"
        if not is_json:
            yield Record(where, "", line)
        elif line.strip():
            yield _parse_json_line(where, line, field, key)


def _read_directory(directory: Path) -> Iterator[Record]:
    for file in sorted(directory.rglob("*")):
        if file.is_file() and not file.is_symlink():
            where, key = display_name(str(file)), file.relative_to(directory).as_posix()
            try:
                key.encode()
            except UnicodeError as error:
                raise click.ClickException(f"{where}: its name is not UTF-8, as a key must be: rename it") from error
            yield Record(where, key, file.read_bytes())


def _read_csv(shown: str, data: bytes, field: str | None, key: str | None) -> Iterator[Record]:
    """shown: the name of the file, for errors."""
    try:
        rows = csv.DictReader(
            io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True
        )  # Excel's begin with a mark
        columns = list(rows.fieldnames or ())
        if field is None:
            others = [column for column in columns if column != key]
            if len(others) != 1:
                raise click.ClickException(f"{shown}: name the column of the documents with --field: {_list(columns)}")
            field = others[0]
        for column in (field, key):
            if column is not None and columns.count(column) != 1:
                count = "several columns" if column in columns else "no column"
                raise click.ClickException(f"{shown}: it has {count} {column!r}: {_list(columns)}")
        for number, row in enumerate(rows, 1):
            where = f"{shown}, row {number}"
            if row[field] is None or (key is not None and row[key] is None):
                raise click.ClickException(f"{where}: it has fewer cells than the first row")
            if None in row:  # where DictReader puts what is too many
                raise click.ClickException(f"{where}: it has more cells than the first row: quote texts with commas")
            yield Record(where, row[key] if key is not None else "", row[field].encode())
    except (UnicodeError, csv.Error) as error:
        raise click.ClickException(f"{shown}: it cannot be read as CSV in UTF-8 ({error})") from error


def _list(names: list[str]) -> str:
    return "it has " + (", ".join(map(repr, names)) or "none")


def _parse_json_line(where: str, line: bytes, field: str | None, key: str | None) -> Record:
    """where: the file and the line, for errors."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{where}: not valid JSON ({error})") from error
    record_key = _field(where, value, key) if key is not None else ""
    if field is not None:
        value = _field(where, value, field)
    elif not isinstance(value, str) or key is not None:
        return Record(where, record_key, line)
    try:
        record_key.encode()
        # unpack writes invalid UTF-8 with surrogates
        return Record(where, record_key, value.encode("utf-8", "surrogateescape"))
    except UnicodeError as error:
        raise click.ClickException(f"{where}: the text is not valid Unicode") from error


def _field(where: str, record: Any, field: str) -> str:
    if not isinstance(record, dict):
        raise click.ClickException(f"{where}: it is not an object, and has no field {field!r}")
    if field not in record:
        raise click.ClickException(f"{where}: it has no field {field!r}: {_list(list(record))}")
    value = record[field]
    if value is None:
        raise click.ClickException(f"{where}: its field {field!r} is null: give it a text, or remove the line")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
