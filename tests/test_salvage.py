"""Salvage of damaged files."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memcodec import FormatError, Lost, Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.container.assembly import salvage_of
from memcodec.settings import Context

from .conftest import TEXT, Run, store_nothing, traced
from .test_cli import refused

BETWEEN = bytes(range(128, 256)) * 2
WHOLE = TEXT.encode() * 4 + BETWEEN + TEXT.encode() * 4


def made(codec: Codec, context: Context) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        return codec.encode(WHOLE, site=Readout(0.1, 64), chunk_tokens=50, context=context)


def check(pieces: list[bytes | Lost]) -> int:
    """Check that all salvaged bytes are in the right place, and return their number."""
    place = found = 0
    for piece in pieces:
        if isinstance(piece, Lost):
            assert piece.start == place < piece.end
            place = piece.end
        else:
            assert WHOLE[place : place + len(piece)] == piece
            place, found = place + len(piece), found + len(piece)
    assert place == len(WHOLE)
    return found


@pytest.mark.parametrize("context", [0, 60, "max"])
def test_a_file_that_is_whole_gives_all(tiny: Codec, context: Context) -> None:
    assert b"".join(tiny.salvage(made(tiny, context))) == WHOLE  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [0, "auto"])
def test_a_file_cut_anywhere_gives_what_stands_before(tiny: Codec, context: Context) -> None:
    blob = made(tiny, context)
    parsed = container.unpack(blob)
    sizes = parsed.sizes
    index = sizes["header"] + sizes["index"] + sizes["memories"]
    for cut in range(index + sizes["stored"] + 8, len(blob), 150):
        end, whole, within = index + sizes["stored"], 0, False
        for part in parsed.parts:
            if isinstance(part, container.Segment):
                if part.corrections is not None:
                    end += len(part.corrections)
                    within = end <= cut - 4
                whole += part.size if within else 0
            else:
                whole += part.size
        assert check(list(tiny.salvage(blob[:cut]))) >= whole
    for cut in range(0, index - sizes["memories"], 40):
        with pytest.raises(FormatError):
            list(tiny.salvage(blob[:cut]))


def test_damage_costs_its_group_alone(tiny: Codec) -> None:
    parsed = container.unpack(made(tiny, 0))
    groups = [i for i, part in enumerate(parsed.parts) if isinstance(part, container.Segment)]
    assert len(groups) > 4
    for i in groups:
        part = parsed.parts[i]
        assert isinstance(part, container.Segment)
        if not part.corrections:
            continue
        size = part.size
        for later in parsed.parts[i + 1 :]:
            if isinstance(later, container.Segment):
                if later.corrections is not None:
                    break
                size += later.size
        bad = replace(part, corrections=bytes(b ^ 0x55 for b in part.corrections))
        pieces = list(
            tiny.salvage(container.pack(replace(parsed, parts=[bad if part is p else p for p in parsed.parts])))
        )
        assert any(isinstance(piece, Lost) for piece in pieces)
        assert check(pieces) >= len(WHOLE) - size
    stored = next(part for part in parsed.parts if isinstance(part, container.StoredSpan))
    span = replace(stored, packed=bytes(len(stored.packed)))
    pieces = list(
        tiny.salvage(container.pack(replace(parsed, parts=[span if p is stored else p for p in parsed.parts])))
    )
    start = len(TEXT.encode()) * 4
    assert [piece for piece in pieces if isinstance(piece, Lost)] == [Lost(start, start + stored.size)]


@pytest.mark.parametrize("memory", [b"", b"\0", b"\0\x7e" * 64, b"\0\x7c" * 64], ids=["none", "cut", "nan", "inf"])
def test_a_memory_of_the_prompt_site_costs_its_own_chunk(
    tiny: Codec, memory: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing came back, because the vectors of all groups are unpacked before the first is decoded."""
    store_nothing(monkeypatch)
    document = TEXT.encode()
    parsed = container.unpack(tiny.encode(document, site=Prompt(1, steps=2), chunk_tokens=40))
    first, second, *rest = parsed.segments
    assert len(rest) > 1 and parsed.parts == parsed.segments and len(second.chunks) == 1
    damaged = replace(second, chunks=(replace(second.chunks[0], memory=memory),))
    blob = container.pack(replace(parsed, parts=[first, damaged, *rest]))
    with pytest.raises(FormatError, match="damaged memory"):
        tiny.decode(blob)
    before, lost, *after = tiny.salvage(blob)
    assert before == document[: first.size] and lost == Lost(first.size, first.size + second.size, (1,))
    assert b"".join(after) == document[first.size + second.size :]  # type: ignore[arg-type]


def test_large_stored_spans_are_not_kept_whole() -> None:
    """A file of a few KB may have a span of any size. It is checked to its end before any of it is returned."""
    size = 1 << 26
    zeros = container.StoredSpan.of(bytes(size))
    for checksum, expected in ((zeros.checksum, size), (zeros.checksum ^ 1, 0)):
        parsed = container.Container(size, bytes(16), [replace(zeros, checksum=checksum)])
        with traced() as peak:
            pieces = salvage_of(parsed, [], None)
            assert sum(len(piece) for piece in pieces if isinstance(piece, bytes)) == expected
            assert peak() < 1 << 23


def test_flips_never_crash(tiny: Codec) -> None:
    blob, rng = made(tiny, 0), random.Random(0)
    for _ in range(60):
        bad = bytearray(blob)
        for _ in range(3):
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        try:
            list(tiny.salvage(bytes(bad)))
        except Exception as error:
            assert type(error).__module__ == "memcodec.errors" and "\n" not in str(error)


def test_the_command(run: Run, llama_folder: Path, tiny: Codec) -> None:
    blob = made(tiny, 0)
    Path("a.memz").write_bytes(blob[: len(blob) * 3 // 4])
    args = ("decompress", "--salvage", "a.memz", "--model", llama_folder)
    message = refused(run("decompress", "a.memz", "--model", llama_folder))
    assert "truncated file" in message and message.endswith("; use --salvage to recover the undamaged parts\n")
    done = run(*args, "--report", "r.json")
    report = json.loads(Path("r.json").read_text())
    back = Path("a").read_bytes()
    lines = [
        f"memcodec: lost: {gap['end'] - gap['start']:,} bytes, starting at byte {gap['start']:,}"
        for gap in report["lost"]
    ]
    lines.append(f"memcodec: {len(back):,} of {len(WHOLE):,} bytes written")
    assert done.exit_code == 3 and done.stderr.splitlines() == lines
    assert report["original_bytes"] == len(WHOLE) and report["written_bytes"] == len(back) > 400
    start = report["lost"][0]["start"]
    assert start > 100 and back[:start] == WHOLE[:start]
    Path("a.memz").write_bytes(blob)
    done = run(*args, "-f")
    assert done.exit_code == 0 and Path("a").read_bytes() == WHOLE
    assert run(*args, "--rm").exit_code == 2 and run("decompress", "a.memz", "--report", "x").exit_code == 2


def test_salvage_is_not_suggested_where_it_cannot_help(run: Run, tiny: Codec) -> None:
    Path("a.memz").write_bytes(made(tiny, 0)[:40])
    for option in ([], ["--salvage"]):
        assert refused(run("decompress", "a.memz", *option)) == (
            "memcodec: error: a.memz: truncated file: the header is cut\n"
        )


def test_the_output_is_where_decompress_writes_it(run: Run, llama_folder: Path, tiny: Codec) -> None:
    """--output-dir had no effect."""
    Path("in/sub").mkdir(parents=True)
    Path("in/sub/a.memz").write_bytes(made(tiny, 0))
    args = ("decompress", "--salvage", "--model", llama_folder)
    assert run(*args, "in/sub/a.memz", "--output-dir", "out").exit_code == 0
    assert run(*args, "-r", "in", "--output-dir", "tree").exit_code == 0
    assert Path("out/a").read_bytes() == Path("tree/sub/a").read_bytes() == WHOLE
    Path("in/sub/a.memz").rename("in/sub/.memz")
    message = "in/sub/.memz does not end in .memz: name the output with -o"
    for option in ([], ["--salvage"]):
        assert message in refused(run("decompress", "in/sub/.memz", *option), 2)
    assert sorted(path.name for path in Path("in").rglob("*")) == [".memz", "sub"]


def test_the_command_reads_every_concatenated_file(run: Run, llama_folder: Path, tiny: Codec) -> None:
    blob = made(tiny, 0)
    flipped = bytearray(blob)
    flipped[-40] ^= 1
    args = ("decompress", "--salvage", "a.memz", "-f", "--model", llama_folder, "--report", "r.json")

    def salvaged(content: bytes) -> dict[str, Any]:
        Path("a.memz").write_bytes(content)
        assert run(*args).exit_code == 3
        report: dict[str, Any] = json.loads(Path("r.json").read_text())
        return report

    report = salvaged(blob + bytes(flipped))
    assert report["original_bytes"] == 2 * len(WHOLE) and report["unread_bytes"] == 0
    assert report["lost"][0]["start"] >= len(WHOLE) and Path("a").read_bytes().startswith(WHOLE)
    report = salvaged(bytes(flipped) + blob)
    assert report["lost"][0]["end"] <= len(WHOLE) and Path("a").read_bytes().endswith(WHOLE)
    report = salvaged(blob + blob[:400])
    lost = report["lost"]  # all of the second document, whose index is whole
    assert (lost[0]["start"], lost[-1]["end"], report["unread_bytes"]) == (len(WHOLE), 2 * len(WHOLE), 0)
    assert Path("a").read_bytes() == WHOLE
    report = salvaged(blob + b"trash")
    assert report["unread_bytes"] == 5 and report["lost"] == [] and Path("a").read_bytes() == WHOLE


def test_a_report_overwrites_nothing_unasked(run: Run, llama_folder: Path, tiny: Codec) -> None:
    Path("a.memz").write_bytes(made(tiny, 0))
    before = Path("a.memz").read_bytes()
    args = ("decompress", "--salvage", "a.memz", "-o", "b", "--model", llama_folder, "--report", "a.memz")
    assert "exists" in refused(run(*args))
    assert Path("a.memz").read_bytes() == before
