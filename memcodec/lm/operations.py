"""The operations of the exact LM in torch, for any device: the same bits as `kernels`, as tests check.

Every element of a float32 tensor goes through one IEEE operation at a time. The only matrix products are those of
integers whose sums are exact. addcmul, compilers and TF32 are not used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, reduce

import numpy as np

from memcodec.errors import needs_torch
from memcodec.lm import arithmetic
from memcodec.lm.rotation import rotated_vectors
from memcodec.lm.weights import ExactWeights

try:
    import torch
except ImportError as error:
    raise needs_torch(error) from error

_INT_MM_ROWS = 32  # the fewest rows of an integer product: CUDA's needs more than 16
# Entries whose products sum up to less than 2**24, so that float32 is exact in any order.
_ENTRIES = (1 << 24) // (arithmetic.LARGEST * arithmetic.LARGEST)  # activations and weights; queries and keys
_POSITIONS = (1 << 24) // (arithmetic.SHARE * arithmetic.LARGEST)  # shares and values


class Linear:
    """A linear layer: integers [rows, inner] as input, float32 [rows, n] as output."""

    def __init__(self, matrix: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, fallback: bool) -> None:
        """matrix: int8 [n, inner]; scale, bias: float32 [n]; fallback: see `products`."""
        self._rows, inner = matrix.shape
        # CUDA's int8 products need multiples of 8 on both sides.
        padded = torch.nn.functional.pad(matrix, (0, -inner % 8, 0, -self._rows % 8))
        self._columns = padded.t().float() if fallback else padded.t()
        self._missing = -inner % 8
        self._scale = scale
        self._bias = bias
        self._fallback = fallback

    def __call__(self, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """integers: integer-valued float32 [rows, inner]; scale: float32 [rows, 1]."""
        result = self.products(integers).float() * scale * self._scale
        return result if self._bias is None else result + self._bias

    def products(self, integers: torch.Tensor) -> torch.Tensor:
        """int32 [rows, n], from integer-valued float32 [rows, inner] up to 127.

        The fallback, with float32 products, is for devices whose int8 products saturate: on CPUs without VNNI, those of
        torch are silently wrong.
        """
        rows = len(integers)
        more = 0 if self._fallback else max(_INT_MM_ROWS - rows, 0)
        if self._missing or more:
            integers = torch.nn.functional.pad(integers, (0, self._missing, 0, more))
        if self._fallback:
            return exact_product(integers, self._columns, _ENTRIES)[:, : self._rows]
        return torch._int_mm(integers.to(torch.int8), self._columns)[:rows, : self._rows]


def exact_product(left: torch.Tensor, right: torch.Tensor, block: int) -> torch.Tensor:
    """int32 [..., rows, n], from integer-valued float32 [..., rows, inner] and [..., inner, n].

    By float32 products over `block` entries, whose sums are exact in any order, and which are then added as integers:
    float64 would be slow, or is not there, on many devices.
    """
    parts = zip(torch.split(left, block, -1), torch.split(right, block, -2), strict=True)
    return reduce(torch.add, (torch.matmul(some, others).to(torch.int32) for some, others in parts))


def product_of(left: np.ndarray, right: np.ndarray, device: str, fallback: bool) -> np.ndarray:
    """int [rows, inner] up to 127 times int8 [columns, inner] by `Linear.products`, int32, for the self-test."""
    one = torch.ones((), device=device)
    linear = Linear(torch.from_numpy(right).to(device), one, None, fallback)
    result: np.ndarray = linear.products(torch.from_numpy(left).to(device).float()).cpu().numpy()
    return result


WITHOUT_FLOAT64 = ("mps", "xpu")  # types of devices some of which have none


@cache
def _constant(values: float | tuple[tuple[float], ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def _divide(a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """a / b as one division. If `a` is a number, torch multiplies by a reciprocal; on CUDA, also if `b` is one."""
    like = a if isinstance(a, torch.Tensor) else b
    assert isinstance(like, torch.Tensor)
    first, second = (
        value if isinstance(value, torch.Tensor) else _constant(value, like.dtype, like.device) for value in (a, b)
    )
    return torch.div(first, second)


def _in_float64(x: torch.Tensor) -> torch.Tensor:
    """One number for each row, in float64; on the host if the device has no float64."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()


def _integers(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """round(x * (127 / max|x|)) over the last axis, integer-valued float32, and max|x|."""
    largest = x.abs().amax(-1, keepdim=True).clamp_min(arithmetic.TINY)
    return torch.round(x * _divide(arithmetic.LARGEST, largest)), largest


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors along the last axis as integers up to 127, integer-valued float32, and their scale."""
    integers, largest = _integers(x)
    return integers, _divide(largest, arithmetic.LARGEST)


def norm(x: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quantize`, of vectors that are divided by their root mean square."""
    integers, largest = _integers(x)
    return integers, _divide(largest, arithmetic.LARGEST) * _factor(integers, largest, epsilon)


def _factor(integers: torch.Tensor, largest: torch.Tensor, epsilon: float) -> torch.Tensor:
    """1 divided by the root mean square of vectors, from their `_integers`."""
    squares = _in_float64((integers * integers).sum(-1, keepdim=True, dtype=torch.int64))  # exact: below 2**53
    unit = _divide(_in_float64(largest), arithmetic.LARGEST)
    factor = _divide(1, torch.sqrt(_divide(squares, integers.shape[-1]) * (unit * unit) + epsilon))
    return factor.float().to(largest.device)


def hadamard(x: torch.Tensor, block: int) -> torch.Tensor:
    """The Hadamard transform of each block of the last axis, not scaled."""
    y, signs = x, _constant(((1.0,), (-1.0,)), x.dtype, x.device)
    step = 1
    while step < block:
        y = y.reshape(*x.shape[:-1], -1, 2, step)
        y = y[..., :1, :] + y[..., 1:, :] * signs  # a + b and a - b
        step *= 2
    return y.reshape(x.shape)


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
        """fallback: see `Linear.products`."""
        self.architecture = a = weights.architecture
        tensors = weights.tensors
        self._tensors = {name: torch.from_numpy(np.array(value)).to(device) for name, value in tensors.items()}
        t = self._tensors

        def linear(name: str, *layer: int) -> Linear:
            bias = t[name + ".bias"][layer] if name + ".bias" in t else None
            return Linear(t[name][layer], t[name + ".scale"][layer], bias, fallback)

        self.layers = [{name: linear(name, i) for name in ("qkv", "mix", "up", "down")} for i in range(a.layers)]
        self.head = linear("head")
        self._exp2 = torch.from_numpy(arithmetic.exp2(np.arange(arithmetic.EXP2_END + 1)).astype(np.float32)).to(device)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [rows] -> float32 [rows, hidden]."""
        t = self._tensors
        return t["embedding"][tokens].float() * t["embedding.scale"][tokens][:, None]

    def enter(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of a memory as they enter the residual stream, float32 [n, hidden]; on the host, in float64."""
        return rotated_vectors(vectors, self.architecture.layer_norm)

    def add_positions(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Add learned positions, if the model has them."""
        return x if self.architecture.rotary is not None else x + self._tensors["position"][positions]

    def heads(self, x: torch.Tensor, positions: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The heads of queries, keys and values, in this order, as integers with a scale for each.

        x: float32 [rows, hidden]. Returns integer-valued float32 [rows, heads, head_size], scales [rows, heads, 1].
        """
        a, t = self.architecture, self._tensors
        y = self.layers[layer]["qkv"](*norm(x, a.epsilon)).view(len(x), -1, a.head_size)
        rotated = a.heads + a.key_heads
        z = y[:, :rotated]
        if a.head_norm:
            factor = _factor(*_integers(z), a.epsilon)
            queries, keys = (t[f"{name}.gain"][layer] for name in ("query", "key"))
            z = torch.cat([z[:, : a.heads] * queries, z[:, a.heads :] * keys], dim=1)
        if a.rotary is not None:
            cosine, sine = (t[name][positions][:, None] for name in ("cosine", "sine"))
            first, second = z.chunk(2, dim=-1)
            z = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
        z = hadamard(z, arithmetic.block_of(a.head_size))
        integers, scale = quantize(torch.cat([z, y[:, rotated:]], dim=1))
        if a.head_norm:
            scale[:, :rotated] *= factor
        return integers, scale

    def attend(
        self, q: torch.Tensor, q_scale: torch.Tensor, k: torch.Tensor, k_scale: torch.Tensor, v: torch.Tensor,
        v_scale: torch.Tensor, seen: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Integer-valued queries [b, key_heads, n, size], keys and values [b, key_heads, p, size], scales [..., 1].

        seen: the positions that each query attends to, bool [b, 1, n, p]. Returns float32 [b, key_heads, n, size].
        """
        products = torch.matmul(q, k.transpose(2, 3))  # exact, since the size of a head is at most 512
        logits = products * (q_scale * float(arithmetic.attention_scale(self.architecture.head_size)))
        logits = (logits * k_scale.transpose(2, 3)).clamp(-arithmetic.FAR, arithmetic.FAR).round().to(torch.int32)
        logits = logits.masked_fill(~seen, -(1 << 30))
        below = logits.amax(-1, keepdim=True) - logits
        # A NaN would become an undefined index of the table, so the index is clamped on both sides.
        weights = self._exp2[below.clamp(0, arithmetic.EXP2_END)]
        total = _in_float64(weights.sum(-1, keepdim=True, dtype=torch.int64))  # exact: below 2**33
        portions = weights * v_scale.transpose(2, 3)
        most = portions.amax(-1, keepdim=True)
        shares = torch.round(portions * _divide(arithmetic.SHARE, most))
        scale = _divide(_in_float64(most), total * arithmetic.SHARE).float().to(most.device)
        return exact_product(shares, v, _POSITIONS).float() * scale

    def mix(self, z: torch.Tensor, layer: int) -> torch.Tensor:
        """The term that attention adds to the residual stream, from the results of `attend` for all query heads."""
        return self.layers[layer]["mix"](*quantize(z))

    def mlp(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """The term that the MLP adds to the residual stream: float32 [rows, hidden], as the input."""
        a, linear = self.architecture, self.layers[layer]
        y = linear["up"](*norm(x, a.epsilon))
        g = y[:, : a.inner]
        first, second = map(float, arithmetic.gate(a.gate))
        near = g.clamp(-arithmetic.GATE_REACH, arithmetic.GATE_REACH)
        u = near * (first + second * (near * near))
        below = torch.round(u.abs() * float(arithmetic.LOGIT_SCALE)).to(torch.int32)
        e, one = (
            self._exp2[below.clamp(0, arithmetic.EXP2_END)],
            float(1 << arithmetic.ATTENTION_BITS),
        )  # as in `attend`
        z = g * torch.div(torch.where(u < 0, e, one), e + one)
        if a.gated:
            z = z * y[:, a.inner :]
        return linear["down"](*quantize(hadamard(z, arithmetic.block_of(a.inner, arithmetic.MOST_ROTATED))))
