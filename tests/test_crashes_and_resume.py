"""Killed processes, full disks, and the next run: an incomplete file is never taken for a complete one."""

import errno
import importlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
import pytest

import memcodec
from memcodec import EncodeError, Journal, Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.coding.corrections import EncodedGroup
from memcodec.engines import local
from memcodec.groups import encode_all
from memcodec.storage import journal, write

from .conftest import TEXT, Run, listen, store_nothing
from .test_cli import PROGRAM, names, refused

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LONG = (TEXT * 12).encode()
SETTINGS = {"chunk_tokens": 40, "context": 0, "site": Readout(0.1, 32)}


@pytest.fixture(autouse=True)
def all_is_carried() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        yield


class Killed(BaseException):
    """An exception that no handler of memcodec catches."""


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the encoder stop once, after a number of groups."""
    real = encode_all

    def arrange(count: int) -> None:
        def encode(*args: object, **named: object) -> Iterator[EncodedGroup]:
            for number, coded in enumerate(real(*args, **named)):  # type: ignore[arg-type]
                if number == count:
                    raise Killed
                yield coded

        monkeypatch.setattr(local, "encode_all", encode)

    return arrange


# ---- side files


@pytest.mark.parametrize("count", [0, 1, 33, 40])
def test_an_encoder_goes_on_and_gives_the_same(
    tiny: Codec, tmp_path: Path, count: int, dies_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.encode(LONG, **SETTINGS)
    assert len(container.unpack(whole).groups) > 40
    side = tmp_path / "side"
    dies_after(count)
    with pytest.raises(Killed), Journal(side) as kept:
        tiny.encode(LONG, **SETTINGS, journal=kept)
    monkeypatch.undo()
    with Journal(side) as kept:
        assert tiny.encode(LONG, **SETTINGS, journal=kept) == whole
        assert kept.groups == count
        assert side.exists()
    assert not side.exists()


def test_any_cut_or_damage_of_a_side_file_costs_groups_alone(tiny: Codec, tmp_path: Path) -> None:
    whole = tiny.encode(LONG, **SETTINGS)
    side = tmp_path / "side"
    with pytest.raises(Killed), Journal(side) as kept:
        tiny.encode(LONG, **SETTINGS, journal=kept)
        raise Killed
    full = side.read_bytes()
    rng = np.random.default_rng(0)
    groups = []
    for place in [*rng.integers(60, len(full), 6).tolist(), len(full)]:
        flipped = bytearray(full)
        if place < len(full):
            flipped[place] ^= 4
        for found in (full[:place], bytes(flipped)):
            side.write_bytes(found)
            with Journal(side) as kept:
                assert tiny.encode(LONG, **SETTINGS, journal=kept) == whole
                groups.append(kept.groups)
    assert max(groups) == len(container.unpack(whole).groups) and min(groups) < max(groups)


def test_vectors_go_on_in_steps_of_what_is_fitted_together(
    tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_nothing(monkeypatch)
    monkeypatch.setattr("memcodec.groups.FIT_CHUNKS", 3)
    monkeypatch.setattr("memcodec.codec.FIT_CHUNKS", 3)
    settings = {"site": Prompt(steps=3), "chunk_tokens": 12}
    data, side = TEXT[:300].encode(), tmp_path / "side"
    whole = tiny.encode(data, **settings)
    assert len(container.unpack(whole).groups) > 8
    with pytest.raises(Killed), Journal(side) as kept:
        tiny.encode(data, **settings, journal=kept)
        raise Killed
    side.write_bytes(side.read_bytes()[:-1])
    with Journal(side) as kept:
        assert tiny.encode(data, **settings, journal=kept) == whole
        assert kept.groups % 3 == 0 and 0 < kept.groups < len(container.unpack(whole).groups)


@pytest.mark.parametrize("change", ["input", "settings"])
def test_a_side_file_of_something_else_is_refused(tiny: Codec, tmp_path: Path, change: str) -> None:
    side = tmp_path / "side"
    with pytest.raises(Killed), Journal(side) as kept:
        tiny.encode(LONG, **SETTINGS, journal=kept)
        raise Killed
    before = side.read_bytes()
    data, settings = (LONG[1:], SETTINGS) if change == "input" else (LONG, SETTINGS | {"chunk_tokens": 50})
    with pytest.raises(EncodeError, match="belongs to another input or other settings"), Journal(side) as kept:
        tiny.encode(data, **settings, journal=kept)
    assert side.read_bytes() == before


def test_a_side_file_is_one_process_s(tmp_path: Path) -> None:
    side = tmp_path / "side"
    with Journal(side) as kept:
        kept.begin(b"key")
        with pytest.raises(EncodeError, match="another process"), Journal(side):
            raise AssertionError
        assert side.exists()
    assert not side.exists()


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_side_file_that_another_process_removes_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made_again: bool
) -> None:
    """Between opening and locking it: finished work was written into a file without a name."""
    side, removed = tmp_path / "side", list[Path]()

    def finishes(file: BinaryIO) -> bool | None:
        if not removed:
            side.rename(tmp_path / "removed")
            removed.append(side)
            if is_made_again:
                side.touch()
        return write.hold(file)

    monkeypatch.setattr(journal, "hold", finishes)
    with pytest.raises(Killed), Journal(side) as kept:
        kept.begin(b"key")
        raise Killed
    assert journal.is_side_file(side) and not (tmp_path / "removed").read_bytes()


def test_a_file_that_is_no_side_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "side").write_text("a diary")
    with pytest.raises(EncodeError, match="not a side file"), Journal(tmp_path / "side"):
        raise AssertionError
    journal.discard(tmp_path / "side")
    assert (tmp_path / "side").read_text() == "a diary"


def test_resume_on_the_command_line(
    run: Run, llama_folder: Path, dies_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a").write_bytes(LONG)
    usual = ["compress", "a", "--model", llama_folder, "--chunk-tokens", 40, "--context", 0, "--device", "cpu"]
    assert run(*usual, "-o", "whole").exit_code == 0
    monkeypatch.setattr("memcodec_cli.compress.SIDE_FILE_BYTES", 100)
    dies_after(20)
    with pytest.raises(Killed):
        run(*usual, "--resume")
    monkeypatch.setattr(local, "encode_all", _REAL)
    assert names() == ["a", "a.memz.part", "whole"]
    side_file = Path("a.memz.part").read_bytes()
    assert run(*usual, "--resume").exit_code == 0
    assert Path("a.memz").read_bytes() == Path("whole").read_bytes()
    assert names() == ["a", "a.memz", "whole"]
    Path("a.memz.part").write_bytes(side_file)
    done = run(*usual, "--resume", "--report", "page")  # killed after the output had its name
    assert done.exit_code == 0 and "inspect --html" in done.stderr
    assert names() == ["a", "a.memz", "whole"]
    assert "exists" in refused(run(*usual))
    Path("a").write_bytes(LONG[1:])
    assert "exists" in refused(run(*usual, "--resume"))
    assert "needs outputs that are files" in refused(run(*usual, "--resume", "-c"), 2)


_REAL = encode_all


def test_what_an_unfinished_command_left_is_no_input(run: Run, llama_folder: Path) -> None:
    """Side and temporary files were compressed too; with --rm finished work was lost."""
    Path("t").mkdir()
    Path("t/a").write_bytes(b"stored " * 400)
    Path("t/notes.part").write_bytes(b"not a side file")
    with pytest.raises(Killed), Journal("t/big.memz.part") as kept:
        kept.begin(b"key")
        raise Killed
    Path("t/.memcodec-0123456789ab").write_bytes(b"half")
    assert run("pack", "t", "-o", "archive", "--model", llama_folder, "--device", "cpu").exit_code == 0
    assert memcodec.Archive("archive").keys() == ["a", "notes.part"]
    assert run("compress", "-r", "t", "--resume", "--rm").exit_code == 0
    assert sorted(path.name for path in Path("t").iterdir()) == ["a.memz", "big.memz.part", "notes.part.memz"]


def test_a_run_without_resume_takes_the_side_file_away(run: Run, llama_folder: Path) -> None:
    Path("a").write_bytes(LONG)
    with pytest.raises(Killed), Journal("a.memz.part") as kept:
        kept.begin(b"key")
        raise Killed
    assert names() == ["a", "a.memz.part"]
    assert run("compress", "a", "--model", llama_folder, "--device", "cpu").exit_code == 0
    assert names() == ["a", "a.memz"]


def test_an_error_is_not_replaced_by_that_of_closing_the_side_file(tmp_path: Path) -> None:
    """After a full disk, what is left to be written cannot be written when the file is closed either."""

    class Full:
        def __init__(self, file: BinaryIO) -> None:
            self._file = file

        def fileno(self) -> int:
            return self._file.fileno()

        def close(self) -> None:
            self._file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.part"
    with pytest.raises(Killed), Journal(path) as first:
        first.begin(b"key")
        assert first._file is not None
        first._file = Full(first._file)  # type: ignore[assignment]
        raise Killed
    with Journal(path) as second:  # it is not locked
        second.begin(b"key")
    assert not path.exists()


# ---- temporary files of killed processes


def test_the_next_run_sweeps_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a").write_bytes(b"stored " * 400)
    left, ours = Path(".memcodec-0123456789ab"), Path(".memcodec-notes")
    left.write_text("half")
    ours.write_text("not a name that memcodec gives")
    assert run("compress", "a").exit_code == 0
    assert names() == [".memcodec-notes", "a", "a.memz"]


def test_what_a_living_process_writes_stays(run: Run) -> None:
    Path("a").write_bytes(b"stored " * 400)
    living = Path(".memcodec-0123456789ab")
    with living.open("wb") as file:
        assert write.hold(file)
        assert run("compress", "a").exit_code == 0
        assert living.exists()


# ---- disks


def test_a_full_disk_in_the_middle(tmp_path: Path) -> None:
    """The limit of the system on the size of a file imitates it."""
    (tmp_path / "a").write_bytes(os.urandom(1 << 20))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run([*PROGRAM, "compress", "a"], cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "memcodec: error: a.memz: file too large\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# ---- Ctrl-C and SIGTERM, during each stage of the work

# The command line; the first argument is the stage in which it says so and waits, "" for none.
WAITING = f"""
import sys, time
sys.path.append({str(BENCHMARKS)!r})
import memcodec_cli.compress
from force_lm import store_nothing
from memcodec_cli.progress import ProgressBar

stage = sys.argv.pop(1)

def report(progress):
    if progress.stage == stage:
        print("working", flush=True)
        time.sleep(60)

ProgressBar.document = lambda *_: report
memcodec_cli.compress.SIDE_FILE_BYTES = 100
with store_nothing():
    memcodec_cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize(
    ("way", "stage"),
    [("compress", "fit"), ("compress", "verify"), ("resume", "fit"), ("resume", "verify"), ("decompress", "decode")],
)
def test_signals_leave_nothing_but_the_side_file(
    tiny: Codec, llama_folder: Path, tmp_path: Path, way: str, stage: str, sent: signal.Signals, status: int, word: str
) -> None:
    given = "a.memz" if way == "decompress" else "a"
    documents = {"a": LONG, "a.memz": tiny.encode(LONG, chunk_tokens=40, context=0)}
    (tmp_path / given).write_bytes(documents[given])
    command = ["decompress", given] if way == "decompress" else ["compress", given, "--chunk-tokens=40", "--context=0"]
    command += ["--model", str(llama_folder), "--device", "cpu", *(["--resume"] if way == "resume" else [])]

    def start(stage: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", WAITING, stage, *command], cwd=tmp_path, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, preexec_fn=listen,
        )  # fmt: skip

    process = start(stage)
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, f"memcodec: error: {word}\n")
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left.pop(given) == documents[given]
    assert set(left) == ({"a.memz.part"} if way == "resume" else set())
    if way == "resume":
        assert stage == "fit" or len(left["a.memz.part"]) > len(documents["a.memz"]) / 2  # all groups are finished
        process = start("")
        assert (*process.communicate(timeout=60), process.returncode) == ("", "", 0)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == documents


# ---- kill -9 at random moments: a sample of benchmarks/crashes.py


@pytest.fixture
def crashes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("crashes")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["compress", "resume", "decompress"])
def test_killed_at_random_moments(crashes: ModuleType, llama_folder: Path, tmp_path: Path, way: str) -> None:
    found = crashes.kill(way, 3, str(llama_folder), tmp_path)
    assert found["kills"] == 3
    assert found["wrong"] == []
