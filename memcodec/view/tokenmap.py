"""A file token by token: what each costs, who wrote it, and what else the LM might have said."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memcodec.coding import corrections
from memcodec.coding.steering import Steering
from memcodec.container import Container, StoredSpan
from memcodec.container.assembly import encoded_groups
from memcodec.groups import decode_all, predict
from memcodec.progress import ProgressCallback, Reporter
from memcodec.settings import DEFAULT_BATCH

if TYPE_CHECKING:
    from memcodec.codec import Codec

LM, MEMORY, CORRECTION = "lm", "memory", "correction"  # who wrote a token
_ALTERNATIVES = 4


@dataclass(frozen=True)
class TokenInfo:
    """A token: its bytes, -log2 of its probability under the memory, and who wrote it.

    writer: LM, which would have said it without a memory; MEMORY, whose steering made it the likeliest; CORRECTION.
    alternatives: bytes and probabilities of the likeliest tokens under the memory. chunk: its number.
    """

    data: bytes
    bits: float
    writer: str
    alternatives: tuple[tuple[bytes, float], ...]
    chunk: int

    @property
    def probability(self) -> float:
        """Under the memory, 0 to 1."""
        return 2.0**-self.bits


def token_map(
    codec: "Codec", parsed: Container, batch: int = DEFAULT_BATCH, progress: ProgressCallback | None = None
) -> Iterator[TokenInfo | StoredSpan]:
    """Tokens and stored spans of a file, in the order of the document. It is decoded, then looked at once more.

    Raises as `Codec.decode`.
    """
    report = Reporter(progress, "decode", parsed.size, 0, 1)
    report.expect([chunk.tokens for chunk in parsed.chunks], parsed.size)
    number = 0
    explained: Iterator[tuple[np.ndarray, corrections.Explained]] = iter(())
    if parsed.settings is not None:
        codec.check(parsed)
        explained = _explained(codec, parsed, batch, report)
    for part in parsed.parts:
        if isinstance(part, StoredSpan):
            yield part
            continue
        for _ in part.chunks:
            tokens, chunk = next(explained)
            yield from _tokens(codec, tokens, chunk, number)
            number += 1


def _explained(
    codec: "Codec", parsed: Container, batch: int, report: Reporter
) -> Iterator[tuple[np.ndarray, corrections.Explained]]:
    """Each chunk's tokens, with what the coder saw."""
    assert parsed.settings is not None
    site, context = codec.site_in(parsed), parsed.settings.context
    coded = encoded_groups(parsed.groups)
    found = list(decode_all(codec.lm, site, coded, context, batch, report))
    groups = [np.split(tokens, np.cumsum(c.lengths)[:-1]) for tokens, c in zip(found, coded, strict=True)]
    predictions = predict(codec.lm, groups, context, [site.vectors(c.memories[0]) for c in coded])
    for group, c in zip(groups, coded, strict=True):
        for tokens, memory in zip(group, c.memories, strict=True):
            yield tokens, corrections.explain(next(predictions), memory, Steering.of(codec.lm.head), site.share)


def _tokens(codec: "Codec", tokens: np.ndarray, chunk: corrections.Explained, number: int) -> Iterator[TokenInfo]:
    for t, token in enumerate(tokens):
        winner = int(chunk.winners[t])
        by_greedy = LM if winner == 0 else MEMORY
        writer = by_greedy if chunk.ids[t, winner] == token else CORRECTION
        order = np.argsort(-chunk.shares[t], kind="stable")[:_ALTERNATIVES]
        others = tuple(
            (codec.tokenizer.decode(chunk.ids[t, k : k + 1].astype(np.int64)), float(chunk.shares[t, k]))
            for k in order
            if chunk.ids[t, k] >= 0
        )
        data = codec.tokenizer.decode(tokens[t : t + 1])
        yield TokenInfo(data, -math.log2(max(float(chunk.probability[t]), 2.0**-60)), writer, others, number)
