"""Names of files and keys in what the program prints: none controls a terminal, and each exists as it is printed."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

from memcodec import Archive, Codec
from memcodec_cli.names import display_name

from .conftest import Run, needs_names_of_bytes
from .test_cli import PROGRAM, RESULT, refused

HOSTILE = "a\x1b[31mred\n\u202eb  c\udcff'\\.memz"
QUOTED = r"$'a\033[31mred\012\342\200\256b  c\377\'\\.memz'"
UNICODE, UNICODE_QUOTED = HOSTILE.replace("\udcff", ""), QUOTED.replace(r"\377", "")  # a name on every system


def on_a_terminal(*args: str) -> str:
    """What a command prints to a terminal as its standard output and standard error."""
    main, terminal = pty.openpty()
    with subprocess.Popen([*PROGRAM, *args], stdout=terminal, stderr=terminal, stdin=subprocess.DEVNULL) as process:
        os.close(terminal)
        printed = b""
        while piece := _read(main):
            printed += piece
        process.wait(timeout=60)
    os.close(main)
    return printed.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_the_shell_reads_a_quoted_name_as_the_name(tmp_path: Path) -> None:
    assert display_name(HOSTILE) == QUOTED and display_name("a b") == "a b" and display_name("$'x'") == r"$'$\'x\''"
    for name in (HOSTILE, "$'x'"):
        done = subprocess.run(["bash", "-c", f"printf %s {display_name(name)}"], capture_output=True)
        assert os.fsdecode(done.stdout) == name


@needs_names_of_bytes
@pytest.mark.parametrize(
    ("args", "printed"),
    [(["verify"], "{}: ok\n"), (["list"], "  {}\n"), (["inspect", "x"], "\n\n{}\nformat")],
)
def test_results_have_names_unchanged_and_terminals_have_them_quoted(run: Run, args: list[str], printed: str) -> None:
    for name in ("x", HOSTILE):
        Path(name).write_bytes(RESULT)
    done = run(*args, HOSTILE)
    assert os.fsencode(printed.format(HOSTILE)) in done.stdout_bytes and done.exit_code == 0
    shown = on_a_terminal(*args, HOSTILE)
    assert printed.format(QUOTED) in shown and "\x1b" not in shown and "\u202e" not in shown


def test_keys_are_listed_like_names(run: Run, tiny: Codec) -> None:
    Archive.create("a", [b"x"], ["k\x1b[2J"], codec=tiny)
    assert run("list", "a").stdout_bytes.endswith(b"  a: k\x1b[2J\n")
    assert on_a_terminal("list", "a").endswith(r"  a: $'k\033[2J'" + "\n")


READING = [
    ["verify"], ["list"], ["inspect"], ["decompress"], ["compress"], ["cat"], ["unpack"], ["primer", "show"], ["bench"],
    ["compress", "-c", "--primer"], ["pack", "-o", "out", "x", "--primer"], ["decompress", "--salvage"],
    ["inspect", "--tokens"],
]  # fmt: skip


@pytest.mark.parametrize("args", [*READING, ["pack", "-o", "out"], ["primer", "train", "-o", "p"]], ids=" ".join)
def test_missing_files_are_named_in_one_line_and_without_escape_sequences(run: Run, args: list[str]) -> None:
    Path("x").write_bytes(b"x")
    message = refused(run(*args, UNICODE, stdin=b"x"))
    assert f"{UNICODE_QUOTED}: no such file or directory" in message and message[:-1].isprintable()


@pytest.mark.parametrize("args", READING, ids=" ".join)
def test_folders_are_named_in_one_line_and_without_escape_sequences(run: Run, args: list[str]) -> None:
    Path("x").write_bytes(b"x")
    Path(UNICODE).mkdir()
    message = refused(run(*args, UNICODE, stdin=b"x"))
    assert f"{UNICODE_QUOTED}: is a directory" in message and message[:-1].isprintable()


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        ([*args, name], shown)
        for name in [""]
        for args, shown in (
            (["compress"], "FILE"), (["compress", "a"], "FILE"), (["decompress"], "FILE"), (["cat"], "FILE"),
            (["verify"], "FILE"), (["list"], "FILE"), (["inspect"], "FILE"), (["bench"], "PATH"),
            (["unpack"], "ARCHIVE"), (["primer", "show"], "P"), (["compress", "a", "-o"], "--output"),
            (["compress", "a", "--output-dir"], "--output-dir"), (["compress", "a", "--primer"], "--primer"),
            (["compress", "a", "--report"], "--report"), (["inspect", "a", "--html"], "--html"),
            (["pack", "-o", "b"], "FILE"), (["pack", "a", "-o"], "--output"), (["unpack", "a", "-o"], "--output"),
            (["primer", "train", "a", "-o"], "--output"), (["bench", "--messages"], "--messages"),
            (["compress", "a", "--model"], "--model"),
        )
    ],
)  # fmt: skip
def test_an_empty_name_is_wrong_usage(run: Run, args: list[str], shown: str) -> None:
    """As from a variable of the shell that is not set: it was taken for the current folder, or for no option at all."""
    Path("a").write_bytes(RESULT)
    assert refused(run(*args), 2).startswith(f"memcodec: error: {shown}: the name is empty (see memcodec ")


def test_damaged_files_are_named_by_every_command(run: Run, llama_folder: Path, tiny: Codec) -> None:
    Path("bad").write_bytes(RESULT[:100])
    Archive.create("b", [b"x"], codec=tiny)
    Path("archive").write_bytes(Path("b").read_bytes()[:-3])
    Path("m").write_text("x\n")
    model = ("--model", llama_folder)
    for args in (
        ["decompress", "--salvage", "bad", "-c"], ["decompress", "bad", "-c"], ["cat", "bad"], ["verify", "bad"],
        ["list", "bad"], ["inspect", "bad"], ["inspect", "--tokens", "bad"], ["unpack", "bad"], ["unpack", "archive"],
        ["verify", "archive"], ["list", "archive"], ["pack", "m", "-a", "-o", "archive", *model],
        ["primer", "show", "bad"],
        ["compress", "m", "-c", "--primer", "bad"], ["pack", "m", "-a", "-o", "none", *model],
    ):  # fmt: skip
        name = next(name for name in ("bad", "archive", "none") if name in args)
        done = run(*args)
        assert done.exit_code == 1 and done.stderr.startswith(f"memcodec: error: {name}: "), (args, done.stderr)
