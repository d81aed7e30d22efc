"""Greedy decoding under a memory, and what the encoder writes so that it comes out right.

`correct` (encoder) and `decode` (decoder) take the same decisions in the same order: the winner of position t, then
the correction of position t. `correct` sees all logits at once, because the true tokens are known; `decode` sees them
one cached step at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from memcodec.corrections import (
    CorrectionDecoder,
    CorrectionEncoder,
    Tables,
    TokenClasses,
    TokenOdds,
    best_miss,
)
from memcodec.lm import FrozenLM
from memcodec.readout import Competition, Steering, steered_winners, windows

LogitHook = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Corrected:
    """The corrections of a chunk and how many of its tokens the memory writes by itself."""

    data: bytes
    hits: int


def correct(
    tokens: np.ndarray,
    competition: Competition,
    odds: list[TokenOdds],
    logits: np.ndarray,
    moves: np.ndarray | None,
    tables: Tables,
    classes: TokenClasses,
    margin: float,
) -> Corrected:
    """Write the corrections of one chunk.

    tokens: int64 [tokens]; logits: the tokens' own, float32 [tokens]; moves: the steering's, float32 [tokens, n], or
    None at rate 0, where the winner is the argmax.
    """
    encoder = CorrectionEncoder(tables, classes)
    hits = 0
    still = np.zeros(competition.ids.shape[1], dtype=np.float32)
    for t, token in enumerate(tokens):
        winner = competition.winner(t, still if moves is None else moves[t], margin)
        if winner >= 0 and competition.ids[t, winner] == token:
            encoder.hit()
            hits += 1
            continue
        ranks = odds[t].ranks.copy()
        if winner >= 0:
            ranks[0] = odds[t].rank_under(competition.logits[t, winner] - logits[t], margin)
        encoder.miss(int(token), *best_miss(tables, ranks, encoder.context, classes.bits))
    return Corrected(encoder.finish(), hits)


@dataclass(frozen=True)
class CodedChunk:
    """One chunk as the container carries it."""

    tokens: int
    memory: np.ndarray  # {0, 1} [bits]; empty at the prompt site, where it is in the prompts
    corrections: bytes


@torch.no_grad()
def decode(
    chunks: list[CodedChunk],
    lm: FrozenLM,
    steering: Steering | None,
    tables: Tables,
    classes: TokenClasses,
    rate: Fraction,
    prompts: torch.Tensor | None = None,
    hook: LogitHook | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Decode a batch of chunks side by side; returns the token ids of each, int64 [tokens].

    prompts: embeddings before the first token, float32 [chunks, n, hidden], instead of the LM's prefix; hook: changes
    the logits before any decision (tests use it to show that the margin holds).
    """
    order = sorted(range(len(chunks)), key=lambda i: -chunks[i].tokens)
    decoders = [CorrectionDecoder(chunks[i].corrections, tables, classes) for i in order]
    views = [windows(chunks[i].memory, chunks[i].tokens, rate) for i in order] if steering else []
    lengths = [chunks[i].tokens for i in order]
    written = np.zeros((len(order), lengths[0]), dtype=np.int64)
    step = lm.start(len(order), lengths[0], None if prompts is None else prompts[order])
    for t in range(lengths[0]):
        live = sum(length > t for length in lengths)
        hidden = step(None if t == 0 else torch.from_numpy(written[:live, t - 1]))
        logits = lm.logits(hidden)
        if hook is not None:
            logits = hook(logits)
        if steering is None:
            winners = logits.argmax(dim=1).cpu().numpy()
        else:
            winners = steered_winners(logits, steering, np.array([view[t] for view in views[:live]]), t)
        rows = logits.cpu().numpy()
        for i in range(live):
            written[i, t] = decoders[i].token(int(winners[i]), rows[i])
        if progress is not None:
            progress(live)
    result: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(chunks)
    for row, i in enumerate(order):
        result[i] = written[row, : lengths[row]]
    return result
