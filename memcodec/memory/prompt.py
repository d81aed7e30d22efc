"""The prompt site: memory embeddings in front of the first token (spec/FORMAT.md, "Memories").

The memory token of Sastre and Rosá (arXiv 2506.15001): one or more input embeddings from which greedy decoding writes
the chunk. How they are packed, and what a decoder does with them; `fitting` finds them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from memcodec.coding.distribution import Look
from memcodec.errors import FormatError
from memcodec.memory import LookAt, Report
from memcodec.memory.settings import MAX_VECTORS, MEMORY_BITS, Prompt


class PromptSite:
    """Memories as input embeddings before the first token."""

    name = "prompt"
    share = 0  # nothing is steered

    def __init__(
        self,
        bits: int,
        dimensions: int,
        settings: Prompt | None = None,
        lm: Callable[[], Any] | None = None,
        positions: int | None = None,
    ) -> None:
        """settings, lm: for fits, which are made in floating point; positions: that the exact LM has."""
        self.fields: tuple[int, ...] = (bits, dimensions)
        self._settings = settings
        self._lm = lm
        self._positions = positions

    @classmethod
    def in_header(cls, fields: tuple[int, ...], hidden: int) -> "PromptSite":
        """The site of a file, for a decoder. Raises FormatError."""
        if len(fields) != 2 or fields[0] not in MEMORY_BITS:
            raise FormatError("damaged index: bits per dimension that cannot be")
        if fields[1] != hidden:
            raise FormatError(f"damaged index: vectors of {fields[1]} dimensions")
        return cls(*fields)

    def vectors(self, memory: bytes) -> np.ndarray | None:
        """What the LM reads between the prefix and the first token, float32 [n, dimensions]. Raises FormatError."""
        bits, dimensions = self.fields
        return unpack(memory, dimensions, bits)

    def fit(self, chunks: list[np.ndarray], look: LookAt, report: Report) -> tuple[list[bytes], list[Look]]:
        """Fit memories in floating point, and look at the chunks under them, exactly."""
        from memcodec.memory import fitting

        assert self._settings is not None and self._lm is not None
        fits = fitting.fit(self._lm(), chunks, self._settings, lambda step: report(step.prefix), self._positions)
        memories = [found.memory for found in fits]
        return memories, look([self.vectors(memory) for memory in memories])


def pack_halves(vectors: np.ndarray) -> bytes:
    """Vectors of 16 bits a dimension, float [n, dimensions]."""
    return vectors.astype("<f2").tobytes()


def pack(levels: np.ndarray, scales: np.ndarray, bits: int) -> bytes:
    """Vectors of 1 to 8 bits a dimension: levels 0 to 2**bits - 1, [n, dimensions], and scales, [n, 1]."""
    shifts = np.arange(bits, dtype=np.uint8)
    fields = levels.astype(np.uint8)[:, :, None] >> shifts & 1  # least significant bit first
    packed = np.packbits(fields.reshape(len(levels), -1), axis=1, bitorder="little")
    return np.concatenate([scales.astype("<f2").view(np.uint8), packed], axis=1).tobytes()


def unpack(memory: bytes, dimensions: int, bits: int) -> np.ndarray:
    """The vectors of a packed memory as the LM sees them, float32 [n, dimensions]. Raises FormatError."""
    count = vector_count(memory, dimensions, bits)
    rows = np.frombuffer(memory, dtype=np.uint8).reshape(count, -1)
    if bits == 16:
        entries = rows.copy().view("<f2").astype(np.float32)
    else:
        scales = rows[:, :2].copy().view("<f2").astype(np.float32)
        fields = np.unpackbits(rows[:, 2:], axis=1, bitorder="little", count=dimensions * bits)
        levels = fields.reshape(count, dimensions, bits) @ (1 << np.arange(bits))
        entries = (2 * levels + 1 - 2**bits).astype(np.float32) * scales  # exact: 9 bits times 11 bits
    if not np.isfinite(entries).all():
        raise FormatError("damaged memory: an entry is not a number")
    return entries


def vector_bytes(dimensions: int, bits: int) -> int:
    """Bytes of one packed vector: float16 entries, or a float16 scale and the levels."""
    return 2 * dimensions if bits == 16 else 2 + (dimensions * bits + 7) // 8


def vector_count(memory: bytes, dimensions: int, bits: int) -> int:
    """How many vectors a memory has. Raises FormatError where it is not 1 to 64 whole ones."""
    size = vector_bytes(dimensions, bits)
    count, rest = divmod(len(memory), size)
    if rest or not 1 <= count <= MAX_VECTORS:
        raise FormatError(f"damaged memory: {len(memory)} bytes are not 1 to {MAX_VECTORS} vectors of {size} bytes")
    return count
