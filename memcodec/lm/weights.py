"""The weights of a model as the integers of the exact LM: converted once, kept in a safetensors file.

The file holds matrices row by row, in the order in which they are hashed; each implementation lays them out in its own
way when it loads them. The hash over everything, including the tables of positions, the architecture, the tokenizer and
the prefix, is the identity of the LM: LMs with the same identity compute the same bits.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.numpy

from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture

Tensors = dict[str, np.ndarray]

_FORMAT = "2"  # of the kept file; a file of another format is converted again


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
    rows]; learned positions and gains of heads, float32. prefix: the token ids before every chunk; tokenizer: its hash.
    """

    architecture: Architecture
    tensors: Tensors
    prefix: tuple[int, ...]
    tokenizer: bytes

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

    def save(self, path: Path, more: Mapping[str, str]) -> None:
        """Write the file, completely or not at all. more: metadata of the caller. Raises OSError."""
        about = {
            "format": _FORMAT,
            "architecture": self.architecture.to_json(),
            "prefix": json.dumps(list(self.prefix)),
            "tokenizer": self.tokenizer.hex(),
            "identity": self.identity.hex(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
        try:
            safetensors.numpy.save_file(self.tensors, temporary, about | dict(more))
            temporary.replace(path)
        except safetensors.SafetensorError as error:  # raised by the library for a full disk, among others
            raise OSError(str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> tuple["ExactWeights", dict[str, str]]:
        """Read what `save` wrote, and its metadata. Raises ValueError if it is damaged or of another version."""
        try:
            with safetensors.safe_open(path, "np") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.get("format") != _FORMAT:
                raise ValueError("of another version")
            weights = cls(
                Architecture.from_json(about["architecture"]),
                tensors,
                tuple(int(i) for i in json.loads(about["prefix"])),
                bytes.fromhex(about["tokenizer"]),
            )
        except (safetensors.SafetensorError, LookupError, TypeError) as error:
            raise ValueError(f"damaged ({type(error).__name__})") from error
        if weights.identity.hex() != about.get("identity"):
            raise ValueError("damaged: its hash does not match")
        return weights, about


def spread(matrix: np.ndarray, scale: np.ndarray) -> float:
    """The mean squared distance of the rows of a matrix from their mean, by sums of integers: the same everywhere.

    int8 [rows, inner], float32 [rows]. Entries are rounded to 1/256 of the largest scale.
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
