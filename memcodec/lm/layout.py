"""The layout of the data of the CPU kernels: named tuples of arrays, and functions that make them.

Matrices lie in panels of COLUMNS columns (see `product`). `rows` are the rows of one pass: one for each new position.
"""

from typing import NamedTuple

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture
from memcodec.lm.compiled import COUNTERS_APART
from memcodec.lm.instructions import COLUMNS
from memcodec.lm.product import TILE_ROWS, columns_of, padded, panels
from memcodec.lm.team import Team
from memcodec.lm.weights import ExactWeights

PAGE = 2 * COLUMNS  # the positions of a cache are a multiple of this
FEW_ROWS = 4  # of a pass in which each worker makes the inputs of products by itself, instead of waiting for others
_LINE = 64  # bytes of a cache line


class Sizes(NamedTuple):
    """The properties of the architecture that kernels need. Flags are 0 or 1; plain: see `product.multiply`."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    gated: int
    head_norm: int
    rotary: int
    plain: int
    head_block: int  # of the Hadamard transform of queries and keys
    inner_block: int  # of the one before the second matrix of the MLP
    epsilon: float
    attention_scale: np.float32
    gate_first: np.float32  # see `arithmetic.GATES`
    gate_second: np.float32


class Weights(NamedTuple):
    """Weights in panels, uint8 [layers, bytes], with a scale and a bias for each column, float32 [layers, columns]."""

    embedding: np.ndarray  # int8 [vocabulary, hidden]
    embedding_scale: np.ndarray  # float32 [vocabulary]
    position: np.ndarray  # float32 [positions, hidden]; empty for models with rotary positions
    query_gain: np.ndarray  # float32 [layers, head_size]
    key_gain: np.ndarray
    qkv: np.ndarray
    qkv_scale: np.ndarray
    qkv_bias: np.ndarray
    mix: np.ndarray
    mix_scale: np.ndarray
    mix_bias: np.ndarray
    up: np.ndarray  # if gated, each panel has 16 columns of the gate and the 16 columns that they multiply
    up_scale: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    down_scale: np.ndarray
    down_bias: np.ndarray
    head: np.ndarray  # uint8 [bytes]
    head_scale: np.ndarray  # float32 [columns]
    head_bias: np.ndarray
    cosine: np.ndarray  # float32 [positions, head_size / 2]
    sine: np.ndarray


class Cache(NamedTuple):
    """Keys and values of each slot (one sequence), in panels: the columns are positions of keys, and entries of values.

    The first `shared` positions may be the same for all slots and are stored once; each slot's own come after them.
    Scales are stored for every slot and all positions.
    """

    keys: np.ndarray  # uint8 [layers, slots, key_heads, bytes]
    flat_keys: np.ndarray  # the same memory as one row
    key_scale: np.ndarray  # float32 [layers, slots, key_heads, positions]
    values: np.ndarray  # int8
    flat_values: np.ndarray
    value_scale: np.ndarray
    shared: int  # positions, whole pages
    shared_keys: np.ndarray  # uint8 [layers * key_heads * bytes]
    shared_values: np.ndarray


class Workspace(NamedTuple):
    """The results that the stages of a pass exchange, and buffers of each worker, [workers, ...].

    After the rows of a pass, the inputs have FEW_ROWS rows for each worker.
    """

    x: np.ndarray  # float32 [rows, hidden], the residual stream
    inputs: np.ndarray  # int8 [rows and more, widest], of the next product
    flat: np.ndarray  # the same memory as one row
    input_scale: np.ndarray  # float32 [rows and more]
    input_offset: np.ndarray  # int32 [rows and more], see `product.multiply`
    outputs: np.ndarray  # float32 [rows, widest]
    queries: np.ndarray  # int8 [key_heads * rows * heads of a key head * padded head_size]
    query_scale: np.ndarray  # float32 [key_heads * rows * heads of a key head]
    query_offset: np.ndarray  # int32, the same
    row: np.ndarray  # float32 [workers, widest]
    tile: np.ndarray  # int32 [workers, ...], sums of products
    gates: np.ndarray  # float32 [workers, COLUMNS]
    scores: np.ndarray  # int32 [workers, ...], products of queries and keys
    portions: np.ndarray  # float32 [workers, positions], attention weights times scales of values
    shares: np.ndarray  # uint8 [workers, ...], the same as integers
    share_scale: np.ndarray  # float32 [workers, ...], of each row of the shares
    counters: np.ndarray  # int64; the first counts at barriers, the others the units of work that are taken in a stage


class Rows(NamedTuple):
    """The input of a pass. Rows are those of the first sequence, then those of the second, and so on; all int64."""

    tokens: np.ndarray  # [rows]; -1 - i where the row is vectors[i] instead of a token
    vectors: np.ndarray  # float32 [n, hidden]
    slot: np.ndarray  # [rows]
    position: np.ndarray  # [rows]
    slots: np.ndarray  # [sequences]
    counts: np.ndarray  # [sequences], rows


def sizes_of(a: Architecture, plain: bool) -> Sizes:
    """The sizes of an architecture."""
    return Sizes(
        hidden=a.hidden,
        layers=a.layers,
        heads=a.heads,
        key_heads=a.key_heads,
        head_size=a.head_size,
        inner=a.inner,
        gated=int(a.gated),
        head_norm=int(a.head_norm),
        rotary=int(a.rotary is not None),
        plain=int(plain),
        head_block=arithmetic.block_of(a.head_size),
        inner_block=arithmetic.block_of(a.inner, arithmetic.MOST_ROTATED),
        epsilon=float(a.epsilon),
        attention_scale=arithmetic.attention_scale(a.head_size),
        gate_first=arithmetic.gate(a.gate)[0],
        gate_second=arithmetic.gate(a.gate)[1],
    )


def pack(exact: ExactWeights, team: Team) -> Weights:
    """The weights of an LM in panels."""
    a, tensors = exact.architecture, exact.tensors

    def row(name: str, size: int, fill: float, count: int | None = a.layers) -> np.ndarray:
        shape = (size,) if count is None else (count, size)
        return tensors.get(name, np.full(shape, fill, dtype=np.float32))

    def linear(name: str, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = _gate_columns(a.inner) if name == "up" and a.gated else columns_of(rows)
        packed = panels(tensors[name], columns, team)
        scale, bias = (
            np.ascontiguousarray(np.where(columns < 0, np.float32(0), x[:, columns]))
            for x in (tensors[name + ".scale"], row(name + ".bias", rows, 0))
        )
        return packed, scale, bias

    heads = (a.heads + 2 * a.key_heads) * a.head_size
    columns = columns_of(a.vocabulary)
    head_scale, head_bias = (
        np.where(columns < 0, np.float32(0), x[columns])
        for x in (tensors["head.scale"], row("head.bias", a.vocabulary, 0, None))
    )
    no_rotation = np.zeros((1, a.head_size // 2), dtype=np.float32)
    return Weights(
        tensors["embedding"], tensors["embedding.scale"],
        tensors.get("position", np.empty((0, a.hidden), dtype=np.float32)),
        row("query.gain", a.head_size, 1), row("key.gain", a.head_size, 1),
        *linear("qkv", heads), *linear("mix", a.hidden),
        *linear("up", (1 + a.gated) * a.inner), *linear("down", a.hidden),
        panels(tensors["head"][None], columns, team)[0], head_scale, head_bias,
        tensors.get("cosine", no_rotation), tensors.get("sine", no_rotation),
    )  # fmt: skip


def _gate_columns(inner: int) -> np.ndarray:
    """Like `columns_of`, for the rows of a gate and then those that it multiplies: alternately 16 of each."""
    half = COLUMNS // 2
    blocks = np.full((-(-inner // half), 2, half), -1, dtype=np.int64)
    for row in range(inner):
        for which in range(2):
            blocks[row // half, which, row % half] = which * inner + row
    return blocks.reshape(-1)


def new_cache(a: Architecture, slots: int, own: int, shared: int) -> Cache:
    """An empty cache with `own` positions in each slot after `shared` ones, both whole pages."""
    width = -(-a.head_size // COLUMNS) * COLUMNS
    heads = (a.layers, slots, a.key_heads)
    keys = np.zeros((*heads, own * padded(a.head_size)), dtype=np.uint8)
    values = np.zeros((*heads, own * width), dtype=np.int8)
    key_scale, value_scale = (np.zeros((*heads, shared + own), dtype=np.float32) for _ in range(2))
    no_keys, no_values = np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int8)
    return Cache(keys, keys.reshape(-1), key_scale, values, values.reshape(-1), value_scale, shared, no_keys, no_values)


def attention_rows(a: Architecture) -> int:
    """The rows of a pass, times the query heads of a key head, that one worker attends at a time."""
    repeat = a.heads // a.key_heads
    return max(1, TILE_ROWS // repeat) * repeat


def new_workspace(a: Architecture, workers: int, rows: int, positions: int) -> Workspace:
    """Buffers for passes of up to `rows` rows over caches of `positions` positions."""
    mixed = a.heads * a.head_size
    heads = (a.heads + 2 * a.key_heads) * a.head_size
    widest = max(*(-(-n // COLUMNS) * COLUMNS for n in (heads, a.inner)), a.hidden, mixed)
    more = rows + FEW_ROWS * workers
    inputs = _aligned(more, -(-max(a.hidden, mixed, a.inner) // _LINE) * _LINE, np.int8)
    block = attention_rows(a)
    return Workspace(
        x=_aligned(rows, a.hidden, np.float32),
        inputs=inputs,
        flat=inputs.reshape(-1),
        input_scale=np.empty(more, dtype=np.float32),
        input_offset=np.empty(more, dtype=np.int32),
        outputs=_aligned(rows, widest, np.float32),
        queries=_aligned(rows * a.heads, padded(a.head_size), np.int8).reshape(-1),
        query_scale=np.empty(rows * a.heads, dtype=np.float32),
        query_offset=np.empty(rows * a.heads, dtype=np.int32),
        row=_aligned(workers, widest, np.float32),
        tile=_buffers(workers, 2 * max(block, TILE_ROWS) * COLUMNS, np.int32),
        gates=_buffers(workers, COLUMNS, np.float32),
        scores=_buffers(workers, block * positions, np.int32),
        portions=_buffers(workers, positions, np.float32),
        shares=_buffers(workers, max(block * positions, padded(a.head_size)), np.uint8),
        share_scale=_buffers(workers, block, np.float32),
        counters=np.zeros((1 + STAGES * a.layers) * COUNTERS_APART, dtype=np.int64),
    )


STAGES = 6  # of a layer that divide their work into units


def _aligned(rows: int, columns: int, dtype: type) -> np.ndarray:
    """An array [rows, columns] that begins at a cache line."""
    size = rows * columns * np.dtype(dtype).itemsize
    memory = np.empty(size + _LINE, dtype=np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(rows, columns)


def _buffers(workers: int, size: int, dtype: type) -> np.ndarray:
    """A buffer for each worker, [workers, size or more], with space between them so that no cache line is shared."""
    return np.empty((workers, size + 256 // np.dtype(dtype).itemsize), dtype=dtype)
