"""Memory embeddings outside of files: a text as a few vectors."""

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from memcodec.document.inputs import as_bytes
from memcodec.errors import ChecksumError, EncodeError, FormatError, ModelMismatchError
from memcodec.memory.vectors import unpack
from memcodec.models.loaded import HasModel
from memcodec.settings import MAX_CHUNK_TOKENS, MEMORY_BITS, Prompt
from memcodec.storage.write import replace

if TYPE_CHECKING:
    from memcodec.memory.fitting import Fit, FitCallback

_NUMBERS = ("bits", "tokens", "written", "prefix", "steps", "checksum")


class MemoryEmbedding:
    """A text as a few vectors before the first token of a frozen LM: a reversible sentence embedding.

    vectors: what the LM reads, float32 [n, dimensions]; fit: the packed memory, the number of steps, and the loss and
    accuracy at each step; checksum: the CRC-32 of the text in UTF-8.
    """

    def __init__(self, model: HasModel, fit: "Fit", bits: int, checksum: int) -> None:
        """model: the codec or loaded model whose LM the memory was fitted under. Raises FormatError."""
        self.fit = fit
        self.bits = bits
        self.checksum = checksum
        self._model = model.model
        floats = self._model.floats
        self.vectors = unpack(fit.memory, floats.embedding_size, bits)
        room = floats.max_positions
        needed = len(floats.prefix) + len(self.vectors) + fit.tokens
        if room is not None and needed > room:
            raise FormatError(
                f"a memory of {fit.tokens} tokens: the model has {room} positions: give the model that it was fitted "
                "with"
            )

    @classmethod
    def fit_to(
        cls, model: HasModel, text: str, settings: Prompt, callback: "FitCallback | None" = None
    ) -> "MemoryEmbedding":
        """Fit a memory to a text (`Codec.fit_memory`). Raises EncodeError; MissingDependencyError without PyTorch."""
        from memcodec.memory import fitting

        if not isinstance(text, str):
            raise TypeError(f"text: give str, not {type(text).__name__}")
        tokenizer = model.model.tokenizer
        data = as_bytes(text, "text")
        tokens = tokenizer.encode(text)
        if not 1 <= len(tokens) <= MAX_CHUNK_TOKENS or tokenizer.decode(tokens) != data:
            raise EncodeError(
                f"a text of {len(tokens)} tokens: give 1 to {MAX_CHUNK_TOKENS} tokens, and no characters without tokens"
            )
        (fit,) = fitting.fit(model.model.floats, [tokens], settings, callback)
        return cls(model, fit, settings.bits, zlib.crc32(data))

    @property
    def exact(self) -> bool:
        """Whether `reconstruct` returns the text."""
        return self.fit.exact

    def reconstruct(self) -> str:
        """The text that greedy decoding produces from the memory: the original, if the fit is exact.

        Raises ChecksumError if the fit is exact but the text differs.
        """
        from memcodec.memory import fitting

        (ids,) = fitting.write(self._model.floats, self.vectors[None], self.fit.tokens)
        data = self._model.tokenizer.decode(ids)
        if self.exact and zlib.crc32(data) != self.checksum:
            raise ChecksumError("the text does not match its checksum: damaged file, or another model")
        return data.decode(errors="replace")

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `vectors`, `memory` (the same, packed), and the history of the fit.

        It is written completely or not at all. Raises OSError.
        """
        fit = self.fit
        numbers = (self.bits, fit.tokens, fit.written, fit.prefix, fit.steps, self.checksum)
        about = dict(zip(_NUMBERS, numbers, strict=True)) | {
            "model": self._model.name,
            "weights": self._model.floats.identity.hex(),
            "tokenizer": self._model.tokenizer.tokens.digest.hex(),
        }
        tensors = {
            "vectors": self.vectors,
            "memory": np.frombuffer(fit.memory, dtype=np.uint8),
            "losses": np.array(fit.losses, dtype=np.float32),
            "accuracies": np.array(fit.accuracies, dtype=np.float32),
        }
        replace(Path(path), [safetensors.numpy.save(tensors, {"memory": json.dumps(about)})])

    @classmethod
    def load(cls, path: str | Path, model: HasModel) -> "MemoryEmbedding":
        """Read what `save` wrote, for a codec or loaded model with the same weights.

        Raises FormatError, ModelMismatchError, OSError.
        """
        from memcodec.memory.fitting import Fit

        blob = Path(path).read_bytes()
        try:
            tensors = safetensors.numpy.load(blob)
            header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
            about = json.loads(header["__metadata__"]["memory"])
            bits, tokens, written, prefix, steps, checksum = (int(about[name]) for name in _NUMBERS)
            memory, losses, accuracies = (tensors[name] for name in ("memory", "losses", "accuracies"))
            needed = {name: bytes.fromhex(about[name]) for name in ("weights", "tokenizer")}
        except (safetensors.SafetensorError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as e:
            raise FormatError(f"{path}: not a memory embedding ({type(e).__name__})") from e
        loaded = model.model
        here = {"weights": loaded.floats.identity, "tokenizer": loaded.tokenizer.tokens.digest}
        for what, digest in needed.items():
            if digest != here[what]:
                raise ModelMismatchError(
                    f"{path}: fitted under another model ({what} {digest[:8].hex()}); "
                    f"{loaded.name!r} has {here[what][:8].hex()}"
                )
        curves = losses.dtype == accuracies.dtype == np.float32 and losses.shape == accuracies.shape == (steps,)
        counts = 0 <= prefix <= written <= tokens and 1 <= tokens <= MAX_CHUNK_TOKENS
        if not (curves and counts and bits in MEMORY_BITS and memory.dtype == np.uint8 and memory.ndim == 1):
            raise FormatError(f"{path}: damaged memory embedding: fit it again")
        history = losses.tolist(), accuracies.tolist()
        fit = Fit(tokens, memory.tobytes(), written, prefix, steps, *history)
        try:
            return cls(model, fit, bits, checksum)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error
