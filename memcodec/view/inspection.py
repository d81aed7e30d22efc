"""The contents of a file as far as they can be read without its model."""

from bisect import bisect_right
from itertools import accumulate
from typing import Any

from memcodec import container
from memcodec.document.inputs import as_binary
from memcodec.settings import SHARE_STEPS


def inspect(blob: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Header, sizes of the parts in bytes, and a row for each group of chunks and each stored span of a .memz file.

    A group that stored spans interrupt has several rows, the later ones of kind "continued". "references" has a row for
    each reference: where it starts in the document, where the bytes start that it repeats, and their number. The bytes
    of the rows in "spans" and "references" add up to "original_bytes", and the sizes in "parts" to "file_bytes". Raises
    FormatError, ChecksumError.
    """
    view = memoryview(as_binary(blob, "blob"))
    return _describe(container.unpack(view), len(view))


def inspect_all(blob: bytes | bytearray | memoryview) -> list[dict[str, Any]]:
    """`inspect` for each of several concatenated files."""
    return [
        _describe(parsed, sum(parsed.sizes.values()))
        for parsed in container.unpack_all(memoryview(as_binary(blob, "blob")))
    ]


def _describe(parsed: container.Container, file_bytes: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for part in parsed.parts:
        if isinstance(part, container.Segment):
            rows.append(
                {
                    "kind": "group" if part.corrections is not None else "continued",
                    "bytes": part.size,
                    "tokens": part.tokens,
                    "chunks": [
                        {"tokens": chunk.tokens, "memory_bytes": len(chunk.memory), "checksum": f"{chunk.checksum:02x}"}
                        for chunk in part.chunks
                    ],
                    "memory_bytes": sum(len(chunk.memory) for chunk in part.chunks),
                    "correction_bytes": len(part.corrections or b""),
                }
            )
        else:
            packed = {"bytes": part.size, "stored_bytes": len(part.packed), "checksum": f"{part.checksum:08x}"}
            rows.append({"kind": "stored"} | packed)
    result: dict[str, Any] = {
        "format_version": container.VERSION,
        "file_bytes": file_bytes,
        "original_bytes": parsed.size,
        "ratio": parsed.size / file_bytes,
        "sha256_start": parsed.sha256.hex(),
        "model": None,
        "settings": None,
        "parts": dict(parsed.sizes),
        "spans": rows,
        "references": _references(parsed),
    }
    if parsed.model is not None and parsed.settings is not None:
        result["model"] = {"id": parsed.model.name, "identity_start": parsed.model.identity.hex()}
        settings = {"site": parsed.settings.site} | _fields(parsed.settings)
        result["settings"] = (
            settings
            | {
                "chunk_tokens": parsed.settings.chunk_tokens,
                "context": parsed.settings.context,
            }
            | ({"primer": parsed.settings.primer.hex()} if parsed.settings.primer else {})
        )
    return result


def _references(parsed: container.Container) -> list[dict[str, int]]:
    """A row for each reference, with its places in the document."""
    cuts = [one.at for one in parsed.references]
    inserted = list(accumulate((one.size for one in parsed.references), initial=0))
    rows = []
    for one, before in zip(parsed.references, inserted, strict=False):
        source = one.start + inserted[bisect_right(cuts, one.start)]
        rows.append({"start": one.at + before, "source": source, "bytes": one.size})
    return rows


def _fields(settings: container.Settings) -> dict[str, Any]:
    """The site's own settings, by name."""
    if settings.site == "readout" and len(settings.fields) == 1:
        return {"memory_share": settings.fields[0] / SHARE_STEPS}
    if settings.site == "prompt" and len(settings.fields) == 2:
        return dict(zip(("bits", "dimensions"), settings.fields, strict=True))
    return {"fields": list(settings.fields)}
