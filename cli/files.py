"""Documents and results: whole files read, and files written whole or not at all."""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from memcodec import container
from memcodec.source import Source

STANDARD = "-"  # standard input or output
EXTENSION = ".memz"
_SPOOLED = 1 << 24  # bytes that wait in memory until the last is there


def read(name: str) -> bytes:
    """The bytes of a file, or of standard input for "-". Raises OSError with the file's name."""
    with opened(name) as source:
        return source.read(0, source.size)


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """A file, or standard input for "-", to be read in pieces. Raises OSError with the file's name."""
    if name == STANDARD:
        yield Source(_standard_input(), shown(name))
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 (errors of what is done with it are others')
    except OSError as error:
        raise _named(error, name) from error
    with file:
        try:
            source = Source(file, shown(name))
        except OSError as error:
            raise _named(error, name) from error
        yield source


def read_start_first(name: str) -> bytes:
    """The bytes of a .memz file; of one that does not begin like that, no more than that is read.

    Raises FormatError, and OSError with the file's name.
    """
    if name == STANDARD:
        stream = _standard_input()
        start: bytes = stream.read(container.START)
        container.check_start(start)
        return start + stream.read()
    try:
        with Path(name).open("rb") as file:
            container.check_start(file.read(container.START))
            file.seek(0)
            return file.read()
    except OSError as error:
        raise _named(error, name) from error


def read_container(name: str) -> container.Container:
    """A .memz file, unpacked. Raises FormatError, ChecksumError, OSError."""
    return container.unpack(read_start_first(name))


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise click.ClickException("standard input is closed")
    return sys.stdin.buffer


def shown(name: str) -> str:
    """A file's name for messages."""
    return "standard input" if name == STANDARD else click.format_filename(name)


def describe(error: OSError) -> str:
    """What the system said, after the name of the file."""
    reason = (error.strerror or str(error)).lower()
    return f"{click.format_filename(error.filename)}: {reason}" if error.filename else reason


@dataclass(frozen=True)
class Output:
    """Where a result goes. path: None for standard output; mode: permissions, before the umask."""

    path: Path | None
    force: bool
    mode: int = 0o666

    @classmethod
    def choose(cls, input_name: str, output_name: str | None, to_stdout: bool, force: bool, default: str) -> "Output":
        """From the options of a command. default: the name for want of any, "" where there is none.

        The result is readable for nobody who could not read the input.
        """
        if to_stdout and output_name not in (None, STANDARD):
            raise click.UsageError("give -o or -c, not both")
        if to_stdout or output_name == STANDARD or (output_name is None and input_name == STANDARD):
            return cls(None, force)
        if not (output_name or default):
            raise click.UsageError(f"{shown(input_name)} does not end in {EXTENSION}: name the output with -o")
        source = Path(input_name)
        mode = 0o666 & source.stat().st_mode if input_name != STANDARD and source.is_file() else 0o666
        path = Path(output_name or default)
        if input_name != STANDARD and source.exists() and path.exists() and path.samefile(source):
            raise click.ClickException(f"{shown(input_name)} is both input and output")
        return cls(path, force, mode)

    def check(self, binary: bool) -> None:
        """Refuse now what `write` would have to refuse after the work. binary: the result is not for a terminal."""
        if self.path is None:
            if sys.stdout is None:
                raise click.ClickException("standard output is closed")
            if binary and not self.force and sys.stdout.isatty():
                raise click.ClickException("standard output is a terminal: name the output with -o, or force with -f")
            return
        if self.path.is_dir():
            raise click.ClickException(f"{shown(str(self.path))}: is a directory")
        self._refuse_existing()
        if not _is_special(self.path):
            folder = self.path.resolve().parent
            try:
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise _named(error, str(folder)) from error

    def write(self, pieces: Iterable[bytes]) -> int:
        """Write everything, or leave nothing: to a new file beside the target, which then takes its name.

        Standard output, devices and pipes get everything when the last piece is there. Gives the number of bytes.
        """
        try:
            if self.path is None:
                if sys.stdout is None:
                    raise click.ClickException("standard output is closed")
                return _copy(pieces, sys.stdout.buffer)
            if _is_special(self.path):  # a rename would replace it
                with self.path.open("wb") as file:
                    return _copy(pieces, file)
            return self._replace(self.path.resolve(), pieces)
        except OSError as error:
            raise _named(error, "standard output" if self.path is None else str(self.path)) from error

    def _replace(self, target: Path, pieces: Iterable[bytes]) -> int:
        temporary = target.with_name(f".memcodec-{secrets.token_hex(6)}")
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, self.mode)) as file:
                size = 0
                for piece in pieces:
                    size += file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            self._refuse_existing()
            temporary.replace(target)
            return size
        finally:
            temporary.unlink(missing_ok=True)

    def _refuse_existing(self) -> None:
        if self.path is not None and self.path.exists() and not self.force and not _is_special(self.path):
            raise click.ClickException(f"{shown(str(self.path))} exists: overwrite it with -f, or name another with -o")


def _copy(pieces: Iterable[bytes], out: BinaryIO) -> int:
    with tempfile.SpooledTemporaryFile(_SPOOLED) as spool:
        for piece in pieces:
            spool.write(piece)
        size = spool.tell()
        spool.seek(0)
        shutil.copyfileobj(spool, out)
    out.flush()
    return size


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _named(error: OSError, name: str) -> OSError:
    """The same error with the name that the user knows."""
    return OSError(error.errno, error.strerror or str(error), name)
