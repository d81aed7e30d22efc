"""zarr format 3: `zarr.create_array(..., compressors=[MemcodecCodec()])`; readers find it by its entry point."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from zarr.abc.codec import BytesBytesCodec
from zarr.registry import register_codec

from memcodec.integrations.arrays import ArraySettings

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer


@dataclass(frozen=True)
class MemcodecCodec(BytesBytesCodec):  # type: ignore[misc]
    """A compressor for chunks of text."""

    settings: ArraySettings = ArraySettings()  # noqa: RUF009 (frozen)
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The codec of an array's metadata."""
        return cls(ArraySettings(**data.get("configuration", {})))

    def to_dict(self) -> dict[str, Any]:
        """The entry in an array's metadata."""
        return {"name": "memcodec", "configuration": self.settings.config()}

    async def _decode_single(self, chunk_bytes: "Buffer", chunk_spec: "ArraySpec") -> "Buffer":
        data = await asyncio.to_thread(self.settings.decode, chunk_bytes.to_bytes())
        return chunk_spec.prototype.buffer.from_bytes(data)

    async def _encode_single(self, chunk_bytes: "Buffer", chunk_spec: "ArraySpec") -> "Buffer":
        data = await asyncio.to_thread(self.settings.encode, chunk_bytes.to_bytes())
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: "ArraySpec") -> int:
        """Raise NotImplementedError, as zarr demands of codecs whose outputs have no size that is known in advance."""
        raise NotImplementedError


register_codec("memcodec", MemcodecCodec)
