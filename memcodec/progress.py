"""What long work reports while it runs."""

from collections.abc import Callable
from dataclasses import dataclass

ByteProgress = Callable[[str, int, int], None]  # what is being done, how much is done, and of how much (0: not known)


@dataclass(frozen=True)
class Progress:
    """One report: what is being done, how much of it is done, and which part of the whole work that is.

    stage: "fit", "verify" or "decode"; totals are estimates until the whole document has been read; done: 0 to 1, over
    all stages, by the time that they take.
    """

    stage: str
    tokens_done: int
    tokens_total: int
    chunks_done: int
    chunks_total: int
    done: float


ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Turns "so many tokens done" into reports of one stage, which goes from `start` to `end` of the whole work."""

    def __init__(self, callback: ProgressCallback | None, stage: str, size: int, start: float, end: float) -> None:
        """size: of the document, in bytes."""
        self._callback = callback
        self._stage = stage
        self._size = size
        self._range = start, end
        self._known = [0, 0, 0]  # bytes, and their tokens and chunks
        self._done = [0, 0]
        self._furthest = 0, 0.0

    def expect(self, lengths: list[int], size: int) -> None:
        """So many bytes more were read: chunks of so many tokens are to come from them."""
        self._known = [n + more for n, more in zip(self._known, (size, sum(lengths), len(lengths)), strict=True)]

    def ahead(self, tokens: int) -> None:
        """So many tokens of the chunks to be finished next are done."""
        if self._callback is None:
            return
        known, own, chunks = self._known
        more = self._size / known if known else 1.0
        total, count = max(round(own * more), own), max(round(chunks * more), chunks)
        start, end = self._range
        done, part = self._furthest
        done = max(done, min(self._done[0] + tokens, total))
        part = max(part, done / max(total, 1))  # when an estimate grows, nothing goes back
        self._furthest = done, part
        self._callback(Progress(self._stage, done, total, self._done[1], count, start + (end - start) * part))

    def finish(self, lengths: list[int]) -> None:
        """Chunks of so many tokens are done."""
        self._done[0] += sum(lengths)
        self._done[1] += len(lengths)
        self.ahead(0)
