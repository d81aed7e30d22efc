"""Primers: a text that both sides have, and that every group or frame sees as context, like a zstd dictionary."""

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from memcodec.container import PRIMER_BYTES
from memcodec.document.inputs import as_binary, as_bytes, as_many
from memcodec.document.plan import visible_tokens
from memcodec.document.spans import is_worthwhile
from memcodec.errors import EncodeError, FormatError, ModelMismatchError
from memcodec.models import registry
from memcodec.models.loaded import HasModel, LoadedModel
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.prediction import predict
from memcodec.settings import DEFAULT_MODEL, DEFAULT_PRIMER_TOKENS, MAX_PRIMER_TOKENS, check_whole
from memcodec.storage.write import replace
from memcodec.wording import counted

_CANDIDATES = 5  # messages that each round of training tries
_VALIDATION_MESSAGES = 12  # messages that the candidates are tried on
_LEAST_SAVING = 0.003  # share of the bits of the validation messages that another message must save
MAX_FILE_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Primer:
    """A text as the tokens of one model, int64 [tokens]. `Codec.with_primer` puts it before everything.

    Two are equal if they have the same text and tokens.
    """

    text: bytes
    tokens: np.ndarray

    def __post_init__(self) -> None:
        """Raises EncodeError if it has no tokens, or too many."""
        if not 1 <= len(self.tokens) <= MAX_PRIMER_TOKENS:
            raise EncodeError(f"a primer of {len(self.tokens):,} tokens: give 1 to {MAX_PRIMER_TOKENS:,}")

    def __repr__(self) -> str:
        return f"<memcodec.Primer {self.identity.hex()}: {counted(len(self.tokens), 'token')}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Primer):
            return NotImplemented
        return self.text == other.text and np.array_equal(self.tokens, other.tokens)

    def __hash__(self) -> int:
        return hash(self.identity)

    @cached_property
    def identity(self) -> bytes:
        """The first bytes of the SHA-256 of its tokens, as 4 bytes each: how a file names the primer that it needs."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).digest()[:PRIMER_BYTES]

    def _checksum(self) -> bytes:
        """The checksum in a primer file: as `identity`, but over tokens and text."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes() + self.text).digest()[:PRIMER_BYTES]

    def put_before(self, model: LoadedModel) -> LoadedModel:
        """A model that reads this primer before everything else; shares the weights.

        Raises ModelNotFoundError, EncodeError if the model has too few positions, ModelMismatchError if the primer was
        made for another model.
        """
        if model.tokenizer.decode(self.tokens) != self.text or self.tokens.max() >= model.lm.vocabulary:
            raise ModelMismatchError(f"the primer was made for another model than {model.name!r}: make one for it")
        return model.with_primer_tokens(self.tokens)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str | bytes],
        tokens: int = DEFAULT_PRIMER_TOKENS,
        model: str | os.PathLike[str] | HasModel = DEFAULT_MODEL,
    ) -> "Primer":
        """A primer of the first texts, each followed by a line feed: as many as fit into `tokens` tokens.

        If the first text is too long, its beginning is used. model: a name as in `Codec.load`, a codec, or a loaded
        model: the primer is for this model. Raises EncodeError, ModelNotFoundError; TypeError for a single text.
        """
        _check_tokens(tokens)
        if isinstance(model, str | os.PathLike):
            tokenizer = ByteTokenizer(registry.resolve(model).path)
        else:
            tokenizer = model.model.tokenizer
        chosen = np.empty(0, dtype=np.int64)
        for number, text in enumerate(as_many(texts, "texts")):
            new = tokenizer.encode(_line(text, f"text {number}"))
            if len(chosen) + len(new) > tokens:
                chosen = chosen if len(chosen) else new[:tokens]
                break
            chosen = np.concatenate([chosen, new])
        return cls(tokenizer.decode(chosen), chosen)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Primer":
        """Read a primer file. Raises FormatError if it is not a primer file or is damaged; OSError."""
        with Path(path).open("rb") as file:
            return cls.from_bytes(file.read(MAX_FILE_BYTES + 1), os.fspath(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "primer") -> "Primer":
        """The primer from what `to_bytes` returned. name: for error messages. Raises FormatError."""
        data = as_binary(data, "data")
        try:
            if len(data) > MAX_FILE_BYTES:
                raise ValueError("it is longer than any primer")
            tensors = safetensors.numpy.load(data)
            text, tokens = tensors["text"], tensors["tokens"]
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise FormatError(f"{name}: not a primer: make one with memcodec primer train") from error
        right = text.dtype == np.uint8 and tokens.dtype == np.int32 and text.ndim == tokens.ndim == 1
        if not right or not 1 <= len(tokens) <= MAX_PRIMER_TOKENS or tokens.min() < 0:
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
        """Write a primer file, completely or not at all. Raises OSError."""
        replace(Path(path), [self.to_bytes()])

    @classmethod
    def train(
        cls,
        model: HasModel,
        messages: Sequence[str | bytes],
        tokens: int = DEFAULT_PRIMER_TOKENS,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> "Primer":
        """Select messages, of at most `tokens` tokens in total, that make other messages of their kind smaller.

        Each round tries a few random messages, each after those already selected, on a few other messages, and keeps
        the best one while it saves enough. model: a codec or a loaded model, whose own primer is not used; seed: of the
        random choices; progress: is called with the tokens selected so far, and `tokens`. Messages that frames would
        not give to the LM are left out. Raises EncodeError for fewer than 4 different ones.
        """
        if isinstance(model, str | os.PathLike):
            raise TypeError(f"model: give what Codec.load returns, not {type(model).__name__}")
        _check_tokens(tokens)
        loaded = model.model
        tokenizer = loaded.tokenizer
        given = dict.fromkeys(_line(text, f"message {n}") for n, text in enumerate(as_many(messages, "messages")))
        different = [text for text in given if is_worthwhile(text.encode(), len(tokenizer.encode(text)))]
        random.Random(seed).shuffle(different)
        if len(different) < 4:
            raise EncodeError(
                f"{counted(len(different), 'different message')} of text: give 4 or more to train a primer"
            )
        picked = np.empty(0, dtype=np.int64)
        validation = different[: min(_VALIDATION_MESSAGES, len(different) // 2)]
        pool = [new for text in different[len(validation) :] if len(new := tokenizer.encode(text))]
        cost = bits(loaded.with_primer_tokens(picked), validation)
        while pool:
            tried = [new for new in pool if len(picked) + len(new) <= tokens][:_CANDIDATES]
            if not tried:
                break
            results = []
            for new in tried:
                primer = np.concatenate([picked, new])
                results.append((bits(loaded.with_primer_tokens(primer), validation), primer))
            least, best = min(results, key=lambda pair: pair[0])
            if least > cost * (1 - _LEAST_SAVING) and len(picked):
                break
            picked, cost = best, least
            pool = [new for new in pool if not any(new is other for other in tried)]
            if progress is not None:
                progress(len(picked), tokens)
        if not len(picked):
            picked = pool[0][:tokens]
        return cls(tokenizer.decode(picked), picked)


def as_primer(primer: Primer | None) -> Primer | None:
    """The same primer, or None. Raises TypeError for anything else, such as the name of its file."""
    if not isinstance(primer, Primer | None):
        raise TypeError(f"primer: give what Primer.load returns, not {type(primer).__name__}")
    return primer


def bits(model: HasModel, messages: Sequence[str | bytes]) -> float:
    """Bits that an ideal coder would need for messages, each coded separately, with a model and its primer."""
    loaded = model.model
    groups = [[tokens] for message in messages if len(tokens := loaded.tokenizer.encode(_text(message)))]
    context = visible_tokens("auto", loaded.positions)
    return sum(found.bits() for found in predict(loaded.lm, groups, context, repeat(None)))


def _check_tokens(tokens: int) -> None:
    check_whole("tokens", tokens, 1, MAX_PRIMER_TOKENS, f"1 to {MAX_PRIMER_TOKENS:,}")


def _text(message: str | bytes, name: str = "a message") -> str:
    """The text of a message. name: for errors. Raises EncodeError for text that UTF-8 cannot encode."""
    return as_bytes(message, name).decode("utf-8", "replace")


def _line(message: str | bytes, name: str) -> str:
    text = _text(message, name)
    return text if text.endswith("\n") else text + "\n"
