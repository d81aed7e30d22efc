"""Token maps: who wrote each token of a file and at what cost, as coloured text and as an HTML page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from memcodec.container import Container, StoredSpan
from memcodec_cli.progress import ZSTD_LIMIT_BYTES, ProgressBar

if TYPE_CHECKING:
    from memcodec.codec import Codec
    from memcodec.view.tokenmap import TokenInfo

_BLACK = 16
_COLOURS = ((1, None), (2, 230), (4, 223), (8, 216), (12, 209), (99, 202))  # bits below a limit, colour of 256
_NO_LIMIT = 99


def items(parsed: Container, codec: "Codec | None", batch: int, bar: ProgressBar) -> "list[TokenInfo | StoredSpan]":
    """The token map of a file; codec: None for a file without chunks. Raises MemcodecError."""
    from memcodec.view.tokenmap import token_map

    if codec is None:
        return [part for part in parsed.parts if isinstance(part, StoredSpan)]
    return list(token_map(codec, parsed, batch, bar.document(parsed.size, "decode")))


def heading(name: str) -> str:
    """The name of the file, and what the colours and styles mean."""
    start, legend = 0, []
    for limit, colour in _COLOURS:
        label = f" {start} or more " if limit == _NO_LIMIT else f" {start} to {limit} "
        legend.append(_style(label, colour))
        start = limit
    memory, correction = click.style("the memory", underline=True), click.style("a correction", bold=True)
    return (
        f"{name}: bits per token {''.join(legend)}; written because of {memory} (underlined), by {correction} (bold), "
        "or by the model alone"
    )


def coloured(items: "list[TokenInfo | StoredSpan]") -> str:
    """The text; the colour of each character is that of the token that completes it."""
    return "".join(_coloured_pieces(items))


def _coloured_pieces(items: "list[TokenInfo | StoredSpan]") -> Iterator[str]:
    import codecs

    from memcodec.view.tokenmap import CORRECTION, MEMORY

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for item in items:
        if isinstance(item, StoredSpan):
            yield click.style(f"[{item.size:,} bytes stored]", dim=True)
            continue
        colour = next(colour for limit, colour in _COLOURS if item.bits < limit or limit == _NO_LIMIT)
        text = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in decoder.decode(item.data))
        for number, line in enumerate(text.split("\n")):
            if number:
                yield "\n"  # unstyled: a background colour would fill the rest of the line
            if line:
                yield _style(line, colour, underline=item.writer == MEMORY, bold=item.writer == CORRECTION)


def _style(text: str, background: int | None, underline: bool | None = None, bold: bool | None = None) -> str:
    foreground = None if background is None else _BLACK
    return click.style(text, bg=background, fg=foreground, underline=underline, bold=bold)


def page(name: str, parsed: Container, items: "list[TokenInfo | StoredSpan]", original: bytes | None = None) -> bytes:
    """An HTML page about a file; original: the document, to compare with other compressors (default: from `items`)."""
    from memcodec.view import report

    if original is None and parsed.size < ZSTD_LIMIT_BYTES:
        original = b"".join(item.read() if isinstance(item, StoredSpan) else item.data for item in items)
    return report.page(name, parsed, items, original).encode()
