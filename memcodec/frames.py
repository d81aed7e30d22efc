"""Frames: short messages without a container; both sides agree once on model and settings (spec/FRAMES.md).

If the LM encodes the message, the first byte is its number of tokens, up to 223; other values of the first byte say
how the rest is packed.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import zstandard

from memcodec.coding.corrections import EncodedGroup
from memcodec.container import Reader, varint, zstd_frame
from memcodec.document.lengths import chunk_lengths
from memcodec.document.plan import cut_chunks, visible_tokens
from memcodec.document.spans import is_worthwhile
from memcodec.errors import ChecksumError, EncodeError, FormatError, wrong_file
from memcodec.groups import decode_all, encode_all, verify_all
from memcodec.lm.ahead import ending
from memcodec.memory.readout import share_steps
from memcodec.memory.sites import readout_site
from memcodec.models.loaded import LoadedModel
from memcodec.progress import ProgressCallback, Reporter
from memcodec.settings import (
    DEFAULT_CHUNK_TOKENS,
    DEFAULT_EFFORT,
    Readout,
    check_chunk_tokens,
    check_whole,
    plain_numbers,
)
from memcodec.wording import counted

T = TypeVar("T")

SHORT = 224  # from this number of tokens on it is a varint after the first byte
_LONG, _ZSTD, _ZSTD_DICTIONARY, _RAW = 252, 253, 254, 255
MAX_CHECKSUM = 4  # bytes
DEFAULT_MAX_BYTES = 1 << 16  # of a message
MOST_BYTES = 1 << 30  # of a message, whatever both sides agree on
_MOST_STORED = 1 << 23  # bytes of stored messages that are kept while others are decoded
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # the first bytes of every zstd frame, which are left out


@dataclass(frozen=True)
class FrameSettings:
    """What the two sides agree on besides the model and the primer.

    checksum: bytes of the message's CRC-32 at the end of each frame, 0 to 4; dictionary: a zstd dictionary for messages
    that the LM does not encode; memory_share, effort: as in `Readout`; chunk_tokens: tokens of one memory; max_bytes:
    of a message, at most 2^30: both sides refuse larger ones.
    """

    checksum: int = 1
    dictionary: bytes = b""
    memory_share: float = 0.0
    effort: int = DEFAULT_EFFORT
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    max_bytes: int = DEFAULT_MAX_BYTES

    def __post_init__(self) -> None:
        """Raises as `check`."""
        plain_numbers(self)
        self.check()

    @property
    def site(self) -> Readout:
        """The settings of the memories."""
        return Readout(self.memory_share, self.effort)

    def check(self) -> None:
        """Raise EncodeError for settings out of range."""
        if type(self.checksum) is not int or not 0 <= self.checksum <= MAX_CHECKSUM:
            raise EncodeError(f"checksum {self.checksum}: give 0 to {MAX_CHECKSUM} bytes")
        check_chunk_tokens(self.chunk_tokens)
        check_whole("max bytes", self.max_bytes, 1, MOST_BYTES, f"1 to {MOST_BYTES}")
        for name, value in (("memory share", self.memory_share), ("effort", self.effort)):
            if value is None:  # the value of the level in a `Readout`
                raise EncodeError(f"{name} None: give a number, since frames have no levels")
        self.site.check_with(self.chunk_tokens)


def encode(
    model: LoadedModel, messages: list[bytes], settings: FrameSettings, progress: ProgressCallback | None = None
) -> list[bytes]:
    """Messages as frames; each that occurs more than once is encoded once. Raises EncodeError."""
    packer = Packer(settings)
    for number, message in enumerate(messages):
        if len(message) > settings.max_bytes:
            what = f"message {number}" if len(messages) > 1 else "the message"
            raise EncodeError(
                f"{what} has {len(message):,} bytes: frames have {settings.max_bytes:,} at most (max_bytes)"
            )
    texts = {message: _tokens_of(message, model) for message in messages}
    groups = [cut_chunks(tokens, settings.chunk_tokens) for tokens in texts.values() if len(tokens)]
    report = Reporter(progress, "fit", sum(map(len, texts)), [len(chunk) for group in groups for chunk in group])
    encoded = encode_all(model.lm, readout_site(model.lm, settings.site), groups, _context(model), report)
    with ending(encoded):
        frames = {
            message: packer.pack(message, next(encoded) if len(tokens) else None) for message, tokens in texts.items()
        }
    return [frames[message] for message in messages]


def decode(
    model: LoadedModel,
    frames: list[bytes],
    settings: FrameSettings,
    batch: int | None,
    progress: ProgressCallback | None = None,
    labels: Sequence[str] | None = None,
) -> Iterator[bytes]:
    """The messages of frames in their order. Each frame that occurs more than once is decoded once.

    The messages that the LM decodes are in memory together, and up to 8 MiB of the others. batch: messages decoded side
    by side; labels: a name of each frame for errors, by default its number if there are several. Raises FormatError and
    ChecksumError: those of stored messages before the LM decodes any.
    """

    def tokens_of(groups: list[EncodedGroup], _: list[int]) -> Iterator[np.ndarray]:
        report = Reporter(progress, "decode", 1, [group.tokens for group in groups])
        site = readout_site(model.lm, settings.site)
        return decode_all(model.lm, site, groups, _context(model), batch, report)

    return _decode(model, frames, settings, tokens_of, labels)


def verify(
    model: LoadedModel,
    messages: list[bytes],
    frames: list[bytes],
    settings: FrameSettings,
    in_steps: bool = False,
    batch: int | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Decode frames, and compare them with their messages. Raises MachineError.

    in_steps: token by token, with `batch` messages side by side, instead of full passes (see `groups.verify_all`).
    """

    def tokens_of(groups: list[EncodedGroup], numbers: list[int]) -> Iterator[np.ndarray]:
        report = Reporter(progress, "verify", 1, [group.tokens for group in groups])
        known = (packer.chunks(_tokens_of(messages[i], model)) for i in numbers)
        return verify_all(model.lm, readout_site(model.lm, settings.site), groups, known, _context(model), report)

    packer = Packer(settings)
    try:
        if in_steps:
            decoded = list(decode(model, frames, settings, batch, progress))
        else:
            decoded = list(_decode(model, frames, settings, tokens_of))
    except (FormatError, ChecksumError) as error:
        raise wrong_file(f"an encoded document does not decode here ({error})") from error
    if decoded != messages:
        raise wrong_file("an encoded document decodes to other bytes here")


def _decode(
    model: LoadedModel,
    frames: list[bytes],
    settings: FrameSettings,
    tokens_of: Callable[[list[EncodedGroup], list[int]], Iterator[np.ndarray]],
    labels: Sequence[str] | None = None,
) -> Iterator[bytes]:
    """The messages of frames. tokens_of: decodes the groups of frames with these numbers; labels: as in `decode`."""
    packer = Packer(settings)

    def naming(number: int, action: Callable[[], T]) -> T:
        """What an action on a frame returns; its errors say which frame it was."""
        try:
            return action()
        except (FormatError, ChecksumError) as error:
            if labels is None and len(frames) == 1:
                raise
            label = f"frame {number} of {len(frames)}, from 0" if labels is None else labels[number]
            raise type(error)(f"{label}: {error}") from error

    numbers: dict[bytes, int] = {}  # of the first of equal frames
    for i, frame in enumerate(frames):
        numbers.setdefault(frame, i)
    waiting: list[tuple[bytes, EncodedGroup]] = []
    messages: dict[bytes, bytes] = {}
    stored = 0  # bytes of stored messages that are kept; the others are read again when they are returned
    for frame, i in numbers.items():  # all of them before the LM decodes any
        found = naming(i, partial(packer.unpack, frame))
        if isinstance(found, EncodedGroup):
            waiting.append((frame, found))
        elif stored + len(found) <= _MOST_STORED:
            messages[frame] = found
            stored += len(found)
    waiting.sort(key=lambda pair: -pair[1].tokens)  # so that the messages of a batch are of similar length
    decoded = tokens_of([group for _, group in waiting], [numbers[frame] for frame, _ in waiting])
    for (frame, _), tokens in zip(waiting, decoded, strict=True):
        naming(numbers[frame], partial(packer.check_size, model.tokenizer.sizes([tokens])[0]))
        messages[frame] = model.tokenizer.decode(tokens)
        naming(numbers[frame], partial(packer.check, messages[frame], frame))
    for i, frame in enumerate(frames):
        message = messages[frame] if frame in messages else naming(i, partial(packer.unpack, frame))
        assert isinstance(message, bytes)
        yield message


def _context(model: LoadedModel) -> int:
    return visible_tokens("auto", model.positions)


def _tokens_of(message: bytes, model: LoadedModel) -> np.ndarray:
    """The tokens of a message, int64; empty if they would not restore it, or if the LM should not encode it."""
    try:
        tokens = model.tokenizer.encode(message.decode())
    except UnicodeDecodeError:
        return np.empty(0, dtype=np.int64)
    known = not len(tokens) or tokens.max() < model.lm.vocabulary
    restored = known and model.tokenizer.decode(tokens) == message
    return tokens if restored and is_worthwhile(message, len(tokens)) else tokens[:0]


def stated_tokens(frame: bytes) -> int:
    """The number of tokens that the LM must decode for a frame; 0 if it is stored, or damaged."""
    if not frame or frame[0] > _LONG:
        return 0
    try:
        return frame[0] if frame[0] != _LONG else Reader(frame[1:], "a frame").varint() + SHORT
    except FormatError:
        return 0


class Packer:
    """Packs and unpacks frames; depends on bytes and lengths only, not on models."""

    def __init__(self, settings: FrameSettings) -> None:
        self._settings = settings
        self._share = share_steps(settings.memory_share)  # 0 for one that is too small
        options: dict[str, Any] = {"level": 19, "write_content_size": False, "write_checksum": False}
        options["write_dict_id"] = False
        self._zstd = zstandard.ZstdCompressor(**options)
        self._dictionary = _dictionary_of(settings.dictionary) if settings.dictionary else None
        self._zstd_with_dictionary = (
            zstandard.ZstdCompressor(dict_data=self._dictionary, **options) if self._dictionary else None
        )

    def pack(self, message: bytes, group: EncodedGroup | None) -> bytes:
        """Returns the shortest frame of a message: from the LM (`group`), if it encodes it; from zstd; or raw."""
        frames = [bytes([_RAW]) + message, bytes([_ZSTD]) + _without_magic(self._zstd.compress(message))]
        if self._zstd_with_dictionary is not None:
            packed = self._zstd_with_dictionary.compress(message)
            frames.append(bytes([_ZSTD_DICTIONARY]) + _without_magic(packed))
        if group is not None:
            count = group.tokens
            head = bytes([count]) if count < SHORT else bytes([_LONG]) + varint(count - SHORT)
            if self._share:
                for memory in group.memories:
                    head += varint(len(memory)) + memory
            frames.append(head + group.corrections)
        return min(frames, key=len) + self._checksum(message)

    def unpack(self, frame: bytes) -> bytes | EncodedGroup:
        """The message of a frame, or the group that the LM must decode. Raises FormatError, ChecksumError."""
        end = len(frame) - self._settings.checksum
        if end < 1:
            raise FormatError(
                f"a frame of {counted(len(frame), 'byte')}: frames have {1 + self._settings.checksum} at least"
            )
        kind, body = frame[0], frame[1:end]
        if kind in (_ZSTD, _ZSTD_DICTIONARY, _RAW):
            message = body if kind == _RAW else self._expand(body, kind == _ZSTD_DICTIONARY)
            self.check_size(len(message))
            self.check(message, frame)
            return message
        reader = Reader(body, "a frame")
        count = kind
        if kind == _LONG:
            count = reader.varint() + SHORT
        elif kind >= SHORT:
            raise FormatError(f"a frame of kind {kind}: install a newer memcodec")
        self.check_size(count)  # a token has a byte or more
        if not count:
            raise FormatError("damaged frame: no tokens")
        if not self._share:  # one chunk: they matter to memories only, and take memory
            return EncodedGroup((count,), (b"",), bytes(reader.take(len(reader))))
        if -(-count // self._settings.chunk_tokens) > len(reader):
            raise FormatError("damaged frame: it ends too early")
        lengths = tuple(chunk_lengths(count, self._settings.chunk_tokens))
        memories = tuple(bytes(reader.take(reader.varint())) for _ in lengths)
        return EncodedGroup(lengths, memories, bytes(reader.take(len(reader))))

    def chunks(self, tokens: np.ndarray) -> list[np.ndarray]:
        """The tokens of a message as `unpack` cuts them into chunks."""
        return cut_chunks(tokens, self._settings.chunk_tokens) if self._share else [tokens]

    def check_size(self, size: int) -> None:
        """Raise FormatError if a message has more bytes than agreed."""
        if size > self._settings.max_bytes:
            raise FormatError(f"a frame of more than {self._settings.max_bytes} bytes: raise max_bytes")

    def check(self, message: bytes, frame: bytes) -> None:
        """Raise ChecksumError if a decoded message does not match the checksum of its frame."""
        if self._checksum(message) != frame[len(frame) - self._settings.checksum :]:
            raise ChecksumError("a frame does not match its checksum: damaged, or of another model, primer or setting")

    def _checksum(self, message: bytes) -> bytes:
        return zlib.crc32(message).to_bytes(4, "little")[: self._settings.checksum]

    def _expand(self, body: bytes, with_dictionary: bool) -> bytes:
        if with_dictionary and self._dictionary is None:
            raise FormatError("the frame needs a zstd dictionary: give the one that it was made with")
        dictionary = self._dictionary if with_dictionary else None
        try:
            return b"".join(zstd_frame.expand(_ZSTD_MAGIC + body, self._settings.max_bytes, dictionary))
        except zstandard.ZstdError as error:
            raise FormatError("damaged frame: zstd cannot read it") from error


def _dictionary_of(data: bytes) -> zstandard.ZstdCompressionDict:
    """A zstd dictionary. Raises EncodeError if it is damaged."""
    dictionary = zstandard.ZstdCompressionDict(data)
    try:
        zstandard.ZstdDecompressor(dict_data=dictionary).decompressobj()  # which reads it
    except zstandard.ZstdError as error:
        raise EncodeError("the zstd dictionary is damaged: give it as zstd --train wrote it") from error
    return dictionary


def _without_magic(frame: bytes) -> bytes:
    return frame[len(_ZSTD_MAGIC) :]
