"""Options of `memcodec compress` that set how a document is encoded."""

from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from memcodec.container import SITES
from memcodec.levels import DEFAULT_LEVEL, LEVELS
from memcodec.settings import (
    MAX_CHUNK_TOKENS,
    MAX_EFFORT,
    MAX_VECTORS,
    MEMORY_BITS,
    Context,
    Prompt,
    Readout,
)
from memcodec_cli.options import MEMORY_SHARE, context_option, level_option, option, whole_number

_DEFAULTS, _PROMPT = LEVELS[DEFAULT_LEVEL], Prompt()
_OPTIONS_OF_SITE = {
    "readout": ("memory_share", "effort", "context", "level"),
    "prompt": ("vectors", "bits", "steps", "seed", "pure"),
}


def _parse_vectors(ctx: click.Context, parameter: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    number = whole_number(value)
    if number is None or not 1 <= number <= MAX_VECTORS:
        raise click.BadParameter(f"use a number from 1 to {MAX_VECTORS}, or auto")
    return number


@dataclass(frozen=True)
class EncodingOptions:
    """How a document is cut into chunks, and how the memory of each chunk is fitted."""

    level: int = level_option(
        "From fast and large (1) to slow and small (9): sets the number and the length of groups, and --chunk-tokens, "
        "--memory-share and --effort where they are not given. --fast is -1, --best is -9.",
        default=DEFAULT_LEVEL,
        show_default=True,
        envvar="MEMCODEC_LEVEL",
        show_envvar=True,
    )
    chunk_tokens: int | None = option(
        "--chunk-tokens",
        type=click.IntRange(1, MAX_CHUNK_TOKENS),
        metavar="N",
        help="Maximum number of tokens in a chunk.  "
        f"[default: set by the level, {_DEFAULTS.chunk_tokens} at {DEFAULT_LEVEL}]",
    )
    context: Context = context_option()  # noqa: RUF009 (returns a field)
    site: str = option(
        "--site",
        type=click.Choice(SITES),
        default=SITES[0],
        show_default=True,
        help="Where the memory embedding enters the model: readout adds it to the last hidden state, prompt places "
        "vectors before the first token (slow).",
    )
    vectors: int | None = option(
        "--vectors",
        callback=_parse_vectors,
        default="1",
        show_default=True,
        metavar="N",
        help=f"Prompt site: number of vectors per chunk, 1 to {MAX_VECTORS}, or auto for the smallest number that "
        "reproduces the chunk.",
    )
    bits: str = option(
        "--bits",
        type=click.Choice([str(bits) for bits in MEMORY_BITS]),
        default=str(_PROMPT.bits),
        show_default=True,
        help="Prompt site: bits per dimension of a vector; 16 stores float16.",
    )
    steps: int = option(
        "--steps",
        type=click.IntRange(min=1),
        default=_PROMPT.steps,
        show_default=True,
        metavar="N",
        help="Prompt site: maximum number of gradient descent steps per chunk.",
    )
    seed: int = option(
        "--seed",
        type=int,
        default=_PROMPT.seed,
        show_default=True,
        metavar="N",
        help="Prompt site: seed of the random vectors that fitting starts from.",
    )
    pure: bool = option(
        "--pure",
        is_flag=True,
        help="Prompt site: store vectors only, even if that makes the file larger; fail if they do not reproduce the "
        "text.  [default: add corrections]",
    )
    memory_share: float | None = option(
        "--memory-share",
        type=MEMORY_SHARE,
        metavar="S",
        envvar="MEMCODEC_MEMORY_SHARE",
        show_envvar=True,
        help="Readout site: fraction of a chunk's information that its memory carries, 0 (no memory) to 0.5.  "
        f"[default: set by the level, {_DEFAULTS.share:g} at {DEFAULT_LEVEL}]",
    )
    effort: int | None = option(
        "--effort",
        type=click.IntRange(1, MAX_EFFORT),
        metavar="N",
        help="Readout site: number of states per token that the search for a memory tries. More makes smaller files "
        f"and takes longer.  [default: set by the level, {_DEFAULTS.effort} at {DEFAULT_LEVEL}]",
    )

    def settings(self) -> dict[str, Any]:
        """The keywords of `Codec.encode` that these options set.

        The level and the context of the environment are for the readout site. Raises UsageError for an option of the
        other site; EncodeError.
        """
        source_of = click.get_current_context().get_parameter_source
        for site, names in _OPTIONS_OF_SITE.items():
            for name in names:
                if site != self.site and source_of(name) is ParameterSource.COMMANDLINE:
                    raise click.UsageError(f"--{name.replace('_', '-')} is for --site {site} only")
        levels = {"level": self.level, "context": self.context}
        if self.site == "readout":
            return {"site": Readout(self.memory_share, self.effort), "chunk_tokens": self.chunk_tokens, **levels}
        prompt = Prompt(vectors=self.vectors, bits=int(self.bits), steps=self.steps, seed=self.seed, pure=self.pure)
        kept = {name: value for name, value in levels.items() if source_of(name) is not ParameterSource.ENVIRONMENT}
        return {"site": prompt, "chunk_tokens": self.chunk_tokens, **kept}
