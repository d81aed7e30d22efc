"""The coder where the logits are: on the host, or on the device of an LM that has kernels for it."""

from collections.abc import Callable, Sequence
from typing import Any

from memcodec.coding.corrections import Decoder, Group
from memcodec.coding.distribution import Predictions
from memcodec.coding.steering import Steering
from memcodec.lm.model import ExactLM

# Writes the positions from some on, from logits as `Sequences.placed_logits` returns them.
Fill = Callable[[Predictions, int, Any], None]


def filling(lm: ExactLM) -> Fill:
    """How predictions are filled (`Predictions.fill`)."""
    if not lm.implementation.has_coder:
        return lambda predictions, first, logits: predictions.fill(first, logits, lm.vocabulary, lm.team)
    from memcodec.coding import gpu

    coder = _coder(lm)
    return lambda predictions, first, logits: gpu.fill(predictions, first, logits, coder)


def decoder_of(lm: ExactLM, rows: Sequence[Group], share: int) -> Any:
    """The decoder of groups (`corrections.Decoder`). share: of memories, in steps of 1/1024."""
    steering = Steering.of(lm.head)
    if not lm.implementation.has_coder:
        return Decoder(rows, steering, share, lm.team)
    from memcodec.coding import gpu

    return gpu.GpuDecoder(rows, steering, share, _coder(lm))


def _coder(lm: ExactLM) -> Any:
    """Of an LM that has kernels for it."""
    from memcodec.coding import gpu

    implementation: Any = lm.implementation
    return gpu.Coder(implementation)
