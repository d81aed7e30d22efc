"""The self-test of the coder's kernels for GPUs, as `lm.selftest` is that of the LM's."""

from functools import cache

import numpy as np

from memcodec.coding.corrections import EncodedGroup, Encoder
from memcodec.coding.distribution import Predictions
from memcodec.coding.gpu import Coder, GpuDecoder, predictions
from memcodec.coding.steering import Steering
from memcodec.errors import MachineError
from memcodec.lm import selftest
from memcodec.lm.gpu import GpuLM
from memcodec.lm.sequences import SequenceInput
from memcodec.lm.team import team_of

_TOKENS = 20
_SHARE = 200  # of the memory, in steps of 1/1024
_MEMORY = bytes(range(7, 47, 4))  # any bytes
_FIELDS = ("ids", "below", "total", "entropy", "blocks", "near")


@cache
def check(device: str) -> None:
    """Raise MachineError unless a device predicts and decodes the tokens of a tiny LM as the CPU does.

    device: of torch. The tokens are encoded on the CPU, under a memory.
    """
    weights, tokens = selftest.tiny("gated"), selftest.TOKENS[:_TOKENS]
    lm = GpuLM(weights, device)
    sequences = lm.sequences(1, len(tokens), len(tokens))
    sequences.forward([SequenceInput(0, tokens)])
    every = slice(None)
    vocabulary = weights.architecture.vocabulary
    expected = Predictions.empty(tokens, vocabulary)
    expected.fill(0, sequences.logits(every)[:, :vocabulary], vocabulary, team_of(1))
    coder, steering = Coder(lm), Steering.of(weights.head)
    logits = sequences.placed_logits(every)
    found = predictions(tokens, logits, coder)()
    encoder = Encoder(steering, _SHARE)
    encoder.write(expected, _MEMORY)
    decoder = GpuDecoder([EncodedGroup((len(tokens),), (_MEMORY,), encoder.finish())], steering, _SHARE, coder)
    first = np.zeros(1, dtype=np.int64)
    decoded = decoder.read(first, first, np.array([len(tokens)]), logits)
    if not (all(_same(found, expected, name, vocabulary) for name in _FIELDS) and np.array_equal(decoded, tokens)):
        raise MachineError(f"the coder does not compute exactly on {device}: use --device cpu, and report it")


def _same(found: Predictions, expected: Predictions, name: str, vocabulary: int) -> bool:
    """Whether two predictions agree in a field, where it is defined. vocabulary: less than a block."""
    ours, theirs = getattr(found, name), getattr(expected, name)
    if name == "below":  # of the best tokens, of which there may be fewer than columns
        ours, theirs = ours[expected.ids >= 0], theirs[expected.ids >= 0]
    if name == "near":  # of the tokens of a block
        ours, theirs = ours[:, :vocabulary], theirs[:, :vocabulary]
    return np.array_equal(ours, theirs)
