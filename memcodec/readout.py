"""The readout site: a one-bit memory that steers the LM's last hidden state (spec/FORMAT.md, "Readout memory").

Position t sees a window of the memory; seeded parities of the window, through a seeded sign matrix of that position,
are added to the hidden state before the LM head, and the best COMPETITORS tokens of the unsteered logits compete for
the steered argmax. It samples from the LM as Gumbel noise would, and the encoder searches for the memory whose sample
is the text (beam search, as in the trellis of a tail-less convolutional code).

`Steering` is shared by both sides; `Competition` and `fit` are the encoder's, and know the margin.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from memcodec import corrections
from memcodec.corrections import RANKS, Tables, TokenClasses, TokenOdds
from memcodec.seeded import signs, words

WINDOW = 24  # memory entries that a position sees
FEATURES = 64  # parities of the window
COMPETITORS = 16  # tokens that compete for the steered argmax
STRENGTH = 1.7  # standard deviation of a logit's move by the steering
SPARE = 4  # candidates beyond the competitors that the encoder watches at the edge of the competition

_PARITY_STREAM = 1
_PROJECTION_STREAM = 2
_HALF = WINDOW // 2


def entries_until(position: int, rate: Fraction) -> int:
    """How many memory entries positions 0..position-1 have brought into their windows."""
    return int(position * rate)


def memory_bits(tokens: int, rate: Fraction) -> int:
    """Length of the memory of a chunk of `tokens` tokens, in bits."""
    return entries_until(tokens, rate)


def windows(memory: np.ndarray, tokens: int, rate: Fraction) -> np.ndarray:
    """The window of each position as an integer, newest entry in bit 0; memory: {0, 1} [bits] -> int64 [tokens]."""
    result = np.empty(tokens, dtype=np.int64)
    window = 0
    for t in range(tokens):
        for entry in memory[entries_until(t, rate) : entries_until(t + 1, rate)]:
            window = (window << 1 | int(entry)) & ((1 << WINDOW) - 1)
        result[t] = window
    return result


class Steering:
    """The seeded projection of a memory onto the hidden state, for one LM head."""

    def __init__(self, head: torch.Tensor) -> None:
        """head: the LM head's weight, float32 [vocabulary, hidden]; it stays on its device."""
        self._head = head
        self._hidden = head.shape[1]
        spread = head.var(dim=0, correction=0).cpu().double().sum().item()  # mean |row - mean row|^2
        self._scale = np.float32(STRENGTH / np.sqrt(FEATURES * max(spread, 1e-30)))
        masks = words(_PARITY_STREAM, 0, FEATURES) & np.uint64((1 << WINDOW) - 1)
        halves = np.arange(1 << _HALF, dtype=np.uint64)[:, None]
        self._low = _parity_signs(halves & masks)
        self._high = _parity_signs((halves << np.uint64(_HALF)) & masks)

    def features(self, window: np.ndarray) -> np.ndarray:
        """Parities of windows, float32 in {-1, +1}: int64 [...] -> [..., FEATURES]."""
        return self._low[window & ((1 << _HALF) - 1)] * self._high[window >> _HALF]

    def feature_halves(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Lookup tables of the low and high halves of a window; their product is `features`."""
        return torch.from_numpy(self._low).to(device), torch.from_numpy(self._high).to(device)

    def projection(self, position: int) -> torch.Tensor:
        """A_t, scaled: float32 [hidden, FEATURES] on the head's device."""
        matrix = signs(_PROJECTION_STREAM, position * self._hidden, self._hidden) * self._scale
        return torch.from_numpy(matrix).to(self._head.device)

    def responses(self, candidates: torch.Tensor, position: int) -> torch.Tensor:
        """How each feature moves the candidates' logits at a position: int64 [..., n] -> float32 [..., n, FEATURES]."""
        return self._head[candidates] @ self.projection(position)

    def moves(self, candidates: torch.Tensor, window: np.ndarray, position: int) -> np.ndarray:
        """The steering's logit moves: candidates int64 [rows, n], window int64 [rows] -> float32 [rows, n]."""
        features = torch.from_numpy(self.features(window)).to(self._head.device)
        return (self.responses(candidates, position) @ features[..., None])[..., 0].cpu().numpy()

    def all_moves(self, candidates: np.ndarray, memory: np.ndarray, rate: Fraction) -> np.ndarray:
        """`moves` of every position of one chunk: int64 [tokens, n], {0, 1} [bits] -> float32 [tokens, n]."""
        views = windows(memory, len(candidates), rate)
        ids = torch.from_numpy(candidates).to(self._head.device)
        return np.concatenate([self.moves(ids[t : t + 1], views[t : t + 1], t) for t in range(len(candidates))])


def _parity_signs(masked: np.ndarray) -> np.ndarray:
    for shift in (32, 16, 8, 4, 2, 1):
        masked = masked ^ (masked >> np.uint64(shift))
    return np.float32(1) - np.float32(2) * (masked & np.uint64(1)).astype(np.float32)


def steered_winners(logits: torch.Tensor, steering: Steering, window: np.ndarray, position: int) -> np.ndarray:
    """The decoder's argmax: float32 [rows, vocabulary], int64 [rows] -> winning token ids, int64 [rows]."""
    count = min(COMPETITORS, logits.shape[1])
    values, candidates = logits.topk(count, dim=1)
    steered = values.cpu().numpy() + steering.moves(candidates, window, position)
    return candidates.cpu().numpy()[np.arange(len(steered)), steered.argmax(axis=1)]


@dataclass(frozen=True)
class Competition:
    """The candidates of each position of one chunk, the best unsteered tokens and a few beyond, best first.

    ids: int64 [tokens, n]; logits: float32 [tokens, n]; possible: could compete in some decoder; certain: do compete
    in every decoder whose logits differ by less than half the margin, bool [tokens, n].
    """

    ids: np.ndarray
    logits: np.ndarray
    possible: np.ndarray
    certain: np.ndarray

    @classmethod
    def of(cls, logits: torch.Tensor, competitors: int, margin: float) -> "Competition":
        """logits: float32 [tokens, vocabulary]."""
        count = min(competitors + SPARE, logits.shape[1])
        values_, ids = (x.cpu().numpy() for x in logits.topk(count, dim=1))
        if count <= competitors:
            everyone = np.ones_like(ids, dtype=bool)
            return cls(ids, values_, everyone, everyone)
        possible = values_ >= values_[:, competitors - 1 : competitors] - margin
        certain = values_ > values_[:, competitors : competitors + 1] + margin
        certain &= ~possible[:, -1:]  # more at the edge than are watched: nothing is certain here
        return cls(ids, values_, possible, certain)

    def winner(self, position: int, moves: np.ndarray, margin: float) -> int:
        """Index of the candidate that wins at a position in every decoder, or -1; moves: float32 [n]."""
        steered = np.where(self.possible[position], self.logits[position] + moves, -np.inf)
        best = int(steered.argmax())
        rival = np.delete(steered, best).max(initial=-np.inf)
        return best if self.certain[position, best] and steered[best] - rival > margin else -1


@dataclass(frozen=True)
class MissCosts:
    """Bits and levels of the best stable miss of each token of a chunk, by winner and context.

    bits: float32 [tokens, n + 1, contexts], levels: int64 alike; index n is "no certain winner".
    """

    bits: np.ndarray
    levels: np.ndarray

    @classmethod
    def of(
        cls,
        tables: Tables,
        classes: TokenClasses,
        competition: Competition,
        tokens: np.ndarray,
        odds: list[TokenOdds],
        logits: np.ndarray,
        margin: float,
    ) -> "MissCosts":
        """logits: the tokens' own, float32 [tokens]."""

        def cheapest(codes: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Bits and levels over the last axis of `ranks`, by context."""
            costs = tables.miss_cost.T[codes * RANKS + ranks.clip(0)]
            costs[ranks < 0] = np.inf
            best = costs.argmin(axis=-2)
            rank = np.take_along_axis(ranks, best, axis=-1).clip(0)
            symbols = codes[best] * corrections.BUCKETS + corrections.BUCKET_OF_RANK[rank]
            return np.take_along_axis(costs, best[..., None, :], axis=-2)[..., 0, :], corrections.LEVELS[symbols]

        n = competition.ids.shape[1]
        bits, levels = cheapest(np.arange(corrections.CODES), np.array([o.ranks for o in odds]))
        full = tables.miss_cost[:, -1] + classes.bits
        levels = np.where(bits < full, levels, corrections.MAX_LEVEL)[:, None].repeat(n + 1, axis=1)
        bits = np.minimum(bits, full)[:, None].repeat(n + 1, axis=1)
        leads = competition.logits - logits[:, None]
        first = [[o.rank_under(lead, margin) for lead in row] for o, row in zip(odds, leads, strict=True)]
        first_bits, first_levels = cheapest(np.zeros(1, dtype=np.int64), np.array(first)[..., None])
        better = first_bits < bits[:, :n]
        bits[:, :n][better] = first_bits[better]
        levels[:, :n][better] = first_levels[better]
        return cls(bits, levels)


@dataclass(frozen=True)
class Chunk:
    """What the search needs of one chunk."""

    tokens: np.ndarray  # int64 [tokens]
    competition: Competition
    costs: MissCosts


@torch.no_grad()
def fit(
    chunks: list[Chunk],
    steering: Steering,
    tables: Tables,
    rate: Fraction,
    margin: float,
    effort: int,
    device: torch.device,
) -> list[np.ndarray]:
    """Beam search for the memory of each chunk that needs the fewest bits of corrections; returns {0, 1} [bits] each.

    effort: states tried per token (beam width times branches). A state is the window, its cost and its sum of levels.
    """
    length = max(len(c.tokens) for c in chunks)
    rows = len(chunks)
    n = chunks[0].competition.ids.shape[1]
    low, high = steering.feature_halves(device)

    def stack(parts: list[np.ndarray], fill: float) -> torch.Tensor:
        out = np.full((rows, length, *parts[0].shape[1:]), fill, dtype=parts[0].dtype)
        for row, part in zip(out, parts, strict=True):
            row[: len(part)] = part
        return torch.from_numpy(out).to(device)

    logits = stack([np.where(c.competition.possible, c.competition.logits, -np.inf) for c in chunks], 0.0)
    certain = stack([c.competition.certain for c in chunks], True)
    target = stack([np.where(c.competition.ids == c.tokens[:, None], np.arange(n), -1).max(axis=1) for c in chunks], -1)
    ids = stack([c.competition.ids for c in chunks], 0)
    miss_bits = stack([c.costs.bits for c in chunks], 0.0)
    miss_levels = stack([c.costs.levels for c in chunks], 0)
    live = stack([np.ones(len(c.tokens), dtype=bool) for c in chunks], False)
    hit_bits = torch.from_numpy(tables.hit_cost).to(device)

    window = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    cost = torch.zeros(rows, 1, device=device)
    level_sum = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    parents: list[torch.Tensor] = []
    entries: list[torch.Tensor] = []
    row_index = torch.arange(rows, device=device)[:, None]
    for t in range(length):
        fresh = entries_until(t + 1, rate) - entries_until(t, rate)
        branches = 1 << fresh
        if fresh:
            new = torch.arange(branches, device=device)
            window = ((window[:, :, None] << fresh) | new).flatten(1) & ((1 << WINDOW) - 1)
            cost = cost.repeat_interleave(branches, dim=1)
            level_sum = level_sum.repeat_interleave(branches, dim=1)
        features = low[window & ((1 << _HALF) - 1)] * high[window >> _HALF]
        responses = steering.responses(ids[:, t].to(device), t)
        steered = torch.baddbmm(logits[:, t, None, :], features, responses.transpose(1, 2))
        best, winner = steered.max(dim=2)
        rival = steered.scatter_(2, winner[..., None], -torch.inf).amax(dim=2)
        stable = certain[:, t].gather(1, winner) & (best - rival > margin)
        context = corrections.contexts(t, level_sum, tables.prior_level)
        hit = stable & (winner == target[:, t, None])
        outcome = torch.where(stable, winner, n)
        bits = torch.where(hit, hit_bits[context], miss_bits[row_index, t, outcome, context])
        levels = torch.where(hit, 0, miss_levels[row_index, t, outcome, context])
        cost = cost + torch.where(live[:, t, None], bits, 0)
        level_sum = level_sum + levels
        width = max(1, effort >> (entries_until(t + 2, rate) - entries_until(t + 1, rate)))
        if cost.shape[1] > width:
            cost, kept = cost.topk(width, dim=1, largest=False, sorted=False)
            window, level_sum = window.gather(1, kept), level_sum.gather(1, kept)
        else:
            kept = torch.arange(cost.shape[1], device=device).expand(rows, -1)
        parents.append((kept >> fresh).to(torch.int32).cpu())
        entries.append((kept & (branches - 1)).to(torch.int32).cpu())

    best_state = cost.argmin(dim=1).cpu()
    memories = []
    for row, chunk in enumerate(chunks):
        state = int(best_state[row])
        memory = np.zeros(memory_bits(length, rate), dtype=np.uint8)
        for t in reversed(range(length)):
            start, end = entries_until(t, rate), entries_until(t + 1, rate)
            new_bits = int(entries[t][row, state])
            memory[start:end] = [new_bits >> i & 1 for i in reversed(range(end - start))]
            state = int(parents[t][row, state])
        memories.append(memory[: memory_bits(len(chunk.tokens), rate)])
    return memories
