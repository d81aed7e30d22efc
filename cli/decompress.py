"""`memcodec decompress` and `memcodec cat`."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click

from memcodec import FormatError, container
from memcodec.wording import counted
from memcodec_cli import inputs, outputs
from memcodec_cli.errors import FileErrors
from memcodec_cli.library import DecodingCodecs, batched, decode_range, documents_of, salvage, size_of
from memcodec_cli.options import (
    ComputeOptions,
    DecodingModelOptions,
    EngineOptions,
    OutputOptions,
    ProgressOptions,
    QuietOptions,
    option,
    recursive_option,
    takes_options,
    whole_number,
)
from memcodec_cli.outputs import Output
from memcodec_cli.progress import ProgressBar, print_summary, wants_summary


@dataclass(frozen=True)
class _OutputOptions(OutputOptions):
    output: str | None = option(
        "-o",
        "--output",
        metavar="OUT",
        help="Output of a single FILE; - is standard output.  [default: FILE without .memz]",
    )


def _parse_range(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int | None] | None:
    if value is None:
        return None
    start, separator, length = value.partition(":")
    first, count = whole_number(start), whole_number(length)
    if first is None or not separator or (count is None and length):
        raise click.BadParameter("use START:LENGTH in bytes, or START: for everything from START to the end")
    return first, count


@dataclass(frozen=True)
class DecompressOptions:
    """Options of this command alone."""

    recursive: bool = recursive_option("Decompress the .memz files in directories too.")
    byte_range: tuple[int, int | None] | None = option(
        "--range",
        metavar="START:LENGTH",
        callback=_parse_range,
        help="Write only LENGTH bytes of the document from byte START (START: for everything up to the end). Only the "
        "groups that contain them are decoded.  [default: the whole document]",
    )
    salvage: bool = option(
        "--salvage",
        is_flag=True,
        help="Write every chunk of a damaged file that matches its checksum, list what is lost, and exit with status "
        "3 if anything is.",
    )
    report: str | None = option(
        "--report",
        metavar="FILE",
        help="With --salvage: write a JSON file that lists what is lost; - is standard output. An existing file is "
        "overwritten only with -f.  "
        "[default: standard error only]",
    )


@click.command()
@click.argument("names", metavar="[FILE]...", nargs=-1)
@takes_options
def decompress(
    names: tuple[str, ...], output: _OutputOptions, options: DecompressOptions, model: DecodingModelOptions,
    compute: EngineOptions, progress: ProgressOptions,
) -> None:  # fmt: skip
    """Decompress each FILE.memz to FILE. Without FILE, or for -, read standard input and write standard output.

    The output appears under its name only after every chunk and the whole document have matched their checksums. If
    one of several files fails, the error is printed, the others are decompressed, and the exit status is 1. The model
    that a file names is loaded; it must be the one that the file was made with.

    \b
    Examples:
      memcodec decompress notes.txt.memz
      memcodec decompress -c notes.txt.memz | less
      memcodec decompress --range 1000:200 -c book.memz
      memcodec decompress --salvage --report lost.json damaged.memz -o rest.txt
    """
    files = inputs.find_inputs(names, options.recursive, compressed=True)
    outputs.check_output_options(files, output)
    if options.byte_range is not None and (len(files) > 1 or output.removes_inputs):
        raise click.UsageError("--range is for a single FILE, without --rm")
    codecs = DecodingCodecs(model, compute)
    bar = ProgressBar(progress.quiet, progress.no_progress)
    # Inputs that will be refused for lack of a default output name are left out: another output may replace them.
    read = [name for name, _ in files if output.output or output.to_stdout or name.endswith(inputs.EXTENSION)]
    taken = outputs.places_of([*read, model.primer])
    if options.salvage or options.report is not None:
        if len(files) > 1 or options.byte_range is not None or output.removes_inputs or not options.salvage:
            raise click.UsageError("--salvage is for a single FILE, without --range and --rm; --report needs --salvage")
        _salvage(files[0], output, options.report, taken, codecs, bar)
        return
    errors = FileErrors(len(files) > 1, suggest_salvage=True)
    decompressor = _Decompressor(output, options.byte_range, taken, codecs, errors, bar, wants_summary(progress))
    with bar:
        decompressor.decompress(files)
    errors.exit_if_any(len(files))


@dataclass(frozen=True)
class _File:
    """A file that has been read, and its output."""

    name: str
    target: Output
    containers: list[container.Container]

    @property
    def size(self) -> int:
        """Size of the .memz file in bytes."""
        return size_of(self.containers)


@dataclass(frozen=True)
class _Decompressor:
    """Decompresses files in batches; taken: where its inputs are."""

    output: OutputOptions
    byte_range: tuple[int, int | None] | None
    taken: set[object]
    codecs: DecodingCodecs
    errors: FileErrors
    bar: ProgressBar
    shows_summary: bool

    def decompress(self, files: list[tuple[str, str]]) -> None:
        """Decompress files; each comes with the directory argument that it was found in, or ""."""
        distinct = outputs.DistinctOutputs()

        def read(name: str, directory: str) -> _File:
            target = _target(name, directory, self.output)
            target.check(binary=False)
            outputs.check_places(self.taken, target)
            found = _File(name, target, inputs.read_containers(name))
            distinct.add(target)  # after reading, so that a file that cannot be read does not reserve its output's name
            return found

        for batch in batched(self.errors.each(files, read), lambda file: file.size):
            self._decompress(batch)

    def _decompress(self, batch: list[_File]) -> None:
        start = time.monotonic()
        self.bar.activity("loading")
        if self.byte_range is None:
            documents = documents_of([file.containers for file in batch], self.codecs, self.bar)
        else:  # of a single file
            documents = iter([decode_range(batch[0].containers, self.byte_range, self.codecs, self.bar)])
        for file, document in zip(batch, documents, strict=True):
            with self.errors.caught(file.name):
                size = file.target.write(document)
                if self.output.removes_inputs:
                    outputs.remove_input(file.name, file.target)
                if self.shows_summary:
                    self.bar.close()
                    print_summary(file.name, size, file.size, time.monotonic() - start)
                    start = time.monotonic()


def _target(name: str, directory: str, options: OutputOptions) -> Output:
    """The output of an input: without -o or -c, its name without .memz."""
    stem = name.removesuffix(inputs.EXTENSION)
    has_stem = stem != name and stem[-1:] not in ("", "/")
    return Output.of_input(name, options, outputs.output_name(stem, directory, options.output_dir) if has_stem else "")


def _salvage(
    file: tuple[str, str], options: OutputOptions, report: str | None, taken: set[object], codecs: DecodingCodecs,
    bar: ProgressBar,
) -> None:  # fmt: skip
    """Write what is undamaged in a file, and list what is not.

    file: with its directory argument, as `find_inputs`; taken: where inputs are.
    """
    name, directory = file
    target = _target(name, directory, options)
    target.check(binary=False)
    page = None if report is None else Output.named(report, force=options.force)
    if page is not None:
        outputs.check_streams(target, page)
        page.check(binary=False)
    outputs.check_places(taken, target, page)
    with FileErrors(several=False).caught(name):
        _write_undamaged(name, target, page, codecs, bar)


def _write_undamaged(name: str, target: Output, page: Output | None, codecs: DecodingCodecs, bar: ProgressBar) -> None:
    members, unread = container.members_of(inputs.read_compressed(name))
    lost: list[dict[str, Any]] = []
    unpacked: list[container.Container] = []
    for number, member in enumerate(members):
        try:
            unpacked.append(container.unpack(member, damaged=True))
        except FormatError:  # an index that cannot be read
            if not number:
                raise
            unread += sum(map(len, members[number:]))
            break
    whole = sum(parsed.size for parsed in unpacked)

    def pieces() -> Iterator[bytes]:
        start = 0  # of a member's document
        for member, parsed in zip(members, unpacked, strict=False):
            for piece in salvage(bytes(member), parsed, codecs, bar):
                if isinstance(piece, bytes):
                    yield piece
                else:
                    lost.append({**asdict(piece), "start": piece.start + start, "end": piece.end + start})
            start += parsed.size

    with bar:
        size = target.write(pieces())
    if page is not None:
        facts = {"file": name, "original_bytes": whole, "written_bytes": size, "lost": lost, "unread_bytes": unread}
        page.write([json.dumps(facts, indent=1).encode() + b"\n"])
    for gap in lost:
        click.echo(
            f"memcodec: lost: {counted(gap['end'] - gap['start'], 'byte')}, starting at byte {gap['start']:,}", err=True
        )
    if unread:
        click.echo(
            f"memcodec: not read: {counted(unread, 'byte')} at the end of the file, not a readable memcodec file",
            err=True,
        )
    if lost or unread:
        click.echo(f"memcodec: {size:,} of {whole:,} bytes written", err=True)
        sys.exit(3)


@click.command()
@click.argument("names", metavar="[FILE]...", nargs=-1)
@takes_options
def cat(
    names: tuple[str, ...], model: DecodingModelOptions, compute: ComputeOptions, progress: QuietOptions
) -> None:  # fmt: skip
    """Decompress each FILE and write the documents to standard output, concatenated.

    Without FILE, or for -, read standard input. If one of several files fails, the error is printed, the others are
    written, and the exit status is 1.

    \b
    Example:
      memcodec cat january.memz february.memz | grep error
    """
    codecs = DecodingCodecs(model, compute)
    target = Output(None, force=True)
    files = inputs.find_inputs(names, recursive=False, compressed=True)
    with ProgressBar(progress.quiet) as bar:
        errors = FileErrors(len(files) > 1)
        read = errors.each(files, lambda name, _: _File(name, target, inputs.read_containers(name)))
        for batch in batched(read, lambda file: file.size):
            _write(batch, codecs, errors, bar)
    errors.exit_if_any(len(files))


def _write(batch: list[_File], codecs: DecodingCodecs, errors: FileErrors, bar: ProgressBar) -> None:
    """Decode files, and write each to its output."""
    for file, document in zip(batch, documents_of([file.containers for file in batch], codecs, bar), strict=True):
        with errors.caught(file.name):
            file.target.write(document)
