"""Bytes to token ids and back, for tokenizers of the byte-level BPE kind (GPT-2 and its many descendants)."""

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memcodec.errors import MissingDependencyError, ModelNotFoundError
from memcodec.models.placeholders import check_content

_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "vocab.txt")  # one at least
PREFIX = "..."  # the text before every chunk, since most chunks begin in the middle of a text


def _byte_of_character() -> dict[int, int]:
    """The byte that each of GPT-2's 256 printable substitutes stands for, by code point."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {b: b for b in plain} | {256 + i: b for i, b in enumerate(others)}


class TokenBytes(NamedTuple):
    """The bytes of every token: ids, ascending, and lengths, uint32 [tokens], and all bytes one after the other, uint8.

    A decoder needs no more, so merges and the version of the library `tokenizers` may differ.
    """

    ids: np.ndarray
    lengths: np.ndarray
    joined: np.ndarray

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the three, which stands for the tokenizer in the identity of an LM."""
        numbers = (self.ids.astype("<u4"), self.lengths.astype("<u4"))
        return hashlib.sha256(b"".join(array.tobytes() for array in (*numbers, self.joined))).digest()


def _bytes_of_tokens(vocabulary: dict[str, int], added: set[int]) -> TokenBytes:
    """The bytes of each token. Substitutes are replaced by their bytes; added tokens are plain text."""
    byte_of = _byte_of_character()
    substitutes = re.compile("[" + re.escape("".join(map(chr, byte_of))) + "]*")
    result: dict[int, bytes] = {}
    plain: list[tuple[str, int]] = []
    for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        result[token_id] = token.encode()
        if token_id not in added and substitutes.fullmatch(token):
            plain.append((token, token_id))
    joined = "".join(token for token, _ in plain).translate(byte_of).encode("latin-1")  # one byte for each character
    at = 0
    for token, token_id in plain:
        result[token_id] = joined[at : at + len(token)]
        at += len(token)
    return TokenBytes(
        np.array(list(result), dtype=np.uint32),
        np.array([len(value) for value in result.values()], dtype=np.uint32),
        np.frombuffer(b"".join(result.values()), dtype=np.uint8),
    )


class ByteTokenizer:
    """A byte-level BPE tokenizer. Special tokens in a text are treated as text, and each id has exact bytes."""

    def __init__(self, folder: Path, tokens: TokenBytes | None = None) -> None:
        """tokens: of the tokenizer in this folder, if they are known: then it is loaded when it first encodes.

        Raises ModelNotFoundError.
        """
        self._folder = folder
        self.tokens = tokens or _bytes_of_tokens(
            self._backend.get_vocab(with_added_tokens=True), set(self._backend.get_added_tokens_decoder())
        )
        self._ids = self.tokens.ids.astype(np.int64)
        self._ends = np.cumsum(self.tokens.lengths, dtype=np.int64)
        self._starts = self._ends - self.tokens.lengths
        self._joined = self.tokens.joined.tobytes()
        self.missing_bytes = set(range(256)) - {self._joined[i] for i in self._starts[self.tokens.lengths == 1]}

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer of the library `tokenizers`, which encodes. Raises ModelNotFoundError."""
        backend = _backend_of(self._folder)
        kinds = f"{backend.pre_tokenizer} {backend.decoder}"
        if type(backend.model).__name__ != "BPE" or "ByteLevel" not in kinds:
            raise ModelNotFoundError(
                f"{self._folder.name}: its tokenizer is not byte-level BPE, which memcodec requires"
            )
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return backend

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int64 [tokens], without any added tokens."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes of token ids. An id that the tokenizer does not have stands for no bytes."""
        at = np.searchsorted(self._ids, ids)
        at = at[self._ids[np.minimum(at, len(self._ids) - 1)] == ids]
        places = zip(self._starts[at].tolist(), self._ends[at].tolist(), strict=True)
        return b"".join(self._joined[start:end] for start, end in places)

    def prefix(self) -> tuple[int, ...]:
        """Token ids of the text before every chunk."""
        return tuple(self.encode(PREFIX).tolist())


def _backend_of(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises ModelNotFoundError."""
    found = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if found is None:
        raise ModelNotFoundError(f"{folder}: it has no tokenizer: add the tokenizer.json of the model")
    check_content(found)
    try:
        backend = _fast(folder) if (folder / "tokenizer.json").is_file() else _converted(folder)
    except MissingDependencyError:
        raise
    except Exception as error:  # tokenizers and transformers raise various types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelNotFoundError(f"{folder}: its tokenizer cannot be loaded ({reason})") from error
    if backend is None:
        raise ModelNotFoundError(f"{folder}: it has no fast tokenizer (tokenizer.json), which memcodec requires")
    return backend


def _fast(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())


def _converted(folder: Path) -> Any:
    """A tokenizer that transformers converts from vocab.json and merges.txt, or from other files."""
    from memcodec.models import floats  # raises MissingDependencyError without transformers

    with floats.quiet():
        tokenizer: Any = floats.auto_tokenizer().from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return getattr(tokenizer, "backend_tokenizer", None)
