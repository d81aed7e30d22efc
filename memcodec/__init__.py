"""memcodec: lossless text compression with memory embeddings under a frozen language model."""

import importlib
from typing import TYPE_CHECKING, Any

from memcodec.errors import (
    ChecksumError,
    EncodeError,
    FormatError,
    MemcodecError,
    ModelMismatchError,
    ModelNotFoundError,
)
from memcodec.inspection import inspect

if TYPE_CHECKING:
    from memcodec.codec import Codec
    from memcodec.embedding import MemoryEmbedding
    from memcodec.prompt import Fitting

__version__ = "0.1.0"

__all__ = [
    "ChecksumError",
    "Codec",
    "EncodeError",
    "Fitting",
    "FormatError",
    "MemcodecError",
    "MemoryEmbedding",
    "ModelMismatchError",
    "ModelNotFoundError",
    "decode",
    "encode",
    "inspect",
]


def encode(data: bytes | str, model: str = "smollm2-135m", device: str = "auto", **settings: Any) -> bytes:
    """Compress bytes (or text, as UTF-8) to the bytes of a .memz file; settings as in `Codec.encode`.

    Loads the model each time: to encode often, keep a `Codec`. Raises ModelNotFoundError, EncodeError.
    """
    from memcodec.codec import Codec

    return Codec.load(model, device).encode(data, **settings)


def decode(blob: bytes, model: str | None = None, device: str = "auto", **settings: Any) -> bytes:
    """Decompress the bytes of a .memz file, with the model that it names or `model`; settings as in `Codec.decode`.

    Raises FormatError, ChecksumError, ModelMismatchError, ModelNotFoundError.
    """
    from memcodec import container
    from memcodec.codec import Codec, assemble

    codec = Codec.load_for(blob, model, device)
    return assemble(container.unpack(blob), iter(())) if codec is None else codec.decode(blob, **settings)


# On first use, because they bring torch: `inspect` and `--help` answer at once without.
_LATER = {"Codec": "memcodec.codec", "Fitting": "memcodec.prompt", "MemoryEmbedding": "memcodec.embedding"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'memcodec' has no attribute {name!r}")
