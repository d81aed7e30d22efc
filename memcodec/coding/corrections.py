"""Corrections: what is stored for the tokens that greedy decoding under the memory gets wrong.

A group of chunks has one stream (spec/FORMAT.md, "Corrections"; `tokens` has the code of one token). If greedy
decoding gets every token right, the stream is empty. `Encoder.write` sees all positions of a chunk at the same time,
because its tokens are known. `Decoder.step` sees them one by one, for all groups of a batch; `Decoder.read` sees
several of each group, to verify tokens that are known. All compute the same frequencies in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from memcodec.coding import rangecoder
from memcodec.coding.distribution import (
    BLOCK,
    CELL,
    COMPETITORS,
    Predictions,
    frequency,
    new_tables,
    summarize_row,
)
from memcodec.coding.steering import (
    ENTROPY_SUM,
    READER_STATE,
    USED,
    WINDOW_BITS,
    Steering,
    features_of,
    read_bits,
    steer,
    tilt_of,
)
from memcodec.coding.tokens import decode_token, encode_token, find_winner, levels_of, probability
from memcodec.lm import arithmetic
from memcodec.lm.compiled import COUNTERS_APART, allocating, kernel, subkernel, wait_for_all
from memcodec.lm.team import Team
from memcodec.progress import Report

_TOKEN_BYTES = 48  # the most that a token costs: at most 16 bits for each of its decisions
_END_BYTES = 16


@allocating
def _encode(chunk, share, memory, steering, powers, state, out):
    """The corrections of one chunk into `out`; returns the number of tokens for which the winner is right."""
    moves, changes = np.zeros(COMPETITORS, dtype=np.int32), np.zeros(COMPETITORS, dtype=np.int64)
    vector, inside = np.empty(steering.head.shape[1], dtype=np.int32), np.empty(BLOCK, dtype=np.int64)
    reader, hits = np.zeros(READER_STATE, dtype=np.int64), 0
    ids, below, entropy, vocabulary = chunk.ids, chunk.below, chunk.entropy, len(steering.scale)
    levels = levels_of(vocabulary)
    for t in range(len(chunk.tokens)):
        if share > 0:
            read_bits(share, entropy[t], memory, 0, np.int64(8 * len(memory)), reader)
            features = features_of(reader[WINDOW_BITS], steering.parities)
            steer(t, features, tilt_of(share, entropy[t]), steering, ids[t], moves, vector)
        winner, most, whole = find_winner(ids[t], below[t], moves, chunk.total[t], powers, changes)
        token = chunk.tokens[t]
        if ids[t, winner] == token:
            hits += 1
            rangecoder.encode_bit(state, out, 0, probability(most, whole))
            continue
        rangecoder.encode_bit(state, out, 1, probability(most, whole))
        encode_token(token, ids[t], below[t], chunk.near[t], changes, winner, whole - most, chunk.blocks[t], inside,
                     powers, levels, vocabulary, state, out)  # fmt: skip
    return hits


@kernel
def _begin(state):
    rangecoder.start_encoder(state)


@kernel
def _finish(state, out):
    return rangecoder.finish_encoder(state, out)


def _as_array(data: bytes) -> np.ndarray:
    """Bytes as uint8, not copied."""
    return np.frombuffer(data, dtype=np.uint8)


class Encoder:
    """Writes the corrections of one group, chunk by chunk. hits: tokens that greedy decoding gets right."""

    def __init__(self, steering: Steering, share: int) -> None:
        """share: in steps of 1/1024. With 0, memories are ignored."""
        self.hits = 0
        self._steering = steering
        self._share = share
        self._state = np.empty(rangecoder.ENCODER_STATE, dtype=np.int64)
        self._out = np.zeros(_END_BYTES, dtype=np.uint8)
        _begin(self._state)

    def write(self, predicted: Predictions, memory: bytes) -> None:
        """Write the next chunk under its memory."""
        written = int(self._state[rangecoder.WRITTEN] + self._state[rangecoder.PENDING])
        if (needed := written + _TOKEN_BYTES * len(predicted.tokens) + _END_BYTES) > len(self._out):
            self._out = np.concatenate([self._out, np.zeros(needed, dtype=np.uint8)])
        chunk = predicted._replace(blocks=predicted.blocks.copy())  # which the kernel changes
        self.hits += _encode(
            chunk, self._share, _as_array(memory), self._steering, arithmetic.powers(), self._state, self._out
        )

    def finish(self) -> bytes:
        """The corrections."""
        length = _finish(self._state, self._out)
        return self._out[1 : 1 + length].tobytes()


def write(encoders: list[Encoder], predictions: list[Predictions], memories: list[bytes], team: Team) -> None:
    """Write consecutive chunks under their memories, each with the encoder of its group; groups in parallel."""
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


# ---- the decoder

# The state of a group's decoder: that of the reader of its memory, then its current chunk and where that starts.
_CHUNK, _STARTED = READER_STATE, READER_STATE + 1
_GROUP_STATE = READER_STATE + 2
# Of each chunk: the first bit of its memory, the number of its bits, and the position in the group where it ends.
_FIRST, _BITS, _ENDS = range(3)
_CHUNK_FIELDS = 3


class _Groups(NamedTuple):
    """The input of a decoder, and its state."""

    data: np.ndarray  # uint8, the corrections of all groups
    coders: np.ndarray  # int64 [groups, DECODER_STATE]
    memories: np.ndarray  # uint8, all of them
    chunks: np.ndarray  # int64 [chunks of all groups, _CHUNK_FIELDS]
    state: np.ndarray  # int64 [groups, _GROUP_STATE]


class _Rows(NamedTuple):
    """The distributions at the rows of logits, from `summarize_row`."""

    best: np.ndarray  # int32 [rows]
    total: np.ndarray  # int64 [rows]
    entropy: np.ndarray  # int32 [rows]
    ids: np.ndarray  # int32 [rows, COMPETITORS + 1]
    below: np.ndarray
    blocks: np.ndarray  # int64 [rows, blocks]

    @classmethod
    def empty(cls, rows: int, vocabulary: int) -> "_Rows":
        return cls(
            np.empty(rows, dtype=np.int32),
            np.empty(rows, dtype=np.int64),
            np.empty(rows, dtype=np.int32),
            np.empty((rows, COMPETITORS + 1), dtype=np.int32),
            np.empty((rows, COMPETITORS + 1), dtype=np.int32),
            np.empty((rows, -(-vocabulary // BLOCK)), dtype=np.int64),
        )


class _Buffers(NamedTuple):
    """Arrays for each worker, and a barrier between the stages of a kernel."""

    cells: np.ndarray  # int32 [workers, cells]
    inside: np.ndarray  # int64 [workers, BLOCK]
    vector: np.ndarray  # int32 [workers, hidden]
    barrier: np.ndarray  # int64


# Of a run of rows that predict consecutive positions of one group.
_GROUP, _POSITION, _ROWS = range(3)


@subkernel
def _next_chunk(position, chunks, state):
    """Move to the next chunk at the end of one."""
    if position == chunks[state[_CHUNK], _ENDS]:
        state[_CHUNK] += 1
        state[_STARTED], state[USED], state[ENTROPY_SUM], state[WINDOW_BITS] = position, 0, 0, 0


@kernel
def _start(coders, data, starts, ends):
    for row in range(len(coders)):
        rangecoder.start_decoder(coders[row], data, starts[row], ends[row])


@allocating
def _decode(runs, logits, share, steering, tables, groups, rows, buffers, tokens, worker, workers):
    """The tokens of runs: first the distributions of all rows, in parallel; then the tokens of each run in turn."""
    vocabulary = len(steering.scale)
    for m in range(worker, len(logits), workers):
        rows.best[m], rows.total[m], rows.entropy[m] = summarize_row(
            logits[m], vocabulary, tables, buffers.cells[worker], rows.ids[m], rows.below[m], rows.blocks[m]
        )
    wait_for_all(buffers.barrier, workers)
    moves, changes = np.zeros(COMPETITORS, dtype=np.int32), np.zeros(COMPETITORS, dtype=np.int64)
    inside, vector = buffers.inside[worker], buffers.vector[worker]
    powers, data, levels = tables.powers, groups.data, levels_of(vocabulary)
    first = 0  # row of a run
    for number in range(len(runs)):
        group, count = runs[number, _GROUP], runs[number, _ROWS]
        mine = range(first, first + count if number % workers == worker else first)
        for m in mine:
            position, state, coder = runs[number, _POSITION] + m - first, groups.state[group], groups.coders[group]
            ids, below, entropy = rows.ids[m], rows.below[m], rows.entropy[m]
            if share > 0:
                _next_chunk(position, groups.chunks, state)
                chunk = groups.chunks[state[_CHUNK]]
                read_bits(share, entropy, groups.memories, chunk[_FIRST], chunk[_BITS], state)
                features = features_of(state[WINDOW_BITS], steering.parities)
                steer(position - state[_STARTED], features, tilt_of(share, entropy), steering, ids, moves, vector)
            winner, most, whole = find_winner(ids, below, moves, rows.total[m], powers, changes)
            if rangecoder.decode_bit(coder, data, probability(most, whole)):
                tokens[m] = decode_token(logits[m], rows.best[m], ids, below, changes, winner, whole - most,
                                         rows.blocks[m], inside, powers, levels, vocabulary, coder, data)  # fmt: skip
            else:
                tokens[m] = ids[winner]
        first += count


def live_groups(ends: np.ndarray, position: int) -> int:
    """The number of groups that have a token at a position. ends: tokens of each, in descending order."""
    return int(np.searchsorted(-ends, -position))


@dataclass(frozen=True)
class EncodedGroup:
    """An encoded group: the number of tokens and the memory of each chunk, and the corrections of all chunks."""

    lengths: tuple[int, ...]
    memories: tuple[bytes, ...]
    corrections: bytes

    @property
    def tokens(self) -> int:
        """The tokens of all its chunks."""
        return sum(self.lengths)


class Decoder:
    """Reads the corrections of several groups in parallel, the tokens of each in order.

    Any bytes decode to some tokens of the vocabulary; checksums tell whether they are the right ones.
    """

    def __init__(self, rows: Sequence[EncodedGroup], steering: Steering, share: int, team: Team) -> None:
        """share: in steps of 1/1024; with 0, memories are ignored."""
        vocabulary = len(steering.scale)
        self._steering = steering
        self._share = share
        self._team = team
        self._tables = new_tables()
        data = _as_array(b"".join(row.corrections for row in rows))
        coders = np.zeros((len(rows), rangecoder.DECODER_STATE), dtype=np.int64)
        ends = np.cumsum([len(row.corrections) for row in rows])
        starts = ends - [len(row.corrections) for row in rows]
        _start(coders, data, starts, ends)
        memories = [memory if share else b"" for row in rows for memory in row.memories]
        sizes = 8 * np.array([len(memory) for memory in memories], dtype=np.int64)
        chunks = np.empty((len(sizes), _CHUNK_FIELDS), dtype=np.int64)
        chunks[:, _FIRST], chunks[:, _BITS] = np.cumsum(sizes) - sizes, sizes
        chunks[:, _ENDS] = np.concatenate([np.cumsum(row.lengths) for row in rows])
        counts = np.array([len(row.lengths) for row in rows], dtype=np.int64)
        state = np.zeros((len(rows), _GROUP_STATE), dtype=np.int64)
        state[:, _CHUNK] = np.cumsum(counts) - counts
        self._groups = _Groups(data, coders, _as_array(b"".join(memories)), chunks, state)
        workers = team.workers
        self._rows = _Rows.empty(len(rows), vocabulary)
        self._buffers = _Buffers(
            cells=np.empty((workers, -(-vocabulary // CELL)), dtype=np.int32),
            inside=np.empty((workers, BLOCK), dtype=np.int64),
            vector=np.empty((workers, steering.head.shape[1]), dtype=np.int32),
            barrier=np.zeros(COUNTERS_APART, dtype=np.int64),
        )

    @property
    def streams(self) -> tuple[np.ndarray, ...]:
        """The bytes that are read, and the state, for a decoder on another device: the fields of `_Groups`."""
        return tuple(self._groups)

    def step(self, position: int, logits: np.ndarray) -> np.ndarray:
        """The tokens at one position of the first groups, int64 [rows]. logits: int32 [rows, vocabulary or more]."""
        count = len(logits)
        return self.read(np.arange(count), np.full(count, position), np.ones(count, dtype=np.int64), logits)

    def steps(
        self, sequences: Any, written: np.ndarray, first: int, last: int, ends: np.ndarray, report: Report
    ) -> None:
        """Decode positions from `first` to last - 1 of all groups, step by step, each after the token before it.

        sequences: `Sequences` of the LM that have read what is before first - 1; written: int64 [groups, last or more],
        with the tokens at first - 1, takes the others; ends: tokens of each group, int64 [groups], in descending order;
        report: is called with the number of new tokens.
        """
        for t in range(first, last):
            live = live_groups(ends, t)
            sequences.step(written[:live, t - 1])
            written[:live, t] = self.step(t, sequences.placed_logits(slice(live)))
            report(live)

    def read(self, groups: np.ndarray, positions: np.ndarray, counts: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """The tokens at some positions of different groups, int64 [rows].

        groups, positions, counts: int64 [n]: of each group, its number, the position after those that were read, and
        how many are to be read; logits: int32 [rows, vocabulary or more], of the first group, then of the next one.
        """
        if len(logits) > len(self._rows.best):
            self._rows = _Rows.empty(len(logits), len(self._steering.scale))
        runs = np.stack([groups, positions, counts], axis=1)
        tokens = np.empty(len(logits), dtype=np.int64)

        def work(worker: int, workers: int) -> None:
            _decode(runs, logits, self._share, self._steering, self._tables, self._groups, self._rows, self._buffers,
                    tokens, worker, workers)  # fmt: skip

        self._team.run(work)
        return tokens


# ---- a chunk, explained token by token


@dataclass(frozen=True)
class Explained:
    """The positions of a chunk as the coder sees them.

    winners: the index of the winner in `ids`, int64 [positions]; probability: of the token under its memory, float64
    [positions]; ids: the best tokens of the LM alone, in its order, int32 [positions, COMPETITORS + 1], -1 if there are
    fewer; probabilities: theirs under the memory, float64 [positions, COMPETITORS + 1].
    """

    winners: np.ndarray
    probability: np.ndarray
    ids: np.ndarray
    probabilities: np.ndarray


@allocating
def _explain(chunk, share, memory, steering, powers, winners, chosen, wholes, steered):
    """The winner, and the frequencies of the token, of all tokens, and of the best ones, as in `_encode`."""
    moves, changes = np.zeros(COMPETITORS, dtype=np.int32), np.zeros(COMPETITORS, dtype=np.int64)
    vector, reader = np.empty(steering.head.shape[1], dtype=np.int32), np.zeros(READER_STATE, dtype=np.int64)
    tokens, ids, below, entropy = chunk.tokens, chunk.ids, chunk.below, chunk.entropy
    for t in range(len(tokens)):
        if share > 0:
            read_bits(share, entropy[t], memory, 0, np.int64(8 * len(memory)), reader)
            features = features_of(reader[WINDOW_BITS], steering.parities)
            steer(t, features, tilt_of(share, entropy[t]), steering, ids[t], moves, vector)
        winners[t], _, wholes[t] = find_winner(ids[t], below[t], moves, chunk.total[t], powers, changes)
        chosen[t] = frequency(chunk.near[t, tokens[t] % BLOCK], powers)
        for k in range(len(ids[t])):
            if ids[t, k] < 0:
                break
            steered[t, k] = frequency(below[t, k], powers) + (changes[k] if k < COMPETITORS else 0)
            if ids[t, k] == tokens[t]:
                chosen[t] = steered[t, k]


def explain(predicted: Predictions, memory: bytes, steering: Steering, share: int) -> Explained:
    """A chunk under its memory, token by token. share: in steps of 1/1024."""
    n = len(predicted.tokens)
    winners, chosen, wholes = (np.zeros(n, dtype=np.int64) for _ in range(3))
    steered = np.zeros(predicted.ids.shape, dtype=np.int64)
    read = _as_array(memory if share else b"")
    _explain(predicted, share, read, steering, arithmetic.powers(), winners, chosen, wholes, steered)
    return Explained(winners, chosen / wholes, predicted.ids, steered / wholes[:, None])
