"""`memcodec inspect` and `memcodec verify`: what a file says of itself, and whether it is whole."""

import json
import sys
from typing import Any

import click

import memcodec
from memcodec import container
from memcodec.view.inspection import inspect_all
from memcodec_cli import files, options
from memcodec_cli.loaded import Loaded
from memcodec_cli.loaded import decode as decode_file
from memcodec_cli.progress import Bars


@click.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, of several files a list.  [default: a table]")
@click.option("--tokens", is_flag=True, help="Decode, and show the text coloured by the bits of each token.")
@click.option("--html", metavar="OUT", help="Decode, and write a page about one FILE.  [default: none]")
@options.force
@options.decoding_model
@options.primer
@options.running
@options.quiet
def inspect(
    names: tuple[str, ...], as_json: bool, tokens: bool, html: str | None, force: bool, model: str | None,
    allow_download: bool, primer: str | None, device: str, batch: int, threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Show the header of each FILE, its sizes by part in bytes, and its groups of chunks. Needs no model.

    --tokens and --html need it: they show what each token cost, and who wrote it. --model to --threads go with them.
    """
    if tokens or html is not None:
        if as_json or (html is not None and len(names) > 1):
            raise click.UsageError("--tokens and --html go without --json; --html is for one FILE")
        loaded = Loaded(model, allow_download, device, threads, primer)
        _show_tokens(names, tokens, html, force, loaded, batch, Bars(quiet))
        return
    failures = files.Failures(len(names) > 1)
    found = []
    for name in names:
        with failures.of(name):
            found += [(name, facts) for facts in inspect_all(files.read_start_first(name))]
    if as_json:
        every = [{"file": name} | facts for name, facts in found]
        click.echo(json.dumps(every if len(found) != 1 or len(names) > 1 else found[0][1], indent=2))
    else:
        titles = [[files.shown(name)] if len(found) > 1 or len(names) > 1 else [] for name, _ in found]
        tables = ["\n".join([*title, *_table(facts)]) for title, (_, facts) in zip(titles, found, strict=True)]
        click.echo("\n\n".join(tables))
    failures.finish(len(names))


def _show_tokens(
    names: tuple[str, ...], tokens: bool, html: str | None, force: bool, loaded: Loaded, batch: int, bars: Bars
) -> None:
    """Print token maps, write a page, or both."""
    from memcodec_cli import tokenmap

    target = files.Output.choose(files.STANDARD, html, False, force, "") if html is not None else None
    if target is not None:
        target.check(binary=False)
    failures = files.Failures(len(names) > 1)
    with bars:
        for name in names:
            with failures.of(name):
                parsed = files.read_containers(name)
                maps = [tokenmap.items(one, loaded, batch, bars) for one in parsed]
                bars.close()
                if tokens:
                    click.echo(tokenmap.heading(files.shown(name)))
                    for found in maps:
                        click.echo(tokenmap.coloured(found))
                if target is not None:
                    if len(parsed) > 1:
                        raise click.ClickException(f"{files.shown(name)}: several files in one: a page is of one")
                    target.write([tokenmap.page(files.shown(name), parsed[0], maps[0])])
    failures.finish(len(names))


def _table(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"format version  {facts['format_version']}",
        f"original        {facts['original_bytes']:,} bytes",
        f"file            {facts['file_bytes']:,} bytes ({facts['ratio']:.2f}x)",
        f"SHA-256         {facts['sha256_start']}...",
    ]
    if facts["model"] is None:
        lines.append("model           none needed: everything is stored")
    else:
        model = facts["model"]
        lines.append(f"model           {_plain(model['id'])} ({model['identity_start']})")
        lines += [f"{key.replace('_', ' '):16}{_number(value)}" for key, value in facts["settings"].items()]
    lines += ["", f"{'part':16}{'bytes':>10}"]
    lines += [f"{part:16}{size:>10,}" for part, size in facts["parts"].items()]
    row = "{:>6}  {:10}{:>10}{:>8}{:>8}{:>8}{:>13}{:>10}"
    lines += ["", row.format("#", "kind", "bytes", "chunks", "tokens", "memory", "corrections", "stored")]
    for number, span in enumerate(facts["spans"]):
        columns = ("tokens", "memory_bytes", "correction_bytes", "stored_bytes")
        chunks = len(span["chunks"]) if "chunks" in span else ""
        cells = [number, span["kind"], span["bytes"], chunks, *(span.get(key, "") for key in columns)]
        lines.append(row.format(*cells).rstrip())
    return lines


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """Text from a file, without what could control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


@click.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("--decode", is_flag=True, help="Decode everything too.  [default: structure and checksums only]")
@click.option("-r", "--recursive", is_flag=True, help="The .memz files in folders too.")
@options.decoding_model
@options.primer
@options.running
@options.engine
@options.quiet
def verify(
    names: tuple[str, ...], decode: bool, recursive: bool, model: str | None, allow_download: bool, primer: str | None,
    device: str, batch: int, threads: int | None, engine: str, workers: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Check that each FILE, or archive, is whole: structure and checksums, or with --decode the documents themselves.

    All files are checked; the status is 1 if any is bad. What --model to --workers say goes with --decode.
    """
    bad = 0
    loaded = Loaded(model, allow_download, device, threads, primer, engine, workers)
    for name, _ in files.inputs(names, recursive, packed=True):
        try:
            blob = files.read_start_first(name)
            if container.is_archive(blob):
                _verify_archive(name, decode, loaded, batch)
                continue
            found = container.unpack_all(blob)
            if decode:
                with Bars(quiet) as bars:
                    for _ in decode_file(found, loaded, batch, bars):
                        pass
            else:
                for part in (part for parsed in found for part in parsed.parts):
                    if isinstance(part, container.StoredSpan):
                        for _ in part.pieces():
                            pass
        except (memcodec.MemcodecError, OSError) as error:
            reason = files.describe(error) if isinstance(error, OSError) else f"{files.shown(name)}: {error}"
            click.echo(f"memcodec: error: {' '.join(reason.split())}", err=True)
            bad += 1
        else:
            size = sum(parsed.size for parsed in found)
            click.echo(f"{files.shown(name)}: ok" + (f", decodes to {size:,} bytes" if decode else ""))
    if bad:
        sys.exit(1)


def _verify_archive(name: str, decode: bool, loaded: Loaded, batch: int) -> None:
    from memcodec.files.archive import Archive

    archive = Archive(name, primer=loaded.primer)
    if decode:
        archive.load(loaded.model, **loaded.settings)
        archive.batch = batch
        for _ in archive:
            pass
    click.echo(f"{files.shown(name)}: ok, an archive of {len(archive):,} documents" + (", decoded" if decode else ""))


@click.command("list")
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="The .memz files in folders too.")
def list_files(names: tuple[str, ...], recursive: bool) -> None:
    """List compressed and original bytes of each FILE, or the documents of an archive. Needs no model."""
    jobs = files.inputs(names, recursive, packed=True)
    failures = files.Failures(len(jobs) > 1)
    title = f"{'compressed':>12}{'original':>14}{'ratio':>8}  name"
    for name, _ in jobs:
        with failures.of(name):
            blob = files.read_start_first(name)
            if title:
                click.echo(title)
                title = ""
            if container.is_archive(blob):
                _list_archive(name)
                continue
            original = sum(parsed.size for parsed in container.unpack_all(blob))
            click.echo(f"{len(blob):12,}{original:14,}{original / len(blob):8.2f}  {_plain(files.shown(name))}")
    failures.finish(len(jobs))


def _list_archive(name: str) -> None:
    from memcodec.files.archive import Archive

    archive = Archive(name)
    keys = archive.keys() or [str(i) for i in range(len(archive))]
    for number, key in enumerate(keys):
        click.echo(f"{archive.frame_size(number):12,}{'':14}{'':8}  {_plain(files.shown(name))}: {_plain(key)}")
