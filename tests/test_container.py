"""The container: what is packed comes back, what is damaged is refused, and nothing hostile gets through."""

import json
import struct
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from memcodec import inspect
from memcodec.container import Chunk, Container, ModelId, Settings, StoredSpan, memory_bytes, pack, unpack
from memcodec.errors import ChecksumError, FormatError, MemcodecError

MODEL = ModelId("smollm2-135m", b"weight", b"toke")


def example(rate: str = "1", chunks: int = 3, stored: bytes = b"stored bytes") -> Container:
    used = Settings(1e-3, 200, Fraction(rate))
    parts: list[Chunk | StoredSpan] = []
    for i in range(chunks):
        tokens = 200 if i < chunks - 1 else 77
        parts.append(
            Chunk(
                tokens, bytes([i % 256]) * memory_bytes(tokens, used), bytes([i % 256]) * (100 + i % 50), 0xDEAD0000 + i
            )
        )
    if stored:
        parts.insert(chunks, StoredSpan(stored))
    return Container(10_000, bytes(range(32)), parts, MODEL if chunks else None, used if chunks else None)


def reseal(blob: bytes) -> bytes:
    """Give changed bytes a checksum that matches again, as an attacker would."""
    return blob[:-4] + struct.pack("<I", zlib.crc32(blob[:-4]))


def with_header(blob: bytes, change: dict) -> bytes:
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    metadata = {key: value for key, value in (header["__metadata__"] | change).items() if value is not None}
    text = json.dumps(header | {"__metadata__": metadata}, separators=(",", ":")).encode()
    return reseal(struct.pack("<Q", len(text)) + text + blob[8 + length :])


@pytest.mark.parametrize("rate", ["0", "1/2", "1", "8"])
@pytest.mark.parametrize("chunks", [0, 1, 3])
@pytest.mark.parametrize("stored", [b"", b"x", b"y" * 1000])
def test_unpack_inverts_pack(rate: str, chunks: int, stored: bytes) -> None:
    container = example(rate, chunks, stored)
    assert unpack(pack(container)) == container


def test_mixed_spans_keep_their_order() -> None:
    used = Settings(2e-3, 10, Fraction(2))

    def chunk(tokens: int) -> Chunk:
        return Chunk(tokens, bytes(memory_bytes(tokens, used)), b"c", 1)

    parts = [StoredSpan(b"a"), chunk(10), chunk(3), StoredSpan(b"bb"), chunk(10), chunk(10)]
    container = Container(99, bytes(32), parts, MODEL, used)
    assert unpack(pack(container)) == container


def test_safetensors_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.memz"
    path.write_bytes(pack(example()))
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"m", "c", "s", "i"}
        assert file.get_tensor("m").nbytes == 25 + 25 + 10
        assert file.metadata()["m"] == "smollm2-135m"


@pytest.mark.parametrize("chunks", [1, 2, 30, 500])
def test_overhead_budget(chunks: int) -> None:
    """320 bytes a file and 6 bytes a chunk, for files of the default model at the default settings."""
    container = example("1", chunks, b"")
    payload = sum(len(chunk.memory) + len(chunk.corrections) for chunk in container.chunks)
    container = replace(container, size=chunks * 870)
    corrections = [c if len(c.corrections) < 128 else replace(c, corrections=bytes(127)) for c in container.chunks]
    container = replace(container, parts=list(corrections))
    payload = sum(len(chunk.memory) + len(chunk.corrections) for chunk in container.chunks)
    assert len(pack(container)) - payload <= 320 + 6 * chunks


def test_inspect_adds_up() -> None:
    blob = pack(example())
    found = inspect(blob)
    assert sum(found["parts"].values()) == found["file_bytes"] == len(blob)
    assert found["model"]["id"] == "smollm2-135m"
    assert [row["kind"] for row in found["spans"]] == ["chunk", "chunk", "chunk", "stored"]


def test_every_truncation_is_refused() -> None:
    blob = pack(example())
    for length in range(len(blob)):
        with pytest.raises((FormatError, ChecksumError)):
            unpack(blob[:length])


def test_every_flipped_bit_is_noticed() -> None:
    blob = pack(example())
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << position % 8
        with pytest.raises((FormatError, ChecksumError)):
            unpack(bytes(damaged))


@settings(max_examples=300)
@given(data=st.data())
def test_resealed_damage_raises_our_errors_or_reads(data: st.DataObject) -> None:
    blob = bytearray(pack(example(stored=b"z" * 500)))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 5))] = data.draw(st.integers(0, 255))
    try:
        unpack(reseal(bytes(blob)))
    except MemcodecError as error:
        assert "\n" not in str(error)


@given(data=st.binary(max_size=300))
def test_noise_is_not_a_file(data: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": "2"}, "version"),
        ({"v": None}, "version"),
        ({"z": "1"}, "unknown required field 'z'"),
        ({"n": "-1"}, "header"),
        ({"n": "9" * 30}, "header"),
        ({"n": None}, "header"),
        ({"h": "short"}, "header"),
        ({"w": None}, "header"),
        ({"g": "nan"}, "header"),
        ({"g": "-1"}, "header"),
        ({"c": "0"}, "header"),
        ({"c": "1000000"}, "header"),
        ({"r": "9"}, "header"),
        ({"r": "1/0"}, "header"),
        ({"r": "1e9"}, "header"),
        ({"s": "elsewhere"}, "header"),
        ({"m": None}, "without a model"),
        ({"n": "3"}, "more stored bytes"),
    ],
)
def test_bad_headers_are_refused(change: dict, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(with_header(pack(example()), change))


def test_unknown_optional_fields_are_ignored() -> None:
    blob = pack(example())
    assert unpack(with_header(blob, {"X": "later"})) == unpack(blob)


def test_a_zstd_bomb_is_stopped() -> None:
    """The index says 12 bytes; the frame would give a gigabyte."""
    blob = pack(example(chunks=0))
    bomb = b"\1" + zstandard.ZstdCompressor().compress(bytes(1 << 24))
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    old = header["s"]["data_offsets"][1]
    index = blob[8 + length + old :]
    header["s"] |= {"shape": [len(bomb)], "data_offsets": [0, len(bomb)]}
    header["i"]["data_offsets"] = [len(bomb), len(bomb) + len(index)]
    text = json.dumps(header, separators=(",", ":")).encode()
    with pytest.raises(FormatError, match="not the length"):
        unpack(reseal(struct.pack("<Q", len(text)) + text + bomb + index))


def test_other_safetensors_are_not_ours() -> None:
    import numpy as np
    from safetensors.numpy import save

    with pytest.raises(FormatError, match="version"):
        unpack(save({"weight": np.zeros(3)}, metadata={"format": "pt"}))
    with pytest.raises(FormatError, match="not a memcodec file"):
        unpack(save({"weight": np.zeros(3)}))
