"""The operations of the exact LM in torch, for any device: the same bits as `kernels`, as tests check.

Every element of a float32 tensor goes through one IEEE operation at a time. The only matrix products are those of
integers whose sums are exact. addcmul, compilers and TF32 are not used.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from memcodec.errors import needs_torch
from memcodec.lm import arithmetic
from memcodec.lm.weights import ExactWeights

try:
    import torch
except ImportError as error:
    raise needs_torch(error) from error

_INT_MM_ROWS = 32  # the fewest rows of an integer product: CUDA's needs more than 16
_BLOCK = (1 << 24) // (128 * arithmetic.WEIGHT)  # entries whose products with a signed byte sum up to less than 2**24
_UNITS_END = (arithmetic.ATTENTION_BITS + 1) << 10  # units below the largest from which on an attention weight is 0


class Linear:
    """A linear layer: integers [rows, inner] as input, float32 [rows, n] as output."""

    def __init__(self, matrix: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, fallback: bool) -> None:
        self._rows, inner = matrix.shape
        # CUDA's int8 products need multiples of 8 on both sides.
        padded = torch.nn.functional.pad(matrix, (0, -inner % 8, 0, -self._rows % 8))
        self._columns = padded.t() if not fallback else padded.t().float()
        self._missing = -inner % 8
        self._scale = scale
        self._bias = bias
        self._fallback = fallback
        self.limit = float(arithmetic.highest_input(inner))

    def __call__(self, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """integers: integer-valued float32 [rows, inner]; scale: float32 [rows, 1]."""
        if self._missing:
            integers = torch.nn.functional.pad(integers, (0, self._missing))
        products = integer_product(integers, self._columns, self._fallback)[:, : self._rows]
        result = products.to(torch.float32) * scale * self._scale
        return result if self._bias is None else result + self._bias


def integer_product(left: torch.Tensor, columns: torch.Tensor, fallback: bool) -> torch.Tensor:
    """int32 [rows, n], from integer-valued float32 [rows, inner] up to 32639 and weights [inner, n].

    The left side is split into two signed bytes, 256 * high + low. fallback: float32 products over few enough entries
    to be exact, with float32 weights, for devices whose int8 products saturate: on CPUs without VNNI, the int8 products
    of torch are silently wrong.
    """
    high = torch.floor((left + 128) * (1 / 256))
    low = left - high * 256
    if fallback:
        total = torch.zeros(len(left), columns.shape[1], dtype=torch.int32, device=left.device)
        for start in range(0, columns.shape[0], _BLOCK):
            block = columns[start : start + _BLOCK]
            for half, factor in ((high, 256), (low, 1)):
                total += torch.matmul(half[:, start : start + _BLOCK], block).to(torch.int32) * factor
        return total
    rows = max(len(left), _INT_MM_ROWS)
    both = torch.zeros(2 * rows, left.shape[1], dtype=torch.int8, device=left.device)
    both[: len(left)] = high.to(torch.int8)
    both[rows : rows + len(left)] = low.to(torch.int8)
    products = torch._int_mm(both, columns)
    return products[: len(left)] * 256 + products[rows : rows + len(left)]


def product_of(left: np.ndarray, right: np.ndarray, device: str, fallback: bool) -> np.ndarray:
    """int [rows, inner] times int8 [columns, inner] by `integer_product`, int32, for the self-test."""
    matrix = torch.from_numpy(right).to(device)
    one = torch.ones((), device=device)
    linear = Linear(matrix, one, None, fallback)
    integers = torch.nn.functional.pad(torch.from_numpy(left).to(device).float(), (0, linear._missing))
    product = integer_product(integers, linear._columns, fallback)[:, : len(right)]
    result: np.ndarray = product.cpu().numpy()
    return result


def _divide(a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """a / b as one division. If `a` is a number, torch multiplies by a reciprocal; on CUDA, also if `b` is one."""
    like = a if isinstance(a, torch.Tensor) else b
    assert isinstance(like, torch.Tensor)
    first, second = (
        value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)
        for value in (a, b)
    )
    return torch.div(first, second)


def to_integers(x: torch.Tensor, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """round(x * (limit / max|x|)) over the last axis, integer-valued float32, and its scale."""
    most = x.abs().amax(-1, keepdim=True).clamp_min(arithmetic.TINY)
    return torch.round(x * _divide(limit, most)), _divide(most, limit)


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    integers, _ = to_integers(x, float(arithmetic.HIGHEST))
    integers = integers.to(torch.int64)
    most = x.abs().amax(-1, keepdim=True).clamp_min(arithmetic.TINY)
    unit = _divide(most.double(), float(arithmetic.HIGHEST))
    return integers.sum(-1, keepdim=True), (integers * integers).sum(-1, keepdim=True), unit


def root_scale(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    _, squares, unit = _moments(x)
    mean = _divide(squares.double(), float(x.shape[-1]))
    return _divide(1.0, torch.sqrt(mean * (unit * unit) + epsilon)).float()


@contextmanager
def full_precision() -> Iterator[None]:
    """Forbid TF32 and bfloat16 in place of float32, whatever the process has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Operations:
    """The weights of an LM on a device, and one method for each operation of the specification."""

    def __init__(self, weights: ExactWeights, device: torch.device, fallback: bool) -> None:
        """fallback: see `integer_product`."""
        self.architecture = weights.architecture
        tensors = weights.tensors
        self._tensors = {name: torch.from_numpy(np.array(value)).to(device) for name, value in tensors.items()}
        t = self._tensors

        def linear(name: str, layer: int) -> Linear:
            bias = t[name + ".bias"][layer] if name + ".bias" in t else None
            return Linear(t[name][layer], t[name + ".scale"][layer], bias, fallback)

        layers = range(self.architecture.layers)
        self.layers = [{name: linear(name, layer) for name in ("qkv", "mix", "up", "down")} for layer in layers]
        head = "embedding" if self.architecture.tied else "head"
        self.head = Linear(t[head], t[head + ".scale"], None, fallback)
        self.powers = torch.from_numpy(_long_powers()).to(device)
        self.gate = torch.from_numpy(arithmetic.gate(self.architecture.gate)).to(device)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [rows] -> float32 [rows, hidden]."""
        t = self._tensors
        return t["embedding"][tokens].float() * t["embedding.scale"][tokens][:, None]

    def add_positions(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Add learned positions, if the model has them."""
        return x if self.architecture.rotary is not None else x + self._tensors["position"][positions]

    def norm(self, x: torch.Tensor, name: str, layer: int | None, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A norm: integers for the next product, and their scale. layer: None for the last norm."""
        a, t = self.architecture, self._tensors
        gain = t[name] if layer is None else t[name][layer]
        if not a.layer_norm:
            scale = root_scale(x, a.epsilon)
            integers, unit = to_integers(x * gain, limit)
            return integers, unit * scale
        shift = t[name.replace("gain", "shift")]
        shift = shift if layer is None else shift[layer]
        total, squares, unit = _moments(x)
        count = float(x.shape[-1])
        mean = (_divide(total.double(), count) * unit).float()
        spread = _divide((x.shape[-1] * squares - total * total).double(), count * count)
        scale = _divide(1.0, torch.sqrt(spread * (unit * unit) + a.epsilon)).float()
        return to_integers((x - mean) * scale * gain + shift, limit)

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotary positions, if the model has them: float32 [rows, heads, head_size], int64 [rows]."""
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

        seen: the positions that each query attends to, bool [b, 1, n, p]. Returns float32 [b, key_heads, n, size].
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
        """The term that the MLP adds to the residual stream: float32 [rows, hidden], as the input."""
        linear = self.layers[layer]
        y = linear["up"](*self.norm(x, "mlp.gain", layer, linear["up"].limit))
        inner = self.architecture.inner
        g = y[:, :inner]
        near = g.clamp(-arithmetic.GATE_REACH, arithmetic.GATE_REACH)
        middle = arithmetic.GATE_STEPS * arithmetic.GATE_REACH
        index = torch.round(near * arithmetic.GATE_STEPS).to(torch.int64) + middle
        # A NaN would become an undefined index of the table, so the index is clamped too.
        z = g * self.gate[index.clamp(0, 2 * middle)]
        if self.architecture.gated:
            z = z * y[:, inner:]
        return linear["down"](*to_integers(z, linear["down"].limit))

    def head_norm(self, x: torch.Tensor, name: str, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of each head of queries or keys, if the model has it; and a factor of its scale."""
        if not self.architecture.head_norm:
            return x, torch.ones(1, device=x.device)
        return x * self._tensors[name][layer], root_scale(x, self.architecture.epsilon)


def _long_powers() -> np.ndarray:
    """2**-(i/1024) in units of 2**-30, int64, for all i up to the first at which an attention weight is 0."""
    steps = np.arange(_UNITS_END + 1)
    return arithmetic.powers()[steps & 1023].astype(np.int64) >> (steps >> 10)
