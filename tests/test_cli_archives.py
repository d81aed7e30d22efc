"""Archives and primers on the command line: `pack`, `unpack`, `primer`, and messages read from JSON lines and CSV."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from memcodec import Archive, Codec
from memcodec.files import archive
from memcodec.primer import Primer
from memcodec_cli.archive import _write_files

from .conftest import TEXT, Run, needs_names_of_bytes
from .test_cli import PROGRAM, refused
from .test_open_and_archives import damage_last_document


@pytest.fixture
def tiny_name(llama_folder: Path) -> str:
    return str(llama_folder)


def test_pack_list_and_unpack_restore_every_document(run: Run, tiny_name: str) -> None:
    lines = TEXT.splitlines()
    Path("m.txt").write_text(TEXT)
    Path("m.jsonl").write_text(
        "".join(json.dumps({"id": f"k{i}", "text": line}) + "\n" for i, line in enumerate(lines))
    )
    Path("m.csv").write_text('id,text\n1,one\n2,"two, and more"\n')
    assert "3 documents" in run("pack", "m.txt", "-o", "a", "--model", tiny_name, "-v").stderr
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
    assert "it has no column 'nothing': it has 'id', 'text'" in refused(
        run("pack", "m.csv", "-o", "d", "--field", "nothing")
    )
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


def test_verify_finds_damage_in_archives(run: Run, tiny_name: str, tiny: Codec) -> None:
    Archive.create("a", [b"x", b"y"], codec=tiny)
    assert run("verify", "a").stdout == "a: ok, an archive of 2 documents\n"
    assert run("-t", "a", "--model", tiny_name).stdout == "a: ok, an archive of 2 documents, decoded\n"
    blob = bytearray(Path("a").read_bytes())
    blob[-6] ^= 1
    Path("a").write_bytes(blob)
    assert "a: damaged file" in run("verify", "a").stderr


def test_bench_measures_the_messages_in_a_json_field(run: Run, llama_folder: Path) -> None:
    lines = [json.dumps({"id": n, "text": f"message {n} of this kind"}) for n in range(20)]
    Path("m.jsonl").write_text("\n".join(lines))
    done = run(
        "bench", "--messages", "m.jsonl", "--field", "text", "--model", llama_folder, "--json", "--device", "cpu"
    )
    found = json.loads(done.stdout)
    assert found["lines"][0]["total_bytes"] < 26 * found["messages"]


def test_unpack_restores_a_folder_and_never_writes_outside_of_it(run: Run, tiny_name: str, tiny: Codec) -> None:
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


def test_what_a_primer_made_needs_the_same_primer(run: Run, tiny_name: str) -> None:
    Path("m").write_text("".join(f"user {i} signed in from port {i * 7 % 100}\n" for i in range(40)))
    done = run("primer", "train", "m", "-o", "p", "--tokens", "60", "--model", tiny_name)
    assert done.exit_code == 0 and "tokens; the average message needs" in done.stderr
    assert "with it (measured on 10 other messages)" in done.stderr
    again = run("primer", "train", "m", "m", "-o", "q", "--tokens", "60", "--model", tiny_name)
    assert "with it (measured on 10 other messages)" in again.stderr, "equal messages are not used for both"
    Path("q").unlink()
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
    assert "for a new ARCHIVE" in refused(run("pack", "m", "-a", "-o", "x", "--no-primer-inside"), 2)
    assert "--lines is for standard output" in refused(run("unpack", "x", "--lines", "-o", "out"), 2)
    args = ("unpack", "y", "--lines", "--model", tiny_name, "--primer", "p")
    assert run(*args).stdout == Path("m").read_text()


def test_too_few_messages_are_an_error_with_the_name_of_the_file(run: Run, tiny_name: str) -> None:
    Path("m").write_text("one\n")
    assert refused(run("primer", "train", "m", "-o", "p", "--model", tiny_name)) == (
        "memcodec: error: m: 1 different message of text: give 4 or more to train a primer\n"
    )


def test_the_fewest_messages_that_train_a_primer_leave_one_to_measure(run: Run, tiny_name: str) -> None:
    """With fewer than 4 messages for training there is no primer, so that nothing is measured on 0 messages."""
    lines = [f"user {i} signed in\n" for i in range(5)]
    train = ("primer", "train", "m", "-o", "p", "--tokens", "60", "--model", tiny_name)
    Path("m").write_text("".join(lines[:4]))
    assert "m: 3 different messages of text: give 4 or more" in refused(run(*train))
    Path("m").write_text("".join(lines))
    done = run(*train)
    found = re.search(r"needs (.*) bytes without the primer, (.*) with it \(measured on 1 other message\)", done.stderr)
    assert done.exit_code == 0 and found is not None and min(map(float, found.groups())) > 0


def test_csv_as_spreadsheets_write_it(run: Run, tiny_name: str, tiny: Codec) -> None:
    """With a byte-order mark; the only column besides the key is the document."""
    Path("m.CSV").write_bytes("\ufeffid,text\r\na,one\r\nb,two\r\n".encode())
    model = ("--model", tiny_name, "-q")
    for number, args in enumerate((["--key", "id"], ["--key", "id", "--field", "text"], ["--field", "id"])):
        assert run("pack", "m.CSV", "-o", str(number), *args, *model).exit_code == 0
    assert Archive("0").keys() == Archive("1").keys() == ["a", "b"]
    assert list(Archive("0", tiny)) == [b"one", b"two"] and list(Archive("2", tiny)) == [b"a", b"b"]
    Path("one.csv").write_text("text\none\n")
    assert run("pack", "one.csv", "-o", "one", *model).exit_code == 0 and list(Archive("one", tiny)) == [b"one"]
    message = refused(run("pack", "m.CSV", "-o", "x", *model))
    assert "m.CSV: name the column of the documents with --field: it has 'id', 'text'" in message
    for text, args, message in (
        ("id,x\n", ["--field", "text"], "it has no column 'text': it has 'id', 'x'"),
        ("a,a\n1,2\n", ["--field", "a"], "it has several columns 'a': it has 'a', 'a'"),
        ("", ["--field", "a"], "it has no column 'a': it has none"),
        ("a,b\n1,2\n3\n", ["--field", "b"], "bad.csv, row 2: it has fewer cells than the first row"),
    ):
        Path("bad.csv").write_text(text)
        assert message in refused(run("pack", "bad.csv", "-o", "x", *args, *model))


def test_json_null_is_not_a_missing_field(run: Run, tiny_name: str, tiny: Codec) -> None:
    Path("m.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 1, "text": "a"}\n{"id": null, "text": null}\n[1]\n')
    for args, message in (
        (["--field", "text"], "m.jsonl, line 2: its field 'text' is null: give it a text, or remove the line"),
        (["--key", "id"], "m.jsonl, line 2: its field 'id' is null"),
        (["--field", "x"], "m.jsonl, line 1: it has no field 'x': it has 'id', 'text'"),
    ):
        assert message in refused(run("pack", "m.jsonl", "-o", "x", *args))
    Path("m.jsonl").write_text("[1]\n")
    assert "m.jsonl, line 1: it is not an object" in refused(run("pack", "m.jsonl", "-o", "x", "--field", "text"))
    Path("m.jsonl").write_bytes('\ufeff"a"\n{"x": "é"}\n'.encode())
    assert run("pack", "m.jsonl", "-o", "a", "--model", tiny_name, "-q").exit_code == 0
    assert list(Archive("a", tiny)) == [b"a", '{"x": "é"}'.encode()]


def test_with_a_field_lines_are_json_whatever_the_file_is_called(run: Run, tiny_name: str, tiny: Codec) -> None:
    """The fields of standard input and of pipes were ignored, and the lines packed as they are."""
    lines = b'{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n'
    args = ("pack", "-", "--field", "text", "--key", "id", "-o", "x", "--model", tiny_name, "-q")
    assert run(*args, stdin=lines).exit_code == 0
    assert Archive("x", tiny)["b"] == b"two"


def test_records_that_an_archive_cannot_have_are_named(run: Run) -> None:
    for lines, message in (
        (["a", "b", "a"], "m.jsonl, line 3: its key 'a' is also that of m.jsonl, line 1: give each its own"),
        (["a", ""], "m.jsonl, line 2: its key is empty: give it one, or give no keys at all"),
        (["a", "k" * 5000], "m.jsonl, line 2: its key has 5,000 bytes: keys have 4,096 at most: shorten it"),
        (["a", "b\0"], "m.jsonl, line 2: its key 'b\\x00' contains NUL: remove it"),
        (["a", "\ud800"], "m.jsonl, line 2: its key '\\ud800' is not valid Unicode: give it another"),
    ):
        Path("m.jsonl").write_text("".join(json.dumps({"id": key}) + "\n" for key in lines))
        assert message in refused(run("pack", "m.jsonl", "-o", "x", "--key", "id"))
    for folder in ("in", "other"):
        Path(folder).mkdir()
        Path(folder, "x").write_bytes(b"x")
    assert "other/x: its key 'x' is also that of in/x" in refused(run("pack", "in", "other", "-o", "x"))
    Path("in/x").write_bytes(bytes((1 << 20) + 1))
    assert "in/x: it has 1,048,577 bytes" in refused(run("pack", "in", "-o", "x"))


@needs_names_of_bytes
def test_a_name_that_cannot_be_a_key_is_shown_as_the_shell_reads_it(run: Run) -> None:
    Path("in").mkdir()
    Path("in/bad\udcff").write_bytes(b"x")
    message = refused(run("pack", "in", "-o", "x"))
    assert r"$'in/bad\377': its name is not UTF-8, as a key must be: rename it" in message


def test_a_key_that_the_archive_has_already_is_named(run: Run, tiny_name: str, tiny: Codec) -> None:
    Archive.create("a", [b"x", b"y"], ["k", "l"], codec=tiny)
    Path("m.jsonl").write_text('{"id": "l"}\n')
    message = refused(run("pack", "m.jsonl", "-a", "-o", "a", "--key", "id", "--model", tiny_name))
    assert "m.jsonl, line 1: its key 'l' is in a already: give it another" in message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["d", "d/e"], "the key 'd/e' needs a folder where the key 'd' is a file"),
        (["d/e/f", "d"], "the key 'd/e/f' needs a folder where the key 'd' is a file"),
        (["a", "./a"], "the keys 'a' and './a' name the same file"),
        (["a", "b/../a"], "the keys 'a' and 'b/../a' name the same file"),
        (["a", "../a"], "'../a': not written, because this key leads out of out"),
        (["a", "x" * 256], "is too long for the name of a file"),
        (["a", "there"], "out/there exists: unpack into another directory"),
        (["a", "there/b"], "out/there is not a directory: unpack into another one"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_unpack_writes_all_or_nothing(run: Run, tiny_name: str, tiny: Codec, keys: list[str], message: str) -> None:
    Path("out").mkdir()
    Path("out/there").write_text("before")
    Archive.create("x", [b"x", b"y"], keys, codec=tiny)
    assert message in refused(run("unpack", "x", "-o", "out", "--model", tiny_name))
    assert [path.name for path in Path("out").rglob("*")] == ["there"]


def test_unpack_leaves_nothing_after_an_error(
    run: Run, tiny_name: str, tiny: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of earlier batches stayed, and the next run was refused because of them."""
    Archive.create("x", [b"one", b"two", b"three"], ["a", "new/b", "c"], codec=tiny)
    damage_last_document(Path("x"))
    Path("out").mkdir()
    Path("out/there").write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_READ_TOGETHER", 1)
        for folder in ("out", "made/out"):
            message = refused(run("unpack", "x", "-o", folder, "--model", tiny_name))
            assert message.startswith("memcodec: error: x: document 'c': a frame does not match its checksum")
    assert not Path("made").exists() and [path.name for path in Path("out").rglob("*")] == ["there"]
    message = refused(run("unpack", "-", "--model", tiny_name, stdin=Path("x").read_bytes()))
    assert message.startswith("memcodec: error: standard input: document 'c': a frame does not match its checksum")
    assert run("unpack", "x", "a", "new/b", "-o", "out", "--model", tiny_name).exit_code == 0
    assert Path("out/a").read_bytes() == b"one" and Path("out/new/b").read_bytes() == b"two"


def test_a_file_that_appears_while_unpack_works_is_kept(run: Run) -> None:
    def documents() -> Iterator[bytes]:
        yield b"one"
        Path("new/b").write_bytes(b"of another program")
        yield b"two"

    with pytest.raises(click.ClickException, match="new/b exists: unpack into another directory"):
        _write_files([Path("new/a"), Path("new/b")], documents())
    assert [path.name for path in Path("new").iterdir()] == ["b"]
    assert Path("new/b").read_bytes() == b"of another program"


def test_a_number_of_many_digits_is_no_document(run: Run, tiny: Codec) -> None:
    """Python reads no number of more than 4,300 digits, and the error was a traceback."""
    Archive.create("x", [b"x"], codec=tiny)
    for digits in ("1", "9" * 5000):
        assert refused(run("unpack", "x", digits)) == f"memcodec: error: x: has no document '{digits}'\n"


def test_unpack_checks_keys_and_outputs_before_it_loads_a_model(run: Run, tiny: Codec) -> None:
    Archive.create("x", [b"x"], ["a"], codec=tiny)
    Path("out").mkdir()
    Path("out/a").write_text("before")
    assert refused(run("unpack", "x", "k")) == "memcodec: error: x: has no document 'k'\n"
    assert refused(run("unpack", "x", "-o", "out")) == (
        "memcodec: error: out/a exists: unpack into another directory\n"
    )
    for option in ("", "--lines"):
        line = f"{' '.join(PROGRAM)} unpack x {option} >&-"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (1, "memcodec: error: standard output is closed\n")


def test_verify_loads_one_model_for_all_archives(run: Run, tiny_name: str, tiny: Codec, loads: list[object]) -> None:
    primer = Primer.from_texts([TEXT], 100, tiny)
    Archive.create("plain", [TEXT], codec=tiny)
    Archive.create("primed", [TEXT], codec=tiny, primer=primer)
    Archive.create("bare", [TEXT], codec=tiny, primer=primer, with_primer=False)
    loads.clear()
    done = run("verify", "--decode", "plain", "primed", "bare", "plain", "--model", tiny_name)
    assert len(loads) == 1 and done.stdout == "".join(
        f"{name}: ok, an archive of 1 document, decoded\n" for name in ("plain", "primed", "plain")
    )
    first, last = done.stderr.splitlines()
    assert first.startswith("memcodec: error: bare: ") and "needs the primer" in first, "not read with that of another"
    assert last == "memcodec: 1 of 4 files failed; the others succeeded"


def test_rows_of_csv_with_too_many_cells_are_refused(run: Run, llama_folder: Path) -> None:
    for content, message in (
        ("Name\nM;12,50\n", "row 1: it has more cells than the first row"),
        ('id,text\n1,"unclosed\n2,b\n', "t.csv, line 3: it cannot be read as a table"),
    ):
        Path("t.csv").write_text(content)
        field = () if "id" not in content else ("--field", "text")
        assert message in refused(run("pack", "t.csv", "-o", "t.archive", *field, "--model", llama_folder))
        assert not Path("t.archive").exists()
