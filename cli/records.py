"""Short documents: read from directories, JSON lines, CSV, or the lines of a text file."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from memcodec_cli import inputs
from memcodec_cli.names import STANDARD_STREAM, display_name
from memcodec_cli.options import field_option, option

Record = tuple[str, bytes]  # key ("" if there is none), document


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

    A directory: each file, with its path as key. .jsonl: of each line, the field of an object, or the string, or else
    the line itself. .csv: one column. Others: each line. Raises ClickException, OSError.
    """
    path = Path(name)
    if name != STANDARD_STREAM and path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    data = inputs.read(name)
    if path.suffix == ".csv":
        yield from _read_csv(name, data, field, key)
        return
    for number, line in enumerate(data.splitlines(), 1):
        if path.suffix != ".jsonl":
            yield "", line
        elif line.strip():
            yield _parse_json_line(f"{display_name(name)}, line {number}", line, field, key)


def _read_csv(name: str, data: bytes, field: str | None, key: str | None) -> Iterator[Record]:
    if field is None:
        raise click.ClickException(f"{display_name(name)}: name the column of the documents with --field")
    try:
        rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
        for number, row in enumerate(rows, 1):
            where = f"{display_name(name)}, row {number}"
            yield _field(where, row, key) if key else "", _field(where, row, field).encode()
    except (UnicodeError, csv.Error) as error:
        raise click.ClickException(f"{display_name(name)}: not a CSV file in UTF-8 ({error})") from error


def _parse_json_line(where: str, line: bytes, field: str | None, key: str | None) -> Record:
    """where: the file and the line, for errors."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{where}: not valid JSON ({error})") from error
    record_key = _field(where, value, key) if key else ""
    if field is not None:
        value = _field(where, value, field)
    elif not isinstance(value, str) or key is not None:
        return record_key, line
    try:
        record_key.encode()
        return record_key, value.encode("utf-8", "surrogateescape")  # unpack writes invalid UTF-8 with surrogates
    except UnicodeError as error:
        raise click.ClickException(f"{where}: the text is not valid Unicode") from error


def _field(where: str, record: Any, field: str) -> str:
    if not isinstance(record, dict) or record.get(field) is None:
        raise click.ClickException(f"{where}: it has no field {field!r}")
    value = record[field]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
