"""memcodec: lossless text compression with memory embeddings under a frozen language model."""

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

__version__ = "0.1.0"

__all__ = [
    "ChecksumError",
    "Codec",
    "EncodeError",
    "FormatError",
    "MemcodecError",
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


def __getattr__(name: str) -> Any:
    if name == "Codec":  # on first use, because it brings torch: `inspect` and `--help` answer at once without
        from memcodec.codec import Codec

        return Codec
    raise AttributeError(f"module 'memcodec' has no attribute {name!r}")
