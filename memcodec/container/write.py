"""Writing a container (spec/FORMAT.md, "Container")."""

import json
import struct
import zlib
from collections.abc import Iterable

from memcodec.container.layout import (
    LEAST_REFERENCE,
    MAX_CHUNKS,
    MAX_SPANS,
    MEMORIES_APART,
    PRIMED,
    SITES,
    VERSION,
    Container,
    ModelId,
    Part,
    Segment,
    Settings,
    StoredSpan,
)
from memcodec.container.numbers import pack_column, varint
from memcodec.document.references import MAX_REFERENCES, Reference
from memcodec.errors import EncodeError


def describe(
    size: int, sha256: bytes, parts: list[Part], model: ModelId | None = None, settings: Settings | None = None,
    references: Iterable[Reference] = (),
) -> Container:  # fmt: skip
    """The container of a document; without model and settings if no part needs them. sha256: its first HASH_BYTES."""
    if not any(isinstance(part, Segment) for part in parts):
        model = settings = None
    return Container(size, sha256, parts, model, settings, tuple(references))


def pack(container: Container) -> bytes:
    """The bytes of a container. Raises EncodeError for more chunks, spans or references than a reader accepts."""
    if sum(len(segment.chunks) for segment in container.segments) > MAX_CHUNKS:
        raise EncodeError(f"more than {MAX_CHUNKS:,} chunks: give longer ones (chunk tokens), or a part of the text")
    if len(container.references) > MAX_REFERENCES:
        raise EncodeError(f"more than {MAX_REFERENCES:,} references: encode without them (--no-references)")
    memories = b"".join(chunk.memory for chunk in container.chunks)
    stored = [part for part in container.parts if isinstance(part, StoredSpan)]
    if len(stored) > MAX_SPANS:
        raise EncodeError(f"more than {MAX_SPANS:,} stretches of bytes that are not text: compress a part of the file")
    apart = len(memories) >= MEMORIES_APART
    pieces = [_pack_index(container), b"" if apart else memories, *(span.packed for span in stored)]
    pieces += [segment.corrections for segment in container.segments if segment.corrections is not None]
    length = sum(map(len, pieces)) + 4
    metadata = {"memcodec": str(VERSION)} | ({"model": container.model.name} if container.model else {})
    header: dict[str, object] = {"__metadata__": metadata}
    first = memories if apart else b""
    if first:
        header["memories"] = _entry(0, len(first))
    header["document"] = _entry(len(first), len(first) + length)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    pieces = [struct.pack("<Q", len(text)), text, first, *pieces]
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return b"".join([*pieces, struct.pack("<I", checksum)])


def _entry(start: int, end: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


def _pack_index(container: Container) -> bytes:
    runs: list[list[Segment]] = [[]]
    stored = []
    for part in container.parts:
        if isinstance(part, Segment):
            runs[-1].append(part)
        else:
            stored.append(part)
            runs.append([])
    if not runs[-1]:
        runs.pop()
    out = bytearray(container.sha256)
    for number in (container.size, len(runs), len(stored), len(container.references)):
        out += varint(number)
    for run in runs:
        out += varint(2 * len(run) + (run[:1] != [] and run[0].corrections is None))
    for span in stored:
        out += varint(span.size) + varint(len(span.packed)) + bytes([span.method]) + struct.pack("<I", span.checksum)
    out += pack_references(container.references)
    if container.model is not None and container.settings is not None:
        settings, segments, chunks = container.settings, container.segments, container.chunks
        out += container.model.identity
        out += pack_settings(settings)
        for column in (
            [segment.tokens for segment in segments],
            [segment.size for segment in segments],
            [len(segment.corrections) for segment in segments if segment.corrections is not None],
            [len(chunk.memory) for chunk in chunks],
        ):
            out += pack_column(column)
        out += bytes(chunk.checksum for chunk in chunks)
    return bytes(out)


def pack_references(references: Iterable[Reference]) -> bytes:
    """References of at least LEAST_REFERENCE bytes as bytes of an index."""
    out, at = bytearray(), 0
    for one in references:
        out += varint(one.at - at) + varint(one.size - LEAST_REFERENCE) + varint(one.at - one.start - one.size)
        at = one.at
    return bytes(out)


def pack_settings(settings: Settings) -> bytes:
    """The settings as bytes of an index."""
    site = SITES.index(settings.site) + (PRIMED if settings.primer else 0)
    numbers = (site, settings.chunk_tokens, settings.context, len(settings.fields), *settings.fields)
    return b"".join(map(varint, numbers)) + settings.primer
