"""Token maps on the terminal, and as pages."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from memcodec.container import Container, StoredSpan
from memcodec_cli.loaded import Loaded
from memcodec_cli.progress import Bars

if TYPE_CHECKING:
    from memcodec.codec import Codec
    from memcodec.view.tokenmap import TokenInfo

_STEPS = ((1, None), (2, 230), (4, 223), (8, 216), (12, 209), (99, 202))  # up to so many bits, a colour of 256


def items(parsed: Container, loaded: Loaded, batch: int, bars: Bars) -> "list[TokenInfo | StoredSpan]":
    """The token map of a file. Raises MemcodecError."""
    return items_of(parsed, None if parsed.model is None else loaded.codec_for(parsed, bars), batch, bars)


def items_of(parsed: Container, codec: "Codec | None", batch: int, bars: Bars) -> "list[TokenInfo | StoredSpan]":
    """The same with a codec, which a file where all is stored does not need."""
    from memcodec.view.tokenmap import token_map

    if codec is None:
        return [part for part in parsed.parts if isinstance(part, StoredSpan)]
    return list(token_map(codec, parsed, batch, bars.document(parsed.size, "decode")))


def heading(name: str) -> str:
    """The file's name, and what the colours mean."""
    before, steps = 0, []
    for most, colour in _STEPS:
        label = f" {before} to {most} " if most < 99 else f" {before} and more "
        steps.append(click.style(label, bg=colour, fg=None if colour is None else 16))
        before = most
    memory, correction = click.style("the memory", underline=True), click.style("a correction", bold=True)
    return (
        f"{name}: bits a token {''.join(steps)}; written by the model alone, {memory} (underlined), {correction} (bold)"
    )


def coloured(found: "list[TokenInfo | StoredSpan]") -> str:
    """The text, each character in the colour of the token that completes it."""
    return "".join(_pieces(found))


def _pieces(found: "list[TokenInfo | StoredSpan]") -> Iterator[str]:
    import codecs

    from memcodec.view.tokenmap import CORRECTION, MEMORY

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for item in found:
        if isinstance(item, StoredSpan):
            yield click.style(f"[{item.size:,} bytes stored]", dim=True)
            continue
        colour = next(colour for most, colour in _STEPS if item.bits < most or most == 99)
        text = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in decoder.decode(item.data))
        for number, line in enumerate(text.split("\n")):
            if number:
                yield "\n"  # outside of the colours, which would fill the line
            if line:
                yield click.style(
                    line, bg=colour, fg=None if colour is None else 16, underline=item.writer == MEMORY,
                    bold=item.writer == CORRECTION,
                )  # fmt: skip


def page(name: str, parsed: Container, found: "list[TokenInfo | StoredSpan]", original: bytes | None = None) -> bytes:
    """A page of HTML about a file. original: for the sizes of others; by default, what the map says."""
    from memcodec.view import report

    if original is None and parsed.size < _LARGE:
        original = b"".join(item.read() if isinstance(item, StoredSpan) else item.data for item in found)
    return report.page(name, parsed, found, original).encode()


_LARGE = 1 << 24  # bytes from which on zstd -19 would take a quarter of a minute
