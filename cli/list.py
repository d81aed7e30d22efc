"""`memcodec list`: prints the sizes of files and of the documents in archives."""

from dataclasses import dataclass

import click

from memcodec import container
from memcodec_cli import inputs
from memcodec_cli.errors import FileErrors
from memcodec_cli.library import open_archive
from memcodec_cli.names import print_line, result_name
from memcodec_cli.options import recursive_option, takes_options


@dataclass(frozen=True)
class ListOptions:
    """Options of this command alone."""

    recursive: bool = recursive_option("List the .memz files in directories too.")


@click.command("list")
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@takes_options
def list_files(names: tuple[str, ...], options: ListOptions) -> None:
    """List the compressed and original size of each FILE in bytes, or of the documents of an archive.

    - is standard input. No model is needed. The original sizes of the documents in an archive are not stored, and not
    listed.

    \b
    Example:
      memcodec list notes.txt.memz messages.archive
    """
    files = inputs.find_inputs(names, options.recursive, compressed=True)
    errors = FileErrors(len(files) > 1)
    title = f"{'compressed':>12}{'original':>14}{'ratio':>8}  name"
    for name, _ in files:
        with errors.caught(name):
            blob = inputs.read_compressed(name)
            if title:
                click.echo(title)
                title = ""
            if container.is_archive(blob):
                _list_archive(name, blob)
                continue
            original = sum(parsed.size for parsed in container.unpack_all(blob))
            print_line(f"{len(blob):12,}{original:14,}{original / len(blob):8.2f}  {result_name(name)}")
    errors.exit_if_any(len(files))


def _list_archive(name: str, data: bytes) -> None:
    archive = open_archive(name, data=data)
    keys = archive.keys() or [str(number) for number in range(len(archive))]
    for number, key in enumerate(keys):
        shown = f"{result_name(name)}: {result_name(key)}"
        print_line(f"{archive.frame_size(number):12,}{'':14}{'':8}  {shown}")
