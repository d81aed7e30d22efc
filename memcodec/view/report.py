"""A file as one self-contained page of HTML: `report.html` is the template, this module fills in the data."""

import codecs
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from memcodec.container import Container, Segment
from memcodec.document.spans import zstd_size
from memcodec.settings import SHARE_STEPS
from memcodec.view.tokenmap import CORRECTION, LM, MEMORY, Item, TokenInfo, placeholder
from memcodec.wording import counted

MOST_TOKENS = 20_000  # that a page shows
_WRITERS = (LM, MEMORY, CORRECTION)
_ROW = 512  # entries of a memory that are shown
_MARK = "DATA"


def page(name: str, parsed: Container, items: Iterable[Item], original: bytes | None = None) -> str:
    """The page of a file. items: its token map; original: the document, for its sizes under gzip and zstd."""
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    before, after = template.split(_MARK)
    return before + _json(_data(name, parsed, items, original)) + after


def _json(data: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(name: str, parsed: Container, items: Iterable[Item], original: bytes | None) -> dict[str, Any]:
    shown, cut = _items(items)
    rivals = {}
    if original is not None:
        rivals = {"gzip -9": len(gzip.compress(original, 9)), "zstd -19": zstd_size(original)}
    facts = "Everything is stored."
    if parsed.model is not None and parsed.settings is not None:
        settings = parsed.settings
        counts = f"{counted(len(parsed.chunks), 'chunk')} in {counted(len(parsed.groups), 'group')}"
        facts = f"Model {parsed.model.name}, {counts}, context {settings.context}, site {settings.site}"
        if settings.site == "readout" and settings.fields:
            facts += f", memory share {settings.fields[0] / SHARE_STEPS:.3g}"
        facts += "."
    return {
        "name": name, "original": parsed.size, "file": sum(parsed.sizes.values()), "facts": facts,
        "parts": parsed.sizes, "rivals": rivals, "items": shown, "cut": cut, "memories": _memories(parsed),
    }  # fmt: skip


def _items(items: Iterable[Item]) -> tuple[list[Any], bool]:
    """Tokens with the characters that each completes, and texts in place of stored spans and references; and whether
    some are left out."""
    shown: list[Any] = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for item in items:
        if not isinstance(item, TokenInfo):
            shown.append(placeholder(item))
            continue
        if len(shown) == MOST_TOKENS:
            return shown, True
        others = [[data.decode("utf-8", "replace"), float(f"{share:.3g}")] for data, share in item.alternatives]
        shown.append([decoder.decode(item.data), round(item.bits, 2), _WRITERS.index(item.writer), item.chunk, others])
    return shown, False


def _memories(parsed: Container) -> list[list[float]]:
    """The entries of each chunk's memory: bits at the readout site, scaled dimensions (-1 to 1) at the prompt site."""
    if parsed.settings is None:
        return []
    chunks = [chunk for part in parsed.parts if isinstance(part, Segment) for chunk in part.chunks][:MOST_TOKENS]
    if not any(chunk.memory for chunk in chunks):
        return []
    if parsed.settings.site == "readout":
        shown = [np.frombuffer(chunk.memory[: -(-_ROW // 8)], np.uint8) for chunk in chunks]
        rows = [np.unpackbits(memory, bitorder="little").astype(float) for memory in shown]
    else:
        from memcodec.memory.vectors import unpack

        bits, dimensions = parsed.settings.fields
        rows = [unpack(chunk.memory, dimensions, bits).reshape(-1).astype(float) for chunk in chunks]
        rows = [row / max(float(np.abs(row).max()), 1e-9) for row in rows]
    return [[round(float(entry), 2) for entry in row[:_ROW]] for row in rows]
