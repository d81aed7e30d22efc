"""The program `memcodec`: its commands, its short options, its exit status, and how errors and signals end it."""

import atexit
import errno
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource
from click.shell_completion import get_completion_class

import memcodec
from memcodec.errors import MemcodecWarning
from memcodec.levels import LEVELS
from memcodec_cli.archive import pack, unpack
from memcodec_cli.bench import bench
from memcodec_cli.compress import compress
from memcodec_cli.decompress import cat, decompress
from memcodec_cli.errors import describe, print_error, print_warning
from memcodec_cli.inputs import EXTENSION
from memcodec_cli.inspect import inspect
from memcodec_cli.list import list_files
from memcodec_cli.models import models
from memcodec_cli.names import display_name
from memcodec_cli.primer import primer
from memcodec_cli.verify import verify

_SHORT_COMMANDS = {"z": ["compress"], "d": ["decompress"], "t": ["verify", "--decode"], "l": ["list"]}

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # without a name: of standard output, or a temporary file

_WITHOUT_EFFECT = {
    *("-c", "--stdout", "-f", "--force", "-k", "--keep", "-v", "--verbose", "--no-progress", "--no-verify", "--verify"),
    *("--chunk-tokens", "--context", "--site", "--vectors", "--bits", "--steps", "--seed", "--pure"),
    *("--fast", "--best", "--level", *(f"-{level}" for level in LEVELS)),
    *("--memory-share", "--effort", "--engine", "--workers", "-q", "--quiet", "--device", "--batch", "-T", "--threads"),
    *("--model", "--primer", "--no-references"),
}  # options of compress that may stand beside -d, -t and -l even if these have no use for them, as in gzip and xz


def _options_of(command: click.Command) -> dict[str, bool]:
    """The options of a command; whether each is a flag, without a value."""
    options = (parameter for parameter in command.params if isinstance(parameter, click.Option))
    return {name: option.is_flag for option in options for name in option.opts}


class Program(click.Group):
    """A group of commands that reports every error as one line on standard error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Accept arguments as gzip and tar give them: options without a command, or nothing at all."""
        if (
            not args
            and not ctx.resilient_parsing
            and not any(stream is None or stream.isatty() for stream in (sys.stdin, sys.stdout))
        ):
            args = ["compress"]
        elif args and args[0].startswith("-") and args[0] not in (*ctx.help_option_names, "-V", "--version"):
            args = self.with_command(args)
        return super().parse_args(ctx, args)

    def with_command(self, args: list[str]) -> list[str]:
        """Put the command before arguments that begin with an option: that of -z, -d, -t or -l, by default compress.

        Options of compress that have no effect on the other commands are left out.
        """
        flags = _options_of(self.commands["compress"]) | _options_of(self.commands["decompress"])
        command, words = _SHORT_COMMANDS["z"], list[tuple[str, list[str]]]()  # an option (or ""), and its words
        rest = list(args)
        while rest:
            word = rest.pop(0)
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            if word == "--":
                words.append(("", [word, *rest]))
                break
            if not word.startswith("-") or word == "-":
                words.append(("", [word]))
            elif not flags.get(name, True):  # with a value: attached, or the next word
                words.append((name, [word] if word != name else [word, *rest[:1]]))
                rest = rest[1:] if word == name else rest
            elif word.startswith("--"):
                words.append((name, [word]))
            else:  # the first letter of several
                if word != name:
                    rest.insert(0, f"-{word[2:]}")
                if name[1] in _SHORT_COMMANDS:
                    command = _SHORT_COMMANDS[name[1]]
                else:
                    words.append((name, [name]))
        ignored = set() if command == ["compress"] else _WITHOUT_EFFECT - _options_of(self.commands[command[0]]).keys()
        return [*command, *(word for name, group in words if name not in ignored for word in group)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises UsageError, with advice if a file is named without a command, as for gzip."""
        name = args[0]
        if name not in self.commands and Path(name).exists() and not ctx.resilient_parsing:
            command = "decompress" if name.endswith(EXTENSION) else "compress"
            raise click.UsageError(f"{display_name(name)} is not a command: use memcodec {command} FILE", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and flush standard output."""
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:
                    warnings.simplefilter("ignore")  # warnings of libraries are for programmers
                    warnings.simplefilter("default", MemcodecWarning)
                    warnings.showwarning = _show_warning
                result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # now, so that a failing write is reported like other errors
            return result
        except Terminated:
            _exit("terminated", 143)
        except KeyboardInterrupt:  # handled here because click would print an empty line
            _exit("interrupted", 130)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Parse the arguments, run the command, and exit."""
        with suppress(ValueError):  # signal handlers can only be set in the main thread
            signal.signal(signal.SIGTERM, _raise_terminated)
        hook = sys.unraisablehook
        sys.unraisablehook = partial(_repeat_lost_interrupt, hook)
        try:
            status = super().main(*args, **(extra | {"standalone_mode": False, "complete_var": "_MEMCODEC_COMPLETE"}))
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "memcodec"
            _exit(f"{_usage_message(error).rstrip('.')} (see {command} --help)", 2)
        except click.ClickException as error:
            _exit(error.format_message(), error.exit_code)
        except memcodec.MemcodecError as error:
            _exit(str(error), 1)
        except OSError as error:
            is_write = not error.filename and error.errno in _WRITE_ERRORS
            _exit(f"write error: {describe(error)}" if is_write else describe(error), 1)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise  # a bug: show the traceback
            _exit("out of memory: try a smaller --batch, or --device cpu", 1)
        finally:
            sys.unraisablehook = hook
            _forget_reset_of_colours()
        sys.exit(status if isinstance(status, int) else 0)


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; it is handled like Ctrl-C."""


def _raise_terminated(*_: Any) -> NoReturn:
    raise Terminated


def _repeat_lost_interrupt(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Send the signal again if its exception was lost, as in the callback of a weak reference, which numba has."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
        timer = threading.Timer(0.02, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
    else:
        hook(unraisable)


def _exit(message: str, status: int) -> NoReturn:
    with suppress(OSError):
        print_error(message)
    with suppress(OSError, AttributeError):
        sys.stdout.flush()
    sys.stdout = io.StringIO()  # otherwise Python tries at exit to write what could not be written
    sys.exit(status)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as errors are printed, without the place in the code that Python adds."""
    with suppress(OSError):
        print_warning(str(message))


def _usage_message(error: click.UsageError) -> str:
    """What is wrong with the arguments. A bad value has the name of what set it: an option, or its variable."""
    parameter, context = error.param if isinstance(error, click.BadParameter) else None, error.ctx
    if not isinstance(parameter, click.Option) or context is None or isinstance(error, click.MissingParameter):
        return error.format_message()
    from_environment = context.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT
    name = parameter.envvar if from_environment else max(parameter.opts, key=len)
    return f"{name}: {error.message.replace('is not a valid integer range', 'is not a whole number')}"


def _forget_reset_of_colours() -> None:
    """At exit print no escape sequence, as colorama would, which numba uses if it is installed."""
    if (colorama := sys.modules.get("colorama.initialise")) is not None:
        atexit.unregister(colorama.reset_all)


def _is_out_of_memory(error: BaseException) -> bool:
    names = ("MemoryError", "OutOfMemoryError")
    return type(error).__name__ in names or "can't allocate memory" in str(error)


@click.group(name="memcodec", cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(memcodec.__version__, "-V", "--version", message="memcodec %(version)s")
def main() -> None:
    """Lossless text compression with a frozen language model and memory embeddings.

    A file is decoded with the model that it was encoded with. The result does not depend on the machine, the device,
    the number of threads or the batch size.

    \b
    Examples:
      memcodec compress notes.txt            writes notes.txt.memz
      memcodec decompress notes.txt.memz     writes notes.txt
      memcodec inspect notes.txt.memz        prints what the file contains

    As with gzip, options can come instead of the command, alone or combined as in -dc: -d is decompress, -t is verify
    --decode, -l is list, and -z or none of these is compress. Without any argument, memcodec compresses standard
    input, unless that or standard output is a terminal. This is how tar uses it: tar -I memcodec -cf notes.tar.memz
    notes, and tar -I memcodec -xf notes.tar.memz.

    Exit status: 0, success; 1, an error, possibly in only some of several files; 2, wrong usage; 3, --salvage lost
    part of the document; 130, interrupted by Ctrl-C; 143, terminated.

    Environment: MEMCODEC_CACHE is the directory where models and compiled kernels are kept. Other variables set
    defaults of options; the help of each command names them.
    """


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete commands and options.

    \b
    Example:
      eval "$(memcodec completion bash)"
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    click.echo(completion_class(main, {}, "memcodec", "_MEMCODEC_COMPLETE").source())


for command in (
    compress, decompress, cat, list_files, inspect, verify, pack, unpack, primer, bench, models,
):  # fmt: skip
    main.add_command(command)
