"""The exact LM on a GPU, with kernels in Triton: the state between passes, and the launches of the kernels."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from memcodec.errors import MachineError, MissingDependencyError, first_line, needs_torch
from memcodec.lm import arithmetic, gpu_attention, gpu_kernels, selftest
from memcodec.lm.architecture import Architecture
from memcodec.lm.device import PrefixState
from memcodec.lm.gpu_attention import ROOM, TILE_FIELDS
from memcodec.lm.gpu_kernels import launch
from memcodec.lm.gpu_sizes import BlockSizes, block_sizes_of, capacity_of, power_of_two
from memcodec.lm.rotation import rotated_vectors
from memcodec.lm.sequences import (
    READ_ROWS,
    Rows,
    SequenceInput,
    check_numbers,
    check_pass,
    check_step,
    joined,
)
from memcodec.lm.weights import ExactWeights

try:
    import torch
    import triton

    from memcodec.lm.transfer import to_device, to_host
except ImportError as error:
    raise needs_torch(error) from error

_kernels: Any = gpu_kernels  # functions in Triton have no types
_attention: Any = gpu_attention

_ROW_FIELDS = 3  # of a row: token, slot, position
_ALIGNED = 4  # int32 in 16 bytes: Triton compiles kernels again for addresses that are not multiples of them
_STEP_REGISTERS = 72  # of a thread in attention of a step: with more, fewer programs run at one time
_LEAST_HEIGHT, _LEAST_DEPTH = 16, 32  # of products of int8


@dataclass(frozen=True)
class Linear:
    """A linear layer: matrix int8 [columns, inner]; scale, bias: float32 [columns]."""

    matrix: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None


class GpuLM:
    """The layers on a GPU, or in Triton's interpreter on the CPU."""

    def __init__(self, weights: ExactWeights, device: str, block_sizes: BlockSizes | None = None) -> None:
        """device: of torch."""
        self.device = torch.device(device)
        self.block_sizes = block_sizes or block_sizes_of(device)
        self.kernels = f"triton on {device}"
        self.has_coder = True
        self.coder: Any = None  # a weak reference to that of `memcodec.coding.placed`, which makes it
        self.architecture = weights.architecture
        self.vocabulary = weights.architecture.vocabulary
        tensors = {name: np.array(value, order="C") for name, value in weights.tensors.items()}
        self.tensors = {name: torch.from_numpy(value).to(self.device) for name, value in tensors.items()}
        names = ("qkv", "mix", "up", "down")
        self.layers = [{name: self._linear(name, i) for name in names} for i in range(self.architecture.layers)]
        self.head = self._linear("head")
        self.capacity = capacity_of(weights.architecture, self.device)  # of the memory that the weights leave

    def _linear(self, name: str, *layer: int) -> Linear:
        t = self.tensors
        bias = t[name + ".bias"][layer] if name + ".bias" in t else None
        return Linear(t[name][layer], t[name + ".scale"][layer], bias)

    def sequences(self, slots: int, positions: int, rows: int, prefix: PrefixState | None = None) -> "GpuSequences":
        """A cache for `slots` sequences of `positions` positions, and buffers for passes of up to `rows` rows.

        prefix: the state after the prefix that they have read already.
        """
        return GpuSequences(self, slots, positions, rows, prefix)

    def prefix_state(self, prefix: np.ndarray) -> PrefixState:
        """The state after a prefix, int64 [tokens]."""
        sequences = GpuSequences(self, 1, len(prefix), min(len(prefix), READ_ROWS))
        for first in range(0, len(prefix), READ_ROWS):
            tokens = prefix[first : first + READ_ROWS]
            sequences.forward([SequenceInput(0, tokens)])
        logits = sequences.logits(np.array([len(tokens) - 1]))[0]
        cache = sequences.cache
        return PrefixState(len(prefix), cache.integers[:, :1], cache.scales[:, :1], logits)

    def own_positions(self, prefix: int) -> int:
        """The number of positions of a prefix of this length that each sequence stores itself: all."""
        return prefix

    def embed(self, pass_: "Pass", vectors: torch.Tensor, buffers: "Buffers") -> None:
        """The residual stream before the first layer."""
        a, t, rows = self.architecture, self.tensors, pass_.rows
        width = power_of_two(a.hidden)
        block = max(1, self.block_sizes.entries // width)
        launch(
            _kernels.embed, (-(-rows // block),), pass_.tokens, pass_.positions, t["embedding"], t["embedding.scale"],
            vectors, t.get("position", buffers.x), buffers.x, rows,
            SIZE=a.hidden, WIDTH=width, ROWS=block, LEARNED=a.rotary is None, warps=_warps(block * width),
        )  # fmt: skip

    def quantize(self, x: torch.Tensor, buffers: "Buffers", rows: int, size: int, norm: bool) -> None:
        """quantize(x), or norm(x), of some rows of `size` entries, as the inputs of the next product."""
        width = power_of_two(size)
        block = max(1, self.block_sizes.entries // width)
        launch(
            _kernels.quantize, (-(-rows // block),), x, buffers.inputs, buffers.input_scale, rows,
            SIZE=size, WIDTH=width, ROWS=block, NORM=norm, EPSILON=self.architecture.epsilon,
            warps=_warps(block * width),
        )  # fmt: skip

    def linear(self, linear: Linear, buffers: "Buffers", out: torch.Tensor, rows: int, kind: int) -> None:
        """linear(v, s, W) of the inputs into `out`. kind: of `gpu_kernels.product`."""
        multiply(linear, buffers.inputs, buffers.input_scale, out, rows, kind, self.block_sizes)

    def heads(self, pass_: "Pass", buffers: "Buffers", layer: int, cached: torch.Tensor, scales: torch.Tensor) -> None:
        """Queries into the buffers, keys and values into the cache."""
        a, t = self.architecture, self.tensors
        width, nothing = power_of_two(a.head_size), buffers.x
        block = max(1, self.block_sizes.entries // width)
        gains = (t["query.gain"][layer], t["key.gain"][layer]) if a.head_norm else (nothing, nothing)
        rotation = (t["cosine"], t["sine"]) if a.rotary is not None else (nothing, nothing)
        pairs = pass_.rows * (a.heads + 2 * a.key_heads)
        launch(
            _kernels.heads, (-(-pairs // block),), buffers.y, pass_.slots, pass_.positions, *gains, *rotation,
            buffers.q, buffers.q_scale, cached, scales, pass_.rows, cached.shape[2],
            HEADS=a.heads, KEY_HEADS=a.key_heads, SIZE=a.head_size, WIDTH=width,
            STAGES=_stages(arithmetic.block_of(a.head_size)), BLOCK=block, GAINS=a.head_norm,
            ROTARY=a.rotary is not None, EPSILON=a.epsilon, warps=_warps(block * width),
        )  # fmt: skip

    def attend(self, pass_: "Pass", buffers: "Buffers", cached: torch.Tensor, scales: torch.Tensor) -> None:
        """Attention, from the queries in the buffers to its outputs there."""
        a, room = self.architecture, cached.shape[2]
        about: dict[str, Any] = {
            "HEADS": a.heads, "KEY_HEADS": a.key_heads, "SIZE": a.head_size,
            "WIDTH": max(power_of_two(a.head_size), _LEAST_DEPTH),
            "FACTOR": float(arithmetic.attention_scale(a.head_size)),
        }  # fmt: skip
        if pass_.tiles is not None:
            launch(
                _attention.attend, (len(pass_.tiles), a.key_heads), buffers.q, buffers.q_scale, cached, scales,
                pass_.tiles, buffers.y, room,
                **about, ROWS=pass_.tile_height, PANEL=self.block_sizes.panel,
            )  # fmt: skip
            return
        logits, shares = buffers.of_attention(pass_.rows * room * a.heads)
        repeat = a.heads // a.key_heads
        launch(
            _attention.attend_step, (pass_.rows, a.key_heads), buffers.q, buffers.q_scale, cached, scales, pass_.slots,
            pass_.positions, logits, shares, buffers.y, room,
            **about, ROWS=power_of_two(repeat), HEIGHT=max(power_of_two(repeat + 1), _LEAST_HEIGHT),
            PANEL=self.block_sizes.step_panel, SPAN=self.block_sizes.span,
            registers=_STEP_REGISTERS if about["WIDTH"] <= 64 else None,
        )  # fmt: skip

    def gate(self, buffers: "Buffers", rows: int) -> None:
        """The inputs of the MLP's second matrix."""
        a = self.architecture
        first, second = map(float, arithmetic.gate(a.gate))
        block_of_transform = arithmetic.block_of(a.inner, arithmetic.MOST_ROTATED)
        width = max(min(power_of_two(a.inner), self.block_sizes.gate), block_of_transform)
        block = max(1, self.block_sizes.entries // width)
        launch(
            _kernels.gate, (-(-rows // block),), buffers.y, buffers.inputs, buffers.input_scale, rows,
            INNER=a.inner, GATED=a.gated, A=first, B=second, ROWS=block, WIDTH=width,
            STAGES=_stages(block_of_transform), warps=_warps(block * width),
        )  # fmt: skip

    def forward(self, pass_: "Pass", vectors: torch.Tensor, buffers: "Buffers", cache: "Cache") -> None:
        """All layers and the last norm, which leaves the inputs of the head in the buffers."""
        a, rows = self.architecture, pass_.rows
        self.embed(pass_, vectors, buffers)
        for layer, linear in enumerate(self.layers):
            cached, scales = cache.integers[layer], cache.scales[layer]
            self.quantize(buffers.x, buffers, rows, a.hidden, norm=True)
            self.linear(linear["qkv"], buffers, buffers.y, rows, gpu_kernels.STORE)
            self.heads(pass_, buffers, layer, cached, scales)
            self.attend(pass_, buffers, cached, scales)
            self.quantize(buffers.y, buffers, rows, a.heads * a.head_size, norm=False)
            self.linear(linear["mix"], buffers, buffers.x, rows, gpu_kernels.ADD)
            self.quantize(buffers.x, buffers, rows, a.hidden, norm=True)
            self.linear(linear["up"], buffers, buffers.y, rows, gpu_kernels.STORE)
            self.gate(buffers, rows)
            self.linear(linear["down"], buffers, buffers.x, rows, gpu_kernels.ADD)
        self.quantize(buffers.x, buffers, rows, a.hidden, norm=True)

    def write_logits(self, buffers: "Buffers", out: torch.Tensor) -> None:
        """The logits of the first rows of the last pass in units, int32 [rows, vocabulary]."""
        multiply(self.head, buffers.inputs, buffers.input_scale, out, len(out), gpu_kernels.UNITS, self.block_sizes)


@dataclass(frozen=True)
class Pass:
    """The rows of a pass, and their tiles for attention (see `gpu_attention.attend`); on the device, int32.

    tiles: None in a step, in which each row is of another sequence.
    """

    tokens: torch.Tensor  # [rows]
    slots: torch.Tensor
    positions: torch.Tensor
    tiles: torch.Tensor | None = None  # [tiles, TILE_FIELDS]
    tile_height: int = 0  # rows of queries of a tile

    @property
    def rows(self) -> int:
        """The number of rows, of all sequences together."""
        return len(self.tokens)


@dataclass(frozen=True)
class Cache:
    """Keys and values: int8 [layers, slots, 2 * key_heads, positions, head_size], scales float32 [..., positions]."""

    integers: torch.Tensor
    scales: torch.Tensor


class Buffers:
    """What the kernels of a pass of up to `rows` rows leave for each other."""

    def __init__(self, a: Architecture, rows: int, device: torch.device) -> None:
        mixed = a.heads * a.head_size
        widest = max((a.heads + 2 * a.key_heads) * a.head_size, (1 + a.gated) * a.inner)
        self.rows = rows
        self.x = torch.empty(rows * a.hidden, device=device)  # the residual stream
        self.y = torch.empty(rows * widest, device=device)  # outputs of products, and of attention
        self.inputs = torch.empty(rows * max(a.hidden, mixed, a.inner), dtype=torch.int8, device=device)
        self.input_scale = torch.empty(rows, device=device)
        self.q = torch.empty(rows * mixed, dtype=torch.int8, device=device)
        self.q_scale = torch.empty(rows * a.heads, device=device)
        numbers = rows * (_ROW_FIELDS + TILE_FIELDS) + _ROW_FIELDS * _ALIGNED
        self.numbers = torch.empty(numbers, dtype=torch.int32, device=device)  # of `Pass`
        self._logits = torch.empty(0, device=device)
        self._shares = torch.empty(0, dtype=torch.int8, device=device)

    def of_attention(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for intermediate results of `gpu_attention.attend_step`: float32 and int8 [size or more]."""
        if len(self._logits) < size:
            self._logits, self._shares = self._logits.new_empty(size), self._shares.new_empty(size)
        return self._logits, self._shares


def multiply(
    linear: Linear, v: torch.Tensor, s: torch.Tensor, out: torch.Tensor, rows: int, kind: int, sizes: BlockSizes
) -> None:
    """linear(v, s, W) of int8 [rows, inner] and float32 [rows] into `out`. kind: of `gpu_kernels.product`."""
    columns, inner = linear.matrix.shape
    height, width = min(max(power_of_two(rows), _LEAST_HEIGHT), sizes.rows), sizes.columns
    launch(
        _kernels.product, (-(-rows // height), -(-columns // width)),
        v, s, linear.matrix, linear.scale, linear.scale if linear.bias is None else linear.bias, out, rows,
        COLUMNS=columns, INNER=inner, BIAS=linear.bias is not None, KIND=kind, ROWS=height, WIDTH=width,
        DEPTH=min(max(power_of_two(inner), _LEAST_DEPTH), sizes.depth), stages=4,
    )  # fmt: skip


class GpuSequences:
    """`Sequences` on a GPU. lengths: positions of each so far, int64 [slots]."""

    def __init__(self, lm: GpuLM, slots: int, positions: int, rows: int, prefix: PrefixState | None = None) -> None:
        a = lm.architecture
        self.lm = lm
        self._first = 0 if prefix is None else prefix.length
        self.lengths = np.full(slots, self._first, dtype=np.int64)
        self._positions = min(positions, a.positions)
        room = -(-positions // ROOM) * ROOM
        shape = (a.layers, slots + 1, 2 * a.key_heads, room)  # with a slot for rows that nobody reads
        self.cache = Cache(
            torch.zeros(*shape, a.head_size, dtype=torch.int8, device=lm.device), torch.zeros(*shape, device=lm.device)
        )
        if prefix is not None:
            self.cache.integers[:, :, :, : prefix.length] = prefix.cached[:, :, :, : prefix.length]
            self.cache.scales[:, :, :, : prefix.length] = prefix.scales[:, :, :, : prefix.length]
        self._buffers = Buffers(a, max(rows, 1), lm.device)
        self._rows = 0  # of the last pass
        self._are_checked = False  # whether all of them are numbers

    def forward(self, inputs: list[SequenceInput]) -> None:
        """One pass."""
        lm, a = self.lm, self.lm.architecture
        check_pass(inputs, self.lengths, self._positions, lm.vocabulary)
        tokens, vectors = joined(inputs, a.hidden)
        slots = np.array([one.slot for one in inputs], dtype=np.int64)
        counts = np.array([len(one.tokens) for one in inputs], dtype=np.int64)
        starts = self.lengths[slots]
        self._reserve(len(tokens))
        pass_ = self.pass_of(tokens, slots, counts, starts)
        entering = self._buffers.x
        if len(vectors):
            entering = torch.from_numpy(rotated_vectors(vectors, a.layer_norm)).to(lm.device)
        lm.forward(pass_, entering, self._buffers, self.cache)
        self._rows, self._are_checked = len(tokens), False
        self.lengths[slots] += counts

    def step(self, tokens: np.ndarray) -> None:
        """One token of each of the first sequences."""
        check_step(tokens, self.lengths, self._positions, self.lm.vocabulary)
        self.forward([SequenceInput(slot, tokens[slot : slot + 1]) for slot in range(len(tokens))])

    def check_room(self, steps: np.ndarray) -> None:
        """Raise EncodeError if there is no room for some steps of each of the first sequences, int64 [sequences]."""
        lengths = self.lengths[: len(steps)] + steps - 1
        check_step(np.zeros(len(steps), dtype=np.int64), lengths, self._positions, self.lm.vocabulary)

    @property
    def positions_of_heads(self) -> int:
        """The number of positions in the cache of a sequence, of all heads of queries."""
        return self.cache.scales.shape[3] * self.lm.architecture.heads

    def _reserve(self, rows: int) -> None:
        """Buffers for this many rows."""
        if rows > self._buffers.rows:
            self._buffers = Buffers(self.lm.architecture, rows, self.lm.device)

    def pass_of(self, tokens: np.ndarray, slots: np.ndarray, counts: np.ndarray, starts: np.ndarray) -> Pass:
        """Copy the rows of a pass to the device. Arrays by sequence, but for the tokens."""
        a, rows = self.lm.architecture, len(tokens)
        repeat, is_step = a.heads // a.key_heads, counts.max() == 1
        height = power_of_two(max(repeat, self.lm.block_sizes.queries))
        first = np.cumsum(counts) - counts
        positions = np.arange(rows) - np.repeat(first - starts, counts)
        in_tile = height // repeat
        tiles_of = -(-counts // in_tile)
        one = np.repeat(np.arange(len(counts)), tiles_of)  # the sequence of each tile
        done = (np.arange(len(one)) - (np.cumsum(tiles_of) - tiles_of)[one]) * in_tile
        tiles = np.stack(
            [slots[one], first[one] + done, np.minimum(in_tile, counts[one] - done), starts[one] + done], axis=1
        )
        width = -(-rows // _ALIGNED) * _ALIGNED
        numbers = np.zeros(_ROW_FIELDS * width + tiles.size, dtype=np.int32)
        numbers[: _ROW_FIELDS * width].reshape(_ROW_FIELDS, width)[:, :rows] = (
            tokens, np.repeat(slots, counts), positions,
        )  # fmt: skip
        numbers[_ROW_FIELDS * width :] = tiles.reshape(-1)
        place = self._buffers.numbers[: len(numbers)]
        place.copy_(to_device(numbers, place.device), non_blocking=True)
        parts = place[: _ROW_FIELDS * width].view(_ROW_FIELDS, width)[:, :rows]
        if is_step:
            return Pass(parts[0], parts[1], parts[2])
        return Pass(parts[0], parts[1], parts[2], place[_ROW_FIELDS * width :].view(-1, TILE_FIELDS), height)

    def restart(self) -> None:
        """Return all sequences to where they began."""
        self.lengths[:] = self._first

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of some rows of the last pass, int32 [rows, vocabulary] in units."""
        units: np.ndarray = self._logits(rows).cpu().numpy()
        return units

    def placed_logits(self, rows: Rows) -> torch.Tensor | np.ndarray:
        """As `logits`, on the device, if the coder is there."""
        return self._logits(rows) if self.lm.has_coder else self.logits(rows)

    def _logits(self, rows: Rows) -> torch.Tensor:
        lm, buffers = self.lm, self._buffers
        chosen = np.arange(self._rows)[rows]
        v = buffers.inputs[: self._rows * lm.architecture.hidden].view(self._rows, -1)
        s = buffers.input_scale[: self._rows]
        if len(chosen) < self._rows:
            index = to_device(chosen, lm.device)
            v, s = v[index], s[index]
        scales = None if self._are_checked else to_host([buffers.input_scale[: self._rows]])
        out = torch.empty(len(chosen), lm.vocabulary, dtype=torch.int32, device=lm.device)
        multiply(lm.head, v, s, out, len(chosen), gpu_kernels.UNITS, lm.block_sizes)
        if scales is not None:  # once a pass, and while the device computes the logits
            check_numbers(scales()[0])
            self._are_checked = True
        return out


def _stages(block: int) -> int:
    """The number of stages of the Hadamard transform of a block."""
    return block.bit_length() - 1


def _warps(entries: int) -> int:
    """The number of warps of a program that computes this many entries."""
    return min(max(power_of_two(entries) // 256, 1), 16)


@cache
def check(device: str) -> None:
    """Raise MachineError if the kernels do not pass the self-test on a device, and MissingDependencyError on a CPU."""
    if device == "cpu" and not triton.knobs.runtime.interpret:
        raise MissingDependencyError("Triton has no kernels for the CPU: set TRITON_INTERPRET=1 to test them, slowly")
    if torch.version.hip is not None:
        raise MissingDependencyError("the kernels in Triton are for NVIDIA's GPUs")

    def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        matrix, v = torch.from_numpy(right).to(device), torch.from_numpy(left.astype(np.int8)).to(device)
        ones = torch.ones(max(left.shape[0], right.shape[0]), device=device)
        out = torch.empty(len(left), len(right), dtype=torch.int32, device=device)
        multiply(Linear(matrix, ones, None), v, ones, out, len(left), gpu_kernels.SUMS, block_sizes_of(device))
        sums: np.ndarray = out.cpu().numpy()
        return sums

    def logits(weights: ExactWeights, tokens: np.ndarray) -> np.ndarray:
        sequences = GpuLM(weights, device).sequences(1, len(tokens), len(tokens))
        sequences.forward([SequenceInput(0, tokens)])
        return sequences.logits(slice(None))

    reason = "wrong sums or known answers"
    try:
        if selftest.passes(product, logits):
            return
    except Exception as error:  # of Triton, its compilers or the driver, such as a C compiler that is missing
        reason = first_line(error)
    raise MachineError(f"this machine does not compute exactly on {device} with Triton ({reason})")
