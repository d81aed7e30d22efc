"""Archives and primers on the command line: `pack`, `unpack`, `primer`, and messages read from JSON lines and CSV."""

import json
from pathlib import Path

import pytest

from memcodec import Archive, Codec
from memcodec.primer import Primer

from .conftest import TEXT, Run
from .test_cli import refused


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
