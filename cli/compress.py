"""`memcodec compress` and `memcodec decompress`."""

import time

import click
from click.core import ParameterSource

from memcodec import container
from memcodec.memory.settings import MAX_VECTORS, MEMORY_BITS, MOST_SHARE, SHARE_STEPS, Context, Prompt, Readout
from memcodec_cli import files, options
from memcodec_cli.loaded import Loaded, decode
from memcodec_cli.progress import Bars, close_line

_READOUT, _PROMPT = Readout(), Prompt()


def _vectors(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdecimal() or not 1 <= int(value) <= MAX_VECTORS:
        raise click.BadParameter(f"give 1 to {MAX_VECTORS}, or auto")
    return int(value)


_ONLY = {"readout": ("memory_share", "effort", "context"), "prompt": ("vectors", "bits", "steps", "seed", "pure")}


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
@options.context
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
    help=f"Prompt site: vectors a chunk, 1 to {MAX_VECTORS}, or auto for the fewest that succeed.",
)
@click.option(
    "--bits",
    type=click.Choice([str(bits) for bits in MEMORY_BITS]),
    default=str(_PROMPT.bits),
    show_default=True,
    help="Prompt site: bits per dimension of a vector; 16 is float16.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=_PROMPT.steps,
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
    "--memory-share",
    type=click.FloatRange(0, MOST_SHARE / SHARE_STEPS),
    default=_READOUT.share,
    show_default=True,
    metavar="S",
    help="Readout site: the part of a chunk's information that its memory carries, 0 (none) to 0.5.",
)
@click.option(
    "--effort",
    type=click.IntRange(1, 1 << 20),
    default=_READOUT.effort,
    show_default=True,
    metavar="N",
    help="Readout site: states that the search for a memory tries per token: more is smaller and slower.",
)
@options.running
@click.option("--no-verify", is_flag=True, help="Do not decode the result before it is written.  [default: verify]")
@options.quiet
def compress(
    input_name: str, output: str | None, to_stdout: bool, force: bool, model: str, chunk_tokens: int,
    context: Context, site: str, vectors: int | None, bits: str, steps: int, seed: int, pure: bool,
    memory_share: float, effort: int, device: str, batch: int, threads: int | None, no_verify: bool, quiet: bool,
) -> None:  # fmt: skip
    """Compress the file INPUT; - is standard input."""
    _check_site(site)
    target = files.Output.choose(input_name, output, to_stdout, force, input_name + files.EXTENSION)
    target.check(binary=True)
    chosen = (
        Readout(memory_share, effort)
        if site == "readout"
        else Prompt(vectors=vectors, bits=int(bits), steps=steps, seed=seed, pure=pure)
    )
    chosen.check()
    start = time.monotonic()
    with files.opened(input_name) as source:
        with Bars(quiet) as bars:
            bars.doing("loading")
            from memcodec import codec

            blob = codec.without_model(source)
            if blob is None:
                loaded = codec.Codec.load(model, device=device, threads=threads, progress=bars.model)
                blob = loaded.encode(
                    source, site=chosen, chunk_tokens=chunk_tokens, context=context, batch=batch,
                    verify=not no_verify, progress=bars.document(source.size, "fit"),
                )  # fmt: skip
        seconds = time.monotonic() - start
        target.write([blob])
        if bars.shown:
            close_line(files.shown(input_name), source.size, len(blob), seconds, source)


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
    input_name: str, output: str | None, to_stdout: bool, force: bool, model: str | None, allow_download: bool,
    device: str, batch: int, threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Decompress the file INPUT; - is standard input.

    The output gets its name only when every chunk and the whole have matched their checksums.
    """
    stem = input_name.removesuffix(files.EXTENSION)
    named = stem != input_name and stem[-1:] not in ("", "/")
    target = files.Output.choose(input_name, output, to_stdout, force, stem if named else "")
    target.check(binary=False)
    parsed = files.read_container(input_name)
    start = time.monotonic()
    with Bars(quiet) as bars:
        bars.doing("loading")
        size = target.write(decode(parsed, Loaded(model, allow_download, device, threads), batch, bars))
    if bars.shown:
        close_line(files.shown(input_name), size, sum(parsed.sizes.values()), time.monotonic() - start)
