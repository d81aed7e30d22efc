"""Chunks of arrays of text as bytes, for numcodecs and zarr (docs/integrations.md).

A first byte says what follows: 0, a .memz file of the chunk; 1, of its strings, where the chunk is what "vlen-utf8" or
"vlen-bytes" makes of an array of them: a varint, so many bytes of zstd with the lengths, and the .memz file of the
strings with a line feed behind each.
"""

import struct
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import zstandard

from memcodec import container
from memcodec.codec import Codec, as_source, without_model
from memcodec.container.assembly import stored
from memcodec.errors import FormatError
from memcodec.settings import Readout

_WHOLE, _STRINGS = b"\0", b"\1"
_MOST = 1 << 30  # bytes of the lengths


@dataclass(frozen=True)
class ArraySettings:
    """Of encoding: `model` by name or directory, which whoever reads needs too; the rest as in `memcodec.encode`."""

    model: str = "smollm2-135m"
    memory_share: float = 0.1
    effort: int = 4096
    context: int | str = "auto"

    def config(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def encode(self, data: bytes) -> bytes:
        """A chunk. Raises MemcodecError."""
        found = _strings(data)
        if found is None:
            return _WHOLE + self._file(data)
        lengths, text = found
        packed = zstandard.ZstdCompressor(level=19).compress(lengths)
        strings = _STRINGS + container.varint(len(packed)) + packed + self._file(text)
        plain = container.pack(stored(as_source(data, "data")))
        return strings if len(strings) <= len(plain) else _WHOLE + plain

    def _file(self, data: bytes) -> bytes:
        source = as_source(data, "data")
        if (blob := without_model(source)) is not None:
            return blob
        context: Any = self.context
        return loaded(self.model).encode(source, site=Readout(self.memory_share, self.effort), context=context)

    def decode(self, blob: bytes) -> bytes:
        """The chunk. Raises MemcodecError."""
        if blob[:1] == _WHOLE:
            return self._read(blob[1:])
        if blob[:1] != _STRINGS:
            raise FormatError("not a chunk of memcodec's")
        reader = container.Reader(blob[1:], "a chunk")
        packed = bytes(reader.take(reader.varint()))
        text = self._read(bytes(reader.take(len(reader))))
        try:
            stream = zstandard.ZstdDecompressor().stream_reader(packed)
            lengths = np.frombuffer(stream.read(min(_MOST, 4 * len(text) + 4) + 1), dtype="<u4")
        except (zstandard.ZstdError, ValueError) as error:
            raise FormatError("damaged chunk: its lengths do not read") from error
        if int(lengths.sum()) + len(lengths) != len(text):
            raise FormatError("damaged chunk: its lengths do not add up")
        ends = np.cumsum(lengths.astype(np.int64) + 1)
        parts = [struct.pack("<I", len(lengths))]
        for length, end in zip(lengths.tolist(), ends.tolist(), strict=True):
            parts += [struct.pack("<I", length), text[end - 1 - length : end - 1]]
        return b"".join(parts)

    def _read(self, blob: bytes) -> bytes:
        if container.unpack(blob).model is None:
            from memcodec import decode

            return decode(blob)
        return loaded(self.model).decode(blob)


def _strings(data: bytes) -> tuple[bytes, bytes] | None:
    """Lengths, 4 bytes each, and the strings, a line feed behind each; None where a chunk is not of strings."""
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


@cache
def loaded(model: str) -> Codec:
    """A model, once a process."""
    return Codec.load(model)
