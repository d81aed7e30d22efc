"""Error messages about files: how a file is named in them, and how the errors of several files are collected."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

from memcodec import ChecksumError, MemcodecError
from memcodec.errors import TruncatedError
from memcodec_cli.names import display_name, escaped

T = TypeVar("T")


def describe(error: OSError) -> str:
    """The message of the operating system, preceded by the name of the file if it is known."""
    reason = reason_of(error)
    return f"{display_name(os.fsdecode(error.filename))}: {reason}" if error.filename else reason


def reason_of(error: OSError) -> str:
    """The message of the operating system, as part of a sentence."""
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:] if reason[1:2].islower() else reason


def with_file_name(error: OSError, name: str) -> OSError:
    """The same error with the file name that the user entered."""
    return OSError(error.errno, error.strerror or str(error), name)


def print_error(message: str, kind: str = "error") -> None:
    """Print an error as one line on standard error, without characters that could control the terminal."""
    line = re.sub(r"\s*\n\s*", " ", message.strip())
    with _without_bars():
        click.echo(f"memcodec: {kind}: {escaped(line)}", err=True)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Remove progress bars from the terminal for as long as this context lasts."""
    if (tqdm := sys.modules.get("tqdm")) is None:  # it is imported for the first bar
        yield
        return
    with tqdm.tqdm.external_write_mode(sys.stderr):
        yield


def print_warning(message: str) -> None:
    """Print a warning, as `print_error` does."""
    print_error(message, "warning")


class FileErrors:
    """Errors of the files of one command. With several files each error is printed and the command continues."""

    def __init__(self, several: bool, suggest_salvage: bool = False) -> None:
        """several: whether the command has several files; with one, its error is raised.

        suggest_salvage: mention --salvage if a file is damaged.
        """
        self._several = several
        self._suggest_salvage = suggest_salvage
        self._count = 0

    @contextmanager
    def caught(self, name: str) -> Iterator[None]:
        """Process the file `name` in this context. Raises ClickException, OSError if it is the only file."""
        try:
            yield
        except (MemcodecError, OSError, click.ClickException) as error:
            if not self._several and not isinstance(error, MemcodecError):
                raise
            message = self._message(name, error)
            if not self._several:
                raise click.ClickException(message) from error
            print_error(message)
            self._count += 1

    def each(self, files: Iterable[tuple[str, str]], function: Callable[[str, str], T]) -> Iterator[T]:
        """What a function returns for each file, without those for which it raises an error.

        files: as `inputs.find_inputs` returns them.
        """
        for name, directory in files:
            found: list[T] = []  # empty while the next file is read, so that only one is in memory
            with self.caught(name):
                found.append(function(name, directory))
            if found:
                yield found.pop()

    def _message(self, name: str, error: MemcodecError | OSError | click.ClickException) -> str:
        reason = error.format_message() if isinstance(error, click.ClickException) else str(error)
        reason = describe(error) if isinstance(error, OSError) and error.strerror else reason
        if self._suggest_salvage and isinstance(error, ChecksumError | TruncatedError):
            reason += "; use --salvage to recover the undamaged parts"
        shown = display_name(name)
        # Errors of the command line have the name of the file, or of its output, at their start, with or without ": ".
        begins = shown if isinstance(error, click.ClickException) else f"{shown}: "
        return reason if reason.startswith(begins) else f"{shown}: {reason}"

    def exit_if_any(self, total: int) -> None:
        """Exit with status 1 if there was an error; total: number of files of the command."""
        if self._count:
            others = "; the others succeeded" if self._count < total else ""
            click.echo(f"memcodec: {self._count} of {total} files failed{others}", err=True)
            sys.exit(1)
