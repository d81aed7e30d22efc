"""The container: a safetensors file of four byte tensors and short metadata (spec/FORMAT.md, "Container").

Knows bytes and lengths, nothing of models. `pack` and `unpack` are inverses; `unpack` trusts nothing it reads.
"""

import base64
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import safetensors
import zstandard

from memcodec.errors import ChecksumError, FormatError

VERSION = 1
MAX_CHUNK_TOKENS = 4096
MAX_HEADER = 1 << 16
MAX_RATE = 8
DEFAULT_CHUNK_TOKENS = 200
DEFAULT_RATE = Fraction(1)
MAX_VECTORS = 64
MAX_DIMENSIONS = 1 << 16
MEMORY_BITS = (1, 2, 3, 4, 8, 16)  # bits per dimension at the prompt site; 16 is float16
WEIGHTS_HASH_BYTES = 6
TOKENIZER_HASH_BYTES = 4

# Metadata keys: one letter each, because a file has 320 bytes for all but its chunks. Lower case: a reader must know
# the key, or refuse the file. Upper case: it may ignore it.
_KEYS = {
    "v": "format version",
    "n": "original size in bytes",
    "h": "SHA-256 of the original, base64url",
    "m": "model id",
    "w": "weights hash and tokenizer hash, base64url",
    "g": "margin, in logits",
    "c": "chunk tokens; 200 if absent",
    "r": "memory rate in bits per token, a fraction; 1 if absent",
    "s": "site; readout if absent",
    "b": "prompt site: bits per dimension",
    "d": "prompt site: dimensions of a vector",
}
_TENSORS = {"i": "index", "m": "memories", "c": "corrections", "s": "stored spans"}


@dataclass(frozen=True)
class ModelId:
    """Which LM a file needs: its name, and hashes of its weights (6 bytes) and tokenizer (4 bytes)."""

    name: str
    weights: bytes
    tokenizer: bytes


@dataclass(frozen=True)
class Settings:
    """What the decoder must know of the encoder's choices.

    `rate` is for the readout site; `bits` (per dimension) and `dimensions` of a vector are for the prompt site.
    """

    margin: float
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    rate: Fraction = DEFAULT_RATE
    site: str = "readout"
    bits: int = 0
    dimensions: int = 0


@dataclass(frozen=True)
class Chunk:
    """One chunk: its token count, packed memory, corrections, and the CRC-32 of its bytes."""

    tokens: int
    memory: bytes
    corrections: bytes
    checksum: int


@dataclass(frozen=True)
class StoredSpan:
    """Bytes kept as they are."""

    data: bytes


@dataclass(frozen=True)
class Container:
    """A whole file, unpacked. `parts` are chunks and stored spans in the order of the document."""

    size: int
    sha256: bytes
    parts: list[Chunk | StoredSpan]
    model: ModelId | None = None
    settings: Settings | None = None
    sizes: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks alone, in order."""
        return [part for part in self.parts if isinstance(part, Chunk)]


def memory_bytes(tokens: int, settings: Settings) -> int:
    """Bytes of the packed memory of a readout chunk of so many tokens."""
    return (int(tokens * settings.rate) + 7) // 8


def vector_bytes(dimensions: int, bits: int) -> int:
    """Bytes of one packed vector of the prompt site: float16 entries, or a float16 scale and the levels."""
    return 2 * dimensions if bits == 16 else 2 + (dimensions * bits + 7) // 8


def vectors(memory: bytes, dimensions: int, bits: int) -> int:
    """How many vectors a memory of the prompt site has. Raises FormatError where it is not 1 to 64 whole ones."""
    size = vector_bytes(dimensions, bits)
    count, rest = divmod(len(memory), size)
    if rest or not 1 <= count <= MAX_VECTORS:
        raise FormatError(f"damaged memory: {len(memory)} bytes are not 1 to {MAX_VECTORS} vectors of {size} bytes")
    return count


def describe(data: bytes, parts: list[Chunk | StoredSpan], model: ModelId, settings: Settings) -> Container:
    """The container of a document; the model is left out where no chunk needs it."""
    needed = any(isinstance(part, Chunk) for part in parts)
    digest = hashlib.sha256(data).digest()
    return Container(len(data), digest, parts, model if needed else None, settings if needed else None)


def pack(container: Container) -> bytes:
    """Write a container."""
    metadata = {"v": str(VERSION), "n": str(container.size), "h": _b64(container.sha256)}
    if container.model is not None and container.settings is not None:
        model, settings = container.model, container.settings
        metadata |= {"m": model.name, "w": _b64(model.weights + model.tokenizer)}
        metadata["g"] = _short(settings.margin)
        if settings.chunk_tokens != DEFAULT_CHUNK_TOKENS:
            metadata["c"] = str(settings.chunk_tokens)
        if settings.site == "prompt":
            metadata |= {"s": settings.site, "b": str(settings.bits), "d": str(settings.dimensions)}
        elif settings.rate != DEFAULT_RATE:
            metadata["r"] = str(settings.rate)
    stored = b"".join(part.data for part in container.parts if isinstance(part, StoredSpan))
    tensors = {
        "m": b"".join(chunk.memory for chunk in container.chunks),
        "c": b"".join(chunk.corrections for chunk in container.chunks),
        "s": _pack_stored(stored),
        "i": _pack_index(container) + bytes(4),
    }
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        if tensor:
            header[name] = {"dtype": "U8", "shape": [len(tensor)], "data_offsets": [offset, offset + len(tensor)]}
            offset += len(tensor)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    blob = struct.pack("<Q", len(text)) + text + b"".join(tensors.values())
    return blob[:-4] + struct.pack("<I", zlib.crc32(blob[:-4]))  # the index ends with the checksum of all before it


def unpack(blob: bytes) -> Container:
    """Read a container, checking every length, and every checksum that needs no model.

    Raises FormatError (not a memcodec file, truncated, newer) or ChecksumError (damaged).
    """
    metadata, tensors, header_size = _read_safetensors(blob)
    version = metadata.get("v", "")
    if version != str(VERSION):
        raise FormatError(f"format version {version[:20]!r} is not known to this memcodec: install a newer one")
    unknown = [key for key in metadata if key not in _KEYS and not key[:1].isupper()]
    if unknown:
        raise FormatError(f"unknown required field {unknown[0][:40]!r}: install a newer memcodec")
    if unknown := [name for name in tensors if name not in _TENSORS]:
        raise FormatError(f"unknown tensor {unknown[0][:40]!r}: install a newer memcodec")
    if "i" not in tensors or len(tensors["i"]) < 4 or not blob.endswith(tensors["i"]):
        raise FormatError("not a memcodec file: it has no index")
    if zlib.crc32(blob[:-4]) != struct.unpack("<I", blob[-4:])[0]:
        raise ChecksumError("damaged file: its checksum does not match")
    try:
        size = _integer(metadata["n"], 0, 1 << 62)
        sha256 = _unb64(metadata["h"], 32)
        model = settings = None
        if "m" in metadata:
            hashes = _unb64(metadata["w"], WEIGHTS_HASH_BYTES + TOKENIZER_HASH_BYTES)
            model = ModelId(metadata["m"], hashes[:WEIGHTS_HASH_BYTES], hashes[WEIGHTS_HASH_BYTES:])
            settings = _settings(metadata)
    except (KeyError, ValueError) as error:
        raise FormatError(f"damaged header: {error}") from error
    parts = _unpack_index(tensors, settings, size)
    sizes = {what: len(tensors[name]) for name, what in _TENSORS.items() if name in tensors}
    return Container(size, sha256, parts, model, settings, {"header": header_size} | sizes)


def _read_safetensors(blob: bytes) -> tuple[dict[str, str], dict[str, bytes], int]:
    if len(blob) < 8:
        raise FormatError("not a memcodec file: shorter than a header")
    (length,) = struct.unpack("<Q", blob[:8])
    if blob[8:9] != b"{" or length > MAX_HEADER:
        raise FormatError("not a memcodec file")
    if len(blob) < 8 + length:
        raise FormatError("truncated file: the header is cut")
    try:
        header = json.loads(blob[8 : 8 + length])
        metadata = header.get("__metadata__")
        end = max(
            (int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"), default=0
        )
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise FormatError("not a memcodec file: its header does not read") from error
    if len(blob) < 8 + length + end:
        raise FormatError(f"truncated file: {len(blob)} of {8 + length + end} bytes")
    try:
        tensors = {name: bytes(entry["data"]) for name, entry in safetensors.deserialize(blob)}
    except Exception as error:  # SafetensorError, and what the binding raises for odd dtypes
        raise FormatError("not a memcodec file: not valid safetensors") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("not a memcodec file: it has no metadata")
    return metadata, tensors, 8 + length


def _settings(metadata: dict[str, str]) -> Settings:
    margin = float(metadata["g"])
    if not 0 < margin < 100:
        raise ValueError("margin out of range")
    chunk_tokens = _integer(metadata.get("c", str(DEFAULT_CHUNK_TOKENS)), 1, MAX_CHUNK_TOKENS)
    if not re.fullmatch(r"\d{1,3}(/\d{1,3})?", metadata.get("r", "1")):
        raise ValueError("memory rate out of range")
    try:
        rate = Fraction(metadata.get("r", "1"))
    except ZeroDivisionError as error:
        raise ValueError("memory rate out of range") from error
    if not 0 <= rate <= MAX_RATE:
        raise ValueError("memory rate out of range")
    site = metadata.get("s", "readout")
    if site not in ("readout", "prompt"):
        raise ValueError(f"unknown site {site[:20]!r}")
    if site == "readout":
        return Settings(margin, chunk_tokens, rate)
    bits = _integer(metadata["b"], 1, 16)
    if bits not in MEMORY_BITS:
        raise ValueError("bits per dimension out of range")
    dimensions = _integer(metadata["d"], 1, MAX_DIMENSIONS)
    return Settings(margin, chunk_tokens, Fraction(0), site, bits, dimensions)


def _pack_index(container: Container) -> bytes:
    """Runs of tokens and the stored bytes after them, then an entry a chunk and a checksum a stored span, in order."""
    runs: list[list[int]] = []
    entries = bytearray()
    for part in container.parts:
        if isinstance(part, Chunk):
            if not runs or runs[-1][1]:
                runs.append([0, 0])
            runs[-1][0] += part.tokens
            entries += _varint(len(part.corrections))
            if container.settings is not None and container.settings.site == "prompt":
                entries += _varint(len(part.memory))
            entries += struct.pack("<I", part.checksum)
        else:
            if not runs:
                runs.append([0, 0])
            runs[-1][1] += len(part.data)
            entries += struct.pack("<I", zlib.crc32(part.data))
    heads = (_varint(2 * a + 1) + _varint(b) if b else _varint(2 * a) for a, b in runs)
    return _varint(len(runs)) + b"".join(heads) + bytes(entries)


def _unpack_index(tensors: dict[str, bytes], settings: Settings | None, size: int) -> list[Chunk | StoredSpan]:
    index = _Reader(tensors["i"][:-4], "index")
    memories = _Reader(tensors.get("m", b""), "memories")
    corrections = _Reader(tensors.get("c", b""), "corrections")
    runs = [(head >> 1, index.varint() if head & 1 else 0) for head in index.varints(index.varint())]
    stored = _Reader(_unpack_stored(tensors.get("s", b""), sum(b for _, b in runs), size), "stored spans")
    parts: list[Chunk | StoredSpan] = []
    for tokens, stored_bytes in runs:
        while tokens:
            if settings is None:
                raise FormatError("damaged header: chunks without a model")
            count = min(tokens, settings.chunk_tokens)
            length = index.varint()
            memory_length = index.varint() if settings.site == "prompt" else memory_bytes(count, settings)
            checksum = index.u32()
            chunk = Chunk(count, memories.take(memory_length), corrections.take(length), checksum)
            if settings.site == "prompt":
                vectors(chunk.memory, settings.dimensions, settings.bits)
            parts.append(chunk)
            tokens -= count
        if stored_bytes:
            data = stored.take(stored_bytes)
            if index.u32() != zlib.crc32(data):
                raise ChecksumError("damaged file: a stored span does not match its checksum")
            parts.append(StoredSpan(data))
    for reader in (index, memories, corrections, stored):
        reader.end()
    return parts


def _pack_stored(data: bytes) -> bytes:
    """Method 1 is a zstd frame, method 0 raw bytes; nothing for nothing."""
    if not data:
        return b""
    frame = zstandard.ZstdCompressor(level=19).compress(data)
    return b"\1" + frame if len(frame) < len(data) else b"\0" + data


def _unpack_stored(tensor: bytes, expected: int, limit: int) -> bytes:
    if expected > limit:
        raise FormatError("damaged index: more stored bytes than the file has")
    if not tensor:
        return b""
    if tensor[0] == 0:
        return tensor[1:]
    if tensor[0] != 1:
        raise FormatError(f"unknown method {tensor[0]} of stored spans: install a newer memcodec")
    pieces, total = [], 0
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(tensor[1:])
        while piece := reader.read(1 << 20):  # in pieces, so that memory follows what is really there
            pieces.append(piece)
            total += len(piece)
            if total > expected:
                break
    except zstandard.ZstdError as error:
        raise FormatError("damaged stored spans: zstd does not read them") from error
    if total != expected:
        raise FormatError("damaged stored spans: not the length that the index says")
    return b"".join(pieces)


class _Reader:
    """Takes bytes off a tensor and never past its end."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._position = 0
        self._name = name

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._position:
            raise FormatError(f"damaged file: {self._name} end too early")
        self._position += count
        return self._data[self._position - count : self._position]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def varint(self) -> int:
        """LEB128, at most 62 bits."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 55:
                raise FormatError(f"damaged file: a number in {self._name} is too long")

    def varints(self, count: int) -> Iterator[int]:
        """So many numbers, one at a time: a count that is not true ends with the bytes."""
        for _ in range(count):
            yield self.varint()

    def end(self) -> None:
        if self._position != len(self._data):
            raise FormatError(f"damaged file: {self._name} are longer than the index says")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"\d{1,19}", text) or not low <= int(text) <= high:
        raise ValueError(f"number {text[:20]!r} out of range")
    return int(text)


def _short(number: float) -> str:
    """The shortest text that reads back as the number: 1e-3 rather than 0.001."""
    mantissa, _, exponent = f"{number:e}".partition("e")
    compact = f"{float(mantissa):g}e{int(exponent)}"
    return min((text for text in (repr(number), compact) if float(text) == number), key=len)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str, length: int) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if len(data) != length:
        raise ValueError("a hash of the wrong length")
    return data
