"""Chunks of arrays of text as bytes, for numcodecs and zarr (docs/integrations.md).

The first byte says what follows. 0: a .memz file of the chunk. 1, for chunks that "vlen-utf8" or "vlen-bytes" made of
an array of strings: a varint, this many bytes of zstd data with the lengths of the strings, and a .memz file of the
strings with a line feed after each.
"""

import struct
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zstandard

from memcodec import container
from memcodec.container.assembly import document_of, stored, without_model
from memcodec.document.source import Source
from memcodec.errors import FormatError
from memcodec.integrations.loading import loaded
from memcodec.levels import DEFAULT_LEVEL
from memcodec.settings import DEFAULT_MODEL, EncodeOptions, EncodeSettings, Readout

_WHOLE, _STRINGS = b"\0", b"\1"
_MAX_LENGTHS_BYTES = 1 << 30


@dataclass(frozen=True)
class ArraySettings:
    """Settings for encoding. model: a name or directory, which readers need too; the rest as in `memcodec.encode`.

    memory_share, effort: None is the value of the level.
    """

    model: str = DEFAULT_MODEL
    memory_share: float | None = None
    effort: int | None = None
    context: int | str = "auto"
    level: int = DEFAULT_LEVEL

    def __post_init__(self) -> None:
        """Raises EncodeError for settings out of range."""
        EncodeSettings.of(**self._options())

    def config(self) -> dict[str, Any]:
        """The settings as values for JSON, without those of the level."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def _options(self) -> EncodeOptions:
        context: Any = self.context
        return {"level": self.level, "site": Readout(self.memory_share, self.effort), "context": context}

    def encode(self, data: bytes) -> bytes:
        """Compress a chunk. Raises MemcodecError."""
        split = _strings(data)
        if split is None:
            return _WHOLE + self._file(data)
        lengths, text = split
        packed = zstandard.ZstdCompressor(level=19).compress(lengths)
        strings = _STRINGS + container.varint(len(packed)) + packed + self._file(text)
        plain = container.pack(stored(Source.of(data)))
        return strings if len(strings) <= len(plain) else _WHOLE + plain

    def _file(self, data: bytes) -> bytes:
        source = Source.of(data)
        if (blob := without_model(source)) is not None:
            return blob
        return loaded(self.model).encode(source, **self._options())

    def decode(self, blob: bytes) -> bytes:
        """Decompress a chunk. Raises MemcodecError."""
        if blob[:1] == _WHOLE:
            return self._read(blob[1:])
        if blob[:1] != _STRINGS:
            raise FormatError("not a chunk that memcodec wrote")
        reader = container.Reader(blob[1:], "a chunk")
        packed = bytes(reader.take(reader.varint()))
        text = self._read(bytes(reader.take(len(reader))))
        try:
            stream = zstandard.ZstdDecompressor().stream_reader(packed)
            lengths = np.frombuffer(stream.read(min(_MAX_LENGTHS_BYTES, 4 * len(text) + 4) + 1), dtype="<u4")
        except (zstandard.ZstdError, ValueError) as error:
            raise FormatError("damaged chunk: its lengths cannot be read") from error
        if int(lengths.sum()) + len(lengths) != len(text):
            raise FormatError("damaged chunk: its lengths do not add up")
        ends = np.cumsum(lengths.astype(np.int64) + 1)
        parts = [struct.pack("<I", len(lengths))]
        for length, end in zip(lengths.tolist(), ends.tolist(), strict=True):
            parts += [struct.pack("<I", length), text[end - 1 - length : end - 1]]
        return b"".join(parts)

    def _read(self, blob: bytes) -> bytes:
        parsed = container.unpack(blob)
        if parsed.needs is None:
            return b"".join(document_of(parsed, [], None))
        return b"".join(loaded(self.model).decode_pieces(parsed))


def _strings(data: bytes) -> tuple[bytes, bytes] | None:
    """The lengths, 4 bytes each, and the strings with a line feed after each; None if a chunk does not hold strings."""
    if len(data) < 8:
        return None
    (count,) = struct.unpack_from("<I", data)
    if not 0 < count <= len(data) // 4:
        return None
    place, lengths, parts = 4, [], []
    for _ in range(count):
        if place + 4 > len(data):
            return None
        (length,) = struct.unpack_from("<I", data, place)
        lengths.append(length)
        parts.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    if place != len(data):
        return None
    return np.array(lengths, dtype="<u4").tobytes(), b"".join(part + b"\n" for part in parts)
