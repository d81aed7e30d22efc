"""The coder where the logits are: on the host, or on the device of an LM that has kernels for it."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memcodec.coding.corrections import Decoder, EncodedGroup
from memcodec.coding.distribution import Predictions
from memcodec.coding.steering import Steering
from memcodec.lm.choice import tell_failure
from memcodec.lm.model import ExactLM
from memcodec.lm.sequences import ON_CPU

# Takes the tokens of some positions, int64 [rows], and their logits as `Sequences.placed_logits` returns them, which
# may be overwritten afterwards. Calling the result waits for the predictions.
Predict = Callable[[np.ndarray, Any], Callable[[], Predictions]]


def is_on_device(lm: ExactLM) -> bool:
    """Whether the coder of an LM runs on its device: there are kernels for it, and they pass their self-test.

    If they fail, a warning says so, and the coder runs on the host from then on.
    """
    implementation: Any = lm.implementation
    if implementation.has_coder and implementation.coder is None:
        from memcodec.coding import gpu_check

        if failure := gpu_check.failure_of_coder(str(implementation.device)):
            implementation.has_coder, implementation.capacity = False, ON_CPU  # since the host takes all logits
            tell_failure(implementation, failure, "the CPU codes")
    return lm.implementation.has_coder


def predictor_of(lm: ExactLM) -> Predict:
    """The function that computes predictions from logits, where the coder of an LM is."""
    if is_on_device(lm):
        from memcodec.coding import gpu

        coder = coder_of(lm)
        return lambda tokens, logits: gpu.predictions(tokens, logits, coder)

    def predict(tokens: np.ndarray, logits: Any) -> Callable[[], Predictions]:
        found = Predictions.empty(tokens, lm.vocabulary)
        found.fill(0, logits, lm.vocabulary, lm.team)
        return lambda: found

    return predict


def thread_setup_of(lm: ExactLM) -> Callable[[], None]:
    """A function that another thread calls first, so that it computes on the same device and stream as this one.

    torch has a current device and a current stream for each thread.
    """
    implementation: Any = lm.implementation
    if not is_on_device(lm) or implementation.device.type != "cuda":
        return lambda: None
    import torch

    index = implementation.device.index
    device = torch.cuda.current_device() if index is None else index
    stream = torch.cuda.current_stream(device)

    def set_up() -> None:
        torch.cuda.set_device(device)
        torch.cuda.set_stream(stream)

    return set_up


def to_coder(lm: ExactLM, logits: np.ndarray) -> Any:
    """Logits of the host, int32 [rows, vocabulary], where the coder takes them, as `Sequences.placed_logits`."""
    return coder_of(lm).placed(logits) if is_on_device(lm) else logits


def repeated_rows(logits: Any, count: int) -> Any:
    """`count` copies of one row of logits, [1, vocabulary], which is where the coder takes it: [count, vocabulary]."""
    return logits.repeat(count, axis=0) if isinstance(logits, np.ndarray) else logits.repeat(count, 1)


def decoder_of(lm: ExactLM, rows: Sequence[EncodedGroup], share: int) -> Any:
    """The decoder of groups (`corrections.Decoder`). share: of memories, in steps of 1/1024."""
    steering = Steering.of(lm.head)
    if not is_on_device(lm):
        return Decoder(rows, steering, share, lm.team)
    from memcodec.coding import gpu

    return gpu.GpuDecoder(rows, steering, share, coder_of(lm))


def coder_of(lm: ExactLM) -> Any:
    """The coder of an LM whose coder `is_on_device`: always the same object, as long as somebody holds it.

    The LM has only a weak reference to it, since the coder refers to the LM: with two strong references, both would
    stay in the GPU's memory until garbage is collected.
    """
    from memcodec.coding import gpu

    implementation: Any = lm.implementation
    coder = implementation.coder() if implementation.coder else None
    if coder is None:
        coder = gpu.Coder(implementation)
        implementation.coder = weakref.ref(coder)
    return coder
