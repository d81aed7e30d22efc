"""Corrections: what is stored where greedy decoding under the memory is not right (spec/FORMAT.md, "Corrections").

The winner of a position is the token that is most likely under the memory. A flag says whether it is right, coded with
exactly its probability; after a wrong one, the token among the others, by halves of the vocabulary. By the chain rule
the two cost what the token's own probability says, and where the memory writes everything itself, nothing is stored at
all.

A group of chunks has one stream. `write` sees all positions of a chunk at once, because its tokens are known;
`Decoder.step` sees them one by one, for all rows of a batch. Both take the same decisions in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from memcodec.coding import rangecoder
from memcodec.coding.distribution import (
    BLOCK,
    CELL,
    COMPETITORS,
    EARLY,
    Predictions,
    frequency,
    rarity,
    summarize_row,
    temper,
)
from memcodec.coding.steering import MOST_NEW, WINDOW, Steering, capped, features_of, steer, tilt_of, until
from memcodec.lm import arithmetic
from memcodec.lm.compiled import kernel, subkernel
from memcodec.lm.team import Team

_ONE = np.int64(1 << rangecoder.PROBABILITY_BITS)


@subkernel
def _probability(part_of, whole):
    """A share of a whole, as the coder wants it: 1 to 2**16 - 1."""
    return min(max((part_of << rangecoder.PROBABILITY_BITS) // whole, np.int64(1)), _ONE - 1)


@subkernel
def _tilted(ids, below, moves, total, powers, changes):
    """Frequencies under the memory: what each competitor's changes by, int64; gives the winner and the new total.

    The winner is the first of the largest among the competitors and their unsteered rival.
    """
    winner, most = 0, np.int64(-1)
    for k in range(len(ids)):
        if ids[k] < 0:
            break
        plain = frequency(below[k], powers)
        tilted = plain
        if k < COMPETITORS:
            tilted = frequency(below[k] - moves[k], powers)
            changes[k] = tilted - plain
            total += changes[k]
        if tilted > most:
            winner, most = k, tilted
    return winner, most, total


@subkernel
def _mass(first, last, blocks, inside, block):
    """Frequency of the tokens first..last-1: whole blocks, or a part of the block whose tokens are `inside`."""
    mass = np.int64(0)
    if last - first >= BLOCK:
        for b in range(first // BLOCK, min(last // BLOCK, len(blocks))):
            mass += blocks[b]
    else:
        for i in range(first - block * BLOCK, last - block * BLOCK):
            mass += inside[i]
    return mass


@subkernel
def _change_blocks(ids, below, changes, winner, powers, blocks):
    """Sums of blocks as the memory has them, without the winner."""
    for k in range(COMPETITORS):
        if ids[k] < 0:
            break
        blocks[ids[k] // BLOCK] += changes[k]
    gone = frequency(below[winner], powers)
    if winner < COMPETITORS:
        gone += changes[winner]
    blocks[ids[winner] // BLOCK] -= gone


@subkernel
def _change_inside(ids, changes, winner, block, inside):
    """The same for the tokens of one block."""
    for k in range(COMPETITORS):
        if ids[k] < 0:
            break
        if ids[k] // BLOCK == block:
            inside[ids[k] % BLOCK] += changes[k]
    if ids[winner] // BLOCK == block:
        inside[ids[winner] % BLOCK] = 0


@subkernel
def _levels(vocabulary):
    """How often the ids are halved: the least number of bits that holds all of them, and a block at least."""
    levels = np.int64(8)
    while (1 << levels) < vocabulary:
        levels += 1
    return levels


@kernel
def _encode(
    tokens, ids, below, total, entropy, blocks, near, share, memory, unit, head, scale, parities, powers, vocabulary,
    state, out,
):  # fmt: skip
    """The corrections of one chunk into `out`; gives how many tokens the winner got right."""
    moves, changes = np.zeros(COMPETITORS, dtype=np.int32), np.zeros(COMPETITORS, dtype=np.int64)
    vector = np.empty(head.shape[1], dtype=np.int32)
    inside = np.empty(BLOCK, dtype=np.int64)
    used, energy, window, hits = np.int64(0), np.int64(0), np.int64(0), 0
    levels = _levels(vocabulary)
    for t in range(len(tokens)):
        if share > 0:
            energy += capped(entropy[t])
            fresh = min(until(share, energy, np.int64(len(memory))) - used, MOST_NEW)
            for i in range(fresh):
                window = ((window << 1) | np.int64(memory[used + i])) & ((1 << WINDOW) - 1)
            used += fresh
            steer(
                t, features_of(window, parities), tilt_of(share, entropy[t]), unit, head, scale, ids[t], moves, vector
            )
        winner, most, whole = _tilted(ids[t], below[t], moves, total[t], powers, changes)
        token = tokens[t]
        right = _probability(most, whole)
        if ids[t, winner] == token:
            hits += 1
            rangecoder.encode_bit(state, out, 0, right)
            continue
        rangecoder.encode_bit(state, out, 1, right)
        block = token // BLOCK
        sums = blocks[t]  # of this position alone: they may be changed
        _change_blocks(ids[t], below[t], changes, winner, powers, sums)
        for i in range(BLOCK):
            inside[i] = frequency(near[t, i], powers) if block * BLOCK + i < vocabulary else 0
        _change_inside(ids[t], changes, winner, block, inside)
        first, mass = np.int64(0), whole - most
        for level in range(levels - 1, -1, -1):
            half = np.int64(1) << level
            left = _mass(first, first + half, sums, inside, block)
            bit = np.int64(token >= first + half)
            if 0 < left < mass:
                rangecoder.encode_bit(state, out, bit, _probability(left, mass))
            if bit:
                first, mass = first + half, mass - left
            else:
                mass = left
    return hits


@kernel
def _explain(
    tokens, ids, below, total, entropy, near, share, memory, unit, head, scale, parities, powers, winners, chosen,
    wholes, steered,
):  # fmt: skip
    """What `_encode` goes by: the winner's place among the best, frequencies of the token, of all, and of the best."""
    moves, changes = np.zeros(COMPETITORS, dtype=np.int32), np.zeros(COMPETITORS, dtype=np.int64)
    vector = np.empty(head.shape[1], dtype=np.int32)
    used, energy, window = np.int64(0), np.int64(0), np.int64(0)
    for t in range(len(tokens)):
        if share > 0:
            energy += capped(entropy[t])
            fresh = min(until(share, energy, np.int64(len(memory))) - used, MOST_NEW)
            for i in range(fresh):
                window = ((window << 1) | np.int64(memory[used + i])) & ((1 << WINDOW) - 1)
            used += fresh
            steer(
                t, features_of(window, parities), tilt_of(share, entropy[t]), unit, head, scale, ids[t], moves, vector
            )
        winners[t], _, wholes[t] = _tilted(ids[t], below[t], moves, total[t], powers, changes)
        chosen[t] = frequency(near[t, tokens[t] % BLOCK], powers)
        for k in range(len(ids[t])):
            if ids[t, k] < 0:
                break
            steered[t, k] = frequency(below[t, k], powers) + (changes[k] if k < COMPETITORS else 0)
            if ids[t, k] == tokens[t]:
                chosen[t] = steered[t, k]


@dataclass(frozen=True)
class Explained:
    """Positions of a chunk as the coder sees them.

    winners: the place of the winner among `ids`, int64 [positions]; probability: of the token under its memory, float64
    [positions]; ids: the best tokens of the LM alone, in its order, int32 [positions, COMPETITORS + 1], -1 where there
    are fewer; shares: their probabilities under the memory, float64 [positions, COMPETITORS + 1].
    """

    winners: np.ndarray
    probability: np.ndarray
    ids: np.ndarray
    shares: np.ndarray


def explain(predicted: Predictions, memory: bytes, steering: Steering, share: int) -> Explained:
    """A chunk under its memory, token by token. share: in steps of 1/1024."""
    bits = np.unpackbits(np.frombuffer(memory if share else b"", dtype=np.uint8), bitorder="little")
    n = len(predicted.tokens)
    winners, chosen, wholes = (np.zeros(n, dtype=np.int64) for _ in range(3))
    steered = np.zeros(predicted.ids.shape, dtype=np.int64)
    p, s = predicted, steering
    _explain(p.tokens, p.ids, p.below, p.total, p.entropy, p.near, share, bits, s.unit, s.head,
             s.scale, s.parities, arithmetic.powers(), winners, chosen, wholes, steered)  # fmt: skip
    return Explained(winners, chosen / wholes, predicted.ids, steered / wholes[:, None])


@kernel
def _begin(state):
    rangecoder.start_encoder(state)


@kernel
def _finish(state, out):
    return rangecoder.finish_encoder(state, out)


class Encoder:
    """Writes the corrections of one group, chunk by chunk. hits: tokens that greedy decoding gets right by itself."""

    def __init__(self, steering: Steering, share: int) -> None:
        """share: in steps of 1/1024; without one, memories are not looked at."""
        self.hits = 0
        self._steering = steering
        self._share = share
        self._state = np.empty(rangecoder.ENCODER_STATE, dtype=np.int64)
        self._out = np.zeros(_END_ROOM, dtype=np.uint8)
        _begin(self._state)

    def write(self, predicted: Predictions, memory: bytes) -> None:
        """Take in the next chunk under its memory."""
        bits = np.unpackbits(np.frombuffer(memory, dtype=np.uint8), bitorder="little")
        written = int(self._state[rangecoder.WRITTEN] + self._state[rangecoder.PENDING])
        if (needed := written + _TOKEN_ROOM * len(predicted.tokens) + _END_ROOM) > len(self._out):
            self._out = np.concatenate([self._out, np.zeros(needed, dtype=np.uint8)])
        p, s = predicted, self._steering
        self.hits += _encode(p.tokens, p.ids, p.below, p.total, p.entropy, p.blocks.copy(), p.near, self._share, bits,
                             s.unit, s.head, s.scale, s.parities, arithmetic.powers(), len(s.scale), self._state,
                             self._out)  # fmt: skip

    def finish(self) -> bytes:
        """The corrections."""
        length = _finish(self._state, self._out)
        return self._out[1 : 1 + length].tobytes()


_TOKEN_ROOM = 48  # bytes: no token costs more, with 16 bits to each of its decisions at most
_END_ROOM = 16


def write(encoders: list[Encoder], predictions: list[Predictions], memories: list[bytes], team: Team) -> None:
    """Take in consecutive chunks under their memories, each with its group's encoder; groups side by side."""
    rows: dict[int, list[int]] = {}
    for i, encoder in enumerate(encoders):
        rows.setdefault(id(encoder), []).append(i)
    groups = list(rows.values())

    def work(worker: int, workers: int) -> None:
        for group in groups[worker::workers]:
            for i in group:
                encoders[i].write(predictions[i], memories[i])

    if groups:
        team.run(work)


class Rows(Protocol):
    """A group as its decoder needs it."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each chunk."""

    @property
    def memories(self) -> tuple[bytes, ...]:
        """Of each chunk."""

    @property
    def corrections(self) -> bytes:
        """Of all."""


class Decoder:
    """Reads the corrections of several groups side by side, a token of each at a time.

    Any bytes decode to some tokens of the vocabulary; checksums judge them.
    """

    def __init__(self, rows: Sequence[Rows], steering: Steering, share: int, team: Team, late: bool = False) -> None:
        """share: in steps of 1/1024; without one, memories are not looked at. late: no position is an early one."""
        vocabulary = len(steering.scale)
        self._steering = steering
        self._share = share
        self._team = team
        self._early = EARLY[:0] if late else EARLY
        self._rarity = rarity(vocabulary)
        self._data = np.frombuffer(b"".join(row.corrections for row in rows), dtype=np.uint8)
        self._coders = np.zeros((len(rows), rangecoder.DECODER_STATE), dtype=np.int64)
        ends = np.cumsum([len(row.corrections) for row in rows])
        starts = ends - [len(row.corrections) for row in rows]
        _start(self._coders, self._data, starts, ends)
        memories = [memory if share else b"" for row in rows for memory in row.memories]
        self._bits = np.unpackbits(np.frombuffer(b"".join(memories), dtype=np.uint8), bitorder="little")
        sizes = 8 * np.array([len(memory) for memory in memories], dtype=np.int64)
        chunk_ends = [np.cumsum(row.lengths) for row in rows]
        self._chunks = np.empty((len(sizes), _CHUNK), dtype=np.int64)
        self._chunks[:, _FIRST], self._chunks[:, _BITS] = np.cumsum(sizes) - sizes, sizes
        self._chunks[:, _ENDS] = np.concatenate(chunk_ends)
        counts = np.array([len(row.lengths) for row in rows], dtype=np.int64)
        self._memory = np.zeros((len(rows), _MEMORY_STATE), dtype=np.int64)
        self._memory[:, _AT] = np.cumsum(counts) - counts
        workers = team.workers
        self._cells = np.empty((workers, -(-vocabulary // CELL)), dtype=np.int32)
        self._tokens = np.empty((2, workers, COMPETITORS + 1), dtype=np.int32)
        self._blocks = np.empty((workers, -(-vocabulary // BLOCK)), dtype=np.int64)
        self._inside = np.empty((workers, BLOCK), dtype=np.int64)
        self._vector = np.empty((workers, steering.head.shape[1]), dtype=np.int32)

    def step(self, position: int, logits: np.ndarray) -> np.ndarray:
        """The tokens at one position of the first groups, int64 [rows]: logits int32 [rows, vocabulary or more].

        The logits are written over.
        """
        found = np.empty(len(logits), dtype=np.int64)
        s = self._steering

        def work(worker: int, workers: int) -> None:
            tables = self._early, self._rarity, arithmetic.powers(), arithmetic.logarithms()
            room = (self._cells[worker], self._tokens[0, worker], self._tokens[1, worker], self._blocks[worker],
                    self._inside[worker], self._vector[worker])  # fmt: skip
            _decode(position, logits, len(s.scale), *tables, self._share, s.unit, s.head, s.scale, s.parities,
                    self._bits, self._chunks, self._memory, self._data, self._coders, *room, found, worker,
                    workers)  # fmt: skip

        self._team.run(work)
        return found


# Of each chunk: where its memory is, how long it is, and where in the group the chunk ends, in tokens.
_FIRST, _BITS, _ENDS = range(3)
_CHUNK = 3
# Of each group: its present chunk, where that starts, and how far its memory has come.
_AT, _STARTED, _USED, _ENERGY, _WINDOW = range(5)
_MEMORY_STATE = 5


@subkernel
def _next_chunk(position, chunks, own):
    """Go on to the next chunk where one ends."""
    if position == chunks[own[_AT], _ENDS]:
        own[_AT] += 1
        own[_STARTED], own[_USED], own[_ENERGY], own[_WINDOW] = position, 0, 0, 0


@kernel
def _start(coders, data, starts, ends):
    for row in range(len(coders)):
        rangecoder.start_decoder(coders[row], data, starts[row], ends[row])


@kernel
def _decode(
    position, logits, vocabulary, early, rarity, powers, logarithms, share, unit, head, scale, parities, bits, chunks,
    memory, data, coders, cells, ids, below, blocks, inside, vector, found, worker, workers
):  # fmt: skip
    moves, changes = np.zeros(COMPETITORS, dtype=np.int32), np.zeros(COMPETITORS, dtype=np.int64)
    levels = _levels(vocabulary)
    for m in range(worker, len(logits), workers):
        row, own, coder = logits[m], memory[m], coders[m]
        temper(row, vocabulary, position, early, rarity)
        best, total, entropy = summarize_row(row, vocabulary, powers, logarithms, cells, ids, below, blocks)
        if share > 0:
            _next_chunk(position, chunks, own)
            chunk = chunks[own[_AT]]
            own[_ENERGY] += capped(entropy)
            fresh = min(until(share, own[_ENERGY], chunk[_BITS]) - own[_USED], MOST_NEW)
            for i in range(fresh):
                bit = np.int64(bits[chunk[_FIRST] + own[_USED] + i])
                own[_WINDOW] = ((own[_WINDOW] << 1) | bit) & ((1 << WINDOW) - 1)
            own[_USED] += fresh
            steer(position - own[_STARTED], features_of(own[_WINDOW], parities), tilt_of(share, entropy), unit, head,
                  scale, ids, moves, vector)  # fmt: skip
        winner, most, whole = _tilted(ids, below, moves, total, powers, changes)
        if not rangecoder.decode_bit(coder, data, _probability(most, whole)):
            found[m] = ids[winner]
            continue
        _change_blocks(ids, below, changes, winner, powers, blocks)
        first, mass, block = np.int64(0), whole - most, np.int64(-1)
        for level in range(levels - 1, -1, -1):
            half = np.int64(1) << level
            if half < BLOCK and block < 0:
                block = first // BLOCK
                for i in range(BLOCK):
                    token = block * BLOCK + i
                    inside[i] = frequency(best - row[token], powers) if token < vocabulary else 0
                _change_inside(ids, changes, winner, block, inside)
            left = _mass(first, first + half, blocks, inside, block)
            bit = np.int64(left <= 0)
            if 0 < left < mass:
                bit = rangecoder.decode_bit(coder, data, _probability(left, mass))
            if bit:
                first, mass = first + half, mass - left
            else:
                mass = left
        found[m] = min(first, vocabulary - 1)
