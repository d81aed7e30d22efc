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
from memcodec.errors import MachineError, first_line
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
def check(device: str) -> None:
    """Raise MachineError unless a device predicts and decodes the tokens of a tiny LM as the CPU does.

    device: of torch. The tokens are encoded on the CPU, under a memory.
    """
    require(_codes_exactly, "the coder", device)


def require(test: Callable[[Example], bool], name: str, device: str) -> None:
    """Raise MachineError, with the name of what is tested, if a test is false, or fails with any error."""
    reason = "wrong results"
    try:
        if test(example(device)):
            return
    except Exception as error:  # of Triton, its compilers or the driver
        reason = first_line(error)
    raise MachineError(f"{name} does not compute exactly on {device} ({reason})")


def _codes_exactly(of: Example) -> bool:
    """Whether predictions and decoded tokens are those of the CPU."""
    found = predictions(of.tokens, of.logits, of.coder)()
    encoder = Encoder(of.steering, _SHARE)
    encoder.write(of.expected, _MEMORY)
    group = EncodedGroup((len(of.tokens),), (_MEMORY,), encoder.finish())
    first = np.zeros(1, dtype=np.int64)
    decoder = GpuDecoder([group], of.steering, _SHARE, of.coder)
    decoded = decoder.read(first, first, np.array([len(of.tokens)]), of.logits)
    return all(_same(found, of.expected, name) for name in _FIELDS) and np.array_equal(decoded, of.tokens)


def _same(found: Predictions, expected: Predictions, name: str) -> bool:
    """Whether two predictions agree in a field, where it is defined."""
    ours, theirs = getattr(found, name), getattr(expected, name)
    if name == "below":  # of the best tokens, of which there may be fewer than columns
        ours, theirs = ours[expected.ids >= 0], theirs[expected.ids >= 0]
    if name == "near":  # of the tokens of a block, which the vocabulary does not fill
        ours, theirs = (near[:, : selftest.tiny("gated").architecture.vocabulary] for near in (ours, theirs))
    return np.array_equal(ours, theirs)
