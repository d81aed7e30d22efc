"""Adapters: low-rank additions to the float weights of a model, merged before they become the exact LM.

An adapter is one safetensors file, `adapter.safetensors` in a model folder (spec/FORMAT.md, "Adapter"). For a matrix W
it has two factors, and W becomes W + b a (Hu et al., "LoRA", arXiv 2106.09685). Every operation is a single IEEE
operation in float32 in a fixed order, so that the merged weights are the same on every machine.

The file may also have the means of what the norms return, with which the conversion corrects its rounding errors
(`models.convert`).
"""

import json
from pathlib import Path

import numpy as np

from memcodec.errors import ModelNotFoundError, first_line

FILE_NAME = "adapter.safetensors"
MAX_RANK = 256
_ROWS = 256  # of a matrix that are merged at a time, so that they stay in the processor's cache


class Adapter:
    """The additions of an adapter file, by the names of the model's tensors."""

    def __init__(self, path: Path) -> None:
        """Raises ModelNotFoundError if the file cannot be read, or is not an adapter."""
        self._path = path
        self._tensors, shared = _read(path)
        self._shared: dict[str, str] = shared  # names of matrices by the names of those whose factor `a` they use
        kinds = {name.rpartition(".")[2] for name in self._tensors}
        if not kinds <= {"a", "b", "scale", "add", "mean"}:
            raise ModelNotFoundError(f"{path}: it has tensors that do not belong to an adapter")
        for name, values in self._tensors.items():
            if values.dtype == np.float32 and not np.isfinite(values).all():
                raise ModelNotFoundError(f"{path}: {name} has entries that are not finite")

    def names(self) -> set[str]:
        """The names of all tensors that the adapter changes."""
        return {name.rpartition(".")[0] for name in self._tensors if name.endswith((".b", ".add"))}

    def names_of_means(self) -> set[str]:
        """The names of the norms of which the file has means."""
        return {name.rpartition(".")[0] for name in self._tensors if name.endswith(".mean")}

    def add_to(self, name: str, values: np.ndarray) -> np.ndarray:
        """A tensor of the model, float32, with the adapter's addition to it, if any. Raises ModelNotFoundError."""
        if f"{name}.add" in self._tensors:
            return values + self._tensor(f"{name}.add", np.float32, values.shape)
        if f"{name}.b" not in self._tensors:
            return values
        if values.ndim != 2:
            raise ModelNotFoundError(f"{self._path}: {name} is not a matrix in this model")
        rank = self._tensors[f"{name}.b"].shape[-1]
        if not 1 <= rank <= MAX_RANK:
            raise ModelNotFoundError(f"{self._path}: {name} has the rank {rank}, not 1 to {MAX_RANK}")
        kind = np.int8 if self._tensors[f"{name}.b"].dtype == np.int8 else np.float32
        a = self._tensor(f"{self._shared.get(name, name)}.a", kind, (rank, values.shape[1]))
        b = self._tensor(f"{name}.b", kind, (len(values), rank))
        return merged(values, a, b, self._tensor(f"{name}.scale", np.float32, (rank,)))

    def mean(self, name: str, size: int) -> np.ndarray | None:
        """The mean of what a norm returns before its gain, float32 [size]; None if the file has no means.

        It is zero for a norm without one. Raises ModelNotFoundError.
        """
        if f"{name}.mean" in self._tensors:
            return self._tensor(f"{name}.mean", np.float32, (size,))
        return np.zeros(size, dtype=np.float32) if self.names_of_means() else None

    def _tensor(self, name: str, kind: type, shape: tuple[int, ...]) -> np.ndarray:
        found = self._tensors.get(name)
        if found is None or found.dtype != kind or found.shape != shape:
            what = "is missing" if found is None else f"is {found.dtype} {list(found.shape)}"
            raise ModelNotFoundError(f"{self._path}: {name} {what}, and should be {np.dtype(kind)} {list(shape)}")
        return found


def merged(values: np.ndarray, a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 [rows, inner] plus (b[:, r] a[r]) scale[r] for each r in turn; a [rank, inner], b [rows, rank].

    Products of int8 entries are exact in float32. Each step is rounded by itself: product, product by scale, sum.
    """
    result = np.array(values, dtype=np.float32)
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    product = np.empty((_ROWS, result.shape[1]), dtype=np.float32)
    for start in range(0, len(result), _ROWS):
        rows = result[start : start + _ROWS]
        for r in range(len(a32)):
            step = product[: len(rows)]
            np.multiply(b32[start : start + _ROWS, r, None], a32[r], out=step)
            np.multiply(step, scale[r], out=step)
            np.add(rows, step, out=rows)
    return result


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "np") as file:
            shared = json.loads((file.metadata() or {}).get("shared", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
    except Exception as error:  # safetensors raises various types
        raise ModelNotFoundError(f"{path}: it cannot be read as an adapter ({first_line(error)})") from error
    if not (isinstance(shared, dict) and all(isinstance(name, str) for name in shared.values())):
        raise ModelNotFoundError(f"{path}: its metadata is not that of an adapter")
    return tensors, shared
