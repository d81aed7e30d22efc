"""The end of a step on a GPU, in Triton: frequencies from logits, and the decoder of corrections; the same integers as
`distribution`, `steering`, `tokens` and `rangecoder`, as tests check (see there for what each step means).

Logits stay on the device: `cells` and `blocks` read all of them, `summarize` and `decode` what these two have found.
One program takes one row, or a piece of it. The rounding of float64 is described in `lm.gpu_kernels`.
"""

import triton
import triton.language as tl

from memcodec.coding import distribution, rangecoder, steering
from memcodec.lm import arithmetic, seeded

GPU_CELL = 64  # tokens whose best key is kept
RUN_FIELDS = 4  # of a run of `decode`: group, position, first row, rows
LIST = 64  # entries of a program's list of the best tokens: a power of two above COMPETITORS

_CELL, _LIST, _LAST = tl.constexpr(GPU_CELL), tl.constexpr(LIST), tl.constexpr(LIST - 1)
_RUN_FIELDS = tl.constexpr(RUN_FIELDS)
_COMPETITORS = tl.constexpr(distribution.COMPETITORS)
_BLOCK = tl.constexpr(distribution.BLOCK)
_BLOCK_BITS = tl.constexpr(distribution.BLOCK.bit_length() - 1)
_FAR = tl.constexpr((distribution.FREQUENCY_BITS + 1) << 10)
_LIFT = tl.constexpr(distribution.MOST_LIFT)
_SHIFT = tl.constexpr(arithmetic.ONE - distribution.FREQUENCY_BITS + distribution.MOST_LIFT)
_ONE_BITS = tl.constexpr(distribution.FREQUENCY_BITS * 1024)
_MOST_ENTROPY = tl.constexpr(steering.MOST_ENTROPY)
_MOST_NEW = tl.constexpr(steering.MOST_NEW)
_WINDOW = tl.constexpr((1 << steering.WINDOW) - 1)
_FEATURES = tl.constexpr(steering.FEATURES)
_REACH = tl.constexpr(float(steering.REACH))
_TILT = tl.constexpr(steering.TILT)
_SIGNS = tl.constexpr(((steering.SIGN_STREAM << 40) + 1) * seeded.GOLDEN % (1 << 64))  # word 0 of the stream, unmixed
_GOLDEN, _FIRST, _SECOND = (tl.constexpr(n) for n in (seeded.GOLDEN, seeded.FIRST, seeded.SECOND))
_MAGIC = tl.constexpr(1.5 * 2.0**52)  # x + _MAGIC has no bits below 1, so that the addition rounds x to an integer
_ID_BITS, _ID_ONE, _ID_MASK = tl.constexpr(20), tl.constexpr(1 << 20), tl.constexpr((1 << 20) - 1)  # of ids in keys
_NO_KEY = tl.constexpr(-(1 << 62))
_PROBABILITY_BITS = tl.constexpr(rangecoder.PROBABILITY_BITS)
_MOST_PROBABLE = tl.constexpr((1 << rangecoder.PROBABILITY_BITS) - 1)
_TOP, _MASK = tl.constexpr(rangecoder.TOP), tl.constexpr(rangecoder.MASK)


# ---- frequencies


@triton.jit
def frequency(below, powers):
    """`distribution.frequency` of int32, int64."""
    units = tl.minimum(below, _FAR)
    power = tl.load(powers + (units & 1023)).to(tl.int64)
    return ((power << _LIFT) >> ((units >> 10) + _SHIFT).to(tl.int64)) + 1


@triton.jit
def log2_units(value, logarithms):
    """`distribution.log2_units` of int64, int32."""
    bits = value.to(tl.float32).to(tl.int32, bitcast=True)
    return ((bits >> 23) - 127) * 1024 + tl.load(logarithms + ((bits >> 13) & 1023))


@triton.jit
def cells(logits, keys, VOCABULARY: tl.constexpr, CELLS: tl.constexpr, PIECE: tl.constexpr):
    """The best key of each cell of GPU_CELL tokens. logits: int32 [rows, VOCABULARY]; keys: int64 [rows, CELLS].

    A key orders tokens as competitors are ordered: by logits, and the lower id first among equals.
    """
    row = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    token = cell[:, None] * _CELL + tl.arange(0, _CELL)[None, :]
    logit = tl.load(logits + row * VOCABULARY + token, mask=token < VOCABULARY, other=0)
    key = logit.to(tl.int64) * _ID_ONE + (token ^ _ID_MASK)
    best = tl.max(tl.where(token < VOCABULARY, key, _NO_KEY), axis=1)
    tl.store(keys + row * CELLS + cell, best, mask=cell < CELLS)


@triton.jit
def _best_logit(keys, row, CELLS: tl.constexpr, WIDTH: tl.constexpr):
    """The keys of all cells of a row, and the best logit."""
    cell = tl.arange(0, WIDTH)
    found = tl.load(keys + row * CELLS + cell, mask=cell < CELLS, other=_NO_KEY)
    return found, (tl.max(found, axis=0) >> _ID_BITS).to(tl.int32)


@triton.jit
def blocks(
    logits, keys, powers, masses, moments,
    VOCABULARY: tl.constexpr, CELLS: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Sums of frequencies of each block of tokens, and of frequencies less 1 times units below the best.

    int64 [rows, BLOCKS] each; keys: of `cells`, of which WIDTH is a power of two that holds CELLS.
    """
    row = tl.program_id(0).to(tl.int64)
    _, best = _best_logit(keys, row, CELLS, WIDTH)
    block = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    token = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    inside = token < VOCABULARY
    below = best - tl.load(logits + row * VOCABULARY + token, mask=inside, other=0)
    units = tl.minimum(tl.where(inside, below, _FAR), _FAR)
    count = tl.where(inside, frequency(units, powers), 1) - 1
    mass = tl.sum(count, axis=1) + tl.sum(inside.to(tl.int64), axis=1)
    tl.store(masses + row * BLOCKS + block, mass, mask=block < BLOCKS)
    tl.store(moments + row * BLOCKS + block, tl.sum(count * units.to(tl.int64), axis=1), mask=block < BLOCKS)


@triton.jit
def _competitors(logits, row, found, best, VOCABULARY: tl.constexpr, WIDTH: tl.constexpr):
    """The best tokens in order, int32 [LIST], -1 after the last, and their units below the best.

    found: the best key of each cell. The best of all is taken, and its cell searched again for the best that is left.
    """
    place, cell = tl.arange(0, _LIST), tl.arange(0, WIDTH)
    ids, below = tl.full((_LIST,), -1, tl.int32), tl.zeros((_LIST,), dtype=tl.int32)
    for k in range(_COMPETITORS + 1):
        key = tl.max(found, axis=0)
        token = ((key & _ID_MASK) ^ _ID_MASK).to(tl.int32)
        is_one = key > _NO_KEY
        logit = (key >> _ID_BITS).to(tl.int32)
        ids = tl.where((place == k) & is_one, token, ids)
        below = tl.where((place == k) & is_one, best - logit, below)
        others = token // _CELL * _CELL + tl.arange(0, _CELL)
        inside = is_one & (others < VOCABULARY)
        theirs = tl.load(logits + row * VOCABULARY + others, mask=inside, other=0).to(tl.int64) * _ID_ONE
        theirs = theirs + (others ^ _ID_MASK)
        left = tl.max(tl.where(inside & (theirs < key), theirs, _NO_KEY), axis=0)
        found = tl.where(cell == token // _CELL, left, found)
    return ids, below


@triton.jit
def _total_and_entropy(masses, moments, row, logarithms, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """The sums of blocks, int64 [WIDTH], the sum of all frequencies, and the entropy in units."""
    block = tl.arange(0, WIDTH)
    mass = tl.load(masses + row * BLOCKS + block, mask=block < BLOCKS, other=0)
    moment = tl.sum(tl.load(moments + row * BLOCKS + block, mask=block < BLOCKS, other=0), axis=0)
    total = tl.sum(mass, axis=0)
    entropy = log2_units(total, logarithms) - _ONE_BITS + (moment // total).to(tl.int32)
    return mass, total, tl.maximum(entropy, 0)


@triton.jit
def summarize(
    logits, keys, masses, moments, logarithms, tokens, ids, below, totals, entropies, near,
    VOCABULARY: tl.constexpr, CELLS: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """What an encoder needs of each row (`distribution.Predictions`), but for the sums of blocks.

    tokens: int32 [rows], the true ones. Writes int32 [rows, COMPETITORS + 1] twice, int64 [rows], int32 [rows], and
    int32 [rows, BLOCK].
    """
    row = tl.program_id(0).to(tl.int64)
    found, best = _best_logit(keys, row, CELLS, WIDTH)
    chosen, distance = _competitors(logits, row, found, best, VOCABULARY, WIDTH)
    place = tl.arange(0, _LIST)
    at = row * (_COMPETITORS + 1) + place
    tl.store(ids + at, chosen, mask=place <= _COMPETITORS)
    tl.store(below + at, distance, mask=place <= _COMPETITORS)
    _, total, entropy = _total_and_entropy(masses, moments, row, logarithms, BLOCKS, BLOCK_WIDTH)
    tl.store(totals + row, total)
    tl.store(entropies + row, entropy)
    i = tl.arange(0, _BLOCK)
    token = tl.load(tokens + row) // _BLOCK * _BLOCK + i
    inside = token < VOCABULARY
    units = best - tl.load(logits + row * VOCABULARY + token, mask=inside, other=0)
    tl.store(near + row * _BLOCK + i, units, mask=inside)


# ---- steering


@triton.jit
def _ones(x):
    """The bits of uint64 that are 1, int32."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def sign_words(position, i, SIZE: tl.constexpr):
    """The signs of all features at some entries of a position's hidden state, as bits, uint64: `seeded.word`."""
    z = (position.to(tl.int64) * SIZE + i).to(tl.uint64) * _GOLDEN + _SIGNS
    z = (z ^ (z >> 30)) * _FIRST
    z = (z ^ (z >> 27)) * _SECOND
    return z ^ (z >> 31)


@triton.jit
def _moves(position, features, tilt, ids, head, scale, UNIT: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    """`steering.steer`: the moves of the logits of a list of tokens, int32 [LIST]. features: uint64."""
    total = tl.zeros((_LIST,), dtype=tl.int32)
    for first in range(0, SIZE, DEPTH):
        i = first + tl.arange(0, DEPTH)
        signs = _FEATURES - 2 * _ones(sign_words(position, i, SIZE) ^ features)
        at = (ids.to(tl.int64) * SIZE)[:, None] + i[None, :]
        rows = tl.load(head + at, mask=(ids >= 0)[:, None] & (i < SIZE)[None, :], other=0)
        total += tl.sum(rows.to(tl.int32) * signs[None, :], axis=1)
    row_scale = tl.load(scale + ids, mask=ids >= 0, other=0.0).to(tl.float64)
    move = total.to(tl.float64) * (row_scale * UNIT) * tilt
    move = tl.minimum(tl.maximum(move, -_REACH), _REACH)
    return ((move + _MAGIC) - _MAGIC).to(tl.int32)


# ---- the decoder


@triton.jit
def _probability(count, whole):
    """`tokens.probability`."""
    return tl.minimum(tl.maximum((count << _PROBABILITY_BITS) // whole, 1), _MOST_PROBABLE)


@triton.jit
def _decode_bit(code, width, at, end, data, zero):
    """`rangecoder.decode_bit`: the bit, and the state after it. Two bytes at most are read."""
    bound = (width >> _PROBABILITY_BITS) * zero
    bit = (code >= bound).to(tl.int64)
    code = code - bit * bound
    width = tl.where(bit == 1, width - bound, bound)
    for _ in tl.static_range(2):
        more = width < _TOP
        byte = tl.load(data + at, mask=more & (at < end), other=0).to(tl.int64)
        code = tl.where(more, ((code << 8) | byte) & _MASK, code)
        width = tl.where(more, width << 8, width)
        at = tl.where(more & (at < end), at + 1, at)
    return bit, code, width, at


@triton.jit
def _mass(start, half, tokens_of, mass, ids, change):
    """The frequency of the tokens from `start` to start + half - 1, with the changes of competitors.

    mass: frequencies of whole blocks, or of tokens; tokens_of: their first token.
    """
    plain = tl.sum(tl.where((tokens_of >= start) & (tokens_of < start + half), mass, 0), axis=0)
    return plain + tl.sum(tl.where((ids >= start) & (ids < start + half), change, 0), axis=0)


@triton.jit
def _descend(left, start, rest, half, code, width, at, end, data):
    """One of the bits of `tokens.decode_token`: the half in which the token is, and the state of the coder."""
    coded = (left > 0) & (left < rest)
    zero = _probability(tl.where(coded, left, 1), tl.where(coded, rest, 1))
    bit, next_code, next_width, next_at = _decode_bit(code, width, at, end, data, zero)
    code, width, at = tl.where(coded, next_code, code), tl.where(coded, next_width, width), tl.where(coded, next_at, at)
    is_upper = tl.where(coded, bit == 1, left <= 0)
    return tl.where(is_upper, start + half, start), tl.where(is_upper, rest - left, left), code, width, at


@triton.jit
def _steered(
    state, chunks, memories, parities, head, scale, position, share, entropy, ids,
    SIZE: tl.constexpr, DEPTH: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Take in the new bits of a memory: the moves of a list of tokens. state: of a group, int64 [5]; it is changed."""
    used, entropy_sum, window = tl.load(state), tl.load(state + 1), tl.load(state + 2)
    chunk, started = tl.load(state + 3), tl.load(state + 4)
    is_next = position == tl.load(chunks + chunk * 3 + 2)
    chunk += is_next.to(tl.int64)
    started = tl.where(is_next, position, started)
    used, window = tl.where(is_next, 0, used), tl.where(is_next, 0, window)
    entropy_sum = tl.where(is_next, 0, entropy_sum)
    first, count = tl.load(chunks + chunk * 3), tl.load(chunks + chunk * 3 + 1)
    capped = tl.minimum(entropy, _MOST_ENTROPY).to(tl.int64)
    entropy_sum += capped
    new = tl.minimum(tl.minimum((share * entropy_sum) >> 20, count) - used, _MOST_NEW)
    for i in tl.static_range(_MOST_NEW):
        place = first + used + i
        bit = (tl.load(memories + (place >> 3), mask=i < new, other=0).to(tl.int64) >> (place & 7)) & 1
        window = tl.where(i < new, ((window << 1) | bit) & _WINDOW, window)
    tl.debug_barrier()  # all threads have read the state
    tl.store(state, used + new)
    tl.store(state + 1, entropy_sum)
    tl.store(state + 2, window)
    tl.store(state + 3, chunk)
    tl.store(state + 4, started)
    features = tl.load(parities + (window & 255)) ^ tl.load(parities + 256 + ((window >> 8) & 255))
    features = (features ^ tl.load(parities + 512 + (window >> 16))).to(tl.uint64, bitcast=True)
    tilt = _TILT * tl.sqrt((share * capped).to(tl.float64))
    moves = _moves(position - started, features, tilt, ids, head, scale, UNIT, SIZE, DEPTH)
    return tl.where(tl.arange(0, _LIST) < _COMPETITORS, moves, 0)


@triton.jit(do_not_specialize=["share"])
def decode(
    logits, keys, masses, moments, powers, logarithms, head, scale, parities,
    data, coders, memories, chunks, states, runs, tokens, share,
    VOCABULARY: tl.constexpr, CELLS: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    LEVELS: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The tokens of a run of rows, which predict consecutive positions of a group, int32 [rows], from corrections.

    runs: int32 [4]: group, position, first row, rows; a program takes one. head: int8 [VOCABULARY, SIZE]; scale:
    float32 [VOCABULARY]; parities: int64 [3, 256]; data, coders, memories, chunks, states: those of
    `corrections.Decoder.streams`.
    """
    run = runs + tl.program_id(0) * _RUN_FIELDS
    group, position = tl.load(run).to(tl.int64), tl.load(run + 1)
    first, count = tl.load(run + 2), tl.load(run + 3)
    place = tl.arange(0, _LIST)
    coder = coders + group * 4
    code, width, at, end = tl.load(coder), tl.load(coder + 1), tl.load(coder + 2), tl.load(coder + 3)
    for i in range(count):
        row = (first + i).to(tl.int64)
        found, best = _best_logit(keys, row, CELLS, WIDTH)
        ids, below = _competitors(logits, row, found, best, VOCABULARY, WIDTH)
        mass, total, entropy = _total_and_entropy(masses, moments, row, logarithms, BLOCKS, BLOCK_WIDTH)
        moves = tl.zeros((_LIST,), dtype=tl.int32)
        if share > 0:
            moves = _steered(
                states + group * 5, chunks, memories, parities, head, scale, position + i, share, entropy, ids,
                SIZE, DEPTH, UNIT,
            )  # fmt: skip
            tl.debug_barrier()  # the state is written before the next row reads it
        valid = ids >= 0
        steered = tl.where(valid, frequency(below - moves, powers), 0)
        change = tl.where(valid, steered - frequency(below, powers), 0)
        whole = total + tl.sum(change, axis=0)
        key = tl.max(tl.where(valid, steered * _LIST + (place ^ _LAST), -1), axis=0)
        most, winner = key // _LIST, (key % _LIST).to(tl.int32) ^ _LAST
        token = tl.sum(tl.where(place == winner, ids, 0), axis=0)
        is_other, code, width, at = _decode_bit(code, width, at, end, data, _probability(most, whole))
        if is_other == 1:
            change = tl.where(place == winner, change - most, change)  # the others alone remain
            start, rest = tl.zeros((), dtype=tl.int64), whole - most
            half = tl.full((), 1 << (LEVELS - 1), tl.int64)
            tokens_of = tl.arange(0, BLOCK_WIDTH).to(tl.int64) * _BLOCK
            for _ in range(LEVELS - _BLOCK_BITS):
                left = _mass(start, half, tokens_of, mass, ids, change)
                start, rest, code, width, at = _descend(left, start, rest, half, code, width, at, end, data)
                half = half >> 1
            inside_of = start + tl.arange(0, _BLOCK)
            inside = inside_of < VOCABULARY
            units = best - tl.load(logits + row * VOCABULARY + inside_of, mask=inside, other=0)
            counts = tl.where(inside, frequency(tl.where(inside, units, 0), powers), 0)
            for _ in range(_BLOCK_BITS):
                left = _mass(start, half, inside_of, counts, ids, change)
                start, rest, code, width, at = _descend(left, start, rest, half, code, width, at, end, data)
                half = half >> 1
            token = tl.minimum(start, VOCABULARY - 1).to(tl.int32)
        tl.store(tokens + row, token)
    is_read = count > 0  # several runs that read nothing can have the same group
    tl.store(coder, code, mask=is_read)
    tl.store(coder + 1, width, mask=is_read)
    tl.store(coder + 2, at, mask=is_read)


# ---- from one step to the next


@triton.jit(do_not_specialize=["rows", "width"])
def advance(
    runs, positions, ends, tokens, history, scales, wrong, rows, width,
    BLOCK: tl.constexpr, HISTORY: tl.constexpr,
):  # fmt: skip
    """What follows `decode` in a step of one row for each group: keep its token, and move on by one position.

    runs: of `decode`, int32 [rows, RUN_FIELDS], with 1 row, or 0 after the end of a group; positions: of the LM, int32
    [rows]; ends: tokens of each group, int32 [rows]; history: int32 [HISTORY, width]; scales: what `check_numbers`
    takes, float32 [rows]; wrong: int32 [1], is set to 1 if it would raise.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    run = runs + row * _RUN_FIELDS
    live = inside & (tl.load(run + 3, mask=inside, other=0) > 0)
    position = tl.load(run + 1, mask=inside, other=0)
    token = tl.load(tokens + row, mask=live, other=0)
    tl.store(history + (position % HISTORY) * width + row, token, mask=live)
    tl.store(positions + row, tl.load(positions + row, mask=live, other=0) + 1, mask=live)
    tl.store(run + 1, position + 1, mask=live)
    tl.store(run + 3, (position + 1 < tl.load(ends + row, mask=live, other=0)).to(tl.int32), mask=live)
    scale = tl.load(scales + row, mask=live, other=0.0)
    is_wrong = tl.sum((scale - scale != 0.0).to(tl.int32), axis=0) > 0
    tl.store(wrong, 1, mask=is_wrong)
