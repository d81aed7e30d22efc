"""numcodecs, and with it zarr of format 2: `numcodecs.get_codec({"id": "memcodec"})`, found by its entry point."""

from typing import Any, ClassVar

import numcodecs.abc
import numcodecs.compat
import numcodecs.registry
import numpy as np

from memcodec.integrations.arrays import ArraySettings


class MemcodecCodec(numcodecs.abc.Codec):  # type: ignore[misc]
    """A codec of chunks of text. The settings are those of `ArraySettings`."""

    codec_id: ClassVar[str] = "memcodec"

    def __init__(self, **settings: Any) -> None:
        self.settings = ArraySettings(**settings)

    def encode(self, buf: Any) -> bytes:
        """Anything with a buffer. Raises MemcodecError."""
        return self.settings.encode(numcodecs.compat.ensure_bytes(buf))

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The bytes, or `out` with them. Raises MemcodecError."""
        found = self.settings.decode(numcodecs.compat.ensure_bytes(buf))
        return found if out is None else numcodecs.compat.ndarray_copy(np.frombuffer(found, dtype=np.uint8), out)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes it of."""
        return {"id": self.codec_id} | self.settings.config()


numcodecs.registry.register_codec(MemcodecCodec)
