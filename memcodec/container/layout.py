"""The container: a safetensors file of two byte tensors (spec/FORMAT.md, "Container").

`memories` are the chunks' memories; `document` has the index, the stored spans and the corrections, and the memories
where they are too few for a tensor of their own. Knows bytes and lengths, nothing of models. `pack` and `unpack` are
inverses; `unpack` trusts nothing that it reads, and copies little.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import zstandard

from memcodec.errors import ChecksumError, FormatError
from memcodec.settings import DEFAULT_CHUNK_TOKENS

VERSION = 2
MAX_HEADER = 1 << 16
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
RAW, ZSTD = 0, 1  # methods of stored spans


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
        for piece in _slices(self.packed) if self.method == RAW else _expand(self.packed, self.size):
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


def compress(pieces: Callable[[], Iterable[bytes]], size: int) -> tuple[int, bytes]:
    """Method and bytes of a stored span: zstd -19 (-12 from 16 MiB on), or raw where that is no smaller.

    pieces: gives the span's `size` bytes, piece by piece, as often as it is asked.
    """
    large = size >= _ZSTD_LARGE
    if size >= 1 << 18:  # a quick look, far back too: -19 would look for seconds at what has nothing to find
        quick = zstandard.ZstdCompressionParameters.from_level(1, window_log=_ZSTD_WINDOW, enable_ldm=True)
        if sum(map(len, _frame(zstandard.ZstdCompressor(compression_params=quick), pieces, size))) > 0.995 * size:
            return RAW, b"".join(pieces())
    level, threads = (_ZSTD_FAST_LEVEL, -1) if large else (_ZSTD_LEVEL, 0)
    compressor = zstandard.ZstdCompressor(level=level, threads=threads, write_content_size=False)
    frame = b"".join(_frame(compressor, pieces, size))
    return (ZSTD, frame) if len(frame) < size else (RAW, b"".join(pieces()))


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


SITES = ("readout", "prompt")  # by their numbers in the index
PRIMED = 2  # added to them where there is a primer
