"""The command line: `memcodec`. Every command has its Python twin; a command imports torch only when it runs."""

import io
import sys
import warnings
from contextlib import suppress
from typing import Any, NoReturn

import click

import memcodec
from memcodec_cli import files
from memcodec_cli.bench import bench
from memcodec_cli.compress import compress, decompress
from memcodec_cli.inspect import inspect, verify
from memcodec_cli.models import models


class Program(click.Group):
    """A group of commands that reports every error as one line: status 1, 2 for usage, 130 for Ctrl-C."""

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
        except KeyboardInterrupt:  # before click prints an empty line for it
            _fail("interrupted", 130)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Parse the arguments, run, and exit."""
        try:
            status = super().main(*args, **(extra | {"standalone_mode": False}))
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
        sys.exit(status if isinstance(status, int) else 0)


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
    """


for command in (compress, decompress, inspect, verify, bench, models):
    main.add_command(command)
