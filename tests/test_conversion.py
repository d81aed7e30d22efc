"""The conversion of float weights: exact and the same everywhere, and it changes little in what the LM computes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from memcodec.lm import arithmetic, rotation
from memcodec.lm.architecture import describe
from memcodec.lm.model import ExactLM, logits_of
from memcodec.lm.weights import ExactWeights
from memcodec.models.checkpoint import Checkpoint
from memcodec.models.convert import convert

from . import reference
from .conftest import TINY

Change = Callable[[np.ndarray], np.ndarray]


@cache
def random_lm(kind: str) -> Any:
    """A tiny LM whose gains, shifts, means and biases are far from 1 and 0."""
    lm = TINY[kind]()
    normal = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in lm.named_parameters():
            drawn = torch.randn(tensor.shape, generator=normal)
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor[:] = torch.exp(0.5 * drawn)  # gains from about 0.3 to 3
            elif tensor.ndim == 1:
                tensor[:] = 0.3 * drawn + 0.2
            else:
                tensor[:] = drawn / 8 + (0.05 if kind == "gpt2" else 0)
    return lm.eval()


class Source(Checkpoint):
    """The weights of such an LM, as a checkpoint."""

    def __init__(self, kind: str, change: Change = lambda tensor: tensor) -> None:
        self._tensors = {name: change(tensor.numpy()) for name, tensor in random_lm(kind).state_dict().items()}

    def names(self) -> set[str]:
        return set(self._tensors)

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name]


def converted(kind: str, change: Change = lambda tensor: tensor) -> ExactWeights:
    family, architecture = describe(random_lm(kind).config.to_dict(), kind)
    return convert(architecture, family, Source(kind, change), kind, (0,), b"")


def read_only(tensor: np.ndarray) -> np.ndarray:
    result = tensor.copy()
    result.flags.writeable = False
    return result


def strided(tensor: np.ndarray) -> np.ndarray:
    result = np.zeros([2 * n for n in tensor.shape], dtype=tensor.dtype)
    result[tuple(slice(None, None, 2) for _ in tensor.shape)] = tensor
    return result[tuple(slice(None, None, 2) for _ in tensor.shape)]


LAYOUTS: dict[str, Change] = {"read-only": read_only, "columns first": np.asfortranarray, "strided": strided}


# ---- the same integers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", TINY)
def test_the_layout_of_the_weights_does_not_matter(kind: str, layout: str) -> None:
    assert converted(kind, LAYOUTS[layout]).identity == converted(kind).identity


@pytest.mark.parametrize("kind", TINY)
def test_threads_do_not_matter(kind: str) -> None:
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with ThreadPoolExecutor(threads) as pool:
            found |= {weights.identity for weights in pool.map(converted, [kind] * 4)}
    torch.set_num_threads(before)
    assert len(found) == 1


def test_the_weights_are_left_as_they_are() -> None:
    source = Source("gpt2", np.copy)
    before = {name: source.read(name).copy() for name in source.names()}
    family, architecture = describe(random_lm("gpt2").config.to_dict(), "gpt2")
    convert(architecture, family, source, "gpt2", (0,), b"")
    assert all(np.array_equal(source.read(name), tensor) for name, tensor in before.items())


# ---- near the LM in floats


@pytest.mark.parametrize("kind", TINY)
def test_gains_shifts_and_means_become_a_part_of_the_weights(kind: str) -> None:
    """In the root mean square, logits differ by 3 to 5.4 % of their spread; without one shift, they would by 30 %."""
    tokens = np.random.default_rng(0).integers(0, 400, 100)
    with torch.no_grad():
        expected = random_lm(kind)(torch.from_numpy(tokens)[None]).logits[0].numpy()
    found = logits_of(ExactLM(converted(kind), "cpu"), tokens) * (np.log(2) / arithmetic.UNIT)
    assert expected.std() > 1
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.08 * expected.std()


# ---- rotations


@pytest.mark.parametrize("size", [576, 896, 960, 768, 80, 96, 64, 34, 10, 6, 2])
def test_rotations_are_orthogonal(size: int) -> None:
    turned = rotation.rotate(np.eye(size))
    assert np.abs(turned @ turned.T - np.eye(size)).max() < 1e-13
    assert np.abs(turned).max() < 0.9 or size < 16
    one = np.zeros((1, size))
    one[0, size // 2] = 1
    assert np.array_equal(rotation.rotate(one)[0], turned[size // 2])


@pytest.mark.parametrize("size", [576, 960, 80, 96, 34, 10, 128])
def test_rotations_are_those_of_plain_operations(size: int) -> None:
    rows = np.random.default_rng(size).standard_normal((3, size))
    expected = np.stack([reference.rotate(row) for row in rows])
    assert np.array_equal(rotation.rotate(rows), expected)
    assert np.array_equal(rotation.rotate(np.asfortranarray(rows)), expected)
    assert np.array_equal(rotation.rotate(rows.astype(np.float32)), [reference.rotate(r) for r in rows.astype("f4")])
    block = size & -size
    assert np.array_equal(rotation.hadamard(rows, block), [reference.hadamard(row, block) for row in rows])


def test_rotated_outliers_are_spread() -> None:
    rows = np.random.default_rng(0).standard_normal((8, 576))
    rows[:, 17] = 300
    turned = rotation.rotate(rows)
    assert np.allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(rows, axis=1))
    assert np.abs(turned).max() < 300 / 4


def test_sums_are_added_up_in_order() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 576))
    vector = np.random.default_rng(1).standard_normal(576)
    assert np.array_equal(rotation.products_with(rows, vector), [reference.in_order(row * vector) for row in rows])
    assert np.array_equal(rotation.centre(rows), [row - reference.in_order(row) / 576 for row in rows])
    assert np.array_equal(
        rotation.rotated_vectors(rows, True), [reference.rotate(r).astype("f4") for r in rotation.centre(rows)]
    )
