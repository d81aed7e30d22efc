"""Files that are made to do harm, for hostile.py."""

import json
import os
import pickle
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.numpy
import zstandard
from faults import TEXT, TINY, sealed
from force_lm import store_nothing

from memcodec import Archive, container
from memcodec.codec import Codec
from memcodec.container import Chunk, Container, ModelId, Segment, Settings, StoredSpan, pack, write
from memcodec.document.references import Reference
from memcodec.settings import MAX_CONTEXT

VICTIM = "victim"  # a folder with a model that no case may access
MEMORY = 64 << 20  # bytes that the reader may take for any file, besides the file and what docs/reliability.md counts


@dataclass(frozen=True)
class Hostile:
    """A case: its description, the bytes, the name in READERS, and the most bytes by which memory may grow."""

    what: str
    blob: bytes
    reader: str = "file"
    memory: int = MEMORY


def hostile(folder: Path, large: bool) -> Iterator[Hostile]:
    """All hostile files."""
    codec = Codec.load(str(TINY), device="cpu", threads=1)
    with store_nothing():
        good = codec.encode((TEXT * 6).encode(), chunk_tokens=40)
    yield from headers(good)
    yield from indexes(good, large)
    yield from payloads(codec, large)
    yield from copies()
    yield from names(folder, codec)
    yield from others(codec)


def headers(good: bytes) -> Iterator[Hostile]:
    """Files with a wrong JSON header, or a wrong length of it."""
    (length,) = struct.unpack("<Q", good[:8])
    yield Hostile("header of 2^63 bytes", struct.pack("<Q", 1 << 63) + good[8:])
    yield Hostile("header of 64 KB + 1, complete", struct.pack("<Q", (1 << 16) + 1) + b"{" + b" " * (1 << 16) + good)
    nested = b'{"memcodec":' + b"[" * 60_000
    yield Hostile("60,000 brackets", struct.pack("<Q", len(nested)) + nested)
    many = json.dumps({"__metadata__": {"memcodec": "3"}} | {f"t{i}": [] for i in range(5000)}).encode()
    yield Hostile("5,000 tensors", struct.pack("<Q", len(many)) + many)
    digits = b'{"__metadata__":{"memcodec":"3"},"document":{"dtype":"U8","shape":[' + b"9" * 60_000 + b"]}}"
    yield Hostile("a number of 60,000 digits", struct.pack("<Q", len(digits)) + digits)
    header = json.loads(good[8 : 8 + length])
    size = len(good) - 8 - length
    for what, entries in {
        "overlapping tensors": {"memories": (0, size), "document": (size // 2, size)},
        "no document": {"memories": (0, size)},
        "a tensor of 2^60 bytes": {"document": (0, 1 << 60)},
        "offsets that go backwards": {"document": (size, 0)},
        "a hole between tensors": {"memories": (0, 4), "document": (8, size)},
    }.items():
        changed = {"__metadata__": header["__metadata__"]}
        changed |= {n: {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for n, (a, b) in entries.items()}
        text = json.dumps(changed).encode()
        yield Hostile(what, struct.pack("<Q", len(text)) + text + good[8 + length :])


def indexes(good: bytes, large: bool) -> Iterator[Hostile]:
    """Files with wrong numbers in the index and a correct checksum."""
    parsed = container.unpack(good)
    assert parsed.model is not None and parsed.settings is not None
    start = good.index(parsed.sha256)
    numbers = start + container.HASH_BYTES

    def with_number(which: int, value: int) -> bytes:
        at = numbers
        for _ in range(which):
            while good[at] & 0x80:
                at += 1
            at += 1
        end = at
        while good[end] & 0x80:
            end += 1
        return resized(good, at, end + 1, container.varint(value))

    most = (1 << 62) - 1
    for what, which in (("document", 0), ("runs", 1), ("stored spans", 2), ("segments in a run", 3)):
        blob = with_number(which, most)
        yield Hostile(f"2^62 - 1 {what}" if which else "a document of 2^62 - 1 bytes", blob)
    yield Hostile("a number of 200 bytes", resized(good, numbers, numbers + 1, b"\xff" * 200))

    def made(segments: list[Segment], settings: Settings = parsed.settings) -> bytes:
        size = sum(segment.size for segment in segments)
        return pack(Container(size, bytes(16), list(segments), parsed.model, settings))

    if large:
        full = [Segment(1, (Chunk(1, b"", 0),), b"") for _ in range(container.MAX_CHUNKS)]
        blob = made(full)
        yield Hostile("2,097,152 chunks, the maximum, in 2 MB", blob, "container", MEMORY + 400 * len(full) + len(blob))
        with patch.object(write, "MAX_CHUNKS", len(full) + 1):  # the encoder does not write such a file
            more = made([*full, full[0]])
        yield Hostile("one chunk more", more)
    long = Segment(1 << 40, tuple(Chunk(4096, b"", 0) for _ in range(12)), b"")
    widest = replace(parsed.settings, chunk_tokens=4096, context=500)
    yield Hostile("49,152 tokens in 100 bytes", made([long], widest))
    claim = Segment(1 << 40, tuple(Chunk(200, b"", 0) for _ in range(20)), bytes(20))
    beyond = replace(parsed.settings, context=MAX_CONTEXT)
    yield Hostile("a context beyond the model", made([claim], beyond))


def copies() -> Iterator[Hostile]:
    """Files whose references are hostile; the other lengths and the checksum are correct."""
    carried = bytes(range(256)) * 256

    def made(*references: Reference, size: int | None = None) -> bytes:
        whole = len(carried) + sum(one.size for one in references) if size is None else size
        return pack(Container(whole, bytes(16), [StoredSpan.of(carried)], references=references))

    whole = Reference(len(carried), 0, len(carried))
    yield Hostile("references that state 1 GB, correctly", made(*[whole] * (1 << 14)))
    yield Hostile("references to more bytes than the document states", made(*[whole] * 9, size=1 << 17))
    yield Hostile("a reference to 2^50 bytes", made(Reference(1 << 51, 0, 1 << 50)))
    one = Reference(300, 0, 32)
    many = made(*[one] * (1 << 20))
    yield Hostile("a million references to 32 bytes", many, "container", MEMORY + (200 << 20) + len(many))
    sawtooth = made(*(Reference(len(carried), (i * 7919) % (len(carried) - 200), 200) for i in range(1 << 16)))
    yield Hostile("references in the order of a sawtooth", sawtooth, memory=MEMORY + (200 << 16) + len(sawtooth))


def resized(blob: bytes, start: int, end: int, new: bytes) -> bytes:
    """Replace bytes of the document tensor, and correct the length in the header and the checksum."""
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    entry = header["document"]
    entry["data_offsets"][1] += len(new) - (end - start)
    entry["shape"] = [entry["data_offsets"][1] - entry["data_offsets"][0]]
    text = json.dumps(header).encode()
    return sealed(struct.pack("<Q", len(text)) + text + blob[8 + length : start] + new + blob[end:])


def payloads(codec: Codec, large: bool) -> Iterator[Hostile]:
    """Files with hostile stored spans, memories and corrections; lengths and checksum are correct."""

    def stored(size: int, frame: bytes) -> bytes:
        return pack(Container(size, bytes(16), [StoredSpan(size, 1, frame, 0)]))

    empty = StoredSpan.of(b"")
    yield Hostile("a million stored spans without bytes", pack(Container(0, bytes(16), [empty] * 1_000_000)))
    if large:
        full = [StoredSpan.of(b"\xff")] * container.MAX_SPANS
        most = pack(Container(len(full), bytes(16), list(full)))
        yield Hostile("2,097,152 stored spans, the maximum", most, "container", MEMORY + 400 * len(full) + len(most))
        with patch.object(write, "MAX_SPANS", len(full) + 1):  # the encoder does not write such a file
            more = pack(Container(len(full) + 1, bytes(16), [*full, full[0]]))
        yield Hostile("one stored span more", more, memory=MEMORY + len(more))
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    yield Hostile("12 bytes that zstd expands to 1 GB", stored(12, bomb))
    yield Hostile("1 GB of zeros in 33 KB, correctly declared", stored(1 << 30, bomb))
    checksum = zlib.crc32(bytes(1 << 30))
    whole = pack(Container(1 << 30, bytes(16), [StoredSpan(1 << 30, 1, bomb, checksum)]))
    yield Hostile("1 GB of zeros in 33 KB with a correct checksum, salvaged", whole, "salvage")
    for what, bits, size in (("2 GB", 31, 1 << 20), ("128 MB, which is filled", 27, 144 << 20)):
        wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=bits)
        window = zstandard.ZstdCompressor(compression_params=wide).compressobj()
        yield Hostile(f"a zstd window of {what}", stored(size, window.compress(bytes(size)) + window.flush()))

    model = ModelId.of(codec.name, codec.model.identity)

    def one(memory: bytes, corrections: bytes, settings: Settings, tokens: int = 150) -> bytes:
        segment = Segment(1 << 20, (Chunk(tokens, memory, 0),), corrections)
        return pack(Container(1 << 20, bytes(16), [segment], model, settings))

    readout = Settings("readout", (102,), 200, 200)
    steered = Settings("readout", (512,), 200, 200)
    for what, memory, corrections, settings in (
        ("empty corrections", b"", b"", readout),
        ("1 MB of corrections, all ones", b"", b"\xff" * (1 << 20), readout),
        ("1 MB of corrections, all zeros", b"", bytes(1 << 20), readout),
        ("a memory of 1 MB, all ones", b"\xff" * (1 << 20), b"\x55" * 40, steered),
        ("a memory of 1 MB, all zeros", bytes(1 << 20), b"\x55" * 40, steered),
        ("a memory of 30 MB", bytes(30 << 20), b"\x55" * 40, steered),
        ("a share of 2^40", b"\1\2\3", b"\x55" * 40, Settings("readout", (1 << 40,), 200, 200)),
    ):
        blob = one(memory, corrections, settings)
        yield Hostile(what, blob, memory=MEMORY + len(blob))
    hidden = codec.lm.architecture.hidden
    for what, entry in (("not a number", np.nan), ("infinite", np.inf), ("65504", 65504.0)):
        vectors = np.full((2, hidden), entry, dtype="<f2").tobytes()
        blob = one(vectors, b"\x55" * 40, Settings("prompt", (16, hidden), 200, 200))
        yield Hostile(f"vectors whose entries are {what}", blob)
    scale = np.full((1, 1), np.inf, dtype="<f2").tobytes() + b"\xff" * (hidden // 2)
    blob = one(scale, b"\x55" * 40, Settings("prompt", (4, hidden), 200, 200))
    yield Hostile("a vector whose scale is infinite", blob)
    dimensions = one(bytes(64), b"", Settings("prompt", (16, 1 << 50), 200, 200))
    yield Hostile("vectors of 2^50 dimensions", dimensions)


def names(folder: Path, codec: Codec) -> Iterator[Hostile]:
    """Files with hostile names of models, for which nothing may be downloaded or read; and hostile model folders."""
    shutil.copytree(TINY, folder / VICTIM)
    for name in (f"../{VICTIM}", str(folder / VICTIM), "/etc", "~root", "~", "C:\\Windows", "file:///etc/passwd",
                 "http://localhost/model", "org/model", "org/model@../../victim", "..", "", "a\nb", "\x1b[2J",
                 "m" * 60_000, "smollm2-135m/../victim", "\u202emodel"):  # fmt: skip
        segment = Segment(50, (Chunk(10, b"", 0),), b"")
        blob = pack(Container(50, bytes(16), [segment], ModelId(name, bytes(8)), Settings("readout", (0,))))
        shown = name if len(name) < 40 else f"{name[:10]}... of {len(name):,} characters"
        yield Hostile(f"a model named {shown!r}".replace(str(folder), "/tmp"), blob, "alone")

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "pickled" / "was here",)

    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((TINY / "config.json").read_text())
    (pickled / "tokenizer.json").write_text((TINY / "tokenizer.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    yield Hostile("a model folder with pickled weights", os.fsencode(pickled), "model")
    remote = folder / "remote"
    remote.mkdir()
    config = json.loads((TINY / "config.json").read_text()) | {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "tokenizer.json").write_text((TINY / "tokenizer.json").read_text())
    (remote / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes())
    (remote / "evil.py").write_text(f"open({str(remote / 'was here')!r}, 'w')\n")
    yield Hostile("a model folder with code of its own", os.fsencode(remote), "model")


def others(codec: Codec) -> Iterator[Hostile]:
    """Hostile archives, primers and frames."""

    def archive(what: str, index: bytes, more: int = 0) -> Hostile:
        body = (
            codec.model.identity[: container.IDENTITY_BYTES]
            + container.pack_settings(Settings("readout", (0,), 200, 32768))
            + index
        )
        entry = {"dtype": "U8", "shape": [len(body) + 4], "data_offsets": [0, len(body) + 4]}
        header = {"__metadata__": {"memcodec": "archive 1", "model": "m"}, "archive": entry}
        text = json.dumps(header, separators=(",", ":")).encode()
        return Hostile(what, sealed(struct.pack("<Q", len(text)) + text + body + bytes(4)), "archive", MEMORY + more)

    varint = container.varint
    yield archive("an archive of 2^30 documents", varint(1 << 30) + varint(0))
    zeros = bytes([0, 0, 0, 0]) + bytes(1 << 20)  # two columns of zeros: each document is to be the same as the first
    yield archive("an archive of 4,194,304 documents in 1 MB", varint(1 << 22) + varint(0) + zeros)
    many = 1 << 21
    yield archive(
        "an archive of 2,097,152 documents, the maximum, in 1 MB", varint(many) + varint(0) + zeros, 200 * many
    )
    wide = zstandard.ZstdCompressor().compress(("x" * 4096 + "\0").encode() * 16_000 + "\U0001f600".encode())
    yield archive("64 MB of keys in a few KB", varint(16_001) + varint(len(wide)) + wide + zeros, 6 << 26)
    keys = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    yield archive("keys that zstd expands to 1 GB", varint(100) + varint(len(keys)) + keys + bytes(200))
    yield archive("documents of 2^61 bytes each", varint(3) + varint(0) + varint(1 << 61) + b"\0")
    repeats = container.pack_column([1000, *[0] * 3999]) + container.pack_column(range(1, 4000)) + bytes(1000)
    yield archive("documents that are the same as each other", varint(4000) + varint(0) + repeats)
    with tempfile.TemporaryDirectory() as folder:
        large = [b"\xff" * ((1 << 20) - i) for i in range(100)]
        Archive.create(path := Path(folder) / "a", large, codec=codec, verify=False)
        yield Hostile("100 documents of 1 MiB each, in 4 KB", path.read_bytes(), "documents")
    tensors = {"text": np.zeros(8, np.uint8), "tokens": np.zeros(1 << 22, np.int32), "hash": np.zeros(8, np.uint8)}
    yield Hostile("a primer of 4,194,304 tokens", safetensors.numpy.save(tensors), "primer")

    def frames(what: str, made: list[bytes]) -> Hostile:
        return Hostile(what, json.dumps([frame.hex() for frame in made]).encode(), "frames")

    yield frames("frames of each first byte", [bytes([first]) + b"\xff" * 40 for first in range(256)])
    yield frames("frames of 2^61 tokens", [bytes([first]) + varint(1 << 61) + bytes(20) for first in (224, 251, 252)])
    bomb = zstandard.ZstdCompressor(write_checksum=False).compress(bytes(1 << 28))
    yield frames("a frame that zstd expands to 256 MB", [bytes([253]) + bomb, bytes([254]) + bomb])
