"""Options that several commands have, with their defaults."""

from collections.abc import Callable
from typing import Any

import click

from memcodec.models.registry import BUILT_IN, DEFAULT_MODEL
from memcodec.settings import DEFAULT_BATCH, MAX_CONTEXT, Context

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*decorators: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


encoding_model = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    envvar="MEMCODEC_MODEL",
    show_envvar=True,
    metavar="M",
    help=f"Built-in name ({', '.join(BUILT_IN)}), Hugging Face id (or id@revision), or directory of a Llama, Mistral, "
    "Qwen2, Qwen3 or GPT-2 model with byte-level BPE.",
)

decoding_model = together(
    click.option(
        "--model",
        metavar="M",
        help="Model to use instead of the one that the file names, such as the directory of a local one.  "
        "[default: the file's]",
    ),
    click.option(
        "--allow-download",
        is_flag=True,
        help="Fetch a model from the Hugging Face hub that only the file names.  [default: built-in models only]",
    ),
)

running = together(
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        envvar="MEMCODEC_DEVICE",
        show_envvar=True,
        help="Where the model runs; auto takes a CUDA GPU if there is one.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        default=DEFAULT_BATCH,
        show_default=True,
        envvar="MEMCODEC_BATCH",
        show_envvar=True,
        metavar="N",
        help="Groups of chunks decoded side by side; does not change the result.",
    ),
    click.option(
        "-T",
        "--threads",
        type=click.IntRange(1, 1024),
        metavar="N",
        envvar="MEMCODEC_THREADS",
        show_envvar=True,
        help="CPU threads; does not change the result.  [default: one per core]",
    ),
)

engine = together(
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        envvar="MEMCODEC_ENGINE",
        show_envvar=True,
        help="Where groups are coded: here, or by the workers of a Ray cluster; does not change the result.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        envvar="MEMCODEC_WORKERS",
        show_envvar=True,
        help="Engine ray: processes with a model each, with --threads CPU threads (1) or a GPU.  [default: all that "
        "have room]",
    ),
)


def _context(ctx: click.Context, param: click.Parameter, value: str) -> Context:
    if value == "auto":
        return "auto"
    if value == "max":
        return "max"
    if not value.isdecimal() or int(value) > MAX_CONTEXT:
        raise click.BadParameter(f"give auto, max, or 0 to {MAX_CONTEXT}")
    return int(value)


context = click.option(
    "--context",
    callback=_context,
    default="auto",
    show_default=True,
    envvar="MEMCODEC_CONTEXT",
    show_envvar=True,
    metavar="N",
    help="Tokens before each that the model sees: a number, 0 for those of its chunk alone, auto for as many as cost "
    "little time, max for the smallest file, slowly.",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line on the terminal.")
saying = together(
    quiet,
    click.option("-v", "--verbose", is_flag=True, help="The closing line also where there is no terminal."),
    click.option("--no-progress", is_flag=True, help="No progress bar; the closing line stays."),
)
primer = click.option(
    "--primer",
    metavar="P",
    envvar="MEMCODEC_PRIMER",
    show_envvar=True,
    help="Primer file (memcodec primer train), which every chunk sees; a file made with one is read with it.  "
    "[default: none]",
)

force = click.option("-f", "--force", is_flag=True, help="Overwrite an existing output; write binary to a terminal.")
writing = together(
    click.option("-c", "--stdout", "to_stdout", is_flag=True, help="Write to standard output."),
    force,
    click.option("-k", "--keep", is_flag=True, help="Keep the input; that is the default."),
    click.option("--rm", "remove", is_flag=True, help="Remove each input when its output is written."),
    click.option(
        "--output-dir", metavar="DIR", help="Folder for the outputs, which is made.  [default: beside inputs]"
    ),
)
