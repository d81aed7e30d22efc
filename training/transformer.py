"""The built-in model in floating point, for training: a Llama whose matrices have low-rank additions (LoRA).

The additions are those of Hu et al., "LoRA" (arXiv 2106.09685), added to the weights once a step instead of to every
activation: the gradient of a whole matrix is one matrix product, and its projection onto the two factors costs nothing
beside it. Sequences of any lengths lie one after the other in a batch of a fixed number of tokens.

Matrices are stacked over the layers under the names that spec/FORMAT.md has for the tensors of the exact LM: qkv (rows
of queries, keys and values), mix, up (gate, then what it gates), down; so queries, keys and values share one addition.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MATRICES = ("qkv", "mix", "up", "down")
GAINS = ("attention.gain", "mlp.gain", "gain")
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
HEAD_ROWS = 8192  # positions whose logits exist at one time
POSITIONS = 4096  # of a sequence, at most


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama; theta: base of the rotary frequencies; epsilon: of the norms."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    vocabulary: int
    theta: float
    epsilon: float


@dataclass(frozen=True)
class Batch:
    """Sequences one after the other. tokens: int64 [tokens]; targets: the token after each, -1 where none counts;
    positions: of each token in its sequence; ends: int32 [sequences + 1], where each begins and ends."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    ends: Tensor
    longest: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        tokens, targets = (x.to(device, non_blocking=True) for x in (self.tokens, self.targets))
        positions, ends = (x.to(device, non_blocking=True) for x in (self.positions, self.ends))
        return Batch(tokens, targets, positions, ends, self.longest)


class Adapter(torch.nn.Module):
    """Low-rank additions `b @ a` to stacked matrices, and additions to the gains of norms. All float32.

    rank: of each addition; matrices: which have one; embedding_rank: of the one to the token embeddings (0: none);
    gains: whether norms are trained.
    """

    def __init__(
        self, weights: dict[str, Tensor], rank: int, matrices: tuple[str, ...], embedding_rank: int, gains: bool
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.factors = torch.nn.ParameterDict()
        for name in matrices:
            layers, outputs, inputs = weights[name].shape
            a = torch.randn(layers, rank, inputs, generator=random) / math.sqrt(inputs)
            self.factors[f"{name}/a"] = torch.nn.Parameter(a)
            self.factors[f"{name}/b"] = torch.nn.Parameter(torch.zeros(layers, outputs, rank))
        if embedding_rank:
            tokens, hidden = weights["embedding"].shape
            a = torch.randn(embedding_rank, hidden, generator=random) / math.sqrt(hidden)
            self.factors["embedding/a"] = torch.nn.Parameter(a)
            self.factors["embedding/b"] = torch.nn.Parameter(torch.zeros(tokens, embedding_rank))
        names = GAINS if gains else ()
        for name in names:
            self.factors[name.replace(".", "/")] = torch.nn.Parameter(torch.zeros(weights[name].shape))

    def added_to(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights with these additions, in the dtype of each."""
        result = dict(weights)
        for name in (*MATRICES, "embedding"):
            if f"{name}/a" in self.factors:
                whole = weights[name]
                a, b = (self.factors[f"{name}/{half}"].to(whole.dtype) for half in "ab")
                result[name] = torch.baddbmm(whole, b, a) if whole.ndim == 3 else torch.addmm(whole, b, a)
        for name in GAINS:
            if (key := name.replace(".", "/")) in self.factors:
                result[name] = weights[name] + self.factors[key]
        return result

    def groups(self, rate: float, gain_rate: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: factors, and gains at a rate of their own."""
        factors = [p for name, p in self.factors.items() if name.endswith(("/a", "/b"))]
        gains = [p for name, p in self.factors.items() if not name.endswith(("/a", "/b"))]
        groups = [{"params": factors, "lr": rate, "rate": rate}]
        return [*groups, {"params": gains, "lr": gain_rate, "rate": gain_rate}] if gains else groups


def norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """RMSNorm in float32, in the dtype of `x`."""
    f = x.float()
    return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + epsilon) * gain).to(x.dtype)


def before_attention(
    x: Tensor, qkv: Tensor, gain: Tensor, cosine: Tensor, sine: Tensor, *, shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer: [tokens, hidden] -> [tokens, heads, head size] each."""
    y = functional.linear(norm(x, gain, shape.epsilon), qkv)
    y = y.view(len(x), shape.heads + 2 * shape.key_heads, shape.head_size)
    turned, values = y.tensor_split((shape.heads + shape.key_heads,), dim=1)
    first, second = turned.chunk(2, dim=-1)
    c, s = cosine[:, None], sine[:, None]
    turned = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
    queries, keys = turned.tensor_split((shape.heads,), dim=1)
    return queries, keys, values


def after_attention(
    x: Tensor, z: Tensor, mix: Tensor, up: Tensor, down: Tensor, gain: Tensor, *, epsilon: float
) -> Tensor:
    """The rest of a layer: what attention found, z [tokens, heads, head size], and the gated layer."""
    x = x + functional.linear(z.flatten(1), mix)
    gate, open_ = functional.linear(norm(x, gain, epsilon), up).chunk(2, dim=-1)
    return x + functional.linear(functional.silu(gate) * open_, down)


def attention_by_sequence(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    """Causal attention, one sequence after the other: on any device."""
    found = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        one_q, one_k, one_v = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        found.append(
            functional.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=True, enable_gqa=True)[0].transpose(
                0, 1
            )
        )
    return torch.cat(found)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    """The same on a GPU, all sequences at once."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return torch.ops.aten._flash_attention_forward(q, k, v, ends, ends, longest, longest, 0.0, True, False)[0]


def attention_on(device: torch.device) -> Attention:
    """The attention for a device. The fast one is compared with the plain one, forward and backward, before use."""
    if device.type != "cuda":
        return attention_by_sequence
    ends = torch.tensor([0, 70, 71, 300, 512], dtype=torch.int32, device=device)
    inputs = [torch.randn(512, heads, 64, device=device, dtype=torch.bfloat16) for heads in (9, 3, 3)]

    def results(attention: Attention) -> list[Tensor]:
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        out = attention(q, k, v, ends, 229)
        out.square().sum().backward()
        return [x.detach().float() for x in (out, q.grad, k.grad, v.grad) if x is not None]

    expected = results(attention_by_sequence)
    try:
        found = results(flash_attention)
    except (RuntimeError, AttributeError) as error:  # an operation that this version of torch lacks, or has otherwise
        print(f"flash attention: {error}", flush=True)
        return attention_by_sequence
    worst = max(float((x - y).norm() / y.norm()) for x, y in zip(found, expected, strict=True))
    print(f"flash attention differs by {worst:.4f}", flush=True)
    return flash_attention if worst < 0.02 else attention_by_sequence


SoftmaxLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy, whose logits exist for some rows at a time; gradients are made on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, softmax_loss: SoftmaxLoss) -> Tensor:
        count = (targets >= 0).sum()
        needed = any(ctx.needs_input_grad)
        total = torch.zeros((), device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needed else None
        d_head = torch.zeros(head.shape, device=head.device) if needed else None
        for start in range(0, len(hidden), HEAD_ROWS):
            h, t = hidden[start : start + HEAD_ROWS], targets[start : start + HEAD_ROWS]
            loss, d_logits = softmax_loss(functional.linear(h, head), t, count)
            total += loss
            if d_hidden is not None and d_head is not None:
                d_hidden[start : start + HEAD_ROWS] = d_logits @ head
                d_head += d_logits.T @ h
        ctx.save_for_backward(d_hidden, d_head)
        ctx.dtype = head.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * gradient.to(d_hidden.dtype), (d_head * gradient).to(ctx.dtype), None, None


def softmax_loss(logits: Tensor, targets: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses of some rows over `count`, and its gradient to the logits."""
    counts = targets >= 0
    index = targets.clamp(min=0)[:, None]
    logarithms = torch.log_softmax(logits.float(), dim=-1)
    loss = -(logarithms.gather(1, index)[:, 0] * counts).sum() / count
    right = torch.arange(logits.shape[1], device=logits.device)[None] == index
    gradient = (logarithms.exp() - right.float()) * (counts[:, None] / count)
    return loss, gradient.to(logits.dtype)


class Transformer:
    """The frozen LM. weights: see the module, in the dtype to compute with; gains in float32."""

    def __init__(self, shape: Shape, weights: dict[str, Tensor]) -> None:
        self.shape = shape
        self.weights = weights
        device = weights["embedding"].device
        frequencies = shape.theta ** -(torch.arange(0, shape.head_size, 2, device=device).double() / shape.head_size)
        angles = torch.outer(torch.arange(POSITIONS, device=device).double(), frequencies)
        self._cosine, self._sine = (f(angles).to(weights["embedding"].dtype) for f in (torch.cos, torch.sin))
        self._before: Callable[..., tuple[Tensor, Tensor, Tensor]] = partial(before_attention, shape=shape)
        self._after: Callable[..., Tensor] = partial(after_attention, epsilon=shape.epsilon)
        self._softmax_loss: SoftmaxLoss = softmax_loss
        self.attention = attention_on(device)

    @cached_property
    def sha256(self) -> str:
        """Of the shape and the weights."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for name, values in sorted(self.weights.items()):
            digest.update(name.encode() + values.contiguous().view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()

    def compile(self) -> None:
        """Compile what stands beside attention: for a GPU, where all batches have the same number of tokens."""
        self._before = torch.compile(self._before, dynamic=False)
        self._after = torch.compile(self._after, dynamic=False)
        self._softmax_loss = torch.compile(self._softmax_loss, dynamic=False)

    def hidden(self, batch: Batch, weights: dict[str, Tensor]) -> Tensor:
        """Normed hidden states, [tokens, hidden]."""
        x = functional.embedding(batch.tokens, weights["embedding"])
        cosine, sine = self._cosine[batch.positions], self._sine[batch.positions]
        stacks = {name: weights[name].unbind() for name in (*MATRICES, "attention.gain", "mlp.gain")}
        for n in range(self.shape.layers):
            layer = {name: stack[n] for name, stack in stacks.items()}
            q, k, v = self._before(x, layer["qkv"], layer["attention.gain"], cosine, sine)
            z = self.attention(q, k, v, batch.ends, batch.longest)
            x = self._after(x, z, layer["mix"], layer["up"], layer["down"], layer["mlp.gain"])
        return norm(x, weights["gain"], self.shape.epsilon)

    def loss(self, batch: Batch, adapter: Adapter | None = None) -> Tensor:
        """The mean of -ln p(target) over the targets that count."""
        weights = self.weights if adapter is None else adapter.added_to(self.weights)
        return _CrossEntropy.apply(self.hidden(batch, weights), weights["embedding"], batch.targets, self._softmax_loss)

    @torch.no_grad()
    def bits(self, batch: Batch, adapter: Adapter | None = None) -> Tensor:
        """-log2 p of each target, float32 [tokens]; 0 where none counts."""
        weights = self.weights if adapter is None else adapter.added_to(self.weights)
        hidden = self.hidden(batch, weights)
        found = []
        for start in range(0, len(hidden), 2048):
            logits = functional.linear(hidden[start : start + 2048], weights["embedding"]).float()
            targets = batch.targets[start : start + 2048]
            costs = functional.cross_entropy(logits, targets.clamp(min=0), reduction="none")
            found.append(costs * (targets >= 0) / math.log(2))
        return torch.cat(found)
