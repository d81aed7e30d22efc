"""`memcodec bench`: compares memcodec with other compressors on the user's files or messages."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from memcodec.settings import Context
from memcodec_cli import inputs
from memcodec_cli.library import load_codec
from memcodec_cli.names import display_name
from memcodec_cli.options import (
    MEMORY_SHARE,
    ComputeOptions,
    EncodingModelOptions,
    QuietOptions,
    context_option,
    field_option,
    option,
    takes_options,
)
from memcodec_cli.progress import ProgressBar
from memcodec_cli.records import read_records

if TYPE_CHECKING:
    from memcodec.bench.comparison import Text

DEFAULT_BYTES = 16_384
MIN_TRAINING_MESSAGES = 8


@dataclass(frozen=True)
class BenchOptions:
    """Options of this command alone."""

    bytes: int = option(
        "--bytes",
        type=click.IntRange(min=1),
        default=DEFAULT_BYTES,
        show_default=True,
        metavar="N",
        help="Measure the first N bytes of each file.",
    )
    full: bool = option("--full", is_flag=True, help="Measure whole files, which takes minutes per 100 KB on a CPU.")
    memory_share: tuple[float, ...] = option(
        "--memory-share",
        type=MEMORY_SHARE,
        multiple=True,
        default=(0.0, 0.1, 0.2),
        show_default=True,
        metavar="S",
        help="Memory share to measure: fraction of the information that the memory carries. Repeat the option to "
        "measure several.",
    )
    context: Context = context_option()  # noqa: RUF009 (returns a field)
    profile: bool = option(
        "--profile", is_flag=True, help="Show the time that memcodec spends in each stage at its defaults instead."
    )
    messages: str | None = option(
        "--messages",
        metavar="FILE",
        help="Measure short messages instead of files: JSON lines (.jsonl, .ndjson or .json), CSV or TSV (.csv, .tsv), "
        "or text (each line is a message).  [default: measure files]",
    )
    field: str | None = field_option()
    fresh: bool = option("--fresh", is_flag=True, help="Measure everything again.  [default: reuse earlier results]")
    as_json: bool = option("--json", is_flag=True, help="Print JSON, with the machine and the versions.")


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@takes_options
def bench(
    paths: tuple[str, ...], options: BenchOptions, model: EncodingModelOptions, compute: ComputeOptions,
    progress: QuietOptions,
) -> None:  # fmt: skip
    """Compare memcodec with gzip, bzip2, xz, zstd and brotli on the files PATH.

    Every output is decompressed and compared with the input. Sizes in bytes are those of whole files on disk; the
    model, and zstd's dictionary (trained on the other files), are not counted. Lines in brackets are bounds: the size
    that an ideal arithmetic coder with the same model would need. Results are kept in the cache, so that a second run
    measures only what is new.

    \b
    Examples:
      memcodec bench notes.txt
      memcodec bench --messages messages.jsonl --field text
    """
    if (options.messages is None) is not bool(paths):
        raise click.UsageError("name files to measure, or use --messages FILE")
    with ProgressBar(progress.quiet) as bar:
        if options.messages is not None:
            report = _measure_messages(options.messages, options, model, compute, bar)
        elif options.profile:
            report = _profile(_read_files(paths), options, model, compute, bar)
        else:
            report = _measure_files(_read_files(paths), options, model, compute, bar)
    click.echo(report)


def _read_files(paths: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """The names and contents of files. Raises ClickException for an empty file; OSError."""
    contents = [(display_name(path), inputs.read(path)) for path in paths]
    for name, data in contents:
        if not data:
            raise click.ClickException(f"{name}: is empty: name a file that has text")
    return contents


def _texts(contents: list[tuple[str, bytes]], options: BenchOptions) -> "list[Text]":
    """The beginnings of texts that are measured. Raises ClickException if one has no whole character."""
    from memcodec.bench.comparison import Text

    texts = [Text.cut(name, data, None if options.full else options.bytes) for name, data in contents]
    for text in texts:
        if not text.data:
            raise click.ClickException(
                f"{text.name}: its first character has more than {options.bytes} bytes: raise --bytes"
            )
    return texts


def _measure_files(
    contents: list[tuple[str, bytes]], options: BenchOptions, model: EncodingModelOptions, compute: ComputeOptions,
    bar: ProgressBar,
) -> str:  # fmt: skip
    from memcodec.bench import table
    from memcodec.bench.comparison import Bench
    from memcodec.bench.results import Store, machine

    texts = _texts(contents, options)
    codec = load_codec(model.model, compute, bar)
    bar.close()
    log = (lambda what: click.echo(f"measuring {what}", err=True)) if bar.is_shown else (lambda _: None)
    bench = Bench(codec, Store(fresh=options.fresh), log, compute.batch)
    rows = list(bench.compare(texts, options.memory_share, context=options.context))
    if not options.as_json:
        return table.render(rows)
    results = [
        {"text": row.text, "codec": row.codec, "original_bytes": row.original_bytes} | row.result for row in rows
    ]
    identity = codec.lm.identity.hex()
    return json.dumps({"machine": machine(), "model": codec.name, "identity": identity, "rows": results}, indent=1)


def _profile(
    contents: list[tuple[str, bytes]], options: BenchOptions, model: EncodingModelOptions, compute: ComputeOptions,
    bar: ProgressBar,
) -> str:  # fmt: skip
    from memcodec.bench import stages
    from memcodec.bench.results import machine

    texts = _texts(contents, options)
    codec = load_codec(model.model, compute, bar)
    bar.close()
    seconds = {text.name: stages.profile(codec, text.data, options.context, compute.batch) for text in texts}
    if options.as_json:
        return json.dumps({"machine": machine(), "kernels": codec.lm.implementation.kernels, "seconds": seconds})
    return f"kernels: {codec.lm.implementation.kernels}\n\n" + "\n\n".join(
        f"{text.name}\n{stages.render(text.data, seconds[text.name])}" for text in texts
    )


def _measure_messages(
    name: str, options: BenchOptions, model: EncodingModelOptions, compute: ComputeOptions, bar: ProgressBar
) -> str:
    contents = [record.document for record in read_records(name, options.field, None) if record.document]
    from memcodec.bench import messages
    from memcodec.bench.results import machine

    train, test = messages.split(contents)
    if len(train) < MIN_TRAINING_MESSAGES:
        raise click.ClickException(
            f"{display_name(name)}: too few messages: at least {2 * MIN_TRAINING_MESSAGES} different ones are needed"
        )
    codec = load_codec(model.model, compute, bar)
    measured = messages.measure(codec, train, test, batch=compute.batch, say=bar.activity)
    bar.close()
    return (
        json.dumps({"machine": machine()} | measured)
        if options.as_json
        else messages.render(display_name(name), measured)
    )
