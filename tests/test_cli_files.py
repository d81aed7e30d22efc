"""The command line with many files: folders, short options, removed inputs, ranges, and errors of some of them."""

import errno
import json
import os
import pty
import re
import stat
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

import memcodec
from memcodec import Archive, Codec, Readout, refusals
from memcodec.container import Container
from memcodec.storage import write
from memcodec_cli import library
from memcodec_cli.outputs import Output

from .conftest import TEXT, Run
from .test_cli import PROGRAM, RESULT, names, refused

NOISE = bytes(range(256)) * 3


@pytest.fixture
def tree(run: Run) -> None:
    for name, data in (("t/a", NOISE), ("t/sub/b", b"\xff" * 9), ("t/c.memz", RESULT)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


@pytest.mark.usefixtures("tree")
class TestFolders:
    def test_recursive_compression_restores_every_file(self, run: Run) -> None:
        assert run("compress", "-r", "t").exit_code == 0
        found = sorted(p.as_posix() for p in Path().rglob("*") if p.is_file())
        assert found == ["t/a", "t/a.memz", "t/c.memz", "t/sub/b", "t/sub/b.memz"]
        for name in ("t/a", "t/sub/b"):
            Path(name).unlink()
        assert run("decompress", "-r", "t").exit_code == 0
        assert Path("t/a").read_bytes() == NOISE and Path("t/sub/b").read_bytes() == b"\xff" * 9
        assert Path("t/c").read_bytes() == b"stored " * 400

    def test_output_dir_keeps_the_tree(self, run: Run) -> None:
        assert run("compress", "-r", "t", "--output-dir", "new/out").exit_code == 0
        assert sorted(p.as_posix() for p in Path("new").rglob("*.memz")) == ["new/out/a.memz", "new/out/sub/b.memz"]
        assert run("decompress", "new/out/a.memz", "--output-dir", "back").exit_code == 0
        assert Path("back/a").read_bytes() == NOISE

    def test_output_dir_is_not_made_for_what_is_refused(self, run: Run) -> None:
        """The folders were made before anything was checked."""
        before = names()
        Path("t/bad.memz").write_bytes(b"bad")
        for args in (["compress", "none"], ["decompress", "t/bad.memz"], ["decompress", "--salvage", "t/bad.memz"]):
            refused(run(*args, "--output-dir", "new/out"))
        assert names() == before
        message = refused(run("compress", "t/a", "--output-dir", "t/sub/b/new"))
        assert message == "memcodec: error: t/sub/b: not a directory\n"

    def test_output_dir_is_made_for_the_side_file(
        self, run: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("memcodec_cli.compress.SIDE_FILE_BYTES", 1)
        Path("text").write_text(TEXT)
        args = ("compress", "--resume", "text", "--output-dir", "new", "--model", llama_folder, "--memory-share", "0")
        assert run(*args).exit_code == 0
        assert [path.name for path in Path("new").iterdir()] == ["text.memz"]

    def test_a_folder_without_r_is_an_error(self, run: Run) -> None:
        assert "is a directory" in refused(run("compress", "t"))

    def test_links_in_a_folder_are_left_out(self, run: Run, llama_folder: Path) -> None:
        """Also with --rm, which removes no target of a link."""
        Path("other").mkdir()
        Path("other/d").write_bytes(NOISE)
        Path("other/e.memz").write_bytes(RESULT)
        links = {"t/file": "../other/d", "t/file.memz": "../other/e.memz", "t/folder": "../other", "t/none": "x",
                 "t/none.memz": "x"}  # fmt: skip
        for name, target in links.items():
            Path(name).symlink_to(target)

        def found() -> list[str]:
            """The files, but not the links."""
            assert {name: str(Path(name).readlink()) for name in links} == links
            files = sorted(p.as_posix() for p in Path().rglob("*") if p.is_file() and not p.is_symlink())
            assert files[:2] == ["other/d", "other/e.memz"]
            return files[2:]

        assert run("pack", "t", "-o", "archive", "--model", llama_folder).exit_code == 0
        assert Archive("archive").keys() == ["a", "c.memz", "sub/b"]
        Path("archive").unlink()
        assert run("compress", "-r", "--rm", "t").exit_code == 0
        assert found() == ["t/a.memz", "t/c.memz", "t/sub/b.memz"]
        assert run("verify", "-r", "t").stdout == "t/a.memz: ok\nt/c.memz: ok\nt/sub/b.memz: ok\n"
        listed = run("list", "-r", "t").stdout.splitlines()[-3:]
        assert [line.split()[-1] for line in listed] == found()
        assert len(listed) + 1 == run("list", "-r", "t").stdout.count("\n")
        assert run("decompress", "-r", "--rm", "t").exit_code == 0
        assert found() == ["t/a", "t/c", "t/sub/b"]


def test_files_that_fail_are_named_and_the_others_are_done(run: Run, llama_folder: Path) -> None:
    Path("a").write_text(TEXT)
    Path("b").write_text(TEXT[::-1])
    Path("c").write_bytes(NOISE)
    Path("c.memz").write_bytes(b"here before")
    done = run("compress", "a", "none", "b", "c", "--model", llama_folder, "--memory-share", "0")
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "memcodec: error: c.memz exists: overwrite it with -f, or name another output",
        "memcodec: error: none: no such file or directory",
        "memcodec: 2 of 4 files failed; the others succeeded",
    ]
    assert names() == ["a", "a.memz", "b", "b.memz", "c", "c.memz"]
    for name in ("a", "b"):
        Path(name).unlink()
    Path("d.memz").write_bytes(RESULT[:-3])
    done = run("decompress", "a.memz", "d.memz", "b.memz", "--model", llama_folder)
    assert done.exit_code == 1 and "d.memz: truncated file" in done.stderr and "1 of 3 files failed" in done.stderr
    assert Path("a").read_text() == TEXT and Path("b").read_text() == TEXT[::-1]
    assert not Path("d").exists()


def test_a_file_whose_name_begins_the_error_is_named(run: Run) -> None:
    """The name was left out before "truncated file" if the file was called t."""
    Path("t").write_bytes(RESULT[:-3])
    Path("n").write_bytes(b"nothing of memcodec")
    for command in (["list"], ["inspect"], ["verify"], ["decompress", "-c"]):
        first, second, last = run(*command, "t", "n").stderr.splitlines()
        assert first.startswith("memcodec: error: t: truncated file: ")
        assert second == "memcodec: error: n: not a memcodec file"
        assert last == "memcodec: 2 of 2 files failed"


def test_a_document_that_fails_does_not_stop_the_batch(
    run: Run,
    llama_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in "abcd":
        Path(name).write_text(TEXT + name)
    real = memcodec.document.source.Source.check_unchanged

    def failing(source: memcodec.document.source.Source) -> None:
        if source.read(source.size - 1, source.size) == b"b":
            raise memcodec.EncodeError("b: changed while it was read: try again")
        real(source)

    monkeypatch.setattr(memcodec.document.source.Source, "check_unchanged", failing)
    done = run("compress", *"abcd", "--model", llama_folder, "--memory-share", "0")
    assert done.exit_code == 1 and "b: changed while it was read" in done.stderr and "1 of 4" in done.stderr
    assert [name for name in names() if name.endswith("z")] == ["a.memz", "c.memz", "d.memz"]


def test_what_is_finished_before_an_error_is_not_encoded_again(
    run: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the last of ten files in error, 55 memories were fitted instead of 11: this one is encoded again alone."""
    from memcodec.memory import fitting

    for number in range(10):
        Path(f"a{number}").write_text(f"over the lazy dog {number}" + "." * (number == 9))
    size = Path("a9").stat().st_size
    fit, fitted = fitting.fit, list[int]()

    def counting(floats: Any, chunks: Any, *rest: Any) -> Any:
        fitted.append(len(chunks))
        return fit(floats, chunks, *rest)

    def refuse_the_last(made: Container) -> None:
        if made.size == size:
            raise memcodec.EncodeError("1 of 1 chunks need corrections")

    monkeypatch.setattr(fitting, "fit", counting)
    monkeypatch.setattr(refusals, "check_pure", refuse_the_last)
    files = [f"a{number}" for number in range(10)]
    options = ["--site", "prompt", "--pure", "--steps", "1", "--bits", "8"]
    done = run("compress", *files, *options, "--model", llama_folder)
    assert done.exit_code == 1 and "a9: 1 of 1 chunks need corrections" in done.stderr and "1 of 10" in done.stderr
    assert [name for name in names() if name.endswith("z")] == [f"{name}.memz" for name in files[:-1]]
    assert sum(fitted) == 11


def test_short_options_stand_for_commands(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    done = run("-l", "a.memz")
    assert done.exit_code == 0 and "2,800" in done.stdout and "a.memz" in done.stdout
    assert run("-t", "a.memz").stdout == "a.memz: ok, decodes to 2,800 bytes\n"
    assert run("-d", "-k", "a.memz").exit_code == 0 and names() == ["a", "a.memz"]
    assert run("-z", "-f", "a").exit_code == 0
    assert run("cat", "a.memz", "a.memz").stdout_bytes == b"stored " * 800


def test_rm_removes_inputs_and_outputs_keep_their_times(run: Run) -> None:
    Path("a").write_bytes(NOISE)
    os.utime("a", ns=(1_600_000_000_123_456_789, 1_500_000_000_123_456_789))
    Path("a").chmod(0o640)
    assert run("compress", "--rm", "a").exit_code == 0 and names() == ["a.memz"]
    assert run("decompress", "a.memz", "--rm").exit_code == 0 and names() == ["a"]
    assert Path("a").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert stat.S_IMODE(Path("a").stat().st_mode) == 0o640
    assert run("compress", "--rm", "-k", "a").exit_code == 0 and names() == ["a", "a.memz"]


def test_rm_removes_a_link_and_not_its_target(run: Run) -> None:
    for name, data, command in (("a", NOISE, "compress"), ("a.memz", RESULT, "decompress")):
        Path("target").write_bytes(data)
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to("target")
        assert run(command, "--rm", name, "-o", "out", "-f").exit_code == 0
        assert names() == ["out", "target"] and Path("target").read_bytes() == data


def test_outputs_are_never_setuid_setgid_or_sticky(run: Run) -> None:
    """The owner of an output is who runs the command: root, for example, for the file of a user."""
    Path("a").write_bytes(NOISE)
    for command in (("compress", "a"), ("decompress", "-f", "a.memz"), ("compress", "-f", "a")):
        for path in Path().iterdir():
            path.chmod(0o7755)
        assert run(*command).exit_code == 0
        written = "a" if command[0] == "decompress" else "a.memz"
        assert stat.S_IMODE(Path(written).stat().st_mode) == 0o755, command


def test_an_input_is_removed_only_when_its_output_is_safe(run: Run, llama_folder: Path) -> None:
    for name in ("a/x", "b/x"):
        Path(name).parent.mkdir()
        Path(name).write_bytes(NOISE + name.encode())
    done = run("compress", "--rm", "-f", "--output-dir", "out", "a/x", "b/x")
    assert done.exit_code == 1 and "is also the output of another input" in done.stderr
    assert not Path("a/x").exists() and Path("b/x").exists()
    assert memcodec.decode(Path("out/x.memz").read_bytes()) == NOISE + b"a/x"
    message = refused(run("compress", "--rm", "b/x", "-o", "/dev/null"))
    assert "not removed, because its output is not a regular file" in message
    assert run("compress", "--rm", "b/x", "-c").exit_code == 2
    assert run("decompress", "out/x.memz", "--rm", "--range", "0:3").exit_code == 2
    assert Path("b/x").exists() and Path("out/x.memz").exists()


@pytest.mark.parametrize(
    ("args", "about"),
    [
        ("pack m.jsonl --field text -o m.jsonl", "m.jsonl is both input and output"),
        ("pack folder -o folder/x", "folder/x is both input and output"),
        ("pack m.jsonl --primer folder/x -o folder/link", "folder/link is both input and output"),
        ("primer train m.jsonl --field text -o ./m.jsonl", "m.jsonl is both input and output"),
        ("inspect --html d.memz d.memz", "d.memz is both input and output"),
        ("compress m.jsonl -o new --report m.jsonl", "m.jsonl is both input and output"),
        ("compress m.jsonl -o new --report new", "new is the name of two outputs"),
        ("compress m.jsonl -o file://{}/m.jsonl", "/m.jsonl is both input and output"),
        ("compress file://{}/m.jsonl -o m.jsonl", "m.jsonl is both input and output"),
        ("compress d d.memz", "d.memz is both input and output"),
        ("decompress d.memz --salvage -o new --report new", "new is the name of two outputs"),
        ("decompress d.memz --salvage -o new --report d.memz", "d.memz is both input and output"),
        ("decompress d.memz d.memz.memz", "d.memz.memz: d.memz is both input and output"),
    ],
)
def test_force_overwrites_no_input_and_no_output_of_the_same_command(
    run: Run, tmp_path: Path, args: str, about: str
) -> None:
    Path("folder").mkdir()
    Path("folder/link").symlink_to("x")
    for name, data in (("m.jsonl", b'{"text": "a"}\n'), ("folder/x", b"x"), ("d", NOISE), ("d.memz.memz", RESULT)):
        Path(name).write_bytes(data)
    Path("d.memz").write_bytes(RESULT)
    inputs = [path for path in Path().rglob("*") if path.name in args and path.name not in ("d", "folder")]
    before = [path.read_bytes() for path in inputs]
    done = run(*args.format(tmp_path).split(), "-f")
    assert done.exit_code == 1 and about in done.stderr.splitlines()[0]
    assert [path.read_bytes() for path in inputs] == before and not Path("new").exists()


def test_outputs_that_are_links_of_one_file_are_replaced_one_by_one(run: Run) -> None:
    for name in ("a", "b"):
        Path(name).write_bytes(NOISE + name.encode())
    Path("a.memz").write_bytes(RESULT)
    Path("b.memz").hardlink_to("a.memz")
    assert run("compress", "-f", "a", "b").exit_code == 0
    for name in ("a", "b"):
        assert memcodec.decode(Path(f"{name}.memz").read_bytes()) == NOISE + name.encode()


def test_decompressing_all_files_of_a_folder_overwrites_those_that_are_not_read(run: Run) -> None:
    Path("a").write_bytes(b"old")
    Path("a.memz").write_bytes(RESULT)
    done = run("decompress", "-f", "a", "a.memz")
    assert done.exit_code == 1 and "1 of 2 files failed" in done.stderr
    assert Path("a").read_bytes() == memcodec.decode(RESULT)


def test_a_link_to_itself_is_an_error_of_one_line(run: Run) -> None:
    Path("a").write_bytes(NOISE)
    Path("a.memz").write_bytes(RESULT)
    Path("b").symlink_to("b")
    for command in (
        "compress a -o b", "inspect --html b a.memz", "decompress a.memz -o b", "decompress a.memz -o b/c",
        "decompress --salvage a.memz -o b", "decompress a.memz -o c --report b --salvage", "pack a -o b",
        "pack a -o b -f", "primer train a -o b", "unpack a -o b",
    ):  # fmt: skip
        refused(run(*command.split()))
        assert names() == ["a", "a.memz", "b"], command
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write.replace(Path("b"), [b""])


def test_an_input_that_cannot_be_read_reserves_no_output(run: Run) -> None:
    for folder, content in (("x", b"damaged"), ("y", RESULT)):
        Path(folder).mkdir()
        Path(folder, "a.memz").write_bytes(content)
    done = run("decompress", "x/a.memz", "y/a.memz", "--output-dir", "out")
    assert done.exit_code == 1 and "1 of 2 files failed" in done.stderr
    assert Path("out/a").read_bytes() == memcodec.decode(RESULT)


def test_inspect_prints_nothing_if_every_file_fails(run: Run) -> None:
    for name in ("a", "b"):
        Path(name).write_bytes(b"damaged")
    for options in ((), ("--json",)):
        done = run("inspect", "a", "b", *options)
        assert (done.exit_code, done.stdout) == (1, "") and "2 of 2 files failed" in done.stderr


def test_devices_may_be_named_twice(run: Run) -> None:
    Path("d.memz").write_bytes(RESULT)
    assert run("decompress", "d.memz", "--salvage", "-o", "/dev/null", "--report", "/dev/null").exit_code == 0


@pytest.mark.parametrize("text", [TEXT, "\x00\x01" * 200])
def test_an_input_that_changed_while_it_was_read_is_kept(
    run: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    Path("a").write_text(text)
    real = Output.write

    def write(self: Output, pieces: list[bytes]) -> int:
        with Path("a").open("a") as file:
            file.write("new line")
        return real(self, pieces)

    monkeypatch.setattr(Output, "write", write)
    message = refused(run("compress", "--rm", "a", "--model", llama_folder))
    assert "a" in message and "changed while it was read" in message
    assert Path("a").read_text() == text + "new line"


def test_without_names_standard_input_is_read(run: Run) -> None:
    blob = run("compress", stdin=NOISE).stdout_bytes
    assert run("decompress", stdin=blob).stdout_bytes == NOISE and run("cat", stdin=blob).stdout_bytes == NOISE


def test_without_names_at_a_terminal_is_wrong_usage(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    done = subprocess.run([*PROGRAM, "compress"], stdin=terminal, capture_output=True, cwd=tmp_path, timeout=60)
    os.close(terminal)
    os.close(main)
    assert done.returncode == 2 and b"no input: name a FILE, or pipe data to standard input" in done.stderr


def test_compressing_a_memz_file_prints_a_warning(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    done = run("compress", "a.memz")
    assert done.exit_code == 0 and done.stderr == "memcodec: warning: a.memz: is already compressed\n"
    assert names() == ["a.memz", "a.memz.memz"]


def test_concatenated_files_decode_and_trailing_bytes_are_refused(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT + RESULT)
    assert run("decompress", "a.memz", "-c").stdout_bytes == b"stored " * 800
    assert run("verify", "a.memz").exit_code == 0
    Path("a.memz").write_bytes(RESULT + b"more")
    assert "4 trailing bytes after the end of the file" in refused(run("decompress", "a.memz"))


def test_verbose_prints_a_summary_line(run: Run) -> None:
    Path("a").write_bytes(NOISE)
    assert run("compress", "a", "-v").stderr.startswith("a: 768 bytes, ")
    assert run("decompress", "a.memz", "-f", "-v", "--no-progress").stderr.startswith("a.memz: 768 bytes, ")
    assert run("decompress", "a.memz", "-f", "-v", "-q").stderr == ""


def test_range_writes_these_bytes_alone(run: Run, llama_folder: Path) -> None:
    data = TEXT.encode() * 3
    Path("a").write_bytes(data)
    Path("b").write_bytes(Codec.load(str(llama_folder), device="cpu").encode(data, site=Readout(0)))
    for start, length in ((0, 10), (500, 100), (len(data) - 5, 100), (len(data), 3), (7, 0)):
        args = ("decompress", "b", "-c", "--range", f"{start}:{length}", "--model", llama_folder)
        assert run(*args).stdout_bytes == data[start : start + length]
    assert run("decompress", "b", "-c", "--range", "900:", "--model", llama_folder).stdout_bytes == data[900:]
    beyond = refused(run("decompress", "b", "-o", "c", "--range", f"{len(data) + 1}:4"))
    assert f"b: --range starts at byte {len(data) + 1:,} of {len(data):,} bytes: give a smaller START" in beyond
    for bad in ("5", "a:b", "-1:5", "1:-5", "9" * 5000 + ":", ":", "1:" + "9" * 5000):
        assert "START:LENGTH" in refused(run("decompress", "b", "-o", "c", "--range", bad), 2)


def test_inspect_and_list_print_every_file(run: Run) -> None:
    for name in ("a", "b"):
        Path(name).write_bytes(RESULT)
    Path("bad").write_bytes(b"x")
    found = json.loads(run("inspect", "a", "b", "--json").stdout)
    assert [facts["file"] for facts in found] == ["a", "b"]
    done = run("inspect", "a", "bad", "b")
    assert done.exit_code == 1 and done.stdout.count("format version") == 2 and "bad: not a memcodec" in done.stderr
    assert run("list", "a", "b").stdout.count("2,800") == 2


def test_environment_variables_set_defaults(run: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a").write_text(TEXT)
    monkeypatch.setenv("MEMCODEC_MODEL", str(llama_folder))
    monkeypatch.setenv("MEMCODEC_MEMORY_SHARE", "0.3")
    seen: list[float] = []
    real = Codec.encode

    def encode(self: Codec, data: object, **settings: object) -> bytes:
        seen.append(settings["site"].share)  # type: ignore[attr-defined]
        return real(self, data, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Codec, "encode", encode)
    assert run("compress", "a").exit_code == 0 and seen == [0.3]
    monkeypatch.setenv("MEMCODEC_THREADS", "many")
    assert "MEMCODEC_THREADS" in run("compress", "--help").stdout
    assert run("compress", "a", "-f").exit_code == 2


@pytest.mark.parametrize(
    ("shell", "word", "found"),
    [
        ("bash", "1", "plain,compress\n"),
        ("zsh", "1", "plain\ncompress\nCompress each FILE to FILE.memz.\n"),
        ("fish", "comp", "plain,compress\tCompress each FILE to FILE.memz.\n"),
    ],
)
def test_completion_scripts_complete(run: Run, shell: str, word: str, found: str) -> None:
    """word: what the script of the shell sets COMP_CWORD to."""
    assert "_MEMCODEC_COMPLETE" in run("completion", shell).stdout
    words = {"_MEMCODEC_COMPLETE": f"{shell}_complete", "COMP_WORDS": "memcodec comp", "COMP_CWORD": word}
    done = subprocess.run(
        PROGRAM, env={**os.environ, **words}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert found in done.stdout and "decompress" not in done.stdout


def test_commands_are_completed_where_nothing_is_a_terminal() -> None:
    """No arguments, as tar starts the program, do not make it complete the options of compress."""
    words = {"_MEMCODEC_COMPLETE": "bash_complete", "COMP_WORDS": "memcodec ", "COMP_CWORD": "1"}
    done = subprocess.run(
        PROGRAM, env={**os.environ, **words}, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert b"plain,decompress\n" in done.stdout


def test_the_version_is_printed_as_gzip_does(run: Run) -> None:
    assert run("-V").stdout == run("--version").stdout == f"memcodec {memcodec.__version__}\n"


def test_python_m_memcodec_runs_the_program(tmp_path: Path) -> None:
    done = subprocess.run([PROGRAM[0], "-m", "memcodec", "--version"], capture_output=True, timeout=60)
    assert done.stdout.decode() == f"memcodec {memcodec.__version__}\n"


def test_models_rm_removes_a_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path / "cache"))
    assert "is not in the cache" in refused(run("models", "rm", "smollm2-135m"))
    folder = tmp_path / "cache" / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(2_000_000))
    assert run("models", "rm", "smollm2-135m").stdout == "smollm2-135m: removed, 2 MB\n" and not folder.exists()


def test_verify_and_list_search_folders(run: Run) -> None:
    Path("in").mkdir()
    Path("in/a").write_bytes(bytes(range(200, 256)) * 9)
    assert "is a directory: use -r" in refused(run("compress", "in"))
    assert run("compress", "-r", "in").exit_code == 0
    assert run("verify", "-r", "in").stdout == "in/a.memz: ok\n"
    assert run("list", "-r", "in").stdout.endswith("in/a.memz\n")
    assert "is a directory: use -r" in refused(run("decompress", "in"))


@pytest.mark.parametrize("command", ["decompress", "verify", "list"])
def test_a_folder_without_files_to_read_is_named(run: Run, command: str) -> None:
    """It was success without a word, as if the files in it had been read."""
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/a").write_bytes(RESULT)
    message = "no .memz files in empty"
    assert refused(run(command, "-r", "empty")) == f"memcodec: error: {message}: name other files\n"
    assert "no .memz files in empty, other: name other files" in refused(run(command, "-r", "empty", "other"))
    Path("other/a").rename("other/a.memz")
    done = run(command, "-r", "empty", "other")
    assert (done.exit_code, done.stderr) == (0, f"memcodec: warning: {message}\n")


def test_nothing_to_compress_is_a_warning(run: Run) -> None:
    """So that a command that runs every hour may find nothing new."""
    Path("in").mkdir()
    Path("in/a.memz").write_bytes(RESULT)
    done = run("compress", "-r", "in")
    message = "memcodec: warning: no files other than .memz files in in\n"
    assert (done.exit_code, done.stderr) == (0, message)


def test_a_folder_that_cannot_be_read_does_not_go_unnoticed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in/closed").mkdir(parents=True)
    Path("in/a").write_bytes(b"\0" * 200)
    Path("in/closed/b").write_bytes(b"\0" * 200)
    scandir = os.scandir

    def denied(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    done = run("compress", "-r", "in")
    assert done.exit_code == 1 and Path("in/a.memz").exists()
    assert done.stderr.startswith("memcodec: error: in/closed: permission denied\nmemcodec: 1 of 2 files failed")


def test_a_file_that_is_called_like_standard_input(run: Run) -> None:
    Path("-").write_bytes(b"\0" * 200)
    assert run("compress", "-r", ".", stdin=b"other").exit_code == 0
    assert Path("-.memz").exists() and run("cat", "./-.memz").stdout_bytes == b"\0" * 200


@pytest.mark.parametrize("name", ["none", "none.txt", "none.memz", "folder/none"])
def test_a_missing_file_is_missing_whatever_its_name(run: Run, name: str) -> None:
    """Of names without .memz, the error was that the output needs a name."""
    Path("folder").mkdir()
    for args in (["decompress"], ["decompress", "-r"], ["decompress", "--salvage"], ["-d"]):
        assert refused(run(*args, name)) == f"memcodec: error: {name}: no such file or directory\n"


@pytest.mark.parametrize("command", [["compress"], ["decompress"]])
def test_an_input_that_cannot_be_removed(run: Run, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that is only readable: the error did not say that the output had been written."""
    name = "a.memz" if command == ["decompress"] else "a"
    Path(name).write_bytes(RESULT if command == ["decompress"] else NOISE)

    unlink = Path.unlink

    def denied(path: Path, missing_ok: bool = False) -> None:
        if path.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", denied)
    assert refused(run(*command, "--rm", name, "-o", "out")) == (
        f"memcodec: error: {name}: not removed: permission denied; its output out was written\n"
    )
    assert Path("out").exists() and Path(name).exists()


@pytest.mark.parametrize("options", [["-dc"], ["-cd"], ["-d", "-c"], ["-dqc"]])
def test_short_options_combine_as_in_gzip(run: Run, options: list[str]) -> None:
    Path("a").write_bytes(b"stored " * 400)
    assert run("compress", "a").exit_code == 0
    assert run(*options, "a.memz").stdout_bytes == b"stored " * 400


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files are decoded together, for each time."""
    found: list[int] = []
    real = Codec.decode_many

    def decode_many(self: Codec, files: list[Any], **options: Any) -> list[bytes]:
        found.append(len(files))
        return real(self, files, **options)

    monkeypatch.setattr(Codec, "decode_many", decode_many)
    return found


@pytest.mark.parametrize("command", ["cat", "verify --decode", "decompress -c"])
def test_small_files_are_decoded_together(run: Run, llama_folder: Path, batches: list[int], command: str) -> None:
    codec = Codec.load(str(llama_folder), device="cpu")
    texts = {name: f"{name}: {TEXT[:300]}".encode() for name in "abd"}
    for name, text in texts.items():
        Path(f"{name}.memz").write_bytes(codec.encode(text))
    Path("c.memz").write_bytes(b"damaged")
    Path("e.memz").write_bytes(RESULT)
    done = run(*command.split(), *(f"{name}.memz" for name in "abcde"), "--model", llama_folder)
    assert done.exit_code == 1 and batches == [3]
    assert "c.memz: " in done.stderr and "1 of 5 files failed" in done.stderr
    whole = [*texts.values(), memcodec.decode(RESULT)]
    if command.startswith("verify"):
        lines = [f"{name}.memz: ok, decodes to {len(text):,} bytes\n" for name, text in zip("abde", whole, strict=True)]
        assert done.stdout == "".join(lines)
    else:
        assert done.stdout_bytes == b"".join(whole)


def test_a_file_that_does_not_decode_is_named_among_small_ones(
    run: Run, llama_folder: Path, batches: list[int]
) -> None:
    codec = Codec.load(str(llama_folder), device="cpu")
    for name in "abc":
        Path(f"{name}.memz").write_bytes(codec.encode(TEXT[:200] + name))
    blob = bytearray(Path("b.memz").read_bytes())
    blob[-6] ^= 1  # in the corrections; the checksum of the file is made right
    blob[-4:] = zlib.crc32(blob[:-4]).to_bytes(4, "little")
    Path("b.memz").write_bytes(blob)
    done = run("verify", "--decode", "a.memz", "b.memz", "c.memz", "--model", llama_folder)
    assert done.exit_code == 1 and re.match("memcodec: error: b.memz: .*checksum", done.stderr)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["a.memz", "c.memz"]
    assert batches == [3]


def test_files_and_archives_are_verified_in_order_in_batches(
    run: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    codec = Codec.load(str(llama_folder), device="cpu")
    for name in "abdef":
        Path(name).write_bytes(codec.encode(TEXT[:200] + name))
    Archive.create("c", ["x", "y"], codec=codec)
    args = ("verify", "--decode", *"abcdef", "--model", llama_folder)
    lines = [
        "c: ok, an archive of 2 documents, decoded\n" if name == "c" else f"{name}: ok, decodes to 201 bytes\n"
        for name in "abcdef"
    ]
    for limits, expected in (
        ({}, [5]), ({"_BATCH_FILES": 3}, [2, 3]), ({"_BATCH_BYTES": 1}, []), ({"_GROUP_BYTES": 8}, [2, 2]),
    ):  # fmt: skip
        batches.clear()
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(library, name, value)
            assert run(*args).stdout == "".join(lines)
        assert batches == expected, limits
