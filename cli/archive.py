"""`memcodec pack` and `memcodec unpack`: archives of short documents."""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import click
from click.core import ParameterSource

from memcodec import EncodeError
from memcodec.levels import BEST
from memcodec.storage.write import replace, resolved
from memcodec.wording import counted
from memcodec_cli.errors import FileErrors
from memcodec_cli.library import load_codec, open_archive, read_primer
from memcodec_cli.names import STANDARD_STREAM, display_name
from memcodec_cli.options import (
    ComputeOptions,
    DecodingModelOptions,
    PrimedModelOptions,
    ProgressOptions,
    QuietOptions,
    VerificationOptions,
    level_option,
    option,
    takes_options,
    whole_number,
)
from memcodec_cli.outputs import Output, check_places, is_special, places_of
from memcodec_cli.progress import ProgressBar, wants_summary
from memcodec_cli.records import Record, RecordOptions, read_records, record_files

_MAX_NAME_BYTES = 255  # of a file, in every usual file system
_READ_WITHOUT_O = "nothing was written; read it without -o"


@dataclass(frozen=True)
class PackOptions(VerificationOptions):
    """Options of `pack` alone."""

    output: str = option(
        "-o",
        "--output",
        required=True,
        metavar="ARCHIVE",
        help="Archive to create, or to extend with -a; - is standard output.",
    )
    level: int = level_option(
        "Sets the memory share and the effort of the documents, as for compress. At any level, each document uses "
        "all of its own text as context. Levels 1 to 8 add memories, which make the archive larger.",
        default=BEST,
        show_default=True,
    )
    append: bool = option(
        "-a", "--append", is_flag=True, help="Append to an existing archive, with its memory share and its primer."
    )
    force: bool = option("-f", "--force", is_flag=True, help="Overwrite an existing archive.")
    no_primer_inside: bool = option(
        "--no-primer-inside",
        is_flag=True,
        help="Do not store the primer in the archive; reading it then needs --primer.  [default: store the primer]",
    )


@click.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@takes_options
def pack(
    names: tuple[str, ...], options: PackOptions, records: RecordOptions, model: PrimedModelOptions,
    compute: ComputeOptions, progress: ProgressOptions,
) -> None:  # fmt: skip
    """Compress many short documents into one ARCHIVE, from which each can be read alone.

    FILE is a directory (each file is a document, its path the key), JSON lines (.jsonl, .ndjson or .json), CSV or TSV
    (.csv, .tsv), or text (each line is a document; with --field or --key, each line is JSON). - is standard input.
    Documents that are the same are kept once.

    \b
    Examples:
      memcodec pack notes -o notes.archive
      memcodec pack messages.jsonl --field text --key id -o messages.archive
    """
    documents = [record for name in names for record in read_records(name, records.field, records.key)]
    _check_records(documents)
    target = Output.named(options.output, options.force)
    if options.append:
        if target.path is None or is_special(target.path):
            raise click.UsageError("-a is for an ARCHIVE that is a file")
        if click.get_current_context().get_parameter_source("level") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--level is for a new ARCHIVE: -a keeps the memory share of the archive")
        if options.no_primer_inside:
            raise click.UsageError("--no-primer-inside is for a new ARCHIVE: -a leaves the primer where it is")
        check_places(places_of([*record_files(names), model.primer]), target)
        _check_appended(target, documents)
    elif target.path is not None and target.path.is_file() and not options.force:
        raise click.ClickException(f"{target.name} exists: overwrite it with -f, or add to it with -a")
    else:
        target.check(binary=True)
        check_places(places_of([*record_files(names), model.primer]), target)
    with ProgressBar(progress.quiet, progress.no_progress) as bar:
        count, size = _write_archive(target, documents, options, model, compute, bar)
    if wants_summary(progress):
        click.echo(f"{target.name}: {counted(count, 'document')}, {counted(size, 'byte')}", err=True)


def _check_records(records: list[Record]) -> None:
    """Raise ClickException, with the place of the record, for documents and keys that an archive cannot have."""
    from memcodec.files.archive import MAX_DOCUMENT_BYTES
    from memcodec.files.keys import check_keys

    with_key = next((record for record in records if record.key is not None), None)
    for record in records:
        where = record.where
        if len(record.document) > MAX_DOCUMENT_BYTES:
            raise click.ClickException(
                f"{where}: it has {len(record.document):,} bytes, and documents of an archive at most "
                f"{MAX_DOCUMENT_BYTES:,}: compress it alone"
            )
        if record.key is None and with_key is not None:
            raise click.ClickException(
                f"{where}: it has no key, but {with_key.where} has one: use --key, or directories only"
            )
    keys = [record.key for record in records if record.key is not None]
    try:
        check_keys(keys, len(records), [record.where for record in records])
    except EncodeError as error:
        raise click.ClickException(str(error)) from error


def _check_appended(target: Output, records: list[Record]) -> None:
    """Raise ClickException, before a model is loaded, for new documents whose keys do not fit those of the archive."""
    with FileErrors(several=False).caught(str(target.path)):
        archive = open_archive(str(target.path))
    keys = archive.keys()
    if not records or not len(archive):
        return
    if keys and records[0].key is None:
        raise click.ClickException(
            f"{target.name}: its documents have keys, but {records[0].where} has none: use --key, or a directory"
        )
    taken = set(keys)
    for record in records:
        if record.key in taken:
            raise click.ClickException(
                f"{record.where}: its key {record.key!r} is in {target.name} already: give it another"
            )
    if not keys and records[0].key is not None:
        raise click.ClickException(
            f"{target.name}: its documents have no keys, but {records[0].where} has one: pack without --key, or into "
            "another archive"
        )


def _write_archive(
    target: Output, records: list[Record], options: PackOptions, model: PrimedModelOptions, compute: ComputeOptions,
    bar: ProgressBar,
) -> tuple[int, int]:  # fmt: skip
    """Write or extend an archive, and return the number of its documents and bytes."""
    bar.activity("loading")
    from memcodec.files.archive import Archive

    codec = load_codec(model.model, compute, bar)
    primer = read_primer(model.primer)
    documents, keys = (
        [record.document for record in records],
        [record.key for record in records if record.key is not None],
    )
    progress = bar.document(sum(len(document) for document in documents), "fit")
    if options.append:
        assert target.path is not None
        with FileErrors(several=False).caught(options.output):
            archive = Archive(target.path, codec, primer)
            archive.batch = compute.batch
            archive.append(documents, keys, verify=options.verification, progress=progress)
        return len(archive), target.path.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        archive = Archive.create(
            path, documents, keys, codec=codec, primer=primer, with_primer=not options.no_primer_inside,
            level=options.level, batch=compute.batch, verify=options.verification, progress=progress,
        )  # fmt: skip
        return len(archive), target.write([path.read_bytes()])


@dataclass(frozen=True)
class UnpackOptions:
    """Options of `unpack` alone."""

    output: str | None = option(
        "-o",
        "--output",
        metavar="DIR",
        help="Directory for the documents, one file each.  [default: JSON lines on standard output, as with -]",
    )
    lines: bool = option(
        "--lines", is_flag=True, help="Write each document as a line of text, without its key, instead of JSON."
    )


@click.command()
@click.argument("archive_name", metavar="ARCHIVE")
@click.argument("selection", metavar="[KEY]...", nargs=-1)
@takes_options
def unpack(
    archive_name: str, selection: tuple[str, ...], options: UnpackOptions, model: DecodingModelOptions,
    compute: ComputeOptions, progress: QuietOptions,
) -> None:  # fmt: skip
    """Read the documents of ARCHIVE: all of them, or those with the given KEYs; - is standard input.

    In an archive without keys, KEY is the number of a document, from 0. The documents are written to standard output,
    one per line: as {"key": ..., "text": ...}, or as a JSON string if the archive has no keys.

    \b
    Examples:
      memcodec unpack messages.archive 17 18
      memcodec unpack notes.archive -o notes
    """
    directory = None if options.output in (None, STANDARD_STREAM) else Path(options.output)
    if directory is not None and options.lines:
        raise click.UsageError("--lines is for standard output: leave out -o or --lines")
    with ProgressBar(progress.quiet) as bar, FileErrors(several=False).caught(archive_name):
        bar.activity("loading")
        archive = open_archive(archive_name, read_primer(model.primer))
        keys = archive.keys()
        numbers = [_number(archive_name, key, keys, len(archive)) for key in selection] or list(range(len(archive)))
        targets: list[Path] | None = None
        if directory is not None:
            digits = len(str(len(archive)))
            names = [keys[number] if keys else f"{number:0{digits}}" for number in numbers]
            targets = _find_targets(directory, names)
        else:
            Output(None, force=True).check(binary=False)
        archive.load(
            model.model, device=compute.device, threads=compute.threads, allow_download=model.allow_download,
            progress=bar.download,
        )  # fmt: skip
        archive.batch = compute.batch
        bar.close()
        if targets is not None:
            _write_files(targets, archive.read(numbers))
            return
        for number, document in zip(numbers, archive.read(numbers), strict=True):
            if options.lines:
                sys.stdout.buffer.write(document + b"\n")
            else:
                click.echo(_to_json(keys[number] if keys else None, document))


def _write_files(targets: list[Path], documents: Iterable[bytes]) -> None:
    """Write each document to its file, and make the folders. After an error, none of these is there."""
    made: list[Path] = []
    try:
        for target, document in zip(targets, documents, strict=True):
            for folder in [*takewhile(lambda folder: not folder.exists(), target.parents)][::-1]:
                with suppress(FileExistsError):  # another process has made it meanwhile
                    folder.mkdir()
                    made.append(folder)
            _write_new(target, document, made)
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _write_new(target: Path, document: bytes, made: list[Path]) -> None:
    """Write a file that is not there yet, and add it to the list just before. Raises ClickException, OSError."""

    def before(_: object) -> None:
        _check_missing(target, str(target))
        made.append(target)

    replace(target, [document], before=before)


def _number(archive_name: str, key: str, keys: list[str], count: int) -> int:
    """The number of a document. Raises ClickException."""
    if keys and key in keys:
        return keys.index(key)
    if not keys and (number := whole_number(key)) is not None and number < count:
        return number
    raise click.ClickException(f"{display_name(archive_name)}: has no document {key!r}")


def _to_json(key: str | None, document: bytes) -> str:
    text = document.decode("utf-8", "surrogateescape")
    return json.dumps(text if key is None else {"key": key, "text": text})


def _find_targets(directory: Path, keys: list[str]) -> list[Path]:
    """The files of the documents with these keys. Raises ClickException for those that could not all be written."""
    targets: dict[Path, str] = {}  # with their keys
    for key in keys:
        target = _target(directory, key)
        if target in targets:
            raise click.ClickException(
                f"the keys {targets[target]!r} and {key!r} name the same file: {_READ_WITHOUT_O}"
            )
        if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in target.parts):
            raise click.ClickException(f"the key {key!r} is too long for the name of a file: {_READ_WITHOUT_O}")
        _check_missing(target, str(directory / key))
        targets[target] = key
    for target, key in targets.items():
        for folder in target.parents:
            if folder in targets:
                raise click.ClickException(
                    f"the key {key!r} needs a folder where the key {targets[folder]!r} is a file: {_READ_WITHOUT_O}"
                )
            if folder.exists():
                if not folder.is_dir():
                    raise click.ClickException(
                        f"{display_name(str(folder))} is not a directory: unpack into another one"
                    )
                break
    return list(targets)


def _check_missing(target: Path, name: str) -> None:
    """Raise ClickException if a file exists. name: of the file, for the error."""
    if target.exists():
        raise click.ClickException(f"{display_name(name)} exists: unpack into another directory")


def _target(directory: Path, key: str) -> Path:
    """The file of a document. Raises ClickException if its key leads out of the directory."""
    inside = resolved(directory)
    try:
        os.fsencode(key)
        target = None if "\0" in key else (inside / key).resolve()
    except (ValueError, OSError, RuntimeError):
        target = None
    if target is None or inside not in target.parents:
        raise click.ClickException(
            f"{key!r}: not written, because this key leads out of {display_name(str(directory))}: {_READ_WITHOUT_O}"
        )
    return target
