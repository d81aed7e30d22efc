"""Reading a container (spec/FORMAT.md, "Container"). Checks every length before it is used, and copies little."""

import json
import struct
import zlib
from collections import deque
from dataclasses import dataclass, replace
from typing import NoReturn

from memcodec.container.layout import (
    HASH_BYTES,
    IDENTITY_BYTES,
    LEAST_REFERENCE,
    LEAST_SPAN,
    MAX_CHUNKS,
    MAX_FIELDS,
    MAX_HEADER,
    MAX_SPANS,
    PRIMED,
    PRIMER_BYTES,
    RAW,
    SITES,
    START,
    VERSION,
    ZSTD,
    Chunk,
    Container,
    ModelId,
    Part,
    Segment,
    Settings,
    StoredSpan,
)
from memcodec.container.numbers import Reader
from memcodec.document.lengths import chunk_lengths
from memcodec.document.references import MAX_REFERENCES, Reference
from memcodec.errors import ChecksumError, FormatError, TruncatedError
from memcodec.settings import MAX_CHUNK_TOKENS, MAX_CONTEXT


def check_start(start: bytes) -> None:
    """Raise FormatError if these first START bytes are not those of a memcodec file."""
    if len(start) < 8:
        raise FormatError("not a memcodec file: shorter than a header")
    (length,) = struct.unpack("<Q", start[:8])
    if start[8:9] != b"{" or length > MAX_HEADER:
        raise FormatError("not a memcodec file")
    if len(start) >= 8 + min(length, START - 8):
        head = start[8 : 8 + length]
        if b'"memcodec"' in head:
            return
        if b'"v":"1"' in head and b'"i":{' in head:
            raise FormatError(older("1"))
        raise FormatError("not a memcodec file: another kind of safetensors file")


def older(version: str) -> str:
    """The message about a file of an older version of the format, which memcodec 0.VERSION wrote."""
    return (
        f"format {version} (memcodec 0.{version}) is not supported: "
        f"decompress it with memcodec 0.{version} and compress it again"
    )


def is_archive(blob: bytes | memoryview) -> bool:
    """Whether a file begins like an archive (`memcodec.files.archive`)."""
    start = bytes(blob[:START])
    length = int.from_bytes(start[:8], "little")
    return b'"memcodec":"archive ' in start[8 : 8 + min(length, START)]


def unpack_all(blob: bytes | memoryview) -> list[Container]:
    """The containers of concatenated files, at least one.

    Raises FormatError, also if other bytes follow that are not a memcodec file; ChecksumError.
    """
    view = memoryview(blob)
    files = []
    while True:
        length = _first_length(view)
        files.append(unpack(view[:length]))
        if length == len(view):
            return files
        view = view[length:]
        try:
            check_start(bytes(view[:START]))
        except FormatError as error:
            raise FormatError(f"{len(view):,} trailing bytes after the end of the file: remove them") from error


def members_of(blob: bytes | memoryview) -> tuple[list[memoryview], int]:
    """The concatenated files in some bytes, by the lengths in their headers, and how many bytes follow that are none.

    For `salvage`: nothing but the starts and the lengths is read. Raises FormatError if even the first start is wrong.
    """
    view = memoryview(blob)
    members: list[memoryview] = []
    while len(view):
        try:
            length = _first_length(view)
        except FormatError:
            if not members:
                raise
            return members, len(view)
        members.append(view[:length])
        view = view[length:]
    return members, 0


def _first_length(view: memoryview) -> int:
    """Length of the first of concatenated files; that of all bytes if its header is not valid."""
    check_start(bytes(view[:START]))
    (length,) = struct.unpack("<Q", view[:8])
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = max(ends)
        within = type(end) is int and 0 < end < len(view) - 8 - length
        return 8 + length + end if within else len(view)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
        return len(view)


def unpack(blob: bytes | memoryview, damaged: bool = False) -> Container:
    """Read a container, checking every length, and every checksum that needs no model.

    damaged: for `salvage`: ignore checksums, and accept a file that is cut after its index. Raises FormatError (not a
    memcodec file, truncated, newer) or ChecksumError (damaged).
    """
    view = memoryview(blob)
    check_start(bytes(view[:START]))
    if is_archive(view):
        raise FormatError(
            "this file is an archive of many documents: read it with memcodec unpack, or memcodec.Archive"
        )
    metadata, tensors, header_size, ends = read_tensors(view, ("memories", "document"), damaged)
    version = metadata.get("memcodec", "")
    if version == "2":
        raise FormatError(older(version))
    if version != str(VERSION):
        raise FormatError(f"format version {version[:20]!r} is not supported: install a newer memcodec")
    document, memories = tensors.get("document", memoryview(b"")), tensors.get("memories")
    if len(document) < 4:
        raise FormatError("damaged file: it has no index")
    if not damaged and zlib.crc32(view[:-4]) != struct.unpack("<I", view[-4:])[0]:
        raise ChecksumError("damaged file: its checksum does not match")
    cut = damaged and len(view) < header_size + ends
    reader = Reader(document if cut else document[:-4], "document", damaged)
    apart = Reader(memories, "memories", damaged) if memories is not None else None
    found = _read_index(reader, apart, metadata.get("model"))
    parts = found.parts
    stored = sum(len(part.packed) for part in parts if isinstance(part, StoredSpan))
    corrections = sum(len(part.corrections or b"") for part in parts if isinstance(part, Segment))
    memory = sum(len(chunk.memory) for part in parts if isinstance(part, Segment) for chunk in part.chunks)
    sizes = {
        "header": header_size,
        "index": len(document) - stored - corrections - (memory if apart is None else 0),
        "memories": memory,
        "corrections": corrections,
        "stored": stored,
    }
    return replace(found, sizes={name: n for name, n in sizes.items() if n})


def read_tensors(
    view: memoryview, names: tuple[str, ...], damaged: bool = False
) -> tuple[dict[str, str], dict[str, memoryview], int, int]:
    """The parts of a safetensors file: metadata, tensors by name, bytes of the header, bytes of all tensors.

    names: the tensors that may be there, in this order, each of dtype U8. damaged: the end may be missing, or bytes may
    follow it. Raises FormatError for other tensors, gaps, and bytes outside the tensors.
    """
    (length,) = struct.unpack("<Q", view[:8])
    if len(view) < 8 + length:
        raise FormatError("truncated file: the header is cut")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
        metadata = header.pop("__metadata__")
        entries = {name: (entry["dtype"], entry["shape"], entry["data_offsets"]) for name, entry in header.items()}
        ends = [offsets[1] for _, _, offsets in entries.values()]
        if not all(type(end) is int and 0 <= end < 1 << 62 for end in ends):
            raise TypeError
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise FormatError("not a memcodec file: its header cannot be read") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("not a memcodec file: it has no metadata")
    base, end = 8 + length, max(ends, default=0)
    if len(view) < base + end and not damaged:
        raise TruncatedError(f"truncated file: {len(view)} of {base + end} bytes")
    if unknown := [name for name in entries if name not in names]:
        raise FormatError(f"unknown tensor {unknown[0][:40]!r}: install a newer memcodec")
    tensors, at = {}, 0
    for name in names:
        if name in entries:
            start = at
            dtype, shape, offsets = entries[name]
            if dtype != "U8" or offsets[0] != at or shape != [offsets[1] - at] or offsets[1] < at:
                raise FormatError(f"damaged header: the tensor {name} is not where it should be")
            at = offsets[1]
            tensors[name] = view[base + start : base + at]
    if base + at != len(view) and not damaged:
        _refuse_rest(view[base + at :])
    return metadata, tensors, base, at


def _refuse_rest(rest: memoryview) -> NoReturn:
    """Raise the FormatError about bytes after a file, which may be another file."""
    try:
        check_start(bytes(rest[:START]))
    except FormatError:
        raise FormatError("damaged header: the file is longer than it says") from None
    raise FormatError(f"another memcodec file follows, of {len(rest):,} bytes: give each file by itself")


def _read_index(reader: "Reader", apart: "Reader | None", model_name: str | None) -> Container:
    """What a container holds, without the sizes of its parts. apart: reads the memories that are apart."""
    sha256 = bytes(reader.take(HASH_BYTES))
    size, run_count, stored_count, reference_count = (reader.varint() for _ in range(4))
    if run_count - stored_count not in (0, 1) or run_count > len(reader):
        raise FormatError("damaged index: the numbers of runs and of stored spans do not match")
    if stored_count > min(len(reader) // LEAST_SPAN, MAX_SPANS):
        raise FormatError("damaged index: more stored spans than the file has room for")
    runs = [reader.varint() for _ in range(run_count)]
    spans: deque[tuple[int, int, int, int]] = deque()
    for _ in range(stored_count):
        numbers = reader.varint(), reader.varint(), reader.take(1)[0], reader.u32()
        if numbers[2] not in (RAW, ZSTD):
            raise FormatError(f"unknown method {numbers[2]} of a stored span: install a newer memcodec")
        if not numbers[0]:
            raise FormatError("damaged index: a stored span without bytes")
        spans.append(numbers)
    references = _read_references(reader, reference_count)
    model = settings = None
    segments: list[Segment] = []
    if any(runs):
        if model_name is None:
            raise FormatError("damaged header: chunks without a model")
        model = ModelId(model_name, bytes(reader.take(IDENTITY_BYTES)))
        settings = read_settings(reader)
        columns = _read_columns(reader, runs, settings)
        source = reader if apart is None else apart
        memories = [bytes(source.payload(count)) for count in columns.memory_bytes]
    stored = []
    while spans:  # what was read of each is freed: there may be millions
        n, packed, method, checksum = spans.popleft()
        stored.append(StoredSpan(n, method, reader.payload(packed), checksum))
    if settings is not None:
        segments = _read_segments(reader, settings, columns, memories)
    carried = sum(span.size for span in stored) + sum(segment.size for segment in segments)
    if carried + sum(one.size for one in references) != size:
        raise FormatError("damaged index: lengths do not add up to the document's")
    if references and references[-1].at > carried:
        raise FormatError("damaged index: a reference after the end of the document")
    for rest in (reader, apart):
        if rest is not None:
            rest.end()
    parts: list[Part] = []
    following, spans_left = iter(segments), iter(stored)
    for run in runs:
        parts += [next(following) for _ in range(run // 2)]
        parts += [span for span in [next(spans_left, None)] if span is not None]
    return Container(size, sha256, parts, model, settings, references)


def _read_references(reader: "Reader", count: int) -> tuple[Reference, ...]:
    """The references that `pack_references` wrote: each repeats only what is carried before it. Raises FormatError."""
    if count > min(len(reader) // 3, MAX_REFERENCES):
        raise FormatError("damaged index: more references than the file has room for")
    references, at = [], 0
    for _ in range(count):
        gap, more, distance = (reader.varint() for _ in range(3))
        at, size = at + gap, LEAST_REFERENCE + more
        if size + distance > at:
            raise FormatError("damaged index: a reference to bytes that are not there")
        references.append(Reference(at, at - distance - size, size))
    return tuple(references)


def read_settings(reader: "Reader") -> Settings:
    """The settings that `pack_settings` wrote. Raises FormatError."""
    site, chunk_tokens, context, count = (reader.varint() for _ in range(4))
    primed, site = site >= PRIMED, site % PRIMED if site < 2 * PRIMED else site
    if site >= len(SITES) or count > MAX_FIELDS:
        raise FormatError("unknown site: install a newer memcodec")
    if not (1 <= chunk_tokens <= MAX_CHUNK_TOKENS and 1 <= context <= MAX_CONTEXT):
        raise FormatError("damaged index: chunk tokens or context out of range")
    fields = tuple(reader.varint() for _ in range(count))
    return Settings(SITES[site], fields, chunk_tokens, context, bytes(reader.take(PRIMER_BYTES)) if primed else b"")


@dataclass(frozen=True)
class _Columns:
    """The columns of the index. Of each segment: whether it starts a group, its tokens, its bytes of the document;
    of each group, the bytes of its corrections; of each chunk, the bytes of its memory, and its checksum."""

    starts: list[bool]
    tokens: list[int]
    sizes: list[int]
    correction_bytes: list[int]
    memory_bytes: list[int]
    checksums: memoryview


def _read_columns(reader: "Reader", runs: list[int], settings: Settings) -> _Columns:
    starts: list[bool] = []
    # Each segment has a chunk at least, whose checksum is a byte.
    if sum(run >> 1 for run in runs) > min(len(reader), MAX_CHUNKS):
        raise FormatError(_TOO_MANY)
    for run in runs:
        count, continues = run >> 1, run & 1
        if continues and not (count and starts):
            raise FormatError("damaged index: a run continues a group that does not exist")
        starts += [not continues] * min(count, 1) + [True] * (count - 1)
    tokens, sizes = reader.column(len(starts)), reader.column(len(starts))
    if any(not 1 <= count <= size for count, size in zip(tokens, sizes, strict=True)):
        raise FormatError("damaged index: a segment without tokens, or with more of them than bytes")
    count = sum(-(-n // settings.chunk_tokens) for n in tokens)
    if count > min(len(reader), MAX_CHUNKS):
        raise FormatError(_TOO_MANY)
    corrections, memories = reader.column(sum(starts)), reader.column(count)
    return _Columns(starts, tokens, sizes, corrections, memories, reader.take(count))


_TOO_MANY = "damaged index: more chunks than the file has room for"


def _read_segments(reader: "Reader", settings: Settings, columns: _Columns, memories: list[bytes]) -> list[Segment]:
    segments, number = [], 0
    following = iter(columns.correction_bytes)
    for start, total, size in zip(columns.starts, columns.tokens, columns.sizes, strict=True):
        chunks = []
        for n in chunk_lengths(total, settings.chunk_tokens):
            chunks.append(Chunk(n, memories[number], columns.checksums[number]))
            number += 1
        corrections = bytes(reader.payload(next(following))) if start else None
        segments.append(Segment(size, tuple(chunks), corrections))
    return segments
