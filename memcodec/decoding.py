"""The core of decoding: the token ids of groups of files. All code that decodes a file calls `tokens_of`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from memcodec.coding.corrections import EncodedGroup
from memcodec.coding.distribution import Predictions
from memcodec.container import Container, Group, Part, Segment
from memcodec.container.assembly import encoded_groups
from memcodec.engines.engine import Engine
from memcodec.memory.site import Site
from memcodec.memory.sites import site_in_file
from memcodec.models.loaded import LoadedModel
from memcodec.prediction import predict
from memcodec.progress import Reporter
from memcodec.settings import MAX_CONTEXT


def tokens_of(
    model: LoadedModel,
    engine: Engine,
    selected: Sequence[tuple[Container, list[Group]]],
    batch: int | None,
    report: Reporter,
) -> Iterator[np.ndarray]:
    """The token ids of groups, int64 [tokens] each, in order.

    model: the one that the files need, with its primer; selected: files that can share batches (`sharing_batches`),
    each with the groups to decode; batch: groups decoded side by side. Raises FormatError.
    """
    groups, context = _groups_of(selected)
    return engine.decode(model, site_of_file(model, selected[0][0]), groups, context, batch, report)


def known_tokens_of(
    model: LoadedModel,
    engine: Engine,
    selected: Sequence[tuple[Container, list[Group]]],
    known: Iterable[list[np.ndarray]],
    report: Reporter,
) -> Iterator[np.ndarray]:
    """As `tokens_of`, for groups whose chunks are known, int64 [tokens] each: to verify that they decode to these.

    Raises MachineError if they do not; FormatError.
    """
    groups, context = _groups_of(selected)
    return engine.verify(model, site_of_file(model, selected[0][0]), groups, known, context, report)


def predictions_of(model: LoadedModel, parsed: Container, tokens: Sequence[np.ndarray]) -> Iterator[Predictions]:
    """The predictions of the exact LM for each token of a file that has been decoded, one `Predictions` for each chunk.

    model: the one that the file needs, with its primer; tokens: of each group, int64 [tokens]. Memories of the readout
    site are not applied yet. Raises FormatError.
    """
    assert parsed.settings is not None
    site, groups = site_of_file(model, parsed), encoded_groups(parsed.groups)
    chunks = [np.split(ids, np.cumsum(group.lengths)[:-1]) for ids, group in zip(tokens, groups, strict=True)]
    return predict(model.lm, chunks, parsed.settings.context, [site.vectors(group.memories[0]) for group in groups])


def _groups_of(selected: Sequence[tuple[Container, list[Group]]]) -> tuple[list[EncodedGroup], int]:
    """The groups of files that can share batches, and the most tokens that the LM sees before a token of any."""
    contexts = [parsed.settings.context for parsed, _ in selected if parsed.settings is not None]
    return encoded_groups(group for _, groups in selected for group in groups), max(contexts)


def site_of_file(model: LoadedModel, parsed: Container) -> Site:
    """The site of a file that has chunks. Raises FormatError."""
    assert parsed.settings is not None
    return site_in_file(parsed.settings.site, parsed.settings.fields, model.lm.architecture.hidden)


def with_readable_memories(model: LoadedModel, damaged: Container) -> Container:
    """A damaged file with other memories in place of those that cannot be read, so that other groups can be decoded.

    Their own chunks then fail their checksums. Raises FormatError for settings out of range.
    """
    if damaged.settings is None:
        return damaged
    site = site_of_file(model, damaged)
    if site.name == "readout":  # which reads any bytes
        return damaged
    parts: list[Part] = []
    for part in damaged.parts:
        if isinstance(part, Segment):
            part = replace(part, chunks=tuple(replace(one, memory=site.readable(one.memory)) for one in part.chunks))
        parts.append(part)
    return replace(damaged, parts=parts)


def sharing_batches(files: Sequence[Container]) -> list[list[int]]:
    """The numbers of the files that have chunks, in lists: the groups of each list can share batches."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, parsed in enumerate(files):
        if (s := parsed.settings) is not None:
            longest = max(sum(chunk.tokens for chunk in group.chunks) for group in parsed.groups)
            context = s.context if longest > s.context else MAX_CONTEXT  # shorter groups never reach the limit
            alike.setdefault((s.site, s.fields, context, parsed.needs), []).append(i)
    return list(alike.values())
