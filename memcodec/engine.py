"""Where groups are coded: in this process, or on the workers of a cluster. The bytes are the same."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from memcodec import chunks
from memcodec.chunks import Coded
from memcodec.errors import EncodeError, MachineError
from memcodec.memory import Site, site_of
from memcodec.memory.settings import Prompt, Readout
from memcodec.progress import Reporter

if TYPE_CHECKING:
    from memcodec.codec import Codec

NAMES = ("local", "ray")


class Engine(Protocol):
    """What codes groups for a codec, with its model and primer."""

    def encode(
        self, codec: "Codec", site: Readout | Prompt, groups: Iterable[list[np.ndarray]], context: int, report: Reporter
    ) -> Iterator[Coded]:
        """Groups of chunks, int64 [tokens] each, in order, as soon as they are coded.

        context: tokens of its group that the LM sees before each, at most.
        """

    def decode(
        self, codec: "Codec", site: Site, groups: list[Coded], context: int, batch: int, report: Reporter
    ) -> Iterator[np.ndarray]:
        """The token ids of each group, int64 [tokens], in order. batch: groups side by side. Raises FormatError."""

    def close(self) -> None:
        """End what it has started."""


class Local:
    """This process."""

    def encode(
        self, codec: "Codec", site: Readout | Prompt, groups: Iterable[list[np.ndarray]], context: int, report: Reporter
    ) -> Iterator[Coded]:
        """One batch after the other."""
        return chunks.encode_all(codec.lm, site_of(codec.lm, site, lambda: codec.floats), groups, context, report)

    def decode(
        self, codec: "Codec", site: Site, groups: list[Coded], context: int, batch: int, report: Reporter
    ) -> Iterator[np.ndarray]:
        """One batch after the other."""
        return chunks.decode_all(codec.lm, site, groups, context, batch, report)

    def close(self) -> None:
        """Nothing was started."""


def find_engine(name: str, workers: int | None = None, threads: int | None = None, device: str = "auto") -> Engine:
    """The engine of a name, "local" or "ray". The rest is for Ray: `RayEngine`.

    Raises EncodeError for another name or settings out of range, MachineError where Ray is not installed.
    """
    if name == "local":
        return Local()
    if name != "ray":
        raise EncodeError(f"engine {name!r}: give {' or '.join(NAMES)}")
    try:
        from memcodec.integrations.ray import RayEngine
    except ImportError as error:
        raise MachineError("engine ray: Ray is not installed: pip install 'memcodec[ray]'") from error
    return RayEngine(workers, threads, device)


@contextmanager
def opened(
    engine: "str | Engine", workers: int | None = None, threads: int | None = None, device: str = "auto"
) -> Iterator[tuple[Engine, str]]:
    """An engine, and the device of the LM in this process beside it. One by name is closed at the end."""
    if not isinstance(engine, str):
        yield engine, device
        return
    found = find_engine(engine, workers, threads, device)
    try:
        yield found, device if engine == "local" else "cpu"
    finally:
        found.close()
