"""Primers: text that is agreed once, and that every group or frame sees as context: the LM's answer to a dictionary."""

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from memcodec.container import PRIMER_BYTES
from memcodec.errors import EncodeError, FormatError
from memcodec.files.write import replace
from memcodec.models.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from memcodec.codec import Codec

DEFAULT_TOKENS = 400
MAX_PRIMER = 1 << 15  # tokens: more than any window

_CANDIDATES = 5  # messages that are tried in each round of training
_JUDGES = 12  # messages on which they are tried
_WORTH = 0.003  # part of the judges' bits that a message must save
_FILE_BYTES = 1 << 24


@dataclass(frozen=True)
class Primer:
    """A text as one model's tokens, int64 [tokens]. `Codec.with_primer` puts it before everything."""

    text: bytes
    tokens: np.ndarray

    def __post_init__(self) -> None:
        """Raises EncodeError where it has no tokens, or too many."""
        if not 1 <= len(self.tokens) <= MAX_PRIMER:
            raise EncodeError(f"a primer of {len(self.tokens):,} tokens: give 1 to {MAX_PRIMER:,}")

    def __repr__(self) -> str:
        return f"<memcodec.Primer {self.identity.hex()}: {len(self.tokens)} tokens>"

    @cached_property
    def identity(self) -> bytes:
        """The first bytes of the SHA-256 of its tokens, 4 bytes each: what a file says of the primer that it needs."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).digest()[:PRIMER_BYTES]

    def _checksum(self) -> bytes:
        """Of a file: the same over tokens and text."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes() + self.text).digest()[:PRIMER_BYTES]

    @classmethod
    def from_texts(
        cls, texts: Iterable[str | bytes], tokens: int = DEFAULT_TOKENS, model: "str | Codec" = DEFAULT_MODEL
    ) -> "Primer":
        """The first of some texts, a line feed behind each, as many as `tokens` have room for; of one, its beginning.

        model: whose tokens they are: a name as in `Codec.load`, or a codec. Raises EncodeError, ModelNotFoundError.
        """
        tokenizer = _tokenizer(model)
        found = np.empty(0, dtype=np.int64)
        for text in texts:
            new = tokenizer.encode(_line(text))
            if len(found) + len(new) > tokens:
                found = found if len(found) else new[:tokens]
                break
            found = np.concatenate([found, new])
        return cls(tokenizer.decode(found), found)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Primer":
        """Read a primer from a file. Raises FormatError where it is none, or damaged; OSError."""
        name = os.fspath(path)
        if Path(path).stat().st_size > _FILE_BYTES:
            raise FormatError(f"{name}: not a primer")
        return cls.from_bytes(Path(path).read_bytes(), name)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "primer") -> "Primer":
        """The same from what `to_bytes` gave."""
        try:
            tensors = safetensors.numpy.load(data)
            text, tokens = tensors["text"], tensors["tokens"]
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise FormatError(f"{name}: not a primer: make one with memcodec primer train") from error
        right = text.dtype == np.uint8 and tokens.dtype == np.int32 and text.ndim == tokens.ndim == 1
        if not right or not 1 <= len(tokens) <= MAX_PRIMER or tokens.min() < 0:
            raise FormatError(f"{name}: damaged primer")
        primer = cls(text.tobytes(), tokens.astype(np.int64))
        if tensors.get("hash", np.empty(0)).tobytes() != primer._checksum():
            raise FormatError(f"{name}: damaged primer: its hash does not match")
        return primer

    def to_bytes(self) -> bytes:
        """A safetensors file: `text`, U8; `tokens`, I32; `hash`, U8 [8]."""
        tensors = {
            "text": np.frombuffer(self.text, dtype=np.uint8),
            "tokens": self.tokens.astype(np.int32),
            "hash": np.frombuffer(self._checksum(), dtype=np.uint8),
        }
        return bytes(safetensors.numpy.save(tensors, {"memcodec-primer": "1"}))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all. Raises OSError."""
        replace(Path(path), [self.to_bytes()])

    @classmethod
    def train(
        cls,
        codec: "Codec",
        messages: Sequence[str | bytes],
        tokens: int = DEFAULT_TOKENS,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> "Primer":
        """Pick messages that help most on others of the same set, one after the other, within so many tokens.

        In each round a few random messages are tried, each behind what was picked before, on a few others; the best
        is kept, as long as it saves something. seed: of what is random; progress: is told tokens picked, and `tokens`.
        Raises EncodeError for less than 4 different messages.
        """
        known = list(dict.fromkeys(_line(message) for message in messages))
        random.Random(seed).shuffle(known)
        if len(known) < 4:
            raise EncodeError(f"{len(known)} different messages: give 4 or more to train a primer")
        plain = codec.with_primer(None)
        judges = known[: min(_JUDGES, len(known) // 2)]
        pool = [new for text in known[len(judges) :] if len(new := plain.tokenizer.encode(text))]
        picked = np.empty(0, dtype=np.int64)
        cost = bits(plain, judges)
        while pool:
            tried = [new for new in pool if len(picked) + len(new) <= tokens][:_CANDIDATES]
            results = []
            for new in tried:
                primer = np.concatenate([picked, new])
                results.append((bits(plain.with_primer(cls(plain.tokenizer.decode(primer), primer)), judges), primer))
            if not results:
                break
            least, best = min(results, key=lambda pair: pair[0])
            if least > cost * (1 - _WORTH) and len(picked):
                break
            picked, cost = best, least
            pool = [new for new in pool if not any(new is other for other in tried)]
            if progress is not None:
                progress(len(picked), tokens)
        if not len(picked):
            picked = pool[0][:tokens]
        return cls(plain.tokenizer.decode(picked), picked)


def bits(codec: "Codec", messages: Sequence[str | bytes]) -> float:
    """Bits of messages as the codec's LM sees them, each by itself: what an ideal coder would need."""
    from itertools import repeat

    from memcodec.document.plan import visible_tokens
    from memcodec.groups import predict

    groups = [[tokens] for message in messages if len(tokens := codec.tokenizer.encode(_text(message)))]
    seen = visible_tokens("auto", codec.lm.positions - len(codec.lm.prefix))
    return sum(found.bits() for found in predict(codec.lm, groups, seen, repeat(None)))


def _text(message: str | bytes) -> str:
    return message if isinstance(message, str) else message.decode("utf-8", "replace")


def _line(message: str | bytes) -> str:
    text = _text(message)
    return text if text.endswith("\n") else text + "\n"


def _tokenizer(model: "str | Codec") -> Any:
    if not isinstance(model, str):
        return model.tokenizer
    from memcodec.models import registry
    from memcodec.models.tokenizer import ByteTokenizer

    return ByteTokenizer.load(registry.resolve(model).path)
