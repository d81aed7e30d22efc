"""numcodecs, which zarr format 2 uses: `numcodecs.get_codec({"id": "memcodec"})`, found by its entry point."""

from typing import Any, ClassVar

import numcodecs.abc
import numcodecs.compat
import numcodecs.registry
import numpy as np

from memcodec.integrations.arrays import ArraySettings


class MemcodecCodec(numcodecs.abc.Codec):  # type: ignore[misc]
    """A codec for chunks of text. The settings are those of `ArraySettings`."""

    codec_id: ClassVar[str] = "memcodec"

    def __init__(self, **settings: Any) -> None:
        self.settings = ArraySettings(**settings)

    def encode(self, buf: Any) -> bytes:
        """Compress an object with a buffer. Raises MemcodecError."""
        return self.settings.encode(numcodecs.compat.ensure_bytes(buf))

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The decompressed bytes, or `out` with these bytes in it. Raises MemcodecError."""
        data = self.settings.decode(numcodecs.compat.ensure_bytes(buf))
        return data if out is None else numcodecs.compat.ndarray_copy(np.frombuffer(data, dtype=np.uint8), out)

    def get_config(self) -> dict[str, Any]:
        """The configuration that `from_config` takes."""
        return {"id": self.codec_id} | self.settings.config()


numcodecs.registry.register_codec(MemcodecCodec)
