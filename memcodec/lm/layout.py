"""The layout of the data of the CPU kernels: named tuples of arrays, and functions that make them.

Matrices lie in panels of COLUMNS columns (see `product`). `rows` are the rows of one pass: one for each new position.
"""

from typing import NamedTuple

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture
from memcodec.lm.compiled import COUNTERS_APART
from memcodec.lm.instructions import COLUMNS, LINE
from memcodec.lm.product import TILE_ROWS, columns_of, padded, panels, rows_in
from memcodec.lm.team import Team
from memcodec.lm.weights import Tensors

PAGE = 2 * COLUMNS  # the positions of a cache are a multiple of this
FEW_ROWS = 4  # up to this many, each worker makes the inputs of products by itself, instead of waiting for others


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


def _columns(a: Architecture, name: str) -> np.ndarray:
    """The row of a matrix that each column of its panels holds: see `columns_of`."""
    if name == "up" and a.gated:
        return _gate_columns(a.inner)
    heads = (a.heads + 2 * a.key_heads) * a.head_size
    return columns_of({"qkv": heads, "up": a.inner, "head": a.vocabulary}.get(name, a.hidden))


MATRICES = ("qkv", "mix", "up", "down", "head")


def in_panels(a: Architecture, tensors: Tensors, team: Team) -> Tensors:
    """The tensors of an LM (see `ExactWeights`) with matrices in panels, uint8 [layers, bytes]; the head is one layer.

    Adds "head.rows", the head row by row.
    """
    head = tensors["head"]
    matrices = {name: tensors[name] for name in MATRICES} | {"head": head[None]}
    packed = {name: panels(matrix, _columns(a, name), team) for name, matrix in matrices.items()}
    return tensors | packed | {"head.rows": head}


def in_rows(a: Architecture, tensors: Tensors) -> Tensors:
    """The inverse of `in_panels`."""
    inner = {"mix": a.heads * a.head_size, "down": a.inner}
    rows = {name: rows_in(tensors[name], _columns(a, name), inner.get(name, a.hidden)) for name in MATRICES[:-1]}
    rows["head"] = tensors["head.rows"]
    return {name: rows.get(name, tensor) for name, tensor in tensors.items() if name != "head.rows"}


def pack(a: Architecture, tensors: Tensors, team: Team) -> Weights:
    """The weights of an LM as the kernels read them. tensors: see `ExactWeights`, or in the form of `in_panels`."""
    if "head.rows" not in tensors:
        tensors = in_panels(a, tensors, team)

    def by_column(name: str, part: str) -> np.ndarray:
        """Scales or biases, for each column of the panels."""
        columns = _columns(a, name)
        values = tensors.get(f"{name}.{part}")
        if values is None:
            return np.zeros((*tensors[f"{name}.scale"].shape[:-1], len(columns)), dtype=np.float32)
        return np.ascontiguousarray(np.where(columns < 0, np.float32(0), values[..., columns]))

    def linear(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tensors[name], by_column(name, "scale"), by_column(name, "bias")

    head, head_scale, head_bias = linear("head")
    no_gain = np.ones((a.layers, a.head_size), dtype=np.float32)
    no_rotation = np.zeros((1, a.head_size // 2), dtype=np.float32)
    return Weights(
        tensors["embedding"], tensors["embedding.scale"],
        tensors.get("position", np.empty((0, a.hidden), dtype=np.float32)),
        tensors.get("query.gain", no_gain), tensors.get("key.gain", no_gain),
        *linear("qkv"), *linear("mix"), *linear("up"), *linear("down"),
        head[0], head_scale, head_bias,
        tensors.get("cosine", no_rotation), tensors.get("sine", no_rotation),
    )  # fmt: skip


def _gate_columns(inner: int) -> np.ndarray:
    """Like `columns_of`, for the rows of a gate and then those that it multiplies: alternately 16 of each."""
    half = COLUMNS // 2
    rows = np.arange(-(-inner // half) * half).reshape(-1, 1, half)
    return np.where(rows < inner, rows + np.array([[0], [inner]]), -1).reshape(-1)


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
    inputs = aligned(more, -(-max(a.hidden, mixed, a.inner) // LINE) * LINE, np.int8)
    block = attention_rows(a)
    return Workspace(
        x=aligned(rows, a.hidden, np.float32),
        inputs=inputs,
        flat=inputs.reshape(-1),
        input_scale=np.empty(more, dtype=np.float32),
        input_offset=np.empty(more, dtype=np.int32),
        outputs=aligned(rows, widest, np.float32),
        queries=aligned(rows * a.heads, padded(a.head_size), np.int8).reshape(-1),
        query_scale=np.empty(rows * a.heads, dtype=np.float32),
        query_offset=np.empty(rows * a.heads, dtype=np.int32),
        row=aligned(workers, widest, np.float32),
        tile=_buffers(workers, 2 * max(block, TILE_ROWS) * COLUMNS, np.int32),
        gates=_buffers(workers, COLUMNS, np.float32),
        scores=_buffers(workers, block * positions, np.int32),
        portions=_buffers(workers, positions, np.float32),
        shares=_buffers(workers, max(block * positions, padded(a.head_size)), np.uint8),
        share_scale=_buffers(workers, block, np.float32),
        counters=np.zeros((1 + STAGES * a.layers) * COUNTERS_APART, dtype=np.int64),
    )


STAGES = 6  # of a layer that divide their work into units


def aligned(rows: int, columns: int, dtype: type) -> np.ndarray:
    """An array [rows, columns] that begins at a cache line."""
    size = rows * columns * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, dtype=np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(rows, columns)


def _buffers(workers: int, size: int, dtype: type) -> np.ndarray:
    """A buffer for each worker, [workers, size or more], with space between them so that no cache line is shared."""
    return np.empty((workers, size + 256 // np.dtype(dtype).itemsize), dtype=dtype)
