"""The weights of a model as the integers of the exact LM, row by row, and the identity of the LM.

The identity is the hash over everything, including the tables of positions, the architecture, the tokenizer and the
prefix: LMs with the same identity compute the same bits.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Head:
    """The rows of the LM head. integers: int8 [vocabulary, hidden]; scale: float32 [vocabulary].

    spread: mean squared distance of the rows from their mean.
    """

    integers: np.ndarray
    scale: np.ndarray
    spread: float


@dataclass(frozen=True)
class ExactWeights:
    """Integers, scales and tables of one LM.

    tensors, with all layers stacked: matrices, int8 [layers, rows, inner]; their scales and biases, float32 [layers,
    rows]; learned positions and gains of heads, float32. prefix: the token ids before every group; tokenizer: its hash.
    """

    architecture: Architecture
    tensors: Tensors
    prefix: tuple[int, ...]
    tokenizer: bytes

    @property
    def head(self) -> Head:
        """The rows of the LM head."""
        return Head(self.tensors["head"], self.tensors["head.scale"], float(self.tensors["spread"][0]))

    def plain(self) -> "ExactWeights":
        """These weights, which are row by row already (compare `CachedWeights.plain`)."""
        return self

    @cached_property
    def identity(self) -> bytes:
        """SHA-256 of everything that results depend on (spec/FORMAT.md, "Identity")."""
        digest = hashlib.sha256()
        about = [self.architecture.to_json(), list(self.prefix), self.tokenizer.hex(), arithmetic.tables_hash()]
        digest.update(json.dumps(about, separators=(",", ":")).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode())
            digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        return digest.digest()


def spread(matrix: np.ndarray, scale: np.ndarray) -> float:
    """The mean squared distance of the rows of a matrix from their mean, by sums of integers: the same everywhere.

    matrix: int8 [rows, inner]; scale: float32 [rows]. Entries are rounded to 1/256 of the largest scale.
    """
    largest = float(scale.max())
    squares, columns = 0, np.zeros(matrix.shape[1], dtype=np.int64)
    for start in range(0, len(matrix), 4096):
        factor = scale[start : start + 4096].astype(np.float64) / largest * 256
        entries = np.rint(matrix[start : start + 4096] * factor[:, None]).astype(np.int64)
        squares += int((entries * entries).sum())
        columns += entries.sum(axis=0)
    rows = len(matrix)
    excess = rows * squares - sum(int(column) ** 2 for column in columns)
    return excess / (rows * rows) * (largest / 256) * (largest / 256)
