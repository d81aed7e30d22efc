"""Token maps: what wrote each token of a file, and its cost in bits, as text with colours or marks, and as a page."""

import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from memcodec.container import SLOW_ZSTD_BYTES, Container, StoredSpan
from memcodec.container.insertion import insert
from memcodec.document.references import Reference
from memcodec_cli.progress import ProgressBar

if TYPE_CHECKING:
    from memcodec.codec import Codec
    from memcodec.view.tokenmap import Item

_BLACK = 16
_COLOURS = ((1, None), (2, 230), (4, 223), (8, 216), (12, 209), (99, 202))  # bits below a limit, colour of 256
_NO_LIMIT = 99
_PREFIXES = "text  ", "bits  ", "by    "  # of the lines without colour
_WRITERS = {"memory": "m", "correction": "c", "stored": "-", "repeated": "="}
_TAB = 8


def items(parsed: Container, codec: "Codec | None", batch: int | None, bar: ProgressBar) -> "list[Item]":
    """The token map of a file; codec: None for a file without chunks. Raises MemcodecError."""
    from memcodec.view.tokenmap import token_map

    return list(token_map(codec, parsed, batch, bar.document(parsed.size, "decode")))


def wants_colour(choice: str) -> bool:
    """Whether to use colours; choice: always, never, or auto, for which the terminal and the environment decide."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return os.environ.get("TERM") != "dumb" and sys.stdout is not None and sys.stdout.isatty()


def heading(name: str) -> str:
    """The name of the file, and what the colours and styles mean."""
    legend = [_style(f" {limits} ", colour) for limits, (_, colour) in zip(_limits(), _COLOURS, strict=True)]
    memory, correction = click.style("the memory", underline=True), click.style("a correction", bold=True)
    return (
        f"{name}: bits per token {''.join(legend)}; written because of {memory} (underlined), by {correction} (bold), "
        "or by the model alone"
    )


def plain_heading(name: str) -> str:
    """The name of the file, and what the characters of `marked` mean."""
    legend = ", ".join(f"{number} {limits}" for number, limits in enumerate(_limits()))
    return (
        f"{name}: bits per token: {legend}; written by: m the memory, c a correction, . the model alone; - is stored, "
        "= is repeated"
    )


def coloured(items: "list[Item]") -> str:
    """The text; the colour of each character is that of the token that completes it."""
    return "".join(_coloured_pieces(items))


def marked(items: "list[Item]", columns: int) -> str:
    """The text in lines of at most `columns`, and below each character what colour and style would show."""
    lines = []
    text, bits, writers = _PREFIXES
    for line in _lines(items, columns - len(text)):
        lines.append((text + "".join(shown for shown, _, _ in line)) if line else text.rstrip())
        if line:
            lines.append(bits + "".join(bit * _width(shown) for shown, bit, _ in line))
            lines.append(writers + "".join(writer * _width(shown) for shown, _, writer in line))
    return "\n".join(lines)


def _lines(items: "list[Item]", columns: int) -> Iterator[list[tuple[str, str, str]]]:
    """Lines of characters, each with the mark of its bits and that of its writer."""
    line: list[tuple[str, str, str]] = []
    at = 0  # column
    for text, level, writer in _pieces(items):
        for character in text:
            shown = " " * (_TAB - at % _TAB) if character == "\t" else character
            if character == "\n" or (line and at + _width(shown) > columns):
                yield line
                line, at = [], 0
                shown = shown.strip("\n")
            if shown:
                line.append((shown, "-" if level is None else str(level), _WRITERS.get(writer, ".")))
                at += _width(shown)
    if line:
        yield line


def _width(text: str) -> int:
    """The number of columns of a terminal that text takes."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _limits() -> Iterator[str]:
    """The ranges of bits that have a colour."""
    start = 0
    for limit, _ in _COLOURS:
        yield f"{start} or more" if limit == _NO_LIMIT else f"{start} to {limit}"
        start = limit


def _coloured_pieces(items: "list[Item]") -> Iterator[str]:
    for text, level, writer in _pieces(items):
        if level is None:
            yield click.style(text, dim=True)
            continue
        for number, line in enumerate(text.split("\n")):
            if number:
                yield "\n"  # unstyled: a background colour would fill the rest of the line
            if line:
                yield _style(line, _COLOURS[level][1], underline=writer == "memory", bold=writer == "correction")


def _pieces(items: "list[Item]") -> Iterator[tuple[str, int | None, str]]:
    """The text of each token, the number of its range of bits, and its writer.

    Of stored spans and references: a text in their place, no number, and their kind.
    """
    import codecs

    from memcodec.view.tokenmap import kind_of, placeholder

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for item in items:
        if isinstance(item, StoredSpan | Reference):
            yield placeholder(item), None, kind_of(item)
            continue
        level = next(n for n, (limit, _) in enumerate(_COLOURS) if item.bits < limit or limit == _NO_LIMIT)
        text = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in decoder.decode(item.data))
        yield text, level, item.writer


def _style(text: str, background: int | None, underline: bool | None = None, bold: bool | None = None) -> str:
    foreground = None if background is None else _BLACK
    return click.style(text, bg=background, fg=foreground, underline=underline, bold=bold)


def page(name: str, parsed: Container, items: "list[Item]") -> bytes:
    """An HTML page about a file."""
    from memcodec.view import report

    original = None  # to compare with other compressors
    if parsed.size < SLOW_ZSTD_BYTES:
        original = b"".join(_document_of(parsed, items))
    return report.page(name, parsed, items, original).encode()


def _document_of(parsed: Container, items: "list[Item]") -> Iterator[bytes]:
    carried = (item for item in items if not isinstance(item, Reference))
    pieces = (item.read() if isinstance(item, StoredSpan) else item.data for item in carried)
    return (piece for piece in insert(pieces, parsed.references) if isinstance(piece, bytes))
