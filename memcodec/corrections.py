"""Corrections: what is stored for a token, and how it becomes bits (spec/FORMAT.md, "Corrections").

A token is a *hit* when the winner of the steered argmax writes it, else a *miss*. A miss names the token among the
unsteered logits, by a code whose reading rests on no gap below the margin:

- its *class*: the top `b` bits of a hash of its id (b = 0: all tokens are one class), stored as they are, and
- its *rank* in the class: how many tokens of it have a larger logit. The *nested* codes leave out the winner (b = 0)
  or the TOP best tokens of the class's parent (b > 0), which have a code with fewer hash bits.

Halving the class halves the rank, so the nested codes cut the vocabulary into disjoint sets and hash bits cost
nothing, while a small class seldom holds two tokens within the margin of each other. Where it does, the *plain* codes,
with nothing left out, give other ways to say the same; with all bits the class holds one token, a code that is always
stable. Only the nested code of b = 0 asks which token won. Symbols are coded with static tables; their context is the
position and the mean level of the symbols before, so a chunk needs nothing from its neighbours.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from memcodec.rangecoder import RangeDecoder, RangeEncoder

TABLE_BITS = 15
SPLITS = 11  # nested codes have 0..10 class bits, plain codes 1..10
CODES = 2 * SPLITS - 1  # nested, then plain
CODE_BITS = np.array([*range(SPLITS), *range(1, SPLITS)])  # class bits of each code
TOP = 16  # at least the number of competitors: so a winner is never in a nested list
RANK_STARTS = np.array([0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65])
RANK_BITS = [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
RANKS = int(RANK_STARTS[-1])
BUCKETS = len(RANK_BITS)
FULL = CODES * BUCKETS  # the symbol of the full hash
SYMBOLS = FULL + 1
MAX_LEVEL = 12
EARLY_CONTEXTS = 4  # positions 0, 1, 2..3, 4..7; later ones go by the mean level
MEAN_CONTEXTS = 16
LATE_POSITION = 24  # the mean is worth more from here on: contexts of their own
CONTEXTS = EARLY_CONTEXTS + 2 * MEAN_CONTEXTS
PRIOR_TOKENS = 4
HASH_MULTIPLIER = 0x9E3779B1

BUCKET_OF_RANK = np.searchsorted(RANK_STARTS, np.arange(RANKS), side="right") - 1


def _level(code: int, bucket: int) -> int:
    """About 1 + log2 of the token's rank in the whole vocabulary."""
    split = int(CODE_BITS[code])
    in_class = 4 if 0 < code < SPLITS else int(RANK_STARTS[bucket] * 2 + 1).bit_length() - 1
    return 1 + min(split + in_class, MAX_LEVEL - 1)


LEVELS = np.array([_level(*divmod(symbol, BUCKETS)) for symbol in range(FULL)] + [MAX_LEVEL])


class TokenClasses:
    """The hash that splits the vocabulary into 2**b classes, nested in b."""

    def __init__(self, vocabulary: int) -> None:
        self.bits = max(1, (vocabulary - 1).bit_length())
        ids = np.arange(vocabulary, dtype=np.uint64)
        mask = np.uint64((1 << self.bits) - 1)
        self.hashes = ((ids * np.uint64(HASH_MULTIPLIER)) & mask).astype(np.int64)  # odd: a bijection mod 2**bits
        self.by_hash = np.argsort(self.hashes)  # the ids of a class are a slice of this
        self._sorted = self.hashes[self.by_hash]

    def members(self, split: int, value: int) -> np.ndarray:
        """The token ids whose top `split` hash bits are `value`, int64 [n], in the order of their hashes."""
        shift = self.bits - split
        return self.by_hash[
            np.searchsorted(self._sorted, value << shift) : np.searchsorted(self._sorted, (value + 1) << shift)
        ]

    def shared_bits(self, ids: np.ndarray, token: int) -> np.ndarray:
        """How many top hash bits each id shares with `token`: they are in one class up to that split."""
        return self.bits - _bit_length(self.hashes[ids] ^ self.hashes[token])


def _bit_length(x: np.ndarray) -> np.ndarray:
    return np.frexp(x.astype(np.float64))[1]  # exact below 2**53; 0 for 0


@dataclass(frozen=True)
class TokenOdds:
    """What the encoder knows of one token among the unsteered logits.

    ranks: its rank in every code but the first, or -1 where that is not stable or too large, int [CODES]; for the
    first code, above: the tokens with a larger logit, near: the others within the margin of its logit.
    """

    above: int
    near: int
    ranks: np.ndarray

    def rank_under(self, winner_lead: float, margin: float) -> int:
        """The rank in the first code, or -1, where a certain winner is left out whose logit is larger by `lead`."""
        rank = self.above - (winner_lead > 0)
        return rank if self.near == (abs(winner_lead) <= margin) and rank < RANKS else -1


def token_odds(classes: TokenClasses, logits: np.ndarray, token: int, margin: float) -> TokenOdds:
    """Count, for each number of class bits, the rivals of `token` in its class (logits: float32 [vocabulary])."""
    own = logits[token]
    rivals = np.flatnonzero(logits >= own - margin)
    rivals = rivals[rivals != token]
    shared = classes.shared_bits(rivals, token)
    values = logits[rivals]
    above = np.bincount(shared[values > own], minlength=classes.bits + 1)[::-1].cumsum()[::-1]
    near = np.bincount(shared[values <= own + margin], minlength=classes.bits + 1)[::-1].cumsum()[::-1]
    splits = np.arange(1, min(SPLITS, classes.bits))
    ranks = np.full(CODES, -1)
    ranks[SPLITS - 1 + splits] = np.where((near[splits] == 0) & (above[splits] < RANKS), above[splits], -1)
    for split in splits:
        if above[split - 1] < TOP:
            break
        in_parent = shared >= split - 1
        values, shared = values[in_parent], shared[in_parent]
        order = np.argpartition(-values, TOP - 1)
        top, rest = order[:TOP], order[TOP:]
        last = values[top].min()
        following = max(values[rest].max(initial=-np.inf), own)
        # What could cross the edge of the TOP in some decoder must leave the class's share of it as it is.
        crossing = np.concatenate([top[values[top] <= following + margin], rest[values[rest] >= last - margin]])
        in_class = shared[crossing] >= split
        if near[split] == 0 and own < last - margin and (in_class.all() or not in_class.any()):
            rank = above[split] - (shared[top] >= split).sum()
            ranks[split] = rank if rank < RANKS else -1
    return TokenOdds(int(above[0]), int(near[0]), ranks)


class Tables:
    """The static frequencies of one regime (a site and range of memory rates), from tables.json.

    hit: int [contexts], frequency of a hit; miss: int [contexts, symbols]; both in units of 2**-15.
    """

    def __init__(self, prior_level: int, hit: np.ndarray, miss: np.ndarray) -> None:
        self.prior_level = prior_level
        self.hit = hit
        self.miss = miss

    @cached_property
    def miss_starts(self) -> np.ndarray:
        """Left ends of the miss symbols' intervals, int [contexts, symbols]."""
        return self.miss.cumsum(axis=1) - self.miss

    @cached_property
    def hit_cost(self) -> np.ndarray:
        """Bits of the flag of a hit, float32 [contexts]."""
        return -np.log2(self.hit / 2**TABLE_BITS).astype(np.float32)

    @cached_property
    def miss_cost(self) -> np.ndarray:
        """Bits of a miss with its flag, by (code, rank) and, in the last column, the full hash without its bits.

        float32 [contexts, CODES * RANKS + 1]
        """
        flag = -np.log2(1 - self.hit / 2**TABLE_BITS)
        symbol = -np.log2(self.miss / 2**TABLE_BITS)
        by_rank = np.empty((CONTEXTS, CODES, RANKS))
        for code in range(CODES):
            buckets = code * BUCKETS + BUCKET_OF_RANK
            by_rank[:, code] = symbol[:, buckets] + np.array(RANK_BITS)[BUCKET_OF_RANK] + CODE_BITS[code]
        costs = np.concatenate([by_rank.reshape(CONTEXTS, -1), symbol[:, FULL:]], axis=1)
        return (costs + flag[:, None]).astype(np.float32)

    def context(self, position: int, level_sum: int) -> int:
        """The context of the symbol at `position`, given the sum of the levels of the symbols before it."""
        return int(contexts(position, np.array(level_sum), self.prior_level))


def contexts(position: int, level_sums: Any, prior_level: int) -> Any:
    """Contexts of the symbols at one position, int, the shape of `level_sums` (numpy or torch)."""
    if position < 4:
        return level_sums * 0 + (position if position < 2 else 2)
    if position < 8:
        return level_sums * 0 + 3
    mean = 3 * (level_sums + prior_level) // (position + PRIOR_TOKENS)
    first = EARLY_CONTEXTS if position < LATE_POSITION else EARLY_CONTEXTS + MEAN_CONTEXTS
    return first + mean.clip(0, MEAN_CONTEXTS - 1)


REGIMES = ("0", "0.5", "1", "2", "4", "8", "prompt")


def regime(site: str, rate: float) -> str:
    """The name of the tables for a site and a memory rate in bits per token."""
    return "prompt" if site == "prompt" else next(name for name in REGIMES if rate <= float(name))


def load_tables(name: str) -> Tables:
    """The tables of one regime, from the package's tables.json (the same file is part of the specification)."""
    entry = json.loads(files("memcodec").joinpath("tables.json").read_text())[name]
    hit, miss = np.array(entry["hit"], dtype=np.int64), np.array(entry["miss"], dtype=np.int64)
    return Tables(entry["prior_level"], hit, miss)


def best_miss(tables: Tables, ranks: np.ndarray, context: int, hash_bits: int) -> tuple[int, int]:
    """The cheapest code of a miss, (code, rank), or (-1, 0) for the full hash; ranks: int [CODES], -1 for none."""
    costs = tables.miss_cost[context, np.arange(CODES) * RANKS + ranks.clip(0)]
    costs = np.where(ranks >= 0, costs, np.inf)
    best = int(costs.argmin())
    if costs[best] > tables.miss_cost[context, -1] + hash_bits:
        return -1, 0
    return best, int(ranks[best])


class CorrectionEncoder:
    """Writes the corrections of one chunk, token by token."""

    def __init__(self, tables: Tables, classes: TokenClasses) -> None:
        self._tables = tables
        self._classes = classes
        self._coder = RangeEncoder()
        self._position = 0
        self._level_sum = 0

    @property
    def context(self) -> int:
        """The context of the next token's symbol."""
        return self._tables.context(self._position, self._level_sum)

    def hit(self) -> None:
        """The winner is the token."""
        self._coder.encode(0, int(self._tables.hit[self.context]), TABLE_BITS)
        self._position += 1

    def miss(self, token: int, code: int, rank: int) -> None:
        """The winner is not the token; `code` -1 stores the full hash."""
        context = self.context
        hit = int(self._tables.hit[context])
        self._coder.encode(hit, (1 << TABLE_BITS) - hit, TABLE_BITS)
        bucket = int(BUCKET_OF_RANK[rank])
        symbol = FULL if code < 0 else code * BUCKETS + bucket
        start, size = self._tables.miss_starts[context, symbol], self._tables.miss[context, symbol]
        self._coder.encode(int(start), int(size), TABLE_BITS)
        bits = self._classes.bits if code < 0 else int(CODE_BITS[code])
        self._coder.encode_uniform(int(self._classes.hashes[token]) >> (self._classes.bits - bits), bits)
        if code >= 0:
            self._coder.encode_uniform(rank - int(RANK_STARTS[bucket]), RANK_BITS[bucket])
        self._level_sum += int(LEVELS[symbol])
        self._position += 1

    def finish(self) -> bytes:
        """The chunk's corrections."""
        return self._coder.finish()


class CorrectionDecoder:
    """Reads the corrections of one chunk, token by token. Any bytes decode to some tokens; the checksum judges them."""

    def __init__(self, data: bytes, tables: Tables, classes: TokenClasses) -> None:
        self._tables = tables
        self._classes = classes
        self._coder = RangeDecoder(data)
        self._position = 0
        self._level_sum = 0

    def token(self, winner: int, logits: np.ndarray) -> int:
        """The next token id, given the winner and the unsteered logits (float32 [vocabulary])."""
        context = self._tables.context(self._position, self._level_sum)
        self._position += 1
        hit = int(self._tables.hit[context])
        if self._coder.peek(TABLE_BITS) < hit:
            self._coder.consume(0, hit)
            return winner
        self._coder.consume(hit, (1 << TABLE_BITS) - hit)
        starts = self._tables.miss_starts[context]
        symbol = int(np.searchsorted(starts, self._coder.peek(TABLE_BITS), side="right")) - 1
        self._coder.consume(int(starts[symbol]), int(self._tables.miss[context, symbol]))
        self._level_sum += int(LEVELS[symbol])
        if symbol == FULL:
            members = self._classes.members(self._classes.bits, self._coder.decode_uniform(self._classes.bits))
            return int(members[0]) if len(members) else winner
        code, bucket = divmod(symbol, BUCKETS)
        split = int(CODE_BITS[code])
        value = self._coder.decode_uniform(split)
        rank = int(RANK_STARTS[bucket]) + self._coder.decode_uniform(RANK_BITS[bucket])
        if split > self._classes.bits:
            return winner  # damaged: no such class
        members = self._classes.members(split, value)
        if 0 < code < SPLITS:
            parent = self._classes.members(split - 1, value >> 1)
            if len(parent) <= TOP:
                return winner  # damaged: no such list
            members = np.setdiff1d(members, parent[np.argpartition(-logits[parent], TOP - 1)[:TOP]], assume_unique=True)
        if code == 0:
            members = members[members != winner]
        if rank >= len(members):
            return winner  # damaged: no such token
        values = logits[members]
        if rank == 0:
            return int(members[values.argmax()])
        return int(members[np.argpartition(-values, rank)[rank]])
