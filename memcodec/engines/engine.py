"""The interface of an engine, which encodes, decodes and verifies groups, in this process or elsewhere."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from memcodec.coding.corrections import EncodedGroup
from memcodec.memory.site import Site
from memcodec.models.loaded import LoadedModel
from memcodec.progress import Reporter
from memcodec.settings import SiteSettings


class Engine(Protocol):
    """Encodes, decodes and verifies groups under a model and its primer."""

    def encode(
        self,
        model: LoadedModel,
        site: SiteSettings,
        groups: Iterable[list[np.ndarray]],
        context: int,
        report: Reporter,
    ) -> Iterator[EncodedGroup]:
        """Encode groups of chunks, int64 [tokens] each: each group in order, as soon as it is encoded.

        context: the most tokens of its group that the LM sees before each token.
        """

    def decode(
        self, model: LoadedModel, site: Site, groups: list[EncodedGroup], context: int,
        batch: int | None, report: Reporter,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Decode groups: the token ids of each, int64 [tokens], in order.

        context: as in `encode`; batch: groups decoded side by side at most, None for as many as suit the device.
        Raises FormatError.
        """

    def verify(
        self,
        model: LoadedModel,
        site: Site,
        groups: list[EncodedGroup],
        known: Iterable[list[np.ndarray]],
        context: int,
        report: Reporter,
    ) -> Iterator[np.ndarray]:
        """Decode groups whose chunks are known (see `groups.verify_all`): the token ids of each, in order.

        known: the chunks of each group, int64 [tokens] each. Raises MachineError if they are others; FormatError.
        """

    def close(self) -> None:
        """Stop the workers, if there are any."""
