"""Habits of gzip and zstd: many files, short options, and commands for many short documents."""

import json
import os
import pty
import stat
import subprocess
from pathlib import Path

import pytest

import memcodec
from memcodec import Archive, Codec, Readout
from memcodec.files.primer import Primer
from memcodec.models import registry
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
    def test_recursively_and_back(self, run: Run) -> None:
        assert run("compress", "-r", "t").exit_code == 0
        found = sorted(p.as_posix() for p in Path().rglob("*") if p.is_file())
        assert found == ["t/a", "t/a.memz", "t/c.memz", "t/sub/b", "t/sub/b.memz"]
        for name in ("t/a", "t/sub/b"):
            Path(name).unlink()
        assert run("decompress", "-r", "t").exit_code == 0
        assert Path("t/a").read_bytes() == NOISE and Path("t/sub/b").read_bytes() == b"\xff" * 9
        assert Path("t/c").read_bytes() == b"stored " * 400

    def test_into_another_folder(self, run: Run) -> None:
        assert run("compress", "-r", "t", "--output-dir", "new/out").exit_code == 0
        assert sorted(p.as_posix() for p in Path("new").rglob("*.memz")) == ["new/out/a.memz", "new/out/sub/b.memz"]
        assert run("decompress", "new/out/a.memz", "--output-dir", "back").exit_code == 0
        assert Path("back/a").read_bytes() == NOISE

    def test_a_folder_without_r(self, run: Run) -> None:
        assert "is a directory" in refused(run("compress", "t"))


def test_many_files_of_which_some_fail(run: Run, llama_folder: Path) -> None:
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


def test_one_document_that_fails_while_many_are_encoded(
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


def test_short_options_stand_for_commands(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    done = run("-l", "a.memz")
    assert done.exit_code == 0 and "2,800" in done.stdout and "a.memz" in done.stdout
    assert run("-t", "a.memz").stdout == "a.memz: ok, decodes to 2,800 bytes\n"
    assert run("-d", "-k", "a.memz").exit_code == 0 and names() == ["a", "a.memz"]
    assert run("-z", "-f", "a").exit_code == 0
    assert run("cat", "a.memz", "a.memz").stdout_bytes == b"stored " * 800


def test_removing_inputs_and_keeping_times(run: Run) -> None:
    Path("a").write_bytes(NOISE)
    os.utime("a", ns=(1_600_000_000_123_456_789, 1_500_000_000_123_456_789))
    Path("a").chmod(0o640)
    assert run("compress", "--rm", "a").exit_code == 0 and names() == ["a.memz"]
    assert run("decompress", "a.memz", "--rm").exit_code == 0 and names() == ["a"]
    assert Path("a").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert stat.S_IMODE(Path("a").stat().st_mode) == 0o640
    assert run("compress", "--rm", "-k", "a").exit_code == 0 and names() == ["a", "a.memz"]


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


@pytest.mark.parametrize("text", [TEXT, "\x00\x01" * 200])
def test_an_input_that_grows_meanwhile_is_kept(
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


def test_nothing_named_is_standard_input(run: Run) -> None:
    blob = run("compress", stdin=NOISE).stdout_bytes
    assert run("decompress", stdin=blob).stdout_bytes == NOISE and run("cat", stdin=blob).stdout_bytes == NOISE


def test_nothing_named_at_a_terminal_is_a_mistake(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    done = subprocess.run([*PROGRAM, "compress"], stdin=terminal, capture_output=True, cwd=tmp_path, timeout=60)
    os.close(terminal)
    os.close(main)
    assert done.returncode == 2 and b"no input: name a FILE, or pipe data to standard input" in done.stderr


def test_what_is_compressed_already_is_named(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    done = run("compress", "a.memz")
    assert done.exit_code == 0 and done.stderr == "memcodec: warning: a.memz: is already compressed\n"
    assert names() == ["a.memz", "a.memz.memz"]


def test_files_one_behind_the_other_and_trailing_bytes(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT + RESULT)
    assert run("decompress", "a.memz", "-c").stdout_bytes == b"stored " * 800
    assert run("verify", "a.memz").exit_code == 0
    Path("a.memz").write_bytes(RESULT + b"more")
    assert "4 trailing bytes behind the end of the file" in refused(run("decompress", "a.memz"))


def test_verbose_says_what_was_done(run: Run) -> None:
    Path("a").write_bytes(NOISE)
    assert run("compress", "a", "-v").stderr.startswith("a: 768 bytes, ")
    assert run("decompress", "a.memz", "-f", "-v", "--no-progress").stderr.startswith("a.memz: 768 bytes, ")
    assert run("decompress", "a.memz", "-f", "-v", "-q").stderr == ""


def test_ranges(run: Run, llama_folder: Path) -> None:
    data = TEXT.encode() * 3
    Path("a").write_bytes(data)
    Path("b").write_bytes(Codec.load(str(llama_folder), device="cpu").encode(data, site=Readout(0)))
    for start, length in ((0, 10), (500, 100), (len(data) - 5, 100), (len(data), 3), (7, 0)):
        args = ("decompress", "b", "-c", "--range", f"{start}:{length}", "--model", llama_folder)
        assert run(*args).stdout_bytes == data[start : start + length]
    assert run("decompress", "b", "-c", "--range", "900:", "--model", llama_folder).stdout_bytes == data[900:]
    assert "the document has" in refused(run("decompress", "b", "-o", "c", "--range", f"{len(data) + 1}:4"))
    for bad in ("5", "a:b", "-1:5", "1:-5"):
        assert "START:LENGTH" in refused(run("decompress", "b", "-o", "c", "--range", bad), 2)


def test_inspect_and_list_several(run: Run) -> None:
    for name in ("a", "b"):
        Path(name).write_bytes(RESULT)
    Path("bad").write_bytes(b"x")
    found = json.loads(run("inspect", "a", "b", "--json").stdout)
    assert [facts["file"] for facts in found] == ["a", "b"]
    done = run("inspect", "a", "bad", "b")
    assert done.exit_code == 1 and done.stdout.count("format version") == 2 and "bad: not a memcodec" in done.stderr
    assert run("list", "a", "b").stdout.count("2,800") == 2


def test_variables_give_defaults(run: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run: Run, shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_MEMCODEC_COMPLETE" in script
    done = subprocess.run(
        PROGRAM, env={**os.environ, "_MEMCODEC_COMPLETE": f"{shell}_complete", "COMP_WORDS": "memcodec comp",
                      "COMP_CWORD": "1" if shell != "fish" else "comp"}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0


def test_python_m_memcodec(tmp_path: Path) -> None:
    done = subprocess.run([PROGRAM[0], "-m", "memcodec", "--version"], capture_output=True, timeout=60)
    assert done.stdout.decode() == f"memcodec {memcodec.__version__}\n"


def test_models_are_removed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path / "cache"))
    assert "is not in the cache" in refused(run("models", "rm", "smollm2-135m"))
    folder = tmp_path / "cache"
    monkeypatch.setattr(registry, "cached", lambda name: folder)
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(2_000_000))
    assert run("models", "rm", "smollm2-135m").stdout == "smollm2-135m: removed, 2 MB\n" and not folder.exists()


# ---- many short documents


@pytest.fixture
def tiny_name(llama_folder: Path) -> str:
    return str(llama_folder)


def test_pack_list_and_unpack(run: Run, tiny_name: str) -> None:
    lines = TEXT.splitlines()
    Path("m.txt").write_text(TEXT)
    Path("m.jsonl").write_text(
        "".join(json.dumps({"id": f"k{i}", "text": line}) + "\n" for i, line in enumerate(lines))
    )
    Path("m.csv").write_text('id,text\n1,one\n2,"two, and more"\n')
    assert "3 documents" in run("pack", "m.txt", "-o", "a", "--model", tiny_name).stderr
    assert run("unpack", "a", "--model", tiny_name, "--lines").stdout == TEXT
    assert json.loads(run("unpack", "a", "2", "--model", tiny_name).stdout) == lines[2]
    assert run("list", "a").stdout.count("a: ") == 3
    assert (
        run("pack", "m.jsonl", "-o", "b", "--field", "text", "--key", "id", "--model", tiny_name, "-q").exit_code == 0
    )
    found = json.loads(run("unpack", "b", "k1", "--model", tiny_name).stdout)
    assert found == {"key": "k1", "text": lines[1]}
    assert "no document 'k9'" in refused(run("unpack", "b", "k9", "--model", tiny_name))
    args = ("m.csv", "--field", "text", "--model", tiny_name, "-q")
    assert run("pack", *args, "-o", "c").exit_code == 0
    assert run("unpack", "c", "--lines", "--model", tiny_name).stdout == "one\ntwo, and more\n"
    assert "exists: overwrite it with -f, or add to it with -a" in refused(run("pack", *args, "-o", "c"))
    assert run("pack", *args, "-o", "c", "-a").exit_code == 0
    assert len(Archive("c")) == 4
    assert "name the column" in refused(run("pack", "m.csv", "-o", "d", "--model", tiny_name))
    assert "has no field 'nothing'" in refused(run("pack", "m.csv", "-o", "d", "--field", "nothing"))
    Path("odd.csv").write_text('text,id\n"one\u2028line",1\n"two\nlines",2\n')
    assert run("pack", "odd.csv", "--field", "text", "-o", "odd", "--model", tiny_name, "-q").exit_code == 0
    assert list(Archive("odd", Codec.load(tiny_name))) == ["one\u2028line".encode(), b"two\nlines"]
    for bad in ("[" * 100_000, '"\\ud800"'):
        Path("worse.jsonl").write_text(bad)
        assert "worse.jsonl, line 1" in refused(run("pack", "worse.jsonl", "-o", "d"))
    Path("bytes").mkdir()
    Path("bytes/x").write_bytes(b"\xff\xfe")
    assert run("pack", "bytes", "-o", "bytes.archive", "--model", tiny_name, "-q").exit_code == 0
    Path("again.jsonl").write_text(run("unpack", "bytes.archive", "--model", tiny_name).stdout)
    args = ("pack", "again.jsonl", "--field", "text", "--key", "key", "-o", "again", "--model", tiny_name, "-q")
    assert run(*args).exit_code == 0 and Archive("again", Codec.load(tiny_name))["x"] == b"\xff\xfe"
    Path("bad.jsonl").write_text("{")
    assert "bad.jsonl, line 1: not valid JSON" in refused(run("pack", "bad.jsonl", "-o", "d"))


def test_archives_are_verified(run: Run, tiny_name: str, tiny: Codec) -> None:
    Archive.create("a", [b"x", b"y"], codec=tiny)
    assert run("verify", "a").stdout == "a: ok, an archive of 2 documents\n"
    assert run("-t", "a", "--model", tiny_name).stdout == "a: ok, an archive of 2 documents, decoded\n"
    blob = bytearray(Path("a").read_bytes())
    blob[-6] ^= 1
    Path("a").write_bytes(blob)
    assert "a: damaged file" in run("verify", "a").stderr


def test_folders_are_looked_through(run: Run) -> None:
    Path("in").mkdir()
    Path("in/a").write_bytes(bytes(range(200, 256)) * 9)
    assert "is a directory: use -r" in refused(run("compress", "in"))
    assert run("compress", "-r", "in").exit_code == 0
    assert run("verify", "-r", "in").stdout == "in/a.memz: ok\n"
    assert run("list", "-r", "in").stdout.endswith("in/a.memz\n")
    assert "is a directory: use -r" in refused(run("decompress", "in"))


@pytest.mark.parametrize("options", [["-dc"], ["-cd"], ["-d", "-c"], ["-dqc"]])
def test_short_options_in_one(run: Run, options: list[str]) -> None:
    Path("a").write_bytes(b"stored " * 400)
    assert run("compress", "a").exit_code == 0
    assert run(*options, "a.memz").stdout_bytes == b"stored " * 400


def test_messages_are_read_by_their_field(run: Run, llama_folder: Path) -> None:
    lines = [json.dumps({"id": n, "text": f"message {n} of this kind"}) for n in range(20)]
    Path("m.jsonl").write_text("\n".join(lines))
    done = run(
        "bench", "--messages", "m.jsonl", "--field", "text", "--model", llama_folder, "--json", "--device", "cpu"
    )
    found = json.loads(done.stdout)
    assert found["lines"][0]["total_bytes"] < 26 * found["messages"]


def test_folders_as_archives(run: Run, tiny_name: str, tiny: Codec) -> None:
    for name in ("in/x", "in/sub/y"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(TEXT + name)
    assert run("pack", "in", "-o", "a", "--model", tiny_name, "-q").exit_code == 0
    assert run("unpack", "a", "-o", "out", "--model", tiny_name).exit_code == 0
    assert Path("out/x").read_text() == TEXT + "in/x" and Path("out/sub/y").read_text() == TEXT + "in/sub/y"
    assert "exists" in refused(run("unpack", "a", "-o", "out", "--model", tiny_name))
    for key in ("../evil", "/tmp/evil", ".", "x/../../evil"):
        Archive.create("b", [b"x"], [key], codec=tiny, overwrite=True)
        assert "leads out of" in refused(run("unpack", "b", "-o", "below", "--model", tiny_name))
    assert not Path("below").exists() or not list(Path("below").iterdir())


def test_primers_on_the_command_line(run: Run, tiny_name: str) -> None:
    Path("m").write_text("".join(f"user {i} signed in from port {i * 7 % 100}\n" for i in range(40)))
    done = run("primer", "train", "m", "-o", "p", "--tokens", "60", "--model", tiny_name)
    assert done.exit_code == 0 and "tokens; the average message needs" in done.stderr
    assert "with it (measured on 10 other messages)" in done.stderr
    assert run("primer", "show", "p").stdout.startswith("user ") and len(Primer.load("p").tokens) <= 60
    assert "p exists" in refused(run("primer", "train", "m", "-o", "p"))
    Path("a").write_text(TEXT)
    assert run("compress", "a", "--primer", "p", "--model", tiny_name, "--memory-share", "0").exit_code == 0
    assert "needs the primer" in refused(run("decompress", "a.memz", "-c", "--model", tiny_name))
    assert run("decompress", "a.memz", "-c", "--model", tiny_name, "--primer", "p").stdout_bytes == TEXT.encode()
    assert "none: no such file" in refused(run("compress", "a", "-f", "--primer", "none", "--model", tiny_name))
    assert "not a primer" in refused(run("compress", "a", "-f", "--primer", "m", "--model", tiny_name))
    assert run("pack", "m", "-o", "x", "--primer", "p", "--model", tiny_name, "-q").exit_code == 0
    assert run("unpack", "x", "--lines", "--model", tiny_name).stdout == Path("m").read_text()
    assert run("pack", "m", "-o", "y", "--primer", "p", "--no-primer-inside", "--model", tiny_name).exit_code == 0
    assert "needs the primer" in refused(run("unpack", "y", "--model", tiny_name))
    args = ("unpack", "y", "--lines", "--model", tiny_name, "--primer", "p")
    assert run(*args).stdout == Path("m").read_text()
