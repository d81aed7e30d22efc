"""The scripts for a machine with a GPU, rehearsed on a CPU, so that they do not fail there for a small reason."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_measurements_are_rehearsed(tmp_path: Path) -> None:
    """All parts, so that none of them stops on its first day for a small reason."""
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--minutes", "60"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["errors"] == {}
    assert found["self-test"] == {"triton": "triton on cpu", "torch": ANY, "coder": "exact", "search": "exact"}
    for part in ("same logits", "same files"):
        assert found[part] and all(found[part].values())
    assert {"card", "steps", "profile", "files", "frames", "memory", "prompt"} <= set(found)


def test_unpacking_needs_nothing_that_it_installs() -> None:
    """It was imported at the top, so that `unpack` failed on the machine that lacked it."""
    script = "import sys; sys.modules.update(dict.fromkeys(('zstandard', 'platformdirs', 'gguf'))); import gpu_carry"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'training'}"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "benchmarks", env=environment, check=False)
    assert done.returncode == 0


def test_pieces_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "training")
    pieces = importlib.import_module("pieces")
    (tmp_path / "a").write_bytes(os.urandom(5000))
    (tmp_path / "b").write_bytes(b"text" * 100)
    pieces.split(tmp_path / "pieces", [1000, 2000], [tmp_path / "a", tmp_path / "b"])
    sizes = [(tmp_path / "pieces" / str(i) / "piece").stat().st_size for i in range(3)]
    assert sizes[0] == 1000 and sizes[1] == 2000
    pieces.join(tmp_path / "pieces", tmp_path / "back")
    for name in ("a", "b"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / name).read_bytes()
