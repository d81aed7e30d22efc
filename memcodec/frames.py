"""Frames: short messages without a container, where model and settings are agreed once (spec/FRAMES.md).

A first byte below 224 is the number of tokens of a message that the LM carries; the others say what follows.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import zstandard

from memcodec.chunks import Coded
from memcodec.container import MAX_CHUNK_TOKENS, Reader, lengths, varint
from memcodec.errors import ChecksumError, EncodeError, FormatError
from memcodec.memory.settings import Readout

SHORT = 224  # tokens from which on their number is a varint behind the first byte
_LONG, _ZSTD, _ZSTD_DICTIONARY, _RAW = 252, 253, 254, 255
MAX_CHECKSUM = 4
_WINDOW = 27  # bits of zstd's, at most


@dataclass(frozen=True)
class FrameSettings:
    """What both sides of frames agree on, besides the model and the primer.

    checksum: bytes of the message's CRC-32 at the end of each frame, 0 to 4; dictionary: of zstd, for messages that the
    LM does not carry; memory_share, effort: as in `Readout`; chunk_tokens: of a memory; max_bytes: of a message, for
    either side to refuse larger ones.
    """

    checksum: int = 1
    dictionary: bytes = b""
    memory_share: float = 0.0
    effort: int = 4096
    chunk_tokens: int = 200
    max_bytes: int = 1 << 16

    @property
    def site(self) -> Readout:
        """The settings of the memories."""
        return Readout(self.memory_share, self.effort)

    def check(self) -> None:
        """Raise EncodeError for settings out of range."""
        if not 0 <= self.checksum <= MAX_CHECKSUM:
            raise EncodeError(f"checksum {self.checksum}: give 0 to {MAX_CHECKSUM} bytes")
        if not 1 <= self.chunk_tokens <= MAX_CHUNK_TOKENS:
            raise EncodeError(f"chunk tokens {self.chunk_tokens}: give 1 to {MAX_CHUNK_TOKENS}")
        if self.max_bytes < 1:
            raise EncodeError(f"max bytes {self.max_bytes}: give 1 or more")
        self.site.check()


class Packer:
    """Puts messages into frames, and takes them apart; knows bytes and lengths, nothing of models."""

    def __init__(self, settings: FrameSettings) -> None:
        settings.check()
        self._settings = settings
        known = zstandard.ZstdCompressionDict(settings.dictionary) if settings.dictionary else None
        about: dict[str, Any] = {"write_content_size": False, "write_checksum": False, "write_dict_id": False}
        self._plain = zstandard.ZstdCompressor(level=19, **about)
        self._known = zstandard.ZstdCompressor(level=19, dict_data=known, **about) if known else None
        self._dictionary = known

    def pack(self, message: bytes, coded: Coded | None) -> bytes:
        """The shortest frame of a message: by the LM, where it carries it; by zstd; or raw."""
        found = [bytes([_RAW]) + message, bytes([_ZSTD]) + _bare(self._plain.compress(message))]
        if self._known is not None:
            found.append(bytes([_ZSTD_DICTIONARY]) + _bare(self._known.compress(message)))
        if coded is not None:
            count = coded.tokens
            head = bytes([count]) if count < SHORT else bytes([_LONG]) + varint(count - SHORT)
            if self._settings.memory_share:
                for memory in coded.memories:
                    head += varint(len(memory)) + memory
            found.append(head + coded.corrections)
        return min(found, key=len) + self._checksum(message)

    def unpack(self, frame: bytes) -> bytes | Coded:
        """What a frame holds: the message, or what the LM has to read. Raises FormatError, ChecksumError."""
        end = len(frame) - self._settings.checksum
        if end < 1:
            raise FormatError(f"a frame of {len(frame)} bytes: it has {1 + self._settings.checksum} at least")
        kind, body = frame[0], frame[1:end]
        if kind in (_ZSTD, _ZSTD_DICTIONARY, _RAW):
            message = body if kind == _RAW else self._expand(body, kind == _ZSTD_DICTIONARY)
            if len(message) > self._settings.max_bytes:
                raise FormatError(f"a frame of more than {self._settings.max_bytes} bytes: raise max_bytes")
            self.check(message, frame)
            return message
        reader = Reader(body, "a frame")
        count = kind
        if kind == _LONG:
            count = reader.varint() + SHORT
        elif kind >= SHORT:
            raise FormatError(f"a frame of kind {kind}: install a newer memcodec")
        if count > self._settings.max_bytes:
            raise FormatError(f"a frame of more than {self._settings.max_bytes} bytes: raise max_bytes")
        if not count:
            raise FormatError("damaged frame: no tokens")
        parts = tuple(lengths(count, self._settings.chunk_tokens))
        if self._settings.memory_share and len(parts) > len(reader):
            raise FormatError("damaged frame: it ends too early")
        memories = tuple(bytes(reader.take(reader.varint())) if self._settings.memory_share else b"" for _ in parts)
        return Coded(parts, memories, bytes(reader.take(len(reader))))

    def check(self, message: bytes, frame: bytes) -> None:
        """Raise ChecksumError where a message is not that of its frame."""
        if self._checksum(message) != frame[len(frame) - self._settings.checksum :]:
            raise ChecksumError("a frame does not match its checksum: damaged, or of another model, primer or setting")

    def _checksum(self, message: bytes) -> bytes:
        return zlib.crc32(message).to_bytes(4, "little")[: self._settings.checksum]

    def _expand(self, body: bytes, known: bool) -> bytes:
        if known and self._dictionary is None:
            raise FormatError("the frame needs a zstd dictionary: give the one that it was made with")
        about: dict[str, Any] = {"dict_data": self._dictionary} if known else {}
        reader = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW, **about).stream_reader(_MAGIC + body)
        try:
            return bytes(reader.read(self._settings.max_bytes + 1))
        except zstandard.ZstdError as error:
            raise FormatError("damaged frame: zstd does not read it") from error


_MAGIC = b"\x28\xb5\x2f\xfd"  # begins every zstd frame


def _bare(frame: bytes) -> bytes:
    return frame[len(_MAGIC) :]
