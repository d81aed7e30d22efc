"""What a file says of itself, without its model."""

from typing import Any

from memcodec import container as box


def inspect(blob: bytes) -> dict[str, Any]:
    """Header, sizes by part in bytes, and one row a chunk or stored span, of the bytes of a .memz file.

    "parts" adds up to "file_bytes". Raises FormatError, ChecksumError.
    """
    parsed = box.unpack(blob)
    parts = dict(parsed.sizes)
    rows: list[dict[str, Any]] = []
    for part in parsed.parts:
        if isinstance(part, box.Chunk):
            rows.append(
                {
                    "kind": "chunk",
                    "tokens": part.tokens,
                    "memory_bytes": len(part.memory),
                    **_vectors(part, parsed.settings),
                    "correction_bytes": len(part.corrections),
                    "checksum": f"{part.checksum:08x}",
                }
            )
        else:
            rows.append({"kind": "stored", "bytes": len(part.data)})
    result: dict[str, Any] = {
        "format_version": box.VERSION,
        "file_bytes": len(blob),
        "original_bytes": parsed.size,
        "ratio": parsed.size / len(blob),
        "sha256": parsed.sha256.hex(),
        "model": None,
        "settings": None,
        "parts": parts,
        "spans": rows,
    }
    if parsed.model is not None and parsed.settings is not None:
        settings = parsed.settings
        result["model"] = {
            "id": parsed.model.name,
            "weights_hash": parsed.model.weights.hex(),
            "tokenizer_hash": parsed.model.tokenizer.hex(),
        }
        prompt = {"bits": settings.bits, "dimensions": settings.dimensions}
        result["settings"] = {
            "site": settings.site,
            **(prompt if settings.site == "prompt" else {"memory_rate": float(settings.rate)}),
            "chunk_tokens": settings.chunk_tokens,
            "margin": settings.margin,
        }
    return result


def _vectors(chunk: box.Chunk, settings: box.Settings | None) -> dict[str, int]:
    """The number of vectors, at the prompt site."""
    if settings is None or settings.site != "prompt":
        return {}
    return {"vectors": box.vectors(chunk.memory, settings.dimensions, settings.bits)}
