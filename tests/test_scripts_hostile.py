"""benchmarks/hostile.py: what a case accesses is noticed (the cases themselves: test_scripts_reliability.py)."""

import importlib
import os
from pathlib import Path

import pytest


def test_the_victim_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in the folder of the cases, which may be read, and in the temporary directory."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    hostile = importlib.import_module("hostile")
    watch = hostile.Watch(tmp_path)
    file, other = tmp_path / hostile.VICTIM / "config.json", tmp_path / "case-0"
    file.parent.mkdir()
    for path in (file, other):
        path.write_text("{}")
    monkeypatch.chdir(file.parent)
    for way in (file, tmp_path / "case" / ".." / hostile.VICTIM / file.name, Path(file.name)):
        (tmp_path / "case").mkdir(exist_ok=True)
        assert watch.around(way.read_bytes)() == f"opens {way}"
    for look in (os.listdir, os.scandir):
        assert watch.around(lambda look=look: list(look(file.parent)))() == f"opens {file.parent}"
    assert watch.around(other.read_bytes)() == "reads"


def test_the_victim_has_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    files = importlib.import_module("hostile_files")
    codec = files.Codec.load(str(files.TINY), device="cpu")
    assert len(list(files.names(tmp_path, codec))) > 10
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / files.VICTIM).iterdir()}
