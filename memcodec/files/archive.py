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

from memcodec import container
from memcodec.container import ModelId, Reader, Settings, pack_column, pack_settings, read_settings, varint
from memcodec.errors import ChecksumError, EncodeError, FormatError, MachineError, ModelMismatchError
from memcodec.files.frames import FrameSettings
from memcodec.files.primer import Primer
from memcodec.files.write import hold, replace
from memcodec.progress import ProgressCallback
from memcodec.settings import DEFAULT_BATCH, MAX_CONTEXT, MOST_SHARE, SHARE_STEPS

if TYPE_CHECKING:
    from memcodec.codec import Codec

VERSION = "archive 1"  # where a file of one document has its format version
_CHECKSUM = 2  # bytes of each document's CRC-32, behind its frame
_MOST = 1 << 30  # documents
_KEYS = 1 << 26  # bytes of all keys
_MOST_BYTES = 1 << 20  # of a document
_TOGETHER = 256  # documents that are decoded at one time while many are read


class Archive:
    """An archive in a file: a sequence of documents, as bytes, that may have keys, each decoded when it is asked for.

    codec: a model that is loaded (default: the one that the archive names, see `load`). The primer may be inside.
    batch: documents that are decoded side by side.
    """

    def __init__(
        self, path: str | os.PathLike[str], codec: "Codec | None" = None, primer: Primer | None = None
    ) -> None:
        """Raises FormatError, ChecksumError, OSError."""
        self.batch = DEFAULT_BATCH
        self._path = Path(path)
        self._codec = codec
        self._read(self._path.read_bytes(), primer)

    def __repr__(self) -> str:
        return f"<memcodec.Archive {os.fspath(self._path)!r}: {len(self)} documents>"

    def _read(self, blob: bytes, primer: Primer | None) -> None:
        metadata, tensors = _tensors(blob)
        reader = Reader(tensors["archive"][:-4], "archive")
        self.model = ModelId(metadata.get("model", ""), bytes(reader.take(container.IDENTITY_BYTES)))
        self.settings: Settings = read_settings(reader)
        _frame_settings(self.settings, 1)
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
        if len(self._numbers) != len(self._keys):
            raise FormatError("damaged archive: a key twice")
        self.carries_primer = "primer" in tensors
        inside = Primer.from_bytes(bytes(tensors["primer"]), "the primer inside") if self.carries_primer else None
        self.primer = inside or primer
        self._state = len(blob), blob[-4:]

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
        batch: int = DEFAULT_BATCH,
        verify: bool = True,
        overwrite: bool = False,
        progress: ProgressCallback | None = None,
    ) -> "Archive":
        """Write an archive. keys: one a document, or none; with_primer: whether it carries its primer inside.

        verify: decode what is about to be written, `batch` documents side by side, and compare; overwrite: a file that
        is there. Raises FileExistsError; EncodeError where keys are not one a document, twice the same, or have a NUL;
        MachineError; OSError.
        """
        from memcodec.codec import Codec

        if not overwrite and Path(path).exists():
            raise FileExistsError(f"{os.fspath(path)} exists: give overwrite=True, or append to it")
        codec = codec or Codec.load()
        if primer is not None:
            codec = codec.with_primer(primer)
        site = FrameSettings(memory_share=memory_share, effort=effort)
        name = codec.primer.identity if codec.primer else b""
        share = round(memory_share * SHARE_STEPS)
        settings = Settings("readout", (share,), site.chunk_tokens, MAX_CONTEXT, name)
        given = list(documents)
        _check_keys(keys or (), len(given))
        frames = _encode(codec, given, _frame_settings(settings, effort), batch, verify, progress)
        inside = codec.primer.to_bytes() if codec.primer is not None and with_primer else b""
        replace(Path(path), [_pack(codec.model, settings, keys or (), frames, inside)])
        return cls(path, codec, codec.primer)

    def append(
        self,
        documents: Iterable[str | bytes],
        keys: Sequence[str] | None = None,
        *,
        verify: bool = True,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Add documents behind the others; the file is written anew. Raises as `create`.

        Raises EncodeError too where the file was written to since it was read.
        """
        given = list(documents)
        new = list(keys or ())
        if len(self) and given and bool(self._keys) != bool(new):
            raise EncodeError("keys: give one a document, or none at all, as the archive has them")
        _check_keys(new, len(given))
        _check_keys([*self._keys, *new] if new else (), len(self) + len(given))
        frames = _encode(self.codec, given, _frame_settings(self.settings, 4096), self.batch, verify, progress)
        old = [self._frame(i) for i in range(len(self))]
        inside = self.primer.to_bytes() if self.primer is not None and self.carries_primer else b""
        blob = _pack(self.model, self.settings, [*self._keys, *new], [*old, *frames], inside)
        with self._path.open("rb") as file:
            if hold(file) is False or not os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                raise EncodeError(f"{os.fspath(self._path)}: another process writes to it: open it again")
            now = file.read()
            if (len(now), now[-4:]) != self._state:
                raise EncodeError(f"{os.fspath(self._path)}: changed since it was read: open it again")
            replace(self._path, [blob])  # under the lock: of two that append, one is told so
        self._read(blob, self.primer)

    @property
    def codec(self) -> "Codec":
        """The codec of its frames, loaded when first needed. Raises as `load`."""
        from memcodec.codec import check_primer

        if self._codec is None:
            self.load()
        assert self._codec is not None
        if self._codec.model.identity != self.model.identity:
            raise ModelMismatchError(f"the archive needs model {self.model.name!r} ({self.model.identity.hex()})")
        if self._codec.primer is None or not self.settings.primer:
            self._codec = self._codec.with_primer(self.primer if self.settings.primer else None)
        check_primer(self.settings.primer, self._codec.primer)
        return self._codec

    def load(self, model: str | None = None, *, allow_download: bool = False, **settings: Any) -> None:
        """Load its model, or `model` instead; settings: as in `Codec.load`.

        allow_download: fetch a model from the Hugging Face hub that only the archive names. Raises ModelNotFoundError.
        """
        from memcodec.codec import Codec

        self._codec = Codec.load_named(model, self.model.name, allow_download=allow_download, **settings)

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
        return self.read(range(len(self)))

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Documents by their numbers, decoded side by side."""
        for first in range(0, len(numbers), _TOGETHER):
            yield from self._decode(numbers[first : first + _TOGETHER])

    def frame_size(self, number: int) -> int:
        """Bytes of a document in the file, without the index."""
        return len(self._frame(number))

    def _frame(self, number: int) -> bytes:
        return bytes(self._frames[self._ends[number - 1] if number else 0 : self._ends[number]])

    def _decode(self, numbers: Sequence[int]) -> list[bytes]:
        frames = [self._frame(i) for i in numbers]
        return self.codec.decode_frames(frames, _frame_settings(self.settings, 4096), batch=self.batch)


def _frame_settings(settings: Settings, effort: int) -> FrameSettings:
    if settings.site != "readout" or len(settings.fields) != 1 or settings.fields[0] > MOST_SHARE:
        raise FormatError("damaged archive: its frames are of no known site")
    share = settings.fields[0] / SHARE_STEPS
    return FrameSettings(_CHECKSUM, b"", share, effort, settings.chunk_tokens, _MOST_BYTES)


def _encode(
    codec: "Codec",
    documents: list[str | bytes],
    settings: FrameSettings,
    batch: int,
    verify: bool,
    progress: ProgressCallback | None,
) -> list[bytes]:
    frames = codec.encode_frames(documents, settings, progress=progress)
    if verify:
        found = codec.decode_frames(frames, settings, batch=batch, progress=progress)
        wanted = [x.encode() if isinstance(x, str) else bytes(x) for x in documents]
        if found != wanted:
            raise MachineError("what was encoded decodes to other bytes here: nothing was written")
    return frames


def _check_keys(keys: Sequence[str], count: int) -> None:
    if keys and (len(keys) != count or len(set(keys)) != len(keys)):
        raise EncodeError(f"{len(keys)} keys, {len(set(keys))} different, for {count} documents: give one each")
    for key in keys:
        try:
            if b"\0" in key.encode():
                raise EncodeError(f"the key {key!r} has a NUL")
        except UnicodeEncodeError as error:
            raise EncodeError(f"the key {key!r} is no Unicode") from error


def _pack(model: ModelId, settings: Settings, keys: Sequence[str], frames: Sequence[bytes], primer: bytes) -> bytes:
    names = zstandard.ZstdCompressor(level=19).compress("\0".join(keys).encode()) if keys else b""
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
    container.check_start(blob[: container.START])
    if not container.is_archive(blob):
        raise FormatError("not an archive: a file of one document is read with memcodec decompress")
    metadata, tensors, *_ = container.read_tensors(view, ("primer", "archive"))
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
        most = min(_KEYS, (1 << 12) * count)
        data = zstandard.ZstdDecompressor().stream_reader(bytes(packed)).read(most + 1)
        if len(data) > most or data.count(b"\0") != count - 1:
            raise FormatError("damaged archive: its keys are not one a document")
        return data.decode().split("\0")
    except (zstandard.ZstdError, UnicodeDecodeError) as error:
        raise FormatError("damaged archive: its keys do not read") from error
