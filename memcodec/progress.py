"""Reports of progress while long work runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ByteProgress = Callable[[str, int, int], None]  # what is being done, amount done, total amount (0: not known)


@dataclass(frozen=True)
class Progress:
    """One report of progress.

    stage: "fit", "verify" or "decode"; totals are estimates until the whole document has been read; done: 0 to 1, the
    fraction of the time of all stages together.
    """

    stage: str
    tokens_done: int
    tokens_total: int
    chunks_done: int
    chunks_total: int
    done: float


ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Counts the tokens and chunks of one stage, and reports them to a callback."""

    def __init__(
        self, callback: ProgressCallback | None, stage: str, size: int = 0, lengths: Sequence[int] | None = None
    ) -> None:
        """size: of all documents, in bytes; lengths: tokens of each chunk, if they are known now (else: `expect`)."""
        self._callback = callback
        self._stage = stage
        self._size = size
        self._bytes_read = self._tokens_read = self._chunks_read = 0
        self._tokens_done = self._chunks_done = 0
        self._furthest = 0, 0.0  # tokens and fraction of the last report
        if lengths is not None:
            self.expect(lengths, size)

    def expect(self, lengths: Sequence[int], size: int) -> None:
        """Another `size` bytes of a document were read; they become chunks of these numbers of tokens."""
        self._bytes_read += size
        self._tokens_read += sum(lengths)
        self._chunks_read += len(lengths)

    def ahead(self, tokens: int) -> None:
        """Report: of the chunks that are not finished, `tokens` tokens are done."""
        if self._callback is None:
            return
        unread = self._size / self._bytes_read if self._bytes_read else 1.0
        total = max(round(self._tokens_read * unread), self._tokens_read)
        chunks = max(round(self._chunks_read * unread), self._chunks_read)
        done, fraction = self._furthest  # a report never goes back when an estimate grows
        done = max(done, min(self._tokens_done + tokens, total))
        fraction = max(fraction, done / max(total, 1))
        self._furthest = done, fraction
        self._callback(Progress(self._stage, done, total, self._chunks_done, chunks, fraction))

    def finish(self, lengths: Sequence[int]) -> None:
        """Report: chunks of these numbers of tokens are finished."""
        self._tokens_done += sum(lengths)
        self._chunks_done += len(lengths)
        self.ahead(0)
