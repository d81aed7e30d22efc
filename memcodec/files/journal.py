"""What is encoded of a document so far, in a side file: an encoder that was killed goes on from it.

The file is a mark, a key that says of which document and settings it is, and a record for each group: bytes, CRC-32,
and the group. It is of this machine and version alone, and no format to keep.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from memcodec.container import Reader, varint
from memcodec.errors import EncodeError, FormatError
from memcodec.files.write import hold
from memcodec.groups import EncodedGroup

_MARK = b"memcodec journal 1\n"
_RECORD = struct.Struct("<II")  # bytes, CRC-32
_MOST = 1 << 26  # bytes of a record


class Journal:
    """A side file of one document, used as a context manager: kept where its block ends with an error, else removed.

    `with memcodec.Journal("big.memz.part") as journal: blob = codec.encode(file, journal=journal)`, and the result
    written before the block ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """path: of the side file, which may be there from an earlier run."""
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._records: list[EncodedGroup] = []

    def __enter__(self) -> "Journal":
        """Raises OSError; EncodeError where another process has it, or the file is none of memcodec's."""
        file = self.path.open("a+b")
        try:
            file.seek(0)
            start = file.read(len(_MARK))
            if hold(file) is False:
                raise EncodeError(f"{self.path}: another process is at work on it")
            if start and not _MARK.startswith(start):
                raise EncodeError(f"{self.path}: is no side file of memcodec: give another output")
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._file is not None
        if kind is None or not self._file.seek(0, os.SEEK_END):
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._file = None

    @property
    def groups(self) -> int:
        """That were there when the encoder began."""
        return len(self._records)

    def begin(self, key: bytes, step: int = 1) -> None:
        """Read what there is, for a document and settings of this key; whole steps of so many groups count.

        Raises EncodeError where it is of others.
        """
        if self._file is None:
            raise ValueError("a journal is used in a with block")
        whole = _MARK + hashlib.sha256(key).digest()
        self._file.seek(0)
        found = self._file.read(len(whole))
        if len(found) == len(whole) and found != whole:
            raise EncodeError(
                f"{self.path}: is of another input, or of other settings: remove it, or go on as it was begun"
            )
        ends = [len(whole)]
        self._records = []
        if found == whole:
            for coded in _read(self._file):
                self._records.append(coded)
                ends.append(self._file.tell())
            del self._records[len(self._records) // step * step :]
        else:
            self._file.truncate(0)
            self._write(whole)
        self._file.truncate(ends[len(self._records)])

    def coded(
        self,
        groups: Iterable[list[np.ndarray]],
        encode: Callable[[Iterable[list[np.ndarray]]], Iterator[EncodedGroup]],
        known: Callable[[EncodedGroup], None],
    ) -> Iterator[EncodedGroup]:
        """Groups of chunks as they are coded: those that are here, then the others, which are added.

        known: is told of those that are here. Raises EncodeError where they do not fit the document.
        """
        waiting = iter(groups)
        for record in self._records:
            group = next(waiting, None)
            if group is None or tuple(map(len, group)) != record.lengths:
                raise EncodeError(f"{self.path}: does not fit its document: remove it")
            known(record)
            yield record
        for made in encode(chain(waiting)):
            payload = _pack(made)
            self._write(_RECORD.pack(len(payload), zlib.crc32(payload)) + payload)
            yield made

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())


def discard(path: Path) -> None:
    """Remove a side file that no process is at work on, where there is one."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(_MARK)) == _MARK and hold(file) is not False:
            path.unlink()


def _read(file: BinaryIO) -> Iterator[EncodedGroup]:
    """The records that are whole."""
    while len(head := file.read(_RECORD.size)) == _RECORD.size:
        length, checksum = _RECORD.unpack(head)
        payload = file.read(min(length, _MOST))
        if len(payload) != length or zlib.crc32(payload) != checksum:
            return
        try:
            yield _unpack(payload)
        except FormatError:
            return


def _pack(coded: EncodedGroup) -> bytes:
    numbers = [len(coded.lengths), *coded.lengths, *map(len, coded.memories)]
    return b"".join([*map(varint, numbers), *coded.memories, coded.corrections])


def _unpack(payload: bytes) -> EncodedGroup:
    reader = Reader(payload, "a journal")
    count = reader.varint()
    if count > len(reader):
        raise FormatError("damaged journal")
    lengths = tuple(reader.varint() for _ in range(count))
    sizes = [reader.varint() for _ in range(count)]
    return EncodedGroup(lengths, tuple(bytes(reader.take(size)) for size in sizes), bytes(reader.take(len(reader))))
