"""A file token by token: what each token costs, what wrote it, and which other tokens were likely."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memcodec.codec import Codec, codec_for
from memcodec.coding import corrections
from memcodec.coding.steering import Steering
from memcodec.container import Container, StoredSpan, unpack
from memcodec.container.assembly import DecodedChunk, decoded_chunks, located_parts
from memcodec.decoding import predictions_of, site_of_file
from memcodec.document.inputs import Binary, as_binary
from memcodec.document.references import Reference
from memcodec.errors import ChecksumError
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.progress import ProgressCallback
from memcodec.wording import counted

LM, MEMORY, CORRECTION = "lm", "memory", "correction"  # what wrote a token
_ALTERNATIVES = 4


@dataclass(frozen=True)
class TokenInfo:
    """A token: its bytes, -log2 of its probability under the memory, and what wrote it.

    writer: LM if it is the LM's first choice without a memory; MEMORY if the memory made it the first choice;
    CORRECTION otherwise. alternatives: bytes and probabilities of the likeliest tokens under the memory; chunk: the
    number of its chunk.
    """

    data: bytes
    bits: float
    writer: str
    alternatives: tuple[tuple[bytes, float], ...]
    chunk: int

    @property
    def probability(self) -> float:
        """Its probability under the memory, 0 to 1."""
        return 2.0**-self.bits


Item = TokenInfo | StoredSpan | Reference


def kind_of(item: StoredSpan | Reference) -> str:
    """What was done with bytes that are no tokens: "stored" or "repeated"."""
    return "stored" if isinstance(item, StoredSpan) else "repeated"


def placeholder(item: StoredSpan | Reference) -> str:
    """The text in place of bytes that are no tokens: "[12 bytes stored]"."""
    return f"[{counted(item.size, 'byte')} {kind_of(item)}]"


def token_map(
    codec: Codec | None, file: Container | Binary, batch: int | None = None, progress: ProgressCallback | None = None
) -> Iterator[Item]:
    """The tokens, stored spans and references of a file in document order.

    A reference in the middle of a token or a stored span comes after it. Decodes the file, then runs the LM once more
    over it. codec: None for a file without chunks; file: its bytes, or what `memcodec.container.unpack` returns. Raises
    as `Codec.decode`.
    """
    parsed = file if isinstance(file, Container) else unpack(as_binary(file, "file"))
    references, at = deque(parsed.references), 0  # carried bytes
    for item in _carried(codec, parsed, batch, progress):
        yield item
        at += item.size if isinstance(item, StoredSpan) else len(item.data)
        while references and references[0].at <= at:
            yield references.popleft()


def _carried(
    codec: Codec | None, parsed: Container, batch: int | None, progress: ProgressCallback | None
) -> Iterator[TokenInfo | StoredSpan]:
    """The tokens and stored spans of a file, in order."""
    if parsed.needs is None or parsed.settings is None:
        yield from (part for part in parsed.parts if isinstance(part, StoredSpan))
        return
    codec = codec_for(parsed.needs, codec)
    tokens = list(codec.tokens(parsed, batch, progress=progress))
    explained = _explained(codec, parsed, tokens)
    for found in decoded_chunks(located_parts(parsed), tokens, codec.tokenizer):
        if isinstance(found, DecodedChunk):
            if found.damage:
                raise ChecksumError(found.damage)
            yield from _tokens(codec.tokenizer, found.tokens, next(explained), found.number)
        elif isinstance(found.part, StoredSpan):
            yield found.part


def _explained(codec: Codec, parsed: Container, tokens: list[np.ndarray]) -> Iterator[corrections.Explained]:
    """What the entropy coder saw of each chunk. tokens: of each group, int64 [tokens]."""
    site = site_of_file(codec.model, parsed)
    for chunk, predictions in zip(parsed.chunks, predictions_of(codec.model, parsed, tokens), strict=True):
        yield corrections.explain(predictions, chunk.memory, Steering.of(codec.lm.head), site.share)


def _tokens(
    tokenizer: ByteTokenizer, tokens: np.ndarray, chunk: corrections.Explained, number: int
) -> Iterator[TokenInfo]:
    for t, token in enumerate(tokens):
        winner = int(chunk.winners[t])
        first_choice = LM if winner == 0 else MEMORY
        writer = first_choice if chunk.ids[t, winner] == token else CORRECTION
        order = np.argsort(-chunk.probabilities[t], kind="stable")[:_ALTERNATIVES]
        others = tuple(
            (tokenizer.decode(chunk.ids[t, k : k + 1].astype(np.int64)), float(chunk.probabilities[t, k]))
            for k in order
            if chunk.ids[t, k] >= 0
        )
        data = tokenizer.decode(tokens[t : t + 1])
        yield TokenInfo(data, -math.log2(max(float(chunk.probability[t]), 2.0**-60)), writer, others, number)
