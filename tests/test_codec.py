"""The whole path in both directions: every input is restored on every machine, or an error says why not."""

import copy
import gzip
import hashlib
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import memcodec
from memcodec import Prompt, Readout, container, groups
from memcodec.codec import Codec
from memcodec.coding import corrections
from memcodec.coding.corrections import EncodedGroup
from memcodec.coding.steering import Steering
from memcodec.container import assembly
from memcodec.document.plan import cut_chunks, plan_groups, windows
from memcodec.document.source import Source
from memcodec.document.spans import zstd_size
from memcodec.errors import (
    ChecksumError,
    EncodeError,
    FormatError,
    MachineError,
    ModelNotFoundError,
)
from memcodec.groups import batches, decode_batch, encode_groups
from memcodec.levels import LEVELS
from memcodec.lm.sequences import Capacity
from memcodec.memory.prompt import PromptSite
from memcodec.memory.readout import ReadoutSite, share_steps
from memcodec.models import registry
from memcodec.primer import Primer
from memcodec.progress import Progress
from memcodec.settings import Context, EncodeSettings
from spec import decoder

from .conftest import TEXT, store_nothing, traced
from .reference import Stepping

QUICK = Readout(effort=128)
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
    blob = tiny.encode(data, site=QUICK)
    assert tiny.decode(blob) == data
    assert len(blob) <= zstd_size(data) + 300


def test_text_is_carried_by_the_lm(tiny: Codec) -> None:
    blob = tiny.encode(LINES, site=QUICK)
    assert len(memcodec.inspect(blob)["spans"]) == len(container.unpack(blob).segments) > 0
    assert tiny.decode(blob) == LINES.encode()


def check_groups(
    codec: Codec, groups: list[list[np.ndarray]], share: float, context: int = 200, batch: int = 64
) -> list[EncodedGroup]:
    """Encode token ids as groups of chunks, even if zstd would be smaller, and decode them."""
    site = ReadoutSite(share_steps(share), 128, Steering.of(codec.lm.head), codec.lm.team)
    coded = list(encode_groups(codec.lm, site, groups, context))
    written = [
        tokens
        for some in batches(codec.lm, site, coded, context, batch)
        for tokens in decode_batch(codec.lm, site, some, context)
    ]
    assert len(written) == len(groups)
    for group, tokens in zip(groups, written, strict=True):
        assert np.array_equal(tokens, np.concatenate(group))
    return coded


@pytest.mark.parametrize("tokens", [1, 2, 19, 20, 21, 40])
@pytest.mark.parametrize("share", [0, 0.05, 0.1, 0.5])
def test_chunk_borders_and_shares(tiny: Codec, tokens: int, share: float) -> None:
    check_groups(tiny, [[chunk] for chunk in cut_chunks(tiny.tokenizer.encode(LINES)[:tokens], 20)], share)


@given(st.integers(0, 5000), st.integers(1, 500))
def test_chunks_are_few_and_of_even_length(count: int, size: int) -> None:
    tokens = np.arange(count)
    cut = cut_chunks(tokens, size)
    assert len(cut) == -(-count // size)
    assert np.array_equal(np.concatenate([tokens[:0], *cut]), tokens)
    lengths = [len(chunk) for chunk in cut] or [0]
    assert max(lengths) - min(lengths) <= 1 and max(lengths) <= size


def test_406_tokens_are_three_chunks_of_a_third() -> None:
    assert [len(chunk) for chunk in cut_chunks(np.arange(406), 200)] == [136, 135, 135]


def test_characters_cut_by_a_chunk_border(tiny: Codec) -> None:
    text = "🙂漢字" * 20
    assert len(tiny.tokenizer.encode(text)) > len(text) * 2  # chunks of 7 tokens cut characters
    blob = tiny.encode(LINES + text, chunk_tokens=7, site=QUICK)
    assert tiny.decode(blob) == (LINES + text).encode()


@settings(max_examples=25)
@given(
    ids=st.lists(st.lists(st.integers(1, 399), min_size=1, max_size=30), min_size=1, max_size=4),
    share=st.sampled_from([0, 0.3]),
)
def test_any_tokens_round_trip_as_chunks(tiny: Codec, ids: list[list[int]], share: float) -> None:
    """Even tokens that the LM considers nearly impossible."""
    check_groups(tiny, [[np.array(row)] for row in ids], share)


@settings(max_examples=60)
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=120).map(lambda s: (LINES[:200] + s).encode())))
def test_any_bytes_round_trip(tiny: Codec, data: bytes) -> None:
    blob = tiny.encode(data, site=Readout(effort=32), chunk_tokens=50)
    assert tiny.decode(blob) == data


def all_by_the_lm(
    codec: Codec, text: str | bytes, share: float, chunk_tokens: int = 50, context: Context = "auto"
) -> bytes:
    """A file whose text is all encoded with the LM, even if zstd would be smaller."""
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        return codec.encode(text, site=Readout(share, 128), chunk_tokens=chunk_tokens, context=context)


CONTEXTS: tuple[Context, ...] = (0, 1, 60, 200, "auto", "max")


@pytest.mark.parametrize("share", [0, 0.2])
@pytest.mark.parametrize("context", CONTEXTS)
def test_contexts_round_trip(tiny: Codec, context: Context, share: float) -> None:
    """With stored spans in the middle of groups, and groups of more than one pass and one window."""
    data = b"\xff\xfe".join([LINES.encode(), TEXT.encode() * 2, LINES.encode()]) + b"\xff"
    blob = all_by_the_lm(tiny, data, share, context=context)
    parsed = container.unpack(blob)
    for batch in (1, 3, 64):
        assert tiny.decode(blob, batch=batch) == data
    count = len(parsed.groups)
    assert count == len(parsed.chunks) if context == 0 else count < len(parsed.chunks)
    if context == "max":
        assert count == 1 and len(parsed.segments) == 3


@pytest.mark.parametrize("over", [-1, 0, 1, 2, 30])
@pytest.mark.parametrize("context", [1, 2, 7, 40])
def test_groups_that_end_about_where_a_window_does(tiny: Codec, context: int, over: int) -> None:
    tokens = tiny.tokenizer.encode(LINES)
    for length in (context + over, context + context - context // 2 + over):
        if length > 0:
            groups = [cut_chunks(tokens[:length], 15), cut_chunks(tokens[5 : 5 + max(1, length - 2)], 15)]
            check_groups(tiny, groups, 0.2, context)


@given(st.integers(1, 3000), st.integers(1, 300))
def test_windows_cover_every_token_once(tokens: int, context: int) -> None:
    found = list(windows(tokens, context))
    assert [t for w in found for t in range(w.first, w.last)] == list(range(tokens))
    for w in found:
        assert w.last - 1 - w.start <= context and w.first - w.start in (0, context // 2)


def test_more_context_is_smaller(tiny: Codec) -> None:
    sizes = [container.unpack(all_by_the_lm(tiny, LINES * 4, 0, 50, n)).sizes["corrections"] for n in (0, 100)]
    assert sizes[1] < 0.9 * sizes[0]


@given(
    st.lists(st.integers(1, 9000), min_size=1, max_size=8),
    st.sampled_from([0, 1, 50, 200, 5000, "auto", "max"]),
    st.sampled_from([1, 20, 200]),
    st.sampled_from(sorted(LEVELS)),
)
def test_plans(lengths: list[int], context: Context, chunk_tokens: int, level: int) -> None:
    rule = LEVELS[level].rule
    ends = np.cumsum(lengths)
    runs = np.split(np.arange(ends[-1]), ends[:-1])
    plan = plan_groups(runs, chunk_tokens, context, rule, 2000)
    for run, cut in zip(runs, plan.runs, strict=True):
        assert np.array_equal(np.concatenate(cut), run)
    assert np.array_equal(np.concatenate([chunk for group in plan.groups for chunk in group]), np.arange(ends[-1]))
    assert all(1 <= len(chunk) <= chunk_tokens for group in plan.groups for chunk in group)
    sizes = [sum(map(len, group)) for group in plan.groups]
    assert 1 <= plan.context <= min(2000, max(sizes))
    if context:
        assert max(sizes) - min(sizes) <= 1
    if context == 0:
        assert all(len(group) == 1 for group in plan.groups)
    if context == "max":
        assert len(plan.groups) == 1
    if context == "auto":
        assert rule.longest is None or max(sizes) <= rule.longest
        assert len(plan.groups) >= min(rule.fewest, -(-ends[-1] // rule.shortest)) or len(plan.groups) == ends[-1]
    if isinstance(context, int) and context:
        assert plan.context <= context


def test_a_damaged_chunk_in_the_middle_of_a_group_is_named(tiny: Codec) -> None:
    parsed = container.unpack(all_by_the_lm(tiny, LINES, 0.5, context="max"))
    (segment,) = parsed.segments
    some = list(segment.chunks)
    assert len(some) > 4
    some[3] = replace(some[3], memory=bytes(byte ^ 255 for byte in some[3].memory))
    with pytest.raises(ChecksumError, match="chunk 3 "):
        tiny.decode(container.pack(replace(parsed, parts=[replace(segment, chunks=tuple(some))])))


def test_the_prompt_site_takes_no_context(tiny: Codec) -> None:
    with pytest.raises(EncodeError, match=r"context 100: .*prompt site"):
        tiny.encode(LINES, site=Prompt(pure=True), context=100)


@pytest.fixture(params=[(0, 0), (0.1, "auto"), (0.5, 60)])
def blob(request: pytest.FixtureRequest, tiny: Codec) -> bytes:
    return all_by_the_lm(tiny, LINES * 2, request.param[0], context=request.param[1])


def test_decodes_with_any_batch(tiny: Codec, blob: bytes) -> None:
    for batch in (1, 3, 64):
        assert tiny.decode(blob, batch=batch) == (LINES * 2).encode()


@pytest.mark.parametrize("kernels", ["numba", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_decodes_with_any_threads_and_kernels(llama_folder: Path, blob: bytes, threads: int, kernels: str) -> None:
    codec = Codec.load(str(llama_folder), device="cpu", threads=threads, kernels=kernels)
    assert codec.decode(blob) == (LINES * 2).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "site", "size", "context"),
    [
        ("llama", Readout(0.3, 64), 25, 0),
        ("gpt2", Readout(0.1, 64), 20, 50),
        ("qwen3", Prompt(2, 4, 2), 20, 0),
    ],
)
def test_a_decoder_written_from_the_page_agrees(
    tiny_folders: Callable[[str], Path],
    kind: str,
    site: Readout | Prompt,
    size: int,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a stored span in the middle, and with all logits computed in plain integers."""
    store_nothing(monkeypatch)
    codec = Codec.load(str(tiny_folders(kind)), device="cpu")
    weights = registry.load_exact(registry.ModelFolder(kind, tiny_folders(kind)))[0].plain()
    data = TEXT[:180].encode() + bytes(range(128, 150)) + "Niemand hat das je gewußt, außer uns dreien.\n".encode() * 4
    blob = codec.encode(data, site=site, chunk_tokens=size, context=context)
    parsed = container.unpack(blob)
    assert len(parsed.chunks) >= 4 and len(parsed.parts) > len(parsed.segments)
    assert parsed.sizes["corrections"] > 40
    if context:
        assert len(parsed.groups) < len(parsed.segments) < len(parsed.chunks), "a group goes on after what is stored"
    known: Any = SimpleNamespace(
        head=weights.tensors["head"], head_scale=weights.tensors["head.scale"], t=weights.tensors,
        prefix=list(weights.prefix),
        bytes_of={i: codec.tokenizer.decode(np.array([i])) for i in range(weights.architecture.vocabulary)},
    )  # fmt: skip
    stepping: Any = Stepping(weights)
    stepping.w, stepping.a = known, asdict(weights.architecture)
    assert decoder.decode(blob, known, lm=stepping) == data


def test_files_are_the_same_whoever_makes_them(llama_folder: Path) -> None:
    made = {
        hashlib.sha256(
            Codec.load(str(llama_folder), device="cpu", threads=threads, kernels=kernels).encode(
                LINES * 4, site=QUICK, chunk_tokens=60, batch=batch
            )
        ).hexdigest()
        for threads, kernels, batch in ((1, "numba", 64), (2, "numba", 3), (3, "numba", 1), (1, "torch", 64))
    }
    assert len(made) == 1


@pytest.mark.parametrize("kind", ["llama3", "mistral", "qwen2", "qwen3", "gpt2"])
def test_every_architecture_round_trips(tiny_folders: Callable[[str], Path], kind: str) -> None:
    codec = Codec.load(str(tiny_folders(kind)), device="cpu")
    made = codec.encode(LINES, site=QUICK)
    assert container.unpack(made).chunks
    assert codec.decode(made, batch=2) == LINES.encode()


def test_learned_positions_end(gpt2_folder: Path) -> None:
    codec = Codec.load(str(gpt2_folder), device="cpu")
    with pytest.raises(EncodeError, match="256 positions"):
        codec.encode(LINES, chunk_tokens=256)


def test_verification_fails_loudly(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decode_batch

    def lying(lm: Any, site: Any, batch: list[EncodedGroup], context: int, report: Any) -> list[np.ndarray]:
        return [tokens[::-1] for tokens in real(lm, site, batch, context)]

    monkeypatch.setattr(groups, "decode_batch", lying)
    with pytest.raises(MachineError, match=r"does not decode here \(chunk 0 does not match.*so it was discarded"):
        tiny.encode(LINES, chunk_tokens=50, site=QUICK, verify="steps")
    assert container.unpack(tiny.encode(LINES, site=QUICK, verify=False)).chunks


def test_a_changed_memory_or_correction_is_noticed(tiny: Codec) -> None:
    parsed = container.unpack(tiny.encode(LINES, site=Readout(0.5, 64)))
    first = parsed.segments[0]
    chunk, *others = first.chunks
    assert first.corrections is not None and len(chunk.memory) > 1 and len(first.corrections) > 1
    for changed in (
        replace(first, chunks=(replace(chunk, memory=bytes(len(chunk.memory))), *others)),
        replace(first, corrections=first.corrections[::-1]),
        replace(first, chunks=(replace(chunk, checksum=chunk.checksum ^ 1), *others)),
    ):
        parts = [changed if part is first else part for part in parsed.parts]
        with pytest.raises(ChecksumError, match="chunk 0"):
            tiny.decode(container.pack(replace(parsed, parts=parts)))


def test_a_wrong_hash_of_the_whole_is_noticed(tiny: Codec) -> None:
    stored = assembly.stored(Source.of(b"stored"))
    with pytest.raises(ChecksumError, match="SHA-256"):
        tiny.decode(container.pack(replace(stored, sha256=bytes(16))))
    parsed = container.unpack(tiny.encode(LINES, site=QUICK))
    with pytest.raises(ChecksumError, match="SHA-256"):
        tiny.decode(container.pack(replace(parsed, sha256=bytes(16))))


def test_python_twins(llama_folder: Path) -> None:
    made = memcodec.encode(LINES, model=str(llama_folder), device="cpu", site=QUICK)
    assert memcodec.decode(made, model=str(llama_folder), device="cpu") == LINES.encode()
    with pytest.raises(ModelNotFoundError, match="--model"):
        memcodec.decode(made, device="cpu")


def test_stored_files_need_no_model(tiny: Codec) -> None:
    data = random.Random(2).randbytes(500)
    made = tiny.encode(data)
    assert memcodec.inspect(made)["model"] is None
    assert memcodec.decode(made) == data
    assert memcodec.encode(data, model="no such model") == made


# ---- types of arguments


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_anything_bytes_like(tiny: Codec, llama_folder: Path, kind: type) -> None:
    made = tiny.encode(kind(LINES.encode()), site=QUICK)
    assert made == tiny.encode(LINES, site=QUICK)
    assert tiny.decode(kind(made)) == LINES.encode()
    assert memcodec.decode(kind(made), model=str(llama_folder), device="cpu") == LINES.encode()
    assert memcodec.inspect(kind(made)) == memcodec.inspect(made)
    every_other = memoryview(bytes(2 * len(made)))[::2]
    assert tiny.encode(every_other) == tiny.encode(bytes(len(made)))


@pytest.mark.parametrize("data", [None, 5, ["a"], {"b": 1}, object()], ids=str)
def test_anything_else_is_a_type_error(tiny: Codec, data: Any) -> None:
    name = type(data).__name__
    for call in (tiny.encode, memcodec.encode):
        with pytest.raises(TypeError, match=f"data: give bytes.*not {name}"):
            call(data)
    for call in (tiny.decode, memcodec.decode):
        with pytest.raises(TypeError, match=f"blob: give bytes.*not {name}"):
            call(data)
    with pytest.raises(TypeError, match=r"site: give memcodec\.Readout"):
        tiny.encode("text", site=data)


@pytest.mark.parametrize(
    "setting",
    [
        {"site": Readout(effort=1 << 19)},
        {"chunk_tokens": 0},
        {"chunk_tokens": 10_000},
        {"batch": 0},
        {"context": -1},
        {"context": 1 << 20},
        {"context": "some"},
        {"context": 2.5},
        {"level": 0},
        {"level": 10},
        {"level": "x"},
        {"level": True},
        {"level": 2, "site": Prompt()},
    ],
)
def test_settings_out_of_range_are_refused_before_the_work(
    tiny: Codec, setting: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "encode_groups", None)
    with pytest.raises(EncodeError, match=": give"):
        EncodeSettings.of(**setting)
    with pytest.raises(EncodeError, match=": give"):
        tiny.encode(LINES, **setting)
    with pytest.raises(EncodeError, match=": give"):
        memcodec.encode(LINES, model="no such model", **setting)


PICKLED = """
import pickle, sys
from memcodec import MemcodecError
try:
    codec = pickle.load(open(sys.argv[1], "rb"))
    print(codec.decode_frame(bytes.fromhex(sys.argv[2])).decode(), codec.primer, sep="|")
except MemcodecError as error:
    print(type(error).__name__, error)
"""


def test_codecs_pickle_as_what_they_were_loaded_from(llama_folder: Path, tmp_path: Path) -> None:
    """In another process, where the model is another one the second time."""
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    plain = Codec.load(str(folder), device="cpu", threads=1)
    primed = plain.with_primer(Primer.from_texts([LINES], 40, plain))
    pickled = pickle.dumps(primed)
    assert len(pickled) < 2000
    (tmp_path / "codec").write_bytes(pickled)
    frame = primed.encode_frame("a message")

    def elsewhere() -> str:
        command = [sys.executable, "-c", PICKLED, str(tmp_path / "codec"), frame.hex()]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    assert elsewhere().startswith(f"a message|{primed.primer}")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert elsewhere().startswith(f"ModelMismatchError {folder}: the codec was pickled with the model")


def test_copies_of_codecs_share_the_model(tiny: Codec) -> None:
    primed = tiny.with_primer(Primer.from_texts([LINES], 40, tiny))
    for copied in (copy.copy(primed), copy.deepcopy(primed), copy.deepcopy({"codec": primed})["codec"]):
        assert copied.model is primed.model and copied.primer == primed.primer
    assert copy.deepcopy(tiny.model) is tiny.model
    first, second = pickle.loads(pickle.dumps(tiny)), pickle.loads(pickle.dumps(primed))
    assert first.lm.identity == tiny.lm.identity and first.model._lm_without_primer is second.model._lm_without_primer
    assert second.decode_frame(primed.encode_frame("a message")) == b"a message"


def test_files_that_are_finished_before_an_error_are_returned(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    store_nothing(monkeypatch)
    pack = container.pack

    def failing(made: container.Container) -> bytes:
        if made.size == len(b"the fourth"):
            raise EncodeError("the fourth fails")
        return pack(made)

    monkeypatch.setattr(container, "pack", failing)
    documents = ["the first one", "the second one", "the third one", "the fourth", "the fifth one"]
    found = tiny.encode_many(documents, site=QUICK)
    assert [tiny.decode(next(found)).decode() for _ in range(3)] == documents[:3]
    with pytest.raises(EncodeError, match="the fourth fails"):
        next(found)


def test_settings_may_be_whole_numbers_of_numpy(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    store_nothing(monkeypatch)
    site = Readout(0.1, np.int64(64))  # type: ignore[arg-type]
    options: dict[str, Any] = {"site": site, "chunk_tokens": np.int32(50), "batch": np.int16(2)}
    expected = tiny.encode(TEXT, site=Readout(0.1, 64), chunk_tokens=50, batch=2)
    assert tiny.encode(TEXT, **options) == expected and tiny.decode(expected, batch=options["batch"]) == TEXT.encode()


def test_the_bound_takes_all_settings(tiny: Codec) -> None:
    """The level was that of the default, whatever it was to be compared with."""
    assert tiny.bound(TEXT, level=1) == tiny.bound(TEXT, level=1, site=QUICK) != tiny.bound(TEXT)
    with pytest.raises(TypeError, match="chunk_token"):
        tiny.bound(TEXT, chunk_token=50)  # type: ignore[call-arg]


def test_parts_of_a_container_are_made_once(blob: bytes) -> None:
    parsed = container.unpack(blob)
    assert parsed.groups is parsed.groups and parsed.chunks is parsed.chunks and parsed.segments is parsed.segments
    assert len(parsed.chunks) == sum(len(group.chunks) for group in parsed.groups) > 0
    changed = replace(parsed, parts=parsed.parts[:1])
    assert len(changed.groups) == 1 and pickle.loads(pickle.dumps(parsed)) == parsed


def test_the_bound_of_settings_out_of_range(tiny: Codec, gpt2_folder: Path) -> None:
    for count in (0, 5000):
        with pytest.raises(EncodeError, match=": give"):
            tiny.bound(LINES, chunk_tokens=count)
    with pytest.raises(EncodeError, match="256 positions"):
        Codec.load(str(gpt2_folder), device="cpu").bound(LINES, chunk_tokens=300)


def test_text_that_is_no_unicode(tiny: Codec) -> None:
    for call in (tiny.encode, memcodec.encode):
        with pytest.raises(
            EncodeError, match="data: text with a lone surrogate at 5 cannot be encoded as UTF-8: give bytes"
        ):
            call("text \ud800")


def test_batches_are_what_the_cache_holds(tiny: Codec) -> None:
    few = [EncodedGroup((2000, 2000), (b"", b""), b"")] * 40
    site = ReadoutSite.in_file((0,))

    def sizes(site: Any, groups: list[EncodedGroup], context: int, batch: int) -> list[int]:
        return [len(some) for some in batches(tiny.lm, site, groups, context, batch)]

    assert sizes(site, few, 5000, 64) == [8, 8, 8, 8, 8]  # 4000 tokens and the prefix round up to 4032 positions
    assert sizes(site, few, 1000, 64) == [20, 20]
    tiny_ones = [EncodedGroup((4,), (b"",), b"")] * 200
    assert sizes(site, [*few[:1], *tiny_ones], 5000, 64) == [8, 49, 48, 48, 48], "a long one is short of room alone"
    with_vectors = [EncodedGroup((64,), (bytes(8 * 60),), b"")] * 600
    assert sizes(PromptSite(16, 4), with_vectors, 64, 600) == [200, 200, 200]


@pytest.mark.parametrize("capacity", [Capacity(70, 5, 3, 200), Capacity(5000, 700, 300, 1 << 20, 1 << 18)])
def test_how_much_is_computed_at_one_time_does_not_matter(
    tiny: Codec, capacity: Capacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_nothing(monkeypatch)
    data = (TEXT * 6 + "#").encode()
    some: list[dict[str, Any]] = [{}, {"context": 0}, {"context": "max"}, {"site": Prompt(vectors=2, steps=3)}]
    for options in some:
        expected = tiny.encode(data, **options, verify=False)
        with monkeypatch.context() as patch:
            patch.setattr(tiny.lm.implementation, "capacity", capacity)
            assert tiny.encode(data, **options) == expected
            assert tiny.decode(expected) == data


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_long_chunks_are_predicted_a_few_at_a_time(tiny: Codec, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since predictions take memory. Without memories, no thread waits for chunks to search for."""
    store_nothing(monkeypatch)
    counts: list[int] = []
    fit = ReadoutSite.fit

    def spy(site: ReadoutSite, chunks: list[np.ndarray], *more: Any) -> Any:
        counts.append(len(chunks))
        return fit(site, chunks, *more)

    monkeypatch.setattr(ReadoutSite, "fit", spy)
    settings: dict[str, Any] = {"site": Readout(share, 64), "chunk_tokens": 80, "context": "max", "verify": False}
    expected = tiny.encode(TEXT * 6, **settings)
    assert len(counts) == 1 and counts[0] > 8
    monkeypatch.setattr("memcodec.groups.FIT_TOKENS", 200)
    assert tiny.encode(TEXT * 6, **settings) == expected
    assert sum(counts[1:]) == counts[0]
    assert max(counts[1:]) == (min(counts[0], max(3, min(tiny.lm.team.workers, 32))) if share else 3)


def test_a_batch_out_of_range_is_refused_by_decoders(tiny: Codec, blob: bytes) -> None:
    with pytest.raises(EncodeError, match="batch 0"):
        tiny.decode(blob, batch=0)


def test_groups_longer_than_the_context_among_others(tiny: Codec) -> None:
    """A group with passes of its own does not overtake groups that wait for a common pass."""
    ids = [tiny.tokenizer.encode(line) for line in (TEXT * 3).splitlines()]
    site = ReadoutSite(0, 1, Steering.of(tiny.lm.head), tiny.lm.team)
    context = sorted(map(len, ids))[4]
    assert min(map(len, ids)) < context < max(map(len, ids))
    coded = list(encode_groups(tiny.lm, site, [[tokens] for tokens in ids], context))
    for tokens, found in zip(ids, decode_batch(tiny.lm, site, coded, context), strict=True):
        assert np.array_equal(tokens, found)


def test_room_follows_what_is_decoded(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few bytes may say that a group has billions of tokens."""
    parsed = container.unpack(tiny.encode(LINES, site=QUICK, verify=False))
    many = replace(parsed.settings, chunk_tokens=4096, context=100)  # type: ignore[type-var]
    part = container.Segment(1 << 40, (container.Chunk(4096, b"", 0),) * 4000, b"")
    blob = container.pack(container.Container(1 << 40, bytes(16), [part], parsed.model, many))
    step = corrections.Decoder.step

    def some(decoder: corrections.Decoder, position: int, logits: np.ndarray) -> np.ndarray:
        if position == 3000:
            raise KeyboardInterrupt
        return step(decoder, position, logits)

    monkeypatch.setattr(corrections.Decoder, "step", some)
    with traced() as peak:
        with pytest.raises(KeyboardInterrupt):
            tiny.decode(blob)
        assert peak() < 16 << 20


def test_long_groups_round_trip(tiny: Codec) -> None:
    """Groups longer than the first allocation and than a window."""
    tokens = np.resize(tiny.tokenizer.encode(LINES), 2500)
    check_groups(tiny, [cut_chunks(tokens, 200), cut_chunks(tokens[:1100], 200)], 0.1, 300)


def test_chunks_longer_than_the_model_are_refused(gpt2_folder: Path) -> None:
    codec = Codec.load(str(gpt2_folder), device="cpu")
    parsed = container.unpack(codec.encode(LINES, site=QUICK, verify=False))
    longer = replace(parsed.settings, chunk_tokens=4000, context=4000)  # type: ignore[type-var]
    part = container.Segment(4000, (container.Chunk(4000, b"", 0),), b"")
    blob = container.pack(container.Container(4000, bytes(16), [part], parsed.model, longer))
    with pytest.raises(FormatError, match="256 positions"):
        codec.decode(blob)


CLIENT = """
import memcodec
from memcodec import Codec, MemcodecError, Progress, Prompt, Readout

def report(progress: Progress) -> None:
    print(progress.stage, progress.done)

blob: bytes = memcodec.encode("text", site=Readout(share=0.2, effort=64), progress=report)
data: bytes = memcodec.decode(blob, threads=3)
codec: Codec = Codec.load("smollm2-135m", device="cpu")
facts: dict[str, object] = memcodec.inspect(codec.encode(data, site=Prompt(bits=4), chunk_tokens=64))
"""
WRONG = {
    "from memcodec import Typo": 'Module "memcodec" has no attribute "Typo"',
    "memcodec.encode('x', memmory_rate=1)": 'Unexpected keyword argument "memmory_rate"',
    "memcodec.encode('x', site=Readout(shear=1))": 'Unexpected keyword argument "shear"',
    "memcodec.decode(5)": "incompatible type",
    "Codec.load(threds=2)": 'Unexpected keyword argument "threds"',
}


@pytest.mark.slow
def test_a_type_checker_sees_what_clients_get_wrong(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(CLIENT)
    for number, line in enumerate(WRONG):
        (tmp_path / f"wrong{number}.py").write_text(f"import memcodec\nfrom memcodec import Codec, Readout\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--config-file", "",
         *sorted(map(str, tmp_path.glob("*.py")))],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(Path(memcodec.__file__).parent.parent)},
    )  # fmt: skip
    assert "client.py" not in done.stdout, done.stdout
    for number, message in enumerate(WRONG.values()):
        assert any(f"wrong{number}.py" in line and message in line for line in done.stdout.splitlines()), done.stdout


def test_the_import_brings_no_library() -> None:
    heavy = "{'numpy', 'torch', 'numba', 'transformers', 'zstandard', 'fsspec'} & set(sys.modules)"
    script = f"import sys; import memcodec; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
                          capture_output=True, text=True)  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_everything_is_listed(tiny: Codec, llama_folder: Path) -> None:
    assert set(memcodec.__all__) <= set(dir(memcodec))
    assert all(getattr(memcodec, name).__doc__ for name in memcodec.__all__)
    script = "import memcodec, pydoc; print(pydoc.render_doc(memcodec, renderer=pydoc.plaintext))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for name in (
        "class Codec",
        "class MemoryEmbedding",
        "class Readout",
        "class Progress",
        "encode(data",
        "inspect(blob",
    ):
        assert name in shown
    assert repr(tiny) == "<memcodec.Codec of 'tiny-llama' on cpu>"
    with pytest.raises(AttributeError, match="no attribute 'Typo'"):
        _ = memcodec.Typo


@pytest.mark.parametrize("context", [0, 60, "max", "auto"])
def test_documents_together_are_those_alone_except_with_automatic_groups(
    tiny: Codec, monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    """Groups of all documents are decoded in common batches, so that with "auto" each needs fewer."""
    store_nothing(monkeypatch)
    documents = [LINES * 4, LINES * 2 + "more", LINES]
    alone = [tiny.encode(document, site=QUICK, context=context) for document in documents]
    together = list(tiny.encode_many(documents, site=QUICK, context=context))
    if context != "auto":
        assert together == alone
        return
    counts = [[len(container.unpack(blob).groups) for blob in blobs] for blobs in (together, alone)]
    assert all(fewer <= most for fewer, most in zip(*counts, strict=True)) and sum(counts[0]) < sum(counts[1])


# ---- measuring, reporting


def test_the_bound_is_what_the_lm_says(tiny: Codec) -> None:
    """Compared with the cross-entropy that transformers computes: nearly equal, because the exact LM is close."""
    ids = tiny.tokenizer.encode(TEXT)
    total = 0.0
    prefix = list(tiny.tokenizer.prefix())
    for chunk in cut_chunks(ids, 200):
        row = torch.tensor([prefix + chunk.tolist()])
        logits = tiny.floats.model(input_ids=row).logits.double()
        total += torch.nn.functional.cross_entropy(
            logits[0, len(prefix) - 1 : -1], row[0, len(prefix) :], reduction="sum"
        ).item()
    assert tiny.bound(TEXT, context=0) == pytest.approx(total / np.log(2) / 8, rel=5e-3)


def test_corrections_are_near_the_bound(tiny: Codec) -> None:
    for context in CONTEXTS:
        made = container.unpack(all_by_the_lm(tiny, TEXT, 0, 200, context))
        assert made.sizes["corrections"] < tiny.bound(TEXT, context=context) * 1.005 + 2 * len(made.groups)


def test_progress_reports_end_complete(tiny: Codec) -> None:
    seen: list[Progress] = []
    blob = tiny.encode(LINES, site=QUICK, chunk_tokens=50, progress=seen.append)
    assert [report.done for report in seen] == sorted(report.done for report in seen)
    assert seen[-1].done == 1 and any(0.3 < report.done < 0.7 for report in seen)
    tiny.decode(blob, progress=seen.append)
    last = {report.stage: report for report in seen}
    assert set(last) == {"fit", "verify", "decode"}
    for report in last.values():
        assert report.tokens_done == report.tokens_total > 0
        assert report.chunks_done == report.chunks_total > 0
    assert last["decode"].done == 1
    seen.clear()
    tiny.encode(LINES, site=QUICK, verify=False, progress=seen.append)
    assert {report.stage for report in seen} == {"fit"} and seen[-1].done == 1


def test_more_chunks_than_a_file_may_have(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before the work, because no reader would accept the file."""
    monkeypatch.setattr("memcodec.container.layout.MAX_CHUNKS", 3)
    monkeypatch.setattr(tiny.engine, "encode", None)  # not called
    with pytest.raises(EncodeError, match=r"chunks, and a file has 3 at most: cut the text"):
        tiny.encode(TEXT, chunk_tokens=20)
    monkeypatch.undo()
    store_nothing(monkeypatch)
    made = container.unpack(tiny.encode(TEXT, chunk_tokens=20))
    monkeypatch.setattr("memcodec.container.write.MAX_CHUNKS", 3)
    with pytest.raises(EncodeError, match="more than 3 chunks"):
        container.pack(made)
