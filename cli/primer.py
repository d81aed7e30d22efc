"""`memcodec primer train` and `memcodec primer show`."""

import random
from dataclasses import dataclass

import click

from memcodec.settings import DEFAULT_PRIMER_TOKENS, MAX_PRIMER_TOKENS
from memcodec.wording import counted
from memcodec_cli.errors import FileErrors
from memcodec_cli.library import load_codec, read_primer
from memcodec_cli.options import ComputeOptions, EncodingModelOptions, QuietOptions, option, takes_options
from memcodec_cli.outputs import Output, check_places, places_of
from memcodec_cli.progress import ProgressBar
from memcodec_cli.records import RecordOptions, read_records, record_files

TEST_MESSAGES = 50  # messages that are kept for measuring, at most; and no more than a quarter of all


@click.group()
def primer() -> None:
    """Train and show primers: text that every chunk, frame or document sees as context."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of this command alone."""

    output: str = option(
        "-o", "--output", required=True, metavar="P", help="Primer file to write; - is standard output."
    )
    force: bool = option("-f", "--force", is_flag=True, help="Overwrite an existing primer file.")
    tokens: int = option(
        "--tokens",
        type=click.IntRange(1, MAX_PRIMER_TOKENS),
        default=DEFAULT_PRIMER_TOKENS,
        show_default=True,
        metavar="N",
        help="Maximum number of tokens in the primer. More tokens make messages smaller, but training, encoding and "
        "decoding slower.",
    )


@primer.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@takes_options
def train(
    names: tuple[str, ...], options: TrainOptions, records: RecordOptions, model: EncodingModelOptions,
    compute: ComputeOptions, progress: QuietOptions,
) -> None:  # fmt: skip
    """Choose, from the messages in each FILE, those that help most as context for similar messages.

    FILE is JSON lines (.jsonl, .ndjson or .json), CSV or TSV (.csv, .tsv), a directory, or text (each line is a
    message; with --field, each line is JSON). - is standard input. Up to a quarter of the messages, 50 at most, are not
    used for training; the average size in bytes of these, without the primer and with it, is printed.

    \b
    Example:
      memcodec primer train messages.jsonl --field text -o messages.primer
    """
    messages = [
        record.document
        for name in names
        for record in read_records(name, records.field, records.key)
        if record.document
    ]
    target = Output.named(options.output, options.force)
    target.check(binary=True)
    check_places(places_of(record_files(names)), target)
    random.Random(1).shuffle(messages)
    distinct = list(dict.fromkeys(messages))
    test = distinct[: min(TEST_MESSAGES, len(distinct) // 4)]  # at least one, if there are enough to train
    kept = set(distinct[len(test) :])  # no message is used both for training and to measure
    with ProgressBar(progress.quiet) as bar:
        bar.activity("loading")
        from memcodec.primer import Primer, bits

        codec = load_codec(model.model, compute, bar)
        with FileErrors(several=False).caught(names[0] if len(names) == 1 else f"{len(names)} files"):
            trained = Primer.train(
                codec, [message for message in messages if message in kept], options.tokens,
                progress=lambda done, total: bar.count("choosing messages", done, total),
            )  # fmt: skip
        bar.activity("measuring")
        before, after = bits(codec, test), bits(codec.with_primer(trained), test)
    target.write([trained.to_bytes()])
    if not progress.quiet:
        mean_before, mean_after = (bits_of_test / 8 / len(test) for bits_of_test in (before, after))
        click.echo(
            f"{target.name}: {counted(len(trained.tokens), 'token')}; the average message needs "
            f"{mean_before:.1f} bytes without the primer, {mean_after:.1f} with it (measured on "
            f"{counted(len(test), 'other message')})",
            err=True,
        )


@primer.command()
@click.argument("name", metavar="P")
@takes_options
def show(name: str) -> None:
    """Print the text of the primer file P; - is standard input."""
    shown = read_primer(name)
    assert shown is not None
    click.echo(shown.text.decode("utf-8", "replace"), nl=False)
