"""Measurements with the LM: memcodec itself, and the two limits."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from memcodec import container
from memcodec.bench import peak
from memcodec.bench.rivals import BenchError
from memcodec.codec import Codec
from memcodec.coding import corrections
from memcodec.coding.steering import Steering
from memcodec.decoding import predictions_of, site_of_file
from memcodec.document.plan import cut_chunks
from memcodec.document.spans import Stored, spans_of, zstd_size
from memcodec.settings import DEFAULT_CHUNK_TOKENS
from memcodec.view.inspection import inspect

CONTEXT_TOKENS = 2048


def memcodec_file(codec: Codec, data: bytes, path: Path, batch: int | None = None, **settings: Any) -> dict[str, Any]:
    """Encode once, write the file, read it back, decode once, and compare. Returns times and the sizes of the parts.

    batch: groups decoded side by side; settings: as in `Codec.encode`. The encoder does not verify: decoding is
    measured separately, and its output compared here. Raises BenchError on a mismatch.
    """
    peak.reset()
    start = time.perf_counter()
    blob = codec.encode(data, verify=False, **settings)
    encode_seconds = time.perf_counter() - start
    encode_peak = peak.read()
    path.write_bytes(blob)
    blob = path.read_bytes()
    peak.reset()
    start = time.perf_counter()
    restored = codec.decode(blob, batch=batch)
    decode_seconds = time.perf_counter() - start
    if restored != data:
        raise BenchError(f"memcodec {settings}: does not decode to its input")
    described = inspect(blob)
    if sum(described["parts"].values()) != path.stat().st_size:
        raise BenchError(f"memcodec {settings}: the parts of the file do not add up to its size")
    chunks = [row for row in described["spans"] if row["kind"] != "stored"]
    return {
        "file_bytes": path.stat().st_size,
        "encode_seconds": encode_seconds,
        "decode_seconds": decode_seconds,
        "encode_peak": encode_peak,
        "decode_peak": peak.read(),
        "runs": 1,
        "parts": described["parts"],
        "tokens": sum(row["tokens"] for row in chunks),
        "memory_bytes": sum(row["memory_bytes"] for row in chunks),
        "correction_bytes": sum(row["correction_bytes"] for row in chunks),
        "hits": hits(blob, codec),
    }


def hits(blob: bytes, codec: Codec) -> int:
    """The number of tokens of a file that greedy decoding under the memory reproduces without a correction."""
    parsed = container.unpack(blob)
    if parsed.settings is None:
        return 0
    site = site_of_file(codec.model, parsed)
    predictions = predictions_of(codec.model, parsed, list(codec.tokens(parsed)))
    count = 0
    for group in parsed.groups:
        encoder = corrections.Encoder(Steering.of(codec.lm.head), site.share)
        for chunk in group.chunks:
            encoder.write(next(predictions), chunk.memory if site.share else b"")
        count += encoder.hits
    return count


def bound(codec: Codec, data: bytes, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> dict[str, Any]:
    """The bound of a document whose chunks have no context, and the bits of the tokens at each position of a chunk.

    For a document without references this is `Codec.bound` with context 0. position_bits and position_count: sums over
    the chunks, by position.
    """
    total = 0.0
    bits = np.zeros(chunk_tokens)
    count = np.zeros(chunk_tokens, dtype=int)
    for span in spans_of(data, codec.tokenizer):
        if isinstance(span, Stored):
            total += zstd_size(span.data)
            continue
        for chunk in cut_chunks(span.tokens, chunk_tokens):
            found = codec.token_bits(chunk)
            bits[: len(chunk)] += found
            count[: len(chunk)] += 1
    return {
        "file_bytes": total + float(bits.sum()) / 8,
        "tokens": int(count.sum()),
        "position_bits": bits.round(2).tolist(),
        "position_count": count.tolist(),
    }


def context_bound(codec: Codec, data: bytes, context_tokens: int = CONTEXT_TOKENS) -> dict[str, Any]:
    """As `bound`, but each token sees the text before it, not only its chunk. The difference is the cost of chunks.

    Windows of `context_tokens` move by half of their length, so that a token sees at least `context_tokens` / 2 tokens
    if there are as many before it. Stored spans count as in the bound, and end a context.
    """
    total = 0.0
    tokens = 0
    for span in spans_of(data, codec.tokenizer):
        if isinstance(span, Stored):
            total += zstd_size(span.data)
            continue
        tokens += len(span.tokens)
        total += context_bits(codec, span.tokens, context_tokens) / 8
    return {"file_bytes": total, "tokens": tokens}


def context_bits(codec: Codec, tokens: np.ndarray, context_tokens: int) -> float:
    """Bits of one run of tokens, int64 [tokens], in overlapping windows."""
    window = min(context_tokens, codec.lm.positions - len(codec.lm.prefix))
    stride = window // 2
    total = 0.0
    for start in range(0, max(1, len(tokens) - stride), stride):
        total += float(codec.token_bits(tokens[start : start + window], window - stride if start else 0).sum())
    return total
