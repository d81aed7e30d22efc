"""The benchmark counts correctly, keeps its results, and rejects a codec that does not restore its input."""

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import memcodec.codec
from memcodec.bench import comparison, measure, rivals, stages, table
from memcodec.bench.comparison import BOUND, CONTEXT_BOUND, Bench, Row, Text, memory_benefit
from memcodec.bench.results import Store
from memcodec.bench.rivals import BenchError
from memcodec.codec import Codec
from memcodec.coding import corrections
from memcodec.container import assembly
from memcodec.document.plan import cut_chunks
from memcodec.lm.instructions import CHOSEN
from memcodec.settings import Readout
from memcodec_cli import main
from tests.conftest import store_nothing

STORY = ("She sells sea shells by the sea shore, the shells she sells are sea shells. " * 14).encode()


@pytest.fixture(autouse=True)
def never_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """All text is encoded with the LM, even if zstd would be smaller."""
    store_nothing(monkeypatch)
    monkeypatch.setattr(assembly, "zstd_size", lambda data, level=19: 2 * len(data))


@pytest.fixture
def text() -> Text:
    """A text of about 400 tokens."""
    return Text("story", STORY, STORY)


def plain_bits(folder: Path, codec: Codec, tokens: np.ndarray) -> float:
    """Bits of one chunk from transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    prefix = list(codec.tokenizer.prefix())
    ids = torch.tensor([[*prefix, *tokens]])
    with torch.no_grad():
        scores = torch.log_softmax(model(ids).logits[0], dim=1)
    return -sum(scores[len(prefix) - 1 + t, token].item() for t, token in enumerate(tokens)) / math.log(2)


def test_parts_add_up_to_the_size_on_disk(tiny: Codec, tmp_path: Path) -> None:
    path = tmp_path / "text.memz"
    result = measure.memcodec_file(tiny, STORY, path, site=Readout(effort=64))
    assert result["file_bytes"] == path.stat().st_size == sum(memcodec.inspect(path.read_bytes())["parts"].values())
    assert sum(result["parts"].values()) == result["file_bytes"]
    assert result["tokens"] > 200, "the text must be coded, not stored"


def test_bound_equals_plain_transformers(tiny: Codec, llama_folder: Path) -> None:
    tokens = tiny.tokenizer.encode(STORY.decode())
    chunks = cut_chunks(tokens, 200)
    expected = sum(plain_bits(llama_folder, tiny, chunk) for chunk in chunks) / 8
    found = measure.bound(tiny, STORY)
    assert found["file_bytes"] == pytest.approx(expected, rel=5e-3)
    assert found["file_bytes"] == pytest.approx(tiny.bound(STORY, context=0), rel=1e-9)
    assert sum(found["position_bits"]) / 8 == pytest.approx(found["file_bytes"], rel=1e-4)
    assert sum(found["position_count"]) == found["tokens"] == len(tokens)


def test_context_bound_scores_every_token_once(tiny: Codec, llama_folder: Path) -> None:
    tokens = tiny.tokenizer.encode(STORY.decode())
    found = measure.context_bits(tiny, tokens, 2048)
    assert found == pytest.approx(plain_bits(llama_folder, tiny, tokens), rel=5e-3)
    for window in (64, 5):
        scored: list[int] = []
        expected = 0.0
        for start in range(0, len(tokens), window // 2):
            seen = window - window // 2 if start else 0
            whole = plain_bits(llama_folder, tiny, tokens[start : start + window])
            known = plain_bits(llama_folder, tiny, tokens[start : start + seen]) if start else 0.0
            expected += whole - known
            scored += range(start + seen, min(start + window, len(tokens)))
            if start + window >= len(tokens):
                break
        assert scored == list(range(len(tokens)))
        assert measure.context_bits(tiny, tokens, window) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_hits_are_those_of_the_encoder(
    tiny: Codec, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    finish = corrections.Encoder.finish

    def counting(encoder: corrections.Encoder) -> bytes:
        counted.append(encoder.hits)
        return finish(encoder)

    monkeypatch.setattr(corrections.Encoder, "finish", counting)
    result = measure.memcodec_file(tiny, STORY, tmp_path / "text.memz", site=Readout(share, 64))
    assert result["hits"] == sum(counted) and 0 < result["hits"] < result["tokens"]


def test_second_run_measures_nothing(tiny: Codec, text: Text, tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    rows = list(Bench(tiny, first).compare([text], shares=(0.0,), names=("gzip -9", "zstd -19")))
    again = list(Bench(tiny, second).compare([text], shares=(0.0,), names=("gzip -9", "zstd -19")))
    assert again == rows
    assert [row.codec for row in rows] == ["gzip -9", "zstd -19", BOUND, CONTEXT_BOUND, "memcodec 0"]
    assert (first.measured, second.measured, second.reused) == (5, 0, 5)


def test_a_result_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="JSON"):
        Store(tmp_path).get({"key": 1}, lambda: {"result": object()})
    assert list(tmp_path.iterdir()) == []


def test_interrupted_run_keeps_what_it_has(
    tiny: Codec, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure, "memcodec_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(Bench(tiny, Store(tmp_path)).compare([text], shares=(0.0,), names=("gzip -9",)))
    store = Store(tmp_path)
    list(Bench(tiny, store).compare([text], shares=(0.0,), names=("gzip -9",)))
    assert (store.reused, store.measured) == (3, 1)


def test_other_text_model_setting_or_version_is_measured_anew(
    tiny: Codec, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    bench = Bench(tiny, store)
    bench.memcodec(text, Readout(0.0))
    bench.memcodec(Text("other", text.data[:-1], text.whole), Readout(0.0))
    bench.memcodec(text, Readout(0.5, 64))
    monkeypatch.setattr(tiny.lm, "identity", bytes(32))
    Bench(tiny, store).memcodec(text, Readout(0.0))
    monkeypatch.undo()
    monkeypatch.setattr(comparison, "machine", lambda: {"versions": {"numba": "another"}})
    Bench(tiny, store).memcodec(text, Readout(0.0))
    list(bench.rival("gzip -9", text))
    assert (store.measured, store.reused) == (6, 0)


def test_rival_with_wrong_bytes_fails(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="does not decompress"):
        rivals.measure(lambda data: data, lambda data: data[:-1], STORY, tmp_path / "out")


def test_memcodec_with_wrong_bytes_fails_the_run(
    tiny: Codec, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "decode", lambda blob, batch: text.data[:-1] + b"?")
    store = Store(tmp_path)
    with pytest.raises(BenchError, match="does not decode"):
        list(Bench(tiny, store).compare([text], shares=(0.0,), names=()))
    assert store.measured == 2, "the two limits are kept, the wrong codec is not"


def test_rival_that_crashes_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="KeyError"):
        rivals.measure_apart("no such codec", STORY, tmp_path)


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_restore_and_are_measured(name: str, tmp_path: Path) -> None:
    if not rivals.usable(name):
        pytest.skip(f"{rivals.RIVALS[name].library} is not installed")
    rival = rivals.RIVALS[name]
    dictionary = rivals.train_dictionary([STORY * 8, bytes(range(256)) * 40]) if rival.dictionary else b""
    result = rivals.measure(*rival.make(dictionary), STORY, tmp_path / "out")
    assert 0 < result["file_bytes"] == (tmp_path / "out").stat().st_size < len(STORY)
    assert result["runs"] >= rivals.MIN_RUNS
    assert min(result["encode_seconds"], result["decode_seconds"]) > 0
    assert min(result["encode_peak"], result["decode_peak"]) > 1e6


def test_dictionary_helps_only_where_there_are_other_texts(tiny: Codec, tmp_path: Path) -> None:
    bench = Bench(tiny, Store(tmp_path))
    text = Text("story", STORY, STORY)
    name = "zstd -19 + dictionary"
    assert list(bench.rival(name, text)) == []
    assert list(bench.rival(name, text, [b"short"])) == []
    modules = sorted(Path(memcodec.__file__).parent.rglob("*.py"))
    source, *others = [path.read_bytes() for path in modules]
    text = Text("source", source, source)
    (helped,) = bench.rival(name, text, others)
    (plain,) = bench.rival("zstd -19", text)
    assert helped.file_bytes < plain.file_bytes


def test_texts_are_cut_between_characters() -> None:
    whole = "день".encode()
    assert [Text.cut("t", whole, n).data.decode() for n in (8, 7, 6, 1)] == ["день", "ден", "ден", ""]
    assert Text.cut("t", whole, None).data == whole


def test_memory_efficiency_is_bits_saved_by_bits_spent() -> None:
    def row(memory: int, corrections: int, hits: int) -> Row:
        return Row("t", "c", 900, {"tokens": 200, "memory_bytes": memory, "correction_bytes": corrections,
                                   "hits": hits, "file_bytes": 300})  # fmt: skip

    found = memory_benefit(0.1, row(25, 110, 120), row(0, 130, 76))
    assert (found["efficiency"], found["memory"], found["total"], found["hits"]) == (0.8, 1.0, 5.4, 0.6)


def test_table_has_every_codec() -> None:
    rows = [Row("t", name, 900, {"file_bytes": 300}) for name in (*rivals.RIVALS, BOUND, "memcodec 0.1")]
    shown = table.render(rows)
    assert all(row.codec in shown for row in rows)
    assert shown.count("3.00") == len(rows)


@pytest.fixture
def full_run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/run.py as a module, with the modules beside it."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("run")


def test_break_even(full_run: Any) -> None:
    rows = [Row("t", "memcodec 0", 1000, {"file_bytes": 200})]
    assert full_run.break_even(rows, [(1000, 400)], 1_000_000, "memcodec 0") == pytest.approx(5_000_000)
    assert full_run.break_even(rows, [(1000, 100)], 1_000_000, "memcodec 0") is None


def measure_here(name: str, data: bytes, folder: Path, dictionary: bytes) -> dict[str, Any]:
    """Like rivals.measure_apart, but in this process."""
    return rivals.measure(*rivals.RIVALS[name].make(dictionary), data, folder / "output")


@pytest.mark.slow
def test_report_has_every_codec_and_its_plots(
    tiny: Codec, full_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "measure_apart", measure_here)  # separate processes would take half a minute
    monkeypatch.setattr(full_run, "PROMPT_BYTES", 16)
    source = b"".join(path.read_bytes() for path in sorted(Path(memcodec.__file__).parent.rglob("*.py")))
    names = "alice29", "second", "third"  # the first counts for the break-even
    texts = [Text.cut(name, STORY[:20] + source[20_000 * i :], 40) for i, name in enumerate(names)]
    found = full_run.measure(Bench(tiny, Store(tmp_path / "store")), texts, [20, 40])
    report = full_run.report.render(found)
    rows = [line for line in report.split("## Where the bytes go")[0].splitlines() if line.startswith("|")]
    usable = [name for name in rivals.RIVALS if rivals.usable(name)]
    for name in (*usable, BOUND, CONTEXT_BOUND, *(f"memcodec {share}" for share in (0, 0.1, 0.2))):
        assert sum(f" {name} |" in line.replace("(", "").replace(")", "").replace("*", "") for line in rows) == 3, name
    assert json.loads(full_run.to_json(found))["rows"][0] == asdict(found["rows"][0])
    full_run.plots.draw(found, tmp_path)
    for name in ("bytes", "rate-distortion", "positions"):
        assert f"({name}.png)" in report
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    store = Store(tmp_path / "store")
    assert full_run.measure(Bench(tiny, store), texts, [20, 40]) == found
    assert store.measured == 0


def test_translations_are_read_from_po(full_run: Any) -> None:
    po = (
        b'msgid ""\nmsgstr ""\n"Language: es\\n"\n\nmsgid "a"\nmsgstr ""\n"uno "\n"dos"\n\nmsgstr[1] "\xc3\xb1\\"\\n"\n'
    )
    assert full_run.corpora.translations(po).decode() == 'uno dos\n\u00f1"\n\n'


def test_command_measures_the_users_files(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCODEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rivals, "measure_apart", measure_here)
    path = tmp_path / "mine.txt"
    path.write_bytes(STORY)
    command = [
        "bench",
        str(path),
        "--model",
        str(llama_folder),
        "--memory-share",
        "0",
        "--device",
        "cpu",
        "--bytes",
        "100",
    ]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert f"{path}, 100 bytes" in shown.output
    for name in ("gzip -9", "zstd -19", f"({BOUND})", f"({CONTEXT_BOUND})", "memcodec 0"):
        assert f"\n{name} " in shown.output
    assert "dictionary" not in shown.output, "there is no other text to train it on"
    rows = json.loads(CliRunner().invoke(main, [*command, "--json"]).output)["rows"]
    assert all(row["original_bytes"] == 100 and row["file_bytes"] > 0 for row in rows)


def test_command_shows_where_the_time_goes(llama_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(STORY)
    command = ["bench", str(path), "--model", str(llama_folder), "--device", "cpu", "--profile", "--context", "400"]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    for stage in (
        "encode, ",
        "decode, ",
        "LM: passes",
        "LM: logits",
        "search for memories",
        "corrections, read",
        "all",
    ):
        assert stage in shown.output
    assert f"kernels: numba, {CHOSEN.name}" in shown.output
    found = json.loads(CliRunner().invoke(main, [*command, "--json"]).output)["seconds"][str(path)]
    assert all(spent >= 0 for seconds in found.values() for spent in seconds.values())
    assert "corrections, read" not in found["encode"] and found["decode"]["LM: passes"] > 0


def test_every_function_that_is_timed_is_called(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that nobody calls were timed, so that their stages were missing, and their time was in the rest."""
    functions = [one for found in stages.functions_by_stage(tiny).values() for one in found]

    def called(data: bytes) -> set[tuple[Any, str]]:
        seen: set[tuple[Any, str]] = set()

        def recorded(function: Callable[..., Any], one: tuple[Any, str]) -> Callable[..., Any]:
            def call(*args: Any, **settings: Any) -> Any:
                seen.add(one)
                return function(*args, **settings)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in functions:
                patch.setattr(owner, name, recorded(getattr(owner, name), (owner, name)))
            found = stages.profile(tiny, data, context=0)
        assert found["decode"]["container"] > 0 and found["encode"]["search for repeats"] > 0
        return seen

    with_the_lm = called(STORY)
    monkeypatch.undo()  # so that text may be stored, and repeats may become references
    digits = "".join(str(7**i) for i in range(100)).encode()
    missing = set(functions) - with_the_lm - called(digits + b"\xff" + digits + b" and so on\xff")
    assert not missing, [(owner.__name__, name) for owner, name in missing]


def test_command_refuses_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    result = CliRunner().invoke(main, ["bench", str(tmp_path / "empty")])
    assert result.exit_code == 1
    assert "empty: is empty: name a file that has text" in result.output


def test_command_refuses_a_size_without_a_whole_character(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "text").write_text("☃ and more")
    for options in ((), ("--profile",)):
        command = ["bench", str(tmp_path / "text"), "--bytes", "2", "--model", str(llama_folder), "--device", "cpu"]
        result = CliRunner().invoke(main, [*command, *options])
        assert result.exit_code == 1 and "raise --bytes" in result.output


def test_packets_of_small_links(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/links.py: what fits, what begins the next packet, and what takes several."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    links = importlib.import_module("links")
    assert links.packets([9, 9, 9], 20) == 2
    assert links.packets([19], 20) == 1 and links.packets([20], 20) == 2
    assert links.packets([24, 14, 13], 20) == 3  # 25 bytes: 20, and 5 of the next one, where 15 more fit
    train = [b"The quick brown fox number %d jumps over %d dogs." % (i, 7 * i) for i in range(80)]
    found = links.measure(tiny, train[20:], train[:20])
    assert found["messages"] == 20 and set(found["a_packet"]) == {"51", "222", "340"}
    rendered = links.render({"date": "", "machine": {"processor": ""}, "identity": "", "packets": links.PACKETS} | {
        "kinds": {"foxes": found}
    })  # fmt: skip
    assert (
        "| foxes | " in rendered and " / ".join(f"{found['a_packet']['51'][way]:.1f}" for way in links.WAYS) in rendered
    )
