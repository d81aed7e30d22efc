"""The self-test of the coder's kernels for GPUs, as `lm.selftest` is that of the LM's."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from memcodec.coding.corrections import EncodedGroup, Encoder
from memcodec.coding.distribution import Predictions
from memcodec.coding.gpu import Coder, GpuDecoder, predictions
from memcodec.coding.steering import Steering
from memcodec.errors import first_line
from memcodec.lm import selftest
from memcodec.lm.gpu import GpuLM
from memcodec.lm.sequences import SequenceInput
from memcodec.lm.team import team_of

_TOKENS = 20
_SHARE = 200  # of the memory, in steps of 1/1024
_MEMORY = bytes(range(7, 47, 4))  # any bytes
_FIELDS = ("ids", "below", "total", "entropy", "blocks", "near")


class Example(NamedTuple):
    """The tokens of a tiny LM, whose logits are on a device, and what the CPU predicts from these logits."""

    coder: Coder
    steering: Steering
    tokens: np.ndarray  # int64
    logits: torch.Tensor
    expected: Predictions


def example(device: str) -> Example:
    """Returns the example for self-tests on a device of torch."""
    weights, tokens = selftest.tiny("gated"), selftest.TOKENS[:_TOKENS]
    lm = GpuLM(weights, device)
    sequences = lm.sequences(1, len(tokens), len(tokens))
    sequences.forward([SequenceInput(0, tokens)])
    vocabulary = weights.architecture.vocabulary
    expected = Predictions.empty(tokens, vocabulary)
    expected.fill(0, sequences.logits(slice(None))[:, :vocabulary], vocabulary, team_of(1))
    logits: Any = sequences.placed_logits(slice(None))
    return Example(Coder(lm), Steering.of(weights.head), tokens, logits, expected)


@cache
def failure_of_coder(device: str) -> str:
    """Why the coder cannot be used on a device of torch; empty if it predicts and decodes as the CPU does.

    It codes the tokens of a tiny LM, which are encoded on the CPU, under a memory.
    """
    return failure(_codes_exactly, "the coder", device)


def failure(test: Callable[[Example], bool], name: str, device: str) -> str:
    """A text that says that `name` cannot be used, if a test of it is false or fails; empty otherwise."""
    reason = "wrong results"
    try:
        if test(example(device)):
            return ""
    except Exception as error:  # of Triton, its compilers or the driver
        reason = first_line(error)
    return f"{name} cannot be used on {device} ({reason})"


def _codes_exactly(of: Example) -> bool:
    """Whether predictions and decoded tokens are those of the CPU."""
    found = predictions(of.tokens, of.logits, of.coder)()
    encoder = Encoder(of.steering, _SHARE)
    encoder.write(of.expected, _MEMORY)
    group = EncodedGroup((len(of.tokens),), (_MEMORY,), encoder.finish())
    first = np.zeros(1, dtype=np.int64)
    decoder = GpuDecoder([group], of.steering, _SHARE, of.coder)
    decoded = decoder.read(first, first, np.array([len(of.tokens)]), of.logits)
    vocabulary = of.coder.lm.vocabulary
    return all(_same(found, of.expected, name, vocabulary) for name in _FIELDS) and np.array_equal(decoded, of.tokens)


def _same(found: Predictions, expected: Predictions, name: str, vocabulary: int) -> bool:
    """Whether two predictions agree in a field, where it is defined. vocabulary: less than a block."""
    ours, theirs = getattr(found, name), getattr(expected, name)
    if name == "below":  # of the best tokens, of which there may be fewer than columns
        ours, theirs = ours[expected.ids >= 0], theirs[expected.ids >= 0]
    if name == "near":  # of the tokens of a block, which the vocabulary does not fill
        ours, theirs = ours[:, :vocabulary], theirs[:, :vocabulary]
    return np.array_equal(ours, theirs)
