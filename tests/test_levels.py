"""Levels: what they set, what overrides them, and what they cost."""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numcodecs
import pytest

import memcodec
from memcodec import Archive, EncodeError, Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.integrations import arrays
from memcodec.integrations.numcodecs import MemcodecCodec
from memcodec.levels import BEST, DEFAULT_LEVEL, FASTEST, LEVELS, GroupRule, Level
from memcodec.settings import EncodeOptions, EncodeSettings
from memcodec_cli import main

from .conftest import TEXT, Run

# The licence of this project: English text that is always available.
LICENCE = (Path(__file__).parent.parent / "LICENSE").read_bytes()
LEVEL_FLAGS = [(f"-{level}", level) for level in LEVELS] + [("--fast", FASTEST), ("--best", BEST)]


def settings_in(blob: bytes) -> container.Settings:
    """The settings in a file."""
    settings = container.unpack(blob).settings
    assert settings is not None
    return settings


def groups_of(blob: bytes) -> list[int]:
    """The tokens of each group of a file."""
    return [sum(chunk.tokens for chunk in group.chunks) for group in container.unpack(blob).groups]


def test_the_levels_are_those_that_the_documentation_names() -> None:
    page = (Path(__file__).parent.parent / "docs" / "levels.md").read_text().partition("## ")[0]
    rows = [row.replace(",", "").replace("*", "").strip("| ") for row in page.splitlines() if row.startswith("|")]
    found = {}
    for row in rows[2:]:
        level, fewest, lengths, share, effort, chunk_tokens = (cell.strip() for cell in row.split("|"))
        lengths = "1 to 0" if lengths == "the whole text or each MiB of it" else lengths
        shortest, longest = map(int, lengths.split(" to "))
        rule = GroupRule(int(fewest), shortest, longest or None)
        without_memory = LEVELS[BEST].effort  # has no effect
        found[int(level)] = Level(rule, float(share), int(effort or without_memory), int(chunk_tokens))
    assert found == LEVELS and sorted(LEVELS) == list(range(1, 10))
    assert next(row for row in page.splitlines() if row.startswith("| **")).startswith(f"| **{DEFAULT_LEVEL}** |")


@pytest.mark.parametrize("tokens", [1, 300, 1000, 5000, 25_000, 250_000])
def test_a_higher_level_has_fewer_groups_and_searches_more(tokens: int) -> None:
    rows = [LEVELS[level] for level in sorted(LEVELS)]
    for low, high in pairwise(rows):
        assert low.rule.number(tokens, 8191) >= high.rule.number(tokens, 8191) > 0
        assert low.effort < high.effort or low.rule.fewest > high.rule.fewest
    assert rows[-1].rule.number(tokens, 8191) == 1
    assert rows[-1].share == 0


def test_texts_that_are_encoded_together_need_no_groups_to_fill_steps() -> None:
    rule = GroupRule(16, 400, 800)
    assert (rule.number(4000, 8191), rule.number(4000, 8191, alone=False)) == (10, 5)
    assert rule.number(4000, 500, alone=False) == 8


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_restores_the_text(tiny: Codec, level: int) -> None:
    data = (TEXT * 4).encode() + b"\xff\xfe"
    blob = tiny.encode(data, level=level)
    assert tiny.decode(blob) == data
    row, settings = LEVELS[level], settings_in(blob)
    assert settings.fields == (round(row.share * 1024),)
    assert settings.chunk_tokens == min(row.chunk_tokens, tiny.model.positions)
    longest = row.rule.longest or sum(groups_of(blob))
    assert max(groups_of(blob)) <= longest


def test_the_default_is_level_6(tiny: Codec) -> None:
    assert tiny.encode(TEXT) == tiny.encode(TEXT, level=6) == tiny.encode(TEXT, site=Readout(0.1, 4096), level=6)


@pytest.mark.parametrize(
    ("options", "site", "chunk_tokens"),
    [
        ({"level": 9}, Readout(0, 4096), 3000),
        ({"level": 9, "site": Readout(0.2)}, Readout(0.2, 4096), 3000),
        ({"level": 1, "site": Readout(effort=5)}, Readout(LEVELS[1].share, 5), 200),
        ({"level": 1, "site": Readout(0)}, Readout(0, LEVELS[1].effort), 200),
        ({"level": 9, "chunk_tokens": 30}, Readout(0, 4096), 30),
        ({"level": 9, "chunk_tokens": 4000}, Readout(0, 4096), 4000),
        ({"site": Prompt(steps=3)}, Prompt(steps=3), 200),
        ({}, Readout(0.1, 4096), 200),
    ],
)
def test_what_is_given_overrides_the_level(options: EncodeOptions, site: object, chunk_tokens: int) -> None:
    settings = EncodeSettings.of(**options)
    assert (settings.site, settings.chunk_length(3000)) == (site, chunk_tokens)
    assert settings.level == LEVELS[options.get("level", 6)]


def test_a_level_works_with_a_model_of_few_positions(tiny: Codec) -> None:
    """The chunks of level 9 are shorter than 4,096 tokens; those that are asked for are refused."""
    assert tiny.model.positions < LEVELS[9].chunk_tokens
    assert settings_in(tiny.encode(TEXT * 9, level=9)).chunk_tokens == tiny.model.positions
    with pytest.raises(EncodeError, match="chunk tokens 4096: this model has 1024 positions"):
        tiny.encode(TEXT * 9, level=9, chunk_tokens=4096)


def test_a_context_overrides_the_groups_of_the_level(tiny: Codec) -> None:
    text = TEXT * 4
    assert len(groups_of(tiny.encode(text, level=9))) == 1
    assert len(groups_of(tiny.encode(text, level=1, context="max"))) == 1
    every_chunk = container.unpack(tiny.encode(text, level=9, context=0, chunk_tokens=50))
    assert len(every_chunk.groups) == len(every_chunk.chunks) > 1


@pytest.mark.parametrize("level", [0, 10, -1, "x", "6", 6.0, True, None])
def test_what_is_no_level_is_refused(tiny: Codec, tmp_path: Path, level: Any) -> None:
    message = r"^level .+: give 1 \(fast\) to 9 \(small\)$"
    with pytest.raises(EncodeError, match=message):
        tiny.encode(TEXT, level=level)
    with pytest.raises(EncodeError, match=message):
        memcodec.encode(TEXT, "no such model", level=level)
    with pytest.raises(EncodeError, match=message):
        memcodec.open(tmp_path / "a.memz", "wb", codec=tiny, level=level)
    with pytest.raises(EncodeError, match=message):
        arrays.ArraySettings(level=level)
    with pytest.raises(EncodeError, match=message):
        Archive.create(tmp_path / "a", [b"x"], codec=tiny, level=level)
    assert not list(tmp_path.iterdir())


def test_the_prompt_site_has_no_levels(tiny: Codec, run: Run) -> None:
    with pytest.raises(EncodeError, match="level 3: the prompt site has no levels"):
        tiny.encode(TEXT, level=3, site=Prompt())
    Path("a").write_text(TEXT)
    done = run("compress", "a", "--site", "prompt", "-3")
    assert done.exit_code == 2 and "--level is for --site readout only" in done.stderr


def test_numcodecs_take_a_level_and_configurations_without_one(llama_folder: Path) -> None:
    text = TEXT.encode() * 2
    best = MemcodecCodec(model=str(llama_folder), level=9)
    assert best.get_config() == {"id": "memcodec", "model": str(llama_folder), "context": "auto", "level": 9}
    blob = numcodecs.get_codec(best.get_config()).encode(text)
    assert settings_in(blob[1:]).fields == (0,)
    older = {"model": str(llama_folder), "memory_share": 0.1, "effort": 4096, "context": "auto"}
    assert bytes(MemcodecCodec(**older).decode(blob)) == text
    assert settings_in(MemcodecCodec(**older).encode(text)[1:]).fields == (102,)


def test_an_archive_takes_the_memories_of_a_level(tiny: Codec, tmp_path: Path) -> None:
    lines = [line.encode() for line in TEXT.splitlines() if line]
    made = {level: Archive.create(tmp_path / str(level), lines, codec=tiny, level=level) for level in (1, 6, 9)}
    default = Archive.create(tmp_path / "default", lines, codec=tiny)
    assert (tmp_path / "default").read_bytes() == (tmp_path / "9").read_bytes()
    assert {level: archive.settings.fields for level, archive in made.items()} == {
        level: (round(LEVELS[level].share * 1024),) for level in made
    }
    assert all(list(archive) == lines for archive in (*made.values(), default))
    overridden = Archive.create(tmp_path / "o", lines, codec=tiny, level=6, memory_share=0.0)
    assert overridden.settings.fields == (0,)


# ---- the command line


class Spy:
    """In place of a codec: keeps the settings of `encode`."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def encode(self, data: Any, **settings: Any) -> bytes:
        self.settings = settings
        return memcodec.encode(b"\xff")


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    made = Spy()
    monkeypatch.setattr(Codec, "load", lambda *_, **__: made)
    return made


@pytest.mark.parametrize(("flag", "level"), [*LEVEL_FLAGS, ("--level=7", 7), ("--level 2", 2), ("-q", DEFAULT_LEVEL)])
@pytest.mark.parametrize("command", ["compress", ""])
def test_the_options_of_levels(run: Run, spy: Spy, flag: str, level: int, command: str) -> None:
    Path("a").write_text(TEXT)
    done = run(*command.split(), *flag.split(), *(["a"] if command else []), stdin=None if command else TEXT.encode())
    assert (done.exit_code, done.stderr, spy.settings["level"]) == (0, "", level)


@pytest.mark.parametrize(
    ("args", "level"),
    [
        ("compress -9k a", 9), ("compress -k9f a", 9), ("-9k -- a", 9), ("-kf9 a", 9), ("-9kc a", 9), ("-kq2 a", 2),
        ("-1 -9 a", 9), ("-9 --fast a", 1), ("--best --level 4 a", 4), ("-19 a", 9),
    ],
)  # fmt: skip
def test_the_options_of_levels_with_others(run: Run, spy: Spy, args: str, level: int) -> None:
    Path("a").write_text(TEXT)
    assert run(*args.split()).exit_code == 0
    assert spy.settings["level"] == level


@pytest.mark.parametrize("args", ["-cd9", "-9dc", "-d --fast -c", "-dc --best", "--level 3 -dc", "-dc --level=3"])
def test_decompress_ignores_levels_as_gzip_does(args: str) -> None:
    assert main.with_command([*args.split(), "a"]) == ["decompress", "-c", "a"]


def test_the_level_of_the_environment_is_overridden(run: Run, spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a").write_text(TEXT)
    monkeypatch.setenv("MEMCODEC_LEVEL", "3")
    for args, level in (([], 3), (["-8"], 8)):
        assert run("compress", "a", "-f", *args).exit_code == 0
        assert spy.settings["level"] == level


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--level", "0"], "--level: 0 is not in the range 1<=x<=9"),
        (["--level", "10"], "--level: 10 is not in the range 1<=x<=9"),
        (["--level", "x"], "--level: 'x' is not a whole number"),
        (["-0"], "No such option '-0'"),
    ],
)
def test_bad_levels_are_errors_of_one_line(run: Run, args: list[str], message: str) -> None:
    Path("a").write_text(TEXT)
    for command, name in (("compress", []), ("pack", ["-o", "b"])):
        done = run(command, "a", *name, *args)
        assert done.exit_code == 2
        assert done.stderr == f"memcodec: error: {message} (see memcodec {command} --help)\n"
    assert not Path("a.memz").exists() and not Path("b").exists()


@pytest.mark.parametrize(("flag", "level"), LEVEL_FLAGS)
def test_pack_takes_levels(run: Run, llama_folder: Path, flag: str, level: int) -> None:
    Path("a.txt").write_text("one line\nanother line\none line\n")
    assert run("pack", flag, "a.txt", "-o", "b", "--model", llama_folder).exit_code == 0
    assert Archive("b").settings.fields == (round(LEVELS[level].share * 1024),)
    assert run("unpack", "b", "--lines", "--model", llama_folder).stdout_bytes == Path("a.txt").read_bytes()


def test_pack_refuses_a_level_for_an_archive_that_exists(run: Run, llama_folder: Path) -> None:
    Path("a.txt").write_text("one line\n")
    assert run("pack", "a.txt", "-o", "b", "--model", llama_folder).exit_code == 0
    before = hashlib.sha256(Path("b").read_bytes()).digest()
    done = run("pack", "-a", "-5", "a.txt", "-o", "b", "--model", llama_folder)
    assert done.exit_code == 2 and "--level is for a new ARCHIVE" in done.stderr
    assert hashlib.sha256(Path("b").read_bytes()).digest() == before


@pytest.mark.slow
@pytest.mark.default_model
def test_a_higher_level_makes_a_smaller_file(default_codec: Codec) -> None:
    """Of one text, two neighbours may change places, since its groups are cut elsewhere."""
    data = LICENCE[:5000]
    sizes = [len(default_codec.encode(data, level=level, verify=False)) for level in sorted(LEVELS)]
    assert all(sizes[i] > sizes[i + 2] for i in range(len(sizes) - 2))
    assert sizes[-1] == min(sizes)
    assert sizes[-1] < len(default_codec.encode(data, context="max", site=Readout(0), verify=False))
