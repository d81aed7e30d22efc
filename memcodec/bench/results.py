"""Results that are kept between runs, and the machine that they were measured on."""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import memcodec
from memcodec.cache import cache_folder
from memcodec.lm.instructions import CHOSEN
from memcodec.storage.write import replace

_HARNESS = 3  # increase this when the meaning of a measurement changes


class Store:
    """Results by the key of what they depend on. Each is written immediately, so an interrupted run keeps them."""

    def __init__(self, folder: Path | None = None, fresh: bool = False) -> None:
        """folder: the user's cache by default; fresh: measure again, even if there is a result."""
        self._fresh = fresh
        self._folder = folder or cache_folder() / "bench"
        self.reused = 0
        self.measured = 0

    def get(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result kept under `key`; if there is none, `measure` is called and its result kept."""
        text = json.dumps(key | {"harness": _HARNESS}, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        if path.is_file() and not self._fresh:
            self.reused += 1
            result: dict[str, Any] = json.loads(path.read_text())["result"]
            return result
        result = measure()
        self.measured += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = {"key": json.loads(text), "date": today(), "machine": machine(), "result": result}
        replace(path, [json.dumps(kept).encode()])
        return result


def digest(data: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256, for keys and reports."""
    return hashlib.sha256(data).hexdigest()[:16]


@cache
def code_hash() -> str:
    """A hash of all modules except those of the benchmark, which identifies the measured codec."""
    folder = Path(memcodec.__file__).parent
    files = sorted(p for p in folder.rglob("*.py") if p.parent.name != "bench")
    return digest(b"".join(p.name.encode() + p.read_bytes() for p in files))


@cache
def machine() -> dict[str, Any]:
    """Processor, system and versions of a measurement; nothing that identifies the machine or its user."""
    names = ("memcodec", "numba", "llvmlite", "numpy", "tokenizers", "torch", "zstandard")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": CHOSEN.name,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names if find_spec(name)},
        "code": code_hash(),
    }


def _version(name: str) -> str:
    """Returns the installed version of a package; "?" if it is not installed, as memcodec in its repository."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def today() -> str:
    """Today's date in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
