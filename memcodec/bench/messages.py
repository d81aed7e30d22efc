"""Many short messages: frames and archives, compared with zstd and brotli applied to each message."""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zstandard

from memcodec.bench.rivals import BenchError
from memcodec.codec import Codec
from memcodec.files.archive import Archive
from memcodec.primer import Primer
from memcodec.settings import DEFAULT_PRIMER_TOKENS

MOST = 200  # the most messages that are measured, and the most to train on
_DICTIONARIES = (1 << 10, 1 << 12, 1 << 14, 1 << 15)  # bytes; the best one is used


@dataclass(frozen=True)
class Line:
    """One method on all messages: total bytes (of an archive, those of the file), and seconds, 0 if not measured."""

    way: str
    total_bytes: int
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


def split(messages: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Messages to train on, and others to measure, chosen at random. Equal messages are used once."""
    known = list(dict.fromkeys(messages))
    random.Random(0).shuffle(known)
    measured = min(MOST, len(known) * 11 // 20)
    return known[measured : measured + MOST], known[:measured]


def measure(
    codec: Codec,
    train: Sequence[bytes],
    messages: Sequence[bytes],
    tokens: int = DEFAULT_PRIMER_TOKENS,
    batch: int | None = None,
    archive: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure all methods on `messages`, which neither the dictionary nor the primer has seen. All are decoded.

    Frames have the default checksum of 1 byte, and zstd's are counted without the magic number, which is the same in
    all. Nothing is verified while it is encoded. Raises BenchError if a message is not restored.
    """
    lines = [Line("original", sum(map(len, messages)))]
    for name, compress, decompress in _rivals(train, messages):
        packed = [compress(message) for message in messages]
        if [decompress(data) for data in packed] != list(messages):
            raise BenchError(f"{name}: does not decompress to its input")
        lines.append(Line(name, sum(map(len, packed))))
    say("frames")
    lines.append(_frames("memcodec frames", codec, messages, batch))
    say("primer")
    primer = Primer.train(codec, train, tokens)
    primed = codec.with_primer(primer)
    lines.append(_frames("memcodec frames, primer", primed, messages, batch))
    bare = lines[-1].total_bytes - len(messages)  # without checksums
    if archive:
        say("archive")
        lines.append(_archive(primed, messages))
    return {
        "messages": len(messages), "trained_on": len(train), "primer_tokens": len(primer.tokens),
        "primer_bytes": len(primer.to_bytes()), "bare_frame_bytes": bare,
        "lines": [asdict(line) for line in lines],
    }  # fmt: skip


def _frames(name: str, codec: Codec, messages: Sequence[bytes], batch: int | None) -> Line:
    codec.decode_frames(codec.encode_frames(messages[:2]), batch=batch)  # compiles the kernels, reads the primer
    start = time.perf_counter()
    frames = codec.encode_frames(messages)
    encoded = time.perf_counter()
    back = codec.decode_frames(frames, batch=batch)
    decoded = time.perf_counter()
    if back != list(messages):
        raise BenchError(f"{name}: do not decode to their messages")
    return Line(name, sum(map(len, frames)), encoded - start, decoded - encoded)


def _archive(codec: Codec, messages: Sequence[bytes]) -> Line:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        start = time.perf_counter()
        archive = Archive.create(path, messages, codec=codec, verify=False)
        encoded = time.perf_counter()
        if list(archive) != list(messages):
            raise BenchError("archive: does not decode to its messages")
        return Line(
            "memcodec archive, primer inside", path.stat().st_size, encoded - start, time.perf_counter() - encoded
        )


Way = tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]


def _rivals(train: Sequence[bytes], messages: Sequence[bytes]) -> list[Way]:
    plain = zstandard.ZstdCompressor(level=19, write_content_size=False)
    found = [_without_magic("zstd -19", plain, zstandard.ZstdDecompressor())]
    try:
        import brotli

        found.append(("brotli 11", lambda data: bytes(brotli.compress(data, quality=11)), brotli.decompress))
    except ImportError:
        pass
    best: tuple[int, Way] | None = None
    for size in _DICTIONARIES:
        try:
            dictionary = zstandard.train_dictionary(size, list(train))
        except zstandard.ZstdError:  # too few messages, or too short
            continue
        way = _with_dictionary(dictionary)
        total = sum(len(way[1](message)) for message in messages)
        if best is None or total < best[0]:
            best = total, way
    return found + ([best[1]] if best else [])


def _with_dictionary(dictionary: zstandard.ZstdCompressionDict) -> Way:
    packer = zstandard.ZstdCompressor(level=19, dict_data=dictionary, write_content_size=False, write_dict_id=False)
    unpacker = zstandard.ZstdDecompressor(dict_data=dictionary)
    return _without_magic("zstd -19, dictionary", packer, unpacker)


def _without_magic(name: str, packer: zstandard.ZstdCompressor, unpacker: zstandard.ZstdDecompressor) -> Way:
    magic = zstandard.FRAME_HEADER
    return (
        name,
        lambda message: packer.compress(message)[len(magic) :],
        lambda data: unpacker.decompressobj().decompress(magic + data),
    )


def render(name: str, found: dict[str, Any]) -> str:
    """A table for the terminal."""
    count = found["messages"]
    lines = [
        f"{name}: {count} messages, trained on {found['trained_on']} others; primer {found['primer_tokens']} tokens"
    ]
    lines.append(f"{'':36}{'bytes each':>12}{'ratio':>8}{'encode':>14}{'decode':>14}")
    original = found["lines"][0]["total_bytes"]
    for line in found["lines"]:
        size = line["total_bytes"]
        speeds = [f"{original / s:,.0f} bytes/s" if s else "" for s in (line["encode_seconds"], line["decode_seconds"])]
        lines.append(f"{line['way']:36}{size / count:12.1f}{original / size:8.2f}{speeds[0]:>14}{speeds[1]:>14}")
    return "\n".join(lines)
