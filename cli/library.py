"""Calls of the library: loading codecs and decoding files. Modules that need numba or torch are imported when used."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout, suppress
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click
from click.core import ParameterSource

from memcodec import ChecksumError, FormatError, MemcodecError
from memcodec.container import Container, Needs
from memcodec.wording import counted
from memcodec_cli import inputs
from memcodec_cli.names import display_name
from memcodec_cli.options import ComputeOptions, DecodingModelOptions, EngineOptions, PrimedModelOptions
from memcodec_cli.progress import ProgressBar

if TYPE_CHECKING:
    from memcodec.codec import Codec
    from memcodec.container import Lost
    from memcodec.engines.engine import Engine
    from memcodec.files.archive import Archive
    from memcodec.primer import Primer

_SMALL_BYTES = 1 << 17  # documents below this size are decoded in a common batch and kept in memory
_BATCH_FILES = 200  # of a batch, at most
_BATCH_BYTES = 1 << 26  # total size of the .memz files of a batch after which no further file is read
_GROUP_BYTES = 1 << 14  # of text decoded together, for each group that the device decodes side by side

T = TypeVar("T")


def load_codec(model: str, compute: ComputeOptions, bar: ProgressBar) -> "Codec":
    """Load a model for encoding, without primer or engine. Raises ModelNotFoundError, MachineError."""
    from memcodec.codec import Codec

    return Codec.load(model, device=compute.device, threads=compute.threads, progress=bar.download)


def read_primer(name: str | None) -> "Primer | None":
    """The primer in a file, None without a name. Raises MemcodecError, and OSError with the name of the file."""
    if name is None:
        return None
    from memcodec.primer import MAX_FILE_BYTES, Primer

    with inputs.opened(name) as source:
        return Primer.from_bytes(source.read(0, min(source.size, MAX_FILE_BYTES + 1)), display_name(name))


def open_archive(
    name: str, primer: "Primer | None" = None, data: bytes | None = None, codec: "Codec | None" = None
) -> "Archive":
    """An archive in a file, to be read. data: the bytes of the file, if they have been read.

    Raises FormatError, ChecksumError, and OSError with the name of the file.
    """
    from memcodec.files.archive import Archive

    with inputs.local_path(name, data) as path:
        try:
            archive = Archive(path, codec, primer)
        except (FormatError, ChecksumError) as error:  # the path may be that of a copy
            raise type(error)(str(error).removeprefix(f"{path}: ")) from error
    archive.name = display_name(name)
    return archive


class EncodingCodec:
    """The codec of a command that encodes. The model is loaded when `codec` is first used."""

    def __init__(self, model: PrimedModelOptions, compute: EngineOptions, bar: ProgressBar) -> None:
        """Read the primer and start the engine. Raises FormatError, OSError, UsageError, MemcodecError."""
        self._model = model.model
        self._primer = read_primer(model.primer)
        self._engine, self._compute = start_engine(compute)
        self._bar = bar

    @cached_property
    def codec(self) -> "Codec":
        """The codec, with its primer and engine. Raises ModelNotFoundError, ModelMismatchError, MachineError."""
        codec = load_codec(self._model, self._compute, self._bar)
        if self._engine is not None:
            codec = codec.with_engine(self._engine)
        return codec if self._primer is None else codec.with_primer(self._primer)


class DecodingCodecs:
    """The codecs that the files of a command need. The last model is kept for the next file that needs the same."""

    def __init__(self, model: DecodingModelOptions, compute: ComputeOptions) -> None:
        """Read the primer and start the engine. Raises FormatError, OSError, UsageError, MemcodecError."""
        self.primer = read_primer(model.primer)
        self.model = model.model
        self.batch = compute.batch
        self._engine, compute = start_engine(compute)
        self.load_settings: dict[str, Any] = {
            "allow_download": model.allow_download, "device": compute.device, "threads": compute.threads,
        }  # fmt: skip
        self._codec: Codec | None = None

    @property
    def has_engine(self) -> bool:
        """Whether another engine than this process decodes, which divides the work itself."""
        return self._engine is not None

    def codec_for(self, needs: Needs | None, bar: ProgressBar, primer: "Primer | None" = None) -> "Codec":
        """The codec of a file that contains chunks, or of an archive. Raises MemcodecError.

        primer: instead of that of the command, as an archive has it inside.
        """
        from memcodec.codec import codec_for

        kept, primer = self._codec, primer or self.primer
        assert needs is not None
        if kept is not None and kept.primer is not None and primer is None:
            kept = kept.with_primer(None)  # not that of an archive before
        if kept is not None and not self.model and not kept.model.identity.startswith(needs.model.identity):
            kept = None
        codec = codec_for(needs, kept, model=self.model, primer=primer, progress=bar.download, **self.load_settings)
        self._codec = codec if self._engine is None else codec.with_engine(self._engine)
        return self._codec


def start_engine(compute: ComputeOptions) -> "tuple[Engine | None, ComputeOptions]":
    """An engine that stops when the command ends, None for this process; and the options of the model here.

    Raises UsageError, MemcodecError.
    """
    context = click.get_current_context()
    if not isinstance(compute, EngineOptions) or compute.engine == "local":
        # In the environment, MEMCODEC_WORKERS is for commands with --engine ray.
        if context.get_parameter_source("workers") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--workers is for --engine ray only")
        return None, compute
    from memcodec.engines import opened

    context.with_resource(redirect_stdout(cast("TextIO", _StdoutWithoutRay(sys.stdout))))
    engine, device = context.with_resource(opened(compute.engine, compute.workers, compute.threads, compute.device))
    return engine, ComputeOptions(device, compute.batch, compute.threads)


class _StdoutWithoutRay:
    """Standard output, except that text printed by Ray's threads goes to standard error: it would damage the data."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write to standard output, or to standard error in a thread of Ray."""
        is_ray = threading.current_thread().name.startswith("ray_")
        return int((sys.stderr if is_ray else self._stream).write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def decode(containers: list[Container], codecs: DecodingCodecs, bar: ProgressBar) -> Iterator[bytes]:
    """The document of a file in pieces, which are valid only if the last one is reached. Raises MemcodecError."""
    from memcodec.container.assembly import document_of

    for parsed in containers:
        if parsed.model is None:
            yield from document_of(parsed, [], None)
        else:
            codec = codecs.codec_for(parsed.needs, bar)
            yield from codec.decode_pieces(parsed, codecs.batch, bar.document(parsed.size, "decode"))


def size_of(containers: list[Container]) -> int:
    """The size of a .memz file in bytes."""
    return sum(sum(parsed.sizes.values()) for parsed in containers)


def batched(files: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Group files into batches. The files of one batch are in memory together, so that small ones are decoded together.

    size: of a file, in bytes. A batch is emptied before the next one is read.
    """
    batch: list[T] = []
    total = 0
    waiting = iter(files)
    while (found := next(waiting, None)) is not None:
        batch.append(found)
        total += size(found)
        del found
        if len(batch) == _BATCH_FILES or total >= _BATCH_BYTES:
            yield batch
            batch.clear()
            total = 0
    if batch:
        yield batch


def documents_of(files: list[list[Container]], codecs: DecodingCodecs, bar: ProgressBar) -> Iterator[Iterator[bytes]]:
    """The document of each file in pieces, as `decode` returns them. Small files are decoded together.

    They are decoded when the first of them is asked for, as much text at one time as suits the device.
    """
    ready: dict[int, bytes | None] = {}  # by the number of the file; None if it is to be decoded alone
    for i, containers in enumerate(files):
        if i not in ready:
            ready |= _decode_together(files, i, codecs, bar)
        document = ready.pop(i, None)
        yield decode(containers, codecs, bar) if document is None else iter([document])


def _decode_together(
    files: list[list[Container]], first: int, codecs: DecodingCodecs, bar: ProgressBar
) -> dict[int, bytes | None]:
    """The documents of a small file and of those after it that need the same codec, by their numbers.

    None for each of them if one cannot be decoded, so that `decode` can report the error with the name of its file.
    Nothing if no other file could be decoded together with the first.
    """
    if not _is_small(files[first]):
        return {}
    given = files[first][0]
    alike = [i for i in range(first, len(files)) if _is_small(files[i]) and _have_same_codec(files[i][0], given)]
    if len(alike) == 1:
        return {}
    found: dict[int, bytes | None] = dict.fromkeys(alike)
    with suppress(MemcodecError, OSError):
        codec = codecs.codec_for(given.needs, bar)
        sizes = accumulate(files[i][0].size for i in alike)
        most = _GROUP_BYTES * codec.lm.capacity.sequences
        batch = [i for i, size in zip(alike, sizes, strict=True) if i == first or size <= most or codecs.has_engine]
        found = dict.fromkeys(batch)
        size = sum(files[i][0].size for i in batch)
        decoded = codec.decode_many(
            [files[i][0] for i in batch], batch=codecs.batch, progress=bar.document(size, "decode")
        )
        found = dict(zip(batch, decoded, strict=True))
    return found


def _is_small(containers: list[Container]) -> bool:
    return len(containers) == 1 and containers[0].model is not None and containers[0].size < _SMALL_BYTES


def _have_same_codec(one: Container, other: Container) -> bool:
    assert one.model and other.model and one.settings and other.settings
    return one.model.identity == other.model.identity and one.settings.primer == other.settings.primer


def decode_range(
    containers: list[Container], byte_range: tuple[int, int | None], codecs: DecodingCodecs, bar: ProgressBar
) -> Iterator[bytes]:
    """Part of a document, decoding only the groups that contain it.

    byte_range: start and length in bytes; length None: up to the end. Raises MemcodecError, also for a start beyond
    the end of the document.
    """
    from memcodec.errors import EncodeError
    from memcodec.files.decoded import Decoded

    start, length = byte_range
    size = sum(parsed.size for parsed in containers)
    if start > size:
        raise EncodeError(f"--range starts at byte {start:,} of {counted(size, 'byte')}: give a smaller START")
    reader = Decoded(containers, lambda parsed: codecs.codec_for(parsed.needs, bar))
    reader.seek(start)
    remaining = size - start if length is None else min(length, size - start)
    while remaining:
        piece = reader.read(min(remaining, 1 << 16))
        remaining -= len(piece)
        yield piece


def salvage(blob: bytes, parsed: Container, codecs: DecodingCodecs, bar: ProgressBar) -> "Iterator[bytes | Lost]":
    """The undamaged parts of a damaged file, and a `Lost` for each part that is not. Raises MemcodecError."""
    from memcodec.container.assembly import salvage_of

    if parsed.model is None:
        return salvage_of(parsed, [], None)
    codec = codecs.codec_for(parsed.needs, bar)
    return codec.salvage(blob, batch=codecs.batch, progress=bar.document(parsed.size, "decode"))
