"""Text that the LM carries although zstd would make it smaller: for tests and benchmarks with tiny models."""

from collections.abc import Iterator
from contextlib import contextmanager

from memcodec.container import assembly


@contextmanager
def store_nothing() -> Iterator[None]:
    """Encoders of this process store nothing but bytes that are not text, until the block ends."""
    before = assembly.STORE_SMALLER
    assembly.STORE_SMALLER = False
    try:
        yield
    finally:
        assembly.STORE_SMALLER = before
