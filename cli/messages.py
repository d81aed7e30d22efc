"""Many short documents: where they are read from, archives of them, and primers for them."""

import csv
import io
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from memcodec.storage.write import replace
from memcodec_cli import files, options
from memcodec_cli.loaded import read_primer
from memcodec_cli.progress import Bars

Message = tuple[str, bytes]  # key, or "" for none

field_option = click.option(
    "--field", metavar="NAME", help="Of JSON lines or CSV: the document's field.  [default: the line]"
)
fields = options.together(
    field_option,
    click.option("--key", metavar="NAME", help="Of JSON lines or CSV: the field that is its key.  [default: none]"),
)


def read_messages(name: str, field: str | None, key: str | None) -> Iterator[Message]:
    """The documents of a file or folder.

    A folder: its files, with their paths as keys; .jsonl: a JSON value a line, a string or the field of an object, else
    the line; .csv: a field of each row; any other: a line each. Raises ClickException, OSError.
    """
    path = Path(name)
    if name != files.STANDARD and path.is_dir():
        for found in sorted(path.rglob("*")):
            if found.is_file() and not found.is_symlink():
                yield found.relative_to(path).as_posix(), found.read_bytes()
        return
    data = files.read(name)
    if path.suffix == ".csv":
        yield from _rows(name, data, field, key)
        return
    for number, line in enumerate(data.splitlines(), 1):
        if path.suffix != ".jsonl":
            yield "", line
        elif line.strip():
            yield _value(name, number, line, field, key)


def _rows(name: str, data: bytes, field: str | None, key: str | None) -> Iterator[Message]:
    if field is None:
        raise click.ClickException(f"{files.shown(name)}: name the column of the documents with --field")
    try:
        rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
        for number, row in enumerate(rows, 1):
            yield _field(name, number, row, key) if key else "", _field(name, number, row, field).encode()
    except (UnicodeError, csv.Error) as error:
        raise click.ClickException(f"{files.shown(name)}: no CSV in UTF-8 ({error})") from error


def _value(name: str, number: int, line: bytes, field: str | None, key: str | None) -> Message:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{files.shown(name)}, line {number}: no JSON ({error})") from error
    own = _field(name, number, value, key) if key else ""
    if field is not None:
        value = _field(name, number, value, field)
    elif not isinstance(value, str) or key is not None:
        return own, line
    try:
        own.encode()
        return own, value.encode("utf-8", "surrogateescape")  # bytes that are no UTF-8, as unpack writes them
    except UnicodeError as error:
        raise click.ClickException(f"{files.shown(name)}, line {number}: text that is no Unicode") from error


def _field(name: str, number: int, row: Any, field: str) -> str:
    if not isinstance(row, dict) or row.get(field) is None:
        raise click.ClickException(f"{files.shown(name)}, record {number}: it has no field {field!r}")
    value = row[field]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@click.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="ARCHIVE", help="The archive that is made, or added to with -a.")
@click.option("-a", "--append", is_flag=True, help="Add to an archive that is there.")
@click.option("-f", "--force", is_flag=True, help="Overwrite an archive that is there.")
@fields
@click.option(
    "--no-verify", is_flag=True, help="Do not decode the documents before they are written.  [default: verify]"
)
@click.option("--no-primer-inside", is_flag=True, help="Leave the primer out of the archive, which then needs it.")
@options.encoding_model
@options.primer
@options.running
@options.quiet
def pack(
    names: tuple[str, ...], output: str, append: bool, force: bool, field: str | None, key: str | None,
    no_verify: bool, no_primer_inside: bool, model: str, primer: str | None, device: str, batch: int,
    threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Put many short documents into one ARCHIVE, from which each can be read by itself.

    FILE is a folder (a document a file, with its path as key), JSON lines (.jsonl), CSV, or text, a document a line.
    """
    found = [message for name in names for message in read_messages(name, field, key)]
    keys = [own for own, _ in found if own]
    if keys and len(keys) != len(found):
        raise click.ClickException("some documents have keys and some have none: give --key, or folders alone")
    target = Path(output)
    if target.exists() and not (append or force):
        raise click.ClickException(f"{files.shown(output)} exists: overwrite it with -f, or add to it with -a")
    with Bars(quiet) as bars:
        bars.doing("loading")
        from memcodec.codec import Codec
        from memcodec.files.archive import Archive

        codec = Codec.load(model, device=device, threads=threads, progress=bars.model)
        chosen = read_primer(primer)
        progress = bars.document(sum(len(data) for _, data in found), "fit")
        documents = [data for _, data in found]
        if append:
            archive = Archive(target, codec, chosen)
            archive.batch = batch
            archive.append(documents, keys, verify=not no_verify, progress=progress)
        else:
            archive = Archive.create(
                target, documents, keys, codec=codec, primer=chosen, with_primer=not no_primer_inside, batch=batch,
                verify=not no_verify, overwrite=True, progress=progress,
            )  # fmt: skip
    if not quiet:
        packed = target.stat().st_size
        click.echo(f"{files.shown(output)}: {len(archive):,} documents, {packed:,} bytes", err=True)


@click.command()
@click.argument("archive_name", metavar="ARCHIVE")
@click.argument("which", metavar="[KEY]...", nargs=-1)
@click.option("-o", "--output", metavar="DIR", help="Folder for the documents, a file each.  [default: JSON lines]")
@click.option("--lines", is_flag=True, help="Write documents as they are, a line each, instead of JSON lines.")
@options.decoding_model
@options.primer
@options.running
@options.quiet
def unpack(
    archive_name: str, which: tuple[str, ...], output: str | None, lines: bool, model: str | None, allow_download: bool,
    primer: str | None, device: str, batch: int, threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Read documents of ARCHIVE: all, or those with a KEY (or number, where it has no keys).

    Without -o they are written to standard output as JSON lines.
    """
    with Bars(quiet) as bars:
        bars.doing("loading")
        from memcodec.files.archive import Archive

        archive = Archive(archive_name, primer=read_primer(primer))
        archive.load(model, device=device, threads=threads, allow_download=allow_download, progress=bars.model)
        archive.batch = batch
        keys = archive.keys()
        numbers = [_number(archive_name, one, keys, len(archive)) for one in which] or list(range(len(archive)))
    names = keys or [f"{i:0{len(str(len(archive)))}}" for i in range(len(archive))]
    found: Iterator[bytes] = iter(archive.read(numbers)) if which else iter(archive)
    for number, data in zip(numbers, found, strict=True):
        if output is not None:
            _write_below(Path(output), names[number], data)
        elif lines:
            sys.stdout.buffer.write(data + b"\n")
        else:
            click.echo(_as_json(names[number] if keys else None, data))


def _number(archive: str, which: str, keys: list[str], count: int) -> int:
    if keys and which in keys:
        return keys.index(which)
    if not keys and which.isdecimal() and int(which) < count:
        return int(which)
    raise click.ClickException(f"{files.shown(archive)}: has no document {which!r}")


def _as_json(key: str | None, data: bytes) -> str:
    text = data.decode("utf-8", "surrogateescape")
    return json.dumps(text if key is None else {"key": key, "text": text})


def _write_below(folder: Path, name: str, data: bytes) -> None:
    """Never outside of the folder, whatever an archive says. Raises ClickException."""
    try:
        os.fsencode(name)
        within = "\0" not in name and (folder / name).resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError, RuntimeError):
        within = False
    if not within or name in ("", "."):
        raise click.ClickException(f"{name!r}: a key that leads out of {files.shown(str(folder))}: not written")
    target = folder / name
    if target.exists():
        raise click.ClickException(f"{files.shown(str(target))} exists: unpack into another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(target, [data])


@click.group()
def primer() -> None:
    """Make and show primers: text that every chunk, frame or document sees as context."""


@primer.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="P", help="The primer file.")
@click.option("-f", "--force", is_flag=True, help="Overwrite it where it is there.")
@fields
@click.option(
    "--tokens",
    type=click.IntRange(1, 1 << 15),
    default=400,
    show_default=True,
    metavar="N",
    help="Of the primer, at most: more help more, and take more time.",
)
@options.encoding_model
@options.running
@options.quiet
def train(
    names: tuple[str, ...], output: str, force: bool, field: str | None, key: str | None, tokens: int, model: str,
    device: str, batch: int, threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Pick messages of each FILE (JSON lines, CSV, a folder, or a line each) that help most on others like them.

    Says what messages that were not looked at need with it and without.
    """
    messages = [data for name in names for _, data in read_messages(name, field, key) if data]
    if Path(output).exists() and not force:
        raise click.ClickException(f"{files.shown(output)} exists: overwrite it with -f")
    random.Random(1).shuffle(messages)
    held = messages[: min(50, len(messages) // 4)]
    with Bars(quiet) as bars:
        bars.doing("loading")
        from memcodec.codec import Codec
        from memcodec.primer import Primer, bits

        codec = Codec.load(model, device=device, threads=threads, progress=bars.model)
        found = Primer.train(
            codec, messages[len(held) :], tokens, progress=lambda done, total: bars.tokens("picking", done, total)
        )
        bars.doing("measuring")
        before, after = bits(codec, held), bits(codec.with_primer(found), held)
    found.save(output)
    if not quiet:
        count = 8 * max(len(held), 1)
        click.echo(
            f"{files.shown(output)}: {len(found.tokens)} tokens; a message needs {before / count:.1f} bytes without, "
            f"{after / count:.1f} with it, by {len(held)} others",
            err=True,
        )


@primer.command()
@click.argument("name", metavar="P")
def show(name: str) -> None:
    """Print the text of the primer P."""
    found = read_primer(name)
    assert found is not None
    click.echo(found.text.decode("utf-8", "replace"), nl=False)
