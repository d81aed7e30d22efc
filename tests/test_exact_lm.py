"""The exact LM: the same bits from every implementation, and close to the model in floating point."""

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from memcodec.codec import Codec
from memcodec.errors import EncodeError, MachineError, ModelNotFoundError
from memcodec.lm import architecture, arithmetic, compiled, cpu, instructions, selftest
from memcodec.lm.model import ExactLM, logits_of
from memcodec.lm.sequences import SequenceInput
from memcodec.lm.team import Team, team_of
from memcodec.lm.weights import ExactWeights
from memcodec.models import registry

from .conftest import TEXT, TINY
from .reference import Reference, Stepping, gate

FolderOf = Callable[[str], Path]


@pytest.fixture(params=TINY)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def weights(kind: str, tiny_folders: FolderOf) -> ExactWeights:
    return registry.load_exact(registry.ModelFolder(kind, tiny_folders(kind)))[0].plain()


def rows_of(seed: int, counts: list[int]) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 400, count) for count in counts]


def full_pass(lm: ExactLM, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Logits after every token, all rows in one pass, int32 [tokens, vocabulary] each."""
    counts = [len(row) for row in rows]
    sequences = lm.sequences(len(rows), max(counts), sum(counts))
    sequences.forward([SequenceInput(slot, row) for slot, row in enumerate(rows)])
    ends = np.cumsum(counts)
    return [
        sequences.logits(slice(end - count, end))[:, : lm.vocabulary].copy()
        for end, count in zip(ends, counts, strict=True)
    ]


def cached_steps(lm: ExactLM, rows: list[np.ndarray]) -> list[np.ndarray]:
    """The same, one token of each row at a time; the last rows end first."""
    found: list[list[np.ndarray]] = [[] for _ in rows]
    sequences = lm.sequences(len(rows), len(rows[0]), len(rows))
    for t in range(len(rows[0])):
        live = sum(len(row) > t for row in rows)
        sequences.step(np.array([row[t] for row in rows[:live]]))
        logits = sequences.logits(slice(None, live))
        for slot in range(live):
            found[slot].append(logits[slot, : lm.vocabulary].copy())
    return [np.stack(some) for some in found]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---- one definition


def test_every_architecture_is_what_plain_integers_say(weights: ExactWeights) -> None:
    (tokens,) = rows_of(0, [70])
    expected = Reference(weights)(tokens.tolist())
    for lm in (ExactLM(weights, "cpu", threads=2), ExactLM(weights, "cpu", kernels="torch")):
        assert np.array_equal(logits_of(lm, tokens), expected)


def test_vectors_are_what_plain_integers_say(weights: ExactWeights) -> None:
    vectors = np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32) * 3
    tokens = np.array([7, -1, -2, -3, 9, 10])
    plain = Stepping(weights)
    expected = np.stack([plain.vector(vectors[-1 - i]) if i < 0 else plain.token(i) for i in tokens])
    for kernels in ("numba", "torch"):
        sequences = ExactLM(weights, "cpu", kernels=kernels).sequences(2, 6, 10)
        sequences.forward([SequenceInput(0, np.array([5, -1]), vectors[:1]), SequenceInput(1, tokens, vectors)])
        assert np.array_equal(sequences.logits(np.arange(2, 8))[:, :400], expected)


def test_full_and_cached_passes_batches_and_threads(weights: ExactWeights) -> None:
    rows = rows_of(1, [80, 75, 75, 33, 1])
    expected = full_pass(ExactLM(weights, "cpu", threads=1), rows)
    for lm in (
        ExactLM(weights, "cpu", threads=1),
        ExactLM(weights, "cpu", threads=2),
        ExactLM(weights, "cpu", threads=5),
    ):
        assert same(cached_steps(lm, rows), expected)
        assert same(full_pass(lm, rows), expected)
        assert same([full_pass(lm, [row])[0] for row in rows], expected)
    assert same(cached_steps(ExactLM(weights, "cpu", kernels="torch"), rows), expected)


def test_a_batch_of_64(llama_folder: Path) -> None:
    lm = ExactLM(registry.load_exact(registry.ModelFolder("x", llama_folder))[0], "cpu")
    rows = rows_of(2, [40] * 60 + [39] * 4)
    expected = full_pass(lm, rows)
    assert same(cached_steps(lm, rows), expected)
    assert same([logits_of(lm, row) for row in rows[::13]], expected[::13])


def test_fallback_products_give_the_same(weights: ExactWeights) -> None:
    (tokens,) = rows_of(3, [30])
    expected = logits_of(ExactLM(weights, "cpu"), tokens)
    for kernels in ("numba", "torch"):
        assert np.array_equal(logits_of(ExactLM(weights, "cpu", kernels=kernels, fallback=True), tokens), expected)


def test_logits_are_near_those_of_transformers(kind: str, weights: ExactWeights, tiny_folders: FolderOf) -> None:
    """Within 0.1 nats everywhere and 0.02 in the root mean square, of logits that spread by several nats."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_folders(kind), dtype=torch.float32)
    tokens = Codec.load(str(tiny_folders(kind)), device="cpu").tokenizer.encode(TEXT)[:150]
    with torch.no_grad():
        expected = lm(torch.from_numpy(tokens)[None]).logits[0].numpy()
    found = logits_of(ExactLM(weights, "cpu"), tokens) * (np.log(2) / arithmetic.UNIT)
    assert expected.std() > 1
    assert np.abs(found - expected).max() < 0.1
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.02


# ---- inputs that kernels must never receive


@pytest.mark.parametrize("kernels", ["numba", "torch"])
def test_passes_beyond_what_there_is_are_refused(llama_folder: Path, kernels: str) -> None:
    weights, _ = registry.load_exact(registry.ModelFolder("x", llama_folder))
    lm = ExactLM(weights, "cpu", kernels=kernels)
    vectors = np.zeros((2, 64), dtype=np.float32)

    def one(tokens: list[int]) -> list[SequenceInput]:
        return [SequenceInput(0, np.array(tokens))]

    with pytest.raises(EncodeError, match="a token id out of range: give 0 to "):
        lm.sequences(1, 8, 8).forward(one([3, 400]))
    with pytest.raises(EncodeError, match="a token id out of range: give 0 to "):
        lm.sequences(1, 8, 8).forward(one([-1]))
    with pytest.raises(EncodeError, match="a token id out of range: give 0 to "):
        lm.sequences(1, 8, 8).forward([SequenceInput(0, np.array([-3]), vectors)])
    some = lm.sequences(1, 8, 9)
    with pytest.raises(EncodeError, match="a token id out of range: give 0 to "):
        some.step(np.array([400]))
    some.forward(one([1] * 8))
    with pytest.raises(EncodeError, match="9 positions in a sequence: the cache has room for 8"):
        some.forward(one([1]))
    with pytest.raises(EncodeError, match="9 positions in a sequence: the cache has room for 8"):
        some.step(np.array([1]))
    some.restart()
    some.step(np.array([1]))
    with pytest.raises(EncodeError, match="positions in a sequence: the cache has room for 1024"):
        lm.sequences(1, 4000, 1025).forward(one([1] * 1025))
    if kernels == "numba":  # torch allocates on demand
        with pytest.raises(EncodeError, match="6 rows in a pass: there is room for 5"):
            lm.sequences(1, 8, 5).forward(one([1] * 6))


@pytest.mark.parametrize("part", ["embedding.scale", "up.scale", "mix.scale", "qkv.scale"])
def test_activations_beyond_float32_are_an_error(llama_folder: Path, part: str) -> None:
    weights, _ = registry.load_exact(registry.ModelFolder("x", llama_folder))
    weights = weights.plain()
    far = replace(weights, tensors=weights.tensors | {part: np.full_like(weights.tensors[part], 3e38)})
    lm = ExactLM(far, "cpu")
    with np.errstate(all="ignore"), pytest.raises(ModelNotFoundError, match="activations exceed the range of float32"):
        logits_of(lm, np.arange(20))


def test_logits_are_cut(llama_folder: Path) -> None:
    weights, _ = registry.load_exact(registry.ModelFolder("x", llama_folder))
    weights = weights.plain()
    far = replace(weights, tensors=weights.tensors | {"head.scale": weights.tensors["head.scale"] * np.float32(1e7)})
    logits = logits_of(ExactLM(far, "cpu"), np.arange(20))
    assert logits.max() == 2**29 and logits.min() == -(2**29)
    assert np.array_equal(logits, Reference(far)(list(range(20))))


@pytest.mark.parametrize(("threads", "kernels", "on"), [(0, "auto", "cpu"), (2000, "auto", "cpu"), (2, "cuda", "cpu")])
def test_settings_out_of_range(llama_folder: Path, threads: int, kernels: str, on: str) -> None:
    weights, _ = registry.load_exact(registry.ModelFolder("x", llama_folder))
    with pytest.raises(EncodeError, match="give"):
        ExactLM(weights, on, threads=threads, kernels=kernels)


# ---- other processors, as far as this one can imitate them

HASHES = """
import hashlib, sys
import numpy as np
from memcodec.models import registry
from memcodec.lm.model import ExactLM, logits_of
weights, _ = registry.convert_model(registry.resolve(sys.argv[1]), None)  # not from the cache
print(weights.identity.hex())
for kernels in ("numba", "torch"):
    logits = logits_of(ExactLM(weights, "cpu", kernels=kernels), np.arange(1, 70) * 37 % 400)
    print(hashlib.sha256(logits.tobytes()).hexdigest())
"""
ENVIRONMENTS = {
    "SSE 4.1": {
        "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "NUMBA_CPU_NAME": "x86-64-v2",
        "MEMCODEC_INSTRUCTIONS": "vectors-16",
    },
    "AVX2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "NUMBA_CPU_NAME": "x86-64-v3",
        "MEMCODEC_INSTRUCTIONS": "vectors-32",
    },
    "AVX-512 without VNNI": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "NUMBA_CPU_NAME": "skylake-avx512", "MEMCODEC_INSTRUCTIONS": "vectors-64",
    },
}  # fmt: skip


def hashes(folder: Path, changes: dict[str, str]) -> list[str]:
    named = {"NUMBA_CPU_FEATURES": ""} if "NUMBA_CPU_NAME" in changes else {}
    done = subprocess.run(
        [sys.executable, "-c", HASHES, folder], env=os.environ | changes | named, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names of x86 processors")
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_instruction_sets_give_the_same(name: str, tiny_folders: FolderOf) -> None:
    """A sample; benchmarks/exactness.py tests all of them."""
    if ENVIRONMENTS[name]["MEMCODEC_INSTRUCTIONS"] not in instructions.available():
        pytest.skip("numba would compile for a processor that has more than this one")
    folder = tiny_folders("llama3")
    identity, *logits = hashes(folder, ENVIRONMENTS[name])
    expected, *others = hashes(folder, {})
    assert identity == expected
    assert len(set(logits + others)) == 1


# ---- self-tests


def test_known_answers_are_those_of_plain_integers() -> None:
    for name, known in selftest.KNOWN_ANSWERS.items():
        logits = Reference(selftest.tiny(name))(selftest.TOKENS.tolist())
        assert selftest.answer(logits) == known
        assert len(np.unique(logits)) > 1000


def test_a_saturating_product_is_not_used() -> None:
    def implementation(fallback: bool) -> tuple[selftest.Product, selftest.Logits]:
        def product_of(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            exact = left @ right.astype(np.int64).T
            return exact if fallback else exact.clip(-(2**23), 2**23)

        return product_of, lambda weights, tokens: Reference(weights)(tokens.tolist())

    assert selftest.choose(implementation, "a test") is True


def test_a_wrong_answer_stops_everything() -> None:
    def implementation(fallback: bool) -> tuple[selftest.Product, selftest.Logits]:
        return (
            lambda left, right: left @ right.astype(np.int64).T,
            lambda weights, tokens: np.zeros((len(tokens), 71), dtype=np.int32),
        )

    with pytest.raises(MachineError, match=r"does not compute exactly on a test \(wrong sums or known answers\)$"):
        selftest.choose(implementation, "a test")
    with pytest.raises(MachineError, match=r"answers\): try another machine$"):
        selftest.choose(implementation, "a test", "try another machine")


def test_an_instruction_that_is_not_there_is_no_crash() -> None:
    def implementation(fallback: bool) -> tuple[selftest.Product, selftest.Logits]:
        def product_of(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            raise RuntimeError("_int_mm is not implemented here")

        return product_of, lambda weights, tokens: tokens

    with pytest.raises(MachineError, match="_int_mm is not implemented"):
        selftest.choose(implementation, "a test")


def test_a_machine_that_is_not_exact_writes_nothing(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from memcodec_cli import main

    cpu.needs_fallback.cache_clear()
    monkeypatch.setitem(selftest.KNOWN_ANSWERS, "gated", "00")
    (tmp_path / "a").write_text(TEXT)
    done = CliRunner().invoke(main, ["compress", str(tmp_path / "a"), "--model", str(llama_folder), "--device", "cpu"])
    cpu.needs_fallback.cache_clear()
    assert done.exit_code == 1 and "does not compute exactly" in done.stderr
    assert "try MEMCODEC_INSTRUCTIONS=vectors-16, and report it" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ---- tables


def test_tables_are_those_of_the_specification() -> None:
    assert arithmetic.tables_hash() == arithmetic.TABLES_SHA256
    assert arithmetic.powers()[[0, 512, 1023]].tolist() == [2**30, round(2**29.5), round(2 ** (29 + 1 / 1024))]
    assert arithmetic.logarithms()[[0, 1023]].tolist() == [0, round(1024 * np.log2(1 + 1023 / 1024))]


def test_functions_agree_with_the_c_library() -> None:
    x = np.linspace(-20, 20, 4001)
    assert np.allclose(arithmetic.exp(x), np.exp(x), rtol=1e-14)
    positive = np.geomspace(1e-6, 1e6, 4001)
    assert np.allclose(arithmetic.log(positive), np.log(positive), rtol=1e-14, atol=1e-15)
    angles = np.linspace(0, 9000, 40_001)
    for ours, theirs in zip(arithmetic.cosine_sine(angles), (np.cos(angles), np.sin(angles)), strict=True):
        assert np.abs(ours - theirs).max() < 1e-11


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_gates_are_near_those_of_torch(name: str) -> None:
    x = np.linspace(-21, 21, 4201).astype(np.float32)
    ours = np.array([gate(g, name) for g in x])
    theirs = torch.nn.functional.silu(torch.from_numpy(x))
    if name != "silu":
        theirs = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh" if name == "gelu_tanh" else "none")
    # The integers have an error of 1e-4 of a probability, and the sigmoid of gelu 3e-4 at most.
    assert np.abs(ours - theirs.numpy()).max() < (5e-4 if name == "gelu" else 2e-4)


def test_tables_are_what_numpy_rounds_to_and_far_from_where_rounding_turns() -> None:
    """So that any accurate library computes the same tables."""

    def rounded(values: np.ndarray, bits: int, margin: float) -> np.ndarray:
        scaled = values * 2.0**bits
        assert np.abs(scaled - np.floor(scaled) - 0.5).min() > margin
        return np.rint(scaled)

    steps = np.arange(1024) / 1024
    assert np.array_equal(arithmetic.powers(), rounded(np.exp2(-steps), 30, 1e-5))
    assert np.array_equal(arithmetic.logarithms(), rounded(np.log2(1 + steps), 10, 1e-5))
    positions, theta, size = 8192, 1e5, 64  # of the built-in model
    rotary, any_lm = architecture.Rotary(theta), selftest.tiny("gated").architecture
    found = arithmetic.rotation(replace(any_lm, head_size=size, positions=positions, rotary=rotary))
    angles = np.outer(np.arange(positions), theta ** (-2 * np.arange(size // 2) / size))
    for table, exact in zip(found, (np.cos(angles), np.sin(angles)), strict=True):
        assert np.array_equal(table * 2.0**16, rounded(exact, 16, 1e-9))


def test_rotations_turn_as_those_of_transformers(tiny_folders: FolderOf) -> None:
    for kind in ("llama", "llama3"):
        lm = AutoModelForCausalLM.from_pretrained(tiny_folders(kind), dtype=torch.float32)
        cosine, sine = lm.model.rotary_emb(torch.zeros(1, 1), torch.arange(1024)[None])
        _, described = architecture.read(tiny_folders(kind))
        for ours, theirs in zip(arithmetic.rotation(described), (cosine, sine), strict=True):
            half = theirs[0, :, : theirs.shape[2] // 2].numpy()
            assert np.abs(ours - half).max() < 2**-17 + 1e-4


# ---- architectures


def test_other_architectures_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba", "vocab_size": 400}))
    with pytest.raises(
        ModelNotFoundError, match=r"'mamba' is not supported; memcodec has llama, mistral, qwen2, qwen3, gpt2"
    ):
        architecture.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "scaled by 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "only part of each head"),
        ({"hidden_size": None}, "config.json is not supported"),
        ({"num_attention_heads": 3}, "sizes of layers and heads"),
        ({"intermediate_size": 1 << 20}, "too large for sums of 32 bits"),
        ({"vocab_size": -1}, "out of range"),
        ({"vocab_size": (1 << 18) + 1}, "out of range"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "rotary positions out of range"),
        ({"rope_scaling": 5}, "config.json is not supported"),
        ({"rms_norm_eps": "nan"}, "epsilon"),
    ],
)  # fmt: skip
def test_options_that_are_not_there_are_refused(tiny_folders: FolderOf, change: dict, message: str) -> None:
    config = json.loads((tiny_folders("llama") / "config.json").read_text())
    if "rope_scaling" in change:
        config.pop("rope_parameters")
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        architecture.describe(config | change, "x")
    assert "\n" not in str(caught.value)


def test_heads_of_gpt2_that_do_not_divide_its_hidden_size() -> None:
    config = {"model_type": "gpt2", "vocab_size": 400, "n_embd": 20, "n_layer": 1, "n_head": 3}
    with pytest.raises(ModelNotFoundError, match=r"config\.json is not supported: a hidden size of 20 for 3 heads"):
        architecture.describe(config, "x")


def test_a_sliding_window_bounds_the_positions(tiny_folders: FolderOf) -> None:
    assert architecture.read(tiny_folders("mistral"))[1].positions == 900
    config = json.loads((tiny_folders("mistral") / "config.json").read_text())
    assert architecture.describe(config | {"sliding_window": None}, "x")[1].positions == 1024
    assert architecture.describe(config | {"model_type": "qwen2"}, "x")[1].positions == 1024


def test_descriptions_come_back(kind: str, tiny_folders: FolderOf) -> None:
    _, described = architecture.read(tiny_folders(kind))
    assert architecture.Architecture.from_json(described.to_json()) == described


def test_identity_is_of_all_that_is_computed_with(weights: ExactWeights) -> None:
    identity = weights.identity
    for name, tensor in weights.tensors.items():
        if tensor.size:
            changed = tensor.copy()
            changed.reshape(-1).view(np.uint8)[-1] ^= 1
            assert replace(weights, tensors=weights.tensors | {name: changed}).identity != identity
    assert replace(weights, prefix=(1, 2)).identity != identity
    assert replace(weights, tokenizer=b"other").identity != identity
    other = replace(weights.architecture, epsilon=2e-5)
    assert replace(weights, architecture=other).identity != identity


# ---- threads and processes


def test_a_team_runs_every_worker_and_tells_errors() -> None:
    team = Team(3)
    seen: list[tuple[int, int]] = []
    team.run(lambda worker, workers: seen.append((worker, workers)))
    assert sorted(seen) == [(0, 3), (1, 3), (2, 3)]

    def fail(worker: int, workers: int) -> None:
        raise KeyError("from a worker")

    with pytest.raises(KeyError, match="from a worker"):
        team.run(fail)
    team.run(lambda worker, workers: seen.append((worker, workers)))
    assert len(seen) == 6


def test_a_team_outlives_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(2)
    team.run(lambda worker, workers: None)
    done: list[int] = []
    interrupted = threading.Event()

    def interrupt(condition: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return wait(condition, timeout)
        interrupted.set()
        raise KeyboardInterrupt

    wait = threading.Condition.wait

    def slow(worker: int, workers: int) -> None:
        assert interrupted.wait(60)  # so that it ends after the caller's wait
        done.append(worker)

    monkeypatch.setattr(threading.Condition, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        team.run(slow)
    monkeypatch.undo()
    for _ in range(20):
        team.run(lambda worker, workers: done.append(worker))
    assert sorted(done)[:20] == [0] * 20 and len(done) >= 40


def test_many_callers_start_a_team_once() -> None:
    team, calls, threads = Team(4), [], set()
    gate = threading.Barrier(8)

    def work(worker: int, workers: int) -> None:
        calls.append(worker)
        threads.add((worker, threading.get_ident()))

    def call() -> None:
        gate.wait()
        team.run(work)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(calls) == sorted([0, 1, 2, 3] * 8)
    assert len(threads) == 4  # each worker is always the same thread


def test_a_team_keeps_nothing_alive() -> None:
    class Work:
        def __call__(self, worker: int, workers: int) -> None:
            pass

    work = Work()
    gone = weakref.ref(work)
    team_of(2).run(work)
    del work
    assert gone() is None


def test_threads_that_cannot_start_are_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    team = Team(3)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(MachineError, match=r"cannot start 3 threads .*fewer --threads"):
            team.run(lambda worker, workers: None)
    done: list[int] = []
    team.run(lambda worker, workers: done.append(worker))
    assert sorted(done) == [0, 1, 2]


def test_kernels_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    for name, age in (("old", 40), ("new", 3)):
        (tmp_path / "kernels" / name).mkdir(parents=True)
        (tmp_path / "kernels" / name / "a.nbi").touch()
        then = time.time() - age * 86_400
        os.utime(tmp_path / "kernels" / name, (then, then))
    compiled.make_folder(tmp_path / "kernels" / "ours")
    assert sorted(path.name for path in (tmp_path / "kernels").iterdir()) == ["new", "ours"]


CONCURRENT = """
import sys, threading, hashlib
import numpy as np
from memcodec.models import registry
from memcodec.lm.model import ExactLM, logits_of
lm = ExactLM(registry.load_exact(registry.resolve(sys.argv[1]))[0], "cpu", threads=2)
tokens = np.arange(1, 70) * 37 % 400
expected = hashlib.sha256(logits_of(lm, tokens).tobytes()).hexdigest()
found = []
def work():
    for _ in range(10):
        found.append(hashlib.sha256(logits_of(lm, tokens).tobytes()).hexdigest())
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
print(set(found) == {expected}, len(found))
"""


def test_several_threads_of_one_process(llama_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CONCURRENT, llama_folder], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("True 40\n", "")


FORKED = """
import os, sys
from memcodec.codec import Codec
codec = Codec.load(sys.argv[1], device="cpu", threads=2)
text = open(sys.argv[2], "rb").read()
blob = codec.encode(text)
child = os.fork()
if not child:
    os._exit(0 if codec.encode(text) == blob and codec.decode(blob) == text else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), codec.decode(blob) == text)
"""


def test_a_forked_child_encodes_and_decodes(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT * 3)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, llama_folder, tmp_path / "text"], capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0 True\n", "")


KEPT = """
import numpy as np
from memcodec.document import repeats
from memcodec.lm import compiled
before = compiled.are_kept()
repeats._around(5, *np.zeros((2, 1), np.int64))
print(before, len(repeats._around.stats.cache_hits), compiled.are_kept())
"""


def test_kernels_are_kept_for_the_next_process(tmp_path: Path) -> None:
    for said in ("False 0 True\n", "True 1 True\n"):
        done = subprocess.run(
            [sys.executable, "-c", KEPT], env=os.environ | {"MEMCODEC_CACHE": str(tmp_path)}, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (said, "")


def has_kernels(source: str) -> bool:
    """Whether a module defines functions that numba compiles, by their decorators."""
    decorators = {"kernel", "subkernel", "intrinsic", "njit", "jit"}

    def name_of(decorator: ast.expr) -> str:
        if isinstance(decorator, ast.Call):
            return name_of(decorator.func)
        return decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")

    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return any(name_of(decorator) in decorators for function in functions for decorator in function.decorator_list)


def test_a_change_of_any_source_of_kernels_compiles_them_again(tmp_path: Path) -> None:
    root = shutil.copytree(Path(compiled.__file__).parent.parent, tmp_path / "memcodec")
    sources = [path for path in sorted(root.rglob("*.py")) if has_kernels(path.read_text())]
    assert {"kernels.py", "corrections.py", "rangecoder.py", "seeded.py"} <= {path.name for path in sources}
    # numba compiles constants of other modules into kernels too.
    constants = [root / "lm" / "arithmetic.py"]
    before = compiled.hash_of_sources(root)
    for path in sources + constants:
        text = path.read_text()
        path.write_text(text + "\n")
        assert compiled.hash_of_sources(root) != before, path
        path.write_text(text)
    assert compiled.hash_of_sources(root) == before
    assert compiled.hash_of_sources(Path(compiled.__file__).parent.parent)[:16] in compiled.kernels_folder().name
