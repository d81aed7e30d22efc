"""Corrections: what is stored for a token, and how it becomes bits (spec/FORMAT.md, "Corrections").

A token is a *hit* when the winner of the steered argmax writes it, else a *miss*. A miss names the token among the
unsteered logits by two numbers, chosen by the encoder so that the choice is stable under the margin:

- its *class*: the top `b` bits of a hash of its id (b = 0: all tokens are one class), stored as they are, and
- its *rank*: how many tokens of the class, the winner left out, have a larger logit.

Halving the class halves the rank, so hash bits are paid back by the rank almost in full, while each bit halves the
chance that another token of the class lies within the margin. With all bits the class holds one token: a code that is
always stable. Symbols are coded with static tables; their context is the position and the mean level of the symbols
before, so a chunk needs nothing from its neighbours.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np

from memcodec.rangecoder import RangeDecoder, RangeEncoder

TABLE_BITS = 15
SPLITS = 11  # class bits 0..10, then the full hash
RANK_STARTS = np.array([0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257])
RANK_BITS = [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
RANKS = int(RANK_STARTS[-1])
BUCKETS = len(RANK_BITS)
FULL = SPLITS * BUCKETS  # the symbol of the full hash
SYMBOLS = FULL + 1
MAX_LEVEL = 12
EARLY_CONTEXTS = 4  # positions 0, 1, 2..3, 4..7; later ones go by the mean level
MEAN_CONTEXTS = 16
LATE_POSITION = 24  # the mean is worth more from here on: contexts of their own
CONTEXTS = EARLY_CONTEXTS + 2 * MEAN_CONTEXTS
PRIOR_TOKENS = 4
HASH_MULTIPLIER = 0x9E3779B1

BUCKET_OF_RANK = np.searchsorted(RANK_STARTS, np.arange(RANKS), side="right") - 1
LEVEL_OF_BUCKET = np.floor(np.log2(RANK_STARTS[:-1] + 0.5)).astype(int) + 1
LEVELS = np.array([1 + min(s // BUCKETS + LEVEL_OF_BUCKET[s % BUCKETS], MAX_LEVEL - 1) for s in range(FULL)] + [MAX_LEVEL])


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
    """What the encoder knows of one token among the unsteered logits, by split 0..bits.

    above: members of its class with a larger logit; near: members, itself left out, within the margin of its logit.
    """

    above: np.ndarray
    near: np.ndarray


def token_odds(classes: TokenClasses, logits: np.ndarray, token: int, margin: float) -> TokenOdds:
    """Count, for each split, the rivals of `token` in its class (logits: float32 [vocabulary])."""
    own = logits[token]
    rivals = np.flatnonzero(logits >= own - margin)
    rivals = rivals[rivals != token]
    shared = classes.shared_bits(rivals, token)
    values = logits[rivals]
    above = np.bincount(shared[values > own], minlength=classes.bits + 1)
    near = np.bincount(shared[values <= own + margin], minlength=classes.bits + 1)
    return TokenOdds(above[::-1].cumsum()[::-1], near[::-1].cumsum()[::-1])


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
        """Bits of a miss with its flag, by (split, rank) and, in the last column, the full hash without its bits.

        float32 [contexts, SPLITS * RANKS + 1]
        """
        flag = -np.log2(1 - self.hit / 2**TABLE_BITS)
        symbol = -np.log2(self.miss / 2**TABLE_BITS)
        by_rank = np.empty((CONTEXTS, SPLITS, RANKS))
        for split in range(SPLITS):
            buckets = split * BUCKETS + BUCKET_OF_RANK
            by_rank[:, split] = symbol[:, buckets] + np.array(RANK_BITS)[BUCKET_OF_RANK] + split
        costs = np.concatenate([by_rank.reshape(CONTEXTS, -1), symbol[:, FULL:]], axis=1)
        return (costs + flag[:, None]).astype(np.float32)

    def context(self, position: int, level_sum: int) -> int:
        """The context of the symbol at `position`, given the sum of the levels of the symbols before it."""
        return int(contexts(position, np.array(level_sum), self.prior_level))


def contexts(position: int, level_sums: np.ndarray, prior_level: int) -> np.ndarray:
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


def best_miss(
    tables: Tables, odds: TokenOdds, context: int, winner_shared: int = -1, winner_above: bool = False,
    winner_near: bool = False,
) -> tuple[int, int]:
    """The cheapest stable code of a miss: (split, rank), or (-1, 0) for the full hash.

    winner_*: the hash bits that the winner (left out of the ranking) shares with the token, and whether it counts in
    `odds.above` and `odds.near`; -1 when the winner is not certain, so that only the full hash is stable.
    """
    bits = len(odds.above) - 1
    splits = np.arange(min(SPLITS, bits))
    excluded = splits <= winner_shared
    ranks = odds.above[splits] - (excluded & winner_above)
    near = odds.near[splits] - (excluded & winner_near)
    full = tables.miss_cost[context, -1] + bits
    costs = tables.miss_cost[context, splits * RANKS + ranks.clip(0, RANKS - 1)]
    costs = np.where((near == 0) & (ranks < RANKS), costs, np.inf)
    best = int(costs.argmin()) if len(costs) else 0
    if winner_shared < 0 or not len(costs) or costs[best] > full:
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

    def miss(self, token: int, split: int, rank: int) -> None:
        """The winner is not the token; `split` -1 stores the full hash."""
        context = self.context
        hit = int(self._tables.hit[context])
        self._coder.encode(hit, (1 << TABLE_BITS) - hit, TABLE_BITS)
        bucket = int(BUCKET_OF_RANK[rank])
        symbol = FULL if split < 0 else split * BUCKETS + bucket
        start, size = self._tables.miss_starts[context, symbol], self._tables.miss[context, symbol]
        self._coder.encode(int(start), int(size), TABLE_BITS)
        bits = self._classes.bits if split < 0 else split
        self._coder.encode_uniform(int(self._classes.hashes[token]) >> (self._classes.bits - bits), bits)
        if split >= 0:
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
        split, bucket = divmod(symbol, BUCKETS)
        value = self._coder.decode_uniform(split)
        rank = int(RANK_STARTS[bucket]) + self._coder.decode_uniform(RANK_BITS[bucket])
        if split > self._classes.bits:
            return winner
        members = self._classes.members(split, value)
        members = members[members != winner]
        if rank >= len(members):
            return winner  # damaged: no such token
        values = logits[members]
        if rank == 0:
            return int(members[values.argmax()])
        return int(members[np.argpartition(-values, rank)[rank]])
