"""A document as spans: text for the LM, as tokens, and bytes that are stored.

It is read in blocks, each of which is split separately, so that large documents do not need more memory.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import zstandard

from memcodec.document.source import Source
from memcodec.models.tokenizer import ByteTokenizer

BLOCK_BYTES = 1 << 20  # tokenized at one time

PIECE_CHARACTERS = 1 << 16  # text is tokenized in pieces of this size, to limit the tokenizer's memory
MIN_TEXT_BYTES = 160  # shorter text between stored bytes is stored with them, because a span costs about 20 bytes
MAX_ZSTD_RATIO = 20  # text that zstd compresses by a larger factor is stored: the LM needs at least 5 bytes per chunk
MAX_LOSS = 0.1  # a block is binary if more than this share of its bytes is not UTF-8
MAX_CONTROLS = 0.05  # a block is binary if more than this share of its characters occurs in binary data only

ALWAYS_TRIED = 400  # tokens: so short a message goes to the LM, whatever it is
DENSE_TOKENS = 1024  # a longer message must have LEAST_BYTES a token on average, or it would cost more than prose does
LEAST_BYTES = 4 / 3  # Chinese has 1.5, Russian 2.3, English 4; digits, hexadecimal and NUL have 1, base64 1.2

_LONE = re.compile("[\ud800-\udfff]+")  # bytes that are not UTF-8, as "surrogateescape" represents them
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x1b\b")) + b"\x7f"


def cut_blocks(source: Source) -> Iterator[bytes]:
    """The document in pieces of about BLOCK_BYTES, cut after a line feed or, if lines are long, after a character."""
    at = 0
    while at < source.size:
        block = source.read(at, min(at + BLOCK_BYTES, source.size))
        if at + len(block) < source.size:
            line = block.rfind(b"\n", len(block) - _LINE) + 1
            block = block[: line or _whole_characters(block)]
        yield block
        at += len(block)


_LINE = 1 << 12


def _whole_characters(block: bytes) -> int:
    """The number of bytes of a block without those of an incomplete character at its end."""
    for back in range(1, 4):
        if block[-back] & 0xC0 != 0x80:  # the first byte of a character
            length = 2 + (block[-back] >= 0xE0) + (block[-back] >= 0xF0) if block[-back] >= 0xC0 else 1
            return len(block) - back if length > back else len(block)
    return len(block)


@dataclass(frozen=True)
class Text:
    """Token ids, int64 [tokens], whose bytes are exactly those of the span."""

    tokens: np.ndarray


@dataclass(frozen=True)
class Stored:
    """Bytes that are not encoded with the LM."""

    data: bytes

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.data)


Span = Text | Stored


def zstd_size(data: bytes, level: int = 19) -> int:
    """The size of a zstd frame of the data, in bytes."""
    return len(zstandard.ZstdCompressor(level=level).compress(data))


def has_text(source: Source) -> bool:
    """Whether a document has text for the LM. Needs no tokenizer."""
    return any(isinstance(part, str) for block in cut_blocks(source) for part in find_text(block))


def find_text(data: bytes) -> list[str | bytes]:
    """The runs of text of a block (str) and the bytes between them, in order. Needs no tokenizer."""
    return list(_find_text(data))


def is_worthwhile(message: bytes, tokens: int) -> bool:
    """Whether the LM encodes a message without a container that has this number of tokens.

    Not if it is long and contains bytes that are not text, or has many tokens for its length.
    """
    if tokens <= ALWAYS_TRIED:
        return True
    if tokens > DENSE_TOKENS and len(message) < LEAST_BYTES * tokens:
        return False
    return all(isinstance(part, str) for part in find_text(message))


def spans_of(data: bytes, tokenizer: ByteTokenizer) -> list[Span]:
    """The spans of a block, in order, text and stored in turn. Their bytes are exactly `data`."""
    return tokenize(find_text(data), tokenizer)


def tokenize(found: list[str | bytes], tokenizer: ByteTokenizer) -> list[Span]:
    """The spans of what `find_text` returned."""
    texts = [part for part in found if isinstance(part, str)]
    tokens = tokenizer.encode_each(texts)
    encoded = zip(texts, tokens, tokenizer.decode_each(tokens), strict=True)
    spans: list[Span] = []
    for part in found:
        spans += [Stored(part)] if isinstance(part, bytes) else _exact_spans(*next(encoded), tokenizer)
    return _joined(spans, tokenizer)


def _find_text(data: bytes) -> Iterator[str | bytes]:
    """The runs of text that are long enough, and the bytes between them, in order."""
    if _is_binary(data):
        yield data
        return
    text = data.decode("utf-8", "surrogateescape")
    at = 0  # characters done
    place = kept = 0  # bytes scanned, and bytes yielded
    for match in chain(_LONE.finditer(text), [None]):
        start, end = match.span() if match else (len(text), len(text))
        for first in range(at, start, PIECE_CHARACTERS):
            piece = text[first : min(first + PIECE_CHARACTERS, start)]
            encoded = piece.encode()
            alone = match is None and at == 0
            if (alone or first > at or len(encoded) >= MIN_TEXT_BYTES) and not _is_repetition(encoded):
                if kept < place:
                    yield data[kept:place]
                yield piece
                kept = place + len(encoded)
            place += len(encoded)
        place += end - start  # a lone surrogate is a byte
        at = end
    if kept < place:
        yield data[kept:place]


def _is_binary(data: bytes) -> bool:
    controls = len(data) - len(data.translate(None, _CONTROLS))
    lost = len(data) - len(data.decode("utf-8", "ignore").encode())
    return controls > MAX_CONTROLS * len(data) or lost > MAX_LOSS * len(data)


def _is_repetition(data: bytes) -> bool:
    return len(data) > MAX_ZSTD_RATIO * zstd_size(data, 3)


def _exact_spans(text: str, tokens: np.ndarray, decoded: bytes, tokenizer: ByteTokenizer) -> Iterator[Span]:
    """Text as tokens, or line by line if they do not restore it, or in pieces around characters that have no tokens.

    tokens, decoded: those of the text, and their bytes.
    """
    if decoded == text.encode():
        yield Text(tokens)
        return
    lines = text.splitlines(keepends=True)
    if len(lines) > 1:
        for line in lines:
            tokens = tokenizer.encode(line)
            yield from _exact_spans(line, tokens, tokenizer.decode(tokens), tokenizer)
        return
    missing = {c for c in set(text) if not tokenizer.missing_bytes.isdisjoint(c.encode())}
    pieces = re.split("([" + re.escape("".join(sorted(missing))) + "]+)", text) if missing else [text]
    for i, piece in enumerate(pieces):
        tokens = tokenizer.encode(piece)
        if i % 2 == 0 and tokenizer.decode(tokens) == piece.encode():
            yield Text(tokens)
        else:
            yield Stored(piece.encode())


def _joined(spans: list[Span], tokenizer: ByteTokenizer) -> list[Span]:
    """Adjacent spans of one kind joined into one, and short text beside stored bytes stored with them."""
    groups = _grouped(spans)
    if len(groups) > 1:
        sizes = iter(tokenizer.sizes([span.tokens for span in groups if isinstance(span, Text)]))
        groups = _grouped(
            Stored(tokenizer.decode(span.tokens)) if isinstance(span, Text) and next(sizes) < MIN_TEXT_BYTES else span
            for span in groups
        )
    return groups


def _grouped(spans: Iterator[Span] | list[Span]) -> list[Span]:
    groups: list[list[Span]] = []
    for span in spans:
        if (isinstance(span, Text) and not len(span.tokens)) or (isinstance(span, Stored) and not span.data):
            continue
        if groups and isinstance(span, type(groups[-1][0])):
            groups[-1].append(span)
        else:
            groups.append([span])
    result: list[Span] = []
    for group in groups:
        if isinstance(group[0], Text):
            result.append(Text(np.concatenate([span.tokens for span in group if isinstance(span, Text)])))
        else:
            result.append(Stored(b"".join(span.data for span in group if isinstance(span, Stored))))
    return result
