"""How the memories of the prompt site are fitted: by gradient descent through the frozen LM, in floating point.

The memory token of Sastre and Rosá (arXiv 2506.15001): input embeddings before the first token, changed until greedy
decoding from them writes the chunk. Only encoders do this, so it may change in any version.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from memcodec.errors import EncodeError, needs_torch
from memcodec.memory.vectors import pack_halves, pack_levels, unpack
from memcodec.models.floats import FrozenLM
from memcodec.settings import Prompt

try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    raise needs_torch(error) from error

# Half the distance between levels, in standard deviations of the entries, that loses least on a normal distribution
# (Max, 1960). Encoders are free to choose another, since the scale is stored.
_HALF_STEP = {1: 0.798, 2: 0.498, 3: 0.293, 4: 0.168, 8: 0.0155}
_HIGHEST = 65504.0  # of binary16
_START = 16.0  # standard deviation of the first memory, in scales of the token embeddings
_BETAS = (0.9, 0.9)  # Adam's; short memory of squares, as in published work on memory tokens: the loss keeps changing
_RIVALS = 16  # tokens whose logits the loss compares with the target's
_SHORT = 256  # positions of a row up to which the CPU keeps attention weights for the backward pass
AUTO = (1, 2, 4, 8, 16, 32, 64)  # numbers of vectors that are tried in turn


@dataclass(frozen=True)
class Objective:
    """The aim of a fit.

    ahead: how many tokens are in the loss after the longest prefix that the memory writes, None for all; sure: the
    margin, in logits, at which a token counts as written; slack: it leaves the loss at a margin of sure + slack.
    """

    ahead: int | None = 16
    slack: float = 4.0
    sure: float = 0.5

    def check(self) -> None:
        """Raise EncodeError for values out of range."""
        if self.ahead is not None and self.ahead < 1:
            raise EncodeError(f"ahead {self.ahead}: give 1 or more tokens")
        if not (0 <= self.slack < 1e4 and 0 <= self.sure < 1e4):
            raise EncodeError(f"slack {self.slack:g}, sure {self.sure:g}: give numbers from 0 to below 10,000")

    def prefers(self, new: tuple[int, int], old: tuple[int, int]) -> bool:
        """Whether a memory is better than another, by two counts: (tokens written, tokens before the first miss).

        With `ahead`, the second count decides first, since few tokens after the first miss are in the loss.
        """
        return new > old if self.ahead is None else new[::-1] > old[::-1]


OBJECTIVE = Objective()


@dataclass(frozen=True)
class Limits:
    """Limits of the main memory (RAM) that a fit uses: 1.7 GB with the default model.

    pass_positions: the most positions in one pass with gradients, including padding; head_positions: the most whose
    logits exist at the same time (256 are 50 MB at a vocabulary of 49152).
    """

    pass_positions: int = 1024
    head_positions: int = 256


LIMITS = Limits()


def after_prefix(lm: FrozenLM, vectors: torch.Tensor) -> torch.Tensor:
    """The embeddings before the first token: the LM's prefix, then the vectors, float32 [rows, n, dimensions].

    LMs attend strongly to position 0, whatever is there (an "attention sink"). A memory at that position could hardly
    make the LM write a first token.
    """
    return torch.cat([lm.prefix_embeddings(len(vectors)), vectors], dim=1)


@torch.no_grad()
def write(lm: FrozenLM, vectors: np.ndarray, tokens: int) -> np.ndarray:
    """The token ids, int64 [rows, tokens], that greedy decoding writes from vectors, float32 [rows, n, dimensions]."""
    step = lm.start(len(vectors), tokens, after_prefix(lm, torch.from_numpy(vectors).to(lm.device)))
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


def quantized(vectors: torch.Tensor, bits: int) -> torch.Tensor:
    """The vectors after `pack` and `unpack`, with the gradient of the vectors themselves (straight-through)."""
    if bits == 16:
        rounded = vectors.clamp(-_HIGHEST, _HIGHEST).half().float()
    else:
        levels, scales = _levels(vectors, bits)
        rounded = (2 * levels + 1 - 2**bits) * scales
    return vectors + (rounded - vectors).detach()


@dataclass
class Fit:
    """The memory of one chunk: the best packed one so far, and how its fit went.

    written: tokens that it is known to write with a margin of `sure` logits, given the true tokens before each; prefix:
    how many of them come before the first miss. By step, losses: nats per token of the target at that step, 0 for
    tokens that have left the loss; accuracies: the share of the chunk's tokens that are written, counting those beyond
    the target as wrong.
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

    vectors: the number that is tried; chunks: how many are still being fitted; loss, accuracy: their means; prefix:
    tokens before the first miss, summed over all chunks.
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
    settings: Prompt,
    callback: FitCallback | None = None,
    positions: int | None = None,
    objective: Objective = OBJECTIVE,
    limits: Limits = LIMITS,
) -> list[Fit]:
    """Fit the memories of chunks (int64 [tokens] each) in parallel.

    positions: of the LM that will read the memories, if it has fewer than this one. If a fit is not exact, its memory
    is the one that the objective prefers. Raises EncodeError for settings out of range, and for chunks too long for the
    model.
    """
    objective.check()
    most = min((n for n in (lm.max_positions, positions) if n is not None), default=None)
    room = math.inf if most is None else most - len(lm.prefix)
    counts = AUTO if settings.vectors is None else (settings.vectors,)
    longest = max(map(len, chunks), default=0)
    if longest + counts[0] > room:
        raise EncodeError(f"chunks of {longest} tokens and {counts[0]} vectors: the model has {most} positions")
    best = [Fit(len(tokens)) for tokens in chunks]
    for count in counts:
        unfinished = [i for i, tokens in enumerate(chunks) if not best[i].exact and len(tokens) + count <= room]
        if count > counts[0]:  # no chunk gets more vectors than it has tokens
            unfinished = [i for i in unfinished if count <= len(chunks[i])]
        if not unfinished:
            break
        finished = sum(fit.tokens for fit in best if fit.exact)
        batch = _Batch(lm, [chunks[i] for i in unfinished], count, settings, objective, limits)
        new_fits = batch.fit([best[i].memory for i in unfinished], finished, callback)
        for i, new in zip(unfinished, new_fits, strict=True):
            old = best[i]
            better = objective.prefers((new.written, new.prefix), (old.written, old.prefix))
            best[i] = replace(
                new if better else old,
                steps=old.steps + new.steps,
                losses=old.losses + new.losses,
                accuracies=old.accuracies + new.accuracies,
            )
    return best


@dataclass(frozen=True)
class _Batch:
    """Chunks that are fitted in parallel, with the same number of vectors for each."""

    lm: FrozenLM
    chunks: list[np.ndarray]
    count: int
    settings: Prompt
    objective: Objective
    limits: Limits

    @torch.enable_grad()
    def fit(self, known: list[bytes], finished: int, callback: FitCallback | None) -> list[Fit]:
        """Fit all chunks.

        known: the memory of each with fewer vectors, or b""; finished: tokens of other chunks, for reports.
        """
        settings, unit = self.settings, self.lm.embedding_scale()
        memories = self._first_memories(known, unit)
        optimizer = torch.optim.Adam(memories, settings.learning_rate * unit, _BETAS, eps=1e-12)
        fits = [Fit(len(tokens)) for tokens in self.chunks]
        gains = [(0, (-1, 0))] * len(fits)  # the step of the last gain, and the tokens written since
        live = list(range(len(fits)))
        for step in range(1, settings.steps + 1):
            optimizer.zero_grad()  # a memory without a gradient stays as it is
            self._pass(live, fits, memories)
            optimizer.step()
            if callback is not None:
                loss = sum(fits[i].losses[-1] for i in live) / len(live)
                accuracy = sum(fits[i].accuracies[-1] for i in live) / len(live)
                prefix = finished + sum(fit.prefix for fit in fits)
                callback(FitStep(self.count, step, len(live), loss, accuracy, prefix))
            for i in live:
                now = fits[i].written, fits[i].prefix
                if now != gains[i][1]:
                    gains[i] = step, now
            live = [i for i in live if not fits[i].exact and step - gains[i][0] < settings.patience]
            if not live:
                break
        return fits

    def _first_memories(self, known: list[bytes], unit: float) -> list[torch.nn.Parameter]:
        """Noise, with the known vectors in front. unit: the scale of the token embeddings."""
        lm, settings = self.lm, self.settings
        generator = torch.Generator().manual_seed(settings.seed)  # on the CPU: the same start on every device
        noise = torch.randn(len(known), self.count, lm.embedding_size, generator=generator) * (_START * unit)
        for row, memory in zip(noise, known, strict=True):
            if memory:  # new vectors come after the known ones, next to the first token
                vectors = torch.from_numpy(unpack(memory, lm.embedding_size, settings.bits))
                row[: len(vectors)] = vectors
        return [torch.nn.Parameter(memory.to(lm.device)) for memory in noise]

    def _pass(self, live: list[int], fits: list[Fit], memories: list[torch.nn.Parameter]) -> None:
        """Gradients of the memories that are still being fitted, and a record of the step in each fit."""
        lm, bits = self.lm, self.settings.bits
        ahead = self.objective.ahead or max(map(len, self.chunks))
        goals = [min(len(self.chunks[i]), fits[i].prefix + ahead) for i in live]
        lengths = [len(lm.prefix) + self.count + goal for goal in goals]
        for rows in _passes(lengths, self.limits.pass_positions):
            numbers = [live[r] for r in rows]
            targets = [self.chunks[i][: goals[r]] for i, r in zip(numbers, rows, strict=True)]
            with _limited_ram(lm, max(lengths[r] for r in rows), self.limits.pass_positions):
                vectors = quantized(torch.stack([memories[i] for i in numbers]), bits)
                losses = _losses_of(lm, vectors, targets, self.objective, self.limits.head_positions)
                losses.total.backward()  # type: ignore[no-untyped-call]
            for i, written, loss in zip(numbers, losses.written, losses.means, strict=True):
                self._record(fits[i], written, loss, memories[i])

    def _record(self, fit: Fit, written: np.ndarray, loss: float, vectors: torch.Tensor) -> None:
        """Record a step in a fit, and keep its memory if it is the best so far."""
        count, prefix = int(written.sum()), int(written.cumprod().sum())
        fit.steps += 1
        fit.losses.append(loss)
        fit.accuracies.append(count / fit.tokens)
        if self.objective.prefers((count, prefix), (fit.written, fit.prefix)):
            fit.memory, fit.written, fit.prefix = pack(vectors, self.settings.bits), count, prefix


@dataclass(frozen=True)
class _Losses:
    """The loss of one pass over a few chunks; for each chunk, which tokens are written, and the mean loss in nats."""

    total: torch.Tensor
    written: list[np.ndarray]
    means: list[float]


def _passes(lengths: list[int], most: int) -> list[list[int]]:
    """Rows in passes of at most `most` positions, including padding, or of one row; the longest rows first."""
    passes: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        if not passes or (len(passes[-1]) + 1) * lengths[passes[-1][0]] > most:
            passes.append([])
        passes[-1].append(row)
    return passes


@contextmanager
def _limited_ram(lm: FrozenLM, longest: int, most: int) -> Iterator[None]:
    """Settings for a pass with gradients over rows of up to `longest` positions. most: positions of a usual pass."""
    with ExitStack() as contexts:
        if longest > most:
            contexts.enter_context(lm.checkpointed())
        if lm.device.type != "cpu" or longest <= _SHORT:
            # Fused attention is not deterministic on GPUs, and takes twice as long on CPUs for rows this short.
            contexts.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _losses_of(
    lm: FrozenLM, prompts: torch.Tensor, chunks: list[np.ndarray], objective: Objective, head_positions: int
) -> _Losses:
    """The loss of chunks (int64 [tokens] each) under prompts, float32 [chunks, n, dimensions].

    Cross-entropy among the target and its strongest rivals, over the tokens that do not yet win by the margin.
    """
    lengths = [len(tokens) for tokens in chunks]
    rows = np.zeros((len(chunks), max(lengths)), dtype=np.int64)
    for row, tokens in zip(rows, chunks, strict=True):
        row[: len(tokens)] = tokens
    known = torch.from_numpy(np.arange(rows.shape[1]) < np.array(lengths)[:, None]).to(lm.device)
    ids = torch.from_numpy(rows).to(lm.device)
    states = lm.hidden(ids, after_prefix(lm, prompts))[known]
    targets = ids[known][:, None]
    count = min(_RIVALS, lm.vocabulary)
    with torch.no_grad():
        slices = torch.split(states, head_positions)
        rivals = torch.cat([lm.logits(block).topk(count, dim=1).indices for block in slices])
    logits = lm.logits_of(states, torch.cat([targets, rivals], dim=1))
    others = logits[:, 1:].masked_fill(rivals == targets, -torch.inf)
    margins = (logits[:, 0] - others.max(dim=1).values).detach()
    losses = torch.logsumexp(torch.cat([logits[:, :1], others], dim=1), dim=1) - logits[:, 0]
    losses = losses * (margins < objective.sure + objective.slack)
    written = torch.split((margins > objective.sure).cpu(), lengths)
    means = [chunk.mean().item() for chunk in torch.split(losses.detach().cpu(), lengths)]
    return _Losses(losses.sum(), [chunk.numpy() for chunk in written], means)
