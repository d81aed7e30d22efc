"""`memcodec.open`: file objects that compress what is written to them, and decode what is read, as `gzip.open` does."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Unpack, cast

from memcodec import container
from memcodec.codec import Codec, codec_for
from memcodec.container import Container, Needs
from memcodec.container.assembly import without_model
from memcodec.document.inputs import check_type
from memcodec.document.source import SPOOLED_BYTES, Source
from memcodec.errors import ChecksumError, FormatError, MemcodecError
from memcodec.files.decoded import Decoded
from memcodec.primer import Primer, as_primer
from memcodec.settings import EncodeOptions, EncodeSettings
from memcodec.storage import remote
from memcodec.storage.write import check_writable, replace

PathOrFile = str | os.PathLike[str] | BinaryIO


class BadFileError(FormatError, OSError):
    """A file that cannot be decoded: an OSError too, as callers of `gzip.open` expect."""


def open(
    file: PathOrFile,
    mode: str = "rb",
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    codec: Codec | None = None,
    primer: Primer | None = None,
    **settings: Unpack[EncodeOptions],
) -> "MemzFile | io.TextIOWrapper":
    """Open a .memz file by its path or URL, or an open binary file, which stays open when this one is closed.

    mode: r, w or x, with b (the default) or t for text in `encoding`; codec: a loaded model (default: to read, the one
    that the file names; to write, the built-in one); primer: see `Codec.with_primer`; settings: for writing, as in
    `Codec.encode`. Raises ValueError for a mode or settings that contradict each other; ModelMismatchError while
    reading if the file needs another model than the codec's; BadFileError, which is an OSError; OSError.
    """
    kind = mode.replace("t", "").replace("b", "")
    if kind not in ("r", "w", "x", "") or len(mode) != len(set(mode)) or {"t", "b"} <= set(mode):
        raise ValueError(f"mode {mode!r}: give r, w or x, with b or t")
    if "t" not in mode and (encoding, errors, newline) != (None, None, None):
        raise ValueError("encoding, errors and newline are for text: give a mode with t")
    if settings and kind in ("r", ""):
        raise ValueError(f"{', '.join(settings)}: for writing only")
    binary = MemzFile(file, kind or "r", codec=codec, primer=primer, **settings)
    if "t" not in mode:
        return binary
    try:
        return _TextFile(binary, mode, encoding, errors, newline)
    except BaseException:  # an encoding or a newline that does not exist
        binary.drop()
        binary.close()
        raise


class _TextFile(io.TextIOWrapper):
    """Text over a `MemzFile`. Nothing is written after an error, or if it is never closed."""

    _memz: "MemzFile | None" = None  # here too for `__del__`, if `__init__` fails

    def __init__(
        self, file: "MemzFile", mode: str, encoding: str | None, errors: str | None, newline: str | None
    ) -> None:
        super().__init__(cast(IO[bytes], file), encoding, errors, newline)
        self.mode = mode  # type: ignore[misc]  # as `io.open` does
        self._memz = file

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None and self._memz is not None:
            self._memz.drop()
        self.close()

    def detach(self) -> Any:
        """The binary file, which is written when it is closed; this object can no longer be used."""
        self._memz = None
        return super().detach()

    def __del__(self) -> None:
        if self._memz is not None:
            self._memz.drop()


class MemzFile(io.BufferedIOBase):
    """A binary file object over a .memz file, as `open` returns it.

    Reading decodes the groups that hold the bytes, and more groups at a time as reading goes on. Every chunk is
    checked, and the whole document if it is read from beginning to end. Written bytes are kept, on disk if they are
    many, and compressed when the file is closed; after an error nothing is written. mode: "rb", "wb" or "xb"; name: the
    path or URL, or the name of the file given, if it has one.
    """

    _spool: Any = None  # written bytes; here too for `__del__`, if `__init__` fails

    def __init__(
        self,
        file: PathOrFile,
        mode: str = "r",
        *,
        codec: Codec | None = None,
        primer: Primer | None = None,
        **settings: Unpack[EncodeOptions],
    ) -> None:
        if mode not in ("r", "w", "x"):
            raise ValueError(f"mode {mode!r}: give r, w or x")
        if isinstance(file, io.TextIOBase):
            raise TypeError(f"file: it is open for text: open it with mode '{mode}b'")
        if not isinstance(file, str | os.PathLike) and not hasattr(file, "read" if mode == "r" else "write"):
            raise TypeError(f"file: give a path, a URL or an open file, not {type(file).__name__}")
        if codec is not None:
            check_type("codec", codec, Codec, "memcodec.Codec.load()")
        self._file = file
        self.mode = f"{mode}b"
        self._codec = codec
        self._primer = as_primer(primer)
        self._settings = settings
        self._loaded: dict[Needs, Codec] = {}  # of the files that are read, with the state of the LM after a primer
        self._reader: io.BufferedReader | None = None
        self._dropped = False
        self.name = os.fspath(file) if isinstance(file, str | os.PathLike) else getattr(file, "name", "")
        if mode == "r":
            with self._named_errors():
                blob = _contents(file)
                self._reader = io.BufferedReader(Decoded(container.unpack_all(blob), self._codec_for))
            return
        EncodeSettings.of(**settings)  # raises now for what is out of range, and not when all is written
        if remote.is_url(file):
            self._refuse_existing_url()
        elif isinstance(file, str | os.PathLike):
            if mode == "x" and Path(file).exists():
                raise FileExistsError(f"{os.fspath(file)} exists")
            check_writable(file)
        self._spool = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115 (closed with this)

    # ---- the methods of a binary file

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self._reader is not None

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._reader is None

    def seekable(self) -> bool:
        """True: while a file is written, its bytes are kept, so that even they can be changed."""
        return True

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Errors have the name of the file; those of its content become BadFileError."""
        where = f"{self.name}: " if self.name and isinstance(self.name, str) else ""
        try:
            yield
        except OSError:  # a BadFileError among them
            raise
        except (FormatError, ChecksumError) as error:
            raise BadFileError(f"{where}{error}") from error
        except MemcodecError as error:
            raise type(error)(f"{where}{error}") from error

    def _reading(self) -> io.BufferedReader:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._reader is None:
            raise io.UnsupportedOperation("not open for reading")
        return self._reader

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, or all that follow."""
        with self._named_errors():
            return self._reading().read(-1 if size is None else size)

    def read1(self, size: int = -1) -> bytes:
        """At most `size` bytes, with as little decoding as possible."""
        with self._named_errors():
            return self._reading().read1(size)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as the file goes; returns the number of bytes."""
        with self._named_errors():
            return self._reading().readinto(buffer)

    def readinto1(self, buffer: Any) -> int:
        """Read into a buffer with as little decoding as possible; returns the number of bytes."""
        with self._named_errors():
            return self._reading().readinto1(buffer)

    def peek(self, size: int = 0) -> bytes:
        """The next bytes, without moving the position."""
        with self._named_errors():
            return self._reading().peek(size)

    def readline(self, size: int | None = -1) -> bytes:
        """The next line."""
        with self._named_errors():
            return self._reading().readline(-1 if size is None else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the decoded bytes. Decodes nothing."""
        if self._spool is not None:
            self._spool.seek(offset, whence)
            return int(self._spool.tell())
        return self._reading().seek(offset, whence)

    def tell(self) -> int:
        """The position in the decoded bytes."""
        if self._spool is not None:
            return int(self._spool.tell())
        return self._reading().tell()

    def _codec_for(self, file: Container) -> Codec:
        needs = file.needs
        assert needs is not None
        if needs not in self._loaded:
            same_model = (codec for other, codec in self._loaded.items() if other.model == needs.model)
            self._loaded[needs] = codec_for(needs, self._codec or next(same_model, None), primer=self._primer)
        return self._loaded[needs]

    def write(self, data: Any) -> int:
        """Keep bytes until the file is closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._dropped:
            return len(data)
        if self._spool is None:
            raise io.UnsupportedOperation("not open for writing")
        return int(self._spool.write(data))

    def __exit__(self, *error: Any) -> None:
        """Close the file; after an error, write nothing."""
        if error[0] is not None:
            self.drop()
        self.close()

    def drop(self) -> None:
        """Discard what was written."""
        if self._spool is not None:
            self._spool.close()
            self._spool, self._dropped = None, True

    def close(self) -> None:
        """Compress what was written and write the file. Raises MemcodecError, OSError."""
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
        if self.mode == "xb" and remote.exists(self.name):
            raise FileExistsError(f"{self.name} exists")

    def _before_naming(self, _: Path) -> None:
        if self.mode == "xb" and Path(self._file).exists():  # type: ignore[arg-type]
            raise FileExistsError(f"{self.name} exists")

    def __del__(self) -> None:
        """A file that was never closed is not written: an error could not be reported here."""
        self.drop()


def _contents(file: PathOrFile) -> bytes:
    if remote.is_url(file):
        return remote.read(str(file))
    return Path(file).read_bytes() if isinstance(file, str | os.PathLike) else file.read()
