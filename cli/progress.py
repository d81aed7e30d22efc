"""The progress bar and the summary line on standard error."""

import sys
from types import TracebackType
from typing import Any

import click

from memcodec.container import SLOW_ZSTD_BYTES
from memcodec.document.source import Source
from memcodec.progress import ByteProgress, Progress, ProgressCallback
from memcodec.wording import counted
from memcodec_cli.names import display_name
from memcodec_cli.options import ProgressOptions

_STAGE_NAMES = {"fit": "fitting", "verify": "verifying", "decode": "decoding"}


class ProgressBar:
    """The progress bar of a command: shown on a terminal only, and replaced when the work changes."""

    def __init__(self, quiet: bool, no_progress: bool = False) -> None:
        self.is_shown = not quiet and not no_progress and sys.stderr is not None and sys.stderr.isatty()
        self._total = -1  # all stages of a document share a bar, so that the time left is that of the whole document
        self._bar: Any = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def download(self) -> ByteProgress | None:
        """Callback that shows the download of a model, None if no bar is shown."""
        return self._show if self.is_shown else None

    def activity(self, description: str) -> None:
        """Show work of unknown length, with the time elapsed."""
        if self.is_shown:
            self._show(description, 0, 0)

    def count(self, description: str, done: int, total: int) -> None:
        """Show that `done` of `total` units are done."""
        if self.is_shown:
            self._show(description, done, total)

    def document(self, size: int, first_stage: str) -> ProgressCallback | None:
        """Callback that shows the progress in a document of `size` bytes, None if no bar is shown."""
        if not self.is_shown:
            return None

        def report(progress: Progress) -> None:
            description = _STAGE_NAMES.get(progress.stage, progress.stage)
            chunks = f"{progress.chunks_done}/{progress.chunks_total} chunks" if progress.chunks_total else ""
            self._show(description, round(size * progress.done), size, chunks)

        report(Progress(first_stage, 0, 0, 0, 0, 0.0))
        return report

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _show(self, description: str, done: int, total: int, details: str = "") -> None:
        if self._bar is None or total != self._total or done < self._bar.n:
            self.close()
            from tqdm import tqdm  # its import takes longer than all of click's

            layout = {"total": total} if total else {"bar_format": "{desc} [{elapsed}]"}
            self._bar = tqdm(desc=description, unit="B", unit_scale=True, leave=False, dynamic_ncols=True, **layout)
            self._total = total
        self._bar.set_postfix_str(details, refresh=False)
        self._bar.set_description_str(description, refresh=description != self._bar.desc)  # new stages show at once
        self._bar.update(done - self._bar.n)
        if not total:
            self._bar.refresh()


def wants_summary(options: ProgressOptions) -> bool:
    """Whether a summary line is printed for each file."""
    return not options.quiet and sys.stderr is not None and (options.verbose or sys.stderr.isatty())


def print_summary(name: str, size: int, compressed: int, seconds: float, original: Source | None = None) -> None:
    """Print the sizes in bytes, their ratio and the time; original: for the size with zstd -19, unless it is large."""
    from memcodec.document.spans import zstd_size

    line = (
        f"{display_name(name)}: {counted(size, 'byte')}, {compressed:,} compressed ({size / max(compressed, 1):.2f}x); "
    )
    if original is not None and size < SLOW_ZSTD_BYTES:
        zstd = zstd_size(original.read(0, size))
        line += f"zstd -19: {zstd:,} ({size / max(zstd, 1):.2f}x); "
    click.echo(f"{line}{seconds:.1f} s", err=True)
