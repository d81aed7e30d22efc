"""Options of the commands, collected into dataclasses, and the groups of options that several commands share.

A field made by `option` is a command-line option. `takes_options` adds to a command the options of every parameter
that is annotated with such a dataclass:

    @dataclass(frozen=True)
    class GreetingOptions:
        name: str = option("--name", default="you", show_default=True, help="Whom to greet.")

    @click.command()
    @takes_options
    def hello(greeting: GreetingOptions) -> None:
        click.echo(f"Hello, {greeting.name}")
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import click

from memcodec.levels import BEST, FASTEST, LEVELS
from memcodec.models.registry import BUILT_IN, DEFAULT_MODEL
from memcodec.settings import (
    DEVICES,
    ENGINES,
    MAX_CONTEXT,
    MAX_THREADS,
    MOST_SHARE,
    NUMBERED_GPU,
    SHARE_STEPS,
    VERIFY,
    Context,
    Verify,
)

_FILE_NAMES = {
    "names", "paths", "name", "archive_name", "output", "output_dir", "report", "html", "messages", "model", "primer",
}  # parameters that name files or folders  # fmt: skip
_MAX_DIGITS = 30  # of a number on the command line; Python itself refuses those of more than 4,300
MEMORY_SHARE = click.FloatRange(0, MOST_SHARE / SHARE_STEPS)


def option(*flags: str, **attributes: Any) -> Any:
    """A field of a dataclass that is a command-line option; flags and attributes are those of `click.option`."""
    return field(metadata={"flags": flags, "attributes": attributes})


def takes_options(function: Callable[..., object]) -> Callable[..., None]:
    """Add the options of each parameter that is annotated with a dataclass of `option` fields, in their order."""
    groups: dict[str, Any] = {name: kind for name, kind in get_type_hints(function).items() if is_dataclass(kind)}

    @wraps(function)
    def command(**values: Any) -> None:
        _refuse_empty_names(values)
        for name, group in groups.items():
            values[name] = group(**{member.name: values.pop(member.name) for member in fields(group)})
        function(**values)

    for group in reversed(groups.values()):
        for member in reversed(fields(group)):
            metadata = member.metadata
            click.option(*metadata["flags"], member.name, **metadata["attributes"])(command)
    return command


def _refuse_empty_names(values: dict[str, Any]) -> None:
    """Raise UsageError for a file that is named by an empty string, as by an unset variable of the shell."""
    for parameter in click.get_current_context().command.params:
        value = values.get(parameter.name or "")
        if parameter.name in _FILE_NAMES and (value == "" or (isinstance(value, tuple) and "" in value)):
            is_option = isinstance(parameter, click.Option)
            shown = max(parameter.opts, key=len) if is_option else (parameter.metavar or "").strip("[].")
            raise click.UsageError(f"{shown}: the name is empty")


def whole_number(text: str) -> int | None:
    """The whole number that a text is; None for any other text, and for more digits than a size or a number has."""
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else None


def _parse_context(ctx: click.Context, parameter: click.Parameter, value: str) -> Context:
    if value == "auto":
        return "auto"
    if value == "max":
        return "max"
    number = whole_number(value)
    if number is None or number > MAX_CONTEXT:
        raise click.BadParameter(f"use auto, max, or a number from 0 to {MAX_CONTEXT}")
    return number


def context_option() -> Any:
    """--context, which more than one group of options contains."""
    return option(
        "--context",
        callback=_parse_context,
        default="auto",
        show_default=True,
        envvar="MEMCODEC_CONTEXT",
        show_envvar=True,
        metavar="N",
        help=f"Maximum number of preceding tokens that the model sees before each token, 0 to {MAX_CONTEXT}; at most "
        "the positions of the model (8,191 with the built-in one). 0 limits it to the tokens of the same chunk; auto "
        "limits it to the groups of the level; max makes smaller files and is slow.",
    )


class _LevelOption(click.Option):
    """--level N, and -1 to -9, --fast and --best, which set it too; the last of them counts."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        flags = {f"-{level}": level for level in LEVELS} | {"--fast": FASTEST, "--best": BEST}
        for flag, level in flags.items():
            parser.add_option(self, [flag], self.name, "store_const", const=str(level))

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (f"-{FASTEST} ... -{BEST}, --fast, --best, {record[0]}", record[1])


def level_option(help: str, **attributes: Any) -> Any:
    """--level, -1 to -9, --fast and --best, whose effect differs between commands."""
    levels = click.IntRange(FASTEST, BEST)
    return option("--level", cls=_LevelOption, type=levels, metavar="N", help=help, **attributes)


def field_option() -> Any:
    """--field, which more than one group of options contains."""
    return option(
        "--field",
        metavar="NAME",
        help="Field of a JSON line, or column of a CSV file, that holds the document. A value that is not a string is "
        "used as JSON.  [default: the whole JSON line, or the string that it is; the only column of a CSV file besides "
        "the key]",
    )


def recursive_option(help: str) -> Any:
    """--recursive, whose effect differs between commands."""
    return option("-r", "--recursive", is_flag=True, help=help)


@dataclass(frozen=True)
class VerificationOptions:
    """How the result is compared with the input before it is written."""

    verify: str = option(
        "--verify",
        type=click.Choice(VERIFY),
        default=VERIFY[0],
        show_default=True,
        help="How to decode the result, to compare it with the input before writing it: passes lets the model read the "
        "input again, and takes about as long as encoding; steps decodes as decompress does, and takes longer.",
    )
    no_verify: bool = option(
        "--no-verify", is_flag=True, help="Write the result without decoding it.  [default: verify]"
    )

    @property
    def verification(self) -> Verify:
        """The argument `verify` of the library's functions."""
        return False if self.no_verify else self.verify  # type: ignore[return-value]  # click has checked it


@dataclass(frozen=True)
class EncodingModelOptions:
    """The model that documents are encoded with."""

    model: str = option(
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        envvar="MEMCODEC_MODEL",
        show_envvar=True,
        metavar="M",
        help=f"Model to encode with: a built-in name ({', '.join(BUILT_IN)}), a Hugging Face id (or id@revision), or "
        "the directory of a Llama, Mistral, Qwen2, Qwen3 or GPT-2 model with a byte-level BPE tokenizer.",
    )


@dataclass(frozen=True)
class PrimedModelOptions(EncodingModelOptions):
    """The model that documents are encoded with, and the primer that every chunk sees."""

    primer: str | None = option(
        "--primer",
        metavar="P",
        envvar="MEMCODEC_PRIMER",
        show_envvar=True,
        help="Primer file, made by memcodec primer train, that every chunk sees as context. Decoding needs the same "
        "primer.  [default: no primer]",
    )


@dataclass(frozen=True)
class DecodingModelOptions:
    """The model that files are decoded with, and their primer."""

    model: str | None = option(
        "--model",
        metavar="M",
        help="Model to use instead of the one that the file names, for example the directory of a local model.  "
        "[default: the model that the file names]",
    )
    allow_download: bool = option(
        "--allow-download",
        is_flag=True,
        help="Allow downloading a model from the Hugging Face hub that only the file names. Use it for files that you "
        "trust.  [default: built-in models only]",
    )
    primer: str | None = option(
        "--primer",
        metavar="P",
        envvar="MEMCODEC_PRIMER",
        show_envvar=True,
        help="Primer file that the file was made with. Files made without a primer ignore it.  [default: no primer]",
    )


class _Device(click.Choice[str]):
    """A device by its name, or one of several GPUs by its number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if NUMBERED_GPU.fullmatch(str(value)) else super().convert(value, param, ctx)


@dataclass(frozen=True)
class ComputeOptions:
    """Where and how fast the model runs. None of these options changes a result."""

    device: str = option(
        "--device",
        type=_Device(DEVICES),
        default="auto",
        show_default=True,
        envvar="MEMCODEC_DEVICE",
        show_envvar=True,
        help="Device that the model runs on. auto uses a CUDA GPU if there is one; cuda:1 is the second of several. "
        "mps (Apple) and xpu (Intel) have not been tried.",
    )
    batch: int | None = option(
        "--batch",
        type=click.IntRange(min=1),
        envvar="MEMCODEC_BATCH",
        show_envvar=True,
        metavar="N",
        help="Number of groups of chunks that are decoded in parallel. More is faster and needs more memory; the "
        "result is the same.  [default: as many as suit the device, up to 64 on a CPU]",
    )
    threads: int | None = option(
        "-T",
        "--threads",
        type=click.IntRange(1, MAX_THREADS),
        metavar="N",
        envvar="MEMCODEC_THREADS",
        show_envvar=True,
        help="Number of CPU threads; the result is the same.  [default: one per core]",
    )


@dataclass(frozen=True)
class EngineOptions(ComputeOptions):
    """Where and how fast the model runs, on this machine or on a Ray cluster."""

    engine: str = option(
        "--engine",
        type=click.Choice(ENGINES),
        default=ENGINES[0],
        show_default=True,
        envvar="MEMCODEC_ENGINE",
        show_envvar=True,
        help="Where groups are encoded and decoded: in this process, or by the workers of a Ray cluster; the result is "
        "the same.",
    )
    workers: int | None = option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        envvar="MEMCODEC_WORKERS",
        show_envvar=True,
        help="With --engine ray: number of worker processes. Each loads the model and uses one GPU, or --threads CPU "
        "threads (one if not set).  [default: as many as the cluster has room for]",
    )


@dataclass(frozen=True)
class QuietOptions:
    """Whether progress is shown on standard error."""

    quiet: bool = option(
        "-q", "--quiet", is_flag=True, help="Show no progress bar and no summary line on the terminal."
    )


@dataclass(frozen=True)
class ProgressOptions(QuietOptions):
    """What is shown on standard error."""

    verbose: bool = option(
        "-v", "--verbose", is_flag=True, help="Print a summary line per file even if standard error is not a terminal."
    )
    no_progress: bool = option(
        "--no-progress", is_flag=True, help="Show no progress bar; the summary line is still printed."
    )


@dataclass(frozen=True)
class OutputOptions:
    """Where results are written."""

    output: str | None = option("-o", "--output", metavar="OUT", help="Output file of a single FILE.")
    to_stdout: bool = option("-c", "--stdout", is_flag=True, help="Write to standard output.")
    force: bool = option(
        "-f", "--force", is_flag=True, help="Overwrite an existing output; write binary data to a terminal."
    )
    keep: bool = option("-k", "--keep", is_flag=True, help="Keep the input files. This is the default.")
    remove: bool = option("--rm", is_flag=True, help="Remove each input file after its output has been written.")
    output_dir: str | None = option(
        "--output-dir",
        metavar="DIR",
        help="Directory for the outputs; it is created if missing.  [default: the directory of each input]",
    )

    @property
    def removes_inputs(self) -> bool:
        """Whether inputs are removed: --keep overrides --rm."""
        return self.remove and not self.keep
