"""What is measured with the LM: memcodec itself, and the two limits that are no codec."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memcodec import container, corrections, document
from memcodec.bench import peak
from memcodec.bench.rivals import BenchError
from memcodec.codec import Codec
from memcodec.container import DEFAULT_CHUNK_TOKENS
from memcodec.defaults import DEFAULT_BATCH
from memcodec.inspection import inspect

CONTEXT_TOKENS = 2048
_SLICE = 256  # positions whose probabilities are computed at once: 49,152 doubles each


def memcodec_file(codec: Codec, data: bytes, path: Path, batch: int = DEFAULT_BATCH, **settings: Any) -> dict[str, Any]:
    """Encode once, write the file, read it back, decode once, compare; with what the file is made of.

    batch: chunks decoded side by side; settings: as in `Codec.encode`. The encoder's own verification is off: decoding
    is measured by itself, and its output compared here. Raises BenchError on a mismatch.
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
    chunks = [row for row in described["spans"] if row["kind"] == "chunk"]
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
    """How many tokens of a file greedy decoding under the memory writes by itself, without a correction.

    Read from the corrections alone: whether a token is a hit does not depend on the logits, only which one it is.
    """
    parsed = container.unpack(blob)
    if parsed.settings is None:
        return 0
    tables = corrections.load_tables(corrections.regime(parsed.settings.site, float(parsed.settings.rate)))
    logits = np.zeros(codec.lm.vocabulary, dtype=np.float32)
    count = 0
    for chunk in parsed.chunks:
        decoder = corrections.CorrectionDecoder(chunk.corrections, tables, codec.classes)
        for _ in range(chunk.tokens):
            before = decoder._level_sum
            decoder.token(0, logits)
            count += decoder._level_sum == before  # the level of every miss is above 0
    return count


def bound(codec: Codec, data: bytes, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> dict[str, Any]:
    """The bound (`Codec.bound`), and the bits per token at each position of a chunk.

    position_bits and position_count: sums over the chunks, by position.
    """
    total = 0.0
    bits = np.zeros(chunk_tokens)
    count = np.zeros(chunk_tokens, dtype=int)
    for span in document.split(data, codec.tokenizer):
        if isinstance(span, document.Stored):
            total += document.zstd_size(span.data)
            continue
        for chunk in _cut(span.tokens, chunk_tokens):
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
    """As the bound, but each token sees the text before it, not only its chunk: what independent chunks cost.

    In windows of `context_tokens` that move on by half: a token sees all that precedes it up to there, and never
    less than half of `context_tokens` where there is so much. Stored spans are as in the bound, and end a context.
    """
    total = 0.0
    tokens = 0
    for span in document.split(data, codec.tokenizer):
        if isinstance(span, document.Stored):
            total += document.zstd_size(span.data)
            continue
        tokens += len(span.tokens)
        total += context_bits(codec, span.tokens, context_tokens) / 8
    return {"file_bytes": total, "tokens": tokens}


@torch.no_grad()
def context_bits(codec: Codec, tokens: np.ndarray, context_tokens: int) -> float:
    """Bits of one run of tokens, int64 [tokens], in overlapping windows."""
    limit = codec.lm.max_positions
    window = context_tokens if limit is None else min(context_tokens, limit - len(codec.lm.prefix))
    stride = window // 2
    total = 0.0
    for start in range(0, max(1, len(tokens) - stride), stride):
        ids = torch.from_numpy(tokens[start : start + window])
        first = stride if start else 0
        states = codec.lm.hidden(ids[None])[0, first:]
        for i in range(0, len(states), _SLICE):
            scores = torch.log_softmax(codec.lm.logits(states[i : i + _SLICE]).double(), dim=1)
            targets = ids[first + i : first + i + len(scores)].to(scores.device)
            total -= scores.gather(1, targets[:, None]).sum().item() / math.log(2)
    return total


def _cut(tokens: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (tokens[i : i + size] for i in range(0, len(tokens), size))
