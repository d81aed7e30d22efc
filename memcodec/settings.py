"""Every setting of the encoder with its default and its limits. Imports neither numpy nor numba nor torch."""

import re
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from typing import Literal, TypedDict

from memcodec.errors import EncodeError
from memcodec.levels import DEFAULT_LEVEL, LEVELS, Level, settings_of

DEFAULT_MODEL = "smollm2-135m"

SHARE_STEPS = 1024  # memory shares are multiples of 1/1024
MOST_SHARE = 512  # the largest memory share, in these steps
DEFAULT_SHARE = LEVELS[DEFAULT_LEVEL].share
DEFAULT_EFFORT = LEVELS[DEFAULT_LEVEL].effort  # states that the search for a memory tries per token
MAX_EFFORT = 1 << 20
MAX_STATES = 1 << 26  # effort times tokens of a chunk: 5 bytes each in every thread

MAX_VECTORS = 64  # of a chunk at the prompt site
MEMORY_BITS = (1, 2, 3, 4, 8, 16)  # bits per dimension at the prompt site; 16 is float16

MAX_CHUNK_TOKENS = 4096
DEFAULT_CHUNK_TOKENS = LEVELS[DEFAULT_LEVEL].chunk_tokens
MAX_CONTEXT = 1 << 15  # tokens that the LM may see before a position: limits the cache of a decoder
MAX_THREADS = 1024
# auto is cuda if there is a GPU, else cpu; cuda:1 and so on are one of several.
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
NUMBERED_GPU = re.compile(r"cuda:\d{1,3}")
ENGINES = ("local", "ray")  # where groups are encoded and decoded: in this process, or on a Ray cluster

MAX_PRIMER_TOKENS = 1 << 15
DEFAULT_PRIMER_TOKENS = 400

# How an encoded file is compared with its document: by full passes of the LM (also True), step by step as a decoder
# does, or not at all.
Verify = bool | Literal["passes", "steps"]
VERIFY = ("passes", "steps")

Context = int | Literal["auto", "max"]  # the most tokens of its group that the LM sees before each token


def plain_numbers(settings: object) -> None:
    """Make the whole numbers of numpy in a frozen dataclass numbers of Python, which do not overflow."""
    for name, value in list(vars(settings).items()):
        if not isinstance(value, int) and hasattr(value, "__index__"):
            with suppress(TypeError):  # an array, which the checks refuse
                object.__setattr__(settings, name, index(value))


def check_whole(name: str, value: object, least: int, most: int | None, wanted: str) -> None:
    """Raise EncodeError unless a value is a whole number, of Python or numpy, from `least` to `most`.

    most: None for no limit; wanted: what to give, for the message.
    """
    try:
        number = index(value)  # type: ignore[arg-type]  # a TypeError says that it is none
    except TypeError:
        raise EncodeError(f"{name} {value!r}: give {wanted}, as a whole number") from None
    if number < least or (most is not None and number > most):
        raise EncodeError(f"{name} {number}: give {wanted}")


@dataclass(frozen=True)
class Readout:
    """Settings of the readout site.

    share: the part of a chunk's expected information that its memory carries, 0 (no memory) to 0.5, rounded to 1/1024;
    effort: states that the search for the memory tries per token; more states make files smaller and take longer. None
    is the value of the level.
    """

    share: float | None = None
    effort: int | None = None

    def __post_init__(self) -> None:
        """Raises as `check`."""
        plain_numbers(self)
        self.check()

    def check(self) -> None:
        """Raise EncodeError for settings out of range."""
        if self.share is not None and not 0 <= self.share <= MOST_SHARE / SHARE_STEPS:
            raise EncodeError(f"memory share {self.share:g}: give 0 to {MOST_SHARE / SHARE_STEPS:g}")
        if self.effort is not None:
            check_whole("effort", self.effort, 1, MAX_EFFORT, f"1 to {MAX_EFFORT} states per token")

    def at(self, level: Level) -> "Readout":
        """The same settings, with the values of a level for what is None."""
        share = level.share if self.share is None else self.share
        return Readout(share, level.effort if self.effort is None else self.effort)

    def check_with(self, chunk_tokens: int) -> None:
        """Raise EncodeError if the search would need too much memory with chunks of this many tokens."""
        if (self.effort or DEFAULT_EFFORT) * chunk_tokens > MAX_STATES:
            raise EncodeError(
                f"effort {self.effort} with {chunk_tokens} tokens per chunk: give {MAX_STATES // chunk_tokens} at most"
            )


@dataclass(frozen=True)
class Prompt:
    """Settings of the prompt site: how memories are fitted (docs/memory_tokens.md compares the choices).

    vectors: 1 to 64 for each chunk, or None for the fewest of 1, 2, 4, ... that succeed; bits: of each dimension
    (MEMORY_BITS); steps: the maximum per chunk, with each number of vectors; pure: no corrections, and no chunk is
    stored instead, whatever the size; patience: a fit ends after this many steps without a gain; learning_rate: Adam's,
    in scales (root mean squares) of the token embeddings; seed: of the first memory.
    """

    vectors: int | None = 1
    bits: int = 16
    steps: int = 800
    pure: bool = False
    patience: int = 200
    learning_rate: float = 16.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises as `check`."""
        plain_numbers(self)
        self.check()

    def check(self) -> None:
        """Raise EncodeError for settings out of range."""
        if self.vectors is not None:
            check_whole("vectors", self.vectors, 1, MAX_VECTORS, f"1 to {MAX_VECTORS}, or auto")
        check_whole("bits", self.bits, 1, max(MEMORY_BITS), wanted := f"one of {', '.join(map(str, MEMORY_BITS))}")
        if self.bits not in MEMORY_BITS:
            raise EncodeError(f"bits {self.bits}: give {wanted}")
        for name, value in (("steps", self.steps), ("patience", self.patience)):
            check_whole(name, value, 1, None, "1 or more")
        check_whole("seed", self.seed, -1 << 63, (1 << 64) - 1, "-2**63 to 2**64 - 1")
        if not 0 < self.learning_rate < 1e4:
            raise EncodeError(f"learning rate {self.learning_rate:g}: give a number above 0 and below 10,000")


SiteSettings = Readout | Prompt


class EncodeOptions(TypedDict, total=False):
    """The keywords of `Codec.encode` that become `EncodeSettings`, for type checkers."""

    level: int
    site: SiteSettings
    chunk_tokens: int
    context: Context
    batch: int | None
    verify: Verify
    references: bool


@dataclass(frozen=True)
class EncodeSettings:
    """How documents are encoded; the fields are described at `Codec.encode`. `of` makes them.

    level: the settings of the level; site: with its values where none were given; chunk_tokens: None for those of the
    level (`chunk_length`).
    """

    level: Level
    site: SiteSettings
    chunk_tokens: int | None
    context: Context
    batch: int | None
    verify: Verify
    references: bool

    @classmethod
    def of(
        cls, *, level: int = DEFAULT_LEVEL, site: SiteSettings = Readout(), chunk_tokens: int | None = None,
        context: Context = "auto", batch: int | None = None, verify: Verify = True,
        references: bool = True,
    ) -> "EncodeSettings":  # fmt: skip
        """Settings with what is given, and what a level says about the rest. Raises as `check`."""
        chosen = settings_of(level)
        if isinstance(site, Prompt) and level != DEFAULT_LEVEL:
            raise EncodeError(f"level {level}: the prompt site has no levels: give it no level")
        filled = site.at(chosen) if isinstance(site, Readout) else site
        return cls(chosen, filled, chunk_tokens, context, batch, verify, references)

    def __post_init__(self) -> None:
        """Raises as `check`."""
        plain_numbers(self)
        self.check()

    def check(self) -> None:
        """Raise EncodeError for settings out of range, TypeError if `site` is not the settings of a site."""
        if not isinstance(self.site, Readout | Prompt):
            raise TypeError(f"site: give memcodec.Readout(...) or memcodec.Prompt(...), not {type(self.site).__name__}")
        check_chunk_tokens(self.chunk_length(MAX_CONTEXT))
        if isinstance(self.site, Readout):
            self.site.check_with(self.chunk_length(MAX_CONTEXT))
        check_batch(self.batch)
        check_verify(self.verify)
        if self.context not in ("auto", "max") and not (type(self.context) is int and 0 <= self.context <= MAX_CONTEXT):
            raise EncodeError(f"context {self.context!r}: give auto, max, or 0 to {MAX_CONTEXT:,} tokens")
        if isinstance(self.site, Prompt) and self.context not in ("auto", 0):
            raise EncodeError(f"context {self.context}: chunks of the prompt site have no context: give auto or 0")

    def chunk_length(self, positions: int) -> int:
        """Tokens of a chunk, at most: what was given, or what the level says and the LM has positions for."""
        return max(1, min(self.level.chunk_tokens, positions)) if self.chunk_tokens is None else self.chunk_tokens

    @property
    def chunk_context(self) -> Context:
        """The requested context; 0 at the prompt site, where each chunk is a group with its vectors before it."""
        return 0 if isinstance(self.site, Prompt) else self.context

    @property
    def stores_text(self) -> bool:
        """Whether text that zstd makes smaller is stored instead of coded."""
        return not (isinstance(self.site, Prompt) and self.site.pure)

    @property
    def finds_references(self) -> bool:
        """Whether text that occurred before is written as a reference; a pure memory carries all text."""
        return self.references and self.stores_text


def check_chunk_tokens(chunk_tokens: int) -> None:
    """Raise EncodeError for a number of tokens out of range."""
    check_whole("chunk tokens", chunk_tokens, 1, MAX_CHUNK_TOKENS, f"1 to {MAX_CHUNK_TOKENS}")


def check_device(device: str) -> None:
    """Raise EncodeError for the name of a device that does not exist."""
    if not isinstance(device, str) or (device not in DEVICES and not NUMBERED_GPU.fullmatch(device)):
        raise EncodeError(f"device {device!r}: give {', '.join(DEVICES)} or cuda:N")


def check_verify(verify: Verify) -> None:
    """Raise EncodeError for a way of verification that does not exist."""
    if not isinstance(verify, bool) and verify not in VERIFY:
        raise EncodeError(f"verify {verify!r}: give True, False, {' or '.join(VERIFY)}")


def check_batch(batch: int | None) -> None:
    """Raise EncodeError for less than one group. None: as many as suit the device."""
    if batch is not None:
        check_whole("batch", batch, 1, None, "1 or more groups")
