"""The engine that works in this process."""

from collections.abc import Iterable, Iterator

import numpy as np

from memcodec.coding.corrections import EncodedGroup
from memcodec.groups import decode_all, encode_all, verify_all
from memcodec.memory.site import Site
from memcodec.memory.sites import site_of
from memcodec.models.loaded import LoadedModel
from memcodec.progress import Reporter
from memcodec.settings import SiteSettings


class Local:
    """Encodes, decodes and verifies in this process, batch by batch (see `Engine`)."""

    def encode(
        self,
        model: LoadedModel,
        site: SiteSettings,
        groups: Iterable[list[np.ndarray]],
        context: int,
        report: Reporter,
    ) -> Iterator[EncodedGroup]:
        """Encode groups of chunks."""
        return encode_all(model.lm, site_of(model.lm, site, lambda: model.floats), groups, context, report)

    def decode(
        self, model: LoadedModel, site: Site, groups: list[EncodedGroup], context: int,
        batch: int | None, report: Reporter,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Decode groups."""
        return decode_all(model.lm, site, groups, context, batch, report)

    def verify(
        self,
        model: LoadedModel,
        site: Site,
        groups: list[EncodedGroup],
        known: Iterable[list[np.ndarray]],
        context: int,
        report: Reporter,
    ) -> Iterator[np.ndarray]:
        """Decode groups whose chunks are known."""
        return verify_all(model.lm, site, groups, known, context, report)

    def close(self) -> None:
        """Do nothing: no workers were started."""
