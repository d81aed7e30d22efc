"""The exact LM in torch operations, for any device: the same bits as `cpu`, which the tests hold it to.

Every float32 tensor goes through one IEEE operation an element at a time: no matrix product but of integers whose sums
are exact, no addcmul, no compiler, no TF32. Rows of a pass are padded to one length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from memcodec.errors import ModelNotFoundError, needs_torch
from memcodec.lm import arithmetic
from memcodec.lm.sequences import Rows, SequenceInput, check_numbers, check_pass, check_step
from memcodec.lm.weights import ExactWeights

try:
    import torch
except ImportError as error:
    raise needs_torch(error) from error

_INT_MM_ROWS = 32  # at least so many rows in an integer product: CUDA's wants more than 16
_BLOCK = (1 << 24) // (128 * arithmetic.WEIGHT)  # entries whose products with a half sum up below 2**24
_UNITS_END = (arithmetic.ATTENTION_BITS + 1) << 10


class _Linear:
    """A linear layer: integers [rows, inner] in, float32 out."""

    def __init__(self, matrix: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, slowly: bool) -> None:
        self._rows, inner = matrix.shape
        # CUDA's int8 products want multiples of 8 on both sides.
        padded = torch.nn.functional.pad(matrix, (0, -inner % 8, 0, -self._rows % 8))
        self._columns = padded.t() if not slowly else padded.t().float()
        self._missing = -inner % 8
        self._scale = scale
        self._bias = bias
        self._slowly = slowly
        self.limit = float(arithmetic.highest_input(inner))

    def __call__(self, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """integers: integer-valued float32 [rows, inner]; scale: float32 [rows, 1]."""
        if self._missing:
            integers = torch.nn.functional.pad(integers, (0, self._missing))
        products = integer_product(integers, self._columns, self._slowly)[:, : self._rows]
        result = products.to(torch.float32) * scale * self._scale
        return result if self._bias is None else result + self._bias


def integer_product(left: torch.Tensor, columns: torch.Tensor, slowly: bool) -> torch.Tensor:
    """int32 [rows, n] from integer-valued float32 [rows, inner] up to 32639 and weights [inner, n].

    Cut into two signed bytes, 256 * high + low. slowly: float32 products of few enough entries to be exact, with
    float32 weights, where int8 products saturate: on CPUs without VNNI, torch's are silently wrong.
    """
    high = torch.floor((left + 128) * (1 / 256))
    low = left - high * 256
    if slowly:
        total = torch.zeros(len(left), columns.shape[1], dtype=torch.int32, device=left.device)
        for start in range(0, columns.shape[0], _BLOCK):
            piece = columns[start : start + _BLOCK]
            for half, factor in ((high, 256), (low, 1)):
                total += torch.matmul(half[:, start : start + _BLOCK], piece).to(torch.int32) * factor
        return total
    rows = max(len(left), _INT_MM_ROWS)
    both = torch.zeros(2 * rows, left.shape[1], dtype=torch.int8, device=left.device)
    both[: len(left)] = high.to(torch.int8)
    both[rows : rows + len(left)] = low.to(torch.int8)
    products = torch._int_mm(both, columns)
    return products[: len(left)] * 256 + products[rows : rows + len(left)]


def product_of(left: np.ndarray, right: np.ndarray, device: str, slowly: bool) -> np.ndarray:
    """int [rows, inner] times int8 [columns, inner] by `integer_product`, int32: for the self-test."""
    matrix = torch.from_numpy(right).to(device)
    one = torch.ones((), device=device)
    linear = _Linear(matrix, one, None, slowly)
    integers = torch.nn.functional.pad(torch.from_numpy(left).to(device).float(), (0, linear._missing))
    product = integer_product(integers, linear._columns, slowly)[:, : len(right)]
    found: np.ndarray = product.cpu().numpy()
    return found


def _divide(a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """a / b in one division: torch makes a reciprocal and a product of one with a number (both ways, on CUDA)."""
    like = a if isinstance(a, torch.Tensor) else b
    assert isinstance(like, torch.Tensor)
    first, second = (
        value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)
        for value in (a, b)
    )
    return torch.div(first, second)


def _to_integers(x: torch.Tensor, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """round(x * (limit / max|x|)) over the last axis, integer-valued float32, and its scale."""
    most = x.abs().amax(-1, keepdim=True).clamp_min(arithmetic.TINY)
    return torch.round(x * _divide(limit, most)), _divide(most, limit)


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    integers, _ = _to_integers(x, float(arithmetic.HIGHEST))
    integers = integers.to(torch.int64)
    most = x.abs().amax(-1, keepdim=True).clamp_min(arithmetic.TINY)
    unit = _divide(most.double(), float(arithmetic.HIGHEST))
    return integers.sum(-1, keepdim=True), (integers * integers).sum(-1, keepdim=True), unit


def _root_scale(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    _, squares, unit = _moments(x)
    mean = _divide(squares.double(), float(x.shape[-1]))
    return _divide(1.0, torch.sqrt(mean * (unit * unit) + epsilon)).float()


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32, and no bfloat16 in place of float32, whatever the process has asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class DeviceLM:
    """The layers on a device. slowly: see `integer_product`."""

    def __init__(self, weights: ExactWeights, device: str, slowly: bool = False) -> None:
        """Raises ModelNotFoundError where torch has no such device."""
        self.device = torch.device(check_device(device))
        self.in_graphs = self.device.type == "cuda"  # steps, as a launch takes longer there than most operations
        self.architecture = weights.architecture
        tensors = weights.tensors
        self._tensors = {name: torch.from_numpy(np.array(value)).to(self.device) for name, value in tensors.items()}
        t = self._tensors

        def linear(name: str, layer: int) -> _Linear:
            bias = t[name + ".bias"][layer] if name + ".bias" in t else None
            return _Linear(t[name][layer], t[name + ".scale"][layer], bias, slowly)

        layers = range(self.architecture.layers)
        self.layers = [{name: linear(name, layer) for name in ("qkv", "mix", "up", "down")} for layer in layers]
        head = "embedding" if self.architecture.tied else "head"
        self.head = _Linear(t[head], t[head + ".scale"], None, slowly)
        self.powers = torch.from_numpy(_long_powers()).to(self.device)
        self.gate = torch.from_numpy(arithmetic.gate(self.architecture.gate)).to(self.device)

    def sequences(self, slots: int, positions: int, start: "Start | None" = None) -> "DeviceSequences":
        """Room for so many sequences of so many positions. start: what they have read already."""
        return DeviceSequences(self, slots, positions, start)

    def start(self, prefix: np.ndarray) -> "Start":
        """What a prefix leaves, int64 [tokens]."""
        sequences = DeviceSequences(self, 1, len(prefix))
        for first in range(0, len(prefix), _READ_ROWS):
            part = prefix[first : first + _READ_ROWS]
            sequences.forward([SequenceInput(0, part)])
        logits = sequences.logits(np.array([len(part) - 1]))[0]
        return Start(len(prefix), sequences._kept, sequences._scales, logits)

    # ---- one operation of the specification each

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [rows] -> float32 [rows, hidden]."""
        t = self._tensors
        return t["embedding"][tokens].float() * t["embedding.scale"][tokens][:, None]

    def place(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Learned positions, where the model has them."""
        return x if self.architecture.rotary is not None else x + self._tensors["position"][positions]

    def norm(self, x: torch.Tensor, name: str, layer: int | None, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Integers for the next product, and their scale."""
        a, t = self.architecture, self._tensors
        gain = t[name] if layer is None else t[name][layer]
        if not a.layer_norm:
            scale = _root_scale(x, a.epsilon)
            integers, unit = _to_integers(x * gain, limit)
            return integers, unit * scale
        shift = t[name.replace("gain", "shift")]
        shift = shift if layer is None else shift[layer]
        total, squares, unit = _moments(x)
        count = float(x.shape[-1])
        mean = (_divide(total.double(), count) * unit).float()
        spread = _divide((x.shape[-1] * squares - total * total).double(), count * count)
        scale = _divide(1.0, torch.sqrt(spread * (unit * unit) + a.epsilon)).float()
        return _to_integers((x - mean) * scale * gain + shift, limit)

    def turn(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotary positions: float32 [rows, heads, head_size], int64 [rows]."""
        if self.architecture.rotary is None:
            return x
        cosine, sine = (self._tensors[name][positions][:, None] for name in ("cosine", "sine"))
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

    def attend(
        self, q: torch.Tensor, q_scale: torch.Tensor, k: torch.Tensor, k_scale: torch.Tensor, v: torch.Tensor,
        v_scale: torch.Tensor, seen: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Integer-valued queries [b, key_heads, n, size], keys and values [b, key_heads, p, size], scales [..., 1].

        seen: which positions each query may look at, bool [b, 1, n, p]. float32 [b, key_heads, n, size].
        """
        products = torch.matmul(q, k.transpose(2, 3))
        logits = products * (q_scale * float(arithmetic.attention_scale(self.architecture.head_size)))
        logits = (logits * k_scale.transpose(2, 3)).clamp(-arithmetic.FAR, arithmetic.FAR).round().to(torch.int64)
        logits = logits.masked_fill(~seen, -(2**40))
        below = logits.amax(-1, keepdim=True) - logits
        weights = self.powers[below.clamp(max=_UNITS_END)] >> (arithmetic.ONE - arithmetic.ATTENTION_BITS)
        weights = weights * seen
        total = weights.sum(-1, keepdim=True)
        portions = weights.float() * v_scale.transpose(2, 3)
        most = portions.amax(-1, keepdim=True)
        shares = torch.round(portions * _divide(float(arithmetic.HIGHEST), most)).to(torch.int64)
        mass = shares.sum(-1, keepdim=True)
        shift = torch.zeros_like(mass)
        for s in range(31):
            shift += mass >> s > arithmetic.MASS
        shares = (shares + (torch.ones_like(shift) << shift >> 1)) >> shift
        mixed = torch.matmul(shares.float(), v)
        scale = _divide(most.double() * (torch.ones_like(shift) << shift).double(), arithmetic.HIGHEST * total.double())
        return mixed * scale.float()

    def mlp(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """float32 [rows, hidden] -> what the MLP adds to it."""
        parts = self.layers[layer]
        y = parts["up"](*self.norm(x, "mlp.gain", layer, parts["up"].limit))
        inner = self.architecture.inner
        g = y[:, :inner]
        near = g.clamp(-arithmetic.GATE_REACH, arithmetic.GATE_REACH)
        middle = arithmetic.GATE_STEPS * arithmetic.GATE_REACH
        index = torch.round(near * arithmetic.GATE_STEPS).to(torch.int64) + middle
        z = g * self.gate[index.clamp(0, 2 * middle)]  # what is no number is nowhere
        if self.architecture.gated:
            z = z * y[:, inner:]
        return parts["down"](*_to_integers(z, parts["down"].limit))


@dataclass(frozen=True)
class Start:
    """What a prefix leaves: keys and values, their scales, and the logits of what follows, int32 [vocabulary]."""

    length: int
    kept: list[torch.Tensor]
    scales: list[torch.Tensor]
    logits: np.ndarray


_READ_ROWS = 400  # positions of a prefix in one pass


class DeviceSequences:
    """`Sequences` on a device."""

    def __init__(self, lm: DeviceLM, slots: int, positions: int, start: Start | None = None) -> None:
        a = lm.architecture
        self._lm = lm
        self._first = 0 if start is None else start.length
        self._lengths = np.full(slots, self._first, dtype=np.int64)
        self._positions = min(positions, a.positions)
        shape = (a.layers, slots, a.key_heads, positions)
        self._kept = [torch.zeros(*shape, a.head_size, dtype=torch.int8, device=lm.device) for _ in range(2)]
        self._scales = [torch.zeros(*shape, 1, device=lm.device) for _ in range(2)]
        if start is not None:
            for own, read in zip([*self._kept, *self._scales], [*start.kept, *start.scales], strict=True):
                own[:, :, :, : start.length] = read[:, :, :, : start.length]
        self._rows = np.empty(0, dtype=np.int64)  # where the last pass's rows are in the padded ones
        self._integers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._steps: dict[int, _Step] = {}

    def forward(self, pieces: list[SequenceInput]) -> None:
        """One pass; rows are padded to one length, and what is padded is written nowhere."""
        with torch.no_grad(), _full_precision():
            self._forward(pieces)

    def _forward(self, pieces: list[SequenceInput]) -> None:
        check_pass(pieces, self._lengths, self._positions, self._lm.architecture.vocabulary)
        lm, a = self._lm, self._lm.architecture
        slots = np.array([piece.slot for piece in pieces])
        counts = np.array([len(piece.tokens) for piece in pieces])
        starts = self._lengths[slots]
        n, longest = len(pieces), int(counts.max())
        x = torch.zeros(n, longest, a.hidden, device=lm.device)
        for i, piece in enumerate(pieces):
            tokens = torch.from_numpy(piece.tokens).to(lm.device)
            x[i, : len(tokens)] = lm.embed(tokens.clamp(min=0))
            if piece.vectors is not None:
                given = torch.from_numpy(piece.vectors).to(lm.device)
                x[i, : len(tokens)] = torch.where(
                    (tokens < 0)[:, None], given[(-1 - tokens).clamp(min=0)], x[i, : len(tokens)]
                )
        steps = np.arange(longest)
        real = steps < counts[:, None]
        positions = starts[:, None] + np.minimum(steps, counts[:, None] - 1)
        self._rows = np.flatnonzero(real)
        rows, places, kept = (torch.from_numpy(part).to(lm.device) for part in (slots, positions, self._rows))
        self._integers = self._layers(x.view(n * longest, -1), rows, places, kept, int((starts + counts).max()))
        self._lengths[slots] += counts

    def restart(self) -> None:
        """Begin anew."""
        self._lengths[:] = self._first

    def step(self, tokens: np.ndarray) -> None:
        """A token of each of the first sequences; on CUDA in a graph that is captured once for so many of them."""
        rows = len(tokens)
        check_step(tokens, self._lengths, self._positions, self._lm.architecture.vocabulary)
        with torch.no_grad(), _full_precision():
            if not self._lm.in_graphs:
                self._forward([SequenceInput(slot, tokens[slot : slot + 1]) for slot in range(rows)])
                return
            if rows not in self._steps:
                self._steps[rows] = _Step(self, rows)
            self._integers = self._steps[rows](tokens, self._lengths[:rows])
            self._rows = np.arange(rows)
            self._lengths[:rows] += 1

    def _layers(
        self, x: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, real: torch.Tensor, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x: float32 [n * steps, hidden]; positions: int64 [n, steps]; real: rows that are no padding."""
        lm, a = self._lm, self._lm.architecture
        n, steps = positions.shape
        flat = positions.reshape(-1)
        x = lm.place(x, flat)
        repeat, size = a.heads // a.key_heads, a.head_size
        row_slots = slots[:, None].expand(-1, steps).reshape(-1)[real]
        seen = torch.arange(end, device=x.device)[None, None, :] <= positions[:, :, None]
        seen = seen.repeat_interleave(repeat, dim=1)[:, None]
        for layer in range(a.layers):
            parts = lm.layers[layer]
            y = parts["qkv"](*lm.norm(x, "attention.gain", layer, parts["qkv"].limit))
            q, k, v = y.view(n * steps, -1, size).tensor_split([a.heads, a.heads + a.key_heads], dim=1)
            q, q_more = self._head_norm(q, "query.gain", layer)
            k, k_more = self._head_norm(k, "key.gain", layer)
            q, q_scale = _to_integers(lm.turn(q, flat), float(arithmetic.highest_query(size)))
            k, k_scale = _to_integers(lm.turn(k, flat), float(arithmetic.WEIGHT))
            v, v_scale = _to_integers(v, float(arithmetic.WEIGHT))
            for kept, scales, new, scale in zip(
                self._kept, self._scales, (k, v), (k_scale * k_more, v_scale), strict=True
            ):
                kept[layer, row_slots, :, flat[real]] = new[real].to(torch.int8)
                scales[layer, row_slots, :, flat[real]] = scale[real]
            keys, values = (kept[layer, slots, :, :end].float() for kept in self._kept)
            key_scale, value_scale = (scales[layer, slots, :, :end] for scales in self._scales)
            z = lm.attend(
                self._by_key_head(q, n, steps), self._by_key_head(q_scale * q_more, n, steps), keys, key_scale, values,
                value_scale, seen,
            )  # fmt: skip
            z = z.view(n, a.key_heads, steps, repeat, size).transpose(1, 2).reshape(n * steps, -1)
            x = x + parts["mix"](*_to_integers(z, parts["mix"].limit))
            x = x + lm.mlp(x, layer)
        return lm.norm(x, "gain", None, lm.head.limit)

    def _head_norm(self, x: torch.Tensor, name: str, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._lm.architecture.head_norm:
            return x, torch.ones(1, device=x.device)
        return x * self._lm._tensors[name][layer], _root_scale(x, self._lm.architecture.epsilon)

    def _by_key_head(self, x: torch.Tensor, n: int, steps: int) -> torch.Tensor:
        """[n * steps, heads, ...] -> [n, key_heads, steps * repeat, ...]."""
        heads = self._lm.architecture.key_heads
        return x.view(n, steps, heads, -1, x.shape[-1]).transpose(1, 2).reshape(n, heads, -1, x.shape[-1])

    def logits(self, rows: Rows) -> np.ndarray:
        """Logits of some rows of the last pass, int32 [rows, vocabulary] in units."""
        with torch.no_grad(), _full_precision():
            return self._logits(rows)

    def _logits(self, rows: Rows) -> np.ndarray:
        assert self._integers is not None
        chosen = torch.from_numpy(self._rows[rows]).to(self._lm.device)
        integers, scale = (part[chosen] for part in self._integers)
        check_numbers(scale.cpu().numpy())
        y = self._lm.head(integers, scale) * float(arithmetic.LOGIT_SCALE)
        found: np.ndarray = y.clamp(-arithmetic.FAR, arithmetic.FAR).round().to(torch.int32).cpu().numpy()
        return found


class _Step:
    """One cached step of so many sequences, over fixed tensors and all positions: on CUDA, one launch."""

    def __init__(self, sequences: DeviceSequences, rows: int) -> None:
        device = sequences._lm.device
        self._sequences = sequences
        self._rows = torch.arange(rows, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._graph: Any = None
        self._result: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, tokens: np.ndarray, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [rows] each -> inputs of the head."""
        self._tokens.copy_(torch.from_numpy(tokens))
        self._positions.copy_(torch.from_numpy(positions[:, None]))
        if self._tokens.device.type == "cuda":
            if self._graph is None:
                self._capture()
            self._graph.replay()
        else:
            self._result = self._run()
        assert self._result is not None
        return self._result

    def _run(self) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = self._sequences
        end = sequences._kept[0].shape[3]
        return sequences._layers(sequences._lm.embed(self._tokens), self._rows, self._positions, self._rows, end)

    def _capture(self) -> None:
        """Run once, so that libraries set themselves up, then record."""
        cuda: Any = torch.cuda
        stream = cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = self._run()


def check_device(name: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here. Raises ModelNotFoundError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name == "cuda" and torch.cuda.is_available()):
        raise ModelNotFoundError(f"device {name!r} is not available here: use --device cpu")
    return name


def _long_powers() -> np.ndarray:
    """2**-(i/1024) in units of 2**-30, for all i that a weight is not 0 at; int64."""
    steps = np.arange(_UNITS_END + 1)
    return arithmetic.powers()[steps & 1023].astype(np.int64) >> (steps >> 10)
