"""What an ideal coder would need: bits of tokens under the exact LM, and the bound of a document."""

import math
from itertools import pairwise

import numpy as np

from memcodec.document.blocks import Cutting, read_blocks
from memcodec.document.plan import visible_tokens, windows
from memcodec.document.source import Source
from memcodec.document.spans import Stored, zstd_size
from memcodec.lm import arithmetic
from memcodec.lm.model import ExactLM
from memcodec.lm.sequences import SequenceInput
from memcodec.models.loaded import LoadedModel
from memcodec.settings import EncodeSettings


def bound(model: LoadedModel, source: Source, settings: EncodeSettings) -> float:
    """The bound in bytes: the sum of -log2 p(token) of the exact LM over the document's chunks, divided by 8.

    Each token has the same context as in a file with these settings. Stored spans count with their size under zstd.
    """
    total = 0.0
    for block in read_blocks(source, model.tokenizer, Cutting.of(model, settings)):
        total += sum(zstd_size(span.data) for span in block.spans if isinstance(span, Stored))
        for group in block.plan.groups:
            tokens = np.concatenate(group)
            for w in windows(len(tokens), visible_tokens(settings.context, model.positions)):
                total += float(token_bits(model.lm, tokens[w.start : w.last], w.first - w.start).sum()) / 8
    return total


def token_bits(lm: ExactLM, tokens: np.ndarray, skip: int = 0) -> np.ndarray:
    """-log2 p of the tokens of one sequence, int64 [tokens], except the first `skip`: float64 [tokens - skip]."""
    sequences = lm.new_sequences(1, len(lm.prefix) + len(tokens), len(tokens))
    if len(tokens) > 1:
        sequences.forward([SequenceInput(0, tokens[:-1])])
    pieces = []
    starts = [0, *range(1, len(tokens), lm.capacity.head_rows)]
    for start, end in pairwise([*starts, len(tokens)]):
        start = max(start, skip)
        if start >= end:
            continue
        logits = sequences.logits(slice(start - 1, end - 1)) if start else lm.prefix_state.logits[None]
        units = logits[:, : lm.vocabulary].astype(np.float64)
        nats = units * (math.log(2) / arithmetic.UNIT)
        top = nats.max(axis=1)
        total = top + np.log(np.exp(nats - top[:, None]).sum(axis=1))
        pieces.append((total - nats[np.arange(end - start), tokens[start:end]]) / math.log(2))
    return np.concatenate(pieces) if pieces else np.empty(0)
