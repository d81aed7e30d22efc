"""The rows of a comparison as a table for the terminal."""

from collections.abc import Sequence

from memcodec.bench.comparison import LIMITS, Row
from memcodec.settings import DEFAULT_SHARE

_DEFAULT = f"memcodec {DEFAULT_SHARE:g}"
_HEAD = f"{'':24}{'bytes':>9}{'ratio':>8}{'bits/byte':>11}{'encode':>12}{'decode':>12}{'peak':>9}"


def render(rows: Sequence[Row]) -> str:
    """One block per text, with the largest file first."""
    blocks = []
    for text in dict.fromkeys(row.text for row in rows):
        some = sorted((row for row in rows if row.text == text), key=lambda row: -row.file_bytes)
        title = f"{text}, {some[0].original_bytes:,} bytes"
        blocks.append("\n".join([title, _HEAD, *map(_line, some)]))
    return "\n\n".join(blocks)


def speed(value: float | None) -> str:
    """Bytes per second, to three digits."""
    if value is None:
        return "-"
    for unit, name in ((1e6, "MB/s"), (1e3, "kB/s")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g} B/s"


def _line(row: Row) -> str:
    name = f"({row.codec})" if row.codec in LIMITS else row.codec
    name += " (default)" if row.codec == _DEFAULT else ""
    peak = "-" if row.peak is None else f"{row.peak / 1e6:.0f} MB"
    return (
        f"{name:24}{row.file_bytes:9,.0f}{row.ratio:8.2f}{row.bits_per_byte:11.3f}"
        f"{speed(row.speed('encode')):>12}{speed(row.speed('decode')):>12}{peak:>9}"
    )
