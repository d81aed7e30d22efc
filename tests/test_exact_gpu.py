"""The exact LM's kernels for GPUs: the same bits as plain integers, on a GPU or in Triton's interpreter."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memcodec.errors import MachineError, MissingDependencyError, ModelNotFoundError
from memcodec.lm import choice, selftest
from memcodec.lm.model import ExactLM, find_device
from memcodec.lm.sequences import ON_CPU, SequenceInput

from . import reference
from .conftest import TINY
from .reference import Reference
from .test_exact_cpu import SIZES, random_weights
from .test_exact_torch import Checked, some_tokens, some_vectors, weights_of

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux")

from memcodec.lm import gpu, gpu_kernels, gpu_sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = gpu_sizes.BlockSizes(
    entries=256, gate=16, panel=16, queries=16, step_panel=16, span=32, rows=16, columns=64, depth=32
)  # many blocks, cut at edges


def lm_of(name: str, sizes: gpu_sizes.BlockSizes | None = None) -> gpu.GpuLM:
    return gpu.GpuLM(random_weights(name) if name in SIZES else weights_of(name), DEVICE, sizes)


def test_the_self_test_passes() -> None:
    gpu.check(DEVICE)


# ---- passes and steps


@pytest.mark.parametrize("name", [*TINY, *SIZES, *selftest.KNOWN_ANSWERS])
def test_passes_steps_and_vectors_in_any_order(name: str) -> None:
    weights = random_weights(name) if name in SIZES else weights_of(name)
    both = Checked(lm_of(name), weights, 3)
    tokens, vectors = some_tokens(weights, 1, 40), some_vectors(weights, 2, 4)
    both.forward(
        [
            SequenceInput(0, np.concatenate([[-1, -2, -3, -4], tokens[:9]]), vectors),
            SequenceInput(1, tokens[9:10]),
            SequenceInput(2, np.array([5, -1, 3, -2]), vectors[2:]),
        ]
    )
    both.step(tokens[[10, 11]])
    both.forward([SequenceInput(1, tokens[20:27]), SequenceInput(2, tokens[27:28])])
    both.step(tokens[[30, 31, 2]])
    both.found.restart()
    for one in both.expected:
        one.restart()
    both.step(tokens[[0, 7, 8]])


@pytest.mark.parametrize("name", ["80", "plain"])
def test_small_block_sizes_give_the_same(name: str) -> None:
    weights = random_weights(name) if name in SIZES else weights_of(name)
    both = Checked(lm_of(name, SMALL), weights, 2)
    tokens = some_tokens(weights, 1, 30)
    both.forward([SequenceInput(0, tokens[:2]), SequenceInput(1, tokens[2:19])])
    both.step(tokens[[1, 2]])


def test_padded_steps_give_the_same() -> None:
    """Nine rows and one more; the sequence that is not part of the step stays as it was."""
    weights = weights_of("llama")
    both = Checked(gpu.GpuLM(weights, DEVICE), weights, 10)
    tokens = some_tokens(weights, 1, 60)
    both.forward([SequenceInput(slot, tokens[slot : slot + 1 + slot % 2]) for slot in range(10)])
    both.step(tokens[10:19])
    both.step(tokens[20:30])


def test_sequences_after_a_prefix() -> None:
    weights = weights_of("qwen3")
    lm = gpu.GpuLM(weights, DEVICE)
    prefix, tokens = some_tokens(weights, 3, 11), some_tokens(weights, 4, 6)
    state = lm.prefix_state(prefix)
    expected = Reference(weights)([*prefix, *tokens])
    assert np.array_equal(state.logits, expected[10])
    sequences = lm.sequences(2, 20, 1, state)  # more rows than were announced
    for _ in range(2):
        sequences.forward([SequenceInput(1, tokens)])
        assert np.array_equal(sequences.logits(slice(None)), expected[11:])
        assert np.array_equal(sequences.logits(np.array([3, 1])), expected[[14, 12]])
        sequences.restart()


# ---- kernels


def random_rows(rows: int, size: int) -> np.ndarray:
    """Of very different sizes, one of zeros and one of numbers close to the smallest."""
    random = np.random.default_rng(size)
    x = random.standard_normal((rows, size)) * 10.0 ** random.uniform(-6, 6, (rows, 1))
    x[rows // 2], x[rows // 3] = 0, x[rows // 3] * 1e-38
    return x.astype(np.float32)


def buffers_of(lm: gpu.GpuLM, rows: int, **contents: np.ndarray) -> gpu.Buffers:
    buffers = gpu.Buffers(lm.architecture, rows, lm.device)
    for name, array in contents.items():
        getattr(buffers, name)[: array.size] = torch.from_numpy(array.reshape(-1)).to(lm.device)
    return buffers


def inputs_in(buffers: gpu.Buffers, rows: int, size: int) -> list[tuple[list[int], float]]:
    integers = buffers.inputs[: rows * size].view(rows, size).tolist()
    return list(zip(integers, buffers.input_scale[:rows].tolist(), strict=True))


def as_inputs(found: tuple[np.ndarray, np.float32]) -> tuple[list[int], float]:
    return found[0].tolist(), float(found[1])


@pytest.mark.parametrize("sizes", [gpu_sizes.ON_GPU, SMALL])
@pytest.mark.parametrize("size", [2, 34, 130])
def test_quantize_and_norm(size: int, sizes: gpu_sizes.BlockSizes) -> None:
    lm, x = lm_of("34", sizes), random_rows(9, size)
    for norm in (False, True):
        buffers = buffers_of(lm, 200)
        lm.quantize(torch.from_numpy(x).to(lm.device), buffers, 9, size, norm)
        expected = [reference.norm(row, 1e-5) if norm else reference.quantize(row) for row in x]
        assert inputs_in(buffers, 9, size) == [as_inputs(one) for one in expected]


@pytest.mark.parametrize("rows", [1, 17, 33])
@pytest.mark.parametrize(("inner", "columns"), [(2, 1), (34, 33), (130, 100)])
def test_products_with_biases_residuals_and_logits(rows: int, inner: int, columns: int) -> None:
    random = np.random.default_rng(rows * inner)
    v, w = (random.integers(-127, 128, (n, inner)).astype(np.int8) for n in (rows, columns))
    s, scale, bias = (random.standard_normal(n).astype(np.float32) for n in (rows, columns, columns))
    before = random.standard_normal((rows, columns)).astype(np.float32)
    sums = v.astype(np.int64) @ w.T.astype(np.int64)
    plain = sums.astype(np.float32) * s[:, None] * scale

    def found(kind: int, bias: np.ndarray | None, out: np.ndarray) -> np.ndarray:
        tensors = [torch.from_numpy(x.copy()).to(DEVICE) for x in (v, s, w, scale, out)]
        linear = gpu.Linear(tensors[2], tensors[3], None if bias is None else torch.from_numpy(bias).to(DEVICE))
        gpu.multiply(linear, tensors[0], tensors[1], tensors[4], rows, kind, gpu_sizes.ON_GPU)
        return tensors[4].cpu().numpy()  # type: ignore[no-any-return]

    integers = np.zeros((rows, columns), dtype=np.int32)
    assert np.array_equal(found(gpu_kernels.SUMS, None, integers), sums)
    assert np.array_equal(found(gpu_kernels.STORE, None, before), plain)
    assert np.array_equal(found(gpu_kernels.STORE, bias, before), plain + bias)
    assert np.array_equal(found(gpu_kernels.ADD, bias, before), before + (plain + bias))
    units = np.rint(np.clip((plain + bias) * np.float32(1477.3197218702985), -(2.0**29), 2.0**29))
    assert np.array_equal(found(gpu_kernels.UNITS, bias, integers), units)


@pytest.mark.parametrize(
    "value", [0.5, 1.5, 2.5, -0.5, -3.5, 2**22 + 0.5, 2**22 + 1.5, 2**23 + 1.0, -(2**22) - 2.5, 1e30]
)
def test_halves_are_rounded_to_even(value: float) -> None:
    """Products are 1, so that the logits are the scale of the row, rounded and cut."""
    one = torch.ones(1, 2, dtype=torch.int8, device=DEVICE)
    scale = np.float32(value) / np.float32(1477.3197218702985)
    linear = gpu.Linear(one, torch.tensor([0.5], device=DEVICE), None)
    out = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)
    gpu.multiply(linear, one, torch.tensor([scale], device=DEVICE), out, 1, gpu_kernels.UNITS, gpu_sizes.ON_GPU)
    exact = scale * np.float32(1477.3197218702985)
    assert out.item() == np.rint(np.clip(exact, -(2.0**29), 2.0**29))


@pytest.mark.parametrize("name", [*SIZES, "gpt2", "plain"])
def test_gate(name: str) -> None:
    lm = lm_of(name, SMALL if name != "576" else None)
    a = lm.architecture
    y = np.concatenate([random_rows(5, (1 + a.gated) * a.inner), random_rows(4, (1 + a.gated) * a.inner) * 0 + 25])
    buffers = buffers_of(lm, len(y), y=y)
    lm.gate(buffers, len(y))
    for row, found in zip(y, inputs_in(buffers, len(y), a.inner), strict=True):
        z = np.array([reference.gate(g, a.gate) for g in row[: a.inner]])
        z = z * row[a.inner :] if a.gated else z
        assert found == as_inputs(reference.quantize(reference.hadamard(z, min(reference.power_of_two(a.inner), 128))))


@pytest.mark.parametrize(
    ("name", "sizes", "largest"),
    [(name, sizes, 3) for name in (*SIZES, "gated", "qwen3") for sizes in (None, SMALL)]
    + [("gated", SMALL, 300), ("gated", SMALL, 3e5)],  # logits of about 1e8 units, and more than there are
)
def test_heads_and_attention(name: str, sizes: gpu_sizes.BlockSizes | None, largest: float) -> None:
    """Two passes of the two sequences, so that queries attend to keys of both."""
    lm = lm_of(name, sizes)
    a, plain = lm.architecture, Reference(random_weights(name) if name in SIZES else weights_of(name))
    sequences = lm.sequences(2, 40, 30)
    caches: list[list[tuple[list, list]]] = [[([], []) for _ in range(a.key_heads)] for _ in range(2)]
    starts = np.zeros(2, dtype=np.int64)
    for counts in (np.array([3, 18]), np.array([1, 1])):
        rows = int(counts.sum())
        y = np.random.default_rng(rows).standard_normal((rows, a.heads + 2 * a.key_heads, a.head_size))
        y = (y * largest).astype(np.float32)
        tokens, slots = np.zeros(rows, dtype=np.int64), np.arange(2)
        made = sequences.pass_of(tokens, slots, counts, starts)
        buffers = buffers_of(lm, rows, y=y)
        cached, scales = sequences.cache.integers[1], sequences.cache.scales[1]
        lm.heads(made, buffers, 1, cached, scales)
        lm.attend(made, buffers, cached, scales)
        z = buffers.y[: rows * a.heads * a.head_size].view(rows, a.heads, a.head_size).cpu().numpy()
        row = 0
        for slot, (start, count) in enumerate(zip(starts, counts, strict=True)):
            for position in range(start, start + count):
                for group, (keys, values) in enumerate(caches[slot]):
                    keys.append(plain.head(y[row, a.heads + group], "key.gain", 1, position))
                    values.append(reference.quantize(y[row, a.heads + a.key_heads + group]))
                for head in range(a.heads):
                    q, scale = plain.head(y[row, head], "query.gain", 1, position)
                    expected = plain.attend(q, scale, *caches[slot][head // (a.heads // a.key_heads)])
                    assert np.array_equal(z[row, head], expected), (row, head)
                row += 1
        starts += counts


# ---- numbers at their limits


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which the interpreter computes with
@pytest.mark.parametrize("part", ["embedding.scale", "up.scale", "mix.scale", "qkv.scale"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_activations_beyond_float32_are_an_error(name: str, part: str) -> None:
    weights = weights_of(name)
    far = replace(weights, tensors=weights.tensors | {part: np.full_like(weights.tensors[part], 3e38)})
    sequences = gpu.GpuLM(far, DEVICE).sequences(1, 20, 20)
    sequences.forward([SequenceInput(0, np.arange(20))])
    with pytest.raises(ModelNotFoundError, match="activations exceed the range of float32"):
        sequences.logits(slice(None))


def test_logits_are_cut() -> None:
    weights = weights_of("llama")
    far = replace(weights, tensors=weights.tensors | {"head.scale": weights.tensors["head.scale"] * np.float32(1e9)})
    sequences = gpu.GpuLM(far, DEVICE).sequences(1, 20, 20)
    sequences.forward([SequenceInput(0, np.arange(20))])
    logits = sequences.logits(slice(None))
    assert logits.max() == 2**29 and logits.min() == -(2**29)
    assert np.array_equal(logits, Reference(far)(list(range(20))))


# ---- launches, compiled kernels, and the choice between implementations


def test_the_launches_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    launch = gpu.launch

    def counted(kernel: Any, *arguments: Any, **constants: Any) -> None:
        launched.append(kernel.__name__)
        launch(kernel, *arguments, **constants)

    lm = lm_of("llama")
    sequences = lm.sequences(3, 20, 3)
    monkeypatch.setattr(gpu, "launch", counted)
    sequences.step(np.array([1, 2, 3]))
    sequences.logits(slice(None))
    layers = lm.architecture.layers
    assert len(launched) <= 10 * layers + 3
    assert launched.count("attend_step") == layers and launched.count("product") == 4 * layers + 1


@pytest.mark.slow
def test_compiled_kernels_round_each_operation_once(tmp_path: Path) -> None:
    """What a pass and the coder launch, compiled for an H100, which needs none.

    No instruction is fused, approximate, or flushes small numbers to zero.
    """
    script = Path(__file__).parent / "compile_kernels.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    floats = {
        "embed",
        "quantize",
        "product",
        "heads",
        "attend",
        "attend_step",
        "gate",
        "summarize",
        "decode",
        "advance",
    }
    floats |= {"prepare", "beam"}
    assert {one["kernel"] for one in found} == floats | {"cells", "blocks"}
    for one in found:
        assert one["wrong"] == [], one
        assert bool(one["rounded"]) == (one["kernel"] in floats), one
    products = [one for one in found if one["kernel"] in ("product", "attend", "attend_step", "prepare", "beam")]
    assert all("s32.s8.s8" in instruction for one in products for instruction in one["matrix"])
    assert all(one["matrix"] for one in products)


def test_what_fails_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: str) -> bool:
        raise MachineError(f"wrong sums on {device}")

    team, weights = ExactLM(weights_of("gated"), "cpu").team, weights_of("gated")
    monkeypatch.setattr("memcodec.lm.gpu.check", fails)
    monkeypatch.setattr("memcodec.lm.device.select_device", lambda _: "cpu")  # for the operations of torch
    with pytest.warns(RuntimeWarning, match="wrong sums on cuda: torch on cpu"):
        device, found = choice.implementation_of(weights, "cuda", "auto", True, team)
    assert device == "cuda" and found.kernels == "torch on cpu, float32; wrong sums on cuda"
    monkeypatch.setattr("memcodec.lm.device.needs_fallback", fails)
    with pytest.warns(RuntimeWarning, match="wrong sums on cuda: numba"):
        device, found = choice.implementation_of(weights, "cuda", "auto", None, team)
    assert device == "cpu" and found.kernels.startswith("numba, ")
    assert found.kernels.endswith("; wrong sums on cuda; wrong sums on cuda")
    for kernels in ("triton", "torch"):
        with pytest.raises(MachineError, match="wrong sums on cuda"):
            choice.implementation_of(weights, "cuda", kernels, None, team)


def test_one_of_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes the current one of torch; its free memory decides how much is in a batch."""
    current: list[int] = []
    monkeypatch.setattr("memcodec.lm.model.has_cuda_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 << 30, 90 << 30))
    assert find_device("cuda:1") == "cuda:1" and current == [1]
    assert find_device("auto") == find_device("cuda") == "cuda" and current == [1]
    with pytest.raises(MachineError, match="'cuda:2' is not available here: use --device cuda:0 to cuda:1, or"):
        find_device("cuda:2")
    architecture = weights_of("llama").architecture
    capacity = gpu_sizes.capacity_of(architecture, torch.device("cuda:1"))
    stored = architecture.layers * 2 * architecture.key_heads * (architecture.head_size + 4)  # of a position
    assert 39 << 30 < capacity.positions * stored <= 40 << 30
    assert capacity.head_rows * architecture.vocabulary * 4 <= 1 << 30
    assert gpu_sizes.capacity_of(architecture, torch.device("cpu")) == ON_CPU


def test_the_cpu_has_only_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    gpu.check.cache_clear()
    with pytest.raises(MissingDependencyError, match="TRITON_INTERPRET=1"):
        ExactLM(weights_of("gated"), "cpu", kernels="triton")
