"""The engine that works in this process."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from memcodec.groups import EncodedGroup, decode_all, encode_all
from memcodec.memory.site import Site
from memcodec.memory.sites import site_of
from memcodec.progress import Reporter
from memcodec.settings import Prompt, Readout

if TYPE_CHECKING:
    from memcodec.codec import Codec


class Local:
    """This process."""

    def encode(
        self, codec: "Codec", site: Readout | Prompt, groups: Iterable[list[np.ndarray]], context: int, report: Reporter
    ) -> Iterator[EncodedGroup]:
        """One batch after the other."""
        return encode_all(codec.lm, site_of(codec.lm, site, lambda: codec.floats), groups, context, report)

    def decode(
        self, codec: "Codec", site: Site, groups: list[EncodedGroup], context: int, batch: int, report: Reporter
    ) -> Iterator[np.ndarray]:
        """One batch after the other."""
        return decode_all(codec.lm, site, groups, context, batch, report)

    def close(self) -> None:
        """Nothing was started."""
