"""Frames: short messages without a container, where model and settings are agreed once (spec/FRAMES.md).

A first byte below 224 is the number of tokens of a message that the LM carries; the others say what follows.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import zstandard

from memcodec.container import Reader, varint
from memcodec.document.lengths import chunk_lengths
from memcodec.document.plan import cut_chunks, visible_tokens
from memcodec.errors import ChecksumError, EncodeError, FormatError
from memcodec.groups import EncodedGroup, decode_all, encode_all
from memcodec.lm.model import ExactLM
from memcodec.memory.sites import readout_site
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.progress import ProgressCallback, Reporter
from memcodec.settings import MAX_CHUNK_TOKENS, Readout

T = TypeVar("T")

SHORT = 224  # tokens from which on their number is a varint behind the first byte
_LONG, _ZSTD, _ZSTD_DICTIONARY, _RAW = 252, 253, 254, 255
MAX_CHECKSUM = 4
_WINDOW = 27  # bits of zstd's, at most
_MOST_STATES = 1 << 26  # of the search for a memory
_STEP = 64  # bytes that are given to zstd at one time: what comes of them is less than a few MB


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
        if self.effort * self.chunk_tokens > _MOST_STATES:
            raise EncodeError(f"effort {self.effort} with {self.chunk_tokens} tokens a chunk: give fewer of one")


def encode(
    lm: ExactLM,
    tokenizer: ByteTokenizer,
    messages: list[bytes],
    settings: FrameSettings,
    progress: ProgressCallback | None = None,
) -> list[bytes]:
    """Messages as frames. Raises EncodeError."""
    packer = Packer(settings)
    if messages and (longest := max(map(len, messages))) > settings.max_bytes:
        raise EncodeError(f"a message of {longest:,} bytes: frames have {settings.max_bytes:,} at most (max_bytes)")
    texts = [_tokens_of(message, tokenizer, lm.vocabulary) for message in messages]
    groups = [cut_chunks(tokens, settings.chunk_tokens) for tokens in texts if len(tokens)]
    size = sum(map(len, messages))
    report = Reporter(progress, "fit", size, 0, 1)
    report.expect([len(chunk) for group in groups for chunk in group], size)
    made = encode_all(lm, readout_site(lm, settings.site), groups, _seen(lm), report)
    return [
        packer.pack(message, next(made) if len(tokens) else None)
        for message, tokens in zip(messages, texts, strict=True)
    ]


def decode(
    lm: ExactLM,
    tokenizer: ByteTokenizer,
    frames: list[bytes],
    settings: FrameSettings,
    batch: int,
    progress: ProgressCallback | None = None,
) -> list[bytes]:
    """The messages of frames. Raises FormatError, ChecksumError."""
    packer = Packer(settings)
    found = [_numbered(i, len(frames), partial(packer.unpack, frame)) for i, frame in enumerate(frames)]
    waiting = [(i, coded) for i, coded in enumerate(found) if isinstance(coded, EncodedGroup)]
    waiting.sort(key=lambda pair: -pair[1].tokens)  # batches of about one length
    report = Reporter(progress, "decode", 1, 0, 1)
    report.expect([coded.tokens for _, coded in waiting], 1)
    groups = [coded for _, coded in waiting]
    written = decode_all(lm, readout_site(lm, settings.site), groups, _seen(lm), batch, report)
    messages = [message if isinstance(message, bytes) else b"" for message in found]
    for (i, _), tokens in zip(waiting, written, strict=True):
        messages[i] = tokenizer.decode(tokens)
        _numbered(i, len(frames), partial(packer.check, messages[i], frames[i]))
        _numbered(i, len(frames), partial(packer.check_size, messages[i]))
    return messages


def _numbered(number: int, count: int, work: Callable[[], T]) -> T:
    """What some work on one of many frames gives, or an error that says which."""
    try:
        return work()
    except (FormatError, ChecksumError) as error:
        if count == 1:
            raise
        raise type(error)(f"frame {number} of {count}, from 0: {error}") from error


def _seen(lm: ExactLM) -> int:
    return visible_tokens("auto", lm.positions - len(lm.prefix))


def _tokens_of(message: bytes, tokenizer: ByteTokenizer, vocabulary: int) -> np.ndarray:
    """A message's tokens, int64; none where they would not restore it."""
    try:
        tokens = tokenizer.encode(message.decode())
    except UnicodeDecodeError:
        return np.empty(0, dtype=np.int64)
    known = not len(tokens) or tokens.max() < vocabulary
    return tokens if known and tokenizer.decode(tokens) == message else tokens[:0]


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

    def pack(self, message: bytes, coded: EncodedGroup | None) -> bytes:
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

    def unpack(self, frame: bytes) -> bytes | EncodedGroup:
        """What a frame holds: the message, or what the LM has to read. Raises FormatError, ChecksumError."""
        end = len(frame) - self._settings.checksum
        if end < 1:
            raise FormatError(f"a frame of {len(frame)} bytes: it has {1 + self._settings.checksum} at least")
        kind, body = frame[0], frame[1:end]
        if kind in (_ZSTD, _ZSTD_DICTIONARY, _RAW):
            message = body if kind == _RAW else self._expand(body, kind == _ZSTD_DICTIONARY)
            self.check_size(message)
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
        parts = tuple(chunk_lengths(count, self._settings.chunk_tokens))
        if self._settings.memory_share and len(parts) > len(reader):
            raise FormatError("damaged frame: it ends too early")
        memories = tuple(bytes(reader.take(reader.varint())) if self._settings.memory_share else b"" for _ in parts)
        return EncodedGroup(parts, memories, bytes(reader.take(len(reader))))

    def check_size(self, message: bytes | bytearray) -> None:
        """Raise FormatError where a message is longer than agreed."""
        if len(message) > self._settings.max_bytes:
            raise FormatError(f"a frame of more than {self._settings.max_bytes} bytes: raise max_bytes")

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
        unpacker = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW, **about).decompressobj()
        data, message = _MAGIC + body, bytearray()
        at = 0
        try:
            while at < len(data) and not unpacker.eof:
                message += unpacker.decompress(data[at : at + _STEP])
                at += _STEP
                self.check_size(message)
        except zstandard.ZstdError as error:
            raise FormatError("damaged frame: zstd does not read it") from error
        if not unpacker.eof or unpacker.unused_data or at < len(data):
            raise FormatError("damaged frame: it does not end where zstd does")
        return bytes(message)


_MAGIC = b"\x28\xb5\x2f\xfd"  # begins every zstd frame


def _bare(frame: bytes) -> bytes:
    return frame[len(_MAGIC) :]
