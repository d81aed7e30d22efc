"""The float weights of a model folder: safetensors files, or a GGUF file."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memcodec.errors import ModelNotFoundError
from memcodec.models import adapter
from memcodec.models.adapter import Adapter
from memcodec.models.gguf import FILE_NAME, GGUFCheckpoint
from memcodec.models.placeholders import check_content


class Checkpoint(Protocol):
    """Float weights under the names that Hugging Face gives them."""

    def names(self) -> set[str]:
        """All names."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32."""

    def mean(self, name: str, size: int) -> np.ndarray | None:
        """The mean of what a norm returns before its gain, float32 [size], if an adapter has means."""
        return None


class SafetensorsCheckpoint(Checkpoint):
    """The safetensors files of a model folder. No other file is read, and nothing is unpickled."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelNotFoundError."""
        self._entries: dict[str, tuple[Path, dict[str, Any], int]] = {}
        files = sorted(path for path in folder.glob("*.safetensors") if path.name != adapter.FILE_NAME)
        if not files:
            raise ModelNotFoundError(f"{folder}: it has no safetensors weights")
        for path in files:
            check_content(path)
            try:
                size = path.stat().st_size
                with path.open("rb") as file:
                    length = int.from_bytes(file.read(8), "little")
                    header = json.loads(file.read(min(length, size)))
                for name, entry in header.items():
                    if name != "__metadata__":
                        start, end = entry["data_offsets"]
                        if not 0 <= start <= end <= size - 8 - length:
                            raise ValueError("it is truncated")
                        if not (isinstance(entry["dtype"], str) and all(n >= 0 for n in entry["shape"])):
                            raise ValueError("its header is damaged")
                        self._entries[name] = path, entry, 8 + length
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise ModelNotFoundError(f"{path}: its weights cannot be read ({error})") from error

    def names(self) -> set[str]:
        """All names."""
        return set(self._entries)

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32. Raises ModelNotFoundError."""
        path, entry, base = self._entries[name]
        kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
        kind = np.dtype(kinds[entry["dtype"]]) if entry["dtype"] in kinds else None
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if kind is None:
            raise ModelNotFoundError(f"{path}: {name} has the type {entry['dtype']}, which memcodec does not support")
        if (needed := int(np.prod(shape)) * kind.itemsize) != end - start:
            raise ModelNotFoundError(
                f"{path}: {name} has {end - start:,} bytes, but needs {needed:,}: download the model again"
            )
        raw = np.fromfile(path, dtype=kind, count=(end - start) // kind.itemsize, offset=base + start).reshape(shape)
        if entry["dtype"] == "BF16":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.astype(np.float32)


class AdaptedCheckpoint(Checkpoint):
    """The tensors of a checkpoint, each with what an adapter adds to it."""

    def __init__(self, checkpoint: Checkpoint, additions: Adapter) -> None:
        """Raises ModelNotFoundError if the adapter changes tensors that the checkpoint does not have."""
        self._checkpoint = checkpoint
        self._additions = additions
        if missing := additions.names() - checkpoint.names():
            raise ModelNotFoundError(f"the adapter changes {min(missing)}, which the model does not have")
        if missing := additions.names_of_means() - checkpoint.names():
            raise ModelNotFoundError(f"the adapter has a mean of {min(missing)}, which the model does not have")

    def names(self) -> set[str]:
        """All names."""
        return self._checkpoint.names()

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32. Raises ModelNotFoundError."""
        return self._additions.add_to(name, self._checkpoint.read(name))

    def mean(self, name: str, size: int) -> np.ndarray | None:
        """The mean of what a norm returns before its gain. Raises ModelNotFoundError."""
        return self._additions.mean(name, size)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The float weights of a model folder, with its adapter if it has one. Raises ModelNotFoundError."""
    checkpoint: Checkpoint
    if (folder / FILE_NAME).is_file():
        check_content(folder / FILE_NAME)
        checkpoint = GGUFCheckpoint(folder / FILE_NAME)
    else:
        checkpoint = SafetensorsCheckpoint(folder)
    if (folder / adapter.FILE_NAME).is_file():
        return AdaptedCheckpoint(checkpoint, Adapter(folder / adapter.FILE_NAME))
    return checkpoint
