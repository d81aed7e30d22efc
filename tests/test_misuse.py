"""Wrong arguments in Python: an error that names the argument and what to give instead, never one from inside."""

import io
import re
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest

import memcodec
import memcodec.integrations.fsspec as ours
from memcodec import Archive, BadFileError, Codec, EncodeError, FrameSettings, Primer, Prompt, Readout
from memcodec.codec import codec_for
from memcodec.container import unpack
from memcodec.integrations import arrays, sql, tables
from memcodec.settings import EncodeSettings

from .conftest import needs_dev_full

FRAME = pandas.DataFrame({"text": ["one", "two"]})
BYTES_OF_A_FILE = r"give bytes or bytes-like data, not {}: the bytes of a file are open\(path, 'rb'\).read\(\)"


@pytest.mark.parametrize("given", ["notes.memz", Path("notes.memz"), io.BytesIO(b"x")], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize(
    "function",
    [
        lambda codec, given: memcodec.decode(given),
        lambda codec, given: codec.decode(given),
        lambda codec, given: codec.salvage(given),
        lambda codec, given: codec.decode_many([given]),
        lambda codec, given: codec.decode_frame(given),
        lambda codec, given: memcodec.inspect(given),
        lambda codec, given: list(memcodec.token_map(codec, given)),
        lambda codec, given: Primer.from_bytes(given),
    ],
    ids=["decode", "Codec.decode", "salvage", "decode_many", "decode_frame", "inspect", "token_map", "Primer"],
)
def test_a_path_is_no_bytes(tiny: Codec, function: Callable[[Codec, Any], object], given: object) -> None:
    with pytest.raises(TypeError, match=BYTES_OF_A_FILE.format(type(given).__name__)):
        function(tiny, given)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda codec: memcodec.encode(Path("a")),
            "data: give bytes, bytes-like data or str, not .*: the bytes of a file are",
        ),
        (lambda codec: codec.encode_frames({"a": "x"}), "messages: give a list of them, or one column, not dict"),
        (lambda codec: codec.encode_frames(FRAME), "messages: give a list of them, or one column, not DataFrame"),
        (lambda codec: list(codec.encode_many({"a": "x"})), "documents: give a list of them"),
        (lambda codec: Archive.create("a", {"a": "x"}, codec=codec), "documents: give a list of them"),
        (lambda codec: Primer.train(codec, "some text"), "messages: give a list of them, not one str"),
        (lambda codec: Primer.train("smollm2-135m", ["a"]), "model: give what Codec.load returns, not str"),
        (lambda codec: codec.with_primer("orders.primer"), "primer: give what Primer.load returns, not str"),
        (lambda codec: memcodec.open(None), "file: give a path, a URL or an open file, not NoneType"),
        (lambda codec: memcodec.open(io.StringIO("x")), "file: it is open for text: open it with mode 'rb'"),
        (lambda codec: memcodec.open(io.StringIO("x"), "w"), "file: it is open for text: open it with mode 'wb'"),
        (lambda codec: tables.encode_series(FRAME, tables.Column.of(codec)), r"series: give a Series, such as frame\["),
        (
            lambda codec: tables.encode_series(FRAME["text"], codec),
            r"column: give a Column, such as Column.of\(codec\)",
        ),
        (lambda codec: tables.decode_series(FRAME), "series: give a Series, such as frame.*, not DataFrame"),
        (
            lambda codec: tables.encode_table(FRAME, "text", tables.Column.of(codec)),
            "table: give a Table, such as pyar",
        ),
        (lambda codec: tables.encode_table(pyarrow.table({"t": ["x"]}), "t", codec), "column: give a Column"),
        (lambda codec: tables.decode_table(FRAME, "text"), "table: give a Table, such as .*, not DataFrame"),
        (
            lambda codec: tables.Column.of(codec).encoder("text")({"text": "one"}),
            "column 'text': call map with batched",
        ),
        (lambda codec: tables.Column.of(codec).decoder("text")({"text": b"x"}), "column 'text': call map with"),
        (lambda codec: sql.register(sqlite3.connect(":memory:"), "smollm2-135m"), "codec: give a Codec"),
        (lambda codec: ours.register(codec="smollm2-135m"), "codec: give a Codec"),
        (lambda codec: memcodec.open("a", "w", codec="smollm2-135m"), "codec: give a Codec"),
        (lambda codec: Archive.create("a", ["x"], codec="smollm2-135m"), "codec: give a Codec"),
        (lambda codec: Archive("a", "smollm2-135m"), "codec: give a Codec"),
        (lambda codec: codec.fit_memory(b"x"), "text: give str, not bytes"),
        (lambda codec: codec.with_engine(None), "engine: give 'local' or 'ray', or a RayEngine, not NoneType"),
        (lambda codec: memcodec.encode("text", engine=None), "engine: give 'local' or 'ray', or a RayEngine"),
        (lambda codec: Codec.load(None), "model: give a name, a directory, or a Hugging Face id, not NoneType"),
        (lambda codec: tables.Column.of("smollm2-135m"), r"codec: give a Codec, such as memcodec.Codec.load\(\)"),
    ],
    ids=str,
)
def test_other_types_are_refused_by_name(
    tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Callable[[Codec], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=message):
        function(tiny)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda codec: codec.encode("some text", chunk_tokens=200.0), "chunk tokens 200.0: give 1 to 4096"),
        (lambda codec: codec.encode("some text", batch=2.5), "batch 2.5: give 1 or more groups"),
        (lambda codec: codec.decode(memcodec.encode(b""), batch="2"), "batch '2': give 1 or more groups"),
        (lambda codec: Readout(0.1, 64.5), "effort 64.5: give 1 to 1048576 states per token"),  # type: ignore[arg-type]
        (lambda codec: Prompt(vectors=1.5), "vectors 1.5: give 1 to 64, or auto"),  # type: ignore[arg-type]
        (lambda codec: Prompt(bits=16.0), "bits 16.0: give one of 1, 2, 3, 4, 8, 16"),  # type: ignore[arg-type]
        (lambda codec: Prompt(steps=3.5), "steps 3.5: give 1 or more"),  # type: ignore[arg-type]
        (lambda codec: Prompt(patience="9"), "patience '9': give 1 or more"),  # type: ignore[arg-type]
        (lambda codec: Prompt(seed=0.5), "seed 0.5: give -2**63 to 2**64 - 1"),  # type: ignore[arg-type]
        (lambda codec: FrameSettings(max_bytes=9.5), "max bytes 9.5: give 1 to 1073741824"),  # type: ignore[arg-type]
        (lambda codec: Codec.load(threads=2.5), "threads 2.5: give 1 to 1024"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_settings_that_are_no_whole_numbers_are_refused(
    tiny: Codec, work: Callable[[Codec], object], message: str
) -> None:
    """They were within the limits, and failed with a traceback from inside."""
    with pytest.raises(EncodeError, match=f"^{re.escape(message)}, as a whole number$"):
        work(tiny)


def test_whole_numbers_of_numpy_are_those_of_python(tiny: Codec) -> None:
    """Products of small ones overflowed, and the limit of memory did not hold."""
    site = Readout(0.1, np.int16(30))  # type: ignore[arg-type]
    assert type(site.effort) is int and type(FrameSettings(effort=np.int64(64)).effort) is int  # type: ignore[arg-type]
    chosen = EncodeSettings.of(chunk_tokens=np.int16(50), site=site, context=np.int64(160), batch=np.int8(2))  # type: ignore[arg-type]
    assert repr(chosen) == repr(EncodeSettings.of(chunk_tokens=50, site=Readout(0.1, 30), context=160, batch=2))
    with pytest.raises(EncodeError, match="effort 32767 with 4000 tokens per chunk"):
        EncodeSettings.of(chunk_tokens=np.int16(4000), site=Readout(0.1, np.int16(32767)))  # type: ignore[arg-type]


@pytest.mark.parametrize("primed", [False, True])
def test_the_name_of_a_primer_is_no_primer(
    tiny: Codec, primed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was ignored, or led to an AttributeError if the file needs a primer."""
    monkeypatch.setattr("memcodec.container.assembly.STORE_SMALLER", False)
    primer = Primer.from_texts(["some text of a primer"], 20, tiny)
    codec = tiny.with_primer(primer) if primed else tiny
    text = "The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore."
    blob = codec.encode(text, verify=False)
    assert unpack(blob).needs is not None
    path = tmp_path / "a"
    Archive.create(path, ["one"], codec=codec, with_primer=False)
    name: Any = "orders.primer"
    for work in (
        lambda: memcodec.decode(blob, primer=name),
        lambda: memcodec.decode(memcodec.encode(b""), primer=name),
        lambda: memcodec.open(io.BytesIO(blob), codec=tiny, primer=name),
        lambda: memcodec.open(tmp_path / "b", "w", codec=tiny, primer=name),
        lambda: Archive(path, tiny, name),
        lambda: codec_for(unpack(blob).needs, tiny, primer=name),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"primer: give what Primer\.load returns, not str"):
            work()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "work",
    [
        lambda codec, blob: codec.decode_many([blob]),
        lambda codec, blob: memcodec.inspect(blob),
        lambda codec, blob: list(memcodec.token_map(codec, blob)),
    ],
    ids=["decode_many", "inspect", "token_map"],
)
def test_what_takes_one_file_says_that_there_are_several(tiny: Codec, work: Callable[[Codec, bytes], object]) -> None:
    """The error was that the file is longer than its header says."""
    blob, text = memcodec.encode(b"\xff"), b"\xff\xff"
    assert memcodec.decode(blob + blob) == text
    message = rf"^another memcodec file follows, of {len(blob)} bytes: give each file by itself$"
    with pytest.raises(memcodec.FormatError, match=message):
        work(tiny, blob + blob)
    with pytest.raises(memcodec.FormatError, match="longer than it says"):
        work(tiny, blob + b"something else")


def test_a_device_that_does_not_exist(tiny: Codec, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called: the advice was an option of the command line, after the model had been fetched."""
    blob = tiny.encode("the quick brown fox jumps over the lazy dog")
    monkeypatch.setattr("memcodec.models.registry.resolve", None)
    for function in (
        lambda: Codec.load(str(llama_folder), device="gpu"),
        lambda: memcodec.decode(blob, str(llama_folder), device="gpu"),
    ):
        with pytest.raises(EncodeError, match="device 'gpu': give auto, cpu, cuda, mps, xpu or cuda:N"):
            function()
    with pytest.raises(EncodeError, match="device None: give auto, cpu"):
        Codec.load(str(llama_folder), device=None)  # type: ignore[arg-type]


def test_a_model_may_be_a_path(
    tiny: Codec, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an error of regular expressions."""
    monkeypatch.setattr("memcodec.container.assembly.STORE_SMALLER", False)
    blob = tiny.encode("some text")
    assert Codec.load(llama_folder).name == llama_folder.name
    assert memcodec.decode(memcodec.encode(b"\xff", tmp_path)) == b"\xff"
    assert Primer.from_texts(["a text"], 9, llama_folder) == Primer.from_texts(["a text"], 9, str(llama_folder))
    missing = tmp_path / "missing"
    for call in (
        lambda: Codec.load(missing),
        lambda: Codec.load(Path("org/missing")),  # not a name on the hub
        lambda: memcodec.encode("text", missing),
        lambda: memcodec.decode(blob, missing),
        lambda: Primer.from_texts(["a text"], 9, missing),
    ):
        with pytest.raises(memcodec.ModelNotFoundError, match=r"missing: there is no such directory"):
            call()


def test_text_that_is_no_unicode_is_refused_wherever_text_is_given(tiny: Codec) -> None:
    """The tokenizer said that it must be str."""
    bad = "text \ud800"
    for call, name in (
        (lambda: Primer.train(tiny, ["a", "b", bad, "c"]), "message 2"),
        (lambda: Primer.from_texts(["a", bad], 99, tiny), "text 1"),
        (lambda: tiny.fit_memory(bad), "text"),
    ):
        with pytest.raises(EncodeError, match=f"^{name}: text with a lone surrogate at 5 cannot be encoded as UTF-8"):
            call()


@pytest.mark.parametrize("tokens", [-5, 0, (1 << 15) + 1])
def test_primers_of_impossible_sizes_are_refused_before_the_work(tiny: Codec, tokens: int) -> None:
    """Of -5 tokens, a primer had all but the last five."""
    for call in (lambda: Primer.train(tiny, "abcdef", tokens), lambda: Primer.from_texts("abc", tokens, tiny)):
        with pytest.raises(EncodeError, match=f"tokens {tokens}: give 1 to 32,768"):
            call()


@pytest.mark.parametrize("setting", ["memory_share", "effort"])
def test_none_is_the_level_of_an_archive_and_nothing_for_frames(tiny: Codec, tmp_path: Path, setting: str) -> None:
    with pytest.raises(EncodeError, match=f"{setting.replace('_', ' ')} None: give a number, since frames have no l"):
        FrameSettings(**{setting: None})  # type: ignore[arg-type]
    Archive.create(tmp_path / "a", ["some text"], codec=tiny, level=1)
    Archive.create(tmp_path / "b", ["some text"], codec=tiny, level=1, **{setting: None})  # type: ignore[arg-type]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_errors_while_a_file_is_read_have_its_name(
    tiny: Codec, llama: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore."
    monkeypatch.setattr("memcodec.container.assembly.STORE_SMALLER", False)
    blob = tiny.encode(text)
    Path("short.memz").write_bytes(blob[:60])
    Path("text.memz").write_text(text * 9)
    Path("good.memz").write_bytes(blob)
    for name in ("short.memz", "text.memz"):
        with pytest.raises(BadFileError, match=f"^{re.escape(name)}: "):
            memcodec.open(name)
        with pytest.raises(memcodec.FormatError, match=f"^{re.escape(name)}: "):
            Archive(name)
    with pytest.raises(memcodec.ModelMismatchError, match=r"^good\.memz: the file needs model"):
        memcodec.open("good.memz", codec=llama).read()
    with pytest.raises(BadFileError, match=r"^not a memcodec file"):
        memcodec.open(io.BytesIO(b"x" * 99))


def test_a_message_that_cannot_be_a_frame_has_its_number(tiny: Codec) -> None:
    with pytest.raises(TypeError, match="message 1: give bytes, bytes-like data or str, not NoneType"):
        tiny.encode_frames(["a", None])  # type: ignore[list-item]
    with pytest.raises(EncodeError, match="message 1 has 70,000 bytes: frames have 65,536 at most"):
        tiny.encode_frames(["a", "b" * 70_000])


def test_a_column_whose_metadata_is_lost(tiny: Codec) -> None:
    """As a column of a DataFrame: the error was that the series does not hold frames."""
    packed = tables.encode_series(FRAME["text"], tables.Column.of(tiny))
    with pytest.raises(memcodec.FormatError, match="or has lost it"):
        tables.decode_series(pandas.DataFrame({"text": packed})["text"], tiny)


def test_a_file_that_is_no_zip_is_none(tiny: Codec, tmp_path: Path) -> None:
    """zipfile seeks to before the start, and expects the error of a file."""
    with memcodec.open(tmp_path / "a.memz", "wb", codec=tiny) as file:
        file.write(b"x")
    with memcodec.open(tmp_path / "a.memz", codec=tiny) as file, pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(file)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"effort": 0}, {"memory_share": 0.9}, {"context": "most"}], ids=str)
def test_settings_of_arrays_are_checked_when_they_are_made(settings: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match=next(iter(settings)).replace("_", " ")):
        arrays.ArraySettings(**settings)


@needs_dev_full
def test_a_full_disk_is_named(tiny: Codec) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        memcodec.open("/dev/full", "wb", codec=tiny).close()


def test_token_map_takes_the_bytes_of_a_file(tiny: Codec) -> None:
    blob = tiny.encode("the quick brown fox jumps over the lazy dog " + "x" * 2000)
    assert len(list(memcodec.token_map(tiny, blob))) == len(list(memcodec.token_map(tiny, unpack(blob)))) > 0
