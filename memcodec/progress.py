"""Reports of progress while long work runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ByteProgress = Callable[[str, int, int], None]  # what is being done, amount done, total amount (0: not known)
Report = Callable[[int], None]  # takes a number of tokens that are done


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
        self._read = 0, 0, 0  # bytes, tokens, chunks; another thread may set it
        self._tokens_done = self._chunks_done = 0
        self._furthest = 0, 0.0  # tokens and fraction of the last report
        if lengths is not None:
            self.expect(lengths, size)

    def expect(self, lengths: Sequence[int], size: int) -> None:
        """Another `size` bytes of a document were read; they become chunks of these numbers of tokens."""
        read, tokens, chunks = self._read
        self._read = read + size, tokens + sum(lengths), chunks + len(lengths)

    def ahead(self, tokens: int) -> None:
        """Report: of the chunks that are not finished, `tokens` tokens are done."""
        if self._callback is None:
            return
        read, tokens_read, chunks_read = self._read
        unread = self._size / read if read else 1.0
        total = max(round(tokens_read * unread), tokens_read)
        chunks = max(round(chunks_read * unread), chunks_read)
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
