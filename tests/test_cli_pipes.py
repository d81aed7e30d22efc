"""The command line with what is not a regular file: pipes, /dev/stdin, devices, files of the kernel, and tar."""

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

import memcodec
from memcodec import Archive, Codec
from memcodec.document.source import Source
from memcodec_cli.program import main

from .conftest import TEXT, Run, needs_dev_full
from .test_cli import PROGRAM, RESULT, names, refused
from .test_cli_names import on_a_terminal
from .test_docs import blocks

ORIGINAL = b"stored " * 400
NOISE = bytes(range(256)) * 3


@pytest.fixture
def fifo(run: Run) -> str:
    """A named pipe in the folder of `run`."""
    os.mkfifo("pipe")
    return "pipe"


def feed(name: str, data: bytes) -> None:
    """Write to a named pipe, once, as soon as it is read."""
    threading.Thread(target=Path(name).write_bytes, args=[data], daemon=True).start()


@pytest.mark.parametrize(
    ("args", "printed"),
    [
        (["decompress", "-c"], ORIGINAL),
        (["decompress", "-o", "-"], ORIGINAL),
        (["decompress", "-c", "--range", "7:6"], b"stored"),
        (["decompress", "--salvage", "-c"], ORIGINAL),
        (["cat"], ORIGINAL),
        (["verify"], b"pipe: ok\n"),
        (["verify", "--decode"], b"pipe: ok, decodes to 2,800 bytes\n"),
        (["list"], b"2,800"),
        (["inspect"], b"format version"),
    ],
    ids=str,
)
def test_every_reading_command_reads_pipes(run: Run, fifo: str, args: list[str], printed: bytes) -> None:
    feed(fifo, RESULT)
    done = run(*args, fifo)
    assert done.exit_code == 0 and printed in done.stdout_bytes, done.stderr


def test_archives_and_primers_are_read_from_pipes_and_standard_input(
    run: Run, fifo: str, tiny: Codec, llama_folder: Path
) -> None:
    lines = TEXT.splitlines()
    Archive.create("a", lines, codec=tiny)
    blob = Path("a").read_bytes()
    model = ("--model", llama_folder)
    for args, printed in (
        (["list"], "pipe: 2\n"), (["verify"], "3 documents\n"), (["verify", "--decode", *model], "decoded\n"),
        (["unpack", "--lines", *model], TEXT),
    ):  # fmt: skip
        feed(fifo, blob)
        assert run(*args, fifo).stdout.endswith(printed)
    assert run("unpack", "-", "--lines", *model, stdin=blob).stdout == TEXT


def test_records_and_primers_are_read_from_pipes(run: Run, fifo: str, llama_folder: Path) -> None:
    Path("m").write_text("".join(f"user {i} signed in from port {i * 7 % 100}\n" for i in range(40)))
    model = ("--model", llama_folder)
    feed(fifo, Path("m").read_bytes())
    assert run("primer", "train", fifo, "-o", "p", "--tokens", "60", *model).exit_code == 0
    feed(fifo, Path("p").read_bytes())
    assert run("primer", "show", fifo).stdout == run("primer", "show", "p").stdout
    feed(fifo, Path("p").read_bytes())
    assert run("compress", "m", "--primer", fifo, *model).exit_code == 0
    feed(fifo, b'{"t": "x"}\n{"t": "y"}\n')
    assert run("pack", fifo, "-o", "b", *model).exit_code == 0 and len(Archive("b")) == 2


def test_the_output_is_not_named_after_a_pipe_or_device(run: Run, fifo: str) -> None:
    for command in ("compress", "decompress"):
        for name in (fifo, "/dev/stdin", "/dev/null"):
            message = refused(run(command, name, stdin=RESULT), 2)
            assert f"{name} is a pipe or a device: name the output with -o, or use -c" in message
    feed(fifo, ORIGINAL)
    blob = run("compress", fifo, "-c").stdout_bytes
    assert memcodec.decode(blob) == ORIGINAL
    feed(fifo, ORIGINAL)
    assert run("compress", fifo, "-o", "b").exit_code == 0 and Path("b").read_bytes() == blob
    assert names() == ["b", "pipe"]


@pytest.mark.parametrize("name", ["-", "pipe"])
def test_resume_does_not_read_a_pipe_twice(run: Run, fifo: str, name: str) -> None:
    """It was read to compare it with the output, and then it was empty."""
    Path("x").write_bytes(RESULT)
    feed(fifo, NOISE)
    assert run("compress", "--resume", "-f", name, "-o", "x", stdin=NOISE).exit_code == 0
    assert memcodec.decode(Path("x").read_bytes()) == NOISE
    if name == "-":
        Path(fifo).read_bytes()  # lets the thread end


def test_archives_are_read_from_urls(run: Run, llama_folder: Path) -> None:
    Path("m").write_text("one\ntwo\n")
    model = ("--model", llama_folder)
    assert run("pack", "m", "-o", "memory://pipes/a", "-v", *model).stderr.startswith("memory://pipes/a: 2 documents, ")
    assert run("unpack", "memory://pipes/a", "--lines", *model).stdout == "one\ntwo\n"
    assert run("verify", "memory://pipes/a").stdout == "memory://pipes/a: ok, an archive of 2 documents\n"
    assert run("list", "memory://pipes/a").stdout.count("memory://pipes/a: ") == 2


@pytest.mark.parametrize("name", ["<(cat a)", "/dev/stdin", "/dev/stdin < a", "- < a", "/dev/fd/3 3< a"])
def test_what_the_shell_passes_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(RESULT)
    line = f"cat a | {' '.join(PROGRAM)} decompress -c {name}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (0, ORIGINAL), done.stderr


# ---- devices, and files of the kernel


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", pytest.param("/dev/full", marks=needs_dev_full)])
def test_a_device_without_an_end_is_refused(run: Run, device: str) -> None:
    for args in (["compress", "-o", "x"], ["compress", "-c"], ["pack", "-o", "x"], ["bench"], ["primer", "show"]):
        assert f"{device}: is a device, which may have no end: pipe as much" in refused(run(*args, device))
    for command in ("decompress", "verify", "list", "inspect", "cat", "unpack"):
        args = ["-o", "x"] if command == "decompress" else []
        assert f"{device}: not a memcodec file" in refused(run(command, device, *args))
    assert names() == []
    with Path(device).open("rb") as file, pytest.raises(memcodec.EncodeError, match="may have no end"):
        Source(file)


def test_a_device_as_standard_input_is_refused(tmp_path: Path) -> None:
    line = f"{' '.join(PROGRAM)} compress -c < /dev/zero"
    done = subprocess.run(["sh", "-c", line], capture_output=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.startswith(b"memcodec: error: standard input: is a device, which may have no end")


def test_an_empty_device_is_an_empty_document(run: Run) -> None:
    assert memcodec.decode(run("compress", "-c", "/dev/null").stdout_bytes) == b""


@pytest.mark.parametrize("name", ["/proc/self/status", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_files_of_the_kernel_are_read_to_their_end(run: Run, name: str, llama_folder: Path) -> None:
    """They tell 0 or 4096 as their size."""
    if not Path(name).exists():
        pytest.skip(f"no {name} here")
    done = run("compress", "-c", name, "--model", llama_folder, "--memory-share", "0")
    document = memcodec.decode(done.stdout_bytes, model=str(llama_folder))
    assert document.split()[:1] == Path(name).read_bytes().split()[:1] and document.endswith(b"\n")


# ---- outputs that are not files


def test_every_output_can_be_standard_output(run: Run, tiny: Codec, llama_folder: Path) -> None:
    model = ("--model", llama_folder)
    Path("m").write_text("".join(f"user {i} signed in from port {i * 7 % 100}\n" for i in range(40)))
    Path("x").write_bytes(RESULT)
    before = [*names()]
    done = run("pack", "m", "-o", "-", "-v", *model)
    assert done.stderr.startswith("standard output: 40 documents, ")
    assert run("unpack", "-", "-o", "-", "--lines", *model, stdin=done.stdout_bytes).stdout == Path("m").read_text()
    primer = run("primer", "train", "m", "-o", "-", "--tokens", "60", *model)
    assert primer.stderr.startswith("standard output: ") and primer.stdout_bytes[8:9] == b"{"
    assert run("inspect", "x", "--html", "-").stdout.lower().startswith("<!doctype html>")
    assert json.loads(run("decompress", "x", "--salvage", "-o", "y", "--report", "-").stdout)["lost"] == []
    assert names() == [*before, "y"]
    for args in (
        ["decompress", "x", "--salvage", "-c", "--report", "-"], ["compress", "m", "-c", "--report", "-"],
        ["inspect", "x", "--tokens", "--html", "-"],
    ):  # fmt: skip
        assert "only one output can be standard output" in refused(run(*args), 2)


def test_devices_stay_devices_and_missing_folders_are_refused_before_the_work(run: Run, llama_folder: Path) -> None:
    Path("m").write_text("one\ntwo\n")
    os.mkfifo("pipe")
    for command in (["pack", "m"], ["primer", "train", "m"]):
        assert "none: no such file or directory" in refused(run(*command, "-o", "none/x"))
    assert run("pack", "m", "-o", "/dev/null", "--model", llama_folder).exit_code == 0
    assert Path("/dev/null").is_char_device()
    for name in ("-", "/dev/null", "pipe"):
        assert "-a is for an ARCHIVE that is a file" in refused(run("pack", "m", "-a", "-o", name), 2)


# ---- as tar and gzip start it


@pytest.fixture
def path_with_memcodec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_folder: Path) -> None:
    """A program `memcodec` on the path, with a tiny model as its default, in an empty folder."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "memcodec"
    program.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MEMCODEC_MODEL", str(llama_folder))


@pytest.mark.usefixtures("path_with_memcodec")
def test_the_recipe_for_tar_runs() -> None:
    (recipe,) = blocks("docs/cookbook.md", "sh")
    done = subprocess.run(["bash", "-ec", recipe], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("letters.tar.memz").read_bytes()[8:9] == b"{"


@pytest.mark.usefixtures("path_with_memcodec")
@pytest.mark.parametrize("program", ["-I memcodec", "--use-compress-program=memcodec", "-I 'memcodec -1'"])
def test_tar_compresses_and_decompresses(program: str) -> None:
    Path("in").mkdir()
    Path("in/noise").write_bytes(bytes(range(256)) * 99)
    line = f"tar {program} -cf a.tar.memz in; tar {program} -xOf a.tar.memz in/noise"
    done = subprocess.run(["bash", "-ec", line], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, Path("in/noise").read_bytes(), b"")


@pytest.mark.parametrize("args", [[], ["-c"], ["-k"], ["-1"], ["-9c"], ["--keep"], ["-qc", "-"]])
def test_without_a_command_compresses_and_d_decompresses(run: Run, args: list[str]) -> None:
    blob = run(*args, stdin=ORIGINAL).stdout_bytes
    assert memcodec.decode(blob) == ORIGINAL
    for args_again in ([*args, "-d"], ["-d", *args], ["-d"]):
        assert run(*args_again, stdin=blob).stdout_bytes == ORIGINAL


@pytest.mark.parametrize(
    ("args", "command"),
    [
        ("-k a", "compress -k a"),
        ("-o d a", "compress -o d a"),
        ("-od a", "compress -od a"),
        ("-T2 -dkc a", "decompress -T2 -k -c a"),
        ("--memory-share 0 --context=max -9 -d a", "decompress a"),
        ("--primer p -T 3 -tkv a", "verify --decode --primer p -T 3 a"),
        ("-lv a", "list a"),
        ("-c -- -d", "compress -c -- -d"),
        ("-dt a", "verify --decode a"),
        ("-t --rm a", "verify --decode --rm a"),
        ("-x a", "compress -x a"),
    ],
)
def test_options_without_a_command_find_it(args: str, command: str) -> None:
    assert main.with_command(args.split()) == command.split()


def test_without_arguments_at_a_terminal_prints_the_help() -> None:
    assert "[OPTIONS] COMMAND [ARGS]..." in on_a_terminal()


def test_options_of_the_program_itself_still_work(run: Run) -> None:
    for option in ("--version", "--help", "-h"):
        assert run(option).exit_code == 0
    assert "No such option" in refused(run("--nonsense"), 2)
