"""The examples in the documentation run as they are."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from memcodec_cli import main

ROOT = Path(__file__).parent.parent


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.filterwarnings("ignore")  # of other libraries, about themselves
@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/memory_tokens.md",
        "docs/messages.md",
        "docs/files.md",
        "docs/integrations.md",
        "docs/inspecting.md",
        "docs/cookbook.md",
        "docs/cluster.md",
    ],
)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(name, "python")
    assert found
    for block in found:
        exec(compile(block, name, "exec"), {})


@pytest.mark.slow
@pytest.mark.default_model
def test_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands except the installation and the benchmark, which other tests run on a tiny model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_bytes((ROOT / "LICENSE").read_bytes()[:1500])
    text = (ROOT / "README.md").read_text().split("## Use")[1].split("```python")[0]
    commands = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("    memcodec ")]
    assert [command[1] for command in commands] == ["compress", "inspect", "decompress", "verify", "bench"]
    for command in commands[:-1]:
        done = CliRunner().invoke(main, command[1:])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "back.txt").read_bytes() == (tmp_path / "notes.txt").read_bytes()


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.parametrize(
    "name", ["docs/files.md", "docs/messages.md", "docs/inspecting.md", "docs/settings.md", "docs/cluster.md"]
)
def test_commands_of_other_pages_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    licence = (ROOT / "LICENSE").read_bytes()
    for path, data in (("a.txt", licence[:900]), ("b.txt", licence[1000:1700]), ("folder/x", licence[2000:2400])):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    input_of = {"docs/settings.md": "part", "docs/cluster.md": "big.txt"}
    if name in input_of:
        (tmp_path / input_of[name]).write_bytes(licence[:700])
    if name == "docs/inspecting.md":
        (tmp_path / "notes.txt").write_bytes(licence[:700])
        assert CliRunner().invoke(main, ["compress", "notes.txt"]).exit_code == 0
    (tmp_path / "notes.jsonl").write_text('{"id": "a", "text": "first note"}\n{"id": "b", "text": "second note"}\n')
    text = (ROOT / name).read_text()
    commands = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("    memcodec ")]
    assert len(commands) >= {"docs/settings.md": 1, "docs/cluster.md": 2}.get(name, 4)
    for command in commands:
        done = CliRunner().invoke(main, command[1:])
        assert done.exit_code == 0, (command, done.output)
    if name == "docs/files.md":
        assert (tmp_path / "part").read_bytes() == licence[100:300]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """mkdocs in strict mode; every page is in the navigation, and the references are generated from the code."""
    command = [sys.executable, str(ROOT / "docs" / "make_site.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert "--memory-share" in (site / "docs" / "commands" / "index.html").read_text()
    assert "encode_frames" in (site / "docs" / "api" / "index.html").read_text()
    pages = list((ROOT / "docs").glob("*.md"))
    assert pages and all((site / "docs" / path.stem / "index.html").exists() for path in pages)


def test_the_man_page_is_made_of_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("make_man").page()
    assert page == (ROOT / "docs" / "memcodec.1").read_text()
    for name, command in main.commands.items():
        if not isinstance(command, click.Group):
            assert f".SH {name.upper()}\n" in page
    assert "\\-\\-memory\\-share" in page and ".SH PRIMER TRAIN\n" in page


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("spec/*.md"))
)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_no_two_recipes_write_the_same_file() -> None:
    """A reader runs them in one folder, where the second would be refused."""
    written: dict[str, str] = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        names = re.findall(r"Archive\.create\(\s*\"([^\"]+)\"", text)
        commands = [line.split("#")[0].split()[1:] for line in text.splitlines() if line.startswith("    memcodec ")]
        for command, *args in commands:
            if {"-f", "-c", "-a", "-r"} & set(args):
                continue
            if "-o" in args:
                names.append(args[args.index("-o") + 1])
            elif command == "compress":
                names += [f"{name}.memz" for name in args if re.fullmatch(r"[\w.]+\.\w+", name)]
            names += [args[args.index(option) + 1] for option in ("--html", "--report") if option in args]
        for name in names:
            assert name not in written, f"{path.name} and {written[name]} write {name}"
            written[name] = path.name
    assert {"customers.archive", "notes.archive", "lines.archive", "notes.html", "a.txt.memz"} <= written.keys()


def test_options_that_are_named_exist() -> None:
    every = [*main.commands.values()]
    every += [command for group in every if isinstance(group, click.Group) for command in group.commands.values()]
    known = {option for command in every for p in command.params for option in p.opts}
    known |= {"--fast", "--best"}  # which set --level
    known |= {"--help", "--version", "--use-compress-program"}  # the last is an option of tar
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        prose = re.sub(
            r"`python (?:benchmarks|training)/[^`]*`|^    (ray|pip) .*", "", path.read_text(), flags=re.MULTILINE
        )
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose):
            assert option in known, f"{path.name}: {option}"
