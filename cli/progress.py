"""Progress bars and the closing line: on a terminal only, and never with -q."""

import sys
from types import TracebackType
from typing import Any

import click
from tqdm import tqdm

from memcodec.document.source import Source
from memcodec.progress import ByteProgress, Progress, ProgressCallback

_STAGES = {"fit": "fitting", "verify": "verifying", "decode": "decoding"}


class Bars:
    """One bar at a time, of the work at hand."""

    def __init__(self, quiet: bool, no_progress: bool = False) -> None:
        self.shown = not quiet and not no_progress and sys.stderr is not None and sys.stderr.isatty()
        self._total = -1  # one bar goes through all stages of one document, so that its time left is of the whole
        self._bar: Any = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def model(self) -> ByteProgress | None:
        """What shows how a model is fetched."""
        return self._show if self.shown else None

    def doing(self, what: str) -> None:
        """Show what is being done while nothing can be counted."""
        if self.shown:
            self._show(what, 0, 0)

    def tokens(self, what: str, done: int, total: int) -> None:
        """Show so many tokens of a total."""
        if self.shown:
            self._show(what, done, total)

    def document(self, size: int, stage: str) -> ProgressCallback | None:
        """What shows how far the codec is in a document of `size` bytes, from its first stage on."""
        if not self.shown:
            return None

        def report(progress: Progress) -> None:
            what = _STAGES.get(progress.stage, progress.stage)
            chunks = f"{progress.chunks_done}/{progress.chunks_total} chunks" if progress.chunks_total else ""
            self._show(what, round(size * progress.done), size, chunks)

        report(Progress(stage, 0, 0, 0, 0, 0.0))
        return report

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _show(self, what: str, done: int, total: int, more: str = "") -> None:
        if self._bar is None or total != self._total or done < self._bar.n:
            self.close()
            known = {"total": total} if total else {"bar_format": "{desc} [{elapsed}]"}
            self._bar = tqdm(desc=what, unit="B", unit_scale=True, leave=False, dynamic_ncols=True, **known)
            self._total = total
        self._bar.set_postfix_str(more, refresh=False)
        self._bar.set_description_str(what, refresh=what != self._bar.desc)  # a new stage is shown at once
        self._bar.update(done - self._bar.n)
        if not total:
            self._bar.refresh()


_LARGE = 1 << 24  # bytes from which on zstd -19 would take a quarter of a minute


def wants_line(quiet: bool, verbose: bool) -> bool:
    """Whether the closing line is to be printed."""
    return not quiet and sys.stderr is not None and (verbose or sys.stderr.isatty())


def close_line(name: str, size: int, compressed: int, seconds: float, original: Source | None = None) -> None:
    """Print sizes, ratio, and seconds; original: for the same of zstd -19, if that is quick."""
    from memcodec.document.spans import zstd_size

    line = f"{name}: {size:,} bytes, {compressed:,} compressed ({size / max(compressed, 1):.2f}x); "
    if original is not None and size < _LARGE:
        zstd = zstd_size(original.read(0, size))
        line += f"zstd -19: {zstd:,} ({size / max(zstd, 1):.2f}x); "
    click.echo(f"{line}{seconds:.1f} s", err=True)
