"""memcodec: lossless text compression with memory embeddings under a frozen language model."""

import importlib
from typing import TYPE_CHECKING, BinaryIO

from memcodec.errors import (
    ChecksumError,
    EncodeError,
    EngineError,
    FormatError,
    MachineError,
    MemcodecError,
    MissingDependencyError,
    ModelMismatchError,
    ModelNotFoundError,
    PrimerMismatchError,
)
from memcodec.progress import Progress
from memcodec.settings import DEFAULT_BATCH, Context, Prompt, Readout

if TYPE_CHECKING:
    from memcodec.codec import Codec
    from memcodec.engines.engine import Engine
    from memcodec.files.archive import Archive
    from memcodec.files.frames import FrameSettings
    from memcodec.files.journal import Journal
    from memcodec.files.open import MemzFile, open
    from memcodec.files.primer import Primer
    from memcodec.memory.embedding import MemoryEmbedding
    from memcodec.progress import ProgressCallback
    from memcodec.view.inspection import inspect
    from memcodec.view.tokenmap import TokenInfo, token_map

__version__ = "0.2.0"

__all__ = [
    "Archive",
    "ChecksumError",
    "Codec",
    "EncodeError",
    "EngineError",
    "FormatError",
    "FrameSettings",
    "Journal",
    "MachineError",
    "MemcodecError",
    "MemoryEmbedding",
    "MemzFile",
    "MissingDependencyError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "Primer",
    "PrimerMismatchError",
    "Progress",
    "Prompt",
    "Readout",
    "TokenInfo",
    "decode",
    "encode",
    "inspect",
    "open",
    "token_map",
]


def encode(
    data: bytes | bytearray | memoryview | str | BinaryIO,
    model: str = "smollm2-135m",
    *,
    site: Readout | Prompt = Readout(),  # noqa: B008 (frozen)
    chunk_tokens: int = 200,
    context: Context = "auto",
    batch: int = DEFAULT_BATCH,
    verify: bool = True,
    device: str = "auto",
    threads: int | None = None,
    engine: "str | Engine" = "local",
    primer: "Primer | None" = None,
    journal: "Journal | None" = None,
    progress: "ProgressCallback | None" = None,
) -> bytes:
    """Compress bytes (or text, as UTF-8, or an open file) to the bytes of a .memz file; settings as `Codec.encode`.

    Loads the model each time, if there is any text: to encode often, keep a `Codec`. engine: "local", or "ray" for a
    Ray cluster, whose workers have the device and the threads. Raises ModelNotFoundError, EncodeError, MachineError.
    """
    from memcodec import codec
    from memcodec.engines import opened

    source = codec.as_source(data, "data")
    codec.check_settings(site, chunk_tokens, batch, context)
    if (stored := codec.without_model(source)) is not None:
        return stored
    with opened(engine, None, threads, device) as (found, own_device):
        loaded = codec.Codec.load(model, device=own_device, threads=threads).with_primer(primer).with_engine(found)
        return loaded.encode(
            source,
            site=site,
            chunk_tokens=chunk_tokens,
            context=context,
            batch=batch,
            verify=verify,
            journal=journal,
            progress=progress,
        )


def decode(
    blob: bytes | bytearray | memoryview,
    model: str | None = None,
    *,
    batch: int = DEFAULT_BATCH,
    device: str = "auto",
    threads: int | None = None,
    engine: "str | Engine" = "local",
    allow_download: bool = False,
    primer: "Primer | None" = None,
    progress: "ProgressCallback | None" = None,
) -> bytes:
    """Decompress the bytes of a .memz file, with the model that it names or `model`; settings as in `Codec.decode`.

    engine: as in `encode`; allow_download: fetch a model from the Hugging Face hub that only the file names; primer:
    the one that it was made with. Raises FormatError, ChecksumError, ModelMismatchError, ModelNotFoundError,
    MachineError; EncodeError for settings out of range.
    """
    from memcodec import codec, container
    from memcodec.container import assembly
    from memcodec.engines import opened

    pieces: list[bytes] = []
    kept: Codec | None = None
    with opened(engine, None, threads, device) as (found, own_device):
        for parsed in container.unpack_all(codec.as_bytes(blob, "blob")):
            if parsed.model is None:
                pieces += assembly.document_of(parsed, [], None)
                continue
            if kept is None or kept.differs(parsed):
                kept = codec.Codec.load_named(
                    model, parsed.model.name, device=own_device, threads=threads, allow_download=allow_download
                )
                kept = kept.with_primer(primer).with_engine(found)
            pieces += kept.decode_pieces(parsed, batch, progress)
    return b"".join(pieces)


# On first use, because they bring numpy, numba or torch: the import, `inspect` and `--help` answer at once without.
_LATER = {
    "Archive": "memcodec.files.archive",
    "Codec": "memcodec.codec",
    "FrameSettings": "memcodec.files.frames",
    "Journal": "memcodec.files.journal",
    "MemoryEmbedding": "memcodec.memory.embedding",
    "MemzFile": "memcodec.files.open",
    "Primer": "memcodec.files.primer",
    "TokenInfo": "memcodec.view.tokenmap",
    "inspect": "memcodec.view.inspection",
    "open": "memcodec.files.open",
    "token_map": "memcodec.view.tokenmap",
}

if not TYPE_CHECKING:

    def __getattr__(name):
        if name in _LATER:
            return getattr(importlib.import_module(_LATER[name]), name)
        raise AttributeError(f"module 'memcodec' has no attribute {name!r}")

    def __dir__():
        return sorted(set(globals()) | set(__all__))
