"""`memcodec verify`: checks that files are undamaged."""

from dataclasses import dataclass

import click

from memcodec import container
from memcodec.wording import counted
from memcodec_cli import inputs
from memcodec_cli.errors import FileErrors
from memcodec_cli.library import DecodingCodecs, decode, open_archive
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
    for name, _ in files:
        result: str | None = None
        with errors.caught(name):
            result = _check(name, options.decode, codecs, ProgressBar(progress.quiet))
        if result is not None:  # printed here, because an error of standard output is not one of the file
            print_line(f"{result_name(name)}: ok{result}")
    errors.exit_if_any(len(files))


def _check(name: str, decodes: bool, codecs: DecodingCodecs, bar: ProgressBar) -> str:
    """Check a file or an archive, and return what to add to "ok". Raises MemcodecError, OSError."""
    blob = inputs.read_compressed(name)
    if container.is_archive(blob):
        return _check_archive(name, blob, decodes, codecs, bar)
    containers = container.unpack_all(blob)
    if not decodes:
        for span in (part for parsed in containers for part in parsed.parts):
            if isinstance(span, container.StoredSpan):
                for _ in span.pieces():
                    pass
        return ""
    with bar:
        for _ in decode(containers, codecs, bar):
            pass
    return f", decodes to {counted(sum(parsed.size for parsed in containers), 'byte')}"


def _check_archive(name: str, data: bytes, decodes: bool, codecs: DecodingCodecs, bar: ProgressBar) -> str:
    archive = open_archive(name, codecs.primer, data)
    if decodes:
        with bar:
            codec = codecs.codec_for(archive.needs, bar, archive.primer)
        archive = open_archive(name, archive.primer, data, codec)
        archive.batch = codecs.batch
        for _ in archive:
            pass
    return f", an archive of {counted(len(archive), 'document')}" + (", decoded" if decodes else "")
