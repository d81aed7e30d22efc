"""Archives: many small documents in one file, each to be had by its number or key (spec/FRAMES.md, "Archive")."""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import zstandard

from memcodec import container as box
from memcodec.container import ModelId, Reader, Settings, pack_column, pack_settings, read_settings, varint
from memcodec.errors import ChecksumError, EncodeError, FormatError, ModelMismatchError
from memcodec.frames import FrameSettings
from memcodec.primer import Primer
from memcodec.source import replace

if TYPE_CHECKING:
    from memcodec.codec import Codec

VERSION = "archive 1"  # where a file of one document has its format version
_CHECKSUM = 2  # bytes of each document's CRC-32, behind its frame
_MOST = 1 << 30  # documents
_KEYS = 1 << 28  # bytes of all keys
_BATCH = 256  # documents that are decoded at one time while all are read


class Archive:
    """An archive in a file: a sequence of documents, as bytes, that may have keys, each decoded when it is asked for.

    codec: a model that is loaded (default: the one that the archive names). The primer may be inside.
    """

    def __init__(
        self, path: str | os.PathLike[str], codec: "Codec | None" = None, primer: Primer | None = None
    ) -> None:
        """Raises FormatError, ChecksumError, OSError."""
        self._path = Path(path)
        self._codec = codec
        self._read(self._path.read_bytes(), primer)

    def __repr__(self) -> str:
        return f"<memcodec.Archive {os.fspath(self._path)!r}: {len(self)} documents>"

    def _read(self, blob: bytes, primer: Primer | None) -> None:
        metadata, tensors = _tensors(blob)
        self.model = ModelId(metadata.get("model", ""), b"")
        reader = Reader(tensors["archive"][:-4], "archive")
        self.model = ModelId(self.model.name, bytes(reader.take(box.IDENTITY_BYTES)))
        self.settings: Settings = read_settings(reader)
        count = reader.varint()
        if count > min(_MOST, len(reader)):
            raise FormatError("damaged archive: more documents than it has room for")
        self._keys = _unpack_keys(reader, count)
        lengths = reader.column(count) if count else []
        if sum(lengths) != len(reader):
            raise FormatError("damaged archive: lengths do not add up to the file's")
        self._frames = reader.take(len(reader))
        self._ends = list(accumulate(lengths))
        self._numbers = {key: i for i, key in enumerate(self._keys)}
        self.carries_primer = "primer" in tensors
        self.primer = (
            Primer.from_bytes(bytes(tensors["primer"]), "the primer inside") if self.carries_primer else primer
        )
        self.sizes = {name: len(tensor) for name, tensor in tensors.items()} | {"frames": len(self._frames)}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        documents: Iterable[str | bytes],
        keys: Sequence[str] | None = None,
        *,
        codec: "Codec | None" = None,
        primer: Primer | None = None,
        with_primer: bool = True,
        memory_share: float = 0.0,
        effort: int = 4096,
        progress: Any = None,
    ) -> "Archive":
        """Write an archive. keys: one a document, or none; with_primer: whether it carries its primer inside.

        Raises EncodeError where keys are not one a document, or twice the same; OSError.
        """
        from memcodec.codec import Codec

        codec = codec or Codec.load()
        if primer is not None:
            codec = codec.with_primer(primer)
        site = FrameSettings(memory_share=memory_share, effort=effort)
        from memcodec.memory.readout import share_steps

        name = codec.primer.identity if codec.primer else b""
        settings = Settings("readout", (share_steps(site.site),), site.chunk_tokens, box.MAX_CONTEXT, name)
        frames, keys = _encode(codec, documents, keys or (), settings, effort, progress)
        inside = codec.primer.to_bytes() if codec.primer is not None and with_primer else b""
        replace(Path(path), [_pack(codec.model, settings, keys, frames, inside)])
        return cls(path, codec, codec.primer)

    def append(
        self, documents: Iterable[str | bytes], keys: Sequence[str] | None = None, *, progress: Any = None
    ) -> None:
        """Add documents behind the others; the file is written anew. Raises as `create`."""
        frames, new = _encode(self.codec, documents, keys or (), self.settings, 4096, progress)
        if len(self) and frames and bool(self._keys) != bool(new):
            raise EncodeError("keys: give one a document, or none at all, as the archive has them")
        old = [self._frame(i) for i in range(len(self))]
        inside = self.primer.to_bytes() if self.primer is not None and self.carries_primer else b""
        blob = _pack(self.model, self.settings, [*self._keys, *new], [*old, *frames], inside)
        replace(self._path, [blob])
        self._read(blob, self.primer)

    @property
    def codec(self) -> "Codec":
        """The codec of its frames, loaded when first needed. Raises ModelNotFoundError, ModelMismatchError."""
        from memcodec.codec import Codec, check_primer

        if self._codec is None:
            self._codec = Codec.load(self.model.name or "smollm2-135m")
        if self._codec.model.identity != self.model.identity:
            raise ModelMismatchError(f"the archive needs model {self.model.name!r} ({self.model.identity.hex()})")
        if self.settings.primer and self._codec.primer is None:
            self._codec = self._codec.with_primer(self.primer)
        check_primer(self.settings.primer, self._codec.primer)
        return self._codec

    def __len__(self) -> int:
        return len(self._ends)

    def keys(self) -> list[str]:
        """The keys of all documents, in order; none where they have none."""
        return list(self._keys)

    @overload
    def __getitem__(self, which: int | str) -> bytes: ...
    @overload
    def __getitem__(self, which: slice) -> list[bytes]: ...
    def __getitem__(self, which: int | str | slice) -> bytes | list[bytes]:
        """A document, by its number or key, or some of them. Raises IndexError, KeyError, ChecksumError."""
        if isinstance(which, slice):
            return self._decode(range(len(self))[which])
        if isinstance(which, str):
            if which not in self._numbers:
                raise KeyError(which)
            which = self._numbers[which]
        if not -len(self) <= which < len(self):
            raise IndexError(f"document {which}: the archive has {len(self)}")
        return self._decode([which % len(self)])[0]

    def __contains__(self, key: object) -> bool:
        return key in self._numbers

    def __iter__(self) -> Iterator[bytes]:
        """All documents, decoded side by side."""
        for first in range(0, len(self), _BATCH):
            yield from self._decode(range(first, min(first + _BATCH, len(self))))

    def frame_size(self, number: int) -> int:
        """Bytes of a document in the file, without the index."""
        return len(self._frame(number))

    def _frame(self, number: int) -> bytes:
        return bytes(self._frames[self._ends[number - 1] if number else 0 : self._ends[number]])

    def _decode(self, numbers: Sequence[int]) -> list[bytes]:
        return self.codec.decode_frames([self._frame(i) for i in numbers], _frame_settings(self.settings, 4096))


def _frame_settings(settings: Settings, effort: int) -> FrameSettings:
    from memcodec.memory.settings import SHARE_STEPS

    if settings.site != "readout" or len(settings.fields) != 1:
        raise FormatError("damaged archive: its frames are of no known site")
    share = settings.fields[0] / SHARE_STEPS
    return FrameSettings(_CHECKSUM, b"", share, effort, settings.chunk_tokens, box.MAX_CHUNK_TOKENS << 8)


def _encode(
    codec: "Codec",
    documents: Iterable[str | bytes],
    keys: Sequence[str],
    settings: Settings,
    effort: int,
    progress: Any,
) -> tuple[list[bytes], list[str]]:
    given = list(documents)
    if keys and (len(keys) != len(given) or len(set(keys)) != len(keys)):
        raise EncodeError(f"{len(keys)} keys, {len(set(keys))} different, for {len(given)} documents: give one each")
    return codec.encode_frames(given, _frame_settings(settings, effort), progress=progress), list(keys)


def _pack(model: ModelId, settings: Settings, keys: Sequence[str], frames: Sequence[bytes], primer: bytes) -> bytes:
    if len(set(keys)) != len(keys):
        raise EncodeError("a key that the archive has already")
    names = zstandard.ZstdCompressor(level=19).compress(json.dumps(list(keys)).encode()) if keys else b""
    index = model.identity + pack_settings(settings) + varint(len(frames)) + varint(len(names)) + names
    if frames:
        index += pack_column([len(frame) for frame in frames])
    pieces = [primer, index, *frames]
    length = sum(map(len, pieces))
    header: dict[str, Any] = {"__metadata__": {"memcodec": VERSION, "model": model.name}}
    if primer:
        header["primer"] = {"dtype": "U8", "shape": [len(primer)], "data_offsets": [0, len(primer)]}
    count = length - len(primer) + 4
    header["archive"] = {"dtype": "U8", "shape": [count], "data_offsets": [len(primer), length + 4]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    blob = b"".join([struct.pack("<Q", len(text)), text, *pieces])
    return blob + struct.pack("<I", zlib.crc32(blob))


def _tensors(blob: bytes) -> tuple[dict[str, str], dict[str, memoryview]]:
    """Metadata and tensors of an archive. Raises FormatError, ChecksumError."""
    view = memoryview(blob)
    box.check_start(blob[: box.START])
    if not box.is_archive(blob):
        raise FormatError("not an archive: a file of one document is read with memcodec decompress")
    metadata, tensors, _ = box.read_tensors(view, ("primer", "archive"))
    if metadata.get("memcodec") != VERSION:
        raise FormatError(
            f"archive version {metadata.get('memcodec', '')[:20]!r} is not known: install a newer memcodec"
        )
    if "archive" not in tensors or len(tensors["archive"]) < 4:
        raise FormatError("damaged archive: it has no index")
    if zlib.crc32(view[:-4]) != struct.unpack("<I", view[-4:])[0]:
        raise ChecksumError("damaged file: its checksum does not match")
    return metadata, tensors


def _unpack_keys(reader: Reader, count: int) -> list[str]:
    length = reader.varint()
    packed = reader.take(length)
    if not length:
        return []
    try:
        data = zstandard.ZstdDecompressor().decompress(bytes(packed), max_output_size=_KEYS)
        keys = json.loads(data) if len(data) <= _KEYS else None
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        raise FormatError("damaged archive: its keys do not read") from error
    if not isinstance(keys, list) or len(keys) != count or not all(isinstance(key, str) for key in keys):
        raise FormatError("damaged archive: its keys are not one a document")
    return keys
