"""A loaded model, with which engines, fits of memories, frames and archives work."""

from threading import Lock
from typing import Any, Protocol, TypedDict

import numpy as np

from memcodec.errors import ModelMismatchError, ModelNotFoundError
from memcodec.lm.compiled import are_kept
from memcodec.lm.model import ExactLM, find_device, prepare
from memcodec.models import registry
from memcodec.models.registry import ModelFolder
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.progress import ByteProgress

_NO_TOKENS = np.empty(0, dtype=np.int64)


class LoadOptions(TypedDict, total=False):
    """The keywords of `LoadedModel.load` and of functions that pass them on, for type checkers."""

    device: str
    threads: int | None
    kernels: str
    progress: ByteProgress | None


class LoadedModel:
    """A model in memory: its folder, its tokenizer, its exact LM, and the same LM in floating point when it is needed.

    primer_tokens: int64, the tokens of the primer that the LM reads before everything else; empty without a primer.
    """

    def __init__(
        self, folder: ModelFolder, tokenizer: ByteTokenizer, lm: ExactLM | None, device: str, refusal: str = ""
    ) -> None:
        """Most callers want `load`. lm: None if the exact LM does not support the architecture; refusal: the reason."""
        self.folder = folder
        self.tokenizer = tokenizer
        self.device = device
        self.primer_tokens = _NO_TOKENS
        self._lm_without_primer = lm
        self._lm = lm
        self._refusal = refusal
        self._options: LoadOptions = {}  # that it was loaded with
        self._floats: Any = None

    @classmethod
    def load(
        cls,
        folder: ModelFolder,
        device: str = "auto",
        threads: int | None = None,
        kernels: str = "auto",
        progress: ByteProgress | None = None,
    ) -> "LoadedModel":
        """Load the model of a folder (`registry.resolve`). The settings are those of `Codec.load`.

        A model whose architecture the exact LM does not support is loaded for `floats` alone. Raises
        ModelNotFoundError, MachineError, MissingDependencyError, EncodeError.
        """
        found = find_device(device)
        if refusal := registry.unsupported(folder):
            loaded = cls(folder, ByteTokenizer(folder.path), None, found, refusal)
        else:

            def load_kernels() -> None:
                if progress is not None and not are_kept():
                    progress("compiling for this processor (once)", 0, 0)
                prepare(found, threads, kernels)

            weights, tokenizer = registry.load_exact(folder, progress, meanwhile=load_kernels)
            lm = ExactLM(weights, found, threads, kernels)
            tokenizer.team = lm.team
            loaded = cls(folder, tokenizer, lm, found)
        loaded._options = {"device": device, "threads": threads, "kernels": kernels}
        return loaded

    @property
    def model(self) -> "LoadedModel":
        """This object: functions that need a model take a loaded one, or a `Codec`, which has it as `model`."""
        return self

    @property
    def name(self) -> str:
        """The name of the model in a file."""
        return self.folder.id

    @property
    def lm(self) -> ExactLM:
        """The exact LM. Raises ModelNotFoundError if memcodec does not support the model's architecture."""
        if self._lm is None:
            raise ModelNotFoundError(self._refusal)
        return self._lm

    @property
    def identity(self) -> bytes:
        """SHA-256 of everything that the exact LM computes with, except the primer. Raises as `lm`."""
        return self.lm.identity

    @property
    def positions(self) -> int:
        """Positions that the exact LM has for tokens, after its prefix and the primer. Raises as `lm`."""
        return self.lm.positions - len(self.lm.prefix)

    @property
    def floats(self) -> Any:
        """The same LM in floating point (`memcodec.models.floats.FrozenLM`), loaded when it is first needed.

        Raises MissingDependencyError without PyTorch, ModelNotFoundError.
        """
        if self._floats is None:
            from memcodec.models.floats import FrozenLM

            prefix = self.tokenizer.prefix() if self._lm is None else self._lm.prefix.tolist()
            self._floats = FrozenLM.load(self.folder.path, list(prefix), self.device)
        return self._floats

    def with_primer_tokens(self, primer_tokens: np.ndarray = _NO_TOKENS) -> "LoadedModel":
        """The same model with a primer, int64 [tokens], instead of the one it has; without tokens, with none.

        Shares the weights. Raises ModelNotFoundError without an exact LM; EncodeError if the model has too few
        positions.
        """
        other = self.__copy__()
        other.primer_tokens, other._floats, other._lm = primer_tokens, None, self._lm_without_primer
        if len(primer_tokens):
            other._lm = other.lm.with_prefix(primer_tokens)
        return other

    def has_lm_of(self, other: "LoadedModel") -> bool:
        """Whether it shares the loaded LM of another model, whatever primer either has."""
        return self._lm_without_primer is not None and self._lm_without_primer is other._lm_without_primer

    # ---- copies, here and in other processes

    def __copy__(self) -> "LoadedModel":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, _: object) -> "LoadedModel":
        """The same object: it does not change."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """What it was loaded from, instead of the weights: `_loaded_again` reads them where it is unpickled."""
        identity = b"" if self._lm is None else self.identity
        return _loaded_again, (self.folder.source, self.name, identity, self._options, self.primer_tokens)


_kept: dict[tuple[object, ...], LoadedModel] = {}  # the model that was unpickled last
_keeping = Lock()


def _loaded_again(
    source: str, name: str, identity: bytes, options: LoadOptions, primer_tokens: np.ndarray
) -> LoadedModel:
    """The model that was pickled. A process keeps the last one, and does not load it again for the next object.

    identity: of the exact LM, or empty without one. Raises ModelMismatchError if the model here is another one; as
    `LoadedModel.load`.
    """
    key = (source, name, identity, *options.items())
    with _keeping:
        if (loaded := _kept.get(key)) is None:
            folder = registry.resolve(source)
            loaded = LoadedModel.load(folder, **options)
            here = b"" if loaded._lm is None else loaded.identity
            if here != identity:
                raise ModelMismatchError(
                    f"{source}: the codec was pickled with the model {identity.hex()[:16] or 'without an exact LM'}; "
                    f"here it is {here.hex()[:16] or 'one without'}: use the same model on both sides"
                )
            _kept.clear()
            _kept[key] = loaded
    return loaded.with_primer_tokens(primer_tokens) if len(primer_tokens) else loaded


class HasModel(Protocol):
    """A loaded model, or an object that has one as `model`: a `Codec`."""

    @property
    def model(self) -> LoadedModel:
        """The loaded model."""
