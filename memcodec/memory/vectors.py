"""Vectors of the prompt site as bytes, with 1 to 16 bits for each dimension (spec/FORMAT.md, "Memories")."""

import numpy as np

from memcodec.errors import FormatError
from memcodec.settings import MAX_VECTORS


def pack_halves(vectors: np.ndarray) -> bytes:
    """Pack vectors with 16 bits for each dimension, float [n, dimensions]."""
    return vectors.astype("<f2").tobytes()


def pack_levels(levels: np.ndarray, scales: np.ndarray, bits: int) -> bytes:
    """Pack vectors with 1 to 8 bits for each dimension: levels [n, dimensions], 0 to 2**bits - 1; scales [n, 1]."""
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
    """Bytes of a packed vector: float16 entries, or a float16 scale and levels."""
    return 2 * dimensions if bits == 16 else 2 + (dimensions * bits + 7) // 8


def vector_count(memory: bytes, dimensions: int, bits: int) -> int:
    """The number of vectors of a memory. Raises FormatError if its size is not that of 1 to 64 vectors."""
    size = vector_bytes(dimensions, bits)
    count, rest = divmod(len(memory), size)
    if rest or not 1 <= count <= MAX_VECTORS:
        raise FormatError(f"damaged memory: {len(memory)} bytes are not 1 to {MAX_VECTORS} vectors of {size} bytes")
    return count
