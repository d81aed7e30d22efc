"""Bytes to token ids and back, for tokenizers of the byte-level BPE kind (GPT-2 and its many descendants)."""

import hashlib
import re
from pathlib import Path
from typing import Any

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


def _bytes_of_ids(vocabulary: dict[str, int], added: set[int]) -> dict[int, bytes]:
    """The bytes of each id, in order of ids. Substitutes are replaced by their bytes; added tokens are plain text."""
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
    return result


class ByteTokenizer:
    """A byte-level BPE tokenizer. Special tokens in a text are treated as text, and each id has exact bytes."""

    def __init__(self, backend: Any, name: str) -> None:
        """backend: a `tokenizers.Tokenizer`; name: for messages. Raises ModelNotFoundError if not byte-level BPE."""
        kinds = f"{backend.pre_tokenizer} {backend.decoder}"
        if type(backend.model).__name__ != "BPE" or "ByteLevel" not in kinds:
            raise ModelNotFoundError(f"{name}: its tokenizer is not byte-level BPE, which memcodec requires")
        self._backend = backend
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bytes = _bytes_of_ids(backend.get_vocab(with_added_tokens=True), set(backend.get_added_tokens_decoder()))
        self.missing_bytes = set(range(256)) - {value[0] for value in self._bytes.values() if len(value) == 1}
        # A decoder needs only the bytes of each id, so merges and the version of the library may differ.
        lengths = np.array([len(value) for value in self._bytes.values()], dtype="<u4")
        ids = np.array(list(self._bytes), dtype="<u4")
        self.digest = hashlib.sha256(ids.tobytes() + lengths.tobytes() + b"".join(self._bytes.values())).digest()

    @classmethod
    def load(cls, folder: Path) -> "ByteTokenizer":
        """Load the tokenizer of a model folder. Raises ModelNotFoundError."""
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
        return cls(backend, folder.name)

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int64 [tokens], without any added tokens."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes of token ids. An id that the tokenizer does not have stands for no bytes."""
        return b"".join(self._bytes.get(i, b"") for i in ids.tolist())

    def prefix(self) -> tuple[int, ...]:
        """Token ids of the text before every chunk."""
        return tuple(self.encode(PREFIX).tolist())


def _fast(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())


def _converted(folder: Path) -> Any:
    """A tokenizer that transformers converts from vocab.json and merges.txt, or from other files."""
    from memcodec.models import floats  # raises MissingDependencyError without transformers

    with floats.quiet():
        tokenizer: Any = floats.auto_tokenizer().from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return getattr(tokenizer, "backend_tokenizer", None)
