"""How the prompt site's memories are fitted: by gradient descent through the frozen LM, in floating point.

The memory token of Sastre and Rosá (arXiv 2506.15001): input embeddings before the first token, changed until greedy
decoding from them writes the chunk. An encoder's affair, which may change without notice.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from memcodec.errors import EncodeError, needs_torch
from memcodec.memory.vectors import pack_halves, pack_levels, unpack
from memcodec.models.floats import FrozenLM
from memcodec.settings import SCHEDULES, Prompt

try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    raise needs_torch(error) from error

# Half the distance of neighbouring levels, in standard deviations of the entries, that loses least on a normal
# distribution (Max, 1960); an encoder's choice, since the scale is stored.
_HALF_STEP = {1: 0.798, 2: 0.498, 3: 0.293, 4: 0.168, 8: 0.0155}
_HIGHEST = 65504.0  # of binary16
_RIVALS = 16  # tokens whose logits the loss holds against the target's
_HEAD_POSITIONS = 256  # positions whose logits exist at one time: 50 MB at a vocabulary of 49152
_PASS_POSITIONS = 1024  # in one pass with gradients, padding included: 1.7 GB on the default model
_SHORT = 256  # positions of a row up to which the CPU keeps attention weights for the backward pass
# Factor of the learning rate, by the share of the steps that is gone.
_SHAPES: tuple[Callable[[float], float], ...] = (
    lambda gone: 1.0,
    lambda gone: 1 - 0.95 * gone,
    lambda gone: 0.05 + 0.95 * (1 + math.cos(math.pi * gone)) / 2,
)
_SCHEDULES = dict(zip(SCHEDULES, _SHAPES, strict=True))
AUTO = (1, 2, 4, 8, 16, 32, 64)  # numbers of vectors that are tried in turn


def behind_prefix(lm: FrozenLM, vectors: torch.Tensor) -> torch.Tensor:
    """What stands before the first token: the LM's prefix, then the vectors, float32 [rows, n, dimensions].

    LMs put what they need at position 0, whatever is there (an "attention sink"): a memory at that place could hardly
    make the LM write any first token it wants.
    """
    return torch.cat([lm.prefix_embeddings(len(vectors)), vectors], dim=1)


@torch.no_grad()
def write(lm: FrozenLM, vectors: np.ndarray, tokens: int) -> np.ndarray:
    """What the LM writes by greedy decoding: float32 [rows, n, dimensions] -> token ids, int64 [rows, tokens]."""
    step = lm.start(len(vectors), tokens, behind_prefix(lm, torch.from_numpy(vectors).to(lm.device)))
    written = np.zeros((len(vectors), tokens), dtype=np.int64)
    for t in range(tokens):
        states = step(None if t == 0 else torch.from_numpy(written[:, t - 1]))
        written[:, t] = lm.logits(states).argmax(dim=1).cpu().numpy()
    return written


def pack(vectors: torch.Tensor, bits: int) -> bytes:
    """Quantize and pack vectors, float32 [n, dimensions]."""
    if bits == 16:
        return pack_halves(vectors.detach().clamp(-_HIGHEST, _HIGHEST).cpu().numpy())
    levels, scales = (x.cpu().numpy() for x in _levels(vectors.detach(), bits))
    return pack_levels(levels, scales, bits)


def _levels(vectors: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The level of each entry, 0 to 2**bits - 1, and the scale of each vector [..., 1], rounded to float16."""
    scales = vectors.square().mean(dim=-1, keepdim=True).sqrt() * _HALF_STEP[bits]
    scales = scales.clamp(6e-8, _HIGHEST).half().float()
    top = 2**bits - 1
    return ((vectors / scales + top) / 2).round().clamp(0, top), scales


def _quantized(vectors: torch.Tensor, bits: int) -> torch.Tensor:
    """What `unpack` makes of `pack`, with the gradient of the vectors themselves (straight-through)."""
    if bits == 16:
        rounded = vectors.clamp(-_HIGHEST, _HIGHEST).half().float()
    else:
        levels, scales = _levels(vectors, bits)
        rounded = (2 * levels + 1 - 2**bits) * scales
    return vectors + (rounded - vectors).detach()


@dataclass
class Fit:
    """The memory of one chunk: the best packed one so far, and how its fit went.

    written: tokens that it is known to write, by `sure` logits, given the true ones before; prefix: how many of them
    come before the first that it does not. By step, losses: nats per token of the target so far, those that no longer
    pull counted as 0; accuracies: share of the chunk's tokens that are written, those beyond the target counted as
    wrong.
    """

    tokens: int
    memory: bytes = b""
    written: int = -1
    prefix: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether greedy decoding writes the whole chunk."""
        return self.prefix == self.tokens


@dataclass(frozen=True)
class FitStep:
    """A report on one step.

    vectors: the number tried; chunks: how many are still being fitted; loss, accuracy: their means; prefix: tokens
    before the first miss, summed over all chunks.
    """

    vectors: int
    step: int
    chunks: int
    loss: float
    accuracy: float
    prefix: int


FitCallback = Callable[[FitStep], None]


def fit(
    lm: FrozenLM,
    chunks: list[np.ndarray],
    fitting: Prompt,
    callback: FitCallback | None = None,
    positions: int | None = None,
) -> list[Fit]:
    """Fit the memories of chunks (int64 [tokens] each) side by side.

    positions: of the LM that will read the memories, where it has fewer than this one.
    Where the steps end first, the memory is the one that wrote most: the longest prefix, or the most tokens where
    `fitting` looks at all of them. Raises EncodeError for settings out of range, and for chunks too long for the model.
    """
    fitting.check()
    most = min((n for n in (lm.max_positions, positions) if n is not None), default=None)
    room = math.inf if most is None else most - len(lm.prefix)
    counts = AUTO if fitting.vectors is None else (fitting.vectors,)
    longest = max(map(len, chunks), default=0)
    if longest + counts[0] > room:
        raise EncodeError(f"chunks of {longest} tokens and {counts[0]} vectors: the model has {most} positions")
    best = [Fit(len(tokens)) for tokens in chunks]
    for count in counts:
        open_ = [i for i, tokens in enumerate(chunks) if not best[i].exact and len(tokens) + count <= room]
        if count > counts[0]:  # more vectors than tokens would be no memory any more
            open_ = [i for i in open_ if count <= len(chunks[i])]
        if not open_:
            break
        settled = sum(fit.tokens for fit in best if fit.exact)
        known = [best[i].memory for i in open_]
        found = _fit_count(lm, [chunks[i] for i in open_], known, count, fitting, settled, callback)
        for i, new in zip(open_, found, strict=True):
            old = best[i]
            better = fitting.prefers((new.written, new.prefix), (old.written, old.prefix))
            best[i] = replace(
                new if better else old,
                steps=old.steps + new.steps,
                losses=old.losses + new.losses,
                accuracies=old.accuracies + new.accuracies,
            )
    return best


@torch.enable_grad()
def _fit_count(
    lm: FrozenLM,
    chunks: list[np.ndarray],
    known: list[bytes],
    count: int,
    fitting: Prompt,
    settled: int,
    callback: FitCallback | None,
) -> list[Fit]:
    """Fit `count` vectors to each chunk. known: what fewer reached; settled: tokens of other chunks, for reports."""
    unit = lm.embedding_scale()
    generator = torch.Generator().manual_seed(fitting.seed)  # on the CPU: the same start on every device
    first = torch.randn(len(chunks), count, lm.embedding_size, generator=generator) * (fitting.start * unit)
    for row, memory in zip(first, known, strict=True):
        if memory:  # the new ones behind those that are there: they are what the first token sees last
            reached = torch.from_numpy(unpack(memory, lm.embedding_size, fitting.bits))
            row[: len(reached)] = reached
    memories = [torch.nn.Parameter(memory.to(lm.device)) for memory in first]
    optimizer = _optimizer(memories, fitting, unit)
    shape = _SCHEDULES[fitting.schedule]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(step / fitting.steps))
    fits = [Fit(len(tokens)) for tokens in chunks]
    moved = [(0, (-1, 0))] * len(chunks)  # the step of the last gain, and what it reached
    longest = max(map(len, chunks))
    live = list(range(len(chunks)))
    for step in range(1, fitting.steps + 1):
        ahead = fitting.ahead or longest
        goals = [min(len(chunks[i]), fits[i].prefix + ahead) for i in live]
        optimizer.zero_grad()  # a memory without a gradient stays as it is
        lengths = [len(lm.prefix) + count + goal for goal in goals]
        for rows in _passes(lengths):
            some = [live[r] for r in rows]
            targets = [chunks[i][: goals[r]] for i, r in zip(some, rows, strict=True)]
            with _room(lm, max(lengths[r] for r in rows)):
                shown = _quantized(torch.stack([memories[i] for i in some]), fitting.bits)
                losses_ = _loss_of(lm, shown, targets, fitting.sure, fitting.slack)
                losses_.pull.backward()  # type: ignore[no-untyped-call]
            for i, written, loss in zip(some, losses_.written, losses_.losses, strict=True):
                _note(fits[i], written, loss, memories[i], fitting)
        optimizer.step()
        schedule.step()
        if callback is not None:
            loss = sum(fits[i].losses[-1] for i in live) / len(live)
            accuracy = sum(fits[i].accuracies[-1] for i in live) / len(live)
            prefix = settled + sum(fit.prefix for fit in fits)
            callback(FitStep(count, step, len(live), loss, accuracy, prefix))
        for i in live:
            now = fits[i].written, fits[i].prefix
            if now != moved[i][1]:
                moved[i] = step, now
        live = [i for i in live if not fits[i].exact and step - moved[i][0] < fitting.patience]
        if not live:
            break
    return fits


def _optimizer(memories: list[torch.nn.Parameter], fitting: Prompt, unit: float) -> torch.optim.Optimizer:
    """unit: the scale of the token embeddings."""
    if fitting.optimizer == "sgd":
        return torch.optim.SGD(memories, fitting.learning_rate)
    return torch.optim.Adam(memories, fitting.learning_rate * unit, fitting.betas, eps=1e-12)


@dataclass(frozen=True)
class _Losses:
    """One pass over a few chunks: what to descend, and by chunk which tokens are written and the mean loss."""

    pull: torch.Tensor
    written: list[np.ndarray]
    losses: list[float]


def _passes(lengths: list[int]) -> list[list[int]]:
    """Rows in groups of at most _PASS_POSITIONS, padding included, or of one; the longest first."""
    passes: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        if not passes or (len(passes[-1]) + 1) * lengths[passes[-1][0]] > _PASS_POSITIONS:
            passes.append([])
        passes[-1].append(row)
    return passes


@contextmanager
def _room(lm: FrozenLM, longest: int) -> Iterator[None]:
    """A pass with gradients over rows of up to `longest` positions, in the way that suits their length."""
    with ExitStack() as ways:
        if longest > _PASS_POSITIONS:
            ways.enter_context(lm.checkpointed())
        if lm.device.type != "cpu" or longest <= _SHORT:
            # fused attention is not repeatable on GPUs, and takes twice as long on CPUs for rows this short
            ways.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _loss_of(lm: FrozenLM, prompts: torch.Tensor, chunks: list[np.ndarray], sure: float, slack: float) -> _Losses:
    """The loss of chunks (int64 [tokens] each) under prompts, float32 [chunks, n, dimensions].

    Cross-entropy among the target and its strongest rivals, over the tokens that do not yet win by more than the slack.
    """
    lengths = [len(tokens) for tokens in chunks]
    rows = np.zeros((len(chunks), max(lengths)), dtype=np.int64)
    for row, tokens in zip(rows, chunks, strict=True):
        row[: len(tokens)] = tokens
    known = torch.from_numpy(np.arange(rows.shape[1]) < np.array(lengths)[:, None]).to(lm.device)
    ids = torch.from_numpy(rows).to(lm.device)
    states = lm.hidden(ids, behind_prefix(lm, prompts))[known]
    targets = ids[known][:, None]
    count = min(_RIVALS, lm.vocabulary)
    with torch.no_grad():
        slices = torch.split(states, _HEAD_POSITIONS)
        rivals = torch.cat([lm.logits(some).topk(count, dim=1).indices for some in slices])
    logits = lm.logits_of(states, torch.cat([targets, rivals], dim=1))
    others = logits[:, 1:].masked_fill(rivals == targets, -torch.inf)
    gaps = (logits[:, 0] - others.max(dim=1).values).detach()
    losses = torch.logsumexp(torch.cat([logits[:, :1], others], dim=1), dim=1) - logits[:, 0]
    losses = losses * (gaps < sure + slack)
    written = torch.split((gaps > sure).cpu(), lengths)
    means = [part.mean().item() for part in torch.split(losses.detach().cpu(), lengths)]
    return _Losses(losses.sum(), [part.numpy() for part in written], means)


def _note(fit: Fit, written: np.ndarray, loss: float, vectors: torch.Tensor, fitting: Prompt) -> None:
    """Take a step into a fit's record; keep its memory if it is the best so far."""
    count, prefix = int(written.sum()), int(written.cumprod().sum())
    fit.steps += 1
    fit.losses.append(loss)
    fit.accuracies.append(count / fit.tokens)
    if fitting.prefers((count, prefix), (fit.written, fit.prefix)):
        fit.memory, fit.written, fit.prefix = pack(vectors, fitting.bits), count, prefix
