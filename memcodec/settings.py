"""The settings of the sites, one object each; here, without numba and torch, so that they can be named at once."""

from dataclasses import dataclass
from typing import Literal

from memcodec.errors import EncodeError

SHARE_STEPS = 1024  # memory shares are multiples of 1/1024
MOST_SHARE = 512  # of them
MAX_VECTORS = 64
MEMORY_BITS = (1, 2, 3, 4, 8, 16)  # a dimension, at the prompt site; 16 is float16
MAX_CHUNK_TOKENS = 4096
DEFAULT_CHUNK_TOKENS = 200
MAX_CONTEXT = 1 << 15  # tokens before a position that the LM may see: what a reader keeps of them is bounded so
DEFAULT_BATCH = 64  # groups decoded side by side


@dataclass(frozen=True)
class Readout:
    """Settings of the readout site.

    share: the part of a chunk's expected information that its memory carries, 0 (no memory) to 0.5, rounded to 1/1024;
    effort: states that the search tries per token: more is smaller and slower.
    """

    share: float = 0.1
    effort: int = 4096

    def check(self) -> None:
        """Raise EncodeError for settings out of range."""
        if not 0 <= self.share <= MOST_SHARE / SHARE_STEPS:
            raise EncodeError(f"memory share {self.share:g}: give 0 to {MOST_SHARE / SHARE_STEPS:g}")
        if not 1 <= self.effort <= 1 << 20:
            raise EncodeError(f"effort {self.effort}: give 1 to {1 << 20} states a token")


@dataclass(frozen=True)
class Prompt:
    """Settings of the prompt site: how memories are fitted (docs/memory_tokens.md compares the choices).

    vectors: 1 to 64 for each chunk, or None for the fewest of 1, 2, 4, ... that succeed; bits: of each dimension
    (MEMORY_BITS); steps: the most for a chunk, with each number of vectors; pure: no corrections, and no chunk is
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

    def check(self) -> None:
        """Raise EncodeError for settings out of range."""
        if self.vectors is not None and not 1 <= self.vectors <= MAX_VECTORS:
            raise EncodeError(f"vectors {self.vectors}: give 1 to {MAX_VECTORS}, or auto")
        if self.bits not in MEMORY_BITS:
            raise EncodeError(f"bits {self.bits}: give one of {', '.join(map(str, MEMORY_BITS))}")
        if self.steps < 1 or self.patience < 1:
            raise EncodeError(f"steps {self.steps}, patience {self.patience}: give 1 or more")
        if not 0 < self.learning_rate < 1e4:
            raise EncodeError(f"learning rate {self.learning_rate:g}: give a number above 0 and below 10,000")


Site = Readout | Prompt
Context = int | Literal["auto", "max"]  # tokens of its group that the LM sees before each, at most
