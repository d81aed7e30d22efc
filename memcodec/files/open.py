"""Files that compress what is written to them, and decode what is read of them: `memcodec.open`, like `gzip.open`."""

import bisect
import io
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from memcodec import container
from memcodec.container import Container, Segment, StoredSpan
from memcodec.document.source import Source
from memcodec.errors import ChecksumError, FormatError, MemcodecError
from memcodec.files import remote
from memcodec.files.write import replace
from memcodec.settings import DEFAULT_BATCH

if TYPE_CHECKING:
    from memcodec.codec import Codec
    from memcodec.files.primer import Primer

_SPOOLED = 1 << 22  # bytes that are kept in memory until a file is written
_KEPT = 1 << 22  # decoded bytes that are kept for the next read

PathOrFile = str | os.PathLike[str] | BinaryIO


class BadFileError(FormatError, OSError):
    """A file that does not read: what callers of `gzip.open` expect to be an OSError."""


def open(
    file: PathOrFile,
    mode: str = "rb",
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    codec: "Codec | None" = None,
    primer: "Primer | None" = None,
    **settings: Any,
) -> "MemzFile | io.TextIOWrapper":
    """Open a .memz file by its path or URL, or a binary file that is open, which is not closed with it.

    mode: r, w or x, with b (the default) or t for text in `encoding`; codec: a model that is loaded (default: the
    file's, or the built-in one); primer: see `Codec.with_primer`; settings: of writing, as in `Codec.encode`. Raises
    ValueError for a mode or settings that do not go together; BadFileError, which is an OSError; OSError.
    """
    kind = mode.replace("t", "").replace("b", "")
    if kind not in ("r", "w", "x", "") or len(mode) != len(set(mode)) or {"t", "b"} <= set(mode):
        raise ValueError(f"mode {mode!r}: give r, w or x, with b or t")
    if "t" not in mode and (encoding, errors, newline) != (None, None, None):
        raise ValueError("encoding, errors and newline are for text: give a mode with t")
    if settings and kind in ("r", ""):
        raise ValueError(f"{', '.join(settings)}: for writing only")
    found = MemzFile(file, kind or "r", codec=codec, primer=primer, **settings)
    return _TextFile(found, encoding, errors, newline) if "t" in mode else found


class _TextFile(io.TextIOWrapper):
    """Text over a `MemzFile`; an error, or nobody who closes it, leaves nothing written."""

    def __init__(self, file: "MemzFile", encoding: str | None, errors: str | None, newline: str | None) -> None:
        super().__init__(cast(IO[bytes], file), encoding, errors, newline)
        self._memz = file

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self._memz.drop()
        self.close()

    def __del__(self) -> None:
        self._memz.drop()


class MemzFile(io.BufferedIOBase):
    """A binary file over a .memz file: `open` makes them.

    Reading decodes the groups of chunks that hold what is asked for, and, where that goes on, more of them at a time;
    every chunk is checked, and the whole where it is read from its beginning to its end. What is written is kept, on
    disk where it is large, and compressed when the file is closed: an error before leaves nothing behind.
    """

    _spool: Any = None

    def __init__(
        self,
        file: PathOrFile,
        mode: str = "r",
        *,
        codec: "Codec | None" = None,
        primer: "Primer | None" = None,
        **settings: Any,
    ) -> None:
        if mode not in ("r", "w", "x"):
            raise ValueError(f"mode {mode!r}: give r, w or x")
        self._file = file
        self._mode = mode
        self._codec = codec
        self._primer = primer
        self._settings = settings
        self._reader: io.BufferedReader | None = None
        self._spool: Any = None
        self._dropped = False
        self.name = os.fspath(file) if isinstance(file, str | os.PathLike) else getattr(file, "name", "")
        if mode == "r":
            with _as_os_error():
                blob = _contents(file)
                self._reader = io.BufferedReader(Decoded(container.unpack_all(blob), self._codec_for))
            return
        if remote.is_url(file):
            self._refuse_existing_url()
        elif isinstance(file, str | os.PathLike):
            if mode == "x" and Path(file).exists():
                raise FileExistsError(f"{os.fspath(file)} exists")
            folder = Path(file).resolve().parent
            if not folder.is_dir() or not os.access(folder, os.W_OK):
                raise PermissionError(f"{folder}: not a folder that can be written to")
        self._spool = tempfile.SpooledTemporaryFile(_SPOOLED)  # noqa: SIM115 (closed with this)

    # ---- what a file must have

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self._reader is not None

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._reader is None

    def seekable(self) -> bool:
        """Whether it was opened for reading."""
        return self.readable()

    def _reading(self) -> io.BufferedReader:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._reader is None:
            raise io.UnsupportedOperation("not open for reading")
        return self._reader

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, or all that follow."""
        with _as_os_error():
            return self._reading().read(-1 if size is None else size)

    def read1(self, size: int = -1) -> bytes:
        """Some bytes, at most `size`, with little work."""
        with _as_os_error():
            return self._reading().read1(size)

    def readinto(self, buffer: Any) -> int:
        """As many bytes as the buffer has room for; gives their number."""
        with _as_os_error():
            return self._reading().readinto(buffer)

    def readinto1(self, buffer: Any) -> int:
        """The same with little work."""
        with _as_os_error():
            return self._reading().readinto1(buffer)

    def peek(self, size: int = 0) -> bytes:
        """Bytes that come next, without going on."""
        with _as_os_error():
            return self._reading().peek(size)

    def readline(self, size: int | None = -1) -> bytes:
        """The next line."""
        with _as_os_error():
            return self._reading().readline(-1 if size is None else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the decoded bytes; nothing is decoded for it."""
        return self._reading().seek(offset, whence)

    def tell(self) -> int:
        """The place, in the decoded bytes."""
        if self._spool is not None:
            return int(self._spool.tell())
        return self._reading().tell()

    def _codec_for(self, file: Container) -> "Codec":
        from memcodec.codec import Codec

        primer = self._primer if file.settings is not None and file.settings.primer else None
        if self._codec is None or self._codec.differs(file):
            self._codec = Codec.load_for(file, primer=primer)
            assert self._codec is not None
        elif self._primer is not None and self._codec.primer is not primer:
            self._codec = self._codec.with_primer(primer)
        return self._codec

    def write(self, data: Any) -> int:
        """Keep some bytes until the file is closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._dropped:
            return len(data)
        if self._spool is None:
            raise io.UnsupportedOperation("not open for writing")
        return int(self._spool.write(data))

    def __exit__(self, *error: Any) -> None:
        """Close; after an error, without writing anything."""
        if error[0] is not None:
            self.drop()
        self.close()

    def drop(self) -> None:
        """Forget what was written."""
        if self._spool is not None:
            self._spool.close()
            self._spool, self._dropped = None, True

    def close(self) -> None:
        """Compress and write what was written. Raises MemcodecError, OSError."""
        spool, self._spool = self._spool, None
        try:
            if self._reader is not None:
                self._reader.close()
            if spool is not None:
                with spool:
                    self._write(self._compress(spool))
        finally:
            super().close()

    def _compress(self, spool: BinaryIO) -> bytes:
        from memcodec.codec import Codec, without_model

        spool.seek(0)
        source = Source(spool, self.name)
        if (blob := without_model(source)) is not None:
            return blob
        codec = self._codec or Codec.load()
        if self._primer is not None:
            codec = codec.with_primer(self._primer)
        return codec.encode(source, **self._settings)

    def _write(self, blob: bytes) -> None:
        if not isinstance(self._file, str | os.PathLike):
            self._file.write(blob)
            return
        if remote.is_url(self._file):
            self._refuse_existing_url()
            remote.write(self.name, [blob])
            return
        replace(Path(self._file), [blob], before=self._before_naming)

    def _refuse_existing_url(self) -> None:
        if self._mode == "x" and remote.exists(self.name):
            raise FileExistsError(f"{self.name} exists")

    def _before_naming(self, _: Path) -> None:
        if self._mode == "x" and Path(self._file).exists():  # type: ignore[arg-type]
            raise FileExistsError(f"{self.name} exists")

    def __del__(self) -> None:
        """What was not closed is not written: there is nobody to tell what goes wrong."""
        self.drop()


def _contents(file: PathOrFile) -> bytes:
    if remote.is_url(file):
        return remote.read(str(file))
    return Path(file).read_bytes() if isinstance(file, str | os.PathLike) else file.read()


class Decoded(io.RawIOBase):
    """The documents of some files, one behind the other, decoded where they are read."""

    def __init__(self, files: list[Container], codec_for: "Callable[[Container], Codec]") -> None:
        """codec_for: gives the codec of a file when it is needed."""
        self._codec_for = codec_for
        self._parts: list[tuple[Container, Segment | StoredSpan, int]] = []  # and the number of its group in the file
        self._starts = [0]
        for file in files:
            group = -1
            for part in file.parts:
                group += isinstance(part, Segment) and part.corrections is not None
                self._parts.append((file, part, group))
                self._starts.append(self._starts[-1] + part.size)
        self._place = 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # of segments, by their numbers
        self._held = 0  # bytes of them
        self._span: tuple[int, int, bytes, Iterator[bytes]] = (-1, 0, b"", iter(()))  # a stored one that is being read
        self._together = 1  # groups that are decoded at one time: more while they are read one after the other
        self._row = -1  # how often that was so
        self._following = 0  # the part behind those
        self._sums = _Sums(files)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._starts[-1]}.get(whence)
        if base is None:
            raise ValueError(f"whence {whence}: give 0, 1 or 2")
        if base + offset < 0:
            raise ValueError(f"negative place {base + offset}")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """From one part, as far as it goes."""
        if self._place >= self._starts[-1] or not len(buffer):
            return 0
        number = bisect.bisect_right(self._starts, self._place) - 1
        first = self._place - self._starts[number]
        _, part, _ = self._parts[number]
        if isinstance(part, StoredSpan):
            data = self._stored(number, part, first)[: len(buffer)]
        else:
            data = self._segment(number)[first : first + len(buffer)]
        buffer[: len(data)] = data
        self._sums.take(self._place, data)
        self._place += len(data)
        return len(data)

    def _stored(self, number: int, part: StoredSpan, first: int) -> bytes:
        """What a stored span has from a place on, as far as one of its pieces goes."""
        own, start, piece, pieces = self._span
        if own != number or first < start:
            start, piece, pieces = 0, b"", part.pieces()
        while first >= start + len(piece):
            start, piece = start + len(piece), next(pieces)
        if start + len(piece) == part.size:
            for _ in pieces:  # checks the whole
                pass
        self._span = number, start, piece, pieces
        return piece[first - start :]

    def _segment(self, number: int) -> bytes:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        self._row = self._row + 1 if number == self._following else 0
        self._together = max(1, min(1 << max(self._row, 0) >> 1, DEFAULT_BATCH))  # 1, 1, 2, 4, ...
        self._decode(self._parts[number][0], number)
        return self._kept[number]

    def _decode(self, file: Container, number: int) -> None:
        """The group that a part belongs to, and those behind it that are to be decoded with it."""
        first = number
        while self._parts[first][1].corrections is None:  # type: ignore[union-attr]
            first -= 1
            while not isinstance(self._parts[first][1], Segment):
                first -= 1
        groups: dict[int, list[int]] = {}
        for i in range(first, len(self._parts)):
            owner, part, group = self._parts[i]
            if owner is not file or (group not in groups and len(groups) == self._together):
                self._following = i
                break
            if isinstance(part, Segment):
                groups.setdefault(group, []).append(i)
        else:
            self._following = len(self._parts)
        codec = self._codec_for(file)
        found: dict[int, bytes] = {}
        for numbers, tokens in zip(groups.values(), codec.decode_group(file, list(groups)), strict=True):
            found.update(_segments(codec, [(i, self._parts[i][1]) for i in numbers], tokens))
        self._keep(found)

    def _keep(self, found: dict[int, bytes]) -> None:
        for number, data in found.items():
            self._held += len(data) - len(self._kept.pop(number, b""))
            self._kept[number] = data
        while len(self._kept) > len(found) and self._held > _KEPT:
            self._held -= len(self._kept.popitem(last=False)[1])


def _segments(codec: "Codec", parts: list[tuple[int, Any]], tokens: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """The bytes of each segment of a group, from the tokens of all. Raises ChecksumError."""
    for number, part in parts:
        pieces = []
        for chunk in part.chunks:
            data, tokens = codec.tokenizer.decode(tokens[: chunk.tokens]), tokens[chunk.tokens :]
            if container.chunk_checksum(data) != chunk.checksum:
                raise ChecksumError("a chunk does not match its checksum: damaged file")
            pieces.append(data)
        joined = b"".join(pieces)
        if len(joined) != part.size:
            raise ChecksumError("some chunks have not the length that the index says: damaged file")
        yield number, joined


class _Sums:
    """Checks the SHA-256 of each file that is read from its beginning to its end."""

    def __init__(self, files: list[Container]) -> None:
        import hashlib

        self._ends: list[tuple[int, int, Container, Any]] = []
        start = 0
        for file in files:
            self._ends.append((start, start + file.size, file, hashlib.sha256()))
            start += file.size
        self._place = 0  # as far as all was read

    def take(self, place: int, data: bytes) -> None:
        if place != self._place:
            return
        self._place += len(data)
        for start, end, file, found in self._ends:
            part = data[max(0, start - place) : max(0, end - place)]
            found.update(part)
            if part and self._place >= end and found.digest()[: container.HASH_BYTES] != file.sha256:
                raise ChecksumError("the decoded bytes do not match the original's SHA-256")


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except (FormatError, ChecksumError) as error:
        raise BadFileError(str(error)) from error
    except MemcodecError:
        raise
