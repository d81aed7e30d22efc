"""Samples of the tests of `make reliability` (docs/reliability.md), and what fuzzing starts from."""

import importlib
import json
import pickle
import shutil
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import memcodec
from memcodec.codec import Codec
from memcodec.lm.compiled import kernels_folder

from .conftest import TEXT, store_nothing

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TINY = ROOT / "spec" / "vectors" / "tiny" / "model"
Scripts = Callable[[str], Any]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """Import a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(str(TINY), device="cpu")


@pytest.mark.parametrize("kind", ["file", "file with references", "stored file", "archive", "primer"])
def test_flipped_bits(script: Scripts, kind: str) -> None:
    row = script("faults").judge(kind, script("faults").flips, kind, 40)
    assert row["cases"] == 40 and row["wrong"] == []


def test_random_corruptions(script: Scripts) -> None:
    row = script("faults").judge("corruptions", script("faults").corruptions, 90)
    assert row["cases"] == 90 and row["wrong"] == []
    assert row["outcomes"]["refused"] > 70


def test_files_that_are_cut_give_back_what_is_there(script: Scripts) -> None:
    row = script("faults").judge("cuts", script("faults").cuts, 12)
    assert row["cases"] == 12 and row["wrong"] == []


def test_faults_are_noticed_by_their_judge(script: Scripts) -> None:
    """Its outcome for a reader that returns wrong bytes, raises another error, or hangs."""
    faults, isolated = script("faults"), script("isolated")
    assert faults.checked(lambda: b"other", b"right")() == "WRONG BYTES"
    assert faults.checked(lambda: [][0], b"right")() == "raises IndexError"
    for word, memory in (("WRONG BYTES", 0), ("hangs", 0), ("refused", faults.MEMORY + 1)):
        assert faults.is_wrong(isolated.Outcome("", word, 0.0, memory))


def test_the_table_says_what_is_promised_of_each_kind(script: Scripts, tmp_path: Path) -> None:
    kinds = script("faults").KINDS
    row = {"cases": 7, "outcomes": {"refused": 7}, "longest": 0.0, "memory": 0, "wrong": []}
    (tmp_path / "faults.json").write_text(json.dumps({"rows": [{"what": kind, **row} for kind in kinds]}))
    table = script("reliability").render(tmp_path, {}).splitlines()
    assert sum("| 7 | 0 | the same bytes, or an error of one line |" in line for line in table) == len(kinds)


def test_hostile_files(script: Scripts) -> None:
    rows = script("hostile").judge(large=False)
    assert len(rows) > 50
    assert [row for row in rows if row["wrong"]] == []


def test_a_watch_sees_what_is_touched(script: Scripts, tmp_path: Path) -> None:
    watch = script("hostile").Watch(tmp_path)
    assert watch.around(lambda: Path("/etc/passwd").read_bytes())() == "opens /etc/passwd"
    assert watch.around(lambda: pickle.loads(pickle.dumps(Path)))() == "pickle.find_class"
    assert watch.around(lambda: socket.getaddrinfo("localhost", 1))() == "socket.getaddrinfo"
    assert watch.around(lambda: None)() == "reads"


def test_threads_that_share_a_codec(script: Scripts, codec: Codec) -> None:
    assert script("concurrency").threads(codec, 3)["wrong"] == []


def test_processes_that_start_together_make_one_cache(
    script: Scripts, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They convert the model and compile the kernels of one package; the others, which take minutes, are there."""
    store_nothing(monkeypatch)
    assert codec.decode(codec.encode(TEXT)) == TEXT.encode()  # compiles them, if nothing has before
    ours = kernels_folder()
    shutil.copytree(ours, tmp_path / "cache" / "kernels" / ours.name, ignore=shutil.ignore_patterns("document_*"))
    concurrency = script("concurrency")
    monkeypatch.setattr(concurrency.tempfile, "TemporaryDirectory", lambda: nullcontext(str(tmp_path)))
    assert concurrency.processes()["wrong"] == []
    assert len(list((tmp_path / "cache" / "exact").glob("*.safetensors"))) == 1
    assert list((tmp_path / "cache").rglob("repeats.*.nbi"))


def test_environments_write_and_read_the_same(script: Scripts, tmp_path: Path) -> None:
    """numba and torch with threads and batches; test_exact_lm.py tests instruction sets, benchmarks/matrix.py all."""
    matrix = script("matrix")
    some = [matrix.ENVIRONMENTS[1], next(e for e in matrix.ENVIRONMENTS if e.kernels == "torch")]
    text = {"English": b"The same bits on every machine, or an error. " * 8}
    found = matrix.judge(some, text, str(TINY), tmp_path)
    assert [row["failed"] for row in found["rows"]] == [0, 0]
    assert found["files"] == 1 and found["rows"][1]["decoded"] == 1


def test_the_matrix_sees_a_difference(script: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = script("matrix")
    written: list[Path] = []

    def child(environment: Any, model: str, names: dict[str, str], way: str, folder: Path) -> dict[str, str]:
        found = {}
        for name in names:
            path = folder / f"{len(written)}"
            path.write_bytes((ROOT / "spec/vectors/empty.memz").read_bytes() if way == "encode" else b"other")
            written.append(path)
            found[name] = str(path)
        return found

    monkeypatch.setattr(matrix, "child", child)
    found = matrix.judge(list(matrix.ENVIRONMENTS[:2]), {"English": b"text"}, str(TINY), tmp_path)
    assert [row["failed"] for row in found["rows"]] == [1, 1]


def test_what_fuzzing_starts_from_is_accepted(script: Scripts, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except one that needs a primer, and frames, most of which are of the built-in model."""

    class Never(Exception):
        pass

    fuzz = script("fuzz")
    seeds = [b"\0" + fuzz.with_header(data[1:]) if data[:1] == b"\1" else data for data in fuzz.seeds()]
    monkeypatch.setattr(fuzz, "TOKENS", 1000)  # so that all are decoded
    monkeypatch.setattr(memcodec, "MemcodecError", Never)  # so that `read` catches nothing
    refused = []
    for data in seeds:
        try:
            fuzz.read(data, codec)
        except memcodec.PrimerMismatchError:
            assert data[:1] in b"\0\2\3"
        except memcodec.errors.MemcodecError:
            refused.append(data)
    assert {data[:1] for data in seeds} == {b"\0", b"\2", b"\3", b"\4", b"\5"}
    assert {data[:1] for data in refused} <= {b"\5"} and len(refused) < sum(data[:1] == b"\5" for data in seeds)


def test_fuzzing_instruments_what_reads_bytes(script: Scripts) -> None:
    fuzz = script("fuzz")
    for name in fuzz.INSTRUMENTED:
        assert fuzz.functions_of(name), name
    names = {function.__name__ for name in fuzz.INSTRUMENTED for function in fuzz.functions_of(name)}
    assert {"unpack", "varint", "read_places", "unpack_keys", "from_bytes", "decode"} <= names
