"""Makes encoders use the LM even if zstd would be smaller: for tests and benchmarks with tiny models."""

from collections.abc import Iterator
from contextlib import contextmanager

from memcodec.container import assembly


@contextmanager
def store_nothing() -> Iterator[None]:
    """Until the block ends, encoders of this process store only bytes that are not text."""
    before = assembly.STORE_SMALLER
    assembly.STORE_SMALLER = False
    try:
        yield
    finally:
        assembly.STORE_SMALLER = before
