"""What long work reports while it runs."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report: what is being done, how much of it is done and how much there is."""

    stage: str  # "fit", "verify", "decode"
    tokens_done: int
    tokens_total: int
    chunks_done: int
    chunks_total: int


ProgressCallback = Callable[[Progress], None]
