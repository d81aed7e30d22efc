"""The built package, which must work without the folder in which it was built."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import memcodec

from .conftest import TEXT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def copy_of_the_project(folder: Path) -> Path:
    """A copy, so that a build leaves no files here."""
    place = folder / "project"
    place.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    for name in ("memcodec", "cli"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def build(place: Path, out: Path, *kinds: str) -> None:
    """Build some kinds of packages ("sdist", "wheel") of the project in a folder."""
    script = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; "  # which they write over
    script += "; ".join(f"b.build_{kind}(out)" for kind in kinds)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, out], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("built")
    build(copy_of_the_project(folder), folder, "sdist", "wheel")
    found = {path.suffix: path for path in folder.iterdir() if path.is_file()}
    assert set(found) == {".gz", ".whl"}
    return found


def test_the_wheel_holds_the_library_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = set(wheel.namelist())
        points = wheel.read(f"memcodec-{memcodec.__version__}.dist-info/entry_points.txt").decode()
        adapter = wheel.getinfo("memcodec/models/smollm2-135m.adapter.safetensors")
    assert adapter.compress_size < 5_000_000 and built[".whl"].stat().st_size < 8_000_000
    for name in (
        "memcodec/py.typed",
        "memcodec/view/report.html",
        "memcodec/integrations/zarr.py",
        "memcodec_cli/program.py",
    ):
        assert name in names
    assert {name.split("/")[0] for name in names} == {
        "memcodec", "memcodec_cli", f"memcodec-{memcodec.__version__}.dist-info",
    }  # fmt: skip
    assert "memcodec = memcodec_cli:main" in points and "[numcodecs.codecs]" in points and "[zarr.codecs]" in points
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "memcodec").rglob("*.py")}
    assert modules <= names


def test_the_sdist_builds_the_same(built: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(built[".gz"]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (place,) = tmp_path.iterdir()
    build(place, tmp_path, "wheel")
    with zipfile.ZipFile(built[".whl"]) as one, zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        assert all(one.read(name) == other.read(name) for name in one.namelist())


def test_the_wheel_works_elsewhere(built: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(built[".whl"])], check=True)
    (tmp_path / "a").write_bytes(bytes(range(256)) * 4)
    script = f"import sys; sys.path.insert(0, {str(target)!r}); import memcodec_cli, memcodec; "
    script += f"assert memcodec.__file__.startswith({str(target)!r}); memcodec_cli.main()"
    for args in (
        ["--version"],
        ["compress", "a"],
        ["decompress", "a.memz", "-o", "b"],
        ["inspect", "--html", "c", "a.memz"],
    ):
        done = subprocess.run([sys.executable, "-c", script, *args], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "c").read_text().startswith("<!doctype html>")


def test_a_release_names_its_urls(tmp_path: Path) -> None:
    """The release workflow knows the address, which makes every link of README absolute."""
    place = copy_of_the_project(tmp_path)
    url = "https://example.org/somebody/memcodec"
    subprocess.run([sys.executable, str(ROOT / "docs" / "for_the_index.py"), url + "/", str(place)], check=True)
    links = re.findall(r"\]\(([^)]*)\)", (place / "README.md").read_text())
    assert len(links) > 15 and all(link.startswith("https://") for link in links)
    images = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (place / "README.md").read_text())
    assert images == [f"{url}/raw/HEAD/docs/dataflow.svg"]
    for link in links:
        path = re.sub(rf"^{url}/(raw|blob)/HEAD/", "", link)
        assert path.startswith("https://") or (ROOT / path.partition("#")[0]).exists()
    found = tomllib.loads((place / "pyproject.toml").read_text())["project"]["urls"]
    assert found["Source"] == url and len(found) == 4


WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers'))); import memcodec_cli; memcodec_cli.main()"
)


def test_torch_is_needed_by_what_asks_for_it_alone(llama_folder: Path, tmp_path: Path) -> None:
    """`pip install memcodec` without the extra installs neither torch nor transformers."""

    def memcodec_without(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", WITHOUT, *args], cwd=tmp_path, capture_output=True, text=True)

    (tmp_path / "a").write_text(TEXT)
    model = ("--model", str(llama_folder))
    for args in (["compress", *model, "a"], ["decompress", *model, "a.memz", "-o", "b"], ["bench", *model, "a"]):
        done = memcodec_without(*args)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "b").read_text() == TEXT
    for args in (["--site", "prompt"], ["--device", "cuda"]):
        done = memcodec_without("compress", *model, *args, "a", "-o", "c")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "pip install -c constraints.txt '.[torch]'" in done.stderr
    assert not (tmp_path / "c").exists()
