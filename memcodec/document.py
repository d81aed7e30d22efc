"""A document as spans: tokenized text that the LM will carry, and bytes that are stored."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from memcodec.tokens import ByteTokenizer

ZSTD_LEVEL = 19
PIECE_CHARACTERS = 1 << 16  # text is tokenized in pieces of this size, to bound the tokenizer's memory
MIN_TEXT_BYTES = 160  # text shorter than this between stored bytes is stored with them: a span costs ~20 bytes
MAX_ZSTD_RATIO = 20  # zstd does better than this: the LM, at 5 bytes a chunk and more, could not
MAX_LOSS = 0.1  # share of bytes that are not UTF-8, above which a document is binary


@dataclass(frozen=True)
class Text:
    """Token ids, int64 [tokens], that restore the span's bytes exactly."""

    tokens: np.ndarray


@dataclass(frozen=True)
class Stored:
    """Bytes that no LM carries."""

    data: bytes


Span = Text | Stored


def zstd_size(data: bytes) -> int:
    """Bytes of a zstd -19 frame of the data."""
    return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data))


def split(data: bytes, tokenizer: ByteTokenizer) -> list[Span]:
    """Split a document into spans, in order; neighbours are of different kinds. Restores to `data` exactly."""
    spans: list[Span] = []
    for part in _parts(data, tokenizer):
        if isinstance(part, bytes):
            _append(spans, Stored(part))
            continue
        for start in range(0, len(part), PIECE_CHARACTERS):
            for span in _tokenize(part[start : start + PIECE_CHARACTERS], tokenizer):
                _append(spans, span)
    return _absorb_short_text(spans, tokenizer)


def _parts(data: bytes, tokenizer: ByteTokenizer) -> Iterator[str | bytes]:
    """Runs of text that the tokenizer has bytes for, and what is between them."""
    if len(data) - len(data.decode("utf-8", "ignore").encode()) > MAX_LOSS * len(data):
        yield data
        return
    text = data.decode("utf-8", "surrogateescape")
    lone = {c for c in set(text) if "\ud800" <= c <= "\udfff"}
    unknown = {c for c in set(text) - lone if not tokenizer.missing_bytes.isdisjoint(c.encode())}
    if not lone and not unknown:
        if text:
            yield text
        return
    bad = re.compile("([" + re.escape("".join(sorted(lone | unknown))) + "]+)")
    for i, part in enumerate(bad.split(text)):
        if part:
            yield part.encode("utf-8", "surrogateescape") if i % 2 else part


def _tokenize(text: str, tokenizer: ByteTokenizer) -> Iterator[Span]:
    """One piece of text as tokens where they restore it, by lines where they do not, else as stored bytes."""
    data = text.encode()
    if len(data) > MAX_ZSTD_RATIO * zstd_size(data):
        yield Stored(data)
        return
    tokens = tokenizer.encode(text)
    if tokenizer.decode(tokens) == data:
        yield Text(tokens)
        return
    for line in text.splitlines(keepends=True):
        tokens = tokenizer.encode(line)
        yield Text(tokens) if tokenizer.decode(tokens) == line.encode() else Stored(line.encode())


def _append(spans: list[Span], span: Span) -> None:
    """Append a span, joined to the last one if that is of the same kind."""
    last = spans[-1] if spans else None
    if isinstance(last, Text) and isinstance(span, Text):
        spans[-1] = Text(np.concatenate([last.tokens, span.tokens]))
    elif isinstance(last, Stored) and isinstance(span, Stored):
        spans[-1] = Stored(last.data + span.data)
    else:
        spans.append(span)


def _absorb_short_text(spans: list[Span], tokenizer: ByteTokenizer) -> list[Span]:
    """Store short text beside stored bytes."""
    if len(spans) < 2:
        return spans
    result: list[Span] = []
    for span in spans:
        if isinstance(span, Text) and len(data := tokenizer.decode(span.tokens)) < MIN_TEXT_BYTES:
            span = Stored(data)
        _append(result, span)
    return result
