"""Input files: which files a command reads, and reading them from disk, standard input or a URL."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click

from memcodec import FormatError, container
from memcodec.document.source import Source
from memcodec.storage import remote
from memcodec.storage.write import TEMPORARY
from memcodec_cli.errors import print_warning, with_file_name
from memcodec_cli.names import STANDARD_STREAM, display_name

EXTENSION = ".memz"
SIDE_EXTENSION = ".part"


def find_inputs(names: tuple[str, ...], recursive: bool, compressed: bool) -> list[tuple[str, str]]:
    """Pairs of a file and the directory argument that it was found in ("" if it was named itself).

    Without names: standard input. recursive: also the files in directories, without links: those that end in .memz if
    `compressed`, otherwise all others. A directory that cannot be read is returned as well, so that reading it reports
    the error with its name. A directory without such files is a warning; if `compressed`, and nothing else is read, it
    is an error. Raises UsageError, ClickException.
    """
    if not names:
        if sys.stdin is not None and sys.stdin.isatty():
            raise click.UsageError("no input: name a FILE, or pipe data to standard input")
        return [(STANDARD_STREAM, "")]
    inputs: list[tuple[str, str]] = []
    without: list[str] = []
    for name in names:
        if not (recursive and name != STANDARD_STREAM and Path(name).is_dir()):
            inputs.append((name, ""))
            continue
        found = [file for file in files_in(name) if file.is_dir() or (file.suffix == EXTENSION) is compressed]
        inputs += [(name_of(file), name) for file in found]
        if not found:
            without.append(name)
    kind = f"no {EXTENSION} files" if compressed else f"no files other than {EXTENSION} files"
    if compressed and not inputs:
        raise click.ClickException(f"{kind} in {', '.join(map(display_name, without))}: name other files")
    for name in without:
        print_warning(f"{kind} in {display_name(name)}")
    return inputs


def files_in(directory: str) -> list[Path]:
    """The files in a directory and those below it, sorted; and directories that cannot be read.

    Without links, and without what unfinished commands have left there: temporary files and side files.
    """
    unreadable: list[Path] = []
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(directory, onerror=lambda error: unreadable.append(Path(error.filename)))
        for name in names
    ]
    files = [path for path in found if path.is_file() and not path.is_symlink() and not _is_unfinished(path)]
    return sorted(files + unreadable)


def _is_unfinished(file: Path) -> bool:
    """Whether a file is a temporary file or a side file of memcodec."""
    if file.suffix == SIDE_EXTENSION:
        from memcodec.storage.journal import is_side_file

        with suppress(OSError):  # reported when the file is read
            return is_side_file(file)
    return TEMPORARY.fullmatch(file.name) is not None


def name_of(file: Path) -> str:
    """The name of a file, which standard input does not have: "./-" is a file."""
    return f"./{file}" if str(file) == STANDARD_STREAM else str(file)


def read(name: str) -> bytes:
    """The bytes of a file, or of standard input for "-". Raises EncodeError, and OSError with the name of the file."""
    with opened(name) as source:
        return source.read(0, source.size)


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """Open a file, or standard input for "-", to be read in pieces. What cannot seek is copied to a temporary file.

    Raises EncodeError for a device without an end, and OSError with the name of the file.
    """
    with _stream(name) as file:
        with _errors_named(name):
            source = Source(file, display_name(name))
        yield source


def read_compressed(name: str) -> bytes:
    """The bytes of a .memz file. Only the start is read of a file of another kind, which may be large.

    Raises FormatError, and OSError with the name of the file.
    """
    with _stream(name) as file, _errors_named(name):
        start = file.read(container.START)
        container.check_start(start)
        return start + file.read()


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


@contextmanager
def local_path(name: str, data: bytes | None = None) -> Iterator[Path]:
    """The path of a file that can be read more than once: of a temporary copy for standard input, pipes and URLs.

    data: the bytes of the file, if they have been read. Raises FormatError, and OSError with the name of the file.
    """
    if name != STANDARD_STREAM and not remote.is_url(name) and Path(name).is_file():
        yield Path(name)
        return
    data = read_compressed(name) if data is None else data
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.write_bytes(data)
        yield copy


def has_own_name(name: str) -> bool:
    """Whether an output can be named after this input: not after a pipe or a device."""
    path = Path(name)
    return not (path.exists() and not path.is_file()) and not str(path.absolute()).startswith(("/dev/", "/proc/"))


@contextmanager
def _stream(name: str) -> Iterator[BinaryIO]:
    """A file, open for reading from its start. Some cannot seek. Raises OSError with the name of the file."""
    if name == STANDARD_STREAM:
        yield _standard_input()
        return
    if remote.is_url(name):
        with remote.opened(name) as remote_file:
            yield remote_file
        return
    with _errors_named(name):
        file = Path(name).open("rb")  # noqa: SIM115 (errors inside the `with` block are not about opening)
    with file:
        yield file


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Errors of the system in this context get the name of the file. Raises OSError."""
    try:
        yield
    except OSError as error:
        raise with_file_name(error, display_name(name) if name == STANDARD_STREAM else name) from error


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise click.ClickException("standard input is closed")
    return sys.stdin.buffer
