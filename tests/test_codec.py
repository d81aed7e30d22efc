"""The whole path, both ways: every input comes back, on every machine, or an error says why not."""

import gzip
import random
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memcodec
from memcodec import container as box
from memcodec import corrections, document
from memcodec.codec import Codec, _Reporter
from memcodec.errors import ChecksumError, EncodeError, FormatError, ModelMismatchError, ModelNotFoundError

from .conftest import TEXT

EFFORT = 128
LINES = TEXT * 3


def png() -> bytes:
    """A small valid PNG of noise."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + random.Random(row).randbytes(96) for row in range(32))
    size = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", size) + piece(b"IDAT", zlib.compress(rows)) + piece(b"IEND", b"")


INPUTS = {
    "empty": b"",
    "one byte": b"a",
    "one high byte": b"\xff",
    "text": LINES.encode(),
    "one long line": LINES.replace("\n", " ").encode() * 2,
    "crlf": LINES.replace("\n", "\r\n").encode(),
    "tabs": LINES.replace(" ", "\t").encode(),
    "nul bytes": LINES.replace(" ", "\0").encode(),
    "emoji": ("🙂👩‍👩‍👧 und 漢字 " * 40 + LINES).encode(),
    "invalid in the middle": LINES.encode() + b"\xff\xfe\xe2\x28" + LINES.encode(),
    "latin-1": LINES.encode("latin-1", "replace"),
    "png": png(),
    "gzip": gzip.compress(LINES.encode(), mtime=0),
    "random megabyte": random.Random(1).randbytes(1 << 20),
    "repetition": b"the same line again\n" * 100_000,
    "five scripts": "Hello. Привет, как дела? مرحبا بالعالم. こんにちは世界。 नमस्ते दुनिया. ".encode() * 12,
}


@pytest.mark.parametrize("name", INPUTS)
def test_round_trip(tiny: Codec, name: str) -> None:
    data = INPUTS[name]
    blob = tiny.encode(data, effort=EFFORT)
    assert tiny.decode(blob) == data
    assert len(blob) <= document.zstd_size(data) + 300


def test_text_is_carried_by_the_lm(tiny: Codec) -> None:
    blob = tiny.encode(LINES, effort=EFFORT)
    assert len(memcodec.inspect(blob)["spans"]) == len(box.unpack(blob).chunks) > 0
    assert tiny.decode(blob) == LINES.encode()


@pytest.mark.parametrize("tokens", [1, 2, 19, 20, 21, 40])
@pytest.mark.parametrize("rate", [0, 0.5, 1, 2, 8])
def test_chunk_borders_and_rates(tiny: Codec, tokens: int, rate: float) -> None:
    ids = tiny.tokenizer.encode(LINES)[:tokens]
    check_chunks(tiny, [ids[i : i + 20] for i in range(0, tokens, 20)], rate, chunk_tokens=20)


def test_characters_cut_by_a_chunk_border(tiny: Codec) -> None:
    text = "🙂漢字" * 20
    assert len(tiny.tokenizer.encode(text)) > len(text) * 2  # several tokens a character, and 7 divides none of it
    blob = tiny.encode(LINES + text, chunk_tokens=7, effort=EFFORT)
    assert tiny.decode(blob) == (LINES + text).encode()


def check_chunks(codec: Codec, chunks: list[np.ndarray], rate: float, chunk_tokens: int = 200, **how: object) -> None:
    """Encode token ids as chunks, even where zstd would be smaller, and decode them."""
    used = box.Settings(1e-3, chunk_tokens, Fraction(rate))
    silent = _Reporter(None, "", [])
    coded = list(codec._encode_chunks(chunks, used, EFFORT, silent))
    written = codec._decode_chunks([c.chunk for c in coded], used, int(how.get("batch", 64)), silent, how.get("hook"))  # type: ignore[arg-type]
    assert written == [c.data for c in coded]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.lists(st.integers(1, 399), min_size=1, max_size=30), min_size=1, max_size=4),
    rate=st.sampled_from([0, 1]),
)
def test_any_tokens_round_trip_as_chunks(tiny: Codec, ids: list[list[int]], rate: float) -> None:
    """Even tokens that the LM thinks impossible: ranks of all sizes."""
    check_chunks(tiny, [np.array(row) for row in ids], rate)


@settings(max_examples=60, deadline=None)
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=120).map(lambda s: (LINES[:200] + s).encode())))
def test_any_bytes_round_trip(tiny: Codec, data: bytes) -> None:
    blob = tiny.encode(data, effort=32, chunk_tokens=50)
    assert tiny.decode(blob) == data


def noise(margin: float, seed: int) -> "torch.nn.Module":
    generator = torch.Generator().manual_seed(seed)

    def add(logits: torch.Tensor) -> torch.Tensor:
        return logits + (torch.rand(logits.shape, generator=generator) - 0.5) * margin * 0.998

    return add  # type: ignore[return-value]


@pytest.fixture(params=[0, 1, 2])
def blob(request: pytest.FixtureRequest, tiny: Codec) -> bytes:
    """A file whose chunks are all carried by the LM, though zstd would be smaller."""
    data = (LINES * 2).encode()
    used = box.Settings(1e-3, 50, Fraction(request.param))
    ids = tiny.tokenizer.encode(LINES * 2)
    chunks = [ids[i : i + 50] for i in range(0, len(ids), 50)]
    coded = tiny._encode_chunks(chunks, used, EFFORT, _Reporter(None, "", []))
    return box.pack(box.describe(data, [c.chunk for c in coded], tiny.model, used))


def test_decodes_with_any_batch(tiny: Codec, blob: bytes) -> None:
    for batch in (1, 3, 64):
        assert tiny.decode(blob, batch=batch) == (LINES * 2).encode()


def test_decodes_with_any_thread_count(tiny: Codec, blob: bytes) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert tiny.decode(blob) == (LINES * 2).encode()
    finally:
        torch.set_num_threads(before)


def test_decodes_with_eager_attention(llama_folder: Path, blob: bytes) -> None:
    assert Codec.load(str(llama_folder), "cpu", attention="eager").decode(blob) == (LINES * 2).encode()


def test_decodes_under_noise_of_half_the_margin(tiny: Codec, blob: bytes) -> None:
    for seed in range(5):
        assert tiny.decode(blob, hook=noise(1e-3, seed)) == (LINES * 2).encode()  # type: ignore[arg-type]


def test_noise_far_above_the_margin_is_noticed(tiny: Codec, blob: bytes) -> None:
    with pytest.raises(ChecksumError, match="chunk"):
        tiny.decode(blob, hook=noise(30.0, 0))  # type: ignore[arg-type]


def test_learned_positions_and_another_architecture(gpt2_folder: Path) -> None:
    codec = Codec.load(str(gpt2_folder), "cpu")
    made = codec.encode(LINES, effort=EFFORT)
    assert box.unpack(made).chunks
    assert codec.decode(made, batch=2) == LINES.encode()
    with pytest.raises(EncodeError, match="256 positions"):
        codec.encode(LINES, chunk_tokens=256)


def test_verification_repairs_and_then_stores(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that decode wrongly once are corrected again; those that always do are stored."""
    real = Codec._decode_chunks
    calls: Iterator[int] = iter(range(10))

    def lying(self: Codec, chunks: list[box.Chunk], *rest: object) -> list[bytes]:
        written = real(self, chunks, *rest)  # type: ignore[arg-type]
        call = next(calls)
        return [b"wrong" if i == 0 or (i == 1 and call == 0) else data for i, data in enumerate(written)]

    monkeypatch.setattr(Codec, "_decode_chunks", lying)
    blob = tiny.encode(LINES, chunk_tokens=50, effort=EFFORT)
    monkeypatch.undo()
    parts = box.unpack(blob).parts
    assert isinstance(parts[0], box.StoredSpan) and all(isinstance(part, box.Chunk) for part in parts[1:])
    assert tiny.decode(blob) == LINES.encode()


def test_without_verification_the_file_is_the_same(tiny: Codec) -> None:
    assert tiny.encode(LINES, effort=EFFORT, verify=False) == tiny.encode(LINES, effort=EFFORT)


def test_a_changed_memory_is_noticed(tiny: Codec) -> None:
    parsed = box.unpack(tiny.encode(LINES, effort=EFFORT))
    first = parsed.chunks[0]
    changed = box.Chunk(first.tokens, bytes(len(first.memory)), first.corrections, first.checksum)
    parts = [changed if part is first else part for part in parsed.parts]
    blob = box.pack(box.Container(parsed.size, parsed.sha256, parts, parsed.model, parsed.settings))
    with pytest.raises(ChecksumError, match="chunk 0"):
        tiny.decode(blob)


def test_a_wrong_hash_of_the_whole_is_noticed(tiny: Codec) -> None:
    parsed = box.unpack(tiny.encode(b"stored", effort=EFFORT))
    blob = box.pack(box.Container(parsed.size, bytes(32), parsed.parts))
    with pytest.raises(ChecksumError, match="SHA-256"):
        tiny.decode(blob)


def test_another_model_is_refused(tiny: Codec, gpt2_folder: Path) -> None:
    made = tiny.encode(LINES, effort=EFFORT)
    with pytest.raises(ModelMismatchError, match="tiny-llama"):
        Codec.load(str(gpt2_folder), "cpu").decode(made)
    with pytest.raises(ModelMismatchError):
        memcodec.decode(made, model=str(gpt2_folder), device="cpu")


def test_python_twins(llama_folder: Path) -> None:
    made = memcodec.encode(LINES, model=str(llama_folder), device="cpu", memory_rate=1, effort=EFFORT)
    assert memcodec.decode(made, model=str(llama_folder), device="cpu") == LINES.encode()
    with pytest.raises(ModelNotFoundError, match="--model"):
        memcodec.decode(made, device="cpu")


def test_stored_files_need_no_model(tiny: Codec) -> None:
    made = tiny.encode(random.Random(2).randbytes(500))
    assert memcodec.inspect(made)["model"] is None
    assert memcodec.decode(made) == random.Random(2).randbytes(500)


@pytest.mark.parametrize(
    "setting",
    [
        {"memory_rate": -1},
        {"memory_rate": 9},
        {"memory_rate": 0.3},
        {"memory_rate": float("nan")},
        {"chunk_tokens": 0},
        {"chunk_tokens": 10_000},
        {"margin": 0},
        {"margin": float("nan")},
        {"effort": 0},
        {"batch": 0},
    ],
)
def test_settings_out_of_range_are_refused(tiny: Codec, setting: dict) -> None:
    with pytest.raises(EncodeError, match=": give"):
        tiny.encode(LINES, **({"effort": EFFORT} | setting))


def test_chunks_longer_than_the_model_are_refused(gpt2_folder: Path) -> None:
    codec = Codec.load(str(gpt2_folder), "cpu")
    parsed = box.unpack(codec.encode(LINES, effort=EFFORT, verify=False))
    longer = box.Settings(1e-3, 4000, parsed.settings.rate)  # type: ignore[union-attr]
    blob = box.pack(box.Container(1, bytes(32), [box.Chunk(4000, bytes(500), b"", 0)], parsed.model, longer))
    with pytest.raises(FormatError, match="256 positions"):
        codec.decode(blob)


def test_the_bound_is_what_the_lm_says(tiny: Codec) -> None:
    """Against plain transformers: prefix and tokens in, cross-entropy out."""
    ids = tiny.tokenizer.encode(LINES)
    total = 0.0
    for start in range(0, len(ids), 200):
        row = torch.tensor([tiny.lm.prefix + ids[start : start + 200].tolist()])
        logits = tiny.lm.model(input_ids=row).logits.double()
        skip = len(tiny.lm.prefix)
        total += torch.nn.functional.cross_entropy(logits[0, skip - 1 : -1], row[0, skip:], reduction="sum").item()
    assert tiny.bound(LINES) == pytest.approx(total / np.log(2) / 8, rel=1e-5)


def test_progress_reports_end_complete(tiny: Codec) -> None:
    seen: dict[str, memcodec.codec.Progress] = {}
    blob = tiny.encode(LINES, effort=EFFORT, progress=lambda p: seen.__setitem__(p.stage, p))
    tiny.decode(blob, progress=lambda p: seen.__setitem__(p.stage, p))
    assert set(seen) == {"fit", "verify", "decode"}
    for last in seen.values():
        assert last.tokens_done == last.tokens_total > 0
        assert last.chunks_done == last.chunks_total > 0


def test_regimes_cover_all_rates() -> None:
    assert [corrections.regime("readout", rate) for rate in (0, 0.125, 0.5, 1, 1.5, 3, 8)] == [
        "0", "0.5", "0.5", "1", "2", "4", "8",
    ]  # fmt: skip
    assert corrections.regime("prompt", 0) == "prompt"
