"""Input files: which files a command reads, and reading them from disk, standard input or a URL."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from memcodec import FormatError, container
from memcodec.document.source import Source
from memcodec.storage import remote
from memcodec_cli.errors import with_file_name
from memcodec_cli.names import STANDARD_STREAM, display_name

EXTENSION = ".memz"


def find_inputs(names: tuple[str, ...], recursive: bool, compressed: bool) -> list[tuple[str, str]]:
    """Pairs of a file and the directory argument that it was found in ("" if it was named itself).

    Without names: standard input. recursive: also the files in directories, those that end in .memz if `compressed`,
    all others if not. Raises UsageError.
    """
    if not names:
        if sys.stdin is not None and sys.stdin.isatty():
            raise click.UsageError("no input: name a FILE, or pipe data to standard input")
        return [(STANDARD_STREAM, "")]
    inputs: list[tuple[str, str]] = []
    for name in names:
        if not (recursive and name != STANDARD_STREAM and Path(name).is_dir()):
            inputs.append((name, ""))
            continue
        for path in sorted(Path(name).rglob("*")):
            if path.is_file() and not path.is_symlink() and (path.suffix == EXTENSION) is compressed:
                inputs.append((str(path), name))
    return inputs


def read(name: str) -> bytes:
    """The bytes of a file, or of standard input for "-". Raises OSError with the name of the file."""
    with opened(name) as source:
        return source.read(0, source.size)


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """Open a file, or standard input for "-", to be read in pieces. Raises OSError with the name of the file."""
    if name == STANDARD_STREAM:
        yield Source(_standard_input(), display_name(name))
        return
    if remote.is_url(name):
        with remote.opened(name) as remote_file:
            yield Source(remote_file, display_name(name))
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 (errors inside the `with` block are not about opening)
    except OSError as error:
        raise with_file_name(error, name) from error
    with file:
        try:
            source = Source(file, display_name(name))
        except OSError as error:
            raise with_file_name(error, name) from error
        yield source


def read_compressed(name: str) -> bytes:
    """The bytes of a .memz file. Only the start is read of a file of another kind, which may be large.

    Raises FormatError, and OSError with the name of the file.
    """
    if name == STANDARD_STREAM:
        stream = _standard_input()
        start: bytes = stream.read(container.START)
        container.check_start(start)
        return start + stream.read()
    if remote.is_url(name):
        with remote.opened(name) as remote_file:
            start = remote_file.read(container.START)
            container.check_start(start)
            return start + remote_file.read()
    try:
        with Path(name).open("rb") as file:
            container.check_start(file.read(container.START))
            file.seek(0)
            return file.read()
    except OSError as error:
        raise with_file_name(error, name) from error


def read_containers(name: str) -> list[container.Container]:
    """The containers of a .memz file: one, or several that were concatenated.

    Raises FormatError, ChecksumError, and OSError with the name of the file.
    """
    return container.unpack_all(read_compressed(name))


def is_compressed(source: Source) -> bool:
    """Whether a document starts like a .memz file."""
    try:
        container.check_start(source.read(0, min(source.size, container.START)))
    except FormatError:
        return False
    return True


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise click.ClickException("standard input is closed")
    return sys.stdin.buffer
