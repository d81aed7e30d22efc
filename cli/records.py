"""Short documents: read from directories, JSON lines, CSV, TSV, or the lines of a text file."""

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

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_MAX_CELL = 1 << 30  # characters: cells of any length can be read, and documents have a limit of their own
_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed with gzip: pipe it through zcat",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: pipe it through zstdcat",
    b"\xfd7zXZ\0": "compressed with xz: pipe it through xzcat",
    b"BZh": "compressed with bzip2: pipe it through bzcat",
    b"PK\3\4": "a zip file or a spreadsheet (.xlsx): save it as CSV in UTF-8",
    b"PAR1": "a Parquet file: encode its columns in Python (docs/integrations.md)",
}  # by the first bytes of a file
_CONVERT = "convert the file, as with iconv -f LATIN1 -t UTF-8"
_ONE_PER_LINE = "give one record per line, as jq -c '.[]' writes them"


class Record(NamedTuple):
    """A short document: where it was read, as errors name it; its key, None if there is none; and its bytes."""

    where: str
    key: str | None
    document: bytes


@dataclass(frozen=True)
class RecordOptions:
    """Which fields of JSON lines or CSV are read."""

    field: str | None = field_option()
    key: str | None = option(
        "--key", metavar="NAME", help="Field of a JSON line, or column of a CSV file, that holds the key.  "
        "[default: no keys]",
    )  # fmt: skip


def record_files(names: tuple[str, ...]) -> list[str]:
    """The files that `read_records` reads."""
    folders = {name for name in names if name != STANDARD_STREAM and Path(name).is_dir()}
    return [
        file for name in names for file in (map(inputs.name_of, inputs.files_in(name)) if name in folders else [name])
    ]


def read_records(name: str, field: str | None, key: str | None) -> Iterator[Record]:
    """The documents in a file or directory, by the suffix of its name.

    A directory: each file, with its path as key. .csv, .tsv: one column. .jsonl, .ndjson, .json, or others with a field
    or a key: of each line, the field of an object, or the string, or else the line itself. Others: each line. Raises
    ClickException, EncodeError, OSError.
    """
    path = Path(name)
    if name != STANDARD_STREAM and path.is_dir():
        yield from _read_directory(path)
        return
    shown, data = display_name(name), inputs.read(name)
    if other := next((about for start, about in _OTHER_FORMATS.items() if data.startswith(start)), None):
        raise click.ClickException(f"{shown}: it is {other}")
    kind = path.suffix.lower()
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if kind in _DELIMITERS:
        yield from _read_table(shown, _decoded(shown, data, is_utf16), _DELIMITERS[kind], field, key)
    elif kind in _JSON_LINES or field is not None or key is not None:
        data = _decoded(shown, data, True).encode() if is_utf16 else data.removeprefix(codecs.BOM_UTF8)
        yield from _read_json_lines(shown, data, field, key)
    elif is_utf16:
        raise click.ClickException(f"{shown}: it is text in UTF-16: convert it, as with iconv -f UTF-16 -t UTF-8")
    else:
        for number, line in enumerate(data.splitlines(), 1):
            yield Record(f"{shown}, line {number}", None, line)


def _decoded(shown: str, data: bytes, is_utf16: bool) -> str:
    """Text in UTF-8, or in UTF-16, without its byte-order mark. Raises ClickException with the line."""
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        if is_utf16:
            raise click.ClickException(f"{shown}: it begins like UTF-16, but is not: {error.reason}") from error
        line = len(data[: error.start].splitlines() or [b""])
        raise click.ClickException(f"{shown}, line {line}: it is not UTF-8: {_CONVERT}") from error


def _read_directory(directory: Path) -> Iterator[Record]:
    for file in inputs.files_in(str(directory)):
        where, key = display_name(str(file)), file.relative_to(directory).as_posix()
        try:
            key.encode()
        except UnicodeError as error:
            raise click.ClickException(f"{where}: its name is not UTF-8, as a key must be: rename it") from error
        yield Record(where, key, inputs.read(inputs.name_of(file)))


def _read_table(shown: str, text: str, delimiter: str, field: str | None, key: str | None) -> Iterator[Record]:
    """The rows of CSV or TSV. shown: the name of the file, for errors.

    A blank line is a row if there is one column, as spreadsheets write an empty cell; otherwise it is skipped.
    """
    csv.field_size_limit(_MAX_CELL)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = next((row for row in rows if row), [])
        if delimiter == "," and len(columns) == 1 and (other := next((c for c in ";\t" if c in columns[0]), None)):
            found = "tabs" if other == "\t" else "semicolons"
            raise click.ClickException(
                f"{shown}: its first row has {found} instead of commas: save it with commas, or as .tsv with tabs"
            )
        if field is None:
            others = [column for column in columns if column != key]
            if len(others) != 1:
                raise click.ClickException(f"{shown}: name the column of the documents with --field: {_list(columns)}")
            field = others[0]
        for column in (field, key):
            if column is not None and columns.count(column) != 1:
                count = "several columns" if column in columns else "no column"
                raise click.ClickException(f"{shown}: it has {count} {column!r}: {_list(columns)}")
        place, key_place = columns.index(field), None if key is None else columns.index(key)
        number = 0
        for cells in rows:
            if not cells and len(columns) > 1:
                continue
            row, number = cells or [""], number + 1
            where = f"{shown}, row {number}"
            if len(row) < len(columns):
                raise click.ClickException(f"{where}: it has fewer cells than the first row")
            if len(row) > len(columns):
                separator = "tabs" if delimiter == "\t" else "commas"
                raise click.ClickException(
                    f"{where}: it has more cells than the first row: quote texts with {separator}"
                )
            yield Record(where, None if key_place is None else row[key_place], row[place].encode())
    except csv.Error as error:
        raise click.ClickException(f"{shown}, line {rows.line_num}: it cannot be read as a table ({error})") from error


def _list(names: list[str]) -> str:
    return "it has " + (", ".join(map(repr, names)) or "none")


def _read_json_lines(shown: str, data: bytes, field: str | None, key: str | None) -> Iterator[Record]:
    """shown: the name of the file, for errors."""
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                where = f"{shown}, line {number}"
                if isinstance(error, UnicodeDecodeError):
                    raise click.ClickException(f"{where}: it is not UTF-8: {_CONVERT}") from error
                if _is_json(data):
                    raise click.ClickException(f"{where}: one JSON value has several lines: {_ONE_PER_LINE}") from error
                raise click.ClickException(f"{where}: not valid JSON ({error})") from error
            yield _record_of(f"{shown}, line {number}", line, value, field, key)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _record_of(where: str, line: bytes, value: Any, field: str | None, key: str | None) -> Record:
    """where: the file and the line, for errors; value: of the line, as JSON."""
    record_key = None if key is None else _field(where, value, key)
    try:
        (record_key or "").encode()
    except UnicodeError as error:
        raise click.ClickException(f"{where}: its key {record_key!r} is not valid Unicode: give it another") from error
    if field is not None:
        value = _field(where, value, field)
    elif not isinstance(value, str) or key is not None:
        return Record(where, record_key, line)
    try:  # unpack writes invalid UTF-8 with surrogates
        return Record(where, record_key, value.encode("utf-8", "surrogateescape"))
    except UnicodeError as error:
        raise click.ClickException(f"{where}: the text is not valid Unicode") from error


def _field(where: str, record: Any, field: str) -> str:
    """A field of a record, as text: a string as it is, other values as their JSON. Raises ClickException."""
    if not isinstance(record, dict):
        advice = f": {_ONE_PER_LINE}" if isinstance(record, list) else ""
        raise click.ClickException(f"{where}: it is not an object, and has no field {field!r}{advice}")
    if field not in record:
        raise click.ClickException(f"{where}: it has no field {field!r}: {_list(list(record))}")
    value = record[field]
    if value is None:
        raise click.ClickException(f"{where}: its field {field!r} is null: give it a text, or remove the line")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
