"""Rotations and Hadamard transforms, which spread the few large entries of a vector over all of it.

Rotated, the activations and weights of an LM keep their precision in eight bits (QuaRot, arXiv 2404.00456). Products do
not change when both of their sides are rotated, so the rotations are applied to the weights once, when a model is
converted (`models.convert`). At run time, only the transforms before the second matrix of an MLP, and of queries and
keys, remain (`quantize`), and the rotation of vectors of a memory. Every operation is a single IEEE operation in the
order of spec/FORMAT.md.
"""

import math
from functools import cache

import numpy as np

from memcodec.lm.compiled import kernel, not_inlined, subkernel
from memcodec.lm.seeded import words

SIGNS_STREAM = 26  # of eight that were tried, the one with the least loss (docs/exact.md)
u64 = np.uint64  # for indices in inner loops (see `kernels`)


def rotate(rows: np.ndarray) -> np.ndarray:
    """The rotation of each row, float64 [rows, n]. A new array."""
    result = np.array(rows, dtype=np.float64, order="C")
    n = result.shape[1]
    block = n & -n
    scale = math.ldexp(1.0, -(block.bit_length() // 2))
    if block.bit_length() % 2 == 0:  # an odd power of two
        scale *= 1.4142135623730951
    _rotate(result, signs(n), block, scale)
    return result


def hadamard(rows: np.ndarray, block: int) -> np.ndarray:
    """The Hadamard transform of each block of each row, not scaled; float64 [rows, n]. A new array."""
    result = np.array(rows, dtype=np.float64, order="C")
    _hadamard_rows(result, block)
    return result


def centre(rows: np.ndarray) -> np.ndarray:
    """Each row minus the mean of its entries, float64 [rows, n]. A new array."""
    result = np.array(rows, dtype=np.float64, order="C")
    _centre(result)
    return result


def rotated_vectors(vectors: np.ndarray, layer_norm: bool) -> np.ndarray:
    """Vectors of a memory as the LM reads them, float32 [n, hidden]. layer_norm: of the architecture."""
    return rotate(centre(vectors) if layer_norm else vectors).astype(np.float32)


@cache
def signs(n: int) -> np.ndarray:
    """1 or -1 for each entry of a rotation, float64 [n]."""
    return np.where(words(SIGNS_STREAM, 0, n) >> np.uint64(63), -1.0, 1.0)


@kernel
def _rotate(rows, signs, block, scale):
    n = rows.shape[1]
    run = n // block
    factor = 2.0 / run
    for r in range(len(rows)):
        x = rows[r]
        for i in range(n):
            x[i] = x[i] * signs[i]
        if run > 1:
            for j in range(block):
                total = x[j * run]
                for i in range(1, run):
                    total += x[j * run + i]
                total *= factor
                for i in range(run):
                    x[j * run + i] -= total
        _butterflies(x, n, run)
        for i in range(n):
            x[i] = x[i] * scale


@kernel
def _hadamard_rows(rows, block):
    n = rows.shape[1]
    for r in range(len(rows)):
        for start in range(0, n, block):
            _butterflies(rows[r, start : start + block], block, 1)


@subkernel
def _butterflies(x, n, step):
    """The transform of n / step entries that are `step` apart, for each of `step` of them, in place."""
    not_inlined()
    while step < n:
        for start in range(0, n, 2 * step):
            for i in range(u64(start), u64(start + step)):
                a, b = x[i], x[i + u64(step)]
                x[i] = a + b
                x[i + u64(step)] = a - b
        step *= 2


@kernel
def _centre(rows):
    n = rows.shape[1]
    for r in range(len(rows)):
        total = rows[r, 0]
        for i in range(1, n):
            total += rows[r, i]
        mean = total / n
        for i in range(n):
            rows[r, i] -= mean


def products_with(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The sum of each row's products with a vector, added up in order; [rows, n], float64 [n] -> float64 [rows]."""
    result = np.empty(len(matrix))
    _products(np.ascontiguousarray(matrix, dtype=np.float64), vector, result)
    return result


@kernel
def _products(matrix, vector, result):
    for r in range(len(matrix)):
        total = matrix[r, 0] * vector[0]
        for i in range(1, len(vector)):
            total += matrix[r, i] * vector[i]
        result[r] = total
