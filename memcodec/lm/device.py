"""The exact LM in torch, on any device: the state between passes, and steps as CUDA graphs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from memcodec.errors import MachineError, needs_torch
from memcodec.lm import arithmetic, instructions, selftest
from memcodec.lm.operations import Operations, full_precision, norm, product_of
from memcodec.lm.sequences import ON_CPU, READ_ROWS, Rows, SequenceInput, check_numbers, check_pass, check_step
from memcodec.lm.weights import ExactWeights

try:
    import torch
except ImportError as error:
    raise needs_torch(error) from error


@dataclass(frozen=True)
class PrefixState:
    """The state after a prefix: keys and values, their scales, and the logits of the next token, int32 [vocabulary]."""

    length: int
    cached: torch.Tensor
    scales: torch.Tensor
    logits: np.ndarray


class DeviceLM:
    """The layers on a device."""

    def __init__(
        self, weights: ExactWeights, device: str, fallback: bool = False, fixed_steps: bool | None = None
    ) -> None:
        """fallback: see `operations.Linear.products`. Raises MachineError if torch has no such device.

        fixed_steps: run steps over tensors that stay in place, as CUDA graphs need; by default on CUDA only, where
        launching an operation takes longer than most operations.
        """
        self.device = torch.device(select_device(device))
        self.fixed_steps = self.device.type == "cuda" if fixed_steps is None else fixed_steps
        self.kernels = f"torch on {self.device}, {'float32' if fallback else 'int8'}"
        self.has_coder = False
        self.capacity = ON_CPU
        self.architecture = weights.architecture
        self.vocabulary = weights.architecture.vocabulary
        self.operations = Operations(weights, self.device, fallback)

    def sequences(self, slots: int, positions: int, rows: int, prefix: PrefixState | None = None) -> "DeviceSequences":
        """A cache for `slots` sequences of `positions` positions. rows: not used, since any number of rows fits.

        prefix: the state after the prefix that they have read already.
        """
        return DeviceSequences(self, slots, positions, prefix)

    def prefix_state(self, prefix: np.ndarray) -> PrefixState:
        """The state after a prefix, int64 [tokens]."""
        sequences = DeviceSequences(self, 1, len(prefix))
        for first in range(0, len(prefix), READ_ROWS):
            tokens = prefix[first : first + READ_ROWS]
            sequences.forward([SequenceInput(0, tokens)])
        logits = sequences.logits(np.array([len(tokens) - 1]))[0]
        return PrefixState(len(prefix), sequences.cached, sequences.scales, logits)

    def own_positions(self, prefix: int) -> int:
        """The number of positions of a prefix of this length that each sequence stores itself: all."""
        return prefix


class DeviceSequences:
    """`Sequences` on a device.

    cached: keys, then values, int8 [layers, slots, 2 * key_heads, positions, head_size]; scales: float32, with a last
    axis of 1.
    """

    def __init__(self, lm: DeviceLM, slots: int, positions: int, prefix: PrefixState | None = None) -> None:
        a = lm.architecture
        self.lm = lm
        self._first = 0 if prefix is None else prefix.length
        self._lengths = np.full(slots, self._first, dtype=np.int64)
        self._positions = min(positions, a.positions)
        shape = (a.layers, slots, 2 * a.key_heads, positions)
        self.cached = torch.zeros(*shape, a.head_size, dtype=torch.int8, device=lm.device)
        self.scales = torch.zeros(*shape, 1, device=lm.device)
        if prefix is not None:
            self.cached[:, :, :, : prefix.length] = prefix.cached[:, :, :, : prefix.length]
            self.scales[:, :, :, : prefix.length] = prefix.scales[:, :, :, : prefix.length]
        self._rows = np.empty(0, dtype=np.int64)  # of the last pass: the index of each row with padding
        self._integers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._steps: dict[int, _Step] = {}

    def forward(self, inputs: list[SequenceInput]) -> None:
        """One pass. Sequences are padded to one length; the padding is not written to the cache."""
        with torch.no_grad(), full_precision():
            self._forward(inputs)

    def _forward(self, inputs: list[SequenceInput]) -> None:
        check_pass(inputs, self._lengths, self._positions, self.lm.architecture.vocabulary)
        lm, a = self.lm, self.lm.architecture
        slots = np.array([one.slot for one in inputs])
        counts = np.array([len(one.tokens) for one in inputs])
        starts = self._lengths[slots]
        n, longest = len(inputs), int(counts.max())
        x = torch.zeros(n, longest, a.hidden, device=lm.device)
        for i, one in enumerate(inputs):
            tokens = torch.from_numpy(one.tokens).to(lm.device)
            x[i, : len(tokens)] = lm.operations.embed(tokens.clamp(min=0))
            if one.vectors is not None:
                entering = torch.from_numpy(lm.operations.enter(one.vectors)).to(lm.device)
                vectors = entering[(-1 - tokens).clamp(min=0)]
                x[i, : len(tokens)] = torch.where((tokens < 0)[:, None], vectors, x[i, : len(tokens)])
        steps = np.arange(longest)
        real = steps < counts[:, None]
        positions = starts[:, None] + np.minimum(steps, counts[:, None] - 1)
        self._rows = np.flatnonzero(real)
        tensors = [torch.from_numpy(array).to(lm.device) for array in (slots, positions, self._rows)]
        end = int((starts + counts).max())
        self._integers = self.run_layers(x.view(n * longest, -1), tensors[0], tensors[1], tensors[2], end)
        self._lengths[slots] += counts

    def restart(self) -> None:
        """Return all sequences to where they began."""
        self._lengths[:] = self._first

    def step(self, tokens: np.ndarray) -> None:
        """One token of each of the first sequences; on CUDA as a graph, captured once for each number of sequences."""
        rows = len(tokens)
        check_step(tokens, self._lengths, self._positions, self.lm.architecture.vocabulary)
        with torch.no_grad(), full_precision():
            if not self.lm.fixed_steps:
                self._forward([SequenceInput(slot, tokens[slot : slot + 1]) for slot in range(rows)])
                return
            if rows not in self._steps:
                self._steps[rows] = _Step(self, rows)
            self._integers = self._steps[rows](tokens, self._lengths[:rows])
            self._rows = np.arange(rows)
            self._lengths[:rows] += 1

    def run_layers(
        self, x: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, real: torch.Tensor, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All layers and the last norm: inputs of the head and their scale.

        x: float32 [n * steps, hidden]; slots: int64 [n]; positions: int64 [n, steps]; real: indices of the rows that
        are not padding; end: positions of the cache to attend to.
        """
        ops, a = self.lm.operations, self.lm.architecture
        n, steps = positions.shape
        flat = positions.reshape(-1)
        x = ops.add_positions(x, flat)
        repeat = a.heads // a.key_heads
        row_slots = slots[:, None].expand(-1, steps).reshape(-1)[real]
        seen = torch.arange(end, device=x.device)[None, None, :] <= positions[:, :, None]
        seen = seen.repeat_interleave(repeat, dim=1)[:, None]
        for layer in range(a.layers):
            integers, scale = ops.heads(x, flat, layer)
            # Adds 0, or NaN, which softmax could hide from `check_numbers`.
            x = x + (scale - scale).amax(dim=(1, 2))[:, None]
            self.cached[layer, row_slots, :, flat[real]] = integers[real, a.heads :].to(torch.int8)
            self.scales[layer, row_slots, :, flat[real]] = scale[real, a.heads :]
            keys, values = self.cached[layer, slots, :, :end].float().chunk(2, dim=1)
            key_scale, value_scale = self.scales[layer, slots, :, :end].chunk(2, dim=1)
            q, q_scale = (self._by_key_head(part[:, : a.heads], n, steps) for part in (integers, scale))
            z = ops.attend(q, q_scale, keys, key_scale, values, value_scale, seen)
            z = z.view(n, a.key_heads, steps, repeat, a.head_size).transpose(1, 2).reshape(n * steps, -1)
            x = x + ops.mix(z, layer)
            x = x + ops.mlp(x, layer)
        return norm(x, a.epsilon)

    def _by_key_head(self, x: torch.Tensor, n: int, steps: int) -> torch.Tensor:
        """[n * steps, heads, ...] -> [n, key_heads, steps * repeat, ...]."""
        heads = self.lm.architecture.key_heads
        return x.reshape(n, steps, heads, -1, x.shape[-1]).transpose(1, 2).reshape(n, heads, -1, x.shape[-1])

    def placed_logits(self, rows: Rows) -> np.ndarray:
        """The same as `logits`, on the host, since there are no kernels of the coder in torch."""
        return self.logits(rows)

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of some rows of the last pass, int32 [rows, vocabulary] in units."""
        with torch.no_grad(), full_precision():
            return self._logits(rows)

    def _logits(self, rows: Rows) -> np.ndarray:
        assert self._integers is not None
        chosen = torch.from_numpy(self._rows[rows]).to(self.lm.device)
        integers, scale = (tensor[chosen] for tensor in self._integers)
        check_numbers(scale.cpu().numpy())
        y = self.lm.operations.head(integers, scale) * float(arithmetic.LOGIT_SCALE)
        units: np.ndarray = y.clamp(-arithmetic.FAR, arithmetic.FAR).round().to(torch.int32).cpu().numpy()
        return units


class _Step:
    """A cached step of a fixed number of sequences, over fixed tensors and all positions: one launch on CUDA."""

    def __init__(self, sequences: DeviceSequences, rows: int) -> None:
        device = sequences.lm.device
        self._sequences = sequences
        self._rows = torch.arange(rows, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._graph: Any = None
        self._result: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, tokens: np.ndarray, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of the head and their scale, from int64 [rows] each."""
        self._tokens.copy_(torch.from_numpy(tokens))
        self._positions.copy_(torch.from_numpy(positions[:, None]))
        if self._tokens.device.type == "cuda":
            if self._graph is None:
                self._graph = graph_of(self._run)
            self._graph.replay()
        else:
            self._run()
        assert self._result is not None
        return self._result

    def _run(self) -> None:
        sequences = self._sequences
        end = sequences.cached.shape[3]
        x = sequences.lm.operations.embed(self._tokens)
        self._result = sequences.run_layers(x, self._rows, self._positions, self._rows, end)


_capturing = threading.Lock()  # torch captures all graphs on one stream


def graph_of(run: Callable[[], None], warm_up: bool = True) -> Any:
    """What a function launches on CUDA, as a graph.

    warm_up: run it once before, so that libraries initialize themselves; not needed for kernels that have run already.
    """
    cuda: Any = torch.cuda
    if warm_up:
        stream = cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate memory meanwhile, as those that compute ahead do, but not capture.
    with _capturing, cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph


def select_device(name: str) -> str:
    """The device that one of `settings.DEVICES` or "cuda:1" means on this machine. Raises MachineError if it has none.

    A GPU that is named by its number becomes the current one of torch, on which Triton starts its kernels too: a
    process uses one GPU.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    kind, _, number = name.partition(":")
    others_exist = {"cpu": True, "mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    if not (others_exist.get(name) or (kind == "cuda" and int(number or 0) < count)):
        others = f"--device cuda:0 to cuda:{count - 1}, or " if count else ""
        raise MachineError(f"device {name!r} is not available here: use {others}--device cpu")
    if number:
        torch.cuda.set_device(int(number))
    return name


def has_byte_products(device: str) -> bool:
    """Whether torch has fast int8 products on a device. Without VNNI, it computes them one by one on a CPU."""
    return device != "cpu" or any("vnni" in name for name in instructions.available())


@cache
def needs_fallback(device: str) -> bool:
    """Whether integer products on a device must be computed as float32 products. Raises MachineError."""

    def implementation(fallback: bool) -> tuple[selftest.Product, selftest.Logits]:
        def logits(weights: ExactWeights, tokens: np.ndarray) -> np.ndarray:
            sequences = DeviceLM(weights, device, fallback).sequences(1, len(tokens), len(tokens))
            sequences.forward([SequenceInput(0, tokens)])
            return sequences.logits(slice(None))

        return (lambda left, right: product_of(left, right, device, fallback)), logits

    return selftest.choose(implementation, f"{device}, with torch")
