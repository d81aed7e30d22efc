"""The exact LM in torch: the same bits as plain integers, in passes and steps of every kind."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from memcodec.errors import MachineError, MemcodecWarning, ModelNotFoundError
from memcodec.lm import arithmetic, operations, rotation, selftest
from memcodec.lm.architecture import describe
from memcodec.lm.choice import implementation_of
from memcodec.lm.device import DeviceLM, DeviceSequences, needs_fallback
from memcodec.lm.model import find_device
from memcodec.lm.sequences import Implementation, SequenceInput
from memcodec.lm.team import team_of
from memcodec.lm.weights import ExactWeights
from memcodec.models.checkpoint import Checkpoint
from memcodec.models.convert import convert

from .conftest import TINY
from .reference import Reference, Stepping

LMS = (*TINY, *selftest.KNOWN_ANSWERS)


class Random(Checkpoint):
    """The weights of a random model, as a checkpoint: wide enough that all integers vary."""

    def __init__(self, lm: torch.nn.Module) -> None:
        normal = torch.Generator().manual_seed(0)
        self._tensors = {}
        for name, tensor in lm.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=normal)
            is_norm = name.endswith("weight") and tensor.ndim == 1
            self._tensors[name] = (1 + 0.3 * drawn if is_norm else 0.2 * drawn).numpy()

    def names(self) -> set[str]:
        return set(self._tensors)

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name]


@cache
def weights_of(kind: str) -> ExactWeights:
    if kind in selftest.KNOWN_ANSWERS:
        return selftest.tiny(kind)
    lm: Any = TINY[kind]()
    family, architecture = describe(lm.config.to_dict(), kind)
    return convert(architecture, family, Random(lm), kind, (0,), b"")


@pytest.fixture(params=LMS)
def weights(request: pytest.FixtureRequest) -> ExactWeights:
    return weights_of(request.param)


@pytest.fixture(params=[False, True], ids=["int8", "fallback"])
def fallback(request: pytest.FixtureRequest) -> bool:
    if not request.param and needs_fallback("cpu"):
        pytest.skip("int8 products of torch saturate on this machine")
    return bool(request.param)


def some_tokens(weights: ExactWeights, seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, weights.architecture.vocabulary, count)


def some_vectors(weights: ExactWeights, seed: int, count: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, weights.architecture.hidden))
    return (drawn * 3 + 1).astype(np.float32)


# ---- passes and steps


def test_known_answers(fallback: bool) -> None:
    for name, known in selftest.KNOWN_ANSWERS.items():
        sequences = DeviceLM(selftest.tiny(name), "cpu", fallback).sequences(1, 75, 75)
        sequences.forward([SequenceInput(0, selftest.TOKENS)])
        assert selftest.answer(sequences.logits(slice(None))) == known


class Checked:
    """Sequences, and the same ones token by token in plain integers: each pass is compared."""

    def __init__(self, lm: Implementation, weights: ExactWeights, slots: int) -> None:
        self.found = lm.sequences(slots, 70, 70)
        self.expected = [Stepping(weights) for _ in range(slots)]

    def forward(self, inputs: list[SequenceInput]) -> None:
        self.found.forward(inputs)
        rows = []
        for one in inputs:
            slot = self.expected[one.slot]
            rows += [slot.token(i) if i >= 0 else slot.vector(one.vectors[-1 - i]) for i in one.tokens]  # type: ignore[index]
        self._compare(rows)

    def step(self, tokens: np.ndarray) -> None:
        self.found.step(tokens)
        self._compare([slot.token(i) for slot, i in zip(self.expected, tokens, strict=False)])

    def _compare(self, rows: list[np.ndarray]) -> None:
        logits = self.found.logits(slice(None))
        assert logits.dtype == np.int32 and np.array_equal(logits, np.stack(rows))
        assert np.array_equal(self.found.logits(np.array([len(rows) - 1])), rows[-1][None])


@pytest.mark.parametrize("fixed_steps", [False, True])
def test_passes_steps_and_vectors_in_any_order(weights: ExactWeights, fallback: bool, fixed_steps: bool) -> None:
    """fixed_steps: as CUDA captures them in graphs."""
    both = Checked(DeviceLM(weights, "cpu", fallback, fixed_steps), weights, 3)
    tokens, vectors = some_tokens(weights, 1, 40), some_vectors(weights, 2, 4)
    both.forward(
        [
            SequenceInput(0, np.concatenate([[-1, -2, -3, -4], tokens[:9]]), vectors),
            SequenceInput(1, tokens[9:10]),
            SequenceInput(2, np.array([5, -1, 3, -2]), vectors[2:]),
        ]
    )
    for i in range(10, 14):
        both.step(tokens[[i, i + 1]])
    both.forward([SequenceInput(1, tokens[20:27]), SequenceInput(2, tokens[27:28])])
    for i in range(30, 33):
        both.step(tokens[[i, i + 1, 2]])
    both.found.restart()
    for one in both.expected:
        one.restart()
    for i in range(3):
        both.step(tokens[[i, 7, 8]])


def test_a_batch_is_what_its_sequences_are_alone(weights: ExactWeights) -> None:
    lm = DeviceLM(weights, "cpu", needs_fallback("cpu"))
    rows = [some_tokens(weights, i, count) for i, count in enumerate([70] * 20 + [33] * 20 + [1])]
    sequences = lm.sequences(len(rows), 70, 0)
    sequences.forward([SequenceInput(slot, row) for slot, row in enumerate(rows)])
    together = np.split(sequences.logits(slice(None)), np.cumsum([len(row) for row in rows])[:-1])
    for slot in (0, 19, 20, 40):
        alone = lm.sequences(1, 70, 0)
        alone.forward([SequenceInput(0, rows[slot])])
        assert np.array_equal(alone.logits(slice(None)), together[slot])
    assert np.array_equal(together[33], Reference(weights)(rows[33].tolist()))


@pytest.mark.parametrize("fixed_steps", [False, True])
def test_sequences_after_a_prefix(weights: ExactWeights, fixed_steps: bool) -> None:
    lm = DeviceLM(weights, "cpu", needs_fallback("cpu"), fixed_steps)
    prefix, tokens = some_tokens(weights, 3, 20), some_tokens(weights, 4, 20)
    state = lm.prefix_state(prefix)
    expected = Reference(weights)([*prefix, *tokens])
    assert np.array_equal(state.logits, expected[19])
    sequences = lm.sequences(2, 40, 0, state)
    sequences.forward([SequenceInput(1, tokens)])
    assert np.array_equal(sequences.logits(slice(None)), expected[20:])
    for i in range(20):
        sequences.restart()
        sequences.forward([SequenceInput(0, tokens[:i]), SequenceInput(1, tokens[:1])][i == 0 :])
        sequences.step(tokens[i : i + 1])
        assert np.array_equal(sequences.logits(slice(None)), expected[20 + i : 21 + i])


def test_a_prefix_of_more_than_one_pass() -> None:
    """More positions than `exact_product` multiplies at once, and than `prefix_state` reads at once."""
    weights = weights_of("llama")
    lm = DeviceLM(weights, "cpu", needs_fallback("cpu"))
    tokens = some_tokens(weights, 5, 1000)
    parts = lm.sequences(1, 1000, 0)
    for start in range(0, 1000, 250):
        parts.forward([SequenceInput(0, tokens[start : start + 250])])
    assert np.array_equal(lm.prefix_state(tokens).logits, parts.logits(np.array([249]))[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same(weights: ExactWeights) -> None:
    assert needs_fallback("cuda") is False
    for fallback in (False, True):
        both = Checked(DeviceLM(weights, "cuda", fallback), weights, 3)
        tokens = some_tokens(weights, 1, 40)
        both.forward([SequenceInput(0, tokens[:20]), SequenceInput(2, np.array([5, -1]), some_vectors(weights, 2, 1))])
        for i in range(20, 25):
            both.step(tokens[i : i + 3])


# ---- numbers at their limits


def test_activations_beyond_float32_are_an_error(weights: ExactWeights) -> None:
    def is_refused(part: str) -> None:
        far = replace(weights, tensors=weights.tensors | {part: np.full_like(weights.tensors[part], 3e38)})
        sequences = DeviceLM(far, "cpu", True).sequences(1, 20, 0)
        sequences.forward([SequenceInput(0, np.arange(20))])
        with pytest.raises(ModelNotFoundError, match="activations exceed the range of float32"):
            sequences.logits(slice(None))

    for part in ("embedding.scale", "up.scale", "mix.scale", "qkv.scale"):
        is_refused(part)


def test_logits_are_cut(weights: ExactWeights) -> None:
    far = replace(weights, tensors=weights.tensors | {"head.scale": weights.tensors["head.scale"] * np.float32(1e9)})
    sequences: DeviceSequences = DeviceLM(far, "cpu", True).sequences(1, 20, 0)
    sequences.forward([SequenceInput(0, np.arange(20))])
    logits = sequences.logits(slice(None))
    assert logits.max() == 2**29 and logits.min() == -(2**29)
    assert np.array_equal(logits, Reference(far)(list(range(20))))


# ---- operations


def test_products_at_their_extremes(fallback: bool) -> None:
    left, right = selftest.extremes()
    truth = left @ right.astype(np.int64).T
    assert np.abs(truth).max() == left.shape[1] * 127 * 127
    assert np.array_equal(operations.product_of(left, right, "cpu", fallback), truth)


@pytest.mark.parametrize("rows", [1, 2, 7, 31, 33])
@pytest.mark.parametrize(("inner", "columns"), [(2, 1), (6, 33), (34, 32), (130, 100), (5000, 3)])
def test_products_of_every_shape(rows: int, inner: int, columns: int, fallback: bool) -> None:
    random = np.random.default_rng(rows * inner)
    left = random.integers(-127, 128, (rows, inner))
    right = random.integers(-127, 128, (columns, inner)).astype(np.int8)
    assert np.array_equal(operations.product_of(left, right, "cpu", fallback), left @ right.astype(np.int64).T)


def test_sums_of_values_beyond_float32() -> None:
    """All positions, with the largest shares and values: the sum needs 28 bits."""
    random = np.random.default_rng(0)
    shares, values = np.full((3, 8192), 255), np.full((8192, 4), 127)
    shares[1:], values[:, 2:] = random.integers(0, 256, (2, 8192)), random.integers(-127, 128, (8192, 2))
    left, right = (torch.from_numpy(x).float() for x in (shares, values))
    found = operations.exact_product(left, right, operations._POSITIONS)
    assert found.dtype == torch.int32 and np.array_equal(found, shares @ values)
    assert operations._POSITIONS * 255 * 127 < 2**24 and operations._ENTRIES * 127 * 127 < 2**24
    assert 512 * 127 * 127 < 2**24  # heads have up to 512 entries: queries and keys are multiplied at once


@pytest.mark.parametrize(("size", "block"), [(64, 64), (24, 8), (160, 32), (10, 2), (256, 128), (6, 1)])
def test_hadamard_is_that_of_the_conversion(size: int, block: int) -> None:
    rows = np.random.default_rng(0).integers(-1000, 1000, (2, 3, size)).astype(np.float32)  # sums are exact
    found = operations.hadamard(torch.from_numpy(rows), block)
    assert found.dtype == torch.float32
    assert np.array_equal(found.reshape(-1, size), rotation.hadamard(rows.reshape(-1, size), block))


def test_a_division_is_one_division() -> None:
    """Not a product with a reciprocal, for which a third of these quotients are others."""
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    a = torch.from_numpy(x)
    assert np.array_equal(operations._divide(a, arithmetic.LARGEST), x / np.float32(127))
    assert np.array_equal(operations._divide(arithmetic.LARGEST, a), np.float32(127) / x)


def test_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs float64 is computed on the host, with the same bits."""
    weights = weights_of("llama")
    tokens = some_tokens(weights, 5, 30)

    def logits() -> np.ndarray:
        sequences = DeviceLM(weights, "cpu", True).sequences(1, 30, 30)
        sequences.forward([SequenceInput(0, tokens)])
        return sequences.logits(slice(None))

    expected = logits()
    moved: list[torch.dtype] = []
    plain = torch.Tensor.cpu
    monkeypatch.setattr(operations, "WITHOUT_FLOAT64", ("cpu",))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (moved.append(self.dtype), plain(self))[1])
    assert np.array_equal(logits(), expected)
    assert {torch.int64, torch.float32} <= set(moved)


def test_devices_of_others_than_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are used if torch has them, with the operations in torch; if these fail there, the CPU is used instead."""
    weights, team = weights_of("llama"), team_of(1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert find_device("mps") == "mps"
    with pytest.raises(MachineError, match="device 'xpu' is not available here: use --device cpu"):
        find_device("xpu")
    with pytest.warns(MemcodecWarning, match="torch cannot run the model on mps .*: numba"):
        device, found = implementation_of(weights, "mps", "auto", True, team)  # torch has no MPS in this build
    assert device == "cpu" and found.kernels.startswith("numba, ") and "triton" not in found.kernels
