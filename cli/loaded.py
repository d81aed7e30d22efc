"""The codec that files need: one for as many of them as it fits."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from memcodec.container import Container
from memcodec_cli.progress import Bars

if TYPE_CHECKING:
    from memcodec.codec import Codec


class Loaded:
    """Loads the model of a file, and keeps it for the next one that needs the same."""

    def __init__(self, model: str | None, allow_download: bool, device: str, threads: int | None) -> None:
        """model: instead of the ones that the files name."""
        self._model = model
        self._allow_download = allow_download
        self._device = device
        self._threads = threads
        self._codec: Codec | None = None

    def codec_for(self, parsed: Container, bars: Bars) -> "Codec":
        """The codec of a file that has chunks. Raises MemcodecError."""
        from memcodec.codec import Codec

        kept = self._codec
        if kept is not None and (self._model or not kept.differs(parsed)):  # whatever the model's folder is called
            kept.check(parsed)
            return kept
        found = Codec.load_for(
            parsed, self._model, device=self._device, threads=self._threads, allow_download=self._allow_download,
            progress=bars.model,
        )  # fmt: skip
        assert found is not None
        self._codec = found
        return found


def decode(parsed: Container, loaded: Loaded, batch: int, bars: Bars) -> Iterator[bytes]:
    """The document of a file, in pieces that count when the last was given out. Raises MemcodecError."""
    from memcodec.assembly import document_of

    if parsed.model is None:
        return document_of(parsed, [], None)
    codec = loaded.codec_for(parsed, bars)
    return codec.decode_pieces(parsed, batch=batch, progress=bars.document(parsed.size, "decode"))
