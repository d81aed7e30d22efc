"""A binary range coder (spec/FORMAT.md, "Range coder"), for kernels: its state is a row of int64.

The carry-propagating coder of Martin (1979), as in LZMA, with probabilities of 16 bits. The stream ends with the
fewest bytes that identify the final interval, given that the decoder reads zeros after the end; this costs a third of a
byte on average. The coders of the library `constriction` end on a 32-bit word, and take their tables as floats.
"""

import numpy as np

from memcodec.lm.compiled import subkernel

PROBABILITY_BITS = 16

# The state of an encoder: low, range, the byte held back, the number of bytes held back, bytes written.
LOW, RANGE, HELD, PENDING, WRITTEN = 0, 1, 2, 3, 4
ENCODER_STATE = 5

# The state of a decoder: code, range, and its position in the bytes, which end at END.
CODE, POSITION, END = 0, 2, 3
DECODER_STATE = 4

TOP = 1 << 24
MASK = 0xFFFFFFFF


@subkernel
def start_encoder(state):
    """state: int64 [ENCODER_STATE]."""
    state[LOW], state[RANGE], state[HELD], state[PENDING], state[WRITTEN] = 0, MASK, 0, 1, 0


@subkernel
def _shift(state, out):
    low = state[LOW]
    if low < 0xFF000000 or low > MASK:
        carry = low >> 32
        held = state[HELD] + carry
        for i in range(state[PENDING]):
            out[state[WRITTEN] + i] = np.uint8(held & 0xFF)
            held = 0xFF + carry
        state[WRITTEN] += state[PENDING]
        state[PENDING] = 0
        state[HELD] = (low >> 24) & 0xFF
    state[PENDING] += 1
    state[LOW] = (low << 8) & MASK


@subkernel
def encode_bit(state, out, bit, zero):
    """Encode a bit that is 0 with the probability zero / 2**16; zero: 1 to 2**16 - 1."""
    bound = (state[RANGE] >> PROBABILITY_BITS) * zero
    if bit:
        state[LOW] += bound
        state[RANGE] -= bound
    else:
        state[RANGE] = bound
    while state[RANGE] < TOP:
        state[RANGE] <<= 8
        _shift(state, out)


@subkernel
def finish_encoder(state, out):
    """End with the fewest bytes that decode to what was encoded, given that zeros follow; returns their number.

    out[0] is the first byte held back, which is always 0: the stream is the bytes after it.
    """
    high = state[LOW] + state[RANGE] - 1
    drop = 32
    while (high >> drop) << drop < state[LOW]:
        drop -= 8
    state[LOW] = (high >> drop) << drop
    for _ in range(5):
        _shift(state, out)
    count = state[WRITTEN]
    while count > 1 and out[count - 1] == 0:
        count -= 1
    return count - 1


@subkernel
def start_decoder(state, data, start, end):
    """state: int64 [DECODER_STATE]; the bytes are data[start:end]."""
    state[CODE], state[RANGE], state[POSITION], state[END] = 0, MASK, start, end
    for _ in range(4):
        _next(state, data)


@subkernel
def _next(state, data):
    byte = np.int64(0)
    if state[POSITION] < state[END]:
        byte = np.int64(data[state[POSITION]])
        state[POSITION] += 1
    state[CODE] = ((state[CODE] << 8) | byte) & MASK


@subkernel
def decode_bit(state, data, zero):
    """The bit that `encode_bit` encoded. Any bytes decode to some bits."""
    bound = (state[RANGE] >> PROBABILITY_BITS) * zero
    bit = np.int64(0)
    if state[CODE] < bound:
        state[RANGE] = bound
    else:
        state[CODE] -= bound
        state[RANGE] -= bound
        bit = np.int64(1)
    while state[RANGE] < TOP:
        state[RANGE] <<= 8
        _next(state, data)
    return bit
