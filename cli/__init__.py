"""The command line: `memcodec`. Every command has its Python twin; a command imports torch only when it runs."""

import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import click
from click.shell_completion import get_completion_class

import memcodec
from memcodec_cli import files
from memcodec_cli.bench import bench
from memcodec_cli.compress import cat, compress, decompress
from memcodec_cli.inspect import inspect, list_files, verify
from memcodec_cli.messages import pack, primer, unpack
from memcodec_cli.models import models

_SHORT = {"-z": ["compress"], "-d": ["decompress"], "-t": ["verify", "--decode"], "-l": ["list"]}


class Program(click.Group):
    """A group of commands that reports every error as one line: status 1, 2 for usage, 130 for Ctrl-C."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """-d, -t, -l and -z in front stand for commands, as with gzip and zstd, also in one with others: -dc."""
        if args and (found := re.fullmatch(r"-([a-zA-Z]*)([zdtl])([a-zA-Z]*)", args[0])):
            others = found[1] + found[3]
            args = [*_SHORT[f"-{found[2]}"], *([f"-{others}"] if others else []), *args[1:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and hand over all that it prints."""
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:
                    warnings.simplefilter("ignore")  # libraries' advice to programmers
                result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # now, while an error still becomes a line and a status
            return result
        except Terminated:
            _fail("terminated", 143)
        except KeyboardInterrupt:  # before click prints an empty line for it
            _fail("interrupted", 130)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Parse the arguments, run, and exit."""
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, _terminated)
        before = sys.unraisablehook
        sys.unraisablehook = partial(_not_lost, before)
        try:
            status = super().main(*args, **(extra | {"standalone_mode": False, "complete_var": "_MEMCODEC_COMPLETE"}))
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "memcodec"
            _fail(f"{error.format_message().rstrip('.')} (see {where} --help)", 2)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except memcodec.MemcodecError as error:
            _fail(str(error), 1)
        except OSError as error:
            _fail(files.describe(error), 1)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise  # a bug: its traceback is wanted
            _fail("out of memory: try a smaller --batch, or --device cpu", 1)
        finally:
            sys.unraisablehook = before
        sys.exit(status if isinstance(status, int) else 0)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as clean as Ctrl-C."""


def _terminated(*_: Any) -> NoReturn:
    raise Terminated


def _not_lost(others: Callable[[Any], object], lost: Any) -> None:
    """Where Ctrl-C came in the middle of what no exception leaves, as where numba forgets something, it comes again."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        sent = signal.SIGTERM if issubclass(lost.exc_type, Terminated) else signal.SIGINT
        again = threading.Timer(0.02, os.kill, (os.getpid(), sent))
        again.daemon = True
        again.start()
    else:
        others(lost)


def _fail(message: str, status: int) -> NoReturn:
    with suppress(OSError):
        click.echo(f"memcodec: error: {' '.join(message.split())}", err=True)
    with suppress(OSError, AttributeError):
        sys.stdout.flush()
    sys.stdout = io.StringIO()  # what could not be written is not tried again at exit
    sys.exit(status)


def _is_out_of_memory(error: BaseException) -> bool:
    names = ("MemoryError", "OutOfMemoryError")
    return type(error).__name__ in names or "can't allocate memory" in str(error)


@click.group(name="memcodec", cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(memcodec.__version__, message="memcodec %(version)s")
def main() -> None:
    """Lossless text compression with memory embeddings under a frozen language model.

    A file decodes with the model that it was encoded with, on any machine, device, thread count and batch size.

    In short, as with gzip: -z for compress, -d for decompress, -t for verify --decode, -l for list, also with others
    behind: -dc FILE.

    Exit status: 0, all is well; 1, an error, or some of many files failed; 2, wrong usage; 3,
    --salvage lost something; 130 and 143, interrupted.
    MEMCODEC_CACHE is the folder of models, and of kernels that are compiled.
    """


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands and options: eval "$(memcodec completion bash)"."""
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "memcodec", "_MEMCODEC_COMPLETE").source())


for command in (
    compress, decompress, cat, list_files, inspect, verify, pack, unpack, primer, bench, models,
):  # fmt: skip
    main.add_command(command)
