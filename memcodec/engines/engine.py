"""What an engine must have: whatever codes groups, here or elsewhere."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from memcodec.groups import EncodedGroup
from memcodec.memory.site import Site
from memcodec.progress import Reporter
from memcodec.settings import Prompt, Readout

if TYPE_CHECKING:
    from memcodec.codec import Codec


class Engine(Protocol):
    """What codes groups for a codec, with its model and primer."""

    def encode(
        self, codec: "Codec", site: Readout | Prompt, groups: Iterable[list[np.ndarray]], context: int, report: Reporter
    ) -> Iterator[EncodedGroup]:
        """Groups of chunks, int64 [tokens] each, in order, as soon as they are coded.

        context: tokens of its group that the LM sees before each, at most.
        """

    def decode(
        self, codec: "Codec", site: Site, groups: list[EncodedGroup], context: int, batch: int, report: Reporter
    ) -> Iterator[np.ndarray]:
        """The token ids of each group, int64 [tokens], in order. batch: groups side by side. Raises FormatError."""

    def close(self) -> None:
        """End what it has started."""
