"""memcodec in other libraries, tested with the real libraries."""

import json
import pickle
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

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
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

import memcodec
import memcodec.integrations.fsspec as ours
from memcodec import (
    ChecksumError,
    EncodeError,
    FormatError,
    FrameSettings,
    MemcodecError,
    ModelMismatchError,
    Primer,
)
from memcodec.codec import Codec
from memcodec.integrations import arrays, loading, tables
from memcodec.integrations.numcodecs import MemcodecCodec
from memcodec.integrations.tables import Column
from memcodec.integrations.zarr import MemcodecCodec as ZarrCodec
from memcodec.models import registry
from memcodec.models.loaded import LoadedModel
from memcodec.storage import remote
from memcodec_cli.outputs import Output

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


class Bucket(AbstractFileSystem):  # type: ignore[misc]
    """Objects that are there when their upload is finished, as those of a cloud."""

    protocol = "bucket"
    objects: ClassVar[dict[str, bytes]] = {}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> "Upload":
        return Upload(self, path, mode, **options)

    def exists(self, path: str, **_: Any) -> bool:
        return path in self.objects

    def rm_file(self, path: str) -> None:
        del self.objects[path]


class Upload(AbstractBufferedFile):  # type: ignore[misc]
    def _initiate_upload(self) -> None:
        self.parts = b""

    def _upload_chunk(self, final: bool = False) -> None:
        self.parts += self.buffer.getvalue()
        if final:
            self.fs.objects[self.path] = self.parts


class Interrupted(tempfile.SpooledTemporaryFile[bytes]):
    """Ctrl-C, after the first of its bytes were read."""

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        if size == -1 or self.tell():
            raise KeyboardInterrupt
        return super().read(3)


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("url", ["file://{}/a", "memory://a", "simplecache::memory://a", "bucket://a"])
def test_urls_are_written_completely_or_not_at_all(
    url: str, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec finished the upload of the first part when its file was closed after the error."""
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "objects", {})
    url = url.format(tmp_path)

    def found() -> bytes | None:
        if url.startswith("file"):
            assert {path.name for path in tmp_path.iterdir()} <= {"a"}
            return (tmp_path / "a").read_bytes() if (tmp_path / "a").exists() else None
        if url.startswith("bucket"):
            return Bucket.objects.get("a")
        if url.startswith("simplecache"):
            assert remote.exists(url) == fsspec.filesystem("memory").exists("/a")
            return remote.read(url) if remote.exists(url) else None
        memory = fsspec.filesystem("memory")
        return bytes(memory.cat_file("/a")) if memory.exists("/a") else None

    if existing:
        assert remote.write(url, [b"here ", b"before"]) == 11 and found() == b"here before"
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.SpooledTemporaryFile", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            remote.write(url, [b"something ", b"new"])
    assert found() == (b"here before" if existing else None)
    assert remote.write(url, [b"something ", b"else"]) == 14 and found() == b"something else"


def test_a_local_url_makes_its_folder(tmp_path: Path) -> None:
    remote.write(f"file://{tmp_path}/new/folder/a", [b"x"])
    assert (tmp_path / "new/folder/a").read_bytes() == b"x"


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


@pytest.mark.parametrize("folder", ["file://{}/out", "memory://distinct"])
@pytest.mark.parametrize("force", [[], ["-f"]])
def test_two_inputs_with_one_url_as_output_are_refused(run: Run, tmp_path: Path, folder: str, force: list[str]) -> None:
    """The second replaced the first, and the exit status was 0."""
    folder = folder.format(tmp_path)
    for name in ("a/x", "b/x"):
        Path(name).parent.mkdir()
        Path(name).write_bytes(bytes(range(256)) + name.encode())
    done = run("compress", *force, "a/x", "b/x", "--output-dir", folder)
    assert done.exit_code == 1 and f"{folder}/x.memz is also the output of another input" in done.stderr
    assert memcodec.decode(remote.read(f"{folder}/x.memz")).endswith(b"a/x")


def test_a_url_that_appears_during_the_work_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a").write_bytes(bytes(range(256)))
    real = Output.write

    def write(self: Output, pieces: list[bytes]) -> int:
        remote.write("memory://appears", [b"of another process"])
        return real(self, pieces)

    monkeypatch.setattr(Output, "write", write)
    assert "memory://appears exists" in refused(run("compress", "a", "-o", "memory://appears"))
    assert remote.read("memory://appears") == b"of another process"


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_errors_of_other_libraries_behind_urls_are_errors_of_one_line(run: Run, tmp_path: Path, kind: str) -> None:
    """They were tracebacks."""
    Path("bad").write_bytes(b"neither zip nor tar")
    url = f"{kind}://a.txt::{tmp_path}/bad"
    for args in (["compress", url, "-o", "a.memz"], ["list", url], ["compress", "bad", "-o", url]):
        message = refused(run(*args))
        assert message.startswith(f"memcodec: error: {url}: ") and len(message.splitlines()) == 1


def test_errors_of_the_work_on_a_url_are_not_the_url_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError of the work with its bytes became an OSError about the URL; an OSError lost its file name."""
    fsspec.filesystem("memory").pipe("/a", b"abc")
    for error in (ValueError("of the work"), OSError(5, "of the work", "another")):
        with pytest.raises(type(error)) as caught, remote.opened("memory://a") as file:
            assert file.read() == b"abc"
            raise error
        assert caught.value is error


def test_urls_that_need_more_packages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr(fsspec, "open", missing)
    message = "https://example.org/a.memz: these URLs need more packages: pip install requests aiohttp"
    assert message in refused(run("inspect", "https://example.org/a.memz"))


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


def test_an_error_in_a_column_names_the_row(column: Column) -> None:
    frames = [None, *column.encode(["one text", "another"])]
    assert column.decode(frames) == [None, "one text", "another"]
    assert frames[2] is not None
    frames[2] = frames[2][:-1] + bytes([frames[2][-1] ^ 1])
    with pytest.raises(ChecksumError, match=r"^row 2: .* does not match its checksum"):
        column.decode(frames)


def test_a_column_without_metadata_or_of_another_model(column: Column, tiny: Codec, llama: Codec) -> None:
    table = pyarrow.table({"text": TEXTS})
    with pytest.raises(FormatError, match="no metadata"):
        tables.decode_table(table, "text", tiny)
    packed = tables.encode_table(table, "text", column)
    with pytest.raises(ModelMismatchError, match="as codec or model"):
        tables.decode_table(packed, "text", llama)
    with pytest.raises(memcodec.ModelNotFoundError, match="local model"):
        tables.decode_table(packed, "text")
    for damaged in ("{}", "[", '{"checksum": 1}'):
        with pytest.raises(FormatError, match="cannot be read"):
            Column.from_metadata({"memcodec": damaged}, tiny)
    about = json.loads(column.metadata()["memcodec"])
    with pytest.raises(FormatError, match="cannot be read: checksum 9: give 0 to 4 bytes"):
        Column.from_metadata({"memcodec": json.dumps(about | {"checksum": 9})}, tiny)
    for name, wrong in (
        ("max_bytes", "9"), ("max_bytes", 9.5), ("memory_share", "0.1"), ("memory_share", 10**400),
        ("chunk_tokens", None), ("effort", [1]),
        ("primer", 5), ("dictionary", None), ("identity", 5),
    ):  # fmt: skip
        with pytest.raises(FormatError, match="cannot be read"):
            Column.from_metadata({"memcodec": json.dumps(about | {name: wrong})}, tiny)


def test_a_model_and_its_state_after_a_primer_are_made_once_for_all_tables(
    column: Column, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were made for each table. The model stands for one whose name is known, and is given to no function."""
    table = pyarrow.table({"text": TEXTS})
    packed = tables.encode_table(table, "text", column)
    calls = list[str]()
    load, prime = LoadedModel.load, LoadedModel.with_primer_tokens

    def loading_(*given: Any, **options: Any) -> LoadedModel:
        calls.append("load")
        return load(*given, **options)

    def priming(*given: Any) -> LoadedModel:
        calls.append("prime")
        return prime(*given)

    monkeypatch.setattr(LoadedModel, "load", loading_)
    monkeypatch.setattr(LoadedModel, "with_primer_tokens", priming)
    monkeypatch.setattr(registry, "resolve_named", lambda *_: registry.resolve(str(llama_folder)))
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setattr(tables, "_recent", loading.RecentCodecs(8))
    for _ in range(3):
        assert tables.decode_table(packed, "text").equals(table)
    assert calls == ["load", "prime"]


def test_columns_keep_few_states_after_primers(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_recent", recent := loading.RecentCodecs(8))
    columns = [Column.of(tiny.with_primer(Primer.from_texts([TEXT[n:]], 5, tiny))) for n in range(12)]
    assert len(recent._codecs) == 8 and len({column.primer for column in columns}) == 12
    assert all(column.decode(column.encode(["some text"])) == ["some text"] for column in columns)
    pickled = pickle.dumps(columns[11])
    again = pickle.loads(pickled)
    assert len(pickled) < 2000 and again == columns[11] and again.codec is columns[11].codec
    monkeypatch.setattr(loading, "_loaded", {tiny.name: tiny})
    forgotten = pickle.loads(pickle.dumps(columns[0]))
    assert forgotten.codec is not columns[0].codec and forgotten.codec.primer == columns[0].codec.primer


def test_a_column_of_a_model_directory_finds_it_in_another_process(
    tiny: Codec, llama: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept only the last part of the directory's path, and could take another model with the same one."""
    column = Column.of(tiny)
    assert column.model == str(tiny.model.folder.path)
    assert column.model not in str(column.metadata())  # which is stored in files
    frames = column.encode(["some text"])
    monkeypatch.setattr(tables, "_recent", loading.RecentCodecs(8))
    monkeypatch.setattr(loading, "_loaded", {tiny.name: llama})
    again = pickle.loads(pickle.dumps(column))
    assert again.codec.model.identity == tiny.model.identity and again.decode(frames) == ["some text"]


def test_a_given_codec_keeps_the_state_after_a_primer(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker decodes batch after batch of a column with the codec that it was given."""
    monkeypatch.setattr(tables, "_recent", loading.RecentCodecs(8))
    about = Column.of(tiny.with_primer(Primer.from_texts([TEXT], 20, tiny))).metadata()
    first, second = (Column.from_metadata(about, tiny).codec for _ in range(2))
    assert first is second
    other = Codec.load(str(tiny.model.folder.path), threads=1)
    assert Column.from_metadata(about, other).codec.model.has_lm_of(other.model)


def test_threads_load_a_model_once(monkeypatch: pytest.MonkeyPatch, tiny: Codec) -> None:
    """zarr decodes chunks in threads, each of which loaded the model."""
    calls = list[str]()

    def load(model: str) -> Codec:
        calls.append(model)
        time.sleep(0.05)
        return tiny

    monkeypatch.setattr(Codec, "load", load)
    monkeypatch.setattr(loading, "_loaded", {})
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(loading.loaded, ["some model"] * 4)) == {tiny}
    assert calls == ["some model"]


def test_pandas(column: Column, tiny: Codec) -> None:
    series = pandas.Series([*TEXTS, None], index=list("abcdef"), name="text")
    packed = tables.encode_series(series, column)
    assert packed.name == "text" and list(packed.index) == list("abcdef") and packed["f"] is None
    back = tables.decode_series(packed, tiny)
    assert [None if pandas.isna(text) else text for text in back] == [*TEXTS, None]


ARROW = {
    "string": pyarrow.array([*TEXTS, None, TEXTS[0]]),
    "large_string": pyarrow.array([*TEXTS, None], pyarrow.large_string()),
    "string_view": pyarrow.array([*TEXTS, None], pyarrow.string_view()),
    "null": pyarrow.nulls(3),
    "binary": pyarrow.array([b"\xff\x00", b"text", b"", None]),
    "large_binary": pyarrow.array([b"\xff\x00", None], pyarrow.large_binary()),
    "binary_view": pyarrow.array([b"\xff\x00", None], pyarrow.binary_view()),
    "fixed": pyarrow.array([b"\xff\x00", None, b"ab"], pyarrow.binary(2)),
    "dictionary": pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([1, None, 0, 1], pyarrow.int8()), ["b", "a", "not used"], ordered=True
    ),
    "dictionary of large": pyarrow.array(["a", None]).cast(pyarrow.dictionary(pyarrow.int16(), pyarrow.large_string())),
    "dictionary of bytes": pyarrow.array([b"\xff", None, b"\xff"]).dictionary_encode(),
    "chunks": pyarrow.chunked_array([TEXTS[:2], [], [None, "x"]]),
    "chunked dictionary": pyarrow.chunked_array(
        [pyarrow.array(part).dictionary_encode() for part in (["a", "b"], ["c", None, "a"], ["a", "b"])]
    ),
    "slice of a dictionary": pyarrow.array(["a", "b", None, "c", "b"]).dictionary_encode()[1:4],
    "no rows": pyarrow.array([], pyarrow.string()),
    "no chunks": pyarrow.chunked_array([], pyarrow.large_string()),
}


@pytest.mark.parametrize("kind", ARROW)
def test_arrow_types_come_back(column: Column, tiny: Codec, tmp_path: Path, kind: str) -> None:
    field = pyarrow.field("text", ARROW[kind].type, metadata={"unit": "a note"})
    table = pyarrow.table({"id": range(len(ARROW[kind])), "text": ARROW[kind]})
    table = table.cast(table.schema.set(1, field))
    packed = tables.encode_table(table, "text", column)
    back = tables.decode_table(packed, "text", tiny)
    back.validate(full=True)
    assert back.equals(table, check_metadata=True)
    pyarrow.parquet.write_table(packed, tmp_path / "a.parquet")
    for options in ({}, {"read_dictionary": ["text"]}):
        again = tables.decode_table(pyarrow.parquet.read_table(tmp_path / "a.parquet", **options), "text", tiny)
        assert again.schema.field("text") == table.schema.field("text")
        assert again["text"].to_pylist() == table["text"].to_pylist()


def test_what_a_field_says_stays(column: Column, tiny: Codec) -> None:
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), nullable=False)], metadata={"a": "b"})
    table = pyarrow.table({"text": TEXTS}, schema=schema)
    packed = tables.encode_table(table, "text", column)
    assert not packed.schema.field("text").nullable
    assert tables.decode_table(packed, "text", tiny).equals(table, check_metadata=True)


def test_a_table_of_pandas_comes_back(column: Column, tiny: Codec, tmp_path: Path) -> None:
    given = series_of_each_type()
    del given["ArrowDtype, dictionary"]  # which pyarrow itself does not turn into pandas' again
    frame = pandas.DataFrame({name: one for name, one in given.items() if len(one) == 3})
    table = pyarrow.Table.from_pandas(frame)
    for name in frame:
        packed = tables.encode_table(table, name, column)
        assert packed.to_pandas()[name].iloc[0] != table.to_pandas()[name].iloc[0]  # a frame, and no error
        back = tables.decode_table(packed, name, tiny)
        assert back.equals(table, check_metadata=True)
        pandas.testing.assert_frame_equal(back.to_pandas(), table.to_pandas())
        pyarrow.parquet.write_table(packed, tmp_path / "a.parquet")
        back = tables.decode_table(pyarrow.parquet.read_table(tmp_path / "a.parquet"), name, tiny)
        assert back.schema.field(name).equals(table.schema.field(name), check_metadata=True)
        assert back[name].to_pylist() == table[name].to_pylist()
        assert back.schema.pandas_metadata == table.schema.pandas_metadata


def test_tables_refuse_what_would_not_come_back(column: Column, tiny: Codec) -> None:
    table = pyarrow.table({"text": TEXTS, "id": range(5), "when": pyarrow.array([["a"]] * 5), "ids": list("abcde")})
    packed = tables.encode_table(table, "text", column)
    with pytest.raises(EncodeError, match=r"^column 'text' holds frames already: .* decode_table first$"):
        tables.encode_table(packed, "text", column)
    for name, kind in (("id", "int64"), ("when", "list<")):
        with pytest.raises(EncodeError, match=f"^column '{name}' is {kind}.*: cast it to string or binary$"):
            tables.encode_table(table, name, column)
    small = Column.of(column.codec, FrameSettings(max_bytes=30))
    with pytest.raises(EncodeError, match=r"^column 'text': row 3 has 120 bytes: .*: raise max_bytes$"):
        tables.encode_table(table, "text", small)
    with pytest.raises(EncodeError, match=r"^type 'int64': .*: give 'string' or 'binary'$"):
        Column.of(column.codec, type="int64")
    newer = column.metadata()["memcodec"].replace('"type": "string"', '"type": "complex_string"')
    with pytest.raises(FormatError, match="'complex_string': install a newer memcodec"):
        Column.from_metadata({"memcodec": newer}, tiny)


def test_a_column_from_before_types_were_kept(column: Column, tiny: Codec) -> None:
    """It reads as text, and bytes that are none are an error of ours."""
    about = json.loads(column.metadata()["memcodec"])
    assert about.pop("type") == "string" and about.pop("pandas") == ""
    field = pyarrow.field("text", pyarrow.binary(), metadata={"memcodec": json.dumps(about)})
    for value in (b"text", b"\xff"):
        (frame,) = column.codec.encode_frames([value], column.settings)
        table = pyarrow.table({"text": [frame]}, schema=pyarrow.schema([field]))
        if value == b"text":
            assert tables.decode_table(table, "text", tiny)["text"].to_pylist() == ["text"]
        else:
            with pytest.raises(FormatError, match=r"^column 'text': row 0 is not UTF-8"):
                tables.decode_table(table, "text", tiny)


def test_columns_of_different_types_that_were_joined(column: Column, tiny: Codec) -> None:
    """As blocks of a dataset without one value: the first one's type wins, unless it has no values."""
    parts = [pyarrow.table({"text": part}) for part in (pyarrow.nulls(2), pyarrow.array(["a"]))]
    packed = pyarrow.concat_tables([tables.encode_table(part, "text", column) for part in parts])
    assert tables.decode_table(packed, "text", tiny)["text"].to_pylist() == [None, None, "a"]


def series_of_each_type() -> dict[str, pandas.Series]:
    arrow = pandas.ArrowDtype
    missing = ["b", "a", None]
    category = pandas.CategoricalDtype(pandas.Index(["b", "a", "not used"], dtype=object), ordered=True)
    return {
        "str": pandas.Series(missing, dtype="str"),
        "str[python]": pandas.Series(missing, dtype=pandas.StringDtype("python", na_value=np.nan)),
        "string": pandas.Series(missing, dtype="string"),
        "string[python]": pandas.Series(missing, dtype="string[python]"),
        "string[pyarrow]": pandas.Series(missing, dtype="string[pyarrow]"),
        "object": pandas.Series(missing, dtype=object),
        "object, bytes": pandas.Series([b"\xff\x00", b"text", None], dtype=object),
        "category": pandas.Series(missing, dtype="category"),
        "category of object": pandas.Series(missing, dtype=category),
        "category of string": pandas.Series(pandas.Series(missing, dtype="string")).astype("category"),
        "ArrowDtype": pandas.Series(missing, dtype=arrow(pyarrow.large_string())),
        "ArrowDtype, bytes": pandas.Series([b"\xff", None, b""], dtype=arrow(pyarrow.large_binary())),
        "ArrowDtype, dictionary": pandas.Series(
            missing, dtype=arrow(pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
        ),
        "missing in all ways": pandas.Series([None, np.nan, pandas.NA, "a"], dtype=object),
        "only missing": pandas.Series([None, np.nan], dtype=object),
        "empty": pandas.Series([], dtype="str"),
        "empty category": pandas.Series([], dtype="category"),
    }


@pytest.mark.parametrize("kind", series_of_each_type())
def test_pandas_types_come_back(column: Column, tiny: Codec, kind: str) -> None:
    given = series_of_each_type()[kind]
    given.name, given.index, given.attrs = "text", given.index + 7, {"unit": "a note"}
    packed = tables.encode_series(given, column)
    back = tables.decode_series(packed, tiny)
    pandas.testing.assert_series_equal(back, given, check_categorical=True)
    assert back.dtype == given.dtype and back.attrs == given.attrs
    if given.dtype == object:
        assert [type(value) for value in back] == [type(value) for value in given]
    if kind.startswith("category"):
        plain = packed.astype(object)
        plain.attrs = packed.attrs
        assert list(tables.decode_series(plain, tiny).dropna()) == list(given.dropna())


@pytest.mark.parametrize("dtype", ["str", "string", "object"])
@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_frames_of_other_kinds_of_bytes(column: Column, tiny: Codec, dtype: str, kind: type) -> None:
    """As databases return them: all values came back missing, without an error."""
    given = pandas.Series(["a text", None, "another"], dtype=dtype, name="text")
    packed = tables.encode_series(given, column)
    read = packed.map(lambda frame: kind(frame) if isinstance(frame, bytes) else frame)
    read.attrs = packed.attrs
    pandas.testing.assert_series_equal(tables.decode_series(read, tiny), given)
    read[0] = "no frame"
    with pytest.raises(TypeError, match="row 0: give bytes or bytes-like data, not str"):
        tables.decode_series(read, tiny)


def test_an_unknown_storage_of_strings_is_refused(column: Column, tiny: Codec) -> None:
    packed = tables.encode_series(pandas.Series(TEXTS, dtype="string", name="text"), column)
    about = json.loads(packed.attrs["memcodec"])
    packed.attrs["memcodec"] = json.dumps(about | {"pandas": "string[paper]"})
    with pytest.raises(FormatError, match=r"a series of type 'string\[paper\]': install a newer"):
        tables.decode_series(packed, tiny)


def test_series_refuse_what_would_not_come_back(column: Column) -> None:
    packed = tables.encode_series(pandas.Series(TEXTS, name="text"), column)
    with pytest.raises(EncodeError, match=r"^series 'text' holds frames already: .* decode_series first$"):
        tables.encode_series(packed, column)
    for values, message in (
        (["a", 3], "series 'x': row 1 is int in a column of text: give str"),
        (["a", b"b"], "series 'x': row 1 is bytes in a column of text: give str"),
        ([b"a", "b"], "series 'x': row 1 is str in a column of bytes: give bytes"),
        (["a", ["b"]], "series 'x': row 1 is list in a column of text"),
        (["\ud800"], "series 'x': row 0: text with a lone surrogate at 0"),
    ):
        with pytest.raises(EncodeError, match=f"^{message}"):
            tables.encode_series(pandas.Series(values, name="x", dtype=object), column)
    for series in (pandas.Series([1.5, None], name="x"), pandas.Series([1, 2], name="x", dtype="category")):
        with pytest.raises(EncodeError, match=r"^series 'x'.* is (float64|int64): only text and bytes .* astype$"):
            tables.encode_series(series, column)


def test_a_series_through_arrow_and_back(column: Column, tiny: Codec) -> None:
    """What was written as a series can be read as a column, and the other way round."""
    packed = tables.encode_series(pandas.Series(["b", "a", "b"], dtype="category"), column)
    field = pyarrow.field("text", pyarrow.binary(), metadata=packed.attrs)
    table = pyarrow.table({"text": packed.tolist()}, schema=pyarrow.schema([field]))
    assert tables.decode_table(table, "text", tiny)["text"].to_pylist() == ["b", "a", "b"]
    for values in (pyarrow.array(["a", None], pyarrow.large_string()), pyarrow.array([b"\xff", None])):
        table = tables.encode_table(pyarrow.table({"text": values}), "text", column)
        series = pandas.Series(table["text"].to_pylist())
        series.attrs = {key.decode(): value.decode() for key, value in table.schema.field("text").metadata.items()}
        back = tables.decode_series(series, tiny)
        assert [None if pandas.isna(value) else value for value in back] == values.to_pylist()


@pytest.mark.filterwarnings("ignore:Cannot locate reference")
def test_datasets_of_bytes(column: Column) -> None:
    given = datasets.Dataset.from_dict({"id": [0, 1], "text": [b"\xff", b"text"]}, features=_features("binary"))
    with pytest.raises(EncodeError, match=r"^column 'text': row 0 is bytes in a column of text: .* type='binary'"):
        given.map(column.encoder("text"), batched=True, features=_features("binary"))
    ours = Column.of(column.codec, type="binary")
    packed = given.map(ours.encoder("text"), batched=True, features=_features("binary"))
    assert list(packed["text"]) != list(given["text"])
    back = packed.map(ours.decoder("text"), batched=True, features=given.features)
    assert list(back["text"]) == list(given["text"]) and back.features == given.features
    again = Column.from_metadata(ours.metadata(), column.codec)
    assert again.type == "binary"
    with pytest.raises(EncodeError, match=r"^column 'text': row 0 is bytes"):  # frames are not encoded again as text
        packed.map(column.encoder("text"), batched=True, features=_features("binary"))


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
