"""How one token is coded, given the frequencies under its memory (spec/FORMAT.md, "Corrections"); kernels.

The winner of a position is the token that is most likely under the memory. A flag says whether it is the right one,
coded with exactly its probability. If it is not, the token follows, coded among all others by repeatedly halving the
vocabulary. By the chain rule, the two together cost what the token's own probability says.
"""

import numpy as np

from memcodec.coding import rangecoder
from memcodec.coding.distribution import BLOCK, COMPETITORS, frequency
from memcodec.lm.compiled import subkernel

_ONE = np.int64(1 << rangecoder.PROBABILITY_BITS)


@subkernel
def probability(count, whole):
    """count / whole as the range coder takes it: 1 to 2**16 - 1."""
    return min(max((count << rangecoder.PROBABILITY_BITS) // whole, np.int64(1)), _ONE - 1)


@subkernel
def find_winner(ids, below, moves, total, powers, changes):
    """Steer the competitors: returns the winner's index, its frequency, and the sum of all frequencies.

    Writes the change of each competitor's frequency, int64, to `changes`. The winner is the first of the most frequent
    among the competitors and their unsteered rival.
    """
    winner, most = 0, np.int64(-1)
    for k in range(len(ids)):
        if ids[k] < 0:
            break
        plain = frequency(below[k], powers)
        steered = plain
        if k < COMPETITORS:
            steered = frequency(below[k] - moves[k], powers)
            changes[k] = steered - plain
            total += changes[k]
        if steered > most:
            winner, most = k, steered
    return winner, most, total


@subkernel
def _mass(first, last, blocks, inside, block):
    """The frequency of the tokens first..last-1: whole blocks, or part of `block`, whose frequencies are `inside`."""
    mass = np.int64(0)
    if last - first >= BLOCK:
        for b in range(first // BLOCK, min(last // BLOCK, len(blocks))):
            mass += blocks[b]
    else:
        for i in range(first - block * BLOCK, last - block * BLOCK):
            mass += inside[i]
    return mass


@subkernel
def _steer_blocks(ids, below, changes, winner, powers, blocks):
    """Apply the changes to the sums of blocks, and remove the winner."""
    for k in range(COMPETITORS):
        if ids[k] < 0:
            break
        blocks[ids[k] // BLOCK] += changes[k]
    removed = frequency(below[winner], powers)
    if winner < COMPETITORS:
        removed += changes[winner]
    blocks[ids[winner] // BLOCK] -= removed


@subkernel
def _steer_inside(ids, changes, winner, block, inside):
    """Apply the changes to the frequencies of the tokens of one block, and remove the winner."""
    for k in range(COMPETITORS):
        if ids[k] < 0:
            break
        if ids[k] // BLOCK == block:
            inside[ids[k] % BLOCK] += changes[k]
    if ids[winner] // BLOCK == block:
        inside[ids[winner] % BLOCK] = 0


@subkernel
def levels_of(vocabulary):
    """How often the range of ids is halved: the bits of the largest id, and at least those of a block."""
    levels = np.int64(8)
    while (1 << levels) < vocabulary:
        levels += 1
    return levels


@subkernel
def encode_token(
    token, ids, below, near, changes, winner, mass, blocks, inside, powers, levels, vocabulary, state, out
):
    """Encode a token that is not the winner. mass: the frequency of all others.

    near: int32 [BLOCK], units below the best of the tokens in its block; blocks: int64, sums of frequencies, which are
    changed; inside: a buffer, int64 [BLOCK].
    """
    block = token // BLOCK
    _steer_blocks(ids, below, changes, winner, powers, blocks)
    for i in range(BLOCK):
        inside[i] = frequency(near[i], powers) if block * BLOCK + i < vocabulary else 0
    _steer_inside(ids, changes, winner, block, inside)
    first = np.int64(0)
    for level in range(levels - 1, -1, -1):
        half = np.int64(1) << level
        left = _mass(first, first + half, blocks, inside, block)
        bit = np.int64(token >= first + half)
        if 0 < left < mass:
            rangecoder.encode_bit(state, out, bit, probability(left, mass))
        if bit:
            first, mass = first + half, mass - left
        else:
            mass = left


@subkernel
def decode_token(
    logits, best, ids, below, changes, winner, mass, blocks, inside, powers, levels, vocabulary, coder, data
):
    """Decode what `encode_token` wrote. logits: int32 [vocabulary or more], of which `best` is the largest."""
    _steer_blocks(ids, below, changes, winner, powers, blocks)
    first, block = np.int64(0), np.int64(-1)
    for level in range(levels - 1, -1, -1):
        half = np.int64(1) << level
        if half < BLOCK and block < 0:
            block = first // BLOCK
            for i in range(BLOCK):
                token = block * BLOCK + i
                inside[i] = frequency(best - logits[token], powers) if token < vocabulary else 0
            _steer_inside(ids, changes, winner, block, inside)
        left = _mass(first, first + half, blocks, inside, block)
        bit = np.int64(left <= 0)
        if 0 < left < mass:
            bit = rangecoder.decode_bit(coder, data, probability(left, mass))
        if bit:
            first, mass = first + half, mass - left
        else:
            mass = left
    return min(first, vocabulary - 1)
