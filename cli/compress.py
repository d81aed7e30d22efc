"""`memcodec compress` and `memcodec decompress`."""

import time

import click
from click.core import ParameterSource

from memcodec import container
from memcodec.defaults import DEFAULT_BITS, DEFAULT_EFFORT, DEFAULT_MARGIN, DEFAULT_STEPS
from memcodec_cli import files, options
from memcodec_cli.progress import Bars, close_line


def _eighths(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not 0 <= value <= container.MAX_RATE or value * 8 % 1:
        raise click.BadParameter(f"give 0 to {container.MAX_RATE} in steps of 1/8")
    return value


def _vectors(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdecimal() or not 1 <= int(value) <= container.MAX_VECTORS:
        raise click.BadParameter(f"give 1 to {container.MAX_VECTORS}, or auto")
    return int(value)


_ONLY = {"readout": ("memory_rate", "effort"), "prompt": ("vectors", "bits", "steps", "seed", "pure")}


def _check_site(site: str) -> None:
    """Refuse options that were given and mean nothing at this site."""
    given = click.get_current_context().get_parameter_source
    for other, names in _ONLY.items():
        for name in names:
            if other != site and given(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} is for --site {other} only")


@click.command()
@click.argument("input_name", metavar="INPUT")
@click.option("-o", "--output", metavar="OUT", help="Output file; - is standard output.  [default: INPUT.memz]")
@options.writing
@options.encoding_model
@click.option(
    "--chunk-tokens",
    type=click.IntRange(1, container.MAX_CHUNK_TOKENS),
    default=container.DEFAULT_CHUNK_TOKENS,
    show_default=True,
    metavar="N",
    help="Tokens in a chunk, at most.",
)
@click.option(
    "--site",
    type=click.Choice(["readout", "prompt"]),
    default="readout",
    show_default=True,
    help="Where the memory enters the model: at its end, or as vectors before the first token (slow).",
)
@click.option(
    "--vectors",
    callback=_vectors,
    default="1",
    show_default=True,
    metavar="N",
    help=f"Prompt site: vectors a chunk, 1 to {container.MAX_VECTORS}, or auto for the fewest that succeed.",
)
@click.option(
    "--bits",
    type=click.Choice([str(bits) for bits in container.MEMORY_BITS]),
    default=str(DEFAULT_BITS),
    show_default=True,
    help="Prompt site: bits per dimension of a vector; 16 is float16.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=DEFAULT_STEPS,
    show_default=True,
    metavar="N",
    help="Prompt site: steps of gradient descent a chunk, at most.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Prompt site: of the noise that a fit starts from.",
)
@click.option(
    "--pure",
    is_flag=True,
    help="Prompt site: vectors alone, whatever their size; fails where they do not suffice.  [default: corrections]",
)
@click.option(
    "--memory-rate",
    type=float,
    callback=_eighths,
    default=float(container.DEFAULT_RATE),
    show_default=True,
    metavar="R",
    help=f"Readout site: memory in bits per token, 0 (none) to {container.MAX_RATE} in steps of 1/8.",
)
@click.option(
    "--margin",
    type=float,
    default=DEFAULT_MARGIN,
    show_default=True,
    metavar="X",
    help="Least gap in logits on which the decoder may rest a decision.",
)
@click.option(
    "--effort",
    type=click.IntRange(min=1),
    default=DEFAULT_EFFORT,
    show_default=True,
    metavar="N",
    help="Readout site: states that the search for a memory tries per token: more is smaller and slower.",
)
@options.running
@click.option("--no-verify", is_flag=True, help="Do not decode the result before it is written.  [default: verify]")
@options.quiet
def compress(
    input_name: str, output: str | None, to_stdout: bool, force: bool, model: str, chunk_tokens: int, site: str,
    vectors: int | None, bits: str, steps: int, seed: int, pure: bool, memory_rate: float, margin: float,
    effort: int, device: str, batch: int, threads: int | None, no_verify: bool, quiet: bool,
) -> None:  # fmt: skip
    """Compress the file INPUT; - is standard input."""
    _check_site(site)
    target = files.Output.choose(input_name, output, to_stdout, force, input_name + files.EXTENSION)
    target.check(binary=True)
    data = files.read(input_name)
    with Bars(quiet) as bars:
        bars.doing("loading the model")
        from memcodec.codec import Codec
        from memcodec.prompt import Fitting

        fitting = Fitting(vectors=vectors, bits=int(bits), steps=steps, seed=seed) if site == "prompt" else None

        codec = Codec.load(model, device, threads, progress=bars.model)
        start = time.monotonic()
        blob = codec.encode(
            data, memory_rate=memory_rate, chunk_tokens=chunk_tokens, margin=margin, batch=batch, effort=effort,
            verify=not no_verify, progress=bars.document(len(data), "fit"), site=site, pure=pure,
            fitting=fitting,
        )  # fmt: skip
        seconds = time.monotonic() - start
    target.write(blob)
    if bars.shown:
        close_line(files.shown(input_name), data, len(blob), seconds)


@click.command()
@click.argument("input_name", metavar="INPUT")
@click.option(
    "-o", "--output", metavar="OUT", help="Output file; - is standard output.  [default: INPUT without .memz]"
)
@options.writing
@options.decoding_model
@options.running
@options.quiet
def decompress(
    input_name: str, output: str | None, to_stdout: bool, force: bool, model: str | None, device: str, batch: int,
    threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Decompress the file INPUT; - is standard input.

    The output gets its name only when every chunk and the whole have matched their checksums.
    """
    stem = input_name.removesuffix(files.EXTENSION)
    named = stem != input_name and stem[-1:] not in ("", "/")
    target = files.Output.choose(input_name, output, to_stdout, force, stem if named else "")
    target.check(binary=False)
    blob = files.read(input_name)
    with Bars(quiet) as bars:
        size = container.unpack(blob).size
        bars.doing("loading the model")
        from memcodec.codec import Codec, assemble

        codec = Codec.load_for(blob, model, device, threads, progress=bars.model)
        start = time.monotonic()
        if codec is None:
            data = assemble(container.unpack(blob), iter(()))
        else:
            data = codec.decode(blob, batch=batch, progress=bars.document(size, "decode"))
        seconds = time.monotonic() - start
    target.write(data)
    if bars.shown:
        close_line(files.shown(input_name), data, len(blob), seconds)
