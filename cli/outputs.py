"""Output files: where each result is written. A file is written completely or not at all."""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from memcodec import MemcodecError, container
from memcodec.storage import remote
from memcodec.storage.write import permissions, replace, resolved
from memcodec_cli.errors import reason_of, with_file_name
from memcodec_cli.inputs import EXTENSION, SIDE_EXTENSION, has_own_name, opened, read_containers
from memcodec_cli.names import STANDARD_STREAM, display_name
from memcodec_cli.options import OutputOptions

_LOCAL_URL = re.compile(r"(file|local)://")


def check_output_options(inputs: list[tuple[str, str]], options: OutputOptions) -> None:
    """Raise UsageError if the options contradict each other or do not fit the inputs."""
    if len(inputs) > 1 and options.output not in (None, STANDARD_STREAM):
        raise click.UsageError("-o is for a single FILE: use --output-dir for several")
    if options.output is not None and options.output_dir is not None:
        raise click.UsageError("use either -o or --output-dir, not both")
    streams = STANDARD_STREAM in (options.output, *(name for name, _ in inputs))
    if options.removes_inputs and (options.to_stdout or streams):
        raise click.UsageError("--rm needs files as input and output, not standard input or output")


def output_name(name: str, directory: str, output_dir: str | None) -> str:
    """`name`, moved to `output_dir` if there is one, with its path relative to `directory`, where it was found."""
    if output_dir is None:
        return name
    relative = Path(name).relative_to(directory) if directory else Path(name).name
    if remote.is_url(output_dir):
        return f"{output_dir.rstrip('/')}/{relative}"
    return str(Path(output_dir) / relative)


@dataclass(frozen=True)
class Output:
    """Where a result is written: to a path, to a URL, or to standard output if it has neither.

    like: status of the input file, whose permissions and times the output gets; makes_folder: whether the folder is
    made if it is missing, as below --output-dir.
    """

    path: Path | None
    force: bool
    like: os.stat_result | None = None
    url: str = ""
    makes_folder: bool = False

    @classmethod
    def of_input(cls, name: str, options: OutputOptions, default: str) -> "Output":
        """The output of one input file; default: its name without -o or -c, "" if there is none.

        Raises UsageError, ClickException.
        """
        if options.to_stdout and options.output not in (None, STANDARD_STREAM):
            raise click.UsageError("use either -o or -c, not both")
        if options.to_stdout or (name if options.output is None else options.output) == STANDARD_STREAM:
            return cls(None, options.force)
        if Path(name).is_dir():
            os.scandir(name).close()  # raises for a folder that may not be read
            raise click.ClickException(f"{display_name(name)}: is a directory: use -r for the files in it")
        if options.output is None and not remote.is_url(name) and not has_own_name(name):
            raise click.UsageError(
                f"{display_name(name)} is a pipe or a device: name the output with -o, or use -c for standard output"
            )
        target = options.output or default
        if not target and not remote.is_url(name) and not Path(name).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        if not target:
            raise click.UsageError(f"{display_name(name)} does not end in {EXTENSION}: name the output with -o")
        if remote.is_url(target):
            return cls(None, options.force, None, target)
        source, path = Path(name), _path_of(target)
        if name == STANDARD_STREAM:
            return cls(path, options.force)
        if source.exists() and path.exists() and path.samefile(source):
            raise click.ClickException(f"{display_name(name)} is both input and output: name another output with -o")
        like = source.stat() if source.is_file() else None
        return cls(path, options.force, like, makes_folder=options.output_dir is not None)

    @classmethod
    def named(cls, name: str, force: bool) -> "Output":
        """An output with a given name; "-" is standard output."""
        if name == STANDARD_STREAM:
            return cls(None, force)
        return cls(None, force, None, name) if remote.is_url(name) else cls(_path_of(name), force)

    @property
    def name(self) -> str:
        """The name of the output as messages show it."""
        return display_name(self.url or str(self.path)) if self.url or self.path is not None else "standard output"

    @property
    def side_file(self) -> Path:
        """The file next to the output in which --resume keeps finished work."""
        assert self.path is not None
        return self.path.with_name(self.path.name + SIDE_EXTENSION)

    def is_complete(self, name: str) -> bool:
        """Whether the output exists already and is the file `name`, compressed. Raises OSError."""
        if self.path is None or not self.path.is_file():
            return False
        if not remote.is_url(name) and not Path(name).is_file():  # standard input or a pipe: it can be read only once
            return False
        try:
            (parsed,) = read_containers(str(self.path))
        except (MemcodecError, ValueError):
            return False
        with opened(name) as source:
            return source.size == parsed.size and source.digest()[: container.HASH_BYTES] == parsed.sha256

    def check(self, binary: bool) -> None:
        """Raise ClickException, OSError before the work if `write` would fail after it; binary: not for a terminal."""
        if self.url:
            self._refuse_existing()
            return
        if self.path is None:
            if sys.stdout is None:
                raise click.ClickException("standard output is closed")
            if binary and not self.force and sys.stdout.isatty():
                raise click.ClickException(
                    "standard output is a terminal: redirect it, name a file with -o, or use -f to write to the "
                    "terminal"
                )
            return
        if self.path.is_dir():
            raise click.ClickException(f"{display_name(str(self.path))}: is a directory")
        self._refuse_existing()
        if not is_special(self.path):
            folder = self._existing_folder(self.path)
            try:
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise with_file_name(error, str(folder)) from error

    def _existing_folder(self, path: Path) -> Path:
        """The folder of the output, or, if `write` makes that, the one to make it in."""
        folder = resolved(path).parent
        if self.makes_folder and not folder.is_dir():
            return next(above for above in path.parents if above.exists())
        return folder

    def make_folder(self) -> None:
        """Make the folder of the output if it is missing and may be made. Raises OSError."""
        if self.path is not None and self.makes_folder:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, pieces: Iterable[bytes]) -> int:
        """Write all pieces, and return the number of bytes. Raises ClickException, OSError.

        A file is written under a temporary name and renamed when it is complete. Standard output, devices and pipes
        are written to only when all pieces are there.
        """
        if self.url:
            return remote.write(self.url, pieces, self._refuse_existing)
        try:
            if self.path is None:
                if sys.stdout is None:
                    raise click.ClickException("standard output is closed")
                return _copy(pieces, sys.stdout.buffer)
            if is_special(self.path):  # renaming would replace the device
                with self.path.open("wb") as file:
                    return _copy(pieces, file)
            self.make_folder()
            mode = 0o666 if self.like is None else 0o600  # not readable by others until it has the input's permissions
            return replace(self.path, pieces, mode, self._before_renaming)
        except OSError as error:
            raise with_file_name(error, "standard output" if self.path is None else str(self.path)) from error

    def _before_renaming(self, temporary: Path) -> None:
        self._refuse_existing()
        if self.like is not None:
            temporary.chmod(permissions(self.like))
            os.utime(temporary, ns=(self.like.st_atime_ns, self.like.st_mtime_ns))

    def _refuse_existing(self) -> None:
        if self.force:
            return
        path = self.path
        exists = remote.exists(self.url) if self.url else path is not None and path.exists() and not is_special(path)
        if exists:
            raise click.ClickException(f"{self.name} exists: overwrite it with -f, or name another output")


class DistinctOutputs:
    """Checks that no two inputs of a command have the same output."""

    def __init__(self) -> None:
        self._places: set[object] = set()

    def add(self, output: Output) -> None:
        """Raise ClickException if another input has this output already."""
        places = _places(output)
        if places & self._places:
            raise click.ClickException(
                f"{output.name} is also the output of another input: rename one of them, or use different directories"
            )
        self._places |= places


def places_of(inputs: Iterable[str | None]) -> set[object]:
    """Where the inputs of a command are, for `check_places`; None is left out."""
    found: set[object] = set()
    for name in inputs:
        with suppress(OSError):  # reported when the input is read
            if name is not None and name != STANDARD_STREAM:
                found |= _places(Output(None, False, url=name) if remote.is_url(name) else Output(Path(name), False))
    return found


def check_places(inputs: set[object], *outputs: Output | None) -> None:
    """Raise ClickException if one of a command's outputs is an input, or two are the same; None is left out."""
    seen: set[object] = set()
    for output in outputs:
        if output is not None:
            places = _places(output)
            if places & inputs:
                raise click.ClickException(
                    f"{output.name} is both input and output: name another output, with -o or --output-dir"
                )
            if places & seen:
                raise click.ClickException(f"{output.name} is the name of two outputs: name another for one of them")
            seen |= places


def _places(output: Output) -> set[object]:
    """What identifies the file of an output: its resolved path, and its device and inode; or its URL.

    Raises OSError. Nothing for what several outputs may be written to: standard output, devices and pipes.
    """
    path = Path(_LOCAL_URL.sub("", output.url, count=1)) if _LOCAL_URL.match(output.url) else output.path
    if path is None:
        return {output.url} if output.url else set()
    if is_special(path):
        return set()
    places: set[object] = {resolved(path)}
    if path.exists() and (found := path.stat()).st_nlink == 1:  # of several hard links, an output replaces only one
        places.add((found.st_dev, found.st_ino))
    return places


def remove_input(name: str, output: Output) -> None:
    """Remove an input file whose output has been written.

    Raises ClickException if the output is not a regular file, if the input has changed since it was read, or if it
    cannot be removed.
    """
    path = Path(name)
    if output.path is None or not output.path.is_file() or not path.is_file():
        raise click.ClickException(f"{display_name(name)}: not removed, because its output is not a regular file")
    now, before = path.stat(), output.like
    if before is None or (now.st_size, now.st_mtime_ns, now.st_ino) != (
        before.st_size, before.st_mtime_ns, before.st_ino
    ):  # fmt: skip
        raise click.ClickException(f"{display_name(name)}: not removed, because it changed while it was read")
    try:
        path.unlink()
    except OSError as error:
        raise click.ClickException(
            f"{display_name(name)}: not removed: {reason_of(error)}; its output {output.name} was written"
        ) from error


def check_streams(first: Output, second: Output | None) -> None:
    """Raise UsageError if two outputs of a command are both standard output."""
    if second is not None and not (first.path or first.url or second.path or second.url):
        raise click.UsageError("only one output can be standard output: name the other")


def _path_of(name: str) -> Path:
    """The path of an output. Raises OSError for a name that ends in a slash, which only a folder can have."""
    if name.endswith("/") and not Path(name).is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
    return Path(name)


def is_special(path: Path) -> bool:
    """Whether a path is a device, a pipe or a directory."""
    return path.exists() and not path.is_file()


def _copy(pieces: Iterable[bytes], out: BinaryIO) -> int:
    with tempfile.SpooledTemporaryFile(remote.WAITING_BYTES) as spool:
        for piece in pieces:
            spool.write(piece)
        size = spool.tell()
        spool.seek(0)
        shutil.copyfileobj(spool, out)
    out.flush()
    return size
