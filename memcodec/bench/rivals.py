"""Other compressors, at their best settings, each measured in a new process that loads nothing else.

    python -m memcodec.bench.rivals NAME INPUT OUTPUT [DICTIONARY]

writes the compressed file and prints the measurements as JSON.
"""

import bz2
import gzip
import json
import lzma
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import zstandard

from memcodec.bench import peak
from memcodec.errors import MemcodecError

MIN_RUNS, MAX_RUNS, MIN_SECONDS = 5, 50, 0.2  # a time is the median of that many runs
DICTIONARY_BYTES = 112_640  # the default maximum of `zstd --train`
_SAMPLE_BYTES = 4096

Transform = Callable[[bytes], bytes]


class BenchError(MemcodecError):
    """An invalid benchmark: a codec failed, or did not restore its input."""


@dataclass(frozen=True)
class Rival:
    """A compressor. make: takes a dictionary (empty for most) and returns functions that compress and decompress."""

    make: Callable[[bytes], tuple[Transform, Transform]]
    library: str = ""  # the package that it comes from; empty: Python's standard library
    dictionary: bool = False

    @property
    def version(self) -> str:
        """The version of the library; "" if it is not installed."""
        if not self.library:
            return "Python " + sys.version.split()[0]
        try:
            return f"{self.library} {version(self.library)}"
        except PackageNotFoundError:
            return ""


def _zstd(level: int, dictionary: bytes = b"") -> tuple[Transform, Transform]:
    shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    # With a checksum of 4 bytes, as the command-line tool writes it.
    packer = zstandard.ZstdCompressor(level=level, dict_data=shared, write_checksum=True)
    return packer.compress, zstandard.ZstdDecompressor(dict_data=shared).decompress


def _brotli() -> tuple[Transform, Transform]:
    import brotli

    def compress(data: bytes) -> bytes:
        return bytes(brotli.compress(data, quality=11, lgwin=24))

    return compress, brotli.decompress


RIVALS = {
    "gzip -9": Rival(lambda _: (lambda data: gzip.compress(data, 9), gzip.decompress)),
    "bzip2 -9": Rival(lambda _: (lambda data: bz2.compress(data, 9), bz2.decompress)),
    "xz -9e": Rival(lambda _: (lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress)),
    "zstd -19": Rival(lambda _: _zstd(19), "zstandard"),
    "zstd --ultra -22": Rival(lambda _: _zstd(22), "zstandard"),
    "zstd -19 + dictionary": Rival(lambda dictionary: _zstd(19, dictionary), "zstandard", dictionary=True),
    "brotli 11": Rival(lambda _: _brotli(), "brotli"),
}


def train_dictionary(others: list[bytes]) -> bytes:
    """A zstd dictionary trained on other texts; empty if they are too few or too short."""
    samples = [text[i : i + _SAMPLE_BYTES] for text in others for i in range(0, len(text), _SAMPLE_BYTES)]
    size = min(DICTIONARY_BYTES, sum(map(len, samples)) // 8)
    try:
        return zstandard.train_dictionary(size, list(samples)).as_bytes()
    except (zstandard.ZstdError, ValueError):
        return b""


def measure(compress: Transform, decompress: Transform, data: bytes, output: Path) -> dict[str, Any]:
    """Compress, write a file, read it back and decompress; median seconds and peaks in bytes. Raises BenchError.

    As with memcodec, the seconds do not include writing and reading the file.
    """
    peak.reset()
    encode_seconds, runs, packed = _timed(lambda: compress(data))
    encode_peak = peak.read()
    output.write_bytes(packed)
    packed = output.read_bytes()
    peak.reset()
    decode_seconds, _, restored = _timed(lambda: decompress(packed))
    decode_peak = peak.read()
    if restored != data:
        raise BenchError(f"{output.name}: does not decompress to its input")
    return {
        "file_bytes": output.stat().st_size,
        "encode_seconds": encode_seconds,
        "decode_seconds": decode_seconds,
        "encode_peak": encode_peak,
        "decode_peak": decode_peak,
        "runs": runs,
    }


def _timed(work: Callable[[], bytes]) -> tuple[float, int, bytes]:
    """The median seconds, the number of runs, and the result."""
    seconds: list[float] = []
    result = b""
    while len(seconds) < MIN_RUNS or (sum(seconds) < MIN_SECONDS and len(seconds) < MAX_RUNS):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), len(seconds), result


def measure_apart(name: str, data: bytes, folder: Path, dictionary: bytes = b"") -> dict[str, Any]:
    """`measure` for a rival in a process of its own. Raises BenchError."""
    paths = folder / "input", folder / "output", folder / "dictionary"
    for path, content in zip(paths, (data, b"", dictionary), strict=True):
        path.write_bytes(content)
    command = [sys.executable, "-m", "memcodec.bench.rivals", name, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{name}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def usable(name: str) -> bool:
    """Whether the library of a rival is installed."""
    library = RIVALS[name].library
    return not library or find_spec(library) is not None


if __name__ == "__main__":
    rival = RIVALS[sys.argv[1]]
    source, target, shared_file = map(Path, sys.argv[2:5])
    print(json.dumps(measure(*rival.make(shared_file.read_bytes()), source.read_bytes(), target)))
