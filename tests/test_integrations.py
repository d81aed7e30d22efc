"""memcodec in other libraries, tested with the real libraries."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numcodecs
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import zarr
import zarr.storage

import memcodec
import memcodec.integrations.fsspec as ours
from memcodec import EncodeError, FormatError, FrameSettings, MemcodecError, ModelMismatchError, Primer
from memcodec.codec import Codec
from memcodec.integrations import arrays, tables
from memcodec.integrations.numcodecs import MemcodecCodec
from memcodec.integrations.tables import Column
from memcodec.integrations.zarr import MemcodecCodec as ZarrCodec

from .conftest import TEXT, Run
from .test_cli import refused

TEXTS = ["The quick brown fox.", "Она продаёт.", "", "wood? " * 20, "春眠不觉晓"]


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """The empty in-memory file system of fsspec."""
    yield
    fsspec.filesystem("memory").store.clear()


# ---- URLs, and fsspec


def test_open_takes_urls(tiny: Codec) -> None:
    with memcodec.open("memory://a.memz", "wt", encoding="utf-8", codec=tiny) as file:
        file.write(TEXT)
    with memcodec.open("memory://a.memz", "rt", encoding="utf-8", codec=tiny) as file:
        assert file.read() == TEXT
    with pytest.raises(FileExistsError, match="exists"):
        memcodec.open("memory://a.memz", "xb")
    with pytest.raises(FileNotFoundError, match="memory://b"):
        memcodec.open("memory://b")
    with pytest.raises(OSError, match="nothing-like-this"):
        memcodec.open("nothing-like-this://b")


def test_an_error_writes_no_url(tiny: Codec) -> None:
    with pytest.raises(KeyError), memcodec.open("memory://a.memz", "w", codec=tiny) as file:
        file.write(b"half")
        raise KeyError
    assert not fsspec.filesystem("memory").exists("a.memz")


def test_the_command_line_takes_urls(run: Run, llama_folder: Path) -> None:
    fsspec.filesystem("memory").pipe("/a.txt", TEXT.encode())
    usual = ["--model", llama_folder, "--device", "cpu"]
    assert run("compress", "memory://a.txt", *usual).exit_code == 0
    assert fsspec.filesystem("memory").exists("a.txt.memz")
    assert "exists" in refused(run("compress", "memory://a.txt", *usual))
    assert run("compress", "memory://a.txt", "-f", *usual).exit_code == 0
    assert run("decompress", "memory://a.txt.memz", "-c", *usual).stdout == TEXT
    assert run("decompress", "memory://a.txt.memz", "-o", "memory://b.txt", *usual).exit_code == 0
    assert fsspec.filesystem("memory").cat("/b.txt") == TEXT.encode()
    Path("c").write_text(TEXT)
    assert run("compress", "c", "--output-dir", "memory://folder", *usual).exit_code == 0
    assert fsspec.filesystem("memory").exists("folder/c.memz")
    assert "memory://nothing: no such file" in refused(run("compress", "memory://nothing", *usual))
    assert "foo" in refused(run("compress", "foo://nothing", *usual))
    assert run("list", "memory://a.txt.memz").exit_code == 0
    assert "not removed" in refused(run("compress", "memory://a.txt", "-f", "--rm", *usual))


def test_fsspec_infers_the_compression(tiny: Codec, tmp_path: Path) -> None:
    ours.register(codec=tiny)
    try:
        path = tmp_path / "a.txt.memz"
        with fsspec.open(path, "wt", compression="infer", encoding="utf-8", newline="") as file:
            file.write(TEXT)
        assert tiny.decode(path.read_bytes()) == TEXT.encode()
        with fsspec.open(path, "rt", compression="infer", encoding="utf-8", newline="") as file:
            assert file.read() == TEXT
        with fsspec.open("memory://b", "wb", compression="memz") as file:
            file.write(b"raw")
        with fsspec.open("memory://b", "rb", compression="memz") as file:
            assert file.read() == b"raw"
    finally:
        ours.register()


def test_pandas_reads_through_fsspec(tiny: Codec) -> None:
    ours.register(codec=tiny)
    try:
        frame = pandas.DataFrame({"id": [1, 2, 3], "text": ["a", "b c", "ж"]})
        with fsspec.open("memory://a.csv.memz", "wt", compression="infer", encoding="utf-8", newline="") as file:
            frame.to_csv(file, index=False)
        found = pandas.read_csv("memory://a.csv.memz", storage_options={"compression": "memz"})
        assert found.equals(frame)
    finally:
        ours.register()


# ---- arrays


def array_codec(folder: Path, **more: Any) -> MemcodecCodec:
    return MemcodecCodec(model=str(folder), effort=64, **more)


def test_numcodecs_finds_it_and_its_settings(llama_folder: Path) -> None:
    codec = array_codec(llama_folder, context=0)
    again = numcodecs.get_codec(json.loads(json.dumps(codec.get_config())))
    assert again == codec and again.settings == codec.settings
    found = {entry.name: entry.value for entry in _entries("numcodecs.codecs")}
    assert found["memcodec"] == "memcodec.integrations.numcodecs:MemcodecCodec"


def _entries(group: str) -> Any:
    from importlib.metadata import entry_points

    return entry_points(group=group)


@pytest.mark.parametrize(
    "array",
    [
        np.frombuffer(TEXT.encode(), dtype=np.uint8),
        np.arange(100, dtype="<i4"),
        np.array([b"one", b"two and more", b""], dtype="S12"),
        np.empty(0, dtype=np.uint8),
        np.frombuffer(TEXT.encode() * 2, dtype=np.uint8)[::2],
    ],
    ids=["text", "numbers", "fixed", "empty", "strided"],
)
def test_numcodecs_round_trips(llama_folder: Path, array: np.ndarray) -> None:
    codec = array_codec(llama_folder)
    blob = codec.encode(array)
    assert codec.decode(blob) == array.tobytes()
    out = np.empty_like(array, order="C")
    assert np.array_equal(codec.decode(blob, out=out), array)


def test_arrays_of_strings_become_text(llama_folder: Path) -> None:
    codec = array_codec(llama_folder)
    strings = np.array(TEXT.split(". ") * 3, dtype=object)
    packed = numcodecs.VLenUTF8().encode(strings)
    blob = codec.encode(packed)
    assert blob[:1] == b"\1"
    assert list(numcodecs.VLenUTF8().decode(codec.decode(blob))) == list(strings)
    assert len(blob) < len(array_codec(llama_folder).settings._file(bytes(packed)))


def test_damaged_chunks_are_our_errors(llama_folder: Path) -> None:
    codec = array_codec(llama_folder)
    blob = codec.encode(numcodecs.VLenUTF8().encode(np.array(TEXTS * 4, dtype=object)))
    for place in range(0, len(blob), 3):
        damaged = bytearray(blob)
        damaged[place] ^= 1
        with pytest.raises(MemcodecError):
            codec.decode(bytes(damaged))
    for end in (0, 1, 5, len(blob) - 1):
        with pytest.raises(MemcodecError):
            codec.decode(blob[:end])


def test_zarr_3(llama_folder: Path) -> None:
    store = zarr.storage.MemoryStore()
    compressor = ZarrCodec(arrays.ArraySettings(str(llama_folder), effort=64))
    made = zarr.create_array(store, shape=(6,), chunks=(4,), dtype=np.uint8, compressors=[compressor], zarr_format=3)
    made[:] = np.frombuffer(b"abcdef", dtype=np.uint8)
    again = zarr.open_array(store, mode="r")
    assert bytes(again[:]) == b"abcdef"
    assert again.metadata.to_dict()["codecs"][-1]["name"] == "memcodec"
    assert _entries("zarr.codecs")["memcodec"].load() is ZarrCodec


def test_zarr_3_strings(llama_folder: Path) -> None:
    compressor = ZarrCodec(arrays.ArraySettings(str(llama_folder), effort=64))
    strings = np.array(TEXTS, dtype=np.dtypes.StringDType())
    made = zarr.create_array(
        zarr.storage.MemoryStore(), shape=strings.shape, chunks=(3,), dtype=str, compressors=[compressor], zarr_format=3
    )
    made[:] = strings
    assert list(made[:]) == TEXTS


def test_zarr_2(llama_folder: Path) -> None:
    store = zarr.storage.MemoryStore()
    codec = array_codec(llama_folder)
    made = zarr.create_array(store, shape=(6,), chunks=(4,), dtype="u1", compressors=codec, zarr_format=2)
    made[:] = np.frombuffer(b"abcdef", dtype=np.uint8)
    assert bytes(zarr.open_array(store, mode="r")[:]) == b"abcdef"


# ---- tables


@pytest.fixture
def column(tiny: Codec) -> Column:
    primer = Primer.from_texts([TEXT], 30, tiny)
    return Column.of(tiny.with_primer(primer), FrameSettings(checksum=2))


def test_arrow_and_parquet(column: Column, tiny: Codec, tmp_path: Path) -> None:
    table = pyarrow.table({"id": range(6), "text": [*TEXTS, None]})
    packed = tables.encode_table(table, "text", column)
    assert packed.schema.field("text").type == pyarrow.binary()
    pyarrow.parquet.write_table(packed, tmp_path / "a.parquet")
    back = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert tables.decode_table(back, "text", tiny).equals(table)
    about = json.loads(back.schema.field("text").metadata[b"memcodec"])
    assert about["identity"] == tiny.model.identity.hex()[:16] and about["checksum"] == 2


def test_a_column_without_metadata_or_of_another_model(column: Column, tiny: Codec, llama: Codec) -> None:
    table = pyarrow.table({"text": TEXTS})
    with pytest.raises(FormatError, match="no metadata"):
        tables.decode_table(table, "text", tiny)
    packed = tables.encode_table(table, "text", column)
    with pytest.raises(ModelMismatchError, match="as codec or --model"):
        tables.decode_table(packed, "text", llama)
    with pytest.raises(memcodec.ModelNotFoundError, match="local model"):
        tables.decode_table(packed, "text")
    for damaged in ("{}", "[", '{"checksum": 1}'):
        with pytest.raises(FormatError, match="cannot be read"):
            Column.from_metadata({"memcodec": damaged}, tiny)
    with pytest.raises(EncodeError, match="checksum 9"):
        Column.from_metadata(
            {"memcodec": column.metadata()["memcodec"].replace('"checksum": 2', '"checksum": 9')}, tiny
        )


def test_pandas(column: Column, tiny: Codec) -> None:
    series = pandas.Series([*TEXTS, None], index=list("abcdef"), name="text")
    packed = tables.encode_series(series, column)
    assert packed.name == "text" and list(packed.index) == list("abcdef") and packed["f"] is None
    back = tables.decode_series(packed, tiny)
    assert [None if pandas.isna(text) else text for text in back] == [*TEXTS, None]


@pytest.mark.filterwarnings("ignore:Cannot locate reference")  # of what datasets pickles itself
def test_datasets(column: Column) -> None:
    given = datasets.Dataset.from_dict({"id": list(range(len(TEXTS))), "text": TEXTS})
    packed = given.map(column.encoder("text"), batched=True, batch_size=2, features=_features("binary"))
    assert all(isinstance(frame, bytes) for frame in packed["text"])
    back = packed.map(column.decoder("text"), batched=True, features=_features("string"))
    assert back["text"] == TEXTS or list(back["text"]) == TEXTS
    assert list(back["id"]) == list(given["id"])


def _features(kind: str) -> datasets.Features:
    return datasets.Features({"id": datasets.Value("int64"), "text": datasets.Value(kind)})
