"""Documents and results: whole files read, and files written whole or not at all."""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from memcodec import ChecksumError, FormatError, MemcodecError, container
from memcodec.document.source import Source
from memcodec.storage import remote
from memcodec.storage.write import replace

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
    if remote.is_url(name):
        with remote.opened(name) as there:
            yield Source(there, shown(name))
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
    if remote.is_url(name):
        with remote.opened(name) as there:
            start = there.read(container.START)
            container.check_start(start)
            return start + there.read()
    try:
        with Path(name).open("rb") as file:
            container.check_start(file.read(container.START))
            file.seek(0)
            return file.read()
    except OSError as error:
        raise _named(error, name) from error


def read_containers(name: str) -> list[container.Container]:
    """A .memz file, unpacked, or several in one, one behind the other. Raises FormatError, ChecksumError, OSError."""
    return container.unpack_all(read_start_first(name))


def is_compressed(source: Source) -> bool:
    """Whether a document is a .memz file, or begins like one."""
    try:
        container.check_start(source.read(0, min(source.size, container.START)))
    except FormatError:
        return False
    return True


def inputs(names: tuple[str, ...], recursive: bool, packed: bool) -> list[tuple[str, str]]:
    """Files that were named, with the folder that each was found in, or "": standard input where none were.

    recursive: the files in folders too, those that end in .memz where `packed`, else all others.
    """
    if not names:
        if sys.stdin is not None and sys.stdin.isatty():
            raise click.UsageError("name a FILE, or pipe something in")
        return [(STANDARD, "")]
    found: list[tuple[str, str]] = []
    for name in names:
        if not (recursive and name != STANDARD and Path(name).is_dir()):
            found.append((name, ""))
            continue
        for path in sorted(Path(name).rglob("*")):
            if path.is_file() and not path.is_symlink() and (path.suffix == EXTENSION) is packed:
                found.append((str(path), name))
    return found


def place(name: str, folder: str, output_dir: str | None) -> str:
    """Where an output of this name goes: beside its input, or into --output-dir, under the folder it was found in."""
    if output_dir is None:
        return name
    if remote.is_url(output_dir):
        return f"{output_dir.rstrip('/')}/{Path(name).relative_to(folder) if folder else Path(name).name}"
    path = Path(output_dir) / (Path(name).relative_to(folder) if folder else Path(name).name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)


class Targets:
    """Where the outputs of one command go: each place is taken once."""

    def __init__(self) -> None:
        self._taken: set[Path] = set()

    def take(self, target: "Output") -> None:
        """Raise ClickException where another input has the same output already."""
        if target.path is None or _is_special(target.path):
            return
        place = target.path.resolve()
        if place in self._taken:
            raise click.ClickException(
                f"{shown(str(target.path))} is the output of another input too: give other names"
            )
        self._taken.add(place)


def remove_input(name: str, target: "Output") -> None:
    """Remove an input whose output is written. Raises ClickException where one of the two is not what it was."""
    path = Path(name)
    if target.path is None or not target.path.is_file() or not path.is_file():
        raise click.ClickException(f"{shown(name)}: kept, as its output is no file")
    now, before = path.stat(), target.like
    if before is None or (now.st_size, now.st_mtime_ns, now.st_ino) != (
        before.st_size, before.st_mtime_ns, before.st_ino
    ):  # fmt: skip
        raise click.ClickException(f"{shown(name)}: kept, as it changed while it was read")
    path.unlink()


class Failures:
    """What goes wrong with one of many files: it is named, and the rest is done. With one file, it is raised."""

    def __init__(self, many: bool, salvageable: bool = False) -> None:
        """salvageable: whether to name --salvage where a file is damaged."""
        self._many = many
        self._salvageable = salvageable
        self._count = 0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Around the work on one file."""
        try:
            yield
        except (MemcodecError, OSError, click.ClickException) as error:
            if not self._many and not isinstance(error, MemcodecError):
                raise
            reason = error.format_message() if isinstance(error, click.ClickException) else str(error)
            reason = describe(error) if isinstance(error, OSError) and error.strerror else reason
            if self._salvageable and isinstance(error, ChecksumError):
                reason += "; --salvage writes what is whole"
            prefix = "" if reason.startswith(shown(name)) else f"{shown(name)}: "
            if not self._many:
                raise click.ClickException(f"{prefix}{reason}") from error
            click.echo(f"memcodec: error: {prefix}{' '.join(reason.split())}", err=True)
            self._count += 1

    def finish(self, total: int) -> None:
        """Exit with status 1 where anything went wrong."""
        if self._count:
            rest = "; the rest is done" if self._count < total else ""
            click.echo(f"memcodec: {self._count} of {total} files failed{rest}", err=True)
            sys.exit(1)


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
    """Where a result goes. path: None for standard output, or where there is a url; like: an input whose permissions
    and times it gets."""

    path: Path | None
    force: bool
    like: os.stat_result | None = None
    url: str = ""

    @classmethod
    def choose(cls, input_name: str, output_name: str | None, to_stdout: bool, force: bool, default: str) -> "Output":
        """From the options of a command. default: the name for want of any, "" where there is none."""
        if to_stdout and output_name not in (None, STANDARD):
            raise click.UsageError("give -o or -c, not both")
        if to_stdout or output_name == STANDARD or (output_name is None and input_name == STANDARD):
            return cls(None, force)
        if Path(input_name).is_dir():
            raise click.ClickException(f"{shown(input_name)}: is a directory: give -r for the files in it")
        if not (output_name or default):
            raise click.UsageError(f"{shown(input_name)} does not end in {EXTENSION}: name the output with -o")
        if remote.is_url(output_name or default):
            return cls(None, force, None, output_name or default)
        source = Path(input_name)
        like = source.stat() if input_name != STANDARD and source.is_file() else None
        path = Path(output_name or default)
        if input_name != STANDARD and source.exists() and path.exists() and path.samefile(source):
            raise click.ClickException(f"{shown(input_name)} is both input and output")
        return cls(path, force, like)

    @property
    def side_file(self) -> Path:
        """What --resume keeps beside the output."""
        assert self.path is not None
        return self.path.with_name(self.path.name + ".part")

    def holds(self, name: str) -> bool:
        """Whether the output is there, and is the input compressed. Raises OSError with the file's name."""
        if self.path is None or not self.path.is_file():
            return False
        try:
            (parsed,) = read_containers(str(self.path))
        except (MemcodecError, ValueError):
            return False
        with opened(name) as source:
            return source.size == parsed.size and source.digest()[: container.HASH_BYTES] == parsed.sha256

    def check(self, binary: bool) -> None:
        """Refuse now what `write` would have to refuse after the work. binary: the result is not for a terminal."""
        if self.url:
            self._refuse_existing()
            return
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
        if self.url:
            return remote.write(self.url, pieces)
        try:
            if self.path is None:
                if sys.stdout is None:
                    raise click.ClickException("standard output is closed")
                return _copy(pieces, sys.stdout.buffer)
            if _is_special(self.path):  # a rename would replace it
                with self.path.open("wb") as file:
                    return _copy(pieces, file)
            mode = 0o666 if self.like is None else 0o600  # for nobody else before it is whole
            return replace(self.path, pieces, mode, self._before_naming)
        except OSError as error:
            raise _named(error, "standard output" if self.path is None else str(self.path)) from error

    def _before_naming(self, temporary: Path) -> None:
        self._refuse_existing()
        if self.like is not None:
            temporary.chmod(stat.S_IMODE(self.like.st_mode))
            os.utime(temporary, ns=(self.like.st_atime_ns, self.like.st_mtime_ns))

    def _refuse_existing(self) -> None:
        if self.url and not self.force and remote.exists(self.url):
            raise click.ClickException(f"{shown(self.url)} exists: overwrite it with -f, or name another output")
        if self.path is not None and self.path.exists() and not self.force and not _is_special(self.path):
            raise click.ClickException(f"{shown(str(self.path))} exists: overwrite it with -f, or name another output")


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
