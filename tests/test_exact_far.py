"""Attention over thousands of positions: the same bits as plain integers, on the CPU, in torch and on a GPU."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from memcodec.lm import arithmetic
from memcodec.lm.cpu import CpuLM
from memcodec.lm.device import DeviceLM
from memcodec.lm.sequences import Implementation, SequenceInput
from memcodec.lm.team import team_of
from memcodec.lm.weights import ExactWeights

from .reference import Stepping
from .test_exact_cpu import VOCABULARY, random_weights

LENGTH = 2100  # tokens; if all attention weights are equal, 2**20 each, their sum exceeds 2**31
ROWS = [1022, 1023, 1024, 1025, 2046, 2047, 2048, LENGTH - 2, LENGTH - 1]  # that are compared
PREFIX = 2040  # positions before the steps


def in_triton(weights: ExactWeights) -> Implementation:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU, and Triton's interpreter would take minutes")
    from memcodec.lm.gpu import GpuLM

    return GpuLM(weights, "cuda")


WAYS: dict[str, Callable[[ExactWeights], Implementation]] = {
    "1 thread": lambda weights: CpuLM(weights, team_of(1), False),
    "2 threads": lambda weights: CpuLM(weights, team_of(2), False),
    "plain": lambda weights: CpuLM(weights, team_of(2), True),
    "torch": lambda weights: DeviceLM(weights, "cpu", True),
    "triton": in_triton,
}


@cache
def one_layer(is_flat: bool) -> ExactWeights:
    """An LM of one layer. is_flat: queries are 0, so that all attention weights are equal."""
    weights = random_weights("96")
    a = replace(weights.architecture, layers=1, positions=LENGTH)
    tensors = {name: value[:1] if value.shape[:1] == (2,) else value for name, value in weights.tensors.items()}
    tensors["cosine"], tensors["sine"] = arithmetic.rotation(a)
    if is_flat:
        queries = slice(a.heads * a.head_size)
        tensors["qkv"], tensors["qkv.bias"] = tensors["qkv"].copy(), tensors["qkv.bias"].copy()
        tensors["qkv"][0, queries], tensors["qkv.bias"][0, queries] = 0, 0
    return ExactWeights(a, tensors, weights.prefix, b"")


def tokens() -> np.ndarray:
    return np.random.default_rng(7).integers(0, VOCABULARY, LENGTH)


@cache
def expected(is_flat: bool) -> np.ndarray:
    """The logits of ROWS. In an LM of one layer, other positions need no attention, only keys and values."""
    plain = Stepping(one_layer(is_flat))
    attend = plain.reference.attend
    found = []
    for position, token in enumerate(tokens()):
        plain.reference.attend = attend if position in ROWS else lambda q, *rest: np.ones(len(q), dtype=np.float32)  # type: ignore[method-assign]
        logits = plain.token(int(token))
        if position in ROWS:
            found.append(logits)
    return np.stack(found)


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_far_positions(way: str, is_flat: bool) -> None:
    """In one pass; in passes of 700; in steps after a prefix that is stored once for all sequences."""
    lm, wanted = WAYS[way](one_layer(is_flat)), expected(is_flat)
    whole = lm.sequences(1, LENGTH, LENGTH)
    whole.forward([SequenceInput(0, tokens())])
    assert np.array_equal(whole.logits(np.array(ROWS))[:, :VOCABULARY], wanted)

    parts = lm.sequences(2, LENGTH, 1400)
    for first in range(0, LENGTH, 700):
        parts.forward([SequenceInput(slot, tokens()[first : first + 700]) for slot in range(2)])
        rows = [(i, row - first) for i, row in enumerate(ROWS) if first <= row < first + 700]
        for i, row in rows:
            for slot in range(2):
                assert np.array_equal(parts.logits(np.array([700 * slot + row]))[0, :VOCABULARY], wanted[i])

    steps = lm.sequences(3, LENGTH, 3, lm.prefix_state(tokens()[:PREFIX]))
    for position in range(PREFIX, LENGTH):
        steps.step(np.repeat(tokens()[position], 3))
        if position in ROWS:
            logits = steps.logits(slice(None))[:3, :VOCABULARY]
            assert np.array_equal(logits, np.stack([wanted[ROWS.index(position)]] * 3))
