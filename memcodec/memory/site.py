"""Sites: where a memory embedding enters the frozen LM, and how it is fitted to a chunk.

Each site is a class with the attributes of `Site`. Other modules do not distinguish between sites.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from memcodec.progress import Report

if TYPE_CHECKING:
    import numpy as np

    from memcodec.coding.distribution import Predictions

# Returns the exact LM's predictions of the chunks that are being fitted. Takes the vectors before each of them, float32
# [n, hidden], or None.
Predict = Callable[["list[np.ndarray | None]"], "list[Predictions]"]


class Site(Protocol):
    """One way for a memory to enter the LM.

    fields: the numbers in the index that a decoder needs; share: the part of a chunk's information that the memory
    carries, in steps of 1/1024; fits_apart: whether the memory of a chunk does not depend on which others are fitted
    together with it.
    """

    name: str
    share: int
    fields: tuple[int, ...]
    fits_apart: bool

    def vectors(self, memory: bytes) -> "np.ndarray | None":
        """What the LM reads between the prefix and a chunk's first token, float32 [n, hidden]. Raises FormatError."""

    def readable(self, memory: bytes) -> bytes:
        """The memory if `vectors` reads it, else another one that it reads: for salvage, which loses that chunk."""

    def fit(
        self, chunks: "list[np.ndarray]", predict: Predict, report: Report
    ) -> "tuple[list[bytes], list[Predictions]]":
        """Memories of chunks, int64 [tokens] each, and the predictions of the chunks under them."""
