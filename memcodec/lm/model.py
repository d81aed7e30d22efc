"""The exact LM as the codec uses it: passes over new positions of some sequences, and their logits."""

import ctypes
import os
import sys
from copy import copy
from importlib.util import find_spec
from typing import Any

import numpy as np

from memcodec.errors import EncodeError
from memcodec.lm import cpu
from memcodec.lm.architecture import Architecture
from memcodec.lm.choice import implementation_of
from memcodec.lm.sequences import Capacity, SequenceInput, Sequences
from memcodec.lm.team import Team, team_of
from memcodec.lm.weight_cache import AnyWeights
from memcodec.settings import MAX_THREADS, check_whole


class ExactLM:
    """A frozen LM whose logits are the same integers on every machine.

    identity: SHA-256 of everything that the results depend on; positions: the number of positions the LM can tell
    apart; prefix: int64, the token ids before every group; implementation: the one that computes its layers.
    """

    def __init__(
        self,
        weights: AnyWeights,
        device: str = "auto",
        threads: int | None = None,
        kernels: str = "auto",
        fallback: bool | None = None,
    ) -> None:
        """device: one of `settings.DEVICES`, or "cuda:1"; threads: on the CPU, by default one for each core.

        kernels: "numba" (CPU only), "torch", "triton" (on the CPU only in its interpreter), or "auto"; fallback: use
        the products without 8-bit instructions, by default where the others fail the self-test, or are slow in torch.
        Raises EncodeError, MachineError, MissingDependencyError, ModelNotFoundError.
        """
        self.architecture: Architecture = weights.architecture
        self.prefix = np.array(weights.prefix, dtype=np.int64)
        self.identity = weights.identity
        self.positions = weights.architecture.positions
        self.vocabulary = weights.architecture.vocabulary
        self._prefix_state: Any = None
        self._unprimed_length = len(self.prefix)
        self.head = weights.head
        self.team = _team_of(threads)
        self.device, self.implementation = implementation_of(
            weights, _device_of(device, kernels), kernels, fallback, self.team
        )

    @property
    def capacity(self) -> Capacity:
        """How much is to be computed at one time."""
        return self.implementation.capacity

    def sequences(self, slots: int, positions: int, rows: int) -> Sequences:
        """A cache for `slots` sequences of `positions` positions each, for passes of up to `rows` rows."""
        return self.implementation.sequences(slots, positions, rows)

    def new_sequences(self, slots: int, positions: int, rows: int) -> Sequences:
        """As `sequences`, for sequences that have read the prefix; on the CPU they share the cache of most of it."""
        return self.implementation.sequences(slots, positions, rows, self.prefix_state)

    @property
    def prefix_state(self) -> Any:
        """The state after the prefix, for `Implementation.sequences`; `logits` are those of the token after it."""
        if self._prefix_state is None:
            self._prefix_state = self.implementation.prefix_state(self.prefix)
        return self._prefix_state

    @property
    def own_prefix(self) -> int:
        """Positions of the prefix that each sequence has in its own cache; the others are stored once for all."""
        return self.implementation.own_positions(len(self.prefix))

    @property
    def is_unprimed(self) -> bool:
        """Whether the prefix is the one that all documents share, without a primer."""
        return len(self.prefix) == self._unprimed_length

    def with_prefix(self, tokens: np.ndarray) -> "ExactLM":
        """The same LM with more tokens in its prefix, int64 [tokens]. Raises EncodeError if there are too many."""
        other = copy(self)
        other.prefix, other._prefix_state = np.concatenate([self.prefix, tokens]), None
        if len(other.prefix) >= self.positions:
            raise EncodeError(f"a primer of {len(tokens)} tokens: the model has {self.positions} positions: shorten it")
        return other


def logits_of(lm: ExactLM, tokens: np.ndarray) -> np.ndarray:
    """Logits after each token of a sequence without a prefix, int32 [tokens, vocabulary]."""
    sequences = lm.sequences(1, len(tokens), len(tokens))
    sequences.forward([SequenceInput(0, tokens)])
    return sequences.logits(slice(None, len(tokens)))[:, : lm.vocabulary].copy()


# ---- the machine


def prepare(device: str, threads: int | None, kernels: str) -> None:
    """Load and test the kernels for the CPU, if `ExactLM` with these settings will need them. Raises as `ExactLM`.

    It needs no weights, so they can be read meanwhile.
    """
    if _device_of(device, kernels) == "cpu" and kernels in ("auto", "numba"):
        cpu.needs_fallback(_team_of(threads))


def _device_of(device: str, kernels: str) -> str:
    if kernels not in ("auto", "numba", "torch", "triton") or (kernels == "numba" and device not in ("auto", "cpu")):
        raise EncodeError(f"kernels {kernels!r} on {device!r}: give auto, torch or triton, or numba on the CPU")
    return "cpu" if kernels == "numba" else find_device(device)


def _team_of(threads: int | None) -> Team:
    if threads is not None:
        check_whole("threads", threads, 1, MAX_THREADS, f"1 to {MAX_THREADS}")
    return team_of(threads or cores())


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_device(name: str) -> str:
    """The device that a name means on this machine. torch is imported only if there may be a device other than the CPU.

    Raises MachineError if this machine has no such device; MissingDependencyError without torch.
    """
    if name == "cpu" or (name == "auto" and not (has_cuda_driver() and find_spec("torch"))):
        return "cpu"
    from memcodec.lm.device import select_device

    return select_device(name)


def has_cuda_driver() -> bool:
    """Whether a CUDA driver is installed, so that torch may find a device."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
