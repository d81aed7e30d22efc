"""`memcodec verify`: checks that files are undamaged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import click

from memcodec import container
from memcodec.wording import counted
from memcodec_cli import inputs
from memcodec_cli.errors import FileErrors
from memcodec_cli.library import DecodingCodecs, batched, documents_of, open_archive
from memcodec_cli.names import print_line, result_name
from memcodec_cli.options import (
    DecodingModelOptions,
    EngineOptions,
    QuietOptions,
    option,
    recursive_option,
    takes_options,
)
from memcodec_cli.progress import ProgressBar


@dataclass(frozen=True)
class VerifyOptions:
    """Options of this command alone."""

    decode: bool = option(
        "--decode",
        is_flag=True,
        help="Decode the documents too, and check them.  [default: check structure and checksums only]",
    )
    recursive: bool = recursive_option("Verify the .memz files in directories too.")


@click.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@takes_options
def verify(
    names: tuple[str, ...], options: VerifyOptions, model: DecodingModelOptions, compute: EngineOptions,
    progress: QuietOptions,
) -> None:  # fmt: skip
    """Check that each FILE, or archive, is undamaged; - is standard input.

    The structure and the checksums of the compressed data are checked, which needs no model; with --decode, the
    documents are decoded and checked too. All files are checked; the exit status is 1 if any of them is damaged. The
    options from --model to --workers have an effect only with --decode.

    \b
    Examples:
      memcodec verify -r folder
      memcodec verify --decode notes.txt.memz
    """
    codecs = DecodingCodecs(model, compute)
    files = inputs.find_inputs(names, options.recursive, compressed=True)
    errors = FileErrors(len(files) > 1)
    read = _read([name for name, _ in files], errors)
    with ProgressBar(progress.quiet) as bar:
        for batch in batched(read, lambda file: file.size) if options.decode else ([file] for file in read):
            checks = _checks(batch, options.decode, codecs, bar)
            for file, check in zip(batch, checks, strict=True):
                result: str | None = None
                with errors.caught(file.name):
                    result = check()
                if result is not None:  # printed here, because an error of standard output is not one of the file
                    bar.close()
                    print_line(f"{result_name(file.name)}: ok{result}")
    errors.exit_if_any(len(files))


@dataclass(frozen=True)
class _File:
    """A file that has been read. archive: its bytes, if it is one; containers: otherwise."""

    name: str
    size: int
    archive: bytes | None
    containers: list[container.Container]


def _read(names: list[str], errors: FileErrors) -> Iterator[_File]:
    """Read files; an error of one of several is printed."""
    for name in names:
        read: _File | None = None
        with errors.caught(name):
            blob = inputs.read_compressed(name)
            is_archive = container.is_archive(blob)
            read = _File(
                name, len(blob), blob if is_archive else None, [] if is_archive else container.unpack_all(blob)
            )
        if read is not None:
            yield read


def _checks(files: list[_File], decodes: bool, codecs: DecodingCodecs, bar: ProgressBar) -> list[Callable[[], str]]:
    """For each file, a function that checks it and returns what to add to "ok". It raises MemcodecError, OSError."""
    whole = documents_of([file.containers for file in files], codecs, bar) if decodes else [None] * len(files)
    return [
        partial(_check_archive, file.name, file.archive, decodes, codecs, bar)
        if file.archive is not None
        else partial(_check, file.containers, document)
        for file, document in zip(files, whole, strict=True)
    ]


def _check(containers: list[container.Container], document: Iterator[bytes] | None) -> str:
    """Check a file. document: decodes it; None if only the stored spans are to be checked."""
    if document is None:
        for span in (part for parsed in containers for part in parsed.parts):
            if isinstance(span, container.StoredSpan):
                for _ in span.pieces():
                    pass
        return ""
    for _ in document:
        pass
    return f", decodes to {counted(sum(parsed.size for parsed in containers), 'byte')}"


def _check_archive(name: str, data: bytes, decodes: bool, codecs: DecodingCodecs, bar: ProgressBar) -> str:
    archive = open_archive(name, codecs.primer, data)
    if decodes:
        codec = codecs.codec_for(archive.needs, bar, archive.primer)
        archive = open_archive(name, archive.primer, data, codec)
        archive.batch = codecs.batch
        for _ in archive:
            pass
    return f", an archive of {counted(len(archive), 'document')}" + (", decoded" if decodes else "")
