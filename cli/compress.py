"""`memcodec compress`, `memcodec decompress` and `memcodec cat`."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from memcodec import MemcodecError, container
from memcodec.document.source import Source
from memcodec.settings import (
    DEFAULT_CHUNK_TOKENS,
    MAX_CHUNK_TOKENS,
    MAX_VECTORS,
    MEMORY_BITS,
    MOST_SHARE,
    SHARE_STEPS,
    Context,
    Prompt,
    Readout,
)
from memcodec_cli import files, options
from memcodec_cli.loaded import Loaded, decode, decode_together, opened_engine, read_part, read_primer, salvaged
from memcodec_cli.progress import Bars, close_line, wants_line

if TYPE_CHECKING:
    from memcodec.codec import Codec

_READOUT, _PROMPT = Readout(), Prompt()


def _vectors(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdecimal() or not 1 <= int(value) <= MAX_VECTORS:
        raise click.BadParameter(f"give 1 to {MAX_VECTORS}, or auto")
    return int(value)


_ONLY = {"readout": ("memory_share", "effort", "context"), "prompt": ("vectors", "bits", "steps", "seed", "pure")}


def _check_site(site: str) -> None:
    """Refuse options that were given and mean nothing at this site."""
    given = click.get_current_context().get_parameter_source
    for other, names in _ONLY.items():
        for name in names:
            if other != site and given(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} is for --site {other} only")


@click.command()
@click.argument("names", metavar="[FILE]...", nargs=-1)
@click.option("-o", "--output", metavar="OUT", help="Output of one FILE; - is standard output.  [default: FILE.memz]")
@options.writing
@click.option("-r", "--recursive", is_flag=True, help="The files in folders too, but for .memz files.")
@options.encoding_model
@options.primer
@click.option(
    "--chunk-tokens",
    type=click.IntRange(1, MAX_CHUNK_TOKENS),
    default=DEFAULT_CHUNK_TOKENS,
    show_default=True,
    metavar="N",
    help="Tokens in a chunk, at most.",
)
@options.context
@click.option(
    "--site",
    type=click.Choice(["readout", "prompt"]),
    default="readout",
    show_default=True,
    help="Where the memory enters the model: at its end, or as vectors before the first token (slow).",
)
@click.option(
    "--vectors",
    callback=_vectors,
    default="1",
    show_default=True,
    metavar="N",
    help=f"Prompt site: vectors a chunk, 1 to {MAX_VECTORS}, or auto for the fewest that succeed.",
)
@click.option(
    "--bits",
    type=click.Choice([str(bits) for bits in MEMORY_BITS]),
    default=str(_PROMPT.bits),
    show_default=True,
    help="Prompt site: bits per dimension of a vector; 16 is float16.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=_PROMPT.steps,
    show_default=True,
    metavar="N",
    help="Prompt site: steps of gradient descent a chunk, at most.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Prompt site: of the noise that a fit starts from.",
)
@click.option(
    "--pure",
    is_flag=True,
    help="Prompt site: vectors alone, whatever their size; fails where they do not suffice.  [default: corrections]",
)
@click.option(
    "--memory-share",
    type=click.FloatRange(0, MOST_SHARE / SHARE_STEPS),
    default=_READOUT.share,
    show_default=True,
    metavar="S",
    envvar="MEMCODEC_MEMORY_SHARE",
    show_envvar=True,
    help="Readout site: the part of a chunk's information that its memory carries, 0 (none) to 0.5.",
)
@click.option(
    "--effort",
    type=click.IntRange(1, 1 << 20),
    default=_READOUT.effort,
    show_default=True,
    metavar="N",
    help="Readout site: states that the search for a memory tries per token: more is smaller and slower.",
)
@options.running
@options.engine
@click.option(
    "--resume",
    is_flag=True,
    help="Keep what is done in a side file OUT.part (of inputs of 32 KB or more), and go on from the one that a killed "
    "run has left. Outputs that hold their input already are left as they are.",
)
@click.option(
    "--report", metavar="OUT", help="Of one FILE, also a page of HTML, as inspect --html makes it.  [default: none]"
)
@click.option("--no-verify", is_flag=True, help="Do not decode the result before it is written.  [default: verify]")
@options.saying
def compress(
    names: tuple[str, ...], output: str | None, to_stdout: bool, force: bool, keep: bool, remove: bool,
    output_dir: str | None, recursive: bool, model: str, primer: str | None, chunk_tokens: int, context: Context,
    site: str, vectors: int | None, bits: str, steps: int, seed: int, pure: bool, memory_share: float, effort: int,
    device: str, batch: int, threads: int | None, engine: str, workers: int | None, resume: bool, report: str | None,
    no_verify: bool, quiet: bool, verbose: bool, no_progress: bool,
) -> None:  # fmt: skip
    """Compress each FILE; - is standard input, as is none.

    Of several files, those that fail are named, and the rest is done.
    """
    _check_site(site)
    jobs = _jobs(files.inputs(names, recursive, packed=False), output, output_dir, to_stdout, remove and not keep)
    chosen = (
        Readout(memory_share, effort)
        if site == "readout"
        else Prompt(vectors=vectors, bits=int(bits), steps=steps, seed=seed, pure=pure)
    )
    chosen.check()
    failures = files.Failures(len(jobs) > 1)
    targets: list[tuple[str, files.Output]] = []
    places = files.Targets()
    for name, folder in jobs:
        with failures.of(name):
            beside = files.place(name, folder, output_dir) + files.EXTENSION
            target = files.Output.choose(name, output, to_stdout, force, beside)
            if resume and target.path is None:
                raise click.UsageError("--resume is for outputs that are files")
            places.take(target)
            if resume and target.holds(name):
                if remove and not keep:
                    files.remove_input(name, target)
                continue
            target.check(binary=True)
            targets.append((name, target))
    settings: dict[str, Any] = {
        "site": chosen, "chunk_tokens": chunk_tokens, "context": context, "batch": batch, "verify": not no_verify,
    }  # fmt: skip
    if report is not None and len(jobs) > 1:
        raise click.UsageError("--report is for one FILE")
    page = files.Output.choose(files.STANDARD, report, False, force, "") if report is not None else None
    if page is not None:
        page.check(binary=False)
    line, behind = wants_line(quiet, verbose), read_primer(primer)
    on, device = opened_engine(engine, workers, threads, device)
    with Bars(quiet, no_progress) as bars:
        bars.doing("loading")
        from memcodec import codec

        @cache
        def loaded() -> "codec.Codec":
            found = codec.Codec.load(model, device=device, threads=threads, progress=bars.model)
            found = found if on is None else found.with_engine(on)
            return found if behind is None else found.with_primer(behind)

        def report_on(name: str, blob: bytes) -> None:
            if page is not None:
                from memcodec_cli import tokenmap

                parsed = container.unpack(blob)
                found = tokenmap.items_of(parsed, None if parsed.model is None else loaded(), batch, bars)
                page.write([tokenmap.page(files.shown(name), parsed, found)])

        for first in range(0, len(targets), _TOGETHER):
            some = targets[first : first + _TOGETHER]
            _compress(some, loaded, settings, failures, bars, line, remove and not keep, resume, report_on)
    failures.finish(len(jobs))


_TOGETHER = 200  # files that are open at one time
_HELD = 1 << 26  # bytes of .memz files that are in memory at one time, and one file more


def _jobs(
    found: list[tuple[str, str]], output: str | None, output_dir: str | None, to_stdout: bool, remove: bool
) -> list[tuple[str, str]]:
    """Check what goes together."""
    if len(found) > 1 and output not in (None, files.STANDARD):
        raise click.UsageError("-o is for one FILE: give --output-dir")
    if output is not None and output_dir is not None:
        raise click.UsageError("give -o or --output-dir, not both")
    if remove and (to_stdout or files.STANDARD in (output, *(name for name, _ in found))):
        raise click.UsageError("--rm is for files that become files")
    return found


def _compress(
    targets: list[tuple[str, files.Output]], loaded: "Callable[[], Codec]", settings: dict[str, Any],
    failures: files.Failures, bars: Bars, line: bool, remove: bool, resume: bool,
    report_on: Callable[[str, bytes], None],
) -> None:  # fmt: skip
    """Some files, whose groups are coded together."""
    from memcodec.container.assembly import without_model
    from memcodec.engines.local import Local
    from memcodec.storage.journal import Journal, discard

    with ExitStack() as stack:
        waiting: list[tuple[str, files.Output, Source]] = []
        start = [time.monotonic()]

        def write(name: str, target: files.Output, source: Source, blob: bytes) -> None:
            target.write([blob])
            if target.path is not None and not resume:
                discard(target.side_file)
            seconds, start[0] = time.monotonic() - start[0], time.monotonic()
            report_on(name, blob)
            if remove:
                source.check_unchanged()
                files.remove_input(name, target)
            if line:
                bars.close()
                close_line(files.shown(name), source.size, len(blob), seconds, source)

        for name, target in targets:
            with failures.of(name):
                source = stack.enter_context(files.opened(name))
                if files.is_compressed(source):
                    click.echo(f"memcodec: warning: {files.shown(name)}: is compressed already", err=True)
                if (blob := without_model(source)) is not None:
                    write(name, target, source, blob)
                else:
                    waiting.append((name, target, source))
        if not waiting:
            return
        found = loaded()
        size = sum(source.size for _, _, source in waiting)
        if bars.shown and size >= _LONG and isinstance(found.engine, Local):
            bars.close()
            seconds = found.estimate(size, settings["context"], settings["batch"], settings["verify"])
            click.echo(f"{size / 1e6:.1f} MB: about {_duration(seconds)}", err=True)
        alone = len(waiting) == 1
        if resume:
            waiting.sort(key=lambda one: one[2].size < _SIDE_FILE)
        while waiting:
            large = resume and waiting[0][2].size >= _SIDE_FILE
            if alone or large:
                name, target, source = waiting.pop(0)
                progress = bars.document(source.size, "fit")
                with failures.of(name), ExitStack() as until:
                    journal = until.enter_context(Journal(target.side_file)) if large else None
                    blob = found.encode(source, **settings, journal=journal, progress=progress)
                    write(name, target, source, blob)
                alone = len(waiting) == 1
                continue
            size = sum(source.size for _, _, source in waiting)
            sources = [source for _, _, source in waiting]
            try:
                for blob in found.encode_many(sources, **settings, progress=bars.document(size, "fit")):
                    name, target, source = waiting.pop(0)
                    with failures.of(name):
                        write(name, target, source, blob)
            except (MemcodecError, OSError):  # of one: the first is done by itself, then the others together again
                alone = True


_SIDE_FILE = 1 << 15  # bytes from which on a document is worth a side file: 20 seconds
_LONG = 200_000  # bytes from which on it is said how long it will take


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


@click.command()
@click.argument("names", metavar="[FILE]...", nargs=-1)
@click.option(
    "-o", "--output", metavar="OUT", help="Output of one FILE; - is standard output.  [default: FILE without .memz]"
)
@options.writing
@click.option("-r", "--recursive", is_flag=True, help="The .memz files in folders too.")
@click.option(
    "--range",
    "part",
    metavar="START:LENGTH",
    callback=lambda ctx, param, value: _range(value),
    help="Only these bytes (START: for all that follow); no more is decoded than the groups that hold them.  "
    "[default: all]",
)
@click.option(
    "--salvage",
    is_flag=True,
    help="Of a damaged file, write every chunk that matches its checksum; name what is lost, and end with status 3.",
)
@click.option(
    "--report", "report_name", metavar="FILE", help="With --salvage: what is lost, as JSON.  [default: standard error]"
)
@options.decoding_model
@options.primer
@options.running
@options.engine
@options.saying
def decompress(
    names: tuple[str, ...], output: str | None, to_stdout: bool, force: bool, keep: bool, remove: bool,
    output_dir: str | None, recursive: bool, part: tuple[int, int | None] | None, salvage: bool,
    report_name: str | None, model: str | None, allow_download: bool, primer: str | None, device: str, batch: int,
    threads: int | None, engine: str, workers: int | None, quiet: bool, verbose: bool, no_progress: bool,
) -> None:  # fmt: skip
    """Decompress each FILE; - is standard input, as is none.

    An output gets its name only when every chunk and the whole have matched their checksums. Of several files, those
    that fail are named, and the rest is done.
    """
    jobs = _jobs(files.inputs(names, recursive, packed=True), output, output_dir, to_stdout, remove and not keep)
    if part is not None and (len(jobs) > 1 or remove):
        raise click.UsageError("--range is for one FILE, without --rm")
    places = files.Targets()
    total = len(jobs)
    failures = files.Failures(total > 1, salvageable=True)
    loaded = Loaded(model, allow_download, device, threads, primer, engine, workers)
    if salvage or report_name is not None:
        if len(jobs) > 1 or part is not None or remove or not salvage:
            raise click.UsageError("--salvage is for one FILE, without --range and --rm; --report goes with it")
        _salvage(jobs[0][0], output, to_stdout, force, report_name, loaded, batch, Bars(quiet, no_progress))
        return
    with Bars(quiet, no_progress) as bars:
        while jobs:
            lot: list[tuple[str, files.Output, list[container.Container]]] = []
            held = 0  # bytes
            while jobs and len(lot) < _TOGETHER and held < _HELD:
                name, folder = jobs.pop(0)
                with failures.of(name):
                    stem = name.removesuffix(files.EXTENSION)
                    own = stem != name and stem[-1:] not in ("", "/")
                    beside = files.place(stem, folder, output_dir) if own else ""
                    target = files.Output.choose(name, output, to_stdout, force, beside)
                    target.check(binary=False)
                    places.take(target)
                    lot.append((name, target, files.read_containers(name)))
                    held += sum(sum(parsed.sizes.values()) for parsed in lot[-1][2])
            start = time.monotonic()
            bars.doing("loading")
            known = decode_together([parsed for _, _, parsed in lot], loaded, batch, bars)
            for number, (name, target, parsed) in enumerate(lot):
                with failures.of(name):
                    if part is not None:
                        size = target.write(read_part(parsed, part, loaded, bars))
                    else:
                        size = target.write(known[number] or decode(parsed, loaded, batch, bars))
                    if remove and not keep:
                        files.remove_input(name, target)
                    if wants_line(quiet, verbose):
                        bars.close()
                        packed = sum(sum(one.sizes.values()) for one in parsed)
                        close_line(files.shown(name), size, packed, time.monotonic() - start)
                        start = time.monotonic()
    failures.finish(total)


def _salvage(
    name: str, output: str | None, to_stdout: bool, force: bool, report_name: str | None, loaded: Loaded, batch: int,
    bars: Bars,
) -> None:  # fmt: skip
    """Write what a damaged file gives back, and say what it does not."""
    stem = name.removesuffix(files.EXTENSION)
    target = files.Output.choose(name, output, to_stdout, force, stem if stem != name else "")
    target.check(binary=False)
    lost: list[dict[str, Any]] = []
    blob = files.read_start_first(name)
    parsed = container.unpack(blob, damaged=True)

    def pieces() -> Iterator[bytes]:
        found = salvaged(blob, parsed, loaded, batch, bars)
        for piece in found:
            if isinstance(piece, bytes):
                yield piece
            else:
                lost.append(asdict(piece))

    with bars:
        size = target.write(pieces())
    report = {"file": name, "original_bytes": parsed.size, "written_bytes": size, "lost": lost}
    if report_name is not None:
        Path(report_name).write_text(json.dumps(report, indent=1) + "\n")
    for gap in lost:
        click.echo(f"memcodec: lost: {gap['end'] - gap['start']:,} bytes from {gap['start']:,} on", err=True)
    if lost:
        click.echo(f"memcodec: {size:,} of {parsed.size:,} bytes written", err=True)
        sys.exit(3)


def _range(value: str | None) -> tuple[int, int | None] | None:
    if value is None:
        return None
    start, separator, length = value.partition(":")
    if not start.isdecimal() or not separator or not (length.isdecimal() or not length):
        raise click.BadParameter("give START:LENGTH in bytes, or START: for all that follows")
    return int(start), int(length) if length else None


@click.command()
@click.argument("names", metavar="[FILE]...", nargs=-1)
@options.decoding_model
@options.primer
@options.running
@options.quiet
def cat(
    names: tuple[str, ...], model: str | None, allow_download: bool, primer: str | None, device: str, batch: int,
    threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Write the documents of each FILE to standard output, one behind the other."""
    loaded = Loaded(model, allow_download, device, threads, primer)
    target = files.Output(None, force=True)
    jobs = files.inputs(names, recursive=False, packed=True)
    failures = files.Failures(len(jobs) > 1)
    with Bars(quiet) as bars:
        for name, _ in jobs:
            with failures.of(name):
                target.write(decode(files.read_containers(name), loaded, batch, bars))
    failures.finish(len(jobs))
