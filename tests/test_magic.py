"""What file(1) says of memcodec files, by spec/memcodec.magic."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from memcodec import Archive, Codec

from .test_cli import RESULT

ROOT = Path(__file__).parent.parent
VECTORS = sorted((ROOT / "spec" / "vectors").rglob("*.memz"))

pytestmark = pytest.mark.skipif(shutil.which("file") is None, reason="needs file(1)")


def found(path: Path, *options: str) -> str:
    """What file(1) prints about a file."""
    command = ["file", "--brief", *options, "-m", str(ROOT / "spec" / "memcodec.magic"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_files_are_recognized(path: Path) -> None:
    assert found(path) == "memcodec compressed text, version 3"
    assert found(path, "--mime-type") == "application/vnd.memcodec"
    assert found(path, "--extension") == "memz"


def test_archives_are_recognized_and_other_files_are_not(tmp_path: Path, tiny: Codec) -> None:
    Archive.create(tmp_path / "a", ["x"], codec=tiny)
    assert found(tmp_path / "a") == "memcodec archive, version 1"
    assert found(tmp_path / "a", "--mime-type") == "application/vnd.memcodec"
    safetensors.numpy.save_file({"w": np.zeros(9)}, tmp_path / "w", {"about": "not memcodec"})
    (tmp_path / "long").write_bytes(b"\xff\xff\xff" + RESULT[3:])
    (tmp_path / "json").write_bytes(RESULT[8:])
    for name in ("w", "long", "json"):
        assert "memcodec" not in found(tmp_path / name)
