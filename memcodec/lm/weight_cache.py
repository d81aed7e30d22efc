"""The file in the cache that has the weights of an LM, as they lie in memory: a start only reads and checks it.

It is a safetensors file that ends with the matrices in panels, in the layout of the kernels for the CPU, which is the
same for all processors. These are read into memory, which the system maps in larger pages than a file. The rest stays
in the file and is mapped: of the embedding and the rows of the head, few are needed at a time.

The metadata have the SHA-256 of everything in the file. It was computed from the weights in memory when the file was
written, as was the identity, so a file that has changed since then is noticed each time it is loaded.
"""

import hashlib
import json
import mmap
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memcodec.lm import layout
from memcodec.lm.architecture import Architecture
from memcodec.lm.instructions import LINE
from memcodec.lm.team import team_of
from memcodec.lm.weights import ExactWeights, Head, Tensors

_FORMAT = "3"  # to be changed with the layout of panels or tensors: a file of another format is converted again
_EXTRA = "beside."  # before the names of tensors of the caller
_DTYPES = {"I8": np.int8, "U8": np.uint8, "U32": np.uint32, "F32": np.float32, "F64": np.float64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class CachedWeights:
    """The weights of an LM, as the file has them.

    tensors: those of `ExactWeights`, in the form of `layout.in_panels`; extra_tensors, about: tensors and metadata of
    the caller.
    """

    architecture: Architecture
    tensors: Tensors
    prefix: tuple[int, ...]
    tokenizer: bytes
    identity: bytes
    extra_tensors: Tensors
    about: dict[str, str]

    @property
    def head(self) -> Head:
        """The rows of the LM head."""
        return Head(self.tensors["head.rows"], self.tensors["head.scale"], float(self.tensors["spread"][0]))

    def plain(self) -> ExactWeights:
        """The same weights row by row."""
        tensors = layout.in_rows(self.architecture, self.tensors)
        return ExactWeights(self.architecture, tensors, self.prefix, self.tokenizer)


AnyWeights = ExactWeights | CachedWeights


def save(path: Path, weights: ExactWeights, extra_tensors: Tensors, more: Mapping[str, str]) -> None:
    """Write the file, completely or not at all. Raises OSError.

    extra_tensors, more: tensors and metadata of the caller.
    """
    stored = layout.in_panels(weights.architecture, weights.tensors, team_of(1))
    stored |= {_EXTRA + name: tensor for name, tensor in extra_tensors.items()}
    about = dict(more) | {
        "format": _FORMAT,
        "architecture": weights.architecture.to_json(),
        "prefix": json.dumps(list(weights.prefix)),
        "tokenizer": weights.tokenizer.hex(),
        "identity": weights.identity.hex(),
    }
    # Wider numbers before narrower ones, so that all that is mapped is aligned; then the panels.
    ordered = sorted(stored.items(), key=lambda item: (item[0] in layout.MATRICES, -item[1].itemsize, item[0]))
    table: dict[str, Any] = {}
    size = 0
    for name, tensor in ordered:
        place = [size, size + tensor.nbytes]
        table[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        size += tensor.nbytes
    parts = [np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data for _, tensor in ordered]
    digest = _begun(about, table)
    for part in parts:
        digest.update(part)
    header = json.dumps({"__metadata__": about | {"sha256": digest.hexdigest()}} | table).encode()
    header += b" " * (-(8 + len(header)) % LINE)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    try:
        with temporary.open("wb") as file:
            file.writelines([len(header).to_bytes(8, "little"), header, *parts])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> CachedWeights:
    """Read what `save` wrote. Raises OSError, and ValueError if it is damaged or of another version.

    Most of the time is spent in three calls that release the interpreter lock: reading, and two of hashing.
    """
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            start = 8 + int.from_bytes(mapping[:8], "little")
            table = json.loads(mapping[8:start])
            about = table.pop("__metadata__")
            if about["format"] != _FORMAT:
                raise ValueError("of another version")
            expected, digest = about.pop("sha256"), _begun(about, table)
            size = min(table[name]["data_offsets"][0] for name in layout.MATRICES)
            rest = np.frombuffer(mapping, dtype=np.uint8)[start : start + size]
            digest.update(rest.data)
            if hasattr(mmap, "MADV_DONTNEED"):
                mapping.madvise(mmap.MADV_DONTNEED)  # all pages, which the hash has read
            panels = layout.aligned(1, len(mapping) - start - size, np.uint8)[0]
            file.seek(start + size)
            file.readinto(panels.data)
        digest.update(panels.data)
        if digest.hexdigest() != expected:
            raise ValueError("damaged: its hash does not match")
        tensors = {name: _tensor(rest, panels, **described) for name, described in table.items()}
        return CachedWeights(
            Architecture.from_json(about["architecture"]),
            {name: tensor for name, tensor in tensors.items() if not name.startswith(_EXTRA)},
            tuple(int(i) for i in json.loads(about["prefix"])),
            bytes.fromhex(about["tokenizer"]),
            bytes.fromhex(about["identity"]),
            {name[len(_EXTRA) :]: tensor for name, tensor in tensors.items() if name.startswith(_EXTRA)},
            about,
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged ({type(error).__name__})") from error


def _begun(about: dict[str, str], table: dict[str, Any]) -> Any:
    """The SHA-256 of the metadata and the table of tensors, to be continued with the bytes of the tensors."""
    return hashlib.sha256(json.dumps([about, table]).encode())


def _tensor(rest: np.ndarray, panels: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    start, end = data_offsets
    data = rest[start:end] if end <= len(rest) else panels[start - len(rest) : end - len(rest)]
    return data.view(_DTYPES[dtype]).reshape(shape)
