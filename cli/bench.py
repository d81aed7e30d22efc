"""`memcodec bench`: memcodec against the classic compressors, on the user's own files."""

import json
from typing import Any

import click

from memcodec.settings import MOST_SHARE, SHARE_STEPS, Context
from memcodec_cli import files, options
from memcodec_cli.messages import field_option, read_messages
from memcodec_cli.progress import Bars

DEFAULT_BYTES = 16_384


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--bytes",
    "size",
    type=click.IntRange(min=1),
    default=DEFAULT_BYTES,
    show_default=True,
    metavar="N",
    help="Measure the first N bytes of each file.",
)
@click.option("--full", is_flag=True, help="Measure whole files: minutes per 100 KB on a CPU.")
@click.option(
    "--memory-share",
    "shares",
    type=click.FloatRange(0, MOST_SHARE / SHARE_STEPS),
    multiple=True,
    default=(0.0, 0.1, 0.2),
    show_default=True,
    metavar="S",
    help="The part of the information that the memory carries; may be given more than once.",
)
@options.context
@click.option("--profile", is_flag=True, help="Show where memcodec's time goes instead, by stage, at its defaults.")
@click.option(
    "--messages",
    "messages_name",
    metavar="FILE",
    help="Measure short messages instead: JSON lines (.jsonl), or a line each.  [default: whole files]",
)
@field_option
@click.option("--fresh", is_flag=True, help="Measure everything anew.  [default: keep what was measured before]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the machine and the versions.")
@options.encoding_model
@options.running
@options.quiet
def bench(
    paths: tuple[str, ...], size: int, full: bool, shares: tuple[float, ...], context: Context, profile: bool,
    messages_name: str | None, field: str | None, fresh: bool, as_json: bool, model: str, device: str,
    batch: int, threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Compare memcodec with gzip, bzip2, xz, zstd and brotli on the files PATH.

    Every output is decompressed and compared. Sizes are those of whole files on disk; the model (and zstd's dictionary,
    trained on the other files) is not counted. The lines in brackets are limits, not codecs: what an ideal arithmetic
    coder with the same model would need. Results are kept: a second run measures only what is new.
    """
    if (messages_name is None) is not bool(paths):
        raise click.UsageError("give files to measure, or --messages FILE")
    if messages_name is not None:
        _messages(messages_name, field, model, device, batch, threads, quiet, as_json)
        return
    contents = [(files.shown(path), files.read(path)) for path in paths]
    for name, data in contents:
        if not data:
            raise click.ClickException(f"{name}: is empty")
    with Bars(quiet) as bars:
        from memcodec.bench import stages, table
        from memcodec.bench.comparison import Bench, Text
        from memcodec.bench.results import Store, machine
        from memcodec.codec import Codec

        codec = Codec.load(model, device=device, threads=threads, progress=bars.model)
        bars.close()
        say = (lambda what: click.echo(f"measuring {what}", err=True)) if bars.shown else (lambda _: None)
        texts = [Text.cut(name, data, None if full else size) for name, data in contents]
        if profile:
            found = {text.name: stages.profile(codec, text.data, context, batch) for text in texts}
            shown = [f"{text.name}\n{stages.render(text.data, found[text.name])}" for text in texts]
            click.echo(json.dumps({"machine": machine(), "seconds": found}) if as_json else "\n\n".join(shown))
            return
        rows = list(Bench(codec, Store(fresh=fresh), say, batch).compare(texts, shares, context=context))
    if not as_json:
        click.echo(table.render(rows))
        return
    result: dict[str, Any] = {"machine": machine(), "model": codec.name, "identity": codec.lm.identity.hex()}
    result["rows"] = [{"text": r.text, "codec": r.codec, "original_bytes": r.original_bytes} | r.result for r in rows]
    click.echo(json.dumps(result, indent=1))


def _messages(
    name: str, field: str | None, model: str, device: str, batch: int, threads: int | None, quiet: bool, as_json: bool
) -> None:
    found = [data for _, data in read_messages(name, field, None) if data]
    with Bars(quiet) as bars:
        from memcodec.bench import messages
        from memcodec.bench.results import machine
        from memcodec.codec import Codec

        train, test = messages.split(found)
        if len(train) < 8:
            raise click.ClickException(f"{files.shown(name)}: give 16 different messages or more")
        codec = Codec.load(model, device=device, threads=threads, progress=bars.model)
        measured = messages.measure(codec, train, test, batch=batch, say=bars.doing)
    click.echo(
        json.dumps({"machine": machine()} | measured) if as_json else messages.render(files.shown(name), measured)
    )
