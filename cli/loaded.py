"""The codec that files need: one for as many of them as it fits."""

import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import click
from click.core import ParameterSource

from memcodec import MemcodecError
from memcodec.container import Container
from memcodec_cli.progress import Bars

if TYPE_CHECKING:
    from memcodec.codec import Codec
    from memcodec.container.assembly import Lost
    from memcodec.engines.engine import Engine
    from memcodec.primer import Primer


class Loaded:
    """Loads the model of a file, and keeps it for the next one that needs the same."""

    def __init__(
        self, model: str | None, allow_download: bool, device: str, threads: int | None, primer: str | None = None,
        engine: str = "local", workers: int | None = None,
    ) -> None:  # fmt: skip
        """model: instead of the ones that the files name; primer: a file. Until the command ends."""
        self.primer = read_primer(primer)
        self.model = model
        self.engine, device = opened_engine(engine, workers, threads, device)
        self.settings: dict[str, Any] = {"allow_download": allow_download, "device": device, "threads": threads}
        self._codec: Codec | None = None

    def codec_for(self, parsed: Container, bars: Bars) -> "Codec":
        """The codec of a file that has chunks. Raises MemcodecError."""
        from memcodec.codec import codec_for

        needs, kept = parsed.needs, self._codec
        assert needs is not None
        if kept is not None and not self.model and not kept.model.identity.startswith(needs.model.identity):
            kept = None
        found = codec_for(needs, kept, model=self.model, primer=self.primer, progress=bars.model, **self.settings)
        self._codec = found if self.engine is None else found.with_engine(self.engine)
        return self._codec


def opened_engine(
    name: str, workers: int | None, threads: int | None, device: str
) -> "tuple[Engine | None, str]":  # fmt: skip
    """An engine that is closed when the command ends, None for this process; and the device of the LM here."""
    if name == "local":
        given = click.get_current_context().get_parameter_source
        if given("workers") is ParameterSource.COMMANDLINE:  # in the environment, it waits for an engine
            raise click.UsageError("--workers is for --engine ray")
        return None, device
    from memcodec.engines import opened

    context = click.get_current_context()
    context.with_resource(redirect_stdout(cast("TextIO", _Aside(sys.stdout))))
    return context.with_resource(opened(name, workers, threads, device))


class _Aside:
    """Standard output; what threads of Ray print there, even between bytes of a file, goes to standard error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Where it belongs."""
        theirs = threading.current_thread().name.startswith("ray_")
        return int((sys.stderr if theirs else self._stream).write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def read_primer(name: str | None) -> "Primer | None":
    """The primer in a file. Raises FormatError, OSError with the file's name."""
    if name is None:
        return None
    from memcodec.primer import Primer

    try:
        return Primer.load(name)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def decode(files: list[Container], loaded: Loaded, batch: int, bars: Bars) -> Iterator[bytes]:
    """The documents of some files, in pieces that count when the last was given out. Raises MemcodecError."""
    from memcodec.container.assembly import document_of

    for parsed in files:
        if parsed.model is None:
            yield from document_of(parsed, [], None)
        else:
            codec = loaded.codec_for(parsed, bars)
            yield from codec.decode_pieces(parsed, batch, bars.document(parsed.size, "decode"))


def decode_together(files: list[list[Container]], loaded: Loaded, batch: int, bars: Bars) -> list[list[bytes] | None]:
    """The documents of small files side by side; None for those that are to be decoded by themselves.

    Where one of them fails they all are, so that the error is that of its own file.
    """
    found: list[list[bytes] | None] = [None] * len(files)
    small = [i for i, parts in enumerate(files) if len(parts) == 1 and parts[0].model and parts[0].size < _SMALL]
    with suppress(MemcodecError):
        while small:
            codec = loaded.codec_for(files[small[0]][0], bars)
            lot = [i for i in small if _goes_with(files[i][0], files[small[0]][0])]
            small = [i for i in small if i not in lot]
            if len(lot) > 1:
                size = sum(files[i][0].size for i in lot)
                documents = codec.decode_many(
                    [files[i][0] for i in lot], batch=batch, progress=bars.document(size, "decode")
                )
                for i, document in zip(lot, documents, strict=True):
                    found[i] = [document]
    return found


_SMALL = 1 << 17  # bytes of documents that are kept in memory together


def _goes_with(one: Container, other: Container) -> bool:
    assert one.model and other.model and one.settings and other.settings
    return one.model.identity == other.model.identity and one.settings.primer == other.settings.primer


def salvaged(blob: bytes, parsed: Container, loaded: Loaded, batch: int, bars: Bars) -> "Iterator[bytes | Lost]":
    """What a damaged file gives back. Raises MemcodecError."""
    from memcodec.container.assembly import salvage_of

    if parsed.model is None:
        return salvage_of(parsed, [], None)
    codec = loaded.codec_for(parsed, bars)
    return codec.salvage(blob, batch=batch, progress=bars.document(parsed.size, "decode"))


def read_part(files: list[Container], part: tuple[int, int | None], loaded: Loaded, bars: Bars) -> Iterator[bytes]:
    """Some bytes of the documents of files, from a place on. Raises MemcodecError where they end before it."""
    from memcodec.errors import EncodeError
    from memcodec.files.decoded import Decoded

    start, left = part
    size = sum(parsed.size for parsed in files)
    if start > size:
        raise EncodeError(f"range from {start:,}: the document has {size:,} bytes")
    raw = Decoded(files, lambda parsed: loaded.codec_for(parsed, bars))
    raw.seek(start)
    left = size - start if left is None else min(left, size - start)
    while left:
        piece = raw.read(min(left, 1 << 16))
        left -= len(piece)
        yield piece
