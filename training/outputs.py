"""Files that are there completely or not at all, so that an interrupted run leaves none that is incomplete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Where to write a file, which gets its name when this context ends without an error."""
    part = path.with_suffix(".new")
    yield part
    part.replace(path)
