"""Corrections: what is stored where greedy decoding under the memory is not right (spec/FORMAT.md, "Corrections").

The winner of a position is the token that is most likely under the memory. A flag says whether it is right, coded with
exactly its probability; after a wrong one, the token among the others, by halves of the vocabulary. By the chain rule
the two cost what the token's own probability says, and where the memory writes everything itself, nothing is stored at
all.

`encode` sees all positions of a chunk at once, because its tokens are known; `Decoder.step` sees them one by one, for
all rows of a batch. Both take the same decisions in the same order.
"""

from dataclasses import dataclass

import numpy as np

from memcodec.coding import rangecoder
from memcodec.coding.distribution import BLOCK, CELL, COMPETITORS, Look, frequency, look_at_row
from memcodec.lm import arithmetic
from memcodec.lm.compiled import Team, kernel, part
from memcodec.memory import readout
from memcodec.memory.readout import Steering, capped, features_of, steer, tilt_of, until

_ONE = np.int64(1 << rangecoder.PROBABILITY_BITS)


@part
def _probability(part_of, whole):
    """A share of a whole, as the coder wants it: 1 to 2**16 - 1."""
    return min(max((part_of << rangecoder.PROBABILITY_BITS) // whole, np.int64(1)), _ONE - 1)


@part
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


@part
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


@part
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


@part
def _change_inside(ids, changes, winner, block, inside):
    """The same for the tokens of one block."""
    for k in range(COMPETITORS):
        if ids[k] < 0:
            break
        if ids[k] // BLOCK == block:
            inside[ids[k] % BLOCK] += changes[k]
    if ids[winner] // BLOCK == block:
        inside[ids[winner] % BLOCK] = 0


@part
def _levels(vocabulary):
    """How often the ids are halved: the least number of bits that holds all of them, and a block at least."""
    levels = np.int64(8)
    while (1 << levels) < vocabulary:
        levels += 1
    return levels


@kernel
def _encode(
    tokens, ids, below, total, entropy, blocks, near, share, memory, unit, head, scale, parities, powers, vocabulary,
    out,
):  # fmt: skip
    """The corrections of one chunk into `out`; gives their length, and how many tokens the winner got right."""
    state = np.empty(rangecoder.ENCODER_STATE, dtype=np.int64)
    rangecoder.start_encoder(state)
    moves, changes = np.zeros(COMPETITORS, dtype=np.int32), np.zeros(COMPETITORS, dtype=np.int64)
    vector = np.empty(head.shape[1], dtype=np.int32)
    inside = np.empty(BLOCK, dtype=np.int64)
    used, energy, window, hits = np.int64(0), np.int64(0), np.int64(0), 0
    levels = _levels(vocabulary)
    for t in range(len(tokens)):
        if share > 0:
            energy += capped(entropy[t])
            fresh = min(until(share, energy, np.int64(len(memory))) - used, readout.MOST_NEW)
            for i in range(fresh):
                window = ((window << 1) | np.int64(memory[used + i])) & ((1 << readout.WINDOW) - 1)
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
    return rangecoder.finish_encoder(state, out), hits


def encode(looks: list[Look], memories: list[bytes], steering: Steering, share: int, team: Team) -> list["Corrected"]:
    """The corrections of chunks under their memories, which may be empty. share: in steps of 1/1024."""
    vocabulary = len(steering.scale)
    result: list[Corrected] = [Corrected(b"", 0)] * len(looks)

    def work(worker: int, workers: int) -> None:
        for i in range(worker, len(looks), workers):
            look, bits = looks[i], np.unpackbits(np.frombuffer(memories[i], dtype=np.uint8), bitorder="little")
            out = np.zeros(16 + 8 * len(look.tokens), dtype=np.uint8)
            length, hits = _encode(look.tokens, look.ids, look.below, look.total, look.entropy, look.blocks.copy(),
                                   look.near, share, bits, steering.unit, steering.head, steering.scale,
                                   steering.parities, arithmetic.powers(), vocabulary, out)  # fmt: skip
            result[i] = Corrected(out[1 : 1 + length].tobytes(), hits)

    if looks:
        team.run(work)
    return result


@dataclass(frozen=True)
class Corrected:
    """The corrections of a chunk, and how many of its tokens greedy decoding under the memory gets right by itself."""

    data: bytes
    hits: int


class Decoder:
    """Reads the corrections of several chunks side by side, a token of each at a time.

    Any bytes decode to some tokens of the vocabulary; checksums judge them.
    """

    def __init__(
        self, memories: list[bytes], corrections: list[bytes], steering: Steering, share: int, team: Team
    ) -> None:
        """share: in steps of 1/1024; without one, memories are not looked at."""
        rows, vocabulary = len(corrections), len(steering.scale)
        self._steering = steering
        self._share = share
        self._team = team
        self._bits = np.unpackbits(np.frombuffer(b"".join(memories), dtype=np.uint8), bitorder="little")
        self._data = np.frombuffer(b"".join(corrections), dtype=np.uint8)
        self._coders = np.zeros((rows, rangecoder.DECODER_STATE), dtype=np.int64)
        self._memory = np.zeros((rows, _MEMORY_STATE), dtype=np.int64)
        ends = np.cumsum([len(data) for data in corrections])
        starts = ends - [len(data) for data in corrections]
        _start(self._coders, self._data, starts, ends)
        sizes = 8 * np.array([len(memory) for memory in memories], dtype=np.int64)
        self._memory[:, _FIRST], self._memory[:, _BITS] = np.cumsum(sizes) - sizes, sizes
        workers = team.workers
        self._cells = np.empty((workers, -(-vocabulary // CELL)), dtype=np.int32)
        self._tokens = np.empty((2, workers, COMPETITORS + 1), dtype=np.int32)
        self._blocks = np.empty((workers, -(-vocabulary // BLOCK)), dtype=np.int64)
        self._inside = np.empty((workers, BLOCK), dtype=np.int64)
        self._vector = np.empty((workers, steering.head.shape[1]), dtype=np.int32)

    def step(self, position: int, logits: np.ndarray) -> np.ndarray:
        """The tokens of one position in the first rows, int64 [rows]: logits int32 [rows, vocabulary or more]."""
        found = np.empty(len(logits), dtype=np.int64)
        s = self._steering

        def work(worker: int, workers: int) -> None:
            _decode(position, logits, len(s.scale), self._share, s.unit, s.head, s.scale, s.parities,
                    arithmetic.powers(), arithmetic.logarithms(), self._bits, self._memory, self._data, self._coders,
                    self._cells[worker], self._tokens[0, worker], self._tokens[1, worker], self._blocks[worker],
                    self._inside[worker], self._vector[worker], found, worker, workers)  # fmt: skip

        self._team.run(work)
        return found


_FIRST, _BITS, _USED, _ENERGY, _WINDOW = range(5)  # where a row's memory is, how long it is, and how far it has come
_MEMORY_STATE = 5


@kernel
def _start(coders, data, starts, ends):
    for row in range(len(coders)):
        rangecoder.start_decoder(coders[row], data, starts[row], ends[row])


@kernel
def _decode(
    position, logits, vocabulary, share, unit, head, scale, parities, powers, logarithms, bits, memory, data, coders,
    cells, ids, below, blocks, inside, vector, found, worker, workers
):  # fmt: skip
    moves, changes = np.zeros(COMPETITORS, dtype=np.int32), np.zeros(COMPETITORS, dtype=np.int64)
    levels = _levels(vocabulary)
    for m in range(worker, len(logits), workers):
        row, own, coder = logits[m], memory[m], coders[m]
        best, total, entropy = look_at_row(row, vocabulary, powers, logarithms, cells, ids, below, blocks)
        if share > 0:
            own[_ENERGY] += capped(entropy)
            fresh = min(until(share, own[_ENERGY], own[_BITS]) - own[_USED], readout.MOST_NEW)
            for i in range(fresh):
                bit = np.int64(bits[own[_FIRST] + own[_USED] + i])
                own[_WINDOW] = ((own[_WINDOW] << 1) | bit) & ((1 << readout.WINDOW) - 1)
            own[_USED] += fresh
            steer(position, features_of(own[_WINDOW], parities), tilt_of(share, entropy), unit, head, scale, ids, moves,
                  vector)  # fmt: skip
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
