"""memcodec: lossless text compression with memory embeddings under a frozen language model."""

import importlib
import os
from typing import TYPE_CHECKING, BinaryIO

from memcodec.errors import (
    ChecksumError,
    EncodeError,
    EngineError,
    FormatError,
    MachineError,
    MemcodecError,
    MemcodecWarning,
    MissingDependencyError,
    ModelMismatchError,
    ModelNotFoundError,
    PrimerMismatchError,
)
from memcodec.progress import Progress
from memcodec.settings import DEFAULT_MODEL, EncodeSettings, Prompt, Readout, check_device

if TYPE_CHECKING:
    from typing import Unpack

    from memcodec.codec import Codec
    from memcodec.container import Lost
    from memcodec.embedding import MemoryEmbedding
    from memcodec.engines.engine import Engine
    from memcodec.files.archive import Archive
    from memcodec.files.open import BadFileError, MemzFile, open
    from memcodec.frames import FrameSettings
    from memcodec.primer import Primer
    from memcodec.progress import ProgressCallback
    from memcodec.settings import EncodeOptions
    from memcodec.storage.journal import Journal
    from memcodec.view.inspection import inspect
    from memcodec.view.tokenmap import TokenInfo, token_map

__version__ = "0.3.0"

__all__ = [
    "Archive",
    "BadFileError",
    "ChecksumError",
    "Codec",
    "EncodeError",
    "EngineError",
    "FormatError",
    "FrameSettings",
    "Journal",
    "Lost",
    "MachineError",
    "MemcodecError",
    "MemcodecWarning",
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
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    device: str = "auto",
    threads: int | None = None,
    engine: "str | Engine" = "local",
    primer: "Primer | None" = None,
    progress: "ProgressCallback | None" = None,
    **settings: "Unpack[EncodeOptions]",
) -> bytes:
    """Compress bytes (or text, as UTF-8, or an open file) to the bytes of a .memz file.

    settings: level, site, chunk_tokens, context, batch, verify and references, as in `Codec.encode`. Loads the model in
    each call if there is text: to encode often, keep a `Codec`. device, threads: as in `Codec.load`; engine: "local",
    or "ray" for the workers of a Ray cluster, to which device and threads then apply. Raises ModelNotFoundError,
    EncodeError, MachineError.
    """
    from memcodec.codec import Codec
    from memcodec.container.assembly import without_model
    from memcodec.document.inputs import as_source
    from memcodec.engines import opened

    source = as_source(data, "data")
    EncodeSettings.of(**settings)  # raises for what is out of range, before a model is loaded
    check_device(device)
    if (stored := without_model(source)) is not None:
        return stored
    with opened(engine, None, threads, device) as (started, own_device):
        codec = Codec.load(model, device=own_device, threads=threads).with_primer(primer).with_engine(started)
        return codec.encode(source, progress=progress, **settings)


def decode(
    blob: bytes | bytearray | memoryview,
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    engine: "str | Engine" = "local",
    allow_download: bool = False,
    primer: "Primer | None" = None,
    progress: "ProgressCallback | None" = None,
) -> bytes:
    """Decompress the bytes of a .memz file, with the model that it names or `model`.

    Loads the model in each call: to decode often, keep a `Codec`. device, threads, engine: as in `encode`;
    allow_download: fetch a model that only the file names from the Hugging Face hub; primer: the one that the file was
    made with. Raises FormatError, ChecksumError, ModelMismatchError, ModelNotFoundError, MachineError; EncodeError for
    settings out of range.
    """
    from memcodec import container
    from memcodec.codec import codec_for
    from memcodec.container.assembly import document_of
    from memcodec.document.inputs import as_binary
    from memcodec.engines import opened
    from memcodec.primer import as_primer

    check_device(device)
    as_primer(primer)  # raises now, whether the file needs one or not
    pieces: list[bytes] = []
    loaded: dict[str, Codec] = {}  # by the name of the model
    with opened(engine, None, threads, device) as (started, own_device):
        for parsed in container.unpack_all(as_binary(blob, "blob")):
            if (needs := parsed.needs) is None:
                pieces += document_of(parsed, [], None)
                continue
            codec = codec_for(
                needs,
                loaded.get(needs.model.name),
                model=model,
                allow_download=allow_download,
                primer=primer,
                device=own_device,
                threads=threads,
            )
            loaded[needs.model.name] = codec
            pieces += codec.with_engine(started).decode_pieces(parsed, progress=progress)
    return b"".join(pieces)


# Imported on first use: they import numpy, numba or torch, which would slow down `import memcodec` and `--help`.
_LATER = {
    "Archive": "memcodec.files.archive",
    "BadFileError": "memcodec.files.open",
    "Codec": "memcodec.codec",
    "FrameSettings": "memcodec.frames",
    "Journal": "memcodec.storage.journal",
    "Lost": "memcodec.container",
    "MemoryEmbedding": "memcodec.embedding",
    "MemzFile": "memcodec.files.open",
    "Primer": "memcodec.primer",
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
