"""Scripts of benchmarks/: results that are kept from earlier runs, and errors of one line."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memcodec.bench import messages as measured_messages
from memcodec.codec import Codec

ROOT = Path(__file__).parent.parent
TINY = ROOT / "spec" / "vectors" / "tiny" / "model"
Scripts = Callable[[str], Any]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """Import a script of benchmarks/ by its name."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_kept_messages_keep_their_date_and_machine(
    script: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = script("messages")
    line = {"total_bytes": 100, "encode_seconds": 1.0, "decode_seconds": 1.0}
    ways = ("original", "zstd -19", "memcodec frames", "memcodec frames, primer")
    row = {"messages": 10, "primer_tokens": 5, "lines": [line | {"way": way} for way in ways]}
    kept = row | {"date": "2026-01-01", "machine": {"processor": "old"}}
    path = tmp_path / "messages.json"
    path.write_text(json.dumps({"kinds": {"chat": kept}}))
    monkeypatch.setattr(messages, "Codec", type("None", (), {"load": lambda device: None}))
    for name in ("by_length", "beside_the_lm"):
        monkeypatch.setattr(messages, name, lambda _: [])
    monkeypatch.setattr(messages.messages, "measure", lambda *_, **__: row)
    monkeypatch.setattr(messages.messages, "render", lambda *_: "")
    monkeypatch.setattr(messages, "KINDS", {"chat": lambda: [b"a"], "URLs": lambda: [b"b"]})
    monkeypatch.setattr(messages, "today", lambda: "2026-02-02")
    monkeypatch.setattr(messages, "machine", lambda: {"processor": "new"})
    monkeypatch.setattr(sys, "argv", ["messages.py", "--only", "URLs", "--out", str(tmp_path)])
    messages.main()
    assert json.loads(path.read_text())["kinds"]["chat"] == kept
    shown = (tmp_path / "messages.md").read_text().splitlines()
    assert shown[:2] == ["2026-01-01, old: chat.", "2026-02-02, new: URLs."]
    path.write_text(json.dumps({"date": "2025-01-01", "machine": {}, "kinds": {"chat": row}}))
    with pytest.raises(SystemExit, match="an earlier version of this script"):
        messages.main()


def test_the_table_of_reliability_has_the_date_and_the_command_of_each_part(script: Scripts, tmp_path: Path) -> None:
    reliability = script("reliability")
    row = {"what": "4 threads", "cases": 7, "wrong": []}
    machine = {"processor": "old", "cores": 3}
    (tmp_path / "concurrency.json").write_text(json.dumps({"date": "2026-01-01", "machine": machine, "rows": [row]}))
    runs = {"concurrency": {"command": "concurrency.py --rounds 5", "seconds": 12.3}}
    table = reliability.render(tmp_path, runs)
    assert table.startswith("2026-01-01, old, 3 cores: concurrency.\n\n| test |")
    assert table.endswith("| `python benchmarks/concurrency.py --rounds 5` | 12 |\n")
    assert "python" not in reliability.render(tmp_path, {})


def test_zstd_is_counted_without_its_magic_number() -> None:
    messages = [b'{"level": "INFO", "path": "/api/items/%d", "ms": %d}' % (i, 7 * i) for i in range(80)]
    ways = {
        name: (compress, decompress) for name, compress, decompress in measured_messages._rivals(messages, messages)
    }
    assert {"zstd -19", "zstd -19, dictionary"} <= set(ways)
    for name, (compress, decompress) in ways.items():
        packed = [compress(message) for message in messages]
        assert [decompress(data) for data in packed] == messages
        assert name == "brotli 11" or not any(data.startswith(b"\x28\xb5\x2f\xfd") for data in packed)


@pytest.mark.slow
def test_the_context_of_a_file_without_groups(script: Scripts) -> None:
    context = script("context")
    data = bytes(range(128, 256)) * 9
    row = context.measure(Codec.load(str(TINY), device="cpu"), data, 0, 0.1)
    assert row["groups"] == 0 and row["reach_bytes"] == 0
    assert "| 0 | " in context.render([{"text": "noise", "bytes": len(data)} | row])


def test_a_first_environment_that_fails_is_an_error(
    script: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = script("matrix")
    monkeypatch.setattr(matrix, "child", lambda *_: {})
    with pytest.raises(SystemExit, match="matrix: error: numba, 2 threads, batch 64: it encodes nothing"):
        matrix.judge(list(matrix.ENVIRONMENTS[:2]), {"English": b"text"}, "model", tmp_path)


@pytest.mark.parametrize(("name", "option"), [("gpu", "--parts"), ("messages", "--only"), ("reliability", "--only")])
def test_names_that_do_not_exist(
    script: Scripts, name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module = script(name)
    if name == "messages":
        monkeypatch.setattr(module, "Codec", type("None", (), {"load": lambda device: None}))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", option, "crads", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        module.main()
    assert f"error: {option}: crads: the " in capsys.readouterr().err
