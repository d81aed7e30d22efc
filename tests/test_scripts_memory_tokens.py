"""The scripts for docs/memory_tokens.md, on an untrained model."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from memcodec.codec import Codec
from tests.conftest import TEXT

pytestmark = pytest.mark.slow


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("memory_tokens")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "english.txt").write_text(TEXT[:200])
    (tmp_path / "other.txt").write_text(TEXT[200:])
    return [f"en:{tmp_path / 'english.txt'}", f"xx:{tmp_path / 'other.txt'}"]


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments), "--device", "cpu"])
    module.main()


def test_memory_tokens(
    llama: Codec, random_path: Path, experiment: ModuleType, files: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    usual = [*files, "--model", random_path, "--texts", 2, "--steps", 300, "--out", out]
    call(experiment, monkeypatch, *usual, "--lengths", "2,40", "--bits", "16")
    rows = json.loads((out / "results.json").read_text())["texts"]
    assert [(row["language"], row["length"]) for row in rows] == [
        (language, length) for length in (2, 40) for language in ("en", "en", "xx", "xx")
    ]
    assert all(row["exact"] for row in rows[:4]) and not any(row["exact"] for row in rows[4:])
    for row in rows:
        assert row["exact"] == (row["greedy"] == 1) == (row["prefix"] == row["length"])
        assert row["memory_bytes"] == 128 and 0 <= row["teacher_forced"] <= 1 and row["lm_bits"] > 0
        assert row["text"] in TEXT or "\ufffd" in row["text"]
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    call(experiment, monkeypatch, *usual, "--lengths", "2", "--bits", "4")
    assert len(json.loads((out / "results.json").read_text())["texts"]) == 12
    lines = (out / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 6 and "| en | 2 | 16 | 2 | 2 | 100.0%" in "\n".join(lines)
    with pytest.raises(SystemExit, match="other settings"):
        call(experiment, monkeypatch, *usual, "--lengths", "2", "--slack", 3)
    found = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps(found | {"identity": "00"}))  # another model with the same name
    with pytest.raises(SystemExit, match="other settings"):
        call(experiment, monkeypatch, *usual, "--lengths", "2", "--bits", "4")
    (out / "results.json").unlink()
    with pytest.raises(SystemExit, match="shorter"):
        call(experiment, monkeypatch, *usual, "--lengths", "9999")


def test_comparison_of_settings(
    llama: Codec, random_path: Path, experiment: ModuleType, files: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    usual = [*files, "--model", random_path, "--texts", 1, "--steps", 10, "--lengths", 5, "--out", tmp_path]
    call(experiment, monkeypatch, *usual, "--compare")
    rows = json.loads((tmp_path / "comparison.json").read_text())["texts"]
    assert list(dict.fromkeys(row["setting"] for row in rows)) == list(experiment.COMPARED)
    assert len((tmp_path / "comparison.md").read_text().splitlines()) == 2 + len(experiment.COMPARED)


def test_sites_side_by_side(
    llama: Codec, random_path: Path, experiment: ModuleType, files: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sites = importlib.import_module("sites")
    usual = [*files, "--model", random_path, "--tokens", 6, "--chunk-tokens", 2, "--steps", 300, "--bits", "16,1"]
    call(sites, monkeypatch, *usual, "--out", tmp_path)
    rows = json.loads((tmp_path / "sites.json").read_text())["rows"]
    assert len(rows) == 2 * 5 and len((tmp_path / "sites.md").read_text().splitlines()) == 2 + len(rows)
    pure = [row for row in rows if row["codec"] == "prompt, 16 bits, pure"]
    assert [(row["memory"], row["corrections"], row["exact"]) for row in pure] == [(3 * 128, 0, "yes")] * 2
    assert all(row["exact"] == "yes" or "need corrections" in row["exact"] for row in rows if "exact" in row)
