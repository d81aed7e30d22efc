"""The container: packed data is restored, and damaged and hostile data are refused."""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from memcodec import container, decode, inspect
from memcodec.container import (
    Chunk,
    Container,
    ModelId,
    Part,
    Reader,
    Segment,
    Settings,
    StoredSpan,
    layout,
    pack,
    unpack,
    write,
)
from memcodec.container.assembly import stored
from memcodec.document.source import Source
from memcodec.errors import ChecksumError, EncodeError, FormatError, MemcodecError

from .conftest import traced

MODEL = ModelId("smollm2-135m", b"identity")


def segment(i: int, chunks: int = 1, continues: bool = False) -> Segment:
    """A segment with chunks of 136 and 135 tokens, made from a number below 256."""
    some = tuple(
        Chunk(136 - (i + k) % 2 if chunks == 1 else 135, bytes([i]) * (9 + (i + k) % 3), i) for k in range(chunks)
    )
    size = 500 + 37 * i % 300 if chunks == 1 else 200 * chunks
    return Segment(size, some, None if continues else bytes([i]) * (80 + i % 50))


def example(chunks: int = 3, stored: bytes = b"stored bytes", site: str = "readout") -> Container:
    parts: list[Part] = [segment(i % 256) for i in range(chunks)]
    if stored:
        parts.insert(chunks, StoredSpan.of(stored))
    size = sum(part.size for part in parts)
    used = Settings(site, (102,) if site == "readout" else (4, 576)) if chunks else None
    return Container(size, bytes(range(16)), parts, MODEL if chunks else None, used)


def reseal(blob: bytes) -> bytes:
    """Give changed bytes a correct checksum, as an attacker would."""
    return blob[:-4] + struct.pack("<I", zlib.crc32(blob[:-4]))


def with_header(blob: bytes, change: Callable[[dict], object]) -> bytes:
    """The same tensors with another header."""
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    return reseal(struct.pack("<Q", len(text)) + text + blob[8 + length :])


def with_index(container: Container, change: Callable[[bytes], bytes]) -> bytes:
    """The file of a container whose index was changed."""
    index = write._pack_index(container)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_pack_index", lambda _: change(index))
        return pack(container)


@pytest.mark.parametrize("site", ["readout", "prompt"])
@pytest.mark.parametrize("chunks", [0, 1, 3, 64, 65, 200])
@pytest.mark.parametrize("stored", [b"", b"x", b"y" * 1000])
def test_unpack_inverts_pack(site: str, chunks: int, stored: bytes) -> None:
    container = example(chunks, stored, site)
    assert unpack(pack(container)) == container


def test_mixed_spans_keep_their_order() -> None:
    def chunk(tokens: int) -> Segment:
        return Segment(tokens * 3, (Chunk(tokens, b"", 1),), b"c")

    spans = [StoredSpan.of(data) for data in (b"a", b"bb", b"last")]
    parts: list[Part] = [spans[0], chunk(10), chunk(3), spans[1], chunk(10), chunk(10), spans[2]]
    for some in (parts, parts[:-1], parts[1:]):
        container = Container(sum(p.size for p in some), bytes(16), some, MODEL, Settings("readout", (0,), 10))
        assert unpack(pack(container)) == container


def test_groups_go_on_after_stored_spans() -> None:
    span = StoredSpan.of(b"between")
    for parts in (
        [segment(1, 3), span, segment(2, 2, continues=True), segment(3)],
        [segment(1), segment(2, 5), span, segment(3, 1, continues=True), span, segment(4, 2, continues=True), span],
        [span, segment(200, 40)],
    ):
        container = Container(sum(p.size for p in parts), bytes(16), parts, MODEL, Settings("readout", (0,), 136, 3000))
        found = unpack(pack(container))
        assert found == container
        assert [len(group.chunks) for group in found.groups] == {4: [5, 1], 7: [1, 8], 2: [40]}[len(parts)]
        assert sum(len(group.corrections) for group in found.groups) == found.sizes["corrections"]


@given(st.lists(st.integers(0, (1 << 62) - 1), min_size=1, max_size=200))
def test_columns_come_back(values: list[int]) -> None:
    reader = Reader(container.pack_column(values), "column")
    assert reader.column(len(values)) == values
    reader.end()


@given(st.integers(0, (1 << 62) - 1))
def test_varints_come_back(value: int) -> None:
    assert Reader(container.varint(value), "number").varint() == value


@pytest.mark.parametrize("data", [b"\xff" * 8 + b"\x7f", b"\xff" * 9 + b"\x01", b"\x80" * 9 + b"\x00"])
def test_varints_of_more_than_62_bits_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="too long"):
        Reader(data, "number").varint()
    assert Reader(b"\xff" * 8 + b"\x3f", "number").varint() == (1 << 62) - 1


def test_safetensors_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.memz"
    path.write_bytes(pack(example(30)))
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"memories", "document"}
        assert file.get_tensor("memories").nbytes == 10 * (9 + 10 + 11)
        assert file.metadata() == {"memcodec": "3", "model": "smollm2-135m"}


def test_few_memories_have_no_tensor_of_their_own() -> None:
    for chunks, names in ((25, {"document"}), (26, {"memories", "document"})):  # 249 and 259 bytes
        container = example(chunks)
        blob = pack(container)
        (length,) = struct.unpack("<Q", blob[:8])
        found = unpack(blob)
        assert set(json.loads(blob[8 : 8 + length])) - {"__metadata__"} == names
        assert found == container
        assert found.sizes["memories"] == sum(len(chunk.memory) for chunk in container.chunks)
        assert sum(found.sizes.values()) == len(blob)


@pytest.mark.parametrize("chunks", [1, 2, 30, 500])
def test_overhead_budget(chunks: int) -> None:
    """240 bytes per file and 4 bytes per chunk that is a group, with the default model and settings."""
    container = example(chunks, b"")
    found = unpack(pack(container))
    payload = found.sizes["memories"] + found.sizes["corrections"]
    assert len(pack(container)) - payload <= 240 + 4 * chunks


def test_overhead_in_long_groups() -> None:
    """At most 2 bytes per chunk."""
    container = Container(60_000, bytes(16), [segment(0, 300)], MODEL, Settings("readout", (102,), 135, 2000))
    found = unpack(pack(container))
    assert len(pack(container)) - found.sizes["memories"] - found.sizes["corrections"] <= 240 + 2 * 300


def test_stored_files_cost_little_over_zstd() -> None:
    data = b"one,two,three\n" * 40
    assert len(pack(stored(Source.of(data)))) < len(zstandard.ZstdCompressor(19).compress(data)) + 150


def test_inspect_adds_up() -> None:
    blob = pack(example())
    found = inspect(blob)
    assert sum(found["parts"].values()) == found["file_bytes"] == len(blob)
    assert found["model"] == {"id": "smollm2-135m", "identity_start": b"identity".hex()}
    assert found["settings"] == {"site": "readout", "memory_share": 102 / 1024, "chunk_tokens": 200, "context": 200}
    assert [row["kind"] for row in found["spans"]] == ["group", "group", "group", "stored"]
    assert sum(row["bytes"] for row in found["spans"]) == found["original_bytes"]
    assert inspect(bytearray(blob)) == inspect(memoryview(blob)) == found


def test_stored_spans_are_read_one_by_one() -> None:
    spans = [StoredSpan.of(bytes([i]) * 5000) for i in range(3)]
    broken = replace(spans[1], packed=b"\0" * len(spans[1].packed))
    blob = pack(Container(15_000, bytes(16), [spans[0], broken, spans[2]]))
    found = [part for part in unpack(blob).parts if isinstance(part, StoredSpan)]
    assert found[0].read() == b"\0" * 5000 and found[2].read() == b"\2" * 5000
    with pytest.raises(FormatError, match="zstd cannot read it"):
        found[1].read()


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


@settings(max_examples=500)
@given(data=st.data())
def test_resealed_damage_raises_our_errors_or_reads(data: st.DataObject) -> None:
    blob = bytearray(pack(example(stored=b"z" * 500)))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 5))] = data.draw(st.integers(0, 255))
    try:
        for part in unpack(reseal(bytes(blob))).parts:
            if isinstance(part, StoredSpan):
                part.read()
    except MemcodecError as error:
        assert "\n" not in str(error)


@given(data=st.binary(max_size=300))
def test_noise_is_not_a_file(data: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(memcodec="4"), "version '4' is not supported"),
        (lambda h: h["__metadata__"].update(memcodec=""), "version"),
        (lambda h: h["__metadata__"].update(memcodec=2), "metadata"),
        (lambda h: h["__metadata__"].pop("model"), "without a model"),
        (lambda h: h.update(extra=h["memories"]), "unknown tensor 'extra'"),
        (lambda h: h.pop("document"), "the file is longer than it says"),
        (lambda h: h.pop("memories"), "document is not where it should be"),
        (lambda h: h["memories"].update(dtype="F32"), "memories is not where it should be"),
        (lambda h: h["memories"].update(shape=[150, 2]), "memories is not where it should be"),
        (lambda h: h["memories"].update(data_offsets=[0, 299]), "not where it should be"),
        (lambda h: h["memories"].update(data_offsets=[1, 300]), "not where it should be"),
        (lambda h: h["memories"].update(data_offsets=[0, -300]), "cannot be read"),
        (lambda h: h["memories"].update(data_offsets=[0, 1 << 60]), "truncated file"),
        (lambda h: h["memories"].update(data_offsets=[0, "300"]), "cannot be read"),
        (lambda h: h["memories"].update(data_offsets=[]), "cannot be read"),
        (lambda h: h["memories"].update(data_offsets=[0, True]), "cannot be read"),
        (lambda h: h["memories"].pop("shape"), "cannot be read"),
        (lambda h: h.update(memories=[]), "cannot be read"),
    ],
)  # fmt: skip
def test_bad_headers_are_refused(change: Callable[[dict], object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(with_header(pack(example(30)), change))


def test_unknown_metadata_is_ignored() -> None:
    blob = pack(example())
    assert unpack(with_header(blob, lambda h: h["__metadata__"].update(later="more"))) == unpack(blob)


def number_at(index: bytes, at: int, value: int) -> bytes:
    """An index in which one varint is replaced."""
    end = at
    while index[end] & 0x80:
        end += 1
    return index[:at] + container.varint(value) + index[end + 1 :]


BIG = (1 << 62) - 1


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (16, 3, "do not add up"),  # the document's size
        (16, BIG, "do not add up"),
        (18, BIG, "do not match"),  # runs
        (18, 2, "the numbers of runs and of stored spans do not match"),
        (19, BIG, "do not match"),  # stored spans
        (20, BIG, "more references than the file has room for"),
        (21, BIG - 1, "more chunks than the file has room for"),  # twice the segments of the run
        (21, 80, "numbers in document are too long"),
        (21, 7, "continues a group that does not exist"),
        (21, 1, "continues a group that does not exist"),
        (30, 4, "unknown site"),
        (31, 0, "out of range"),  # chunk tokens
        (31, 5000, "out of range"),
        (33, 0, "out of range"),  # context
        (33, BIG, "out of range"),
        (35, 9, "unknown site"),  # fields of the site
        (37, BIG, "more of them than bytes"),  # tokens of a segment
        (37, 0, "without tokens"),
    ],
)  # fmt: skip
def test_hostile_numbers_are_refused(at: int, value: int, message: str) -> None:
    blob = with_index(example(3, b""), lambda index: number_at(index, at, value))
    with traced() as peak:
        with pytest.raises(FormatError, match=message):
            unpack(blob)
        assert peak() < 1 << 20


def test_stored_spans_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans without bytes, which cost a reader more than a file, and more spans than a file may have."""
    one = StoredSpan.of(b"x")
    with pytest.raises(FormatError, match="a stored span without bytes"):
        unpack(pack(Container(1, bytes(16), [one, StoredSpan.of(b"")])))
    blob = pack(Container(3, bytes(16), [one] * 3))
    assert len(unpack(blob).parts) == 3
    monkeypatch.setattr(write, "MAX_SPANS", 2)
    monkeypatch.setattr("memcodec.container.read.MAX_SPANS", 2)
    with pytest.raises(FormatError, match="more stored spans than the file has room for"):
        unpack(blob)
    with pytest.raises(EncodeError, match="more than 2 stretches of bytes that are not text"):
        pack(Container(3, bytes(16), [one] * 3))


def test_a_zstd_bomb_is_stopped() -> None:
    """The index says 12 bytes; the frame expands to a gigabyte. A few MB at most are expanded."""
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    span = StoredSpan(12, 1, bomb, 0)
    found = unpack(pack(Container(12, bytes(16), [span]))).parts[0]
    assert isinstance(found, StoredSpan)
    with traced() as peak:
        with pytest.raises(FormatError, match="its length is not that"):
            found.read()
        assert peak() < 1 << 23


@pytest.mark.parametrize("kind", ["two frames", "bytes after it", "cut", "empty", "a large window"])
def test_a_stored_span_is_one_zstd_frame(kind: str) -> None:
    """Two frames were read as one, and so was a frame without its end; a window of 128 MB was kept in memory."""
    frame = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(b"abc" * 100)
    large = zstandard.ZstdCompressionParameters.from_level(1, window_log=26)
    wide = zstandard.ZstdCompressor(compression_params=large).compressobj()
    packed, size = {
        "two frames": (frame * 2, 600), "bytes after it": (frame + b"x", 300), "cut": (frame[:-1], 300),
        "empty": (b"", 300), "a large window": (wide.compress(b"abc" * 100) + wide.flush(), 300),
    }[kind]  # fmt: skip
    span = replace(StoredSpan.of(b"abc" * (size // 3)), method=1, packed=packed)
    found = unpack(pack(Container(size, bytes(16), [span]))).parts[0]
    assert isinstance(found, StoredSpan)
    with pytest.raises(FormatError, match="damaged stored span: zstd cannot read it"):
        found.read()


def test_an_unknown_method_of_storing_is_refused() -> None:
    with pytest.raises(FormatError, match="unknown method 2"):
        unpack(pack(Container(1, bytes(16), [StoredSpan(1, 2, b"x", 0)])))


def test_other_safetensors_are_not_ours() -> None:
    import numpy as np
    from safetensors.numpy import save

    for metadata in ({"format": "pt"}, None):
        with pytest.raises(FormatError, match="another kind of safetensors file"):
            unpack(save({"weight": np.zeros(300)}, metadata=metadata))


def test_files_of_format_2_are_refused_by_name() -> None:
    """Files as memcodec 0.2 wrote them."""
    blob = pack(example(3)).replace(b'{"memcodec":"3"', b'{"memcodec":"2"')
    message = r"^format 2 \(memcodec 0\.2\) is not supported: .* memcodec 0\.2 and compress it again$"
    for read in (unpack, container.unpack_all, inspect, decode):  # without a look for the model
        with pytest.raises(FormatError, match=message):
            read(blob)


def test_files_of_format_1_are_refused_by_name() -> None:
    """Files as memcodec 0.1 wrote them."""
    header = {
        "__metadata__": {"v": "1", "n": "13", "h": "x" * 43},
        "s": {"dtype": "U8", "shape": [14], "data_offsets": [0, 14]},
        "i": {"dtype": "U8", "shape": [11], "data_offsets": [14, 25]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    message = r"^format 1 \(memcodec 0\.1\) is not supported: .* memcodec 0\.1 and compress it again$"
    with pytest.raises(FormatError, match=message):
        unpack(struct.pack("<Q", len(text)) + text + bytes(25))


# ---- stored spans


def test_incompressible_bytes_are_stored_raw_without_a_long_look(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    noise = random.Random(0).randbytes(1 << 20)
    levels = []
    real = zstandard.ZstdCompressor

    def spy(level: int = 3, **settings: object) -> object:
        levels.append(level)
        return real(level, **settings) if "compression_params" not in settings else real(**settings)

    monkeypatch.setattr(zstandard, "ZstdCompressor", spy)
    assert container.compress(lambda: [noise[:9], noise[9:]], len(noise)) == (0, noise)
    assert 19 not in levels
    method, packed = container.compress(lambda: [noise, noise], 2 * len(noise))
    assert method == 1 and len(packed) < 1.01 * len(noise), "what repeats far back is found"


def test_what_is_stored_has_zstd_19_or_12_from_16_mib_on(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    real = zstandard.ZstdCompressor

    def spy(level: int = 3, **settings: Any) -> object:
        levels.append(level)
        return real(level, **settings)

    assert layout.SLOW_ZSTD_BYTES == 16 << 20
    monkeypatch.setattr(layout, "SLOW_ZSTD_BYTES", 1000)
    monkeypatch.setattr(zstandard, "ZstdCompressor", spy)
    for size, level in ((999, 19), (1000, 12), (5000, 12)):
        span = StoredSpan.of(b"x" * size)
        assert levels.pop() == level and not levels
        assert span.read() == b"x" * size
