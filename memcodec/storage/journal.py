"""Journals: the groups of a document encoded so far, in a side file, so that an interrupted encoder can continue.

The file has a mark, a hash of the document and its settings, and a record for each group: its length in bytes, a
CRC-32, and the group. It is for the same machine and the same version of memcodec; the format may change.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

import memcodec
from memcodec.coding.corrections import EncodedGroup
from memcodec.container import VERSION, Reader, varint
from memcodec.document.blocks import Cutting
from memcodec.document.source import Source
from memcodec.errors import EncodeError, FormatError
from memcodec.models.loaded import LoadedModel
from memcodec.settings import SiteSettings
from memcodec.storage.write import hold

_MARK = b"memcodec journal 1\n"
_RECORD = struct.Struct("<II")  # bytes, CRC-32
_MAX_RECORD_BYTES = 1 << 26


class Journal:
    """The side file of one document, a context manager: it is kept if its block ends with an error, else removed.

    `with memcodec.Journal("big.memz.part") as journal: blob = codec.encode(file, journal=journal)`, and
    write the result before the block ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """path: of the side file, which may exist from an earlier run."""
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._records: list[EncodedGroup] = []

    def __enter__(self) -> "Journal":
        """Raises OSError; EncodeError if another process uses the file, or it is not a journal."""
        file = self._opened()
        while not _is_at(file, self.path):  # removed, before the lock, by another process that has finished
            file.close()
            file = self._opened()
        self._file = file
        return self

    def _opened(self) -> BinaryIO:
        """The file, locked. Raises as `__enter__`."""
        file = self.path.open("a+b")
        try:
            file.seek(0)
            start = file.read(len(_MARK))
            if hold(file) is False:
                raise EncodeError(f"{self.path}: another process is using it")
            if start and not _MARK.startswith(start):
                raise EncodeError(f"{self.path}: is not a side file of memcodec: give another output")
        except BaseException:
            file.close()
            raise
        return file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        file, self._file = self._file, None
        assert file is not None
        try:
            if kind is None or not os.fstat(file.fileno()).st_size:
                self.path.unlink(missing_ok=True)
        finally:
            with suppress(OSError):  # what could not be written before cannot be written now either
                file.close()

    @property
    def groups(self) -> int:
        """The number of groups that were in the file when the encoder began."""
        return len(self._records)

    def begin(self, key: bytes, step: int = 1) -> None:
        """Read the groups in the file, for a document and settings that `key` describes.

        step: groups are used in multiples of this number. Raises EncodeError if the file has another key.
        """
        if self._file is None:
            raise ValueError("a journal is used in a with block")
        whole = _MARK + hashlib.sha256(key).digest()
        self._file.seek(0)
        start = self._file.read(len(whole))
        if len(start) == len(whole) and start != whole:
            raise EncodeError(
                f"{self.path}: belongs to another input or other settings: remove it, or use the same ones again"
            )
        ends = [len(whole)]
        self._records = []
        if start == whole:
            for group in _read(self._file):
                self._records.append(group)
                ends.append(self._file.tell())
            del self._records[len(self._records) // step * step :]
        else:
            self._file.truncate(0)
            self._write(whole)
        self._file.truncate(ends[len(self._records)])

    def encoded(
        self,
        groups: Iterable[list[np.ndarray]],
        encode: Callable[[Iterable[list[np.ndarray]]], Iterator[EncodedGroup]],
        known: Callable[[EncodedGroup], None],
    ) -> Iterator[EncodedGroup]:
        """The encoded groups: first those in the file, then the others, from `encode`, which are added to it.

        known: is called with each group that was in the file. Raises EncodeError if they do not fit the document.
        """
        waiting = iter(groups)
        for record in self._records:
            group = next(waiting, None)
            if group is None or tuple(map(len, group)) != record.lengths:
                raise EncodeError(f"{self.path}: does not fit the document: remove it")
            known(record)
            yield record
        for new in encode(waiting):
            payload = _pack(new)
            self._write(_RECORD.pack(len(payload), zlib.crc32(payload)) + payload)
            yield new

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())


def journal_key(source: Source, model: LoadedModel, site: SiteSettings, cutting: Cutting) -> bytes:
    """All that the encoded groups of a document depend on."""
    versions = memcodec.__version__, VERSION, model.identity, model.primer_tokens.tobytes()
    return repr((versions, site, cutting, source.size, source.digest())).encode()


def is_side_file(path: Path) -> bool:
    """Whether a file begins as side files do, which may have been cut when a process was killed. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(len(_MARK))
        return bool(start) and _MARK.startswith(start)


def discard(path: Path) -> None:
    """Remove a side file, if there is one that no process is using."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(_MARK)) == _MARK and hold(file) is not False and _is_at(file, path):
            path.unlink()


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(file: BinaryIO) -> Iterator[EncodedGroup]:
    """The groups of the records that are complete, up to the first that is not."""
    while len(head := file.read(_RECORD.size)) == _RECORD.size:
        length, checksum = _RECORD.unpack(head)
        payload = file.read(min(length, _MAX_RECORD_BYTES))
        if len(payload) != length or zlib.crc32(payload) != checksum:
            return
        try:
            yield _unpack(payload)
        except FormatError:
            return


def _pack(group: EncodedGroup) -> bytes:
    numbers = [len(group.lengths), *group.lengths, *map(len, group.memories)]
    return b"".join([*map(varint, numbers), *group.memories, group.corrections])


def _unpack(payload: bytes) -> EncodedGroup:
    reader = Reader(payload, "a journal")
    count = reader.varint()
    if count > len(reader):
        raise FormatError("damaged journal")
    lengths = tuple(reader.varint() for _ in range(count))
    sizes = [reader.varint() for _ in range(count)]
    return EncodedGroup(lengths, tuple(bytes(reader.take(size)) for size in sizes), bytes(reader.take(len(reader))))
