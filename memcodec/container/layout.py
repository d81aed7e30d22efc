"""What a container holds, and its limits: a safetensors file of two byte tensors (spec/FORMAT.md, "Container").

The tensor `memories` holds the chunks' memories; `document` holds the index, the stored spans and the corrections, and
the memories too if they are few. Depends on bytes and lengths only, not on models. `pack` (write.py) and `unpack`
(read.py) are inverses.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import zstandard

from memcodec.container import zstd_frame
from memcodec.document.references import Reference
from memcodec.errors import ChecksumError, FormatError, ModelMismatchError, PrimerMismatchError
from memcodec.settings import DEFAULT_CHUNK_TOKENS

VERSION = 3
MAX_HEADER = 1 << 16
HASH_BYTES = 16  # of the document's SHA-256 that are stored
IDENTITY_BYTES = 8  # of the LM's identity that are stored
PRIMER_BYTES = 8  # of the primer's hash that are stored
MAX_FIELDS = 8  # numbers that a site may have in the index
MAX_CHUNKS = 1 << 21  # in one file: a reader keeps a few hundred bytes of each
MAX_SPANS = 1 << 21  # stored spans in one file, for the same reason
LEAST_SPAN = 7  # bytes that a stored span takes in the index at least: two sizes, method and checksum
LEAST_REFERENCE = 32  # bytes: what references cost is bounded by the size of the document
START = 512  # the first bytes of a file, enough to recognize it
MEMORIES_APART = 256  # from this many bytes on, the memories are a separate tensor, whose entry costs 61 bytes

RAW, ZSTD = 0, 1  # methods of stored spans
SITES = ("readout", "prompt")  # their numbers in the index
PRIMED = 2  # is added to the number of the site if the file needs a primer

SLOW_ZSTD_BYTES = 1 << 24  # from this size on, zstd -19 takes longer than 15 seconds
_ZSTD_LEVEL, _ZSTD_FAST_LEVEL = 19, 12
_TRIAL_WINDOW = 27  # of the fast run, in bits
_TRIAL_BYTES = 1 << 18  # from this size on, a fast run decides whether the best level is tried
_PIECE = 1 << 20  # bytes of stored data that are handled at one time


@dataclass(frozen=True)
class ModelId:
    """The LM that a file needs: its name, and the first bytes of its identity."""

    name: str
    identity: bytes

    @classmethod
    def of(cls, name: str, identity: bytes) -> "ModelId":
        """The entry for a model of this (whole) identity."""
        return cls(name, identity[:IDENTITY_BYTES])


@dataclass(frozen=True)
class Needs:
    """The model that decoding a file needs, and the primer, by the first bytes of its hash (empty: no primer)."""

    model: ModelId
    primer: bytes = b""

    def check_model(self, here: ModelId) -> None:
        """Raise ModelMismatchError if this model is not the one that is needed. Its name does not matter."""
        if here.identity != self.model.identity:
            raise ModelMismatchError(
                f"the file needs model {self.model.name!r} ({self.model.identity.hex()}), not {here.name!r} "
                f"({here.identity.hex()}): give the right one as codec or model (--model)"
            )

    def check_primer(self, here: bytes) -> None:
        """Raise PrimerMismatchError if a primer is needed, and `here` is another one or empty."""
        if self.primer and here != self.primer:
            given = f"the one given is {here.hex()}" if here else "none is given"
            raise PrimerMismatchError(
                f"the file needs the primer {self.primer.hex()}; {given}: give it as primer (--primer)"
            )


@dataclass(frozen=True)
class Settings:
    """The encoder's settings as far as a decoder needs them: the site with its own numbers, chunk tokens and context.

    primer: the first bytes of the hash of the primer that every group sees; empty without one.
    """

    site: str
    fields: tuple[int, ...]
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    context: int = DEFAULT_CHUNK_TOKENS
    primer: bytes = b""


@dataclass(frozen=True, slots=True)  # a file may have two million
class Chunk:
    """One chunk: the number of its tokens, its packed memory, and 8 bits of its bytes' CRC-32."""

    tokens: int
    memory: bytes
    checksum: int


@dataclass(frozen=True)
class Segment:
    """Consecutive chunks of one group with no stored span between them. size: in bytes of the document.

    corrections: of the whole group, at the first segment of the group; None at its later segments.
    """

    size: int
    chunks: tuple[Chunk, ...]
    corrections: bytes | None

    @property
    def tokens(self) -> int:
        """The tokens of all its chunks."""
        return sum(chunk.tokens for chunk in self.chunks)


@dataclass(frozen=True)
class Group:
    """A group: chunks of which each sees those before it, and the one stream of their corrections."""

    chunks: tuple[Chunk, ...]
    corrections: bytes


@dataclass(frozen=True, slots=True)  # a file may have millions
class StoredSpan:
    """Bytes of the document that are not encoded with the LM: raw, or as one zstd frame. Readable without a model."""

    size: int
    method: int
    packed: bytes | memoryview
    checksum: int

    @classmethod
    def of(cls, data: bytes) -> "StoredSpan":
        """Store bytes, with zstd if that is smaller."""
        return cls.of_pieces(lambda: [data], len(data))

    @classmethod
    def of_pieces(cls, pieces: Callable[[], Iterable[bytes]], size: int) -> "StoredSpan":
        """Store `size` bytes that come in pieces; `pieces` is called up to four times."""
        method, packed = compress(pieces, size)
        checksum = 0
        for piece in pieces():
            checksum = zlib.crc32(piece, checksum)
        return cls(size, method, packed, checksum)

    def pieces(self) -> Iterator[bytes]:
        """The bytes, in pieces. Raises FormatError or ChecksumError, at the end at the latest."""
        size = checksum = 0
        for piece in _slices(self.packed) if self.method == RAW else self._expanded():
            size += len(piece)
            if size > self.size:
                break
            checksum = zlib.crc32(piece, checksum)
            yield piece
        if size != self.size:
            raise FormatError("damaged stored span: its length is not that in the index")
        if checksum != self.checksum:
            raise ChecksumError("damaged file: a stored span does not match its checksum")

    def _expanded(self) -> Iterator[bytes]:
        try:
            yield from zstd_frame.expand(self.packed, self.size)
        except zstandard.ZstdError as error:
            raise FormatError("damaged stored span: zstd cannot read it") from error

    def read(self) -> bytes:
        """The bytes. Raises FormatError or ChecksumError; memory depends on the real data, not on the index."""
        return b"".join(self.pieces())


Part = Segment | StoredSpan


@dataclass(frozen=True)
class Container:
    """A whole file, unpacked. parts: segments and stored spans in document order, which have the carried bytes;
    references: what is inserted into these, in order; sizes: bytes of the file by kind."""

    size: int
    sha256: bytes
    parts: list[Part]
    model: ModelId | None = None
    settings: Settings | None = None
    references: tuple[Reference, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def needs(self) -> Needs | None:
        """The model and the primer that decoding needs; None if everything is stored."""
        if self.model is None:
            return None
        return Needs(self.model, self.settings.primer if self.settings is not None else b"")

    @property
    def carried(self) -> int:
        """The number of carried bytes: those of all parts."""
        return sum(part.size for part in self.parts)

    @cached_property
    def segments(self) -> list[Segment]:
        """The parts without the stored spans. Made once, as `chunks` and `groups`: do not change these lists."""
        return [part for part in self.parts if isinstance(part, Segment)]

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All chunks, in order."""
        return [chunk for segment in self.segments for chunk in segment.chunks]

    @cached_property
    def groups(self) -> list[Group]:
        """All groups, in order."""
        found: list[tuple[list[Chunk], bytes]] = []
        for segment in self.segments:
            if segment.corrections is not None:
                found.append(([], segment.corrections))
            found[-1][0].extend(segment.chunks)
        return [Group(tuple(chunks), corrections) for chunks, corrections in found]


def chunk_checksum(data: bytes) -> int:
    """The checksum of a chunk in a file: the lowest 8 bits of its CRC-32."""
    return zlib.crc32(data) & 0xFF


def compress(pieces: Callable[[], Iterable[bytes]], size: int) -> tuple[int, bytes]:
    """Method and bytes of a stored span: zstd -19 (-12 from SLOW_ZSTD_BYTES on), or raw if that is not larger.

    pieces: returns the span's `size` bytes in pieces, each time it is called.
    """
    large = size >= SLOW_ZSTD_BYTES
    # -19 spends seconds on data that cannot be compressed, so a fast run with a long window is tried first.
    if size >= _TRIAL_BYTES:
        quick = zstandard.ZstdCompressionParameters.from_level(1, window_log=_TRIAL_WINDOW, enable_ldm=True)
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


def _slices(data: bytes | memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), _PIECE):
        yield bytes(data[start : start + _PIECE])
