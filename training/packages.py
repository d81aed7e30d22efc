"""Pinned packages of the registries: fetched from there, checked, and opened."""

import hashlib
import html
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import urljoin, urlsplit

ATTEMPTS = 3  # to fetch a package
PAUSE = 10  # seconds before the second attempt, and twice as many before the third
FILES = Path(__file__).resolve().parent.parent / "build" / "corpus" / "files"


@dataclass(frozen=True)
class Package:
    """A package of a registry: "debian", "pypi" or "npm"."""

    registry: str
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    about: str

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return FILES / self.registry / self.file

    @property
    def name(self) -> str:
        """Registry and name, for tables."""
        return f"{self.registry}:{self.package}"

    def fetch(self) -> None:
        """Download it if it is not there. Raises SystemExit if that fails, or if it is not the pinned file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        attempts, reason = 0, ""
        while not self.path.exists():
            if attempts == ATTEMPTS:
                raise SystemExit(
                    f"packages: error: {self.name} {self.version} was not fetched in {ATTEMPTS} attempts; run the "
                    f"command again to go on from here: {reason[-500:]}"
                )
            time.sleep(PAUSE * attempts)  # registries refuse a request now and then
            reason = self._download()
            attempts += 1
            if self.path.exists():
                print(f"fetched {self.file}", file=sys.stderr, flush=True)
        if (found := _sha256(self.path)) != self.sha256:
            raise SystemExit(f"packages: error: {self.file} has SHA-256 {found[:16]}..., not {self.sha256[:16]}...")

    def _download(self) -> str:
        """Try to download it, and return what went wrong."""
        if self.registry == "pypi":
            return self._download_from_pypi()
        done = subprocess.run(self._command(), cwd=self.path.parent, capture_output=True, text=True)
        return done.stderr.strip()

    def _command(self) -> list[str]:
        """The command that downloads it into the folder in which it runs."""
        if self.registry == "debian":
            return ["apt-get", "download", "-q", f"{self.package}={self.version}"]
        return ["npm", "pack", "--silent", f"{self.package}@{self.version}"]

    def _download_from_pypi(self) -> str:
        """As `_download`. pip itself would build a package from its sources, to learn what it depends on."""
        name = re.sub(r"[-_.]+", "-", self.package).lower()
        page = f"{_index()}/{name}/"
        partial = self.path.with_name(self.path.name + ".part")
        try:
            with urllib.request.urlopen(page, timeout=60) as answer:
                links = re.findall(r'href="([^"]+)"', answer.read().decode())
            url = next(link for link in map(html.unescape, links) if urlsplit(link).path.endswith("/" + self.file))
            with urllib.request.urlopen(urljoin(page, url), timeout=60) as answer, partial.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except StopIteration:
            return f"{page} has no {self.file}"
        except (OSError, HTTPException) as error:
            return f"{page}: {error}"
        if (found := _sha256(partial)) != self.sha256:  # a connection may end too early without an error
            return f"{page}: {self.file} has SHA-256 {found[:16]}..., not {self.sha256[:16]}..."
        partial.replace(self.path)
        return ""

    def members(self) -> Iterator[tuple[str, IO[bytes]]]:
        """The regular files in it (.deb, wheel or other zip, or tar) by their paths, without a leading ./"""
        if self.path.suffix == ".deb":
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", self.path], stdout=subprocess.PIPE) as unpack:
                assert unpack.stdout is not None
                with tarfile.open(fileobj=unpack.stdout, mode="r|") as stream:
                    yield from _in_tar(stream)
                unpack.stdout.read()
        elif self.path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(self.path) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        with archive.open(info) as file:
                            yield info.filename, file
        else:
            with tarfile.open(self.path) as stream:
                yield from _in_tar(stream)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _index() -> str:
    """The address of the package index that pip is set to use."""
    pip = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = os.environ.get("PIP_INDEX_URL") or subprocess.run(pip, capture_output=True, text=True).stdout.strip()
    return (found or "https://pypi.org/simple").rstrip("/")


def _in_tar(stream: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in stream:
        if member.isfile():
            yield member.name.removeprefix("./"), stream.extractfile(member) or io.BytesIO()
