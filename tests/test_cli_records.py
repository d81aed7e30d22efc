"""What `pack`, `primer train` and `bench --messages` read: tables, JSON lines and text as other programs write them."""

import gzip
import json
from pathlib import Path

import pytest

from memcodec import Archive, Codec
from memcodec_cli.records import read_records

from .conftest import Run
from .test_cli import refused
from .test_cli_names import on_a_terminal


def documents(name: str, field: str | None = None, key: str | None = None) -> list[bytes]:
    return [record.document for record in read_records(name, field, key)]


@pytest.mark.parametrize(
    ("name", "data", "field", "expected"),
    [
        # a blank line of one column is an empty cell, as spreadsheets write it; of several columns, it is none
        ("one.csv", b"text\na\n\nb\n\n", None, [b"a", b"", b"b", b""]),
        ("two.csv", b"\nid,text\n1,a\n\n2,b\n", "text", [b"a", b"b"]),
        ("one.csv", b"text\r\na\r\n\r\nb", None, [b"a", b"", b"b"]),
        ("t.tsv", b'id\ttext\n1\ta, b\n2\t"c\td"\n', "text", [b"a, b", b"c\td"]),
        ("excel.tsv", "id\ttext\r\n1\té\r\n".encode("utf-16"), "text", ["é".encode()]),
        ("be.csv", b"\xfe\xff" + "text\né\n".encode("utf-16-be"), None, ["é".encode()]),
        ("shell.jsonl", '{"text": "é"}\r\n'.encode("utf-16"), "text", ["é".encode()]),
        ("long.csv", b"text\n" + b"x" * 300_000, None, [b"x" * 300_000]),
        ("a.ndjson", b'"a"\n\n{"b": 1}\n', None, [b"a", b'{"b": 1}']),
        ("a.json", b'{"text": "a"}\n{"text": [1, "b"]}\n', "text", [b"a", b'[1, "b"]']),
        ("a.txt", b"a\n\nb\r\n", None, [b"a", b"", b"b"]),
    ],
    ids=str,
)
def test_every_row_becomes_a_document(
    run: Run, name: str, data: bytes, field: str | None, expected: list[bytes]
) -> None:
    Path(name).write_bytes(data)
    assert documents(name, field) == expected


ARRAY = json.dumps([{"text": "a"}, {"text": "b"}])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l.csv", "id,text\n1,a\n2,é\n".encode("latin-1"), "l.csv, line 3: it is not UTF-8: convert the file, as with"),
        ("l.jsonl", '{"text": "é"}\n'.encode("latin-1"), "l.jsonl, line 1: it is not UTF-8: convert the file, as with"),
        ("u.txt", "text\n".encode("utf-16"), "u.txt: it is text in UTF-16: convert it, as with iconv -f UTF-16"),
        ("u.csv", b"\xff\xfea", "u.csv: it begins like UTF-16, but is not"),
        ("p.json", json.dumps([{"text": "a"}], indent=1).encode(), "p.json, line 1: one JSON value has several lines"),
        ("o.jsonl", json.dumps({"text": "a"}, indent=1).encode(), "jq -c '.[]'"),
        ("a.json", ARRAY.encode(), "a.json, line 1: it is not an object, and has no field 'text': give one record per"),
        ("b.json", b'{"text": "a"}\n{"text"\n', "b.json, line 2: not valid JSON"),
        ("m.jsonl.gz", gzip.compress(b'{"text": "a"}'), "m.jsonl.gz: it is compressed with gzip: pipe it through zcat"),
        ("m.txt", b"PK\3\4\0\0", "m.txt: it is a zip file or a spreadsheet (.xlsx): save it as CSV in UTF-8"),
        ("s.csv", b"id;text\n1;a\n", "s.csv: its first row has semicolons instead of commas: save it with commas"),
        ("t.csv", b"id\ttext\n1\ta\n", "t.csv: its first row has tabs instead of commas: save it with commas"),
        ("t.tsv", b"text\tid\na\tb\tc\n", "t.tsv, row 1: it has more cells than the first row: quote texts with tabs"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_named_with_advice(run: Run, name: str, data: bytes, message: str) -> None:
    Path(name).write_bytes(data)
    field = [] if name.endswith(".txt") else ["--field", "text"]
    assert message in refused(run("pack", name, "-o", "x", *field))
    assert not Path("x").exists()


def test_the_summary_of_pack_is_for_terminals(run: Run, tiny: Codec, llama_folder: Path) -> None:
    Path("m.txt").write_text("one line\n")
    model = ("--model", str(llama_folder))
    assert run("pack", "m.txt", "-o", "a", *model).stderr == ""
    size = Path("a").stat().st_size
    line = f"a: 1 document, {size} bytes\n"
    assert run("pack", "m.txt", "-o", "a", "-f", "-v", *model).stderr == line
    assert line in on_a_terminal("pack", "m.txt", "-o", "a", "-f", "--no-progress", *model)
    assert run("verify", "a").stdout == "a: ok, an archive of 1 document\n"
    assert repr(Archive("a")) == "<memcodec.Archive 'a': 1 document>"


def test_keys_that_an_archive_has_or_has_not_are_asked_for(run: Run, tiny: Codec) -> None:
    Archive.create("with", [b"x"], ["a"], codec=tiny)
    Archive.create("without", [b"x"], codec=tiny)
    Path("m.jsonl").write_text('{"id": "b", "text": "y"}\n')
    args = ("pack", "m.jsonl", "--field", "text", "-a", "-o")
    assert refused(run(*args, "with")) == (
        "memcodec: error: with: its documents have keys, but m.jsonl, line 1 has none: use --key, or a directory\n"
    )
    assert "without: its documents have no keys, but m.jsonl, line 1 has one: pack without --key" in refused(
        run(*args, "without", "--key", "id")
    )
