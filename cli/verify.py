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
    with ProgressBar(progress.quiet) as bar:
        errors = FileErrors(len(files) > 1)
        read = errors.each(files, _read)
        if options.decode:
            for batch in batched(read, lambda file: file.size):
                _decode(batch, codecs, errors, bar)
        else:
            for file in read:
                _report(file, partial(_check, codecs=codecs), errors, bar)
                del file  # before the next one is read
    errors.exit_if_any(len(files))


@dataclass(frozen=True)
class _File:
    """A file that has been read. archive: its bytes, if it is one; containers: otherwise."""

    name: str
    size: int
    archive: bytes | None
    containers: list[container.Container]


def _read(name: str, _: str) -> _File:
    """Read a file or an archive. Raises MemcodecError, OSError."""
    blob = inputs.read_compressed(name)
    if container.is_archive(blob):
        return _File(name, len(blob), blob, [])
    return _File(name, len(blob), None, container.unpack_all(blob))


def _report(file: _File, check: Callable[[_File], str], errors: FileErrors, bar: ProgressBar) -> None:
    """Check a file, and print the result. check: returns what to add to "ok"; it raises MemcodecError, OSError."""
    result: str | None = None
    with errors.caught(file.name):
        result = check(file)
    if result is not None:  # printed here, because an error of standard output is not one of the file
        bar.close()
        print_line(f"{result_name(file.name)}: ok{result}")


def _check(file: _File, codecs: DecodingCodecs) -> str:
    """Check a file without a model."""
    if file.archive is not None:
        return f", an archive of {counted(len(open_archive(file.name, codecs.primer, file.archive)), 'document')}"
    for span in (part for parsed in file.containers for part in parsed.parts):
        if isinstance(span, container.StoredSpan):
            for _ in span.pieces():
                pass
    return ""


def _decode(batch: list[_File], codecs: DecodingCodecs, errors: FileErrors, bar: ProgressBar) -> None:
    """Decode files, and print the results."""
    documents = documents_of([file.containers for file in batch], codecs, bar)

    def check(file: _File, document: Iterator[bytes]) -> str:
        if file.archive is not None:
            return _decode_archive(file.name, file.archive, codecs, bar)
        for _ in document:
            pass
        return f", decodes to {counted(sum(parsed.size for parsed in file.containers), 'byte')}"

    for file, document in zip(batch, documents, strict=True):
        _report(file, partial(check, document=document), errors, bar)


def _decode_archive(name: str, data: bytes, codecs: DecodingCodecs, bar: ProgressBar) -> str:
    """Decode an archive, and return what to add to "ok". Raises MemcodecError, OSError."""
    archive = open_archive(name, codecs.primer, data)
    codec = codecs.codec_for(archive.needs, bar, archive.primer)
    archive = open_archive(name, archive.primer, data, codec)
    archive.batch = codecs.batch
    for _ in archive:
        pass
    return f", an archive of {counted(len(archive), 'document')}, decoded"
