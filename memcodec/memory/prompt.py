"""The prompt site: memory embeddings before the first token (spec/FORMAT.md, "Memories").

The memory token of Sastre and Rosá (arXiv 2506.15001): one or more input embeddings from which greedy decoding writes
the chunk. `fitting` finds them, `vectors` packs them.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from memcodec.coding.distribution import Predictions
from memcodec.errors import FormatError
from memcodec.memory.site import Predict
from memcodec.memory.vectors import unpack, vector_bytes
from memcodec.progress import Report
from memcodec.settings import MEMORY_BITS, Prompt


class PromptSite:
    """Memories as input embeddings before the first token."""

    name = "prompt"
    share = 0  # it does not steer
    fits_apart = False

    def __init__(
        self,
        bits: int,
        dimensions: int,
        settings: Prompt | None = None,
        lm: Callable[[], Any] | None = None,
        positions: int | None = None,
    ) -> None:
        """settings, lm: for fits; lm returns the LM in floating point; positions: the number that the exact LM has."""
        self.fields: tuple[int, ...] = (bits, dimensions)
        self._settings = settings
        self._lm = lm
        self._positions = positions

    @classmethod
    def in_file(cls, fields: tuple[int, ...], hidden: int) -> "PromptSite":
        """The site of a file, for a decoder. Raises FormatError."""
        if len(fields) != 2 or fields[0] not in MEMORY_BITS:
            raise FormatError("damaged index: bits per dimension out of range")
        if fields[1] != hidden:
            raise FormatError(f"damaged index: vectors of {fields[1]} dimensions")
        return cls(*fields)

    def vectors(self, memory: bytes) -> np.ndarray | None:
        """What the LM reads between the prefix and the first token, float32 [n, dimensions]. Raises FormatError."""
        bits, dimensions = self.fields
        return unpack(memory, dimensions, bits)

    def readable(self, memory: bytes) -> bytes:
        """The same memory, or one vector of zeros if it is cut or has an entry that is not a number."""
        bits, dimensions = self.fields
        try:
            unpack(memory, dimensions, bits)
        except FormatError:
            return _zeros(vector_bytes(dimensions, bits))
        return memory

    def fit(self, chunks: list[np.ndarray], predict: Predict, report: Report) -> tuple[list[bytes], list[Predictions]]:
        """Fit memories in floating point, then predict the chunks under them with the exact LM."""
        from memcodec.memory import fitting

        assert self._settings is not None and self._lm is not None
        fits = fitting.fit(self._lm(), chunks, self._settings, lambda step: report(step.prefix), self._positions)
        memories = [fit.memory for fit in fits]
        return memories, predict([self.vectors(memory) for memory in memories])


@cache  # one object for all memories of a damaged file
def _zeros(count: int) -> bytes:
    return bytes(count)
