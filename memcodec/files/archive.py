"""Archives: many small documents in one file, each readable by its number or key (spec/FRAMES.md, "Archive")."""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

from memcodec import container
from memcodec.codec import Codec, codec_for
from memcodec.container import ModelId, Needs, Reader, Settings, pack_column, pack_settings, read_settings, varint
from memcodec.document.inputs import as_many, check_type
from memcodec.errors import ChecksumError, EncodeError, FormatError
from memcodec.files.archive_index import VERSION, check_count, read_count, read_places, tensors_of
from memcodec.files.keys import as_keys, check_keys, pack_keys, unpack_keys
from memcodec.frames import FrameSettings, decode, stated_tokens
from memcodec.frames import verify as verify_frames
from memcodec.levels import BEST, settings_of
from memcodec.memory.readout import share_steps
from memcodec.models.loaded import LoadOptions
from memcodec.primer import Primer, as_primer
from memcodec.progress import ProgressCallback
from memcodec.settings import DEFAULT_EFFORT, MAX_CONTEXT, MOST_SHARE, SHARE_STEPS, Verify, check_batch, check_verify
from memcodec.storage.write import check_new, check_writable, hold, replace
from memcodec.wording import counted

_CHECKSUM_BYTES = 2  # of each document's CRC-32, at the end of its frame
MAX_DOCUMENT_BYTES = 1 << 20
# Documents that are decoded at one time while many are read, unless the device takes more, and their tokens, unless one
# document has more.
_READ_TOGETHER, _TOKENS_TOGETHER = 256, 1 << 18


class ArchiveOptions(TypedDict, total=False):
    """The settings of `Archive.create`, for type checkers."""

    level: int
    memory_share: float | None
    effort: int | None
    batch: int | None
    verify: Verify
    progress: ProgressCallback | None


class Archive(Sequence[bytes]):
    """An archive in a file: a sequence of documents, as bytes, with keys or without, each decoded when it is read.

    `in`, `index` and `count` are about documents, and decode only those that have the checksum of the one asked for;
    `by_key` is the mapping of the keys. batch: documents decoded side by side, None for as many as suit
    the device; name: what messages call the archive, at first its path. Pickles as its path and its codec.
    """

    def __init__(self, path: str | os.PathLike[str], codec: Codec | None = None, primer: Primer | None = None) -> None:
        """codec: a loaded one (default: see `load`); primer: if the archive needs one that is not inside.

        Raises FormatError, ChecksumError, OSError; ModelMismatchError when documents are decoded.
        """
        if codec is not None:
            check_type("codec", codec, Codec, "memcodec.Codec.load()")
        self.batch: int | None = None
        self.name = os.fspath(path)
        self._path = Path(path).absolute()  # stays valid if the working directory changes
        self._codec = codec
        blob = Path(path).read_bytes()
        try:
            self._read(blob, as_primer(primer))
        except (FormatError, ChecksumError) as error:
            raise type(error)(f"{self.name}: {error}") from error

    def __repr__(self) -> str:
        return f"<memcodec.Archive {self.name!r}: {counted(len(self), 'document')}>"

    def _read(self, blob: bytes, primer: Primer | None) -> None:
        metadata, tensors = tensors_of(blob)
        reader = Reader(tensors["archive"][:-4], "archive")
        self.model = ModelId(metadata.get("model", ""), bytes(reader.take(container.IDENTITY_BYTES)))
        self.settings: Settings = read_settings(reader)
        _frame_settings(self.settings)  # raises if they are not known
        count = read_count(reader)
        self._keys = unpack_keys(reader, count)
        self._ends, self._sources = read_places(reader, count)
        self._frames = reader.take(len(reader))
        self._numbers = {key: i for i, key in enumerate(self._keys)}
        if len(self._numbers) != len(self._keys):
            raise FormatError("damaged archive: two documents have the same key")
        self.carries_primer = "primer" in tensors
        inside = Primer.from_bytes(bytes(tensors["primer"]), "the primer inside") if self.carries_primer else None
        self.primer = inside or primer
        self._state = len(blob), blob[-4:]

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        documents: Iterable[str | bytes],
        keys: Iterable[str] | None = None,
        *,
        codec: Codec | None = None,
        primer: Primer | None = None,
        with_primer: bool = True,
        overwrite: bool = False,
        **settings: Unpack[ArchiveOptions],
    ) -> "Archive":
        """Write an archive. keys: one for each document, or none at all.

        codec: a loaded one (default: the built-in model); primer: instead of the codec's; with_primer: put the primer
        into the file; overwrite: replace a file that exists. settings: memory_share and effort, as in `Readout`, by
        default those of `level` (default 9; every level uses the whole document as context); verify (default True), as
        in `Codec.encode`; batch: documents decoded side by side in steps; progress. Equal documents are stored once.
        Raises FileExistsError; EncodeError for settings out of range, and for keys that are not one for each document,
        or are empty, too long, the same, or contain NUL; TypeError for keys that are not str, and for one document
        instead of several; MachineError; OSError.
        """
        if unknown := settings.keys() - ArchiveOptions.__annotations__.keys():
            raise TypeError(f"{', '.join(sorted(unknown))}: not a setting of an archive")
        if codec is not None:
            check_type("codec", codec, Codec, "memcodec.Codec.load()")
        check = check_writable if overwrite else partial(check_new, advice="give overwrite=True, or append to it")
        check(path)
        share, effort = _memories(settings)
        codec = codec or Codec.load()
        if primer is not None:
            codec = codec.with_primer(primer)
        verify, batch = settings.get("verify", True), settings.get("batch")
        check_verify(verify)
        check_batch(batch)
        primer_identity = codec.primer.identity if codec.primer else b""
        written = Settings("readout", (share,), context=MAX_CONTEXT, primer=primer_identity)
        originals = list(as_many(documents, "documents"))
        check_count(len(originals))
        keys = as_keys(keys)
        check_keys(keys, len(originals))
        frames = codec.encode_frames(originals, _frame_settings(written, effort), progress=settings.get("progress"))
        if verify:
            _verify(codec, originals, frames, _frame_settings(written), verify, batch, settings.get("progress"))
        inside = codec.primer.to_bytes() if codec.primer is not None and with_primer else b""
        model_id = ModelId.of(codec.name, codec.model.identity)
        replace(Path(path), [_pack(model_id, written, keys, frames, inside)], before=lambda _: check(path))
        return cls(path, codec, codec.primer)

    def append(
        self, documents: Iterable[str | bytes], keys: Iterable[str] | None = None, *, verify: Verify = True,
        progress: ProgressCallback | None = None,
    ) -> None:  # fmt: skip
        """Add documents after the others; writes the whole file again. verify: as in `create`. Raises as `create`.

        Raises EncodeError too if the file was changed after it was read.
        """
        check_verify(verify)
        originals = list(as_many(documents, "documents"))
        check_count(len(self) + len(originals))
        new = as_keys(keys)
        if len(self) and originals and bool(self._keys) != bool(new):
            has = "has keys: give one for each document" if self._keys else "has no keys: give none"
            raise EncodeError(f"{self.name}: the archive {has}")
        check_keys(new, len(originals))
        check_keys([*self._keys, *new] if new else (), len(self) + len(originals))
        settings = _frame_settings(self.settings)
        frames = self.codec.encode_frames(originals, settings, progress=progress)
        if verify:
            _verify(self.codec, originals, frames, settings, verify, self.batch, progress)
        old = [self._frame(i) for i in range(len(self))]
        inside = self.primer.to_bytes() if self.primer is not None and self.carries_primer else b""
        blob = _pack(self.model, self.settings, [*self._keys, *new], [*old, *frames], inside)
        with self._path.open("rb") as file:
            if hold(file) is False or not os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                raise EncodeError(f"{self.name}: another process is writing to it: open it again")
            now = file.read()
            if (len(now), now[-4:]) != self._state:
                raise EncodeError(f"{self.name}: changed since it was read: open it again")
            replace(self._path, [blob])  # under the lock: if two processes append, one gets an error
        self._read(blob, self.primer)

    @property
    def needs(self) -> Needs:
        """The model and the primer that decoding needs."""
        return Needs(self.model, self.settings.primer)

    @property
    def codec(self) -> Codec:
        """The codec of its documents, loaded when it is first needed. Raises as `memcodec.codec.codec_for`."""
        self._codec = codec_for(self.needs, self._codec, primer=self.primer)
        return self._codec

    def load(
        self, model: str | os.PathLike[str] | None = None, *, allow_download: bool = False,
        **options: Unpack[LoadOptions],
    ) -> None:  # fmt: skip
        """Load the model that the archive names, or `model` instead; options: as in `Codec.load`.

        allow_download: fetch a model that only the archive names from the Hugging Face hub. Raises
        ModelNotFoundError, ModelMismatchError.
        """
        self._codec = codec_for(self.needs, model=model, allow_download=allow_download, primer=self.primer, **options)

    def __len__(self) -> int:
        return len(self._ends)

    def keys(self) -> list[str]:
        """The keys of all documents, in order; empty if they have none."""
        return list(self._keys)

    @property
    def by_key(self) -> "ByKey":
        """The documents as a mapping from their keys, which decodes each when it is read."""
        return ByKey(self)

    @overload
    def __getitem__(self, which: int | str) -> bytes: ...
    @overload
    def __getitem__(self, which: slice) -> list[bytes]: ...
    def __getitem__(self, which: int | str | slice) -> bytes | list[bytes]:
        """A document by its number or key, or several by a slice. Raises IndexError, KeyError, ChecksumError."""
        if isinstance(which, slice):
            return list(self.read(range(len(self))[which]))
        if isinstance(which, str):
            if which not in self._numbers:
                raise KeyError(which)
            which = self._numbers[which]
        number = index(which)
        if not -len(self) <= number < len(self):
            raise IndexError(f"document {number}: the archive has {len(self)}")
        return next(self._decode([number % len(self)]))

    def __contains__(self, document: object) -> bool:
        """Whether this is one of the documents. Raises TypeError for text: a key is in `by_key`."""
        return next(self._equal(document), None) is not None

    def index(self, document: object, start: int = 0, stop: int | None = None) -> int:
        """The number of the first document that is equal, from `start` to `stop`. Raises ValueError."""
        found = next(self._equal(document, slice(start, stop)), None)
        if found is None:
            raise ValueError("the archive has no such document")
        return found

    def count(self, document: object) -> int:
        """How many documents are equal."""
        return sum(1 for _ in self._equal(document))

    def _equal(self, document: object, within: slice = slice(None)) -> Iterator[int]:
        """The numbers of documents that are equal. Decodes those with the same checksum only, each frame once."""
        if isinstance(document, str):
            raise TypeError("documents are bytes: encode the text, or ask archive.by_key for a key")
        if not isinstance(document, bytes | bytearray | memoryview):
            return
        data = bytes(document)
        end = zlib.crc32(data).to_bytes(4, "little")[:_CHECKSUM_BYTES]
        equal: dict[int, bool] = {}  # by the number of the document that has the frame
        for number in range(len(self))[within]:
            source = int(self._sources[number])
            if source not in equal:
                equal[source] = self._frame(source)[-_CHECKSUM_BYTES:] == end and self[source] == data
            if equal[source]:
                yield number

    def __iter__(self) -> Iterator[bytes]:
        """All documents, decoded side by side."""
        return self.read(range(len(self)))

    def __reversed__(self) -> Iterator[bytes]:
        """All documents from the last to the first, decoded side by side."""
        return self.read(range(len(self))[::-1])

    def __reduce__(self) -> tuple[Any, ...]:
        """Its path, codec and primer: `_opened_again` reads the file where it is unpickled."""
        return _opened_again, (os.fspath(self._path), self._codec, self.primer, self.batch, self.name, self._state)

    def __deepcopy__(self, _: object) -> "Archive":
        """A copy that shares the codec."""
        return self.__copy__()

    def __copy__(self) -> "Archive":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Documents by their numbers, decoded side by side."""
        most = max(_READ_TOGETHER, self.codec.model.lm.capacity.sequences)
        most_tokens = _TOKENS_TOGETHER * most // _READ_TOGETHER
        together: list[int] = []
        sources: set[int] = set()  # the documents whose frames these have
        tokens = 0
        for number in numbers:
            source = int(self._sources[number])
            more = 0 if source in sources else stated_tokens(self._frame(number))
            if together and (len(together) == most or (more and tokens + more > most_tokens)):
                yield from self._decode(together)
                together, sources, tokens, more = [], set(), 0, stated_tokens(self._frame(number))
            together.append(number)
            sources.add(source)
            tokens += more
        if together:
            yield from self._decode(together)

    def frame_size(self, number: int) -> int:
        """Bytes that a document takes in the file, in addition to the index: 0 if it is the same as an earlier one."""
        return len(self._frame(number)) if self._sources[number] == number % len(self) else 0

    def _frame(self, number: int) -> bytes:
        number = self._sources[number]
        return bytes(self._frames[self._ends[number - 1] if number else 0 : self._ends[number]])

    def _decode(self, numbers: Sequence[int]) -> Iterator[bytes]:
        check_batch(self.batch)
        frames, settings = [self._frame(i) for i in numbers], _frame_settings(self.settings)
        labels = [f"{self.name}: document {self._keys[i] if self._keys else i!r}" for i in numbers]
        return decode(self.codec.model, frames, settings, self.batch, labels=labels)


class ByKey(Mapping[str, bytes]):
    """The documents of an archive by their keys, in its order; empty if they have none."""

    def __init__(self, archive: Archive) -> None:
        """Most callers want `Archive.by_key`."""
        self._archive = archive

    def __repr__(self) -> str:
        return f"<the keys of {self._archive!r}>"

    def __getitem__(self, key: str) -> bytes:
        """The document of a key. Raises KeyError, ChecksumError."""
        if not isinstance(key, str):
            raise KeyError(key)
        return self._archive[key]

    def __contains__(self, key: object) -> bool:
        """Whether there is such a key; decodes nothing."""
        return key in self._archive._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive._keys)

    def __len__(self) -> int:
        return len(self._archive._keys)


def _opened_again(
    path: str, codec: Codec | None, primer: Primer | None, batch: int | None, name: str, state: tuple[int, bytes]
) -> Archive:
    """The archive that was pickled. Raises FormatError if its file is another one now; as `Archive`."""
    archive = Archive(path, codec, primer)
    if archive._state != state:
        raise FormatError(f"{path}: changed since the archive was pickled: open it again")
    archive.batch, archive.name = batch, name
    return archive


def _memories(options: ArchiveOptions) -> tuple[int, int]:
    """The memory share, in steps of 1/1024, and the effort. Raises EncodeError."""
    level, share, effort = settings_of(options.get("level", BEST)), options.get("memory_share"), options.get("effort")
    share = level.share if share is None else share
    memories = FrameSettings(memory_share=share, effort=level.effort if effort is None else effort)
    return share_steps(share), memories.effort


def _frame_settings(settings: Settings, effort: int = DEFAULT_EFFORT) -> FrameSettings:
    """The settings of an archive's frames. Raises FormatError if they are not known."""
    if settings.site != "readout" or len(settings.fields) != 1 or settings.fields[0] > MOST_SHARE:
        raise FormatError("damaged archive: its documents have an unknown site")
    if settings.context != MAX_CONTEXT:
        raise FormatError("damaged archive: its documents have an unknown context")
    share = settings.fields[0] / SHARE_STEPS
    return FrameSettings(_CHECKSUM_BYTES, b"", share, effort, settings.chunk_tokens, MAX_DOCUMENT_BYTES)


def _verify(
    codec: Codec, documents: list[str | bytes], frames: list[bytes], settings: FrameSettings, verify: Verify,
    batch: int | None, progress: ProgressCallback | None,
) -> None:  # fmt: skip
    """Raise MachineError if frames do not decode to their documents. verify: "steps" or full passes."""
    messages = [x.encode() if isinstance(x, str) else bytes(x) for x in documents]
    verify_frames(codec.model, messages, frames, settings, verify == "steps", batch, progress)


def _pack(model: ModelId, settings: Settings, keys: Sequence[str], frames: Sequence[bytes], primer: bytes) -> bytes:
    """The bytes of an archive. Frames that are the same decode to the same document, and are kept once."""
    names = pack_keys(keys)
    index = model.identity + pack_settings(settings) + varint(len(frames)) + varint(len(names)) + names
    first: dict[bytes, int] = {}
    sources = [first.setdefault(frame, number) for number, frame in enumerate(frames)]
    if frames:
        index += pack_column([len(frames[n]) if source == n else 0 for n, source in enumerate(sources)])
    if repeated := [source for n, source in enumerate(sources) if source != n]:
        index += pack_column(repeated)
    pieces = [primer, index, *first]
    length = sum(map(len, pieces))
    header: dict[str, Any] = {"__metadata__": {"memcodec": VERSION, "model": model.name}}
    if primer:
        header["primer"] = {"dtype": "U8", "shape": [len(primer)], "data_offsets": [0, len(primer)]}
    count = length - len(primer) + 4
    header["archive"] = {"dtype": "U8", "shape": [count], "data_offsets": [len(primer), length + 4]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    blob = b"".join([struct.pack("<Q", len(text)), text, *pieces])
    return blob + struct.pack("<I", zlib.crc32(blob))
