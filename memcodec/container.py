"""The container: a safetensors file of two byte tensors (spec/FORMAT.md, "Container").

`memories` are the chunks' memories; `document` has the index, the stored spans and the corrections, and the memories
where they are too few for a tensor of their own. Knows bytes and lengths, nothing of models. `pack` and `unpack` are
inverses; `unpack` trusts nothing that it reads, and copies little.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import zstandard

from memcodec.errors import ChecksumError, EncodeError, FormatError

VERSION = 2
MAX_HEADER = 1 << 16
MAX_CHUNK_TOKENS = 4096
DEFAULT_CHUNK_TOKENS = 200
MAX_CONTEXT = 1 << 15  # tokens before a position that the LM may see: what a reader keeps of them is bounded so
HASH_BYTES = 16  # of the document's SHA-256
IDENTITY_BYTES = 8  # of the LM's
PRIMER_BYTES = 8  # of the primer's hash
MAX_FIELDS = 8  # numbers that a site may have in the header
MAX_CHUNKS = 1 << 21  # in one file: what a reader keeps of each is a few hundred bytes
START = 512  # bytes that tell whether a file is one of ours
MEMORIES_APART = 256  # bytes of memories from which on they are a tensor of their own: its entry costs 61

_ZSTD_LEVEL, _ZSTD_FAST_LEVEL = 19, 12
_ZSTD_LARGE = 1 << 24  # bytes from which on the best level would take a quarter of a minute
_ZSTD_WINDOW = 27  # bits, at most, of what a reader must hold
_RAW, _ZSTD = 0, 1  # methods of stored spans


@dataclass(frozen=True)
class ModelId:
    """Which LM a file needs: its name, and the first bytes of its identity."""

    name: str
    identity: bytes


@dataclass(frozen=True)
class Settings:
    """What a decoder must know of the encoder's choices: the site, its own numbers, and how far the LM looks back.

    primer: the first bytes of its hash, where every group sees one.
    """

    site: str
    fields: tuple[int, ...]
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    context: int = DEFAULT_CHUNK_TOKENS
    primer: bytes = b""


@dataclass(frozen=True)
class Chunk:
    """One chunk: its tokens, their packed memory, and 8 bits of its bytes' CRC-32."""

    tokens: int
    memory: bytes
    checksum: int


@dataclass(frozen=True)
class Segment:
    """Consecutive chunks of one group, that nothing stored comes between. size: bytes of the document.

    corrections: of the whole group, at its first segment; None at those that go on with it.
    """

    size: int
    chunks: tuple[Chunk, ...]
    corrections: bytes | None

    @property
    def tokens(self) -> int:
        """Of all its chunks."""
        return sum(chunk.tokens for chunk in self.chunks)


@dataclass(frozen=True)
class Group:
    """Chunks each of which sees those before it, and their corrections, which are one stream."""

    chunks: tuple[Chunk, ...]
    corrections: bytes


@dataclass(frozen=True)
class StoredSpan:
    """Bytes of the document that no LM carries: raw, or as one zstd frame. Each can be read by itself."""

    size: int
    method: int
    packed: bytes | memoryview
    checksum: int

    @classmethod
    def of(cls, data: bytes) -> "StoredSpan":
        """Store some bytes, as small as zstd makes them."""
        return cls.of_pieces(lambda: [data], len(data))

    @classmethod
    def of_pieces(cls, pieces: Callable[[], Iterable[bytes]], size: int) -> "StoredSpan":
        """The same for so many bytes in pieces, which are asked for up to three times."""
        method, packed = compress(pieces, size)
        checksum = 0
        for piece in pieces():
            checksum = zlib.crc32(piece, checksum)
        return cls(size, method, packed, checksum)

    def pieces(self) -> Iterator[bytes]:
        """The bytes, in pieces. Raises FormatError or ChecksumError, at their end where nothing is wrong before."""
        size = checksum = 0
        for piece in _slices(self.packed) if self.method == _RAW else _expand(self.packed, self.size):
            size += len(piece)
            if size > self.size:
                break
            checksum = zlib.crc32(piece, checksum)
            yield piece
        if size != self.size:
            raise FormatError("damaged stored span: not the length that the index says")
        if checksum != self.checksum:
            raise ChecksumError("damaged file: a stored span does not match its checksum")

    def read(self) -> bytes:
        """The bytes. Raises FormatError or ChecksumError; memory follows what is really there."""
        return b"".join(self.pieces())


Part = Segment | StoredSpan


@dataclass(frozen=True)
class Container:
    """A whole file, unpacked. parts: segments and stored spans in the order of the document; sizes: bytes by part."""

    size: int
    sha256: bytes
    parts: list[Part]
    model: ModelId | None = None
    settings: Settings | None = None
    sizes: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def segments(self) -> list[Segment]:
        """Without the stored spans."""
        return [part for part in self.parts if isinstance(part, Segment)]

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks, in order."""
        return [chunk for segment in self.segments for chunk in segment.chunks]

    @property
    def groups(self) -> list[Group]:
        """The same, in their groups."""
        found: list[tuple[list[Chunk], bytes]] = []
        for segment in self.segments:
            if segment.corrections is not None:
                found.append(([], segment.corrections))
            found[-1][0].extend(segment.chunks)
        return [Group(tuple(chunks), corrections) for chunks, corrections in found]


def chunk_checksum(data: bytes) -> int:
    """What a file keeps of a chunk's CRC-32: the lowest 8 bits."""
    return zlib.crc32(data) & 0xFF


def lengths(tokens: int, chunk_tokens: int) -> list[int]:
    """Tokens of each chunk of a run or segment: the fewest chunks, as even as can be, the longer ones first."""
    count = -(-tokens // chunk_tokens)
    return [tokens // count + (i < tokens % count) for i in range(count)]


def compress(pieces: Callable[[], Iterable[bytes]], size: int) -> tuple[int, bytes]:
    """Method and bytes of a stored span: zstd -19 (-12 from 16 MiB on), or raw where that is no smaller.

    pieces: gives the span's `size` bytes, piece by piece, as often as it is asked.
    """
    large = size >= _ZSTD_LARGE
    if size >= 1 << 18:  # a quick look, far back too: -19 would look for seconds at what has nothing to find
        quick = zstandard.ZstdCompressionParameters.from_level(1, window_log=_ZSTD_WINDOW, enable_ldm=True)
        if sum(map(len, _frame(zstandard.ZstdCompressor(compression_params=quick), pieces, size))) > 0.995 * size:
            return _RAW, b"".join(pieces())
    level, threads = (_ZSTD_FAST_LEVEL, -1) if large else (_ZSTD_LEVEL, 0)
    compressor = zstandard.ZstdCompressor(level=level, threads=threads, write_content_size=False)
    frame = b"".join(_frame(compressor, pieces, size))
    return (_ZSTD, frame) if len(frame) < size else (_RAW, b"".join(pieces()))


def _frame(compressor: zstandard.ZstdCompressor, pieces: Callable[[], Iterable[bytes]], size: int) -> Iterator[bytes]:
    stream = compressor.compressobj(size=size)
    for piece in pieces():
        yield stream.compress(piece)
    yield stream.flush()


_PIECE = 1 << 20


def _slices(data: bytes | memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), _PIECE):
        yield bytes(data[start : start + _PIECE])


def _expand(frame: bytes | memoryview, expected: int) -> Iterator[bytes]:
    total = 0
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW).stream_reader(frame)
        while piece := reader.read(min(_PIECE, expected + 1 - total)):  # never more than one byte too many
            yield piece
            total += len(piece)
    except zstandard.ZstdError as error:
        raise FormatError("damaged stored span: zstd does not read it") from error


# ---- writing


def describe(
    size: int, sha256: bytes, parts: list[Part], model: ModelId | None = None, settings: Settings | None = None
) -> Container:
    """The container of a document; the model is left out where no chunk needs it. sha256: the bytes that are kept."""
    if not any(isinstance(part, Segment) for part in parts):
        model = settings = None
    return Container(size, sha256, parts, model, settings)


def pack(container: Container) -> bytes:
    """Write a container. Raises EncodeError for more chunks than a reader takes."""
    if sum(len(segment.chunks) for segment in container.segments) > MAX_CHUNKS:
        raise EncodeError(f"more than {MAX_CHUNKS:,} chunks: give longer ones (chunk tokens), or a part of the text")
    memories = b"".join(chunk.memory for chunk in container.chunks)
    stored = [part for part in container.parts if isinstance(part, StoredSpan)]
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
    for number in (container.size, len(runs), len(stored)):
        out += varint(number)
    for run in runs:
        out += varint(2 * len(run) + (run[:1] != [] and run[0].corrections is None))
    for span in stored:
        out += varint(span.size) + varint(len(span.packed)) + bytes([span.method]) + struct.pack("<I", span.checksum)
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


SITES = ("readout", "prompt")  # by their numbers in the index
_PRIMER = 2  # added to them where there is a primer


def pack_settings(settings: Settings) -> bytes:
    """Settings as an index has them."""
    site = SITES.index(settings.site) + (_PRIMER if settings.primer else 0)
    numbers = (site, settings.chunk_tokens, settings.context, len(settings.fields), *settings.fields)
    return b"".join(map(varint, numbers)) + settings.primer


def pack_column(values: Sequence[int]) -> bytes:
    """Numbers that are of one size: the least, the bits of what they have above it, and that, packed."""
    least = min(values)
    width = (max(values) - least).bit_length()
    out = varint(least) + bytes([width])
    for start in range(0, len(values), _GROUP):
        group = values[start : start + _GROUP]
        packed = sum((value - least) << (i * width) for i, value in enumerate(group))
        out += packed.to_bytes((len(group) * width + 7) // 8, "little")
    return out


_GROUP = 64  # numbers of a column that are packed together: whole bytes, whatever the width


# ---- reading


def check_start(start: bytes) -> None:
    """Refuse what no memcodec file begins like, from its first START bytes. Raises FormatError."""
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
            raise FormatError("format version 1 is not read: it was never released; encode the original again")
        raise FormatError("not a memcodec file: a safetensors file of something else")


def is_archive(blob: bytes | memoryview) -> bool:
    """Whether a file begins like an archive (`memcodec.archive`)."""
    start = bytes(blob[:START])
    length = int.from_bytes(start[:8], "little")
    return b'"memcodec":"archive ' in start[8 : 8 + min(length, START)]


def unpack_all(blob: bytes | memoryview) -> list[Container]:
    """The containers of files that stand one behind the other, at least one.

    Raises FormatError, also for bytes behind the last that begin no other; ChecksumError.
    """
    view = memoryview(blob)
    found = []
    while True:
        length = _length(view)
        found.append(unpack(view[:length]))
        if length == len(view):
            return found
        view = view[length:]
        try:
            check_start(bytes(view[:START]))
        except FormatError as error:
            raise FormatError(f"{len(view):,} trailing bytes behind the end of the file: cut them off") from error


def _length(view: memoryview) -> int:
    """Of the first file of some; all there is where it says nothing that can be."""
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

    damaged: do with what is there, as far as the index reads, for `salvage`. Raises FormatError (not a memcodec file,
    truncated, newer) or ChecksumError (damaged).
    """
    view = memoryview(blob)
    check_start(bytes(view[:START]))
    if is_archive(view):
        raise FormatError("an archive of many documents: read it with memcodec unpack, or memcodec.Archive")
    metadata, tensors, header_size, ends = read_tensors(view, ("memories", "document"), damaged)
    version = metadata.get("memcodec", "")
    if version != str(VERSION):
        raise FormatError(f"format version {version[:20]!r} is not known to this memcodec: install a newer one")
    document, memories = tensors.get("document", memoryview(b"")), tensors.get("memories")
    if len(document) < 4:
        raise FormatError("damaged file: it has no index")
    if not damaged and zlib.crc32(view[:-4]) != struct.unpack("<I", view[-4:])[0]:
        raise ChecksumError("damaged file: its checksum does not match")
    cut = damaged and len(view) < header_size + ends
    reader = Reader(document if cut else document[:-4], "document", damaged)
    apart = Reader(memories, "memories", damaged) if memories is not None else None
    size, sha256, parts, model, settings = _read_index(reader, apart, metadata.get("model"))
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
    return Container(size, sha256, parts, model, settings, {name: n for name, n in sizes.items() if n})


def read_tensors(
    view: memoryview, names: tuple[str, ...], damaged: bool = False
) -> tuple[dict[str, str], dict[str, memoryview], int, int]:
    """Metadata, byte tensors of these names, in this order, those that there are, the bytes before them, and theirs.

    damaged: the end may be missing, or followed by something. Raises FormatError where there are others, or anything
    beside them.
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
        raise FormatError("not a memcodec file: its header does not read") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("not a memcodec file: it has no metadata")
    base, end = 8 + length, max(ends, default=0)
    if len(view) < base + end and not damaged:
        raise FormatError(f"truncated file: {len(view)} of {base + end} bytes")
    if unknown := [name for name in entries if name not in names]:
        raise FormatError(f"unknown tensor {unknown[0][:40]!r}: install a newer memcodec")
    tensors, at = {}, 0
    for name in names:
        if name in entries:
            start = at
            dtype, shape, offsets = entries[name]
            if dtype != "U8" or offsets[0] != at or shape != [offsets[1] - at] or offsets[1] < at:
                raise FormatError(f"damaged header: the tensor {name} is not where it must be")
            at = offsets[1]
            tensors[name] = view[base + start : base + at]
    if base + at != len(view) and not damaged:
        raise FormatError("damaged header: it does not cover the file")
    return metadata, tensors, base, at


def _read_index(
    reader: "Reader", apart: "Reader | None", model_name: str | None
) -> tuple[int, bytes, list[Part], ModelId | None, Settings | None]:
    sha256 = bytes(reader.take(HASH_BYTES))
    size, run_count, stored_count = (reader.varint() for _ in range(3))
    if run_count - stored_count not in (0, 1) or run_count > len(reader):
        raise FormatError("damaged index: runs and stored spans do not go together")
    runs = [reader.varint() for _ in range(run_count)]
    spans = []
    for _ in range(stored_count):
        numbers = reader.varint(), reader.varint(), reader.take(1)[0], reader.u32()
        if numbers[2] not in (_RAW, _ZSTD):
            raise FormatError(f"unknown method {numbers[2]} of a stored span: install a newer memcodec")
        spans.append(numbers)
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
    stored = [StoredSpan(n, method, reader.payload(packed), checksum) for n, packed, method, checksum in spans]
    if settings is not None:
        segments = _read_segments(reader, settings, columns, memories)
    if sum(span.size for span in stored) + sum(segment.size for segment in segments) != size:
        raise FormatError("damaged index: lengths do not add up to the document's")
    for rest in (reader, apart):
        if rest is not None:
            rest.end()
    parts: list[Part] = []
    following, spans_left = iter(segments), iter(stored)
    for run in runs:
        parts += [next(following) for _ in range(run // 2)]
        parts += [span for span in [next(spans_left, None)] if span is not None]
    return size, sha256, parts, model, settings


def read_settings(reader: "Reader") -> Settings:
    """What `pack_settings` wrote. Raises FormatError."""
    site, chunk_tokens, context, count = (reader.varint() for _ in range(4))
    primed, site = site >= _PRIMER, site % _PRIMER if site < 2 * _PRIMER else site
    if site >= len(SITES) or count > MAX_FIELDS:
        raise FormatError("unknown site: install a newer memcodec")
    if not (1 <= chunk_tokens <= MAX_CHUNK_TOKENS and 1 <= context <= MAX_CONTEXT):
        raise FormatError("damaged index: chunk tokens or context out of range")
    fields = tuple(reader.varint() for _ in range(count))
    return Settings(SITES[site], fields, chunk_tokens, context, bytes(reader.take(PRIMER_BYTES)) if primed else b"")


@dataclass(frozen=True)
class _Columns:
    """Of segments: whether they start a group, tokens, bytes; of groups and chunks: what their name says."""

    starts: list[bool]
    tokens: list[int]
    sizes: list[int]
    correction_bytes: list[int]
    memory_bytes: list[int]
    checksums: memoryview


def _read_columns(reader: "Reader", runs: list[int], settings: Settings) -> _Columns:
    starts: list[bool] = []
    if sum(run >> 1 for run in runs) > min(len(reader), MAX_CHUNKS):  # a chunk each, whose checksum is a byte
        raise FormatError(_TOO_MANY)
    for run in runs:
        count, continues = run >> 1, run & 1
        if continues and not (count and starts):
            raise FormatError("damaged index: a run that goes on with no group")
        starts += [not continues] * min(count, 1) + [True] * (count - 1)
    tokens, sizes = reader.column(len(starts)), reader.column(len(starts))
    if any(not 1 <= count <= size for count, size in zip(tokens, sizes, strict=True)):
        raise FormatError("damaged index: a segment without tokens, or with more of them than bytes")
    count = sum(-(-n // settings.chunk_tokens) for n in tokens)
    if count > min(len(reader), MAX_CHUNKS):
        raise FormatError(_TOO_MANY)
    corrections, memories = reader.column(sum(starts)), reader.column(count)
    return _Columns(starts, tokens, sizes, corrections, memories, reader.take(count))


_TOO_MANY = "damaged index: more chunks than a file has room for"


def _read_segments(reader: "Reader", settings: Settings, columns: _Columns, memories: list[bytes]) -> list[Segment]:
    segments, number = [], 0
    following = iter(columns.correction_bytes)
    for start, total, size in zip(columns.starts, columns.tokens, columns.sizes, strict=True):
        chunks = []
        for n in lengths(total, settings.chunk_tokens):
            chunks.append(Chunk(n, memories[number], columns.checksums[number]))
            number += 1
        corrections = bytes(reader.payload(next(following))) if start else None
        segments.append(Segment(size, tuple(chunks), corrections))
    return segments


class Reader:
    """Takes bytes off a tensor and never past its end."""

    def __init__(self, data: bytes | memoryview, name: str, damaged: bool = False) -> None:
        """damaged: payloads may be cut, and what is left at the end is nothing to care for."""
        self._damaged = damaged
        self._data = memoryview(data)
        self._position = 0
        self._name = name

    def __len__(self) -> int:
        """Bytes that are left."""
        return len(self._data) - self._position

    def take(self, count: int) -> memoryview:
        """So many bytes. Raises FormatError where there are fewer."""
        if count > len(self):
            raise FormatError(f"damaged file: {self._name} ends too early")
        self._position += count
        return self._data[self._position - count : self._position]

    def payload(self, count: int) -> memoryview:
        """The same of bytes that are no part of the index."""
        return self.take(min(count, len(self)) if self._damaged else count)

    def u32(self) -> int:
        """Four bytes, little-endian."""
        return int(struct.unpack("<I", self.take(4))[0])

    def varint(self) -> int:
        """LEB128, at most 62 bits."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 62:
                raise FormatError(f"damaged file: a number in {self._name} is too long")
        if value >> 62:
            raise FormatError(f"damaged file: a number in {self._name} is too long")
        return value

    def column(self, count: int) -> list[int]:
        """What `pack_column` wrote: so many numbers."""
        least, width = self.varint(), self.take(1)[0]
        if width > 62:
            raise FormatError(f"damaged file: numbers in {self._name} are too long")
        mask, result = (1 << width) - 1, []
        for start in range(0, count, _GROUP):
            n = min(_GROUP, count - start)
            packed = int.from_bytes(self.take((n * width + 7) // 8), "little")
            result += [least + (packed >> (i * width) & mask) for i in range(n)]
        return result

    def end(self) -> None:
        """Raise FormatError where something is left."""
        if len(self) and not self._damaged:
            raise FormatError(f"damaged file: {self._name} is longer than the index says")


def varint(value: int) -> bytes:
    """LEB128: 7 bits a byte, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
