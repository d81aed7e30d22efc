"""`memcodec.open`, and archives."""

import copy
import gc
import gzip
import io
import json
import os
import pickle
import random
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import memcodec
from memcodec import Archive, EncodeError, FormatError, MemcodecError, ModelMismatchError, Readout, container, groups
from memcodec.codec import Codec, codec_for
from memcodec.errors import ChecksumError, PrimerMismatchError
from memcodec.files import archive, archive_index
from memcodec.files.decoded import _WholeChecks
from memcodec.files.open import BadFileError, MemzFile
from memcodec.groups import decode_batch
from memcodec.models.loaded import LoadedModel
from memcodec.primer import Primer
from memcodec.settings import Context
from memcodec.storage.write import replace
from memcodec.view.inspection import inspect_all

from .conftest import TEXT, store_nothing, traced

WHOLE = TEXT.encode() * 3 + bytes(range(128, 256)) * 2 + TEXT.encode() * 4
QUICK = Readout(0.1, 64)


@pytest.fixture(scope="module", params=[0, 60, "auto", "max"])
def blob(tiny: Codec, request: pytest.FixtureRequest) -> bytes:
    context: Context = request.param
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        return tiny.encode(WHOLE, site=QUICK, chunk_tokens=50, context=context)


def test_reads_at_random_places(tiny: Codec, blob: bytes) -> None:
    file = memcodec.open(io.BytesIO(blob), codec=tiny)
    assert isinstance(file, MemzFile) and file.readable() and file.seekable() and not file.writable()
    plain, rng = io.BytesIO(WHOLE), random.Random(0)
    for _ in range(60):
        if rng.random() < 0.6:
            place = rng.randrange(len(WHOLE) + 50)
            assert file.seek(place) == plain.seek(place)
        size = rng.choice([0, 1, 7, 100, 900])
        assert file.read(size) == plain.read(size) and file.tell() == plain.tell()
    assert file.seek(-20, os.SEEK_END) == len(WHOLE) - 20 and file.read() == WHOLE[-20:]
    assert file.seek(0) == 0 and file.read() == WHOLE and file.read(5) == b""
    file.seek(3)
    file.seek(4, os.SEEK_CUR)
    assert file.peek(1)[:1] == WHOLE[7:8] and file.read1(3) == WHOLE[7:10]
    buffer = bytearray(6)
    assert file.readinto(buffer) == 6 and buffer == WHOLE[10:16]
    with pytest.raises(ValueError, match="negative"):
        file.seek(-1)
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")


def test_lines(tiny: Codec, blob: bytes) -> None:
    with memcodec.open(io.BytesIO(blob), codec=tiny) as file:
        assert list(file) == list(io.BytesIO(WHOLE))
    with memcodec.open(io.BytesIO(blob), "rt", encoding="latin-1", newline="", codec=tiny) as file:
        assert file.readline() == WHOLE.decode("latin-1").split("\n")[0] + "\n"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of groups that each call decodes."""
    seen: list[int] = []
    real = decode_batch

    def counting(lm, site, batch, *rest):
        seen.append(len(batch))
        return real(lm, site, batch, *rest)

    monkeypatch.setattr(groups, "decode_batch", counting)
    return seen


def test_no_more_is_decoded_than_is_read(tiny: Codec, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    store_nothing(monkeypatch)
    words, rng = TEXT.split(), random.Random(0)
    text = " ".join(rng.choice(words) for _ in range(3000)).encode()
    blob = tiny.encode(text, site=Readout(0), chunk_tokens=50, context=0, verify=False)
    file = memcodec.open(io.BytesIO(blob), codec=tiny)
    file.seek(len(text) // 2)
    assert decoded == [] and file.read(60) == text[len(text) // 2 :][:60]
    assert sum(decoded) <= 2
    file.seek(len(text) // 2)
    before = sum(decoded)
    assert file.read(60) == text[len(text) // 2 :][:60] and sum(decoded) == before, "what was read last is kept"
    decoded.clear()
    file.seek(0)
    assert file.read() == text
    assert max(decoded) >= 32 and len(decoded) < 30, "what goes on is read in batches"


def test_stored_files_need_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Codec, "load", None)
    path = tmp_path / "x.memz"
    with memcodec.open(path, "wb") as file:
        assert file.write(bytes(range(256))) == 256 and file.write(b"") == 0
        assert file.tell() == 256 and not path.exists()
    with memcodec.open(str(path)) as file:
        assert file.read() == bytes(range(256))
    with pytest.raises(FileExistsError):
        memcodec.open(path, "x")
    with memcodec.open(tmp_path / "y", "xb") as file:
        file.write(b"")
    assert memcodec.decode((tmp_path / "y").read_bytes()) == b""


def test_text_is_written_and_read(tiny: Codec, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with memcodec.open(path, "wt", encoding="utf-8", newline="", codec=tiny, site=Readout(0), context="max") as file:
        for line in TEXT.splitlines(keepends=True):
            file.write(line)
    assert tiny.decode(path.read_bytes()) == TEXT.encode()
    with memcodec.open(path, "rt", encoding="utf-8", newline="", codec=tiny) as file:
        assert list(file) == TEXT.splitlines(keepends=True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-le", "utf-8"])
@pytest.mark.parametrize("mode", ["wt", "xt"])
def test_a_byte_order_mark_is_written_once(tmp_path: Path, encoding: str, mode: str) -> None:
    """As `gzip.open` writes it; with bytes that need no model."""
    text = "\x01\x02" * 25
    with (
        memcodec.open(tmp_path / "x", mode, encoding=encoding) as file,
        gzip.open(tmp_path / "x.gz", mode, encoding=encoding) as plain,
    ):
        for piece in (text, "", text):
            file.write(piece)  # type: ignore[arg-type]
            plain.write(piece)
            file.flush()
    assert memcodec.open(tmp_path / "x").read() == gzip.open(tmp_path / "x.gz").read()  # noqa: SIM115
    with memcodec.open(tmp_path / "x", "rt", encoding=encoding) as file:
        assert file.read() == text * 2


def test_fsspec_writes_a_byte_order_mark(tmp_path: Path) -> None:
    import fsspec

    import memcodec.integrations.fsspec  # noqa: F401 (registers "memz")

    path = str(tmp_path / "x.memz")
    with fsspec.open(path, "wt", encoding="utf-16", compression="infer") as file:
        file.write("\x01")
    with fsspec.open(path, "rt", encoding="utf-16", compression="infer") as file:
        assert file.read() == "\x01"


def test_what_is_written_can_be_changed_until_it_is_closed(tmp_path: Path) -> None:
    """As `zipfile` does, which goes back to the heads of its members."""
    with memcodec.open(tmp_path / "x", "w") as file, zipfile.ZipFile(file, "w") as made:  # type: ignore[type-var,arg-type]
        made.writestr("a", bytes(1000))
        assert file.seekable() and not file.readable()
    with memcodec.open(tmp_path / "x") as file, zipfile.ZipFile(file) as made:  # type: ignore[type-var,arg-type]
        assert made.read("a") == bytes(1000)


@pytest.mark.parametrize("bad", [{"newline": "x"}, {"encoding": "no-such"}, {"errors": "no-such"}], ids=str)
@pytest.mark.parametrize("mode", ["wt", "xt", "rt"])
def test_an_argument_of_text_that_does_not_exist(
    tmp_path: Path, mode: str, bad: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    path = tmp_path / "x"
    if mode == "rt":
        path.write_bytes(memcodec.encode(b"\xff"))
    before = list(tmp_path.iterdir())
    with pytest.raises((ValueError, LookupError)):
        memcodec.open(path, mode, **bad).read()
    gc.collect()
    assert seen == [] and list(tmp_path.iterdir()) == before


def test_targets_that_cannot_be_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codec, "load", None)
    (tmp_path / "file").write_bytes(b"here before")
    for path, kind in {
        tmp_path / "none" / "x": FileNotFoundError,
        tmp_path: IsADirectoryError,
        tmp_path / "file" / "x": NotADirectoryError,
        "": FileNotFoundError,
    }.items():
        for work in (lambda path=path: memcodec.open(path, "wb"), lambda path=path: Archive.create(path, ["a"])):
            with pytest.raises(kind) as caught:
                work()
            assert caught.value.filename == os.fspath(path)
        if path:
            with pytest.raises(kind) as caught:
                replace(Path(path), [b"x"])
            assert caught.value.filename == os.fspath(path)
    with memcodec.open(os.devnull, "w") as file:
        file.write(b"\xff")


def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for setting in ({"context": -1}, {"batch": 0}):
        with pytest.raises(EncodeError, match=": give"):
            memcodec.open(tmp_path / "x", "w", **setting)
    with pytest.raises(TypeError, match="efort: not a setting of an archive"):
        Archive.create(tmp_path / "x", [], efort=5)  # type: ignore[call-arg]
    assert list(tmp_path.iterdir()) == []


def test_files_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for mode in ("wb", "xb", "w", "wt"):
        with memcodec.open(path, mode) as file:
            assert file.name == str(path) and file.mode == (mode if mode != "w" else "wb")
        file = memcodec.open(path)
        assert (file.name, file.mode) == (str(path), "rb")
        path.unlink()
    assert memcodec.open(io.BytesIO(), "w").name == ""


def test_a_file_given_is_not_closed(tiny: Codec) -> None:
    out = io.BytesIO()
    with memcodec.open(out, "w", codec=tiny, site=Readout(0)) as file:
        file.write(TEXT.encode())
    assert not out.closed and tiny.decode(out.getvalue()) == TEXT.encode()
    out.seek(0)
    with memcodec.open(out, codec=tiny) as file:
        assert file.read() == TEXT.encode()
    assert not out.closed and file.closed
    for work in (file.read, lambda: file.write(b"x"), file.readline):
        with pytest.raises(ValueError, match="closed"):
            work()


def test_nothing_is_left_behind_an_error(tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    with pytest.raises(KeyError), memcodec.open(path, "w", codec=tiny) as file:
        file.write(TEXT.encode())
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    file = memcodec.open(path, "w", codec=tiny)
    file.write(b"\xff" * 50)
    with pytest.raises(OSError, match="No space"):
        file.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        memcodec.open(tmp_path / "none" / "x", "w")


def test_an_error_in_text_mode_leaves_what_was_there(tiny: Codec, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"here before")
    with pytest.raises(KeyError), memcodec.open(path, "wt", encoding="utf-8", codec=tiny) as file:
        file.write("part of it")
        raise KeyError
    assert path.read_bytes() == b"here before"
    memcodec.open(path, "wt", encoding="utf-8", codec=tiny).write("nobody closes this")
    gc.collect()
    assert path.read_bytes() == b"here before"
    with pytest.raises(ValueError, match="mode"):
        MemzFile(path, "rb")
    path.unlink()
    with pytest.raises(FileExistsError), memcodec.open(path, "x", codec=tiny) as file:
        path.write_bytes(b"made meanwhile")
    assert path.read_bytes() == b"made meanwhile"


def test_an_archive_that_appears_during_the_work_is_kept(tiny: Codec, tmp_path: Path) -> None:
    path = tmp_path / "x"

    def appears(_: object) -> None:
        path.write_bytes(b"made meanwhile")

    with pytest.raises(FileExistsError, match="overwrite=True"):
        Archive.create(path, DOCUMENTS, codec=tiny, progress=appears)
    assert path.read_bytes() == b"made meanwhile" and [file.name for file in tmp_path.iterdir()] == ["x"]
    assert list(Archive.create(path, DOCUMENTS, codec=tiny, progress=appears, overwrite=True)) == DOCUMENTS


def test_a_document_that_looks_like_an_archive_is_none(tiny: Codec) -> None:
    data = b'{"memcodec":"archive 1"}'
    assert tiny.decode(tiny.encode(data)) == data and memcodec.decode(memcodec.encode(data + b"\xff")) == data + b"\xff"


def test_hostile_headers(tiny: Codec, blob: bytes) -> None:
    length = int.from_bytes(blob[:8], "little")
    header, rest = blob[8 : 8 + length].decode(), blob[8 + length :]
    end = re.findall(r'"data_offsets":\[\d+,(\d+)\]', header)[-1]
    for bad in ("10.5", "-3", "9" * 4400, "true", "1e3", f"{end}.0"):
        text = header.replace(f",{end}]", f",{bad}]").encode()
        file = len(text).to_bytes(8, "little") + text + rest
        for work in (lambda file=file: tiny.decode(file + b"more"), lambda file=file: memcodec.inspect(file)):
            with pytest.raises(FormatError):
                work()


def test_segments_without_bytes_are_refused(tiny: Codec) -> None:
    chunk = container.Chunk(1, b"", container.chunk_checksum(b""))
    parts: list[container.Part] = [container.Segment(0, (chunk,), b""), container.StoredSpan.of(b"hello")]
    file = container.pack(
        container.Container(
            5,
            bytes(16),
            parts,
            container.ModelId.of(tiny.name, tiny.model.identity),
            container.Settings("readout", (0,), 200, 200),
        )
    )
    with pytest.raises(FormatError, match="more of them than bytes"):
        memcodec.open(io.BytesIO(file), codec=tiny)


def test_large_stored_spans_are_not_kept_whole() -> None:
    data = random.Random(0).randbytes(1000) * 20_000
    file = memcodec.open(io.BytesIO(memcodec.encode(data)))
    for place in (4_000_000, 10, 3_999_990, 19_999_999):
        file.seek(place)
        assert file.read(20) == data[place : place + 20]
    with traced() as peak:
        file.seek(0)
        while file.read(1 << 16):
            pass
        assert peak() < 12_000_000


def test_files_with_and_without_a_primer_after_each_other(tiny: Codec) -> None:
    primer = Primer.from_texts([TEXT], 100, tiny)
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        both = tiny.encode(TEXT, site=Readout(0)) + tiny.with_primer(primer).encode(TEXT[::-1], site=Readout(0))
    whole = (TEXT + TEXT[::-1]).encode()
    assert tiny.with_primer(primer).decode(both) == whole
    assert memcodec.open(io.BytesIO(both), codec=tiny, primer=primer).read() == whole
    assert len(inspect_all(both)) == 2


@pytest.mark.parametrize("mode", ["a", "rw", "rbt", "r+", "rr", "q"])
def test_modes_that_are_none(mode: str) -> None:
    with pytest.raises(ValueError, match="mode"):
        memcodec.open("x", mode)


def test_arguments_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="mode with t"):
        memcodec.open("x", "rb", encoding="utf-8")
    with pytest.raises(ValueError, match="for writing only"):
        memcodec.open("x", "rb", context=0)


def test_bad_files_are_os_errors(tiny: Codec, blob: bytes) -> None:
    for data in (b"", b"something else", blob[:-5], blob[:100]):
        with pytest.raises(OSError) as error:
            memcodec.open(io.BytesIO(data))
        assert isinstance(error.value, BadFileError | FormatError) and isinstance(error.value, MemcodecError)
    parsed = container.unpack(blob)
    first = parsed.segments[0]
    changed = container.Segment(first.size, first.chunks, bytes([first.corrections[0] ^ 0x40]) + first.corrections[1:])  # type: ignore[index]
    parts = [changed if part is first else part for part in parsed.parts]
    bad = container.pack(container.Container(parsed.size, parsed.sha256, parts, parsed.model, parsed.settings))
    with pytest.raises(OSError, match="damaged"):
        memcodec.open(io.BytesIO(bad), codec=tiny).read()


def test_the_whole_is_checked_where_it_is_read(tiny: Codec, blob: bytes) -> None:
    parsed = container.unpack(blob)
    bad = container.pack(container.Container(parsed.size, bytes(16), parsed.parts, parsed.model, parsed.settings))
    file = memcodec.open(io.BytesIO(bad), codec=tiny)
    file.seek(5)
    assert file.read() == WHOLE[5:], "a part says nothing of the whole"
    file.seek(0)
    with pytest.raises(BadFileError, match="SHA-256"):
        file.read()


def test_a_read_after_an_error_finds_it_again(tiny: Codec, blob: bytes) -> None:
    """It returned the bytes that had failed, and reading lines ended there as at the end of the file."""
    parsed = container.unpack(blob)
    wrong = replaced(parsed, sha256=bytes(16))
    file = memcodec.open(io.BytesIO(container.pack(wrong)), codec=tiny)
    for size in (len(WHOLE) - 10, 10, 4, -1):
        with pytest.raises(BadFileError, match="SHA-256"):
            while file.read(size):
                pass
    assert file.seek(5) == 5 and file.read(20) == WHOLE[5:25], "a part says nothing of the whole"


@pytest.mark.parametrize("damage", ["checksum", "zstd", "short"])
def test_lines_do_not_end_at_a_stored_span_with_an_error(damage: str) -> None:
    data = b"a line\n" + random.Random(0).randbytes(3_000_000).replace(b"\n", b"")
    parsed = container.unpack(memcodec.encode(data))
    (span,) = parsed.parts
    assert isinstance(span, container.StoredSpan)
    packed = {"checksum": span.packed, "zstd": b"no zstd", "short": bytes(span.packed)[:-3]}[damage]
    method = {"zstd": 1}.get(damage, span.method)
    bad = container.StoredSpan(span.size, method, packed, span.checksum ^ (damage == "checksum"))
    file = memcodec.open(io.BytesIO(container.pack(replaced(parsed, parts=[bad]))))
    for _ in range(3):
        with pytest.raises(BadFileError, match="damaged"):
            for _ in file:
                pass


def test_the_state_after_a_primer_is_computed_once(
    tiny: Codec, blob: bytes, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was computed at every read."""
    primer = Primer.from_texts([TEXT], 100, tiny)
    store_nothing(monkeypatch)
    primed = tiny.with_primer(primer).encode(WHOLE, site=QUICK, chunk_tokens=50, context=0)
    made = list[int]()
    original = LoadedModel.with_primer_tokens

    def counting(model: LoadedModel, *tokens: np.ndarray) -> LoadedModel:
        made.append(len(tokens))
        return original(model, *tokens)

    monkeypatch.setattr(LoadedModel, "with_primer_tokens", counting)
    monkeypatch.setattr("memcodec.files.decoded._KEPT_BYTES", 0)
    file = memcodec.open(io.BytesIO(primed), codec=tiny, primer=primer)
    for place in range(0, len(WHOLE), 200):
        file.seek(place)
        assert file.read(10) == WHOLE[place : place + 10]
    assert made == [1]
    file = memcodec.open(io.BytesIO(blob + primed + blob), codec=tiny, primer=primer)
    assert file.read() == WHOLE * 3 and made == [1, 1]
    made.clear()
    same = Primer.from_bytes(primer.to_bytes())
    codec = tiny.with_primer(primer)
    assert memcodec.open(io.BytesIO(primed), codec=codec, primer=same).read() == WHOLE and made == [1]
    model = codec_for(container.unpack(primed).needs, codec, primer=same)  # type: ignore[arg-type]
    assert model is codec, "the primers are equal"


def test_the_binary_file_of_a_text_file_can_be_taken(tmp_path: Path) -> None:
    """What was written to it was lost without an error when the text file went away."""
    text = memcodec.open(tmp_path / "a", "wt")
    text.write("a")
    binary = text.detach()
    del text
    gc.collect()
    binary.write(b"b")
    binary.close()
    assert memcodec.decode((tmp_path / "a").read_bytes()) == b"ab"


def test_files_one_after_the_other(tiny: Codec, blob: bytes) -> None:
    stored = memcodec.encode(b"\x01\x02\x03")
    both = stored + blob + stored
    whole = b"\x01\x02\x03" + WHOLE + b"\x01\x02\x03"
    assert tiny.decode(both) == whole
    file = memcodec.open(io.BytesIO(both), codec=tiny)
    file.seek(len(WHOLE) - 100)
    assert file.read(200) == whole[len(WHOLE) - 100 :][:200]
    file.seek(0)
    assert file.read() == whole
    with pytest.raises(FormatError, match="5 trailing bytes after the end of the file"):
        tiny.decode(both + b"12345")
    assert memcodec.decode(stored * 2) == b"\x01\x02\x03" * 2


class Counted(list[Any]):
    """A list that counts how often one of its items is read."""

    count = 0

    def __getitem__(self, i: Any) -> Any:
        self.count += 1
        return super().__getitem__(i)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def test_each_of_many_files_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of each read went through all documents: 4,000 files took 5 seconds."""
    documents: list[Counted] = []
    make = _WholeChecks.__init__

    def counting(self: _WholeChecks, files: list[container.Container]) -> None:
        make(self, files)
        documents.append(Counted(self._documents))
        self._documents = documents[-1]

    monkeypatch.setattr(_WholeChecks, "__init__", counting)
    empty, one, other = (memcodec.encode(data) for data in (b"", b"\xff\0", b"\xff\1\2"))
    assert memcodec.open(io.BytesIO((empty + one + other + empty) * 200)).read() == b"\xff\0\xff\1\2" * 200
    assert len(documents) == 1 and documents[0].count == len(documents[0]) == 400
    wrong = other.replace(container.unpack(other).sha256, bytes(16))[:-4]
    file = memcodec.open(io.BytesIO(empty + one + wrong + zlib.crc32(wrong).to_bytes(4, "little") + one))
    assert file.read(2) == b"\xff\0"
    for _ in range(2):
        with pytest.raises(BadFileError, match="do not match the original's SHA-256"):
            file.read(3)


def test_many_documents_at_once(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    store_nothing(monkeypatch)
    documents = [TEXT, b"", TEXT[:100] * 3, bytes(200), WHOLE, "é" * 200]
    blobs = list(tiny.encode_many(documents, site=QUICK, chunk_tokens=50))
    data = [x.encode() if isinstance(x, str) else x for x in documents]
    assert tiny.decode_many(blobs, batch=3) == data
    assert [tiny.decode(blob) for blob in blobs] == data
    assert list(tiny.encode_many([])) == [] and tiny.decode_many([]) == []
    mixed = [*blobs, tiny.encode(TEXT, site=Readout(0), context=5)]
    assert tiny.decode_many(mixed) == [*data, TEXT.encode()]


# ---- archives

DOCUMENTS = [line.encode() for line in TEXT.splitlines()] + [b"", bytes(range(256)), TEXT.encode()]


def test_archives(tiny: Codec, tmp_path: Path) -> None:
    path = tmp_path / "a"
    made = Archive.create(path, DOCUMENTS, codec=tiny)
    assert list(made) == DOCUMENTS
    found = Archive(path, tiny)
    assert len(found) == len(DOCUMENTS) and found.keys() == [] and list(found) == DOCUMENTS
    assert found[1] == DOCUMENTS[1] and found[-1] == DOCUMENTS[-1] and found[1:3] == DOCUMENTS[1:3]
    for bad in (len(DOCUMENTS), -len(DOCUMENTS) - 1):
        with pytest.raises(IndexError):
            found[bad]
    with pytest.raises(KeyError):
        found["key"]
    found.append(["more", "and more"])
    assert list(Archive(path, tiny)) == list(found) == [*DOCUMENTS, b"more", b"and more"]
    with pytest.raises(EncodeError, match="keys"):
        found.append(["x"], ["key"])
    with pytest.raises(FileExistsError, match="overwrite=True"):
        Archive.create(path, [], codec=tiny)
    empty = Archive.create(path, [], codec=tiny, overwrite=True)
    assert len(empty) == 0 and list(empty) == []
    with pytest.raises(FormatError, match="an archive of many documents"):
        memcodec.decode(path.read_bytes())


def test_archives_with_keys_and_a_primer(tiny: Codec, tmp_path: Path) -> None:
    path, primer = tmp_path / "a", Primer.from_texts([TEXT], 200, tiny)
    keys = [f"dir/ключ {i}" for i in range(len(DOCUMENTS))]
    Archive.create(path, DOCUMENTS, keys, codec=tiny, primer=primer, memory_share=0.2, effort=64)
    found = Archive(path, tiny)
    assert found.keys() == keys and "dir/ключ 1" in found.by_key and found["dir/ключ 1"] == DOCUMENTS[1]
    assert list(found) == DOCUMENTS and found.primer is not None
    found.append([b"new"], ["new"])
    assert Archive(path, tiny)["new"] == b"new"
    for bad in (["new"], ["a", "b"], ["a\0b"], ["\ud800"]):
        with pytest.raises(EncodeError, match="key"):
            found.append([b"x"], bad)
    other = Archive(path, tiny)
    found.append([b"newer"], ["newer"])
    with pytest.raises(EncodeError, match="changed since it was read"):
        other.append([b"x"], ["x"])
    assert Archive(path, tiny)["newer"] == b"newer"
    Archive.create(path, DOCUMENTS, codec=tiny, primer=primer, with_primer=False, overwrite=True)
    with pytest.raises(PrimerMismatchError):
        list(Archive(path, tiny))
    assert list(Archive(path, tiny, primer)) == DOCUMENTS


def test_an_archive_is_a_sequence_of_documents(tiny: Codec, tmp_path: Path, decoded: list[int]) -> None:
    documents = [b"y", b"a", b"\xff" * 9, b"y", TEXT.encode()]
    found = Archive.create(tmp_path / "a", documents, codec=tiny)
    assert isinstance(found, Sequence) and list(reversed(found)) == documents[::-1]
    decoded.clear()
    for document in [*documents, b"none", b"", 5, None]:
        assert (document in found, found.count(document)) == (document in documents, documents.count(document))
        for bounds in ((), (1,), (1, 3), (-2,), (2, -1)):
            try:
                expected = documents.index(document, *bounds)  # type: ignore[arg-type]
            except ValueError:
                with pytest.raises(ValueError, match="no such document"):
                    found.index(document, *bounds)
            else:
                assert found.index(document, *bounds) == expected
    assert bytearray(b"y") in found and found[np.int64(1)] == b"a"
    decoded.clear()
    assert b"neither of them" not in found and decoded == [], "the checksums say that"
    for bad in ("y", "key"):
        with pytest.raises(TypeError, match="by_key"):
            bad in found  # noqa: B015
    with pytest.raises(TypeError):
        found[1.0]  # type: ignore[call-overload]
    assert dict(found.by_key) == {} and "y" not in found.by_key


def test_keys_are_a_mapping(tiny: Codec, tmp_path: Path, decoded: list[int]) -> None:
    found = Archive.create(tmp_path / "a", [b"one", b"two"], ["a", "b"], codec=tiny)
    decoded.clear()
    assert list(found.by_key) == found.keys() == ["a", "b"] and len(found.by_key) == 2 and decoded == []
    assert "a" in found.by_key and "c" not in found.by_key and 0 not in found.by_key
    assert dict(found.by_key) == {"a": b"one", "b": b"two"} and found.by_key.get("c") is None
    for missing in ("c", 0):
        with pytest.raises(KeyError):
            found.by_key[missing]  # type: ignore[index]


def test_what_is_no_list_of_documents_or_keys_is_a_type_error(tiny: Codec, tmp_path: Path) -> None:
    found = Archive.create(tmp_path / "a", [b"one"], ["a"], codec=tiny)
    bad: list[tuple[Any, Any, str]] = [
        ("abc", None, "documents: give a list of them, not one str"),
        (b"abc", None, "documents: give a list of them, not one bytes"),
        ([b"x", b"y"], "ab", "keys: give a list of them, not one str"),
        ([b"x", b"y"], [1, 2], r"keys: give str, not int \(1\)"),
        ([b"x"], [b"k"], "keys: give str, not bytes"),
    ]
    for documents, keys, message in bad:
        for work in (lambda *given: Archive.create(tmp_path / "b", *given, codec=tiny), found.append):
            with pytest.raises(TypeError, match=message):
                work(documents, keys)
    assert not (tmp_path / "b").exists() and len(found) == 1
    assert Archive.create(tmp_path / "b", iter([b"x"]), iter(["k"]), codec=tiny).keys() == ["k"]
    assert Archive.create(tmp_path / "c", [b"x", b"y"], np.array(["k", "l"]), codec=tiny).keys() == ["k", "l"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", ""], "document 1: its key is empty: give it one, or give no keys at all"),
        (["a", "k" * 4097], "document 1: its key has 4,097 bytes: keys have 4,096 at most: shorten it"),
        (["a", "b\0"], r"document 1: its key 'b\\x00' contains NUL: remove it"),
        (["a", "\ud800"], r"document 1: its key '\\ud800' is not valid Unicode: give it another"),
        (["a"], "1 key for 2 documents: give each its own"),
    ],
    ids=["empty", "long", "with NUL", "not Unicode", "few"],
)
def test_keys_that_could_not_be_read_back_are_refused(
    tiny: Codec, tmp_path: Path, keys: list[str], message: str
) -> None:
    with pytest.raises(EncodeError, match=message):
        Archive.create(tmp_path / "a", ["x", "y"], keys, codec=tiny)
    assert not list(tmp_path.iterdir())
    longest = ["k" * 4096, "l" * 4096]
    assert Archive.create(tmp_path / "a", ["x", "y"], longest, codec=tiny).keys() == longest


def test_documents_that_are_stored_are_read_one_at_a_time(tiny: Codec, tmp_path: Path) -> None:
    documents = [b"\xff" * ((1 << 20) - i) for i in range(32)]
    found = Archive.create(tmp_path / "a", documents, codec=tiny, verify=False)
    with traced() as peak:
        assert all(ours == theirs for ours, theirs in zip(found, documents, strict=True))
        assert peak() < 16 << 20


def test_documents_of_many_tokens_are_decoded_in_smaller_batches(
    tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [TEXT[i : i + 40].encode() for i in range(0, 360, 40)]
    found = Archive.create(tmp_path / "a", documents, codec=tiny)
    real, batches = archive.decode, []

    def noted(model: LoadedModel, frames: list[bytes], *args: Any, **options: Any) -> Any:
        batches.append(len(frames))
        return real(model, frames, *args, **options)

    monkeypatch.setattr(archive, "decode", noted)
    assert list(found) == documents and batches == [9]
    monkeypatch.setattr(archive, "_TOKENS_TOGETHER", 2 * max(archive.stated_tokens(found._frame(i)) for i in range(9)))
    batches.clear()
    assert list(found) == documents and found[2:4] == documents[2:4]
    assert len(batches) > 2 and max(batches) < 9
    monkeypatch.setattr(archive, "_TOKENS_TOGETHER", 1)
    batches.clear()
    assert list(found) == documents and batches == [1] * 9
    same = Archive.create(tmp_path / "b", documents[:1] * 5, codec=tiny)
    batches.clear()
    assert list(same) == documents[:1] * 5 and batches == [5], "equal documents are decoded once, and counted once"


def test_another_context_of_an_archive_is_refused(tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_CONTEXT", 100)
    Archive.create(tmp_path / "a", ["x"], codec=tiny)
    monkeypatch.undo()
    with pytest.raises(FormatError, match="damaged archive: its documents have an unknown context"):
        list(Archive(tmp_path / "a", tiny))


def test_keys_are_one_zstd_frame(tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes after the frame were ignored."""
    real = archive.pack_keys
    monkeypatch.setattr(archive, "pack_keys", lambda keys: real(keys) + b"x")
    with pytest.raises(FormatError, match="damaged archive: its keys cannot be read"):
        Archive.create(tmp_path / "a", ["x"], ["k"], codec=tiny)


def test_append_says_whether_the_archive_has_keys(tiny: Codec, tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="the archive has keys: give one for each document"):
        Archive.create(tmp_path / "a", ["x"], ["k"], codec=tiny).append(["y"])
    with pytest.raises(EncodeError, match="the archive has no keys: give none"):
        Archive.create(tmp_path / "b", ["x"], codec=tiny).append(["y"], ["k"])


def test_archives_pickle_as_their_path_and_codec(tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    primer = Primer.from_texts([TEXT], 40, tiny)
    Archive.create(tmp_path / "a", DOCUMENTS, codec=tiny, primer=primer, with_primer=False)
    monkeypatch.chdir(tmp_path)
    found = Archive("a", tiny, primer)
    found.batch = 3
    monkeypatch.chdir("/")
    pickled = pickle.dumps(found)
    for again in (pickle.loads(pickled), copy.deepcopy(found), copy.copy(found)):
        assert list(again) == DOCUMENTS and again.batch == 3 and again.name == found.name and len(pickled) < 3000
    Archive(tmp_path / "a", tiny, primer).append([b"more"])
    with pytest.raises(FormatError, match="changed since the archive was pickled"):
        pickle.loads(pickled)
    without = Archive.create(tmp_path / "b", [b"x"], codec=tiny)
    without._codec = None
    assert pickle.loads(pickle.dumps(without))._codec is None


def test_documents_that_are_the_same_are_kept_and_decoded_once(tiny: Codec, tmp_path: Path, decoded: list[int]) -> None:
    pieces = {TEXT[first:last].encode() for first in range(0, 900, 100) for last in range(first + 100, 900, 100)}
    by_the_lm = (piece for piece in sorted(pieces) if tiny.encode_frame(piece)[0] < 252)
    text, other = next(by_the_lm), next(by_the_lm)
    documents = [text, other, text, b"", text, b"", other]
    path, once = tmp_path / "a", tmp_path / "once"
    Archive.create(once, [text, other, b""], codec=tiny)
    decoded.clear()
    made = Archive.create(path, documents, codec=tiny, verify="steps")
    assert sum(decoded) == 2, "each is verified once"
    assert path.stat().st_size - once.stat().st_size < 16
    decoded.clear()
    assert list(made) == documents and list(reversed(made)) == documents[::-1]
    assert sum(decoded) == 4
    decoded.clear()
    assert made.count(text) == 3 and made.index(other, 2) == 6 and sum(decoded) == 2
    assert [made[i] for i in range(7)] == documents and made[-1:] == [other]
    sizes = [made.frame_size(i) for i in range(7)]
    assert sizes[2:] == [0, sizes[3], 0, 0, 0] and min(sizes[0], sizes[1], sizes[3]) > 0
    made.append([other, b"new", b"new", text])
    again = Archive(path, tiny)
    assert list(again) == [*documents, other, b"new", b"new", text]
    assert [again.frame_size(i) for i in (7, 9, 10)] == [0, 0, 0]
    assert path.stat().st_size - once.stat().st_size < 16 + 16


def test_documents_that_are_the_same_take_a_few_bits_each(tiny: Codec, tmp_path: Path) -> None:
    for count in (1, 1000):
        Archive.create(tmp_path / str(count), [b"\xff\xfe"] * count, codec=tiny)
    assert list(Archive(tmp_path / "1000", tiny)) == [b"\xff\xfe"] * 1000
    more = (tmp_path / "1000").stat().st_size - (tmp_path / "1").stat().st_size
    assert 0 < more < 420  # 3 bits each, the number of bits of the length of a frame
    Archive.create(tmp_path / "keys", [b"x", b"x"], ["a", "b"], codec=tiny)
    assert Archive(tmp_path / "keys", tiny).by_key["b"] == b"x"


@pytest.mark.parametrize(
    ("lengths", "sources", "message"),
    [
        ([0, 4], [1], "document 0 refers to a document that has no frame before it"),
        ([4, 0], [1], "document 1 refers to a document that has no frame"),
        ([4, 0], [5], "document 1 refers to a document that has no frame"),
        ([4, 0, 0], [0, 1], "document 2 refers to a document that has no frame"),
        ([0], [], "ends too early"),
        ([4, 0], [1 << 60], "document 1 refers to a document that has no frame"),
        ([5, 0], [0], "lengths do not add up"),
        ([4, 0], [], "ends too early"),
    ],
)
def test_hostile_repeats_in_archives(
    tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int], sources: list[int], message: str
) -> None:
    """An index with a correct checksum, and documents that are the same as others that cannot be meant."""
    columns = iter([lengths, sources])

    def pack_column(_: Sequence[int]) -> bytes:
        values = next(columns)
        return container.pack_column(values) if values else b""

    monkeypatch.setattr(archive, "pack_column", pack_column)
    made = archive._pack(
        container.ModelId.of(tiny.name, tiny.model.identity), container.Settings("readout", (0,), context=1 << 15), (),
        [b"\xffa00"] + [b"\xffa00"] * (len(lengths) > 1) + [b""] * (len(lengths) - 2), b"",
    )  # fmt: skip
    (tmp_path / "a").write_bytes(made)
    with pytest.raises(FormatError, match=message):
        Archive(tmp_path / "a", tiny)


def test_more_documents_than_an_index_has_room_for_are_refused(
    tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "pack_column", lambda values: container.varint(0) + b"\0")
    made = archive._pack(
        container.ModelId.of(tiny.name, tiny.model.identity), container.Settings("readout", (0,), context=1 << 15), (),
        [b"\xffa00"] * 5000, b"",
    )  # fmt: skip
    (tmp_path / "a").write_bytes(made)
    with pytest.raises(FormatError, match="more documents than the file has room for"):
        Archive(tmp_path / "a", tiny)


def archive_of(index: bytes) -> bytes:
    """An archive with this index, from the number of documents on, and a correct checksum."""
    body = bytes(8) + container.pack_settings(container.Settings("readout", (0,), context=1 << 15)) + index
    entry = {"dtype": "U8", "shape": [len(body) + 4], "data_offsets": [0, len(body) + 4]}
    text = json.dumps(
        {"__metadata__": {"memcodec": "archive 1", "model": "m"}, "archive": entry}, separators=(",", ":")
    )
    blob = len(text).to_bytes(8, "little") + text.encode() + body
    return blob + zlib.crc32(blob).to_bytes(4, "little")


@pytest.mark.parametrize("keys", [False, True])
def test_the_index_of_an_archive_takes_little_memory(tmp_path: Path, keys: bool) -> None:
    """It took 440 bytes of memory for each byte of the file, and a wide character four times the bytes of all keys."""
    count, path, names = 256 if keys else 1 << 18, tmp_path / "a", b""
    if keys:
        named = [f"{i:04x}" * 1000 for i in range(255)] + ["\U0001f600"]
        names = zstandard.ZstdCompressor().compress("\0".join(named).encode())
    columns = [container.pack_column([0, 0]), bytes(count)]
    path.write_bytes(archive_of(container.varint(count) + container.varint(len(names)) + names + b"".join(columns)))
    with traced() as peak:
        with pytest.raises(FormatError, match="document 0 refers to a document that has no frame"):
            Archive(path)
        assert peak() < ((6 << 20) if keys else 100 * count)


def test_more_documents_than_a_reader_accepts(tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    made = Archive.create(path, [b"x"] * 3, codec=tiny)
    monkeypatch.setattr(archive_index, "MAX_DOCUMENTS", 2)
    with pytest.raises(FormatError, match="more documents than the file has room for"):
        Archive(path)
    with pytest.raises(EncodeError, match="4 documents: an archive has 2 at most"):
        made.append([b"y"])
    with pytest.raises(EncodeError, match="3 documents: an archive has 2 at most"):
        Archive.create(tmp_path / "b", [b"x"] * 3, codec=tiny)


def test_the_index_of_an_archive_is_small(tiny: Codec, tmp_path: Path) -> None:
    documents = [f"message {i} of {i * 7919 % 1000}".encode() for i in range(1000)]
    Archive.create(tmp_path / "a", documents, codec=tiny)
    bare = sum(map(len, tiny.encode_frames(documents, memcodec.FrameSettings(checksum=0))))
    assert (tmp_path / "a").stat().st_size - bare < 5 * 1000


def test_damaged_archives(tiny: Codec, llama: Codec, tmp_path: Path) -> None:
    path = tmp_path / "a"
    Archive.create(path, DOCUMENTS, ["a" + str(i) for i in range(len(DOCUMENTS))], codec=tiny)
    blob = path.read_bytes()
    with pytest.raises(ModelMismatchError):
        list(Archive(path, llama))
    for cut in range(0, len(blob), 7):
        path.write_bytes(blob[:cut])
        with pytest.raises((FormatError, ChecksumError)):
            Archive(path)
    rng = random.Random(0)
    for _ in range(300):
        bad = bytearray(blob)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises((FormatError, ChecksumError)):
            Archive(path)
    path.write_bytes(memcodec.encode(b"\xff"))
    with pytest.raises(FormatError, match="not an archive"):
        Archive(path)


def damage_last_document(path: Path) -> None:
    """Change the checksum of the last document of an archive, but not that of the file."""
    blob = bytearray(path.read_bytes()[:-4])
    blob[-1] ^= 1
    path.write_bytes(blob + zlib.crc32(blob).to_bytes(4, "little"))


@pytest.mark.parametrize(("keys", "name"), [("", "4"), ("abcde", "'e'")])
def test_errors_name_the_archive_and_the_document(
    tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str, name: str
) -> None:
    """They had the number of a frame within a batch of 256."""
    monkeypatch.setattr(archive, "_READ_TOGETHER", 3)
    path = tmp_path / "a"
    Archive.create(path, [f"document {n}" for n in range(5)], list(keys), codec=tiny)
    damage_last_document(path)
    found = Archive(path, tiny)
    for read in (lambda: list(found), lambda: found[4], lambda: found[-1:], lambda: found.read([4, 0])):
        with pytest.raises(ChecksumError, match=f"^{re.escape(str(path))}: document {name}: a frame does not match"):
            list(read())
    found.name = "the archive"
    with pytest.raises(ChecksumError, match=f"^the archive: document {name}: "):
        found[4]
    assert found[:4] == [f"document {n}".encode() for n in range(4)]
    found.batch = 0
    with pytest.raises(EncodeError, match="batch 0"):
        found[0]


def test_hostile_archives(tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives with correct checksums and wrong numbers."""
    path = tmp_path / "a"
    Archive.create(path, DOCUMENTS, codec=tiny)
    blob = path.read_bytes()
    rng = random.Random(1)
    for _ in range(400):
        bad = bytearray(blob[:-4])
        bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bytes(bad) + zlib.crc32(bad).to_bytes(4, "little"))
        try:
            found = Archive(path, tiny)
            monkeypatch.setattr(found, "_frames", found._frames[:2000])
            [found[i] for i in range(min(len(found), 8)) if len(found._frame(i)) < 200 and found._frame(i)[0] < 100]
        except MemcodecError as error:
            assert "\n" not in str(error)
