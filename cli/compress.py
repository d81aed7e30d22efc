"""`memcodec compress`."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import click

from memcodec import MemcodecError, container
from memcodec.document.source import Source
from memcodec_cli import inputs, outputs
from memcodec_cli.encoding import EncodingOptions
from memcodec_cli.errors import FileErrors, print_warning
from memcodec_cli.library import EncodingCodec
from memcodec_cli.names import display_name
from memcodec_cli.options import (
    EngineOptions,
    OutputOptions,
    PrimedModelOptions,
    ProgressOptions,
    VerificationOptions,
    option,
    recursive_option,
    takes_options,
)
from memcodec_cli.outputs import Output
from memcodec_cli.progress import ProgressBar, print_summary, wants_summary

FILES_AT_ONCE = 200  # files that are open at the same time, and encoded in common batches
SIDE_FILE_BYTES = 1 << 15  # size from which --resume keeps a side file: up to a minute of work
ESTIMATE_BYTES = 200_000  # total size from which the expected time is printed


@dataclass(frozen=True)
class _OutputOptions(OutputOptions):
    output: str | None = option(
        "-o", "--output", metavar="OUT", help="Output of a single FILE; - is standard output.  [default: FILE.memz]"
    )


@dataclass(frozen=True)
class CompressOptions(VerificationOptions):
    """Options of this command alone."""

    recursive: bool = recursive_option(
        "Compress the files in directories too, except .memz files and unfinished files of memcodec."
    )
    resume: bool = option(
        "--resume",
        is_flag=True,
        help="Keep finished work in a side file OUT.part (for inputs of 32 KB or more), and continue from the one that "
        "an interrupted run has left. Skip inputs whose output is complete.",
    )
    report: str | None = option(
        "--report",
        metavar="OUT",
        help="Also write an HTML page about a single FILE, like inspect --html; - is standard output.  "
        "[default: no page]",
    )
    no_references: bool = option(
        "--no-references",
        is_flag=True,
        help="Do not write text that occurred before in the same document as a reference.  [default: references]",
    )


@click.command()
@click.argument("names", metavar="[FILE]...", nargs=-1)
@takes_options
def compress(
    names: tuple[str, ...], output: _OutputOptions, options: CompressOptions, model: PrimedModelOptions,
    encoding: EncodingOptions, compute: EngineOptions, progress: ProgressOptions,
) -> None:  # fmt: skip
    """Compress each FILE to FILE.memz. Without FILE, or for -, read standard input and write standard output.

    The result is decoded and compared with the input before it is written (see --verify). If one of several files
    fails, the error is printed, the others are compressed, and the exit status is 1. Compressing takes half a
    minute to three minutes per 100 KB on two CPU cores.

    \b
    Examples:
      memcodec compress notes.txt
      memcodec compress -r folder --output-dir compressed
      memcodec compress -9 book.txt -o book.memz
    """
    settings = encoding.settings() | {
        "batch": compute.batch, "verify": options.verification, "references": not options.no_references,
    }  # fmt: skip
    files = inputs.find_inputs(names, options.recursive, compressed=False)
    outputs.check_output_options(files, output)
    errors = FileErrors(len(files) > 1)
    page = _open_page(options.report, len(files), output.force)
    taken = outputs.places_of([*(name for name, _ in files), model.primer])
    targets = _find_targets(files, output, options.resume, page, taken, errors)
    with ProgressBar(progress.quiet, progress.no_progress) as bar:
        compressor = _Compressor(
            EncodingCodec(model, compute, bar), settings, errors, bar, wants_summary(progress), page,
            output.removes_inputs, options.resume,
        )  # fmt: skip
        bar.activity("loading")
        for first in range(0, len(targets), FILES_AT_ONCE):
            compressor.compress(targets[first : first + FILES_AT_ONCE], len(targets))
    errors.exit_if_any(len(files))


def _find_targets(
    files: list[tuple[str, str]], options: OutputOptions, resume: bool, page: Output | None, taken: set[object],
    errors: FileErrors,
) -> list[tuple[str, Output]]:  # fmt: skip
    """The inputs that are to be compressed, with their outputs, which are checked before the work.

    taken: where inputs are.
    """
    targets: list[tuple[str, Output]] = []
    distinct = outputs.DistinctOutputs()
    for name, directory in files:
        with errors.caught(name):
            default = outputs.output_name(name, directory, options.output_dir) + inputs.EXTENSION
            target = Output.of_input(name, options, default)
            if resume and target.path is None:
                raise click.UsageError("--resume needs outputs that are files")
            distinct.add(target)
            if resume and target.is_complete(name):
                from memcodec.storage.journal import discard

                discard(target.side_file)  # of a process that was killed after it had written the output
                if page is not None:
                    print_warning(f"{target.name} is complete, so there is no page: use memcodec inspect --html")
                if options.removes_inputs:
                    outputs.remove_input(name, target)
                continue
            target.check(binary=True)
            outputs.check_streams(target, page)
            outputs.check_places(taken, target, page)
            targets.append((name, target))
    return targets


def _open_page(report: str | None, files: int, force: bool) -> Output | None:
    if report is None:
        return None
    if files > 1:
        raise click.UsageError("--report is for a single FILE")
    page = Output.named(report, force)
    page.check(binary=False)
    return page


@dataclass(frozen=True)
class _Document:
    """An open input and its output."""

    name: str
    target: Output
    source: Source


class _Stopwatch:
    """Measures the seconds from one lap to the next."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def lap(self) -> float:
        start, self._start = self._start, time.monotonic()
        return self._start - start


@dataclass(frozen=True)
class _Compressor:
    """Compresses documents, and writes each output as soon as it is complete.

    settings: arguments of `Codec.encode`; page: where to write an HTML page about the output.
    """

    encoder: EncodingCodec
    settings: dict[str, Any]
    errors: FileErrors
    bar: ProgressBar
    shows_summary: bool
    page: Output | None
    removes_inputs: bool
    resume: bool

    def compress(self, targets: list[tuple[str, Output]], total: int) -> None:
        """Compress some inputs to their outputs, in common batches. total: the number of inputs of the command."""
        from memcodec.container.assembly import without_model

        watch = _Stopwatch()
        with ExitStack() as stack:
            documents: list[_Document] = []  # those that need the model
            for name, target in targets:
                with self.errors.caught(name):
                    source = stack.enter_context(inputs.opened(name))
                    if inputs.is_compressed(source):
                        print_warning(f"{display_name(name)}: is already compressed")
                    document = _Document(name, target, source)
                    if (blob := without_model(source)) is not None:
                        self._write(document, blob, watch)
                    else:
                        documents.append(document)
            if documents:
                what = "" if len(targets) == total else f"{len(targets)} of {total:,} files, "
                self._print_estimate(what, sum(document.source.size for document in documents))
                self._encode(documents, watch)

    def _encode(self, documents: list[_Document], watch: _Stopwatch) -> None:
        """Encode in common batches, except documents with a side file and those after an error."""
        if self.resume:
            documents.sort(key=lambda document: document.source.size < SIDE_FILE_BYTES)
        encode_one = len(documents) == 1
        while documents:
            if encode_one or self._has_side_file(documents[0]):
                self._encode_one(documents.pop(0), watch)
                encode_one = len(documents) == 1
                continue
            try:
                for blob in self._encode_many(documents):
                    document = documents.pop(0)
                    with self.errors.caught(document.name):
                        self._write(document, blob, watch)
            except (MemcodecError, OSError):  # encode the failing document by itself to report it, then the others
                encode_one = True

    def _encode_one(self, document: _Document, watch: _Stopwatch) -> None:
        from memcodec.storage.journal import Journal

        progress = self.bar.document(document.source.size, "fit")
        with self.errors.caught(document.name), ExitStack() as stack:
            journal = None
            if self._has_side_file(document):
                document.target.make_folder()
                journal = stack.enter_context(Journal(document.target.side_file))
            blob = self.encoder.codec.encode(document.source, **self.settings, journal=journal, progress=progress)
            self._write(document, blob, watch)

    def _encode_many(self, documents: list[_Document]) -> Iterator[bytes]:
        sources = [document.source for document in documents]
        progress = self.bar.document(sum(source.size for source in sources), "fit")
        return self.encoder.codec.encode_many(sources, **self.settings, progress=progress)

    def _has_side_file(self, document: _Document) -> bool:
        return self.resume and document.source.size >= SIDE_FILE_BYTES

    def _write(self, document: _Document, blob: bytes, watch: _Stopwatch) -> None:
        from memcodec.storage.journal import discard

        name, target, source = document.name, document.target, document.source
        target.write([blob])
        if target.path is not None and not self.resume:
            discard(target.side_file)
        seconds = watch.lap()
        if self.page is not None:
            self._write_page(self.page, name, blob)
        if self.removes_inputs:
            source.check_unchanged()
            outputs.remove_input(name, target)
        if self.shows_summary:
            self.bar.close()
            print_summary(name, source.size, len(blob), seconds, source)

    def _write_page(self, page: Output, name: str, blob: bytes) -> None:
        from memcodec_cli import tokenmap

        parsed = container.unpack(blob)
        codec = None if parsed.model is None else self.encoder.codec
        items = tokenmap.items(parsed, codec, self.settings["batch"], self.bar)
        page.write([tokenmap.page(display_name(name), parsed, items)])

    def _print_estimate(self, what: str, size: int) -> None:
        """Print the expected time of a long run on a terminal. what: is printed first; size: bytes to encode."""
        from memcodec.engines.local import Local

        codec = self.encoder.codec
        if self.bar.is_shown and size >= ESTIMATE_BYTES and isinstance(codec.engine, Local):
            self.bar.close()
            try:
                seconds = codec.estimate(size, **self.settings)
            except Exception:  # what is wrong is said when the files are encoded, if that fails too
                return
            duration = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"
            click.echo(f"{what}{size / 1e6:.1f} MB: about {duration}", err=True)
