"""The sites: where a memory embedding enters the frozen LM, and how it is fitted to a chunk.

Each is a class that has the attributes of `Site`; nothing else in memcodec asks which one it is.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from memcodec.coding.distribution import Predictions

# What the exact LM says of the chunks that are to be fitted, behind vectors, float32 [n, hidden] each, or None.
Predict = Callable[["list[np.ndarray | None]"], "list[Predictions]"]
Report = Callable[[int], None]  # tokens that are done so far


class Site(Protocol):
    """One way for a memory to enter the LM.

    fields: numbers that a decoder must know, for the index; share: what part of a chunk's information steers it, in
    steps of 1/1024.
    """

    name: str
    share: int
    fields: tuple[int, ...]

    def vectors(self, memory: bytes) -> "np.ndarray | None":
        """What the LM reads between the prefix and a chunk's first token, float32 [n, hidden]. Raises FormatError."""

    def fit(
        self, chunks: "list[np.ndarray]", predict: Predict, report: Report
    ) -> "tuple[list[bytes], list[Predictions]]":
        """Memories of chunks, int64 [tokens] each, and what the LM says of the chunks under them."""
