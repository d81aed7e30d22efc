"""Files whose text the LM carries, though zstd would make them smaller: for tests and benchmarks with tiny models."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memcodec import codec, container
from memcodec.container import Container, Segment, StoredSpan, assembly
from memcodec.document.source import Source
from memcodec.document.spans import has_text


@contextmanager
def store_nothing() -> Iterator[None]:
    """Encoders of this process, meanwhile, store what is no text alone."""
    module: Any = assembly
    codecs: Any = codec
    before = module._store_losers, codecs.stored
    module._store_losers, codecs.stored = segments_of, too_large
    try:
        yield
    finally:
        module._store_losers, codecs.stored = before


def segments_of(run: list[Any]) -> list[Segment]:
    """Of a run of pieces: all as they are."""
    return [piece.segment for piece in run]


def too_large(source: Source) -> Container:
    """In the place of what stores a whole document: larger than what a tiny model makes of it."""
    if not has_text(source):
        return assembly.stored(source)
    span = StoredSpan(1, 0, bytes(max(1 << 17, 2 * source.size)), 0)
    return container.describe(source.size, bytes(container.HASH_BYTES), [span])
