"""`memcodec inspect` and `memcodec verify`: what a file says of itself, and whether it is whole."""

import json
import sys
from typing import Any

import click

import memcodec
from memcodec import container
from memcodec.inspection import inspect_all
from memcodec_cli import files, options
from memcodec_cli.loaded import Loaded
from memcodec_cli.loaded import decode as decode_file
from memcodec_cli.progress import Bars


@click.command()
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, of several files a list.  [default: a table]")
def inspect(names: tuple[str, ...], as_json: bool) -> None:
    """Show the header of each FILE, its sizes by part in bytes, and its groups of chunks. Needs no model."""
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
@options.decoding_model
@options.primer
@options.running
@options.quiet
def verify(
    names: tuple[str, ...], decode: bool, model: str | None, allow_download: bool, primer: str | None, device: str,
    batch: int, threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Check that each FILE is whole: structure and checksums, or with --decode the document itself.

    All files are checked; the status is 1 if any is bad. --model, --allow-download, --device, --batch and --threads go
    with --decode.
    """
    bad = 0
    loaded = Loaded(model, allow_download, device, threads, primer)
    for name in names:
        try:
            found = files.read_containers(name)
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


@click.command("list")
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
def list_files(names: tuple[str, ...]) -> None:
    """List compressed and original bytes of each FILE, or the documents of an archive. Needs no model."""
    failures = files.Failures(len(names) > 1)
    click.echo(f"{'compressed':>12}{'original':>14}{'ratio':>8}  name")
    for name in names:
        with failures.of(name):
            blob = files.read_start_first(name)
            if container.is_archive(blob):
                _list_archive(name)
                continue
            original = sum(parsed.size for parsed in container.unpack_all(blob))
            click.echo(f"{len(blob):12,}{original:14,}{original / len(blob):8.2f}  {_plain(files.shown(name))}")
    failures.finish(len(names))


def _list_archive(name: str) -> None:
    from memcodec.archive import Archive

    archive = Archive(name)
    keys = archive.keys() or [str(i) for i in range(len(archive))]
    for number, key in enumerate(keys):
        click.echo(f"{archive.frame_size(number):12,}{'':14}{'':8}  {_plain(files.shown(name))}: {_plain(key)}")
