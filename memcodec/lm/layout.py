"""The layout of the data of the CPU kernels: named tuples of arrays, and functions that make them.

Matrices lie in panels of COLUMNS columns (see `product`). `rows` are the rows of one pass: one for each new position.
"""

from typing import NamedTuple

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture
from memcodec.lm.product import COLUMNS, TILE_ROWS, columns_of, panels
from memcodec.lm.weights import ExactWeights

PAGE = 2 * COLUMNS  # the positions of a cache are a multiple of this


class Sizes(NamedTuple):
    """The properties of the architecture that kernels need. Flags are 0 or 1; fallback: see `product.multiply`."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    gated: int
    layer_norm: int
    head_norm: int
    rotary: int
    fallback: int
    epsilon: float
    attention_scale: np.float32
    input_limit: np.float32  # highest_input of `hidden` entries
    mixed_limit: np.float32  # of heads * head_size entries
    inner_limit: np.float32  # of `inner` entries
    query_limit: np.float32


class Weights(NamedTuple):
    """Weights in panels, int8 [layers, bytes], with a scale and a bias for each column, float32 [layers, columns]."""

    embedding: np.ndarray  # int8 [vocabulary, hidden]
    embedding_scale: np.ndarray  # float32 [vocabulary]
    position: np.ndarray  # float32 [positions, hidden]; empty for models with rotary positions
    attention_gain: np.ndarray  # float32 [layers, hidden], like the next three
    attention_shift: np.ndarray
    mlp_gain: np.ndarray
    mlp_shift: np.ndarray
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
    gain: np.ndarray  # float32 [hidden], of the last norm
    shift: np.ndarray
    head: np.ndarray  # int8 [bytes]
    head_scale: np.ndarray  # float32 [columns]
    cosine: np.ndarray  # float32 [positions, head_size / 2]
    sine: np.ndarray
    gate: np.ndarray  # float32 [20481]
    powers: np.ndarray  # int32 [1024]


class Cache(NamedTuple):
    """Keys and values of each slot (one sequence), in panels: the columns are positions of keys, and pairs of values.

    The first `shared` positions may be the same for all slots and are stored once; each slot's own come after them.
    Scales are stored for every slot and all positions.
    """

    keys: np.ndarray  # int8 [layers, slots, key_heads, bytes]
    flat_keys: np.ndarray  # the same memory as one row
    key_scale: np.ndarray  # float32 [layers, slots, key_heads, positions]
    values: np.ndarray
    flat_values: np.ndarray
    value_scale: np.ndarray
    shared: int  # positions, whole pages
    shared_keys: np.ndarray  # int8 [layers * key_heads * bytes]
    shared_values: np.ndarray


class Workspace(NamedTuple):
    """The results that the stages of a pass exchange, and buffers of each worker, [workers, ...]."""

    x: np.ndarray  # float32 [rows, hidden], the residual stream
    inputs: np.ndarray  # int16 [rows, widest], of the next product
    flat: np.ndarray  # the same memory as one row
    input_scale: np.ndarray  # float32 [rows]
    outputs: np.ndarray  # float32 [rows, widest]
    queries: np.ndarray  # int16 [rows, heads * head_size]
    query_scale: np.ndarray  # float32 [rows, heads]
    tile: np.ndarray  # int32 [workers, ...], sums of products
    gates: np.ndarray  # float32 [workers, COLUMNS]
    steps: np.ndarray  # int32 [workers, COLUMNS], indices into the table of the gate
    query_block: np.ndarray  # int16 [workers, ...], queries that are multiplied together
    block_scale: np.ndarray  # float32 [workers, ...], a scale of each
    scores: np.ndarray  # int32 [workers, ...], their products with keys
    portions: np.ndarray  # float32 [workers, positions], attention weights times scales of values
    shares: np.ndarray  # int16 [workers, ...], the same as integers
    barrier: np.ndarray  # int64 [1]


class Rows(NamedTuple):
    """The input of a pass. Rows are those of the first sequence, then those of the second, and so on; all int64."""

    tokens: np.ndarray  # [rows]; -1 - i where the row is vectors[i] instead of a token
    vectors: np.ndarray  # float32 [n, hidden]
    slot: np.ndarray  # [rows]
    position: np.ndarray  # [rows]
    slots: np.ndarray  # [sequences]
    starts: np.ndarray  # [sequences], the position of the first row
    counts: np.ndarray  # [sequences], rows


def sizes_of(a: Architecture, fallback: bool) -> Sizes:
    """The sizes of an architecture."""
    return Sizes(
        hidden=a.hidden,
        layers=a.layers,
        heads=a.heads,
        key_heads=a.key_heads,
        head_size=a.head_size,
        inner=a.inner,
        gated=int(a.gated),
        layer_norm=int(a.layer_norm),
        head_norm=int(a.head_norm),
        rotary=int(a.rotary is not None),
        fallback=int(fallback),
        epsilon=float(a.epsilon),
        attention_scale=arithmetic.attention_scale(a.head_size),
        input_limit=np.float32(arithmetic.highest_input(a.hidden)),
        mixed_limit=np.float32(arithmetic.highest_input(a.heads * a.head_size)),
        inner_limit=np.float32(arithmetic.highest_input(a.inner)),
        query_limit=np.float32(arithmetic.highest_query(a.head_size)),
    )


def pack(exact: ExactWeights) -> Weights:
    """The weights of an LM in panels."""
    a, tensors = exact.architecture, exact.tensors

    def row(name: str, size: int, fill: float, count: int | None = a.layers) -> np.ndarray:
        shape = (size,) if count is None else (count, size)
        return tensors.get(name, np.full(shape, fill, dtype=np.float32))

    def linear(name: str, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = _gate_columns(a.inner) if name == "up" and a.gated else columns_of(rows)
        packed = np.stack([panels(layer, columns) for layer in tensors[name]])
        scale, bias = (
            np.where(columns < 0, np.float32(0), x[:, columns])
            for x in (tensors[name + ".scale"], row(name + ".bias", rows, 0))
        )
        return packed, scale, bias

    heads = (a.heads + 2 * a.key_heads) * a.head_size
    head = "embedding" if a.tied else "head"
    columns = columns_of(a.vocabulary)
    head_scale = np.where(columns < 0, np.float32(0), tensors[head + ".scale"][columns])
    no_rotation = np.zeros((1, a.head_size // 2), dtype=np.float32)
    return Weights(
        tensors["embedding"], tensors["embedding.scale"],
        tensors.get("position", np.empty((0, a.hidden), dtype=np.float32)),
        row("attention.gain", a.hidden, 1), row("attention.shift", a.hidden, 0),
        row("mlp.gain", a.hidden, 1), row("mlp.shift", a.hidden, 0),
        row("query.gain", a.head_size, 1), row("key.gain", a.head_size, 1),
        *linear("qkv", heads), *linear("mix", a.hidden),
        *linear("up", (1 + a.gated) * a.inner), *linear("down", a.hidden),
        row("gain", a.hidden, 1, None), row("shift", a.hidden, 0, None),
        panels(tensors[head], columns), head_scale,
        tensors.get("cosine", no_rotation), tensors.get("sine", no_rotation), arithmetic.gate(a.gate),
        arithmetic.powers(),
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
    keys = np.zeros((*heads, own * a.head_size), dtype=np.int8)
    values = np.zeros((*heads, own * width), dtype=np.int8)
    key_scale, value_scale = (np.zeros((*heads, shared + own), dtype=np.float32) for _ in range(2))
    nothing = np.zeros(0, dtype=np.int8)
    return Cache(keys, keys.reshape(-1), key_scale, values, values.reshape(-1), value_scale, shared, nothing, nothing)


def new_workspace(a: Architecture, workers: int, rows: int, positions: int) -> Workspace:
    """Buffers for passes of up to `rows` rows over caches of `positions` positions."""
    mixed = a.heads * a.head_size
    heads = (a.heads + 2 * a.key_heads) * a.head_size
    widest = max(*(-(-n // COLUMNS) * COLUMNS for n in (heads, a.inner)), a.hidden, mixed)
    inputs = np.empty((rows, max(a.hidden, mixed, a.inner)), dtype=np.int16)
    block = max(TILE_ROWS, a.heads // a.key_heads)
    return Workspace(
        x=np.empty((rows, a.hidden), dtype=np.float32),
        inputs=inputs,
        flat=inputs.reshape(-1),
        input_scale=np.empty(rows, dtype=np.float32),
        outputs=np.empty((rows, widest), dtype=np.float32),
        queries=np.empty((rows, mixed), dtype=np.int16),
        query_scale=np.empty((rows, a.heads), dtype=np.float32),
        tile=_buffers(workers, 2 * block * COLUMNS, np.int32),
        gates=_buffers(workers, COLUMNS, np.float32),
        steps=_buffers(workers, COLUMNS, np.int32),
        query_block=_buffers(workers, block * a.head_size, np.int16),
        block_scale=_buffers(workers, block, np.float32),
        scores=_buffers(workers, block * positions, np.int32),
        portions=_buffers(workers, positions, np.float32),
        shares=_buffers(workers, block * positions, np.int16),
        barrier=np.zeros(1, dtype=np.int64),
    )


def _buffers(workers: int, size: int, dtype: type) -> np.ndarray:
    """A buffer for each worker, [workers, size or more], with space between them so that no cache line is shared."""
    return np.empty((workers, size + 256 // np.dtype(dtype).itemsize), dtype=dtype)
