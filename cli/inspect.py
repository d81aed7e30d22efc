"""`memcodec inspect`: prints the header of a file, its sizes and its groups, or its token map."""

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from memcodec.view.inspection import inspect_all
from memcodec.wording import counted
from memcodec_cli import inputs, tokenmap
from memcodec_cli.errors import FileErrors
from memcodec_cli.library import DecodingCodecs
from memcodec_cli.names import display_name, print_line, result_name
from memcodec_cli.options import ComputeOptions, DecodingModelOptions, QuietOptions, option, takes_options
from memcodec_cli.outputs import Output, check_places, check_streams, places_of
from memcodec_cli.progress import ProgressBar

if TYPE_CHECKING:
    from memcodec.view.tokenmap import Item


@dataclass(frozen=True)
class InspectOptions:
    """Options of this command alone."""

    as_json: bool = option(
        "--json", is_flag=True, help="Print JSON: an object for one FILE, a list for several.  [default: tables]"
    )
    tokens: bool = option(
        "--tokens", is_flag=True, help="Decode the file, and print its text coloured by the bits that each token costs."
    )
    colour: str = option(
        "--color",
        type=click.Choice(["always", "auto", "never"]),
        default="auto",
        show_default=True,
        help="Colours of --tokens; without them, characters below the text show the same. auto uses colours on a "
        "terminal, and obeys NO_COLOR, FORCE_COLOR and TERM=dumb.",
    )
    html: str | None = option(
        "--html",
        metavar="OUT",
        help="Decode a single FILE, and write an HTML page that shows its tokens and sizes; - is standard "
        "output.  [default: no page]",
    )
    force: bool = option("-f", "--force", is_flag=True, help="Overwrite an existing page.")


@click.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@takes_options
def inspect(
    names: tuple[str, ...], options: InspectOptions, model: DecodingModelOptions, compute: ComputeOptions,
    progress: QuietOptions,
) -> None:  # fmt: skip
    """Print the header of each FILE, the size of its parts in bytes, and its groups of chunks.

    - is standard input. No model is needed, except for --tokens and --html: they decode the file to show the cost of
    each token in bits, and whether the model, the memory or a correction wrote it. The options --model,
    --allow-download, --primer, --device, --batch and --threads have an effect only with them.

    \b
    Examples:
      memcodec inspect notes.txt.memz
      memcodec inspect --json *.memz
      memcodec inspect --html notes.html notes.txt.memz
    """
    if options.tokens or options.html is not None:
        if options.as_json or (options.html is not None and len(names) > 1):
            raise click.UsageError("--tokens and --html cannot be used with --json; --html is for a single FILE")
        page = Output.named(options.html, options.force) if options.html is not None else None
        if options.tokens:
            check_streams(Output(None, force=True), page)
        check_places(places_of([*names, model.primer]), page)
        codecs = DecodingCodecs(model, compute)
        _show_tokens(names, options, page, codecs, ProgressBar(progress.quiet))
        return
    errors = FileErrors(len(names) > 1)
    files: list[tuple[str, dict[str, Any]]] = []  # the name and the facts of each container
    for name in names:
        with errors.caught(name):
            files += [(name, facts) for facts in inspect_all(inputs.read_compressed(name))]
    if not files:
        errors.exit_if_any(len(names))
    single = len(files) == 1 and len(names) == 1
    if options.as_json:
        named = [{"file": name} | facts for name, facts in files]
        click.echo(json.dumps(files[0][1] if single else named, indent=2))
    else:
        titles = [[] if single else [result_name(name)] for name, _ in files]
        tables = ["\n".join(title + _table(facts)) for title, (_, facts) in zip(titles, files, strict=True)]
        print_line("\n\n".join(tables))
    errors.exit_if_any(len(names))


def _table(facts: dict[str, Any]) -> list[str]:
    """The lines that are printed about a file; facts: what `memcodec.inspect` returns."""
    lines = [
        f"format version  {facts['format_version']}",
        f"original        {counted(facts['original_bytes'], 'byte')}",
        f"file            {facts['file_bytes']:,} bytes ({facts['ratio']:.2f}x)",
        f"SHA-256         {facts['sha256_start']}...",
    ]
    if facts["model"] is None:
        lines.append("model           none needed: everything is stored")
    else:
        model = facts["model"]
        lines.append(f"model           {printable(model['id'])} ({model['identity_start']})")
        lines += [f"{key.replace('_', ' '):16}{_value(value)}" for key, value in facts["settings"].items()]
    lines += ["", f"{'part':16}{'bytes':>10}"]
    lines += [f"{part:16}{size:>10,}" for part, size in facts["parts"].items()]
    if repeated := facts["references"]:
        size = sum(one["bytes"] for one in repeated)
        lines += ["", f"{counted(len(repeated), 'reference')}: {counted(size, 'byte')} that occurred before"]
    row = "{:>6}  {:10}{:>10}{:>8}{:>8}{:>8}{:>13}{:>10}"
    lines += ["", row.format("#", "kind", "bytes", "chunks", "tokens", "memory", "corrections", "stored")]
    for number, span in enumerate(facts["spans"]):
        columns = ("tokens", "memory_bytes", "correction_bytes", "stored_bytes")
        chunks = len(span["chunks"]) if "chunks" in span else ""
        cells = [number, span["kind"], span["bytes"], chunks, *(span.get(key, "") for key in columns)]
        lines.append(row.format(*cells).rstrip())
    return lines


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Text from a file, with characters replaced that could control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _print_tokens(name: str, maps: "list[list[Item]]", has_colours: bool) -> None:
    """Print the token map of each container of a file."""
    if has_colours:
        click.echo(tokenmap.heading(display_name(name)), color=True)
    else:
        print_line(tokenmap.plain_heading(result_name(name)))
    for items in maps:
        if has_colours:
            click.echo(tokenmap.coloured(items), color=True)
        else:
            print_line(tokenmap.marked(items, shutil.get_terminal_size().columns))


def _show_tokens(
    names: tuple[str, ...], options: InspectOptions, page: Output | None, codecs: DecodingCodecs, bar: ProgressBar
) -> None:
    """Print the token map of each file, write a page about it, or both."""
    if page is not None:
        page.check(binary=False)
    errors = FileErrors(len(names) > 1)
    with bar:
        for name in names:
            with errors.caught(name):
                containers = inputs.read_containers(name)
                maps = []
                for parsed in containers:
                    codec = None if parsed.model is None else codecs.codec_for(parsed.needs, bar)
                    maps.append(tokenmap.items(parsed, codec, codecs.batch, bar))
                bar.close()
                if options.tokens:
                    _print_tokens(name, maps, tokenmap.wants_colour(options.colour))
                if page is not None:
                    if len(containers) > 1:
                        raise click.ClickException(
                            f"{display_name(name)}: contains {len(containers)} concatenated files: --html needs one"
                        )
                    page.write([tokenmap.page(display_name(name), containers[0], maps[0])])
    errors.exit_if_any(len(names))
