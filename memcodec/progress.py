"""What long work reports while it runs."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report: what is being done, how much of it is done, and which part of the whole work that is.

    stage: "fit", "verify" or "decode"; done: 0 to 1, over all stages, by the time that they take.
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

    def __init__(
        self, callback: ProgressCallback | None, stage: str, lengths: list[int], start: float, end: float
    ) -> None:
        """lengths: tokens of each chunk."""
        self._callback = callback
        self._stage = stage
        self._totals = sum(lengths), len(lengths)
        self._range = start, end
        self._done = [0, 0]
        self._furthest = 0

    def ahead(self, tokens: int) -> None:
        """So many tokens of the chunks to be finished next are done."""
        if self._callback is not None:
            (done, chunks), (total, count), (start, end) = self._done, self._totals, self._range
            done = self._furthest = max(self._furthest, min(done + tokens, total))
            part = start + (end - start) * done / max(total, 1)
            self._callback(Progress(self._stage, done, total, chunks, count, part))

    def finish(self, lengths: list[int]) -> None:
        """Chunks of so many tokens are done."""
        self._done[0] += sum(lengths)
        self._done[1] += len(lengths)
        self.ahead(0)
