"""The exact LM's kernels for the CPU: the same bits as plain integers, in passes and steps of every kind and shape."""

import copy
import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from memcodec.lm import arithmetic, instructions, selftest, weight_cache
from memcodec.lm.architecture import Architecture, Rotary
from memcodec.lm.compiled import kernel
from memcodec.lm.cpu import CpuLM
from memcodec.lm.instructions import COLUMNS, PANEL_ROW, QUAD
from memcodec.lm.product import multiply_matrices, multiply_shares
from memcodec.lm.sequences import SequenceInput, Sequences
from memcodec.lm.team import team_of
from memcodec.lm.weights import ExactWeights, Tensors, spread

from .reference import Stepping

# Heads of 10 to 96 entries; 1, 3, 4 and 7 query heads for each key head; inner sizes that are no multiples of 4 or 32.
SIZES = {
    "576": (576, 9, 3, 64, 384),
    "96": (96, 4, 1, 10, 70),
    "80": (80, 3, 3, 34, 46),
    "60": (60, 7, 1, 80, 130),
    "34": (34, 14, 2, 96, 2),
}
VOCABULARY = 71
EMULATED = "amx-emulated"  # the instructions of `emulated_tiles`


@cache
def random_weights(name: str) -> ExactWeights:
    """An LM of random integers. The odd ones have every part that an LM may lack, except that "80" is like a GPT-2."""
    hidden, heads, key_heads, head_size, inner = SIZES[name]
    like_gpt2, more = name == "80", name in ("96", "34")
    a = Architecture(
        vocabulary=VOCABULARY, hidden=hidden, layers=2, heads=heads, key_heads=key_heads, head_size=head_size,
        inner=inner, positions=400, epsilon=1e-5, gate="gelu" if like_gpt2 else "silu", gated=not like_gpt2,
        layer_norm=like_gpt2, head_norm=more, rotary=None if like_gpt2 else Rotary(10_000.0),
    )  # fmt: skip
    random = np.random.default_rng(hidden)
    tensors: Tensors = {}

    def matrix(name: str, rows: int, inner: int, *layers: int) -> None:
        tensors[name] = random.integers(-127, 128, (*layers, rows, inner)).astype(np.int8)
        wide = random.uniform(0.5, 1.5, (*layers, rows)) / (73 * np.sqrt(inner))  # so that outputs are about 1
        tensors[name + ".scale"] = wide.astype(np.float32)
        if more or like_gpt2:
            tensors[name + ".bias"] = random.normal(0, 0.3, (*layers, rows)).astype(np.float32)

    matrix("embedding", VOCABULARY, hidden)
    tensors.pop("embedding.bias", None)
    matrix("qkv", (heads + 2 * key_heads) * head_size, hidden, 2)
    matrix("mix", hidden, heads * head_size, 2)
    matrix("up", (1 + a.gated) * inner, hidden, 2)
    matrix("down", hidden, inner, 2)
    matrix("head", VOCABULARY, hidden)
    if more:
        for part in ("query.gain", "key.gain"):
            tensors[part] = random.uniform(0.5, 1.5, (2, head_size)).astype(np.float32)
    if like_gpt2:
        tensors["position"] = random.normal(0, 0.5, (a.positions, hidden)).astype(np.float32)
    else:
        tensors["cosine"], tensors["sine"] = arithmetic.rotation(a)
    tensors["spread"] = np.array([spread(tensors["head"], tensors["head.scale"])])
    return ExactWeights(a, tensors, (3,), b"")


def weights_of(name: str) -> ExactWeights:
    return selftest.tiny(name) if name in selftest.KNOWN_ANSWERS else random_weights(name)


LMS = [*SIZES, *selftest.KNOWN_ANSWERS]
WAYS = {"1 thread": (1, False), "2 threads": (2, False), "plain": (2, True)}


def lm_of(name: str, way: str) -> CpuLM:
    threads, plain = WAYS[way]
    return CpuLM(weights_of(name), team_of(threads), plain)


def some_tokens(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count)


def some_vectors(name: str, seed: int, count: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, weights_of(name).architecture.hidden))
    return (drawn * 3 + 1).astype(np.float32)


@cache
def expected_of(name: str, length: int) -> tuple[Stepping, np.ndarray]:
    """Plain integers after that many tokens of `some_tokens(9)`, and their logits."""
    before, logits = Stepping(weights_of(name)), np.empty(0)
    for token in some_tokens(9, length):
        logits = before.token(int(token))
    return before, logits


@cache
def continued(name: str, length: int, tokens: tuple[int, ...]) -> np.ndarray:
    """Logits after each of some tokens that follow those of `expected_of`."""
    following = copy.copy(expected_of(name, length)[0])
    following.cache = [(list(keys), list(values)) for keys, values in following.cache]
    return np.stack([following.token(token) for token in tokens])


def found(sequences: Sequences) -> np.ndarray:
    return sequences.logits(slice(None))[:, :VOCABULARY]


def test_the_instructions_are_those_that_were_asked_for() -> None:
    assert instructions.CHOSEN.name == os.environ.get("MEMCODEC_INSTRUCTIONS", instructions.available()[0])


# ---- passes and steps


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", selftest.KNOWN_ANSWERS)
def test_known_answers(name: str, way: str) -> None:
    sequences = lm_of(name, way).sequences(1, 75, 75)
    sequences.forward([SequenceInput(0, selftest.TOKENS)])
    assert selftest.answer(sequences.logits(slice(0, 75))[:, :71]) == selftest.KNOWN_ANSWERS[name]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LMS)
def test_passes_steps_and_vectors_in_any_order(name: str, way: str) -> None:
    slots = [Stepping(weights_of(name)) for _ in range(4)]
    sequences = lm_of(name, way).sequences(4, 80, 70)
    tokens, vectors = some_tokens(1, 90), some_vectors(name, 2, 4)

    def forward(inputs: list[SequenceInput]) -> None:
        sequences.forward(inputs)
        rows = []
        for one in inputs:
            slot = slots[one.slot]
            rows += [slot.token(i) if i >= 0 else slot.vector(one.vectors[-1 - i]) for i in one.tokens]  # type: ignore[index]
        logits = sequences.logits(slice(0, len(rows)))
        assert logits.dtype == np.int32 and np.array_equal(logits[:, :VOCABULARY], np.stack(rows))
        assert np.array_equal(sequences.logits(np.array([len(rows) - 1]))[0, :VOCABULARY], rows[-1])

    def step(some: np.ndarray) -> None:
        sequences.step(some)
        rows = [slot.token(int(i)) for slot, i in zip(slots, some, strict=False)]
        assert np.array_equal(sequences.logits(slice(0, len(rows)))[:, :VOCABULARY], np.stack(rows))

    forward(
        [
            SequenceInput(0, np.concatenate([[-1, -2, -3, -4], tokens[:9]]), vectors),
            SequenceInput(1, tokens[9:10]),
            SequenceInput(3, np.array([5, -1, 3, -2]), vectors[2:]),
        ]
    )
    for i in range(3):
        step(tokens[[i, i + 1]])
    forward([SequenceInput(1, tokens[20:27]), SequenceInput(2, tokens[27:28]), SequenceInput(3, tokens[28:61])])
    for i in range(30, 33):
        step(tokens[[i, i + 1, 2, 3]])
    sequences.restart()
    for one in slots:
        one.restart()
    forward([SequenceInput(2, tokens[:64])])
    step(tokens[[4]])
    step(tokens[[4, 5, 6]])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [20, 64, 140])
@pytest.mark.parametrize("name", SIZES)
def test_sequences_after_a_prefix(name: str, length: int, way: str) -> None:
    """Steps of 1 to 65 rows, and passes of unequal lengths; most of the prefix is stored once for all sequences."""
    lm = lm_of(name, way)
    state = lm.prefix_state(some_tokens(9, length))
    assert state.shared + lm.own_positions(length) == length and (state.shared > 0) == (length >= 64)
    assert np.array_equal(state.logits[:VOCABULARY], expected_of(name, length)[1])
    sequences = lm.sequences(65, length + 20, 70, state)
    pairs = [(3, 70), (9, 9), (0, 1), (5, 70), (70, 33)]
    for rows in (65, 1, 3, 5, 64):
        sequences.restart()
        for place in range(2):
            sequences.step(np.array([pairs[(rows + i) % len(pairs)][place] for i in range(rows)]))
            logits = sequences.logits(slice(0, rows))[:, :VOCABULARY]
            for i in range(rows):
                assert np.array_equal(logits[i], continued(name, length, pairs[(rows + i) % len(pairs)])[place])
    sequences.restart()
    lengths = {0: 1, 2: 7, 3: 2, 17: 13, 18: 1, 40: 20, 64: 5}
    texts = {slot: tuple(some_tokens(count, count).tolist()) for slot, count in lengths.items()}
    sequences.forward([SequenceInput(slot, np.array(text)) for slot, text in texts.items()])
    logits = sequences.logits(slice(0, sum(lengths.values())))[:, :VOCABULARY]
    expected = np.concatenate([continued(name, length, text) for text in texts.values()])
    assert np.array_equal(logits, expected)


def test_prefixes_of_several_passes_and_pages() -> None:
    """More positions than one pass reads, and every number of positions that sequences store themselves."""
    lm, tokens = lm_of("96", "2 threads"), some_tokens(5, 400)
    whole = lm.sequences(1, 400, 400)
    whole.forward([SequenceInput(0, tokens)])
    expected = whole.logits(slice(None)).copy()
    for length in (*range(1, 130, 7), 128, 192, 399):
        state = lm.prefix_state(tokens[:length])
        assert np.array_equal(state.logits, expected[length - 1])
        sequences = lm.sequences(2, length + 1, 2, state)
        sequences.step(tokens[[length, length]])
        assert np.array_equal(sequences.logits(slice(0, 2)), expected[[length, length]])


@pytest.mark.parametrize("way", WAYS)
def test_a_row_of_zeros_and_values_that_are_tiny(way: str) -> None:
    """In the residual stream, in queries, keys and values, and in what the MLP multiplies."""
    weights = random_weights("576")
    tensors = dict(weights.tensors)
    tensors["qkv"] = tensors["qkv"].copy()
    tensors["qkv"][0, :64], tensors["qkv"][1, 600:] = 0, 0
    tensors["up.scale"] = tensors["up.scale"] * np.float32(2.0**-120)
    tensors["embedding"] = tensors["embedding"].copy()
    tensors["embedding"][:4] = 0
    changed = ExactWeights(weights.architecture, tensors, weights.prefix, b"")
    threads, plain = WAYS[way]
    sequences, plainly = CpuLM(changed, team_of(threads), plain).sequences(1, 40, 40), Stepping(changed)
    tokens = np.arange(40) % 9
    sequences.forward([SequenceInput(0, tokens)])
    expected = np.stack([plainly.token(int(i)) for i in tokens])
    assert np.array_equal(found(sequences), expected)


# ---- the file that weights are kept in


@pytest.mark.parametrize("name", LMS)
def test_cached_weights_are_the_same(name: str, tmp_path: Path) -> None:
    weights = weights_of(name)
    weight_cache.save(tmp_path / "weights", weights, {"ids": np.arange(5, dtype=np.uint32)}, {"state": "any"})
    loaded = weight_cache.load(tmp_path / "weights")
    assert loaded.identity == loaded.plain().identity == weights.identity
    assert (loaded.prefix, loaded.tokenizer) == (weights.prefix, weights.tokenizer)
    assert loaded.extra_tensors["ids"].tolist() == [0, 1, 2, 3, 4] and loaded.about["state"] == "any"
    assert np.array_equal(loaded.head.integers, weights.head.integers) and loaded.head.spread == weights.head.spread
    flags = [tensor.flags for tensor in loaded.tensors.values()]
    assert all(f.aligned and f.writeable and f.c_contiguous for f in flags), "kernels would be compiled once more"
    expected, logits = (
        CpuLM(each, team_of(2), False).prefix_state(some_tokens(9, 20)).logits for each in (weights, loaded)
    )  # fmt: skip
    assert np.array_equal(logits, expected)


def test_a_change_of_the_file_needs_another_number(tmp_path: Path) -> None:
    """A file in a user's cache is read by later versions: change `weight_cache._FORMAT` together with this hash."""
    weight_cache.save(tmp_path / "weights", selftest.tiny("gated"), {}, {})
    assert hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest() == (
        "7e91498fc74af03f11300d85e80fd727b77cd39c37d68339b13d68bf68eb967d"
    )


# ---- products


@pytest.mark.parametrize("plain", [False, True])
def test_products_at_their_extremes(plain: bool) -> None:
    left, right = selftest.extremes()
    truth = left @ right.astype(np.int64).T
    assert np.abs(truth).max() == left.shape[1] * 127 * 127
    assert np.array_equal(multiply_matrices(left, right, plain), truth)


@pytest.mark.parametrize("plain", [False, True])
def test_products_of_the_largest_sizes(plain: bool) -> None:
    """With 128 added to the bytes, sums pass 32 bits, and come back with the offset."""
    inner = 1 << 17
    left = np.stack([np.full(inner, 127), np.full(inner, -127), np.tile([127, -127], inner // 2)])
    assert np.array_equal(multiply_matrices(left, left.astype(np.int8), plain), left @ left.T)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 31, 65])
@pytest.mark.parametrize(
    ("inner", "columns"), [(2, 1), (6, 33), (10, 64), (34, 32), (36, 7), (70, 65), (130, 100), (1537, 31)]
)
def test_products_of_every_shape(rows: int, inner: int, columns: int) -> None:
    random = np.random.default_rng(rows * inner)
    left = random.integers(-127, 128, (rows, inner))
    right = random.integers(-127, 128, (columns, inner)).astype(np.int8)
    truth = left @ right.astype(np.int64).T
    for plain in (False, True):
        assert np.array_equal(multiply_matrices(left, right, plain), truth)


@kernel
def multiply_values(shares, rows, values, quads, out, plain):  # type: ignore[no-untyped-def]
    multiply_shares(shares, np.int64(0), QUAD * quads, rows, values, np.int64(0), quads, out, np.int64(0),
                    np.int64(COLUMNS), plain)  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 7, 12, 21])
@pytest.mark.parametrize("positions", [4, 12, 64, 8192])
def test_shares_times_values(rows: int, positions: int) -> None:
    """Up to 255 times plus or minus 127, at up to as many positions as an LM has."""
    random = np.random.default_rng(rows * positions)
    shares = random.integers(0, 256, (rows, positions))
    values = random.integers(-127, 128, (COLUMNS, positions))
    shares[0], values[0], values[1] = 255, 127, -127
    panel = values.reshape(COLUMNS, -1, QUAD).swapaxes(0, 1).astype(np.int8).reshape(-1)
    assert len(panel) == positions // QUAD * PANEL_ROW
    for plain in (0, 1):
        out = np.empty((rows, COLUMNS), dtype=np.int32)
        multiply_values(shares.astype(np.uint8).reshape(-1), rows, panel, positions // QUAD, out.reshape(-1), plain)
        assert np.array_equal(out, shares @ values.T)


# ---- other processors


def run_again(name: str, *options: str) -> None:
    """These tests with other instructions, in a process of its own, which compiles the kernels again."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        *options,
        __file__,
    ]
    done = subprocess.run(command, env=os.environ | {"MEMCODEC_INSTRUCTIONS": name}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", instructions.available()[1:])
def test_every_instruction_set_passes_these_tests(name: str) -> None:
    run_again(name)


@pytest.mark.slow
def test_kernels_that_use_emulated_amx_pass_these_tests() -> None:
    run_again(EMULATED, "-p", "tests.emulated_tiles")


@pytest.mark.skipif(instructions.CHOSEN.name == EMULATED, reason="this is the process that it starts")
def test_products_with_emulated_amx() -> None:
    run_again(EMULATED, "-p", "tests.emulated_tiles", "-k", "extremes or shares or 31-65")
