"""memcodec: lossless text compression with memory embeddings under a frozen language model."""

import importlib
from typing import TYPE_CHECKING, BinaryIO

from memcodec.errors import (
    ChecksumError,
    EncodeError,
    FormatError,
    MachineError,
    MemcodecError,
    ModelMismatchError,
    ModelNotFoundError,
)
from memcodec.inspection import inspect
from memcodec.memory.settings import DEFAULT_BATCH, Context, Prompt, Readout
from memcodec.progress import Progress

if TYPE_CHECKING:
    from memcodec.codec import Codec as Codec
    from memcodec.memory.embedding import MemoryEmbedding as MemoryEmbedding
    from memcodec.progress import ProgressCallback

__version__ = "0.2.0"

__all__ = [
    "ChecksumError",
    "Codec",
    "EncodeError",
    "FormatError",
    "MachineError",
    "MemcodecError",
    "MemoryEmbedding",
    "ModelMismatchError",
    "ModelNotFoundError",
    "Progress",
    "Prompt",
    "Readout",
    "decode",
    "encode",
    "inspect",
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
    progress: "ProgressCallback | None" = None,
) -> bytes:
    """Compress bytes (or text, as UTF-8, or an open file) to the bytes of a .memz file; settings as `Codec.encode`.

    Loads the model each time, if there is any text: to encode often, keep a `Codec`. Raises ModelNotFoundError,
    EncodeError, MachineError.
    """
    from memcodec import codec

    source = codec.as_source(data, "data")
    codec.check_settings(site, chunk_tokens, batch, context)
    if (stored := codec.without_model(source)) is not None:
        return stored
    return codec.Codec.load(model, device=device, threads=threads).encode(
        source, site=site, chunk_tokens=chunk_tokens, context=context, batch=batch, verify=verify, progress=progress
    )


def decode(
    blob: bytes | bytearray | memoryview,
    model: str | None = None,
    *,
    batch: int = DEFAULT_BATCH,
    device: str = "auto",
    threads: int | None = None,
    allow_download: bool = False,
    progress: "ProgressCallback | None" = None,
) -> bytes:
    """Decompress the bytes of a .memz file, with the model that it names or `model`; settings as in `Codec.decode`.

    allow_download: fetch a model from the Hugging Face hub that only the file names. Raises FormatError, ChecksumError,
    ModelMismatchError, ModelNotFoundError, MachineError; EncodeError for settings out of range.
    """
    from memcodec import assembly, codec, container

    parsed = container.unpack(codec.as_bytes(blob, "blob"))
    found = codec.Codec.load_for(parsed, model, device=device, threads=threads, allow_download=allow_download)
    if found is None:
        return b"".join(assembly.document_of(parsed, [], None))
    return b"".join(found.decode_pieces(parsed, batch=batch, progress=progress))


# On first use, because they bring numba or torch: `inspect` and `--help` answer at once without.
_LATER = {"Codec": "memcodec.codec", "MemoryEmbedding": "memcodec.memory.embedding"}

if not TYPE_CHECKING:

    def __getattr__(name):
        if name in _LATER:
            return getattr(importlib.import_module(_LATER[name]), name)
        raise AttributeError(f"module 'memcodec' has no attribute {name!r}")

    def __dir__():
        return sorted(set(globals()) | set(__all__))
