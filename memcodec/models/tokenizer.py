"""Bytes to token ids and back, for tokenizers of the byte-level BPE kind (GPT-2 and its many descendants)."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memcodec.errors import MissingDependencyError, ModelNotFoundError, first_line
from memcodec.lm.team import team_of
from memcodec.models.placeholders import check_content

FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "vocab.txt")  # one at least
_ALONE = 1 << 14  # characters: so little text is encoded by one thread
PREFIX = "..."  # the text before every group, since most groups begin in the middle of a text


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
    """The bytes of each token. Substitutes are replaced by their bytes; added tokens are plain text.

    Raises ValueError if two tokens have the same id, which then has no definite bytes.
    """
    byte_of = _byte_of_character()
    substitutes = re.compile("[" + re.escape("".join(map(chr, byte_of))) + "]*")
    result: dict[int, bytes] = {}
    plain: list[tuple[str, int]] = []
    for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        if token_id in result:
            raise ValueError(f"two tokens with the id {token_id}")
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
        self.team = team_of(1)  # encodes several texts
        self.tokens = tokens or self._read_tokens()
        self._ids = self.tokens.ids.astype(np.int64)
        self._are_dense = bool(np.array_equal(self._ids, np.arange(len(self._ids))))
        # Of each token, and last of an id that the tokenizer does not have: no bytes.
        self._lengths = np.append(self.tokens.lengths.astype(np.int64), 0)
        self._starts = np.cumsum(self._lengths) - self._lengths
        single = self._starts[:-1][self.tokens.lengths == 1]
        self.missing_bytes = set(range(256)) - set(self.tokens.joined[single].tolist())

    def _read_tokens(self) -> TokenBytes:
        """The bytes of the tokens, from the tokenizer in the folder. Raises ModelNotFoundError."""
        backend = self._backend
        try:
            return _bytes_of_tokens(backend.get_vocab(with_added_tokens=True), set(backend.get_added_tokens_decoder()))
        except ValueError as error:
            raise ModelNotFoundError(
                f"{self._folder}: its tokenizer has {error}: correct its tokenizer.json"
            ) from error

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

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for each of several texts, side by side: the library lets other threads run while it encodes."""
        if len(texts) < 2 or sum(map(len, texts)) < _ALONE:
            return [self.encode(text) for text in texts]
        return self.team.each(self.encode, texts)

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes of token ids. An id that the tokenizer does not have stands for no bytes."""
        return self._gathered(self._places(ids)).tobytes()

    def decode_each(self, runs: Sequence[np.ndarray]) -> list[bytes]:
        """`decode` for each of several runs of token ids, at one time."""
        if not runs:
            return []
        places = self._places(np.concatenate(runs))
        joined, ends = self._gathered(places).tobytes(), self._ends(places, runs)
        return [joined[start:end] for start, end in pairwise([0, *ends])]

    def sizes(self, runs: Sequence[np.ndarray]) -> list[int]:
        """The number of bytes of each of several runs of token ids."""
        if not runs:
            return []
        ends = self._ends(self._places(np.concatenate(runs)), runs)
        return [end - start for start, end in pairwise([0, *ends])]

    def _places(self, ids: np.ndarray) -> np.ndarray:
        """Where token ids are among the tokens; after all of them for those that the tokenizer does not have."""
        count = len(self._ids)
        if self._are_dense:
            return np.where((ids >= 0) & (ids < count), ids, count)
        at = np.searchsorted(self._ids, ids)
        return np.where(self._ids[np.minimum(at, count - 1)] == ids, at, count)

    def _gathered(self, places: np.ndarray) -> np.ndarray:
        """The bytes of some tokens, one after the other, uint8."""
        lengths = self._lengths[places]
        sources = np.repeat(self._starts[places] - np.cumsum(lengths) + lengths, lengths)
        sources += np.arange(len(sources))
        return self.tokens.joined[sources]

    def _ends(self, places: np.ndarray, runs: Sequence[np.ndarray]) -> list[int]:
        """Where the bytes of each run end, if they stand one after the other."""
        ends = np.concatenate([[0], np.cumsum(self._lengths[places])])
        found: list[int] = ends[np.cumsum([len(run) for run in runs])].tolist()
        return found

    def prefix(self) -> tuple[int, ...]:
        """Token ids of the text before every group."""
        return tuple(self.encode(PREFIX).tolist())


def _backend_of(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises ModelNotFoundError."""
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise ModelNotFoundError(f"{folder}: it has no tokenizer: add the tokenizer.json of the model")
    check_content(found)
    try:
        backend = _fast(folder) if (folder / "tokenizer.json").is_file() else _converted(folder)
    except MissingDependencyError:
        raise
    except Exception as error:  # tokenizers and transformers raise various types
        raise ModelNotFoundError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from error
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
