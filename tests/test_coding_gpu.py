"""The coder's kernels for GPUs: the same integers as those for the CPU, on a GPU or in Triton's interpreter."""

import gc
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from memcodec.codec import Codec
from memcodec.coding import placed
from memcodec.coding.corrections import Encoder
from memcodec.coding.distribution import BLOCK, Predictions
from memcodec.coding.steering import Steering
from memcodec.errors import EncodeError, MemcodecWarning
from memcodec.lm import selftest
from memcodec.lm.sequences import ON_CPU
from memcodec.lm.team import team_of
from memcodec.lm.weights import ExactWeights, Head, Tensors
from memcodec.primer import Primer
from memcodec.settings import Readout

from .conftest import TEXT, store_nothing

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux")

from memcodec.coding import gpu as gpu_coding
from memcodec.coding import gpu_check
from memcodec.lm import gpu, gpu_sizes
from memcodec.memory import search_gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def weights_of(vocabulary: int) -> ExactWeights:
    """One of the tiny LMs with a head of another size."""
    tiny, random = selftest.tiny("plain"), np.random.default_rng(vocabulary)
    head: Tensors = {
        "head": random.integers(-127, 128, (vocabulary, 34)).astype(np.int8),
        "head.scale": random.uniform(0.001, 0.01, vocabulary).astype(np.float32),
        "head.bias": np.zeros(vocabulary, dtype=np.float32),
    }
    return replace(tiny, architecture=replace(tiny.architecture, vocabulary=vocabulary), tensors=tiny.tensors | head)


def coder_of(vocabulary: int, sizes: gpu_sizes.BlockSizes | None = None) -> gpu_coding.Coder:
    return gpu_coding.Coder(gpu.GpuLM(weights_of(vocabulary), DEVICE, sizes))


def some_logits(rows: int, vocabulary: int) -> np.ndarray:
    """Of different spread; with many equal ones; all equal; at their limits."""
    random = np.random.default_rng(vocabulary)
    logits = np.round(random.standard_normal((rows, vocabulary)) * random.uniform(500, 4000, (rows, 1)))
    logits[1] = logits[1] // 4000 * 4000
    logits[2] = 7
    logits[3] = random.integers(-(2**29), 2**29, vocabulary)
    return logits.astype(np.int32)


# ---- distributions


@pytest.mark.parametrize("sizes", [None, gpu_sizes.ON_GPU._replace(entries=64)])
@pytest.mark.parametrize("vocabulary", [20, 71, 1000])
def test_predictions(vocabulary: int, sizes: gpu_sizes.BlockSizes | None) -> None:
    logits = some_logits(5, vocabulary)
    tokens = np.random.default_rng(1).integers(0, vocabulary, 5)
    expected = Predictions.empty(tokens, vocabulary)
    expected.fill(0, logits, vocabulary, team_of(1))
    found = gpu_coding.predictions(tokens, torch.from_numpy(logits).to(DEVICE), coder_of(vocabulary, sizes))()
    there = expected.ids >= 0
    for name in ("tokens", "ids", "total", "entropy", "blocks"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert np.array_equal(np.where(there, found.below, 0), np.where(there, expected.below, 0))
    for row, token in enumerate(tokens):
        count = min(BLOCK, vocabulary - token // BLOCK * BLOCK)
        assert np.array_equal(found.near[row, :count], expected.near[row, :count])


# ---- the decoder


@dataclass(frozen=True)
class Coded:
    """A group, as its decoder takes it."""

    lengths: tuple[int, ...]
    memories: tuple[bytes, ...]
    corrections: bytes


def coded(logits: np.ndarray, tokens: np.ndarray, steering: Steering, share: int, seed: int) -> Coded:
    """Tokens in two chunks, written by the CPU under random memories."""
    memories = tuple(np.random.default_rng(seed).bytes(n) for n in (3, 2))
    encoder, first = Encoder(steering, share), len(tokens) // 2
    for part, memory in zip((slice(0, first), slice(first, None)), memories, strict=True):
        predicted = Predictions.empty(tokens[part], logits.shape[1])
        predicted.fill(0, logits[part], logits.shape[1], team_of(1))
        encoder.write(predicted, memory)
    return Coded((first, len(tokens) - first), memories, encoder.finish())


@pytest.mark.parametrize("share", [0, 300])
@pytest.mark.parametrize("vocabulary", [20, 300, 1000])
def test_corrections_are_decoded(vocabulary: int, share: int) -> None:
    """Two groups in parallel: position by position, and several at one time."""
    weights, length = weights_of(vocabulary), 8
    t = weights.tensors
    steering = Steering.of(Head(t["head"], t["head.scale"], 1e-3))
    random = np.random.default_rng(share)
    logits = np.stack([some_logits(length, vocabulary), some_logits(length, vocabulary)[::-1]])
    tokens = random.integers(0, vocabulary, (2, length))
    tokens[:, ::2] = logits.argmax(axis=2)[:, ::2]  # winners among them
    groups = [coded(logits[i], tokens[i], steering, share, i) for i in range(2)]
    coder = coder_of(vocabulary)
    decoder = gpu_coding.GpuDecoder(groups, steering, share, coder)
    for position in range(5):
        found = decoder.step(position, torch.from_numpy(logits[:, position].copy()).to(DEVICE))
        assert np.array_equal(found, tokens[:, position])
    rest = np.concatenate([logits[1, 5:7], logits[0, 5:8]])
    found = decoder.read(np.array([1, 0]), np.array([5, 5]), np.array([2, 3]), rest)
    assert np.array_equal(found, np.concatenate([tokens[1, 5:7], tokens[0, 5:8]]))


def test_any_bytes_decode_to_some_tokens() -> None:
    logits, steering = some_logits(8, 300), Steering.of(Head(weights_of(300).tensors["head"], np.ones(300, "f4"), 1.0))
    coder, noise = coder_of(300), np.random.default_rng(0).bytes
    for corrections in (b"", noise(9), b"\xff" * 40):
        decoder = gpu_coding.GpuDecoder([Coded((8,), (noise(2),), corrections)], steering, 512, coder)
        found = decoder.read(np.array([0]), np.array([0]), np.array([8]), logits)
        assert found.min() >= 0 and found.max() < 300


def test_an_lm_and_its_coder_are_freed_at_once() -> None:
    """Weights on a GPU do not wait for the garbage collector."""
    lm: Any = SimpleNamespace(implementation=gpu.GpuLM(weights_of(300), DEVICE), head=None)
    freed = weakref.ref(lm.implementation)
    first = placed.coder_of(lm)
    assert placed.coder_of(lm) is first
    gc.disable()
    try:
        del lm, first
        assert freed() is None
    finally:
        gc.enable()


# ---- the whole path


@pytest.fixture
def both(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Codec]:
    """Codecs on the CPU and on Triton."""
    store_nothing(monkeypatch)
    kernels = "auto" if DEVICE == "cuda" else "triton"
    return [Codec.load(str(llama_folder), device="cpu"), Codec.load(str(llama_folder), device=DEVICE, kernels=kernels)]


def test_frames_are_the_same(both: list[Codec]) -> None:
    message = b"She sells"
    made = [codec.encode_frame(message) for codec in both]
    assert made[0] == made[1]
    assert both[1].decode_frame(made[0]) == message


def test_files_are_the_same_and_what_crosses_to_the_host(both: list[Codec], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step of decoding: at most 256 bytes a row, and a few launches more than those of the layers."""
    triton, data = both[1], TEXT[:24].encode()
    assert triton.lm.implementation.kernels == f"triton on {DEVICE}"
    files = [codec.encode(data, site=Readout(0.3, 16), chunk_tokens=8, context=0, verify=False) for codec in both]
    assert files[0] == files[1]

    crossed, launched = [0], []
    to_host, launch = torch.Tensor.cpu, gpu.launch

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        crossed[0] += tensor.nbytes
        return to_host(tensor)

    def started(kernel: Any, *arguments: Any, **constants: Any) -> None:
        launched.append(kernel.__name__)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    monkeypatch.setattr(gpu, "launch", started)
    monkeypatch.setattr(gpu_coding, "launch", started)
    assert triton.decode(files[0]) == data
    rows = len(triton.tokenizer.encode(data.decode()))
    assert rows > launched.count("decode")  # chunks are decoded side by side
    assert 0 < crossed[0] <= 256 * rows
    steps = launched.count("embed")
    assert launched.count("decode") == steps + 1  # the first token needs no step
    assert len(launched) <= 10 * triton.lm.architecture.layers * steps + 7 * (steps + 1)


def test_groups_of_different_lengths_in_windows(both: list[Codec], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose tokens are copied to the host several at one time, of groups that end one after the other."""
    monkeypatch.setattr(gpu_coding, "HISTORY", 4)
    texts = [TEXT[:5].encode(), TEXT[20:36].encode(), TEXT[40:58].encode()]
    files = [both[0].encode(text, site=Readout(0.3, 16), chunk_tokens=4, context=6, verify=False) for text in texts]
    assert both[1].decode_many(files) == texts


def test_rows_that_nobody_reads() -> None:
    """They have groups that exist, read nothing, and belong to the slot that no group has."""
    lm = gpu.GpuLM(weights_of(300), DEVICE)
    ends = np.arange(17, 0, -1) + 1  # 20 rows
    steps = gpu_coding.Steps(gpu_coding.Coder(lm), lm.sequences(17, 20, 17))
    tokens = np.where(ends > 3, 7, -(1 << 30))  # groups that have ended have any number there
    runs = steps.place(tokens, 3, ends).cpu().numpy()
    assert len(runs) == 20 and runs[:, 0].max() == 16
    assert runs[:, 3].tolist() == [1] * 15 + [0] * 5
    assert steps.tokens.tolist() == [7] * 15 + [0] * 5


def test_room_for_steps_is_that_of_each_sequence() -> None:
    sequences = gpu.GpuLM(weights_of(300), DEVICE).sequences(2, 21, 2)
    sequences.lengths[:] = (1, 4)
    sequences.check_room(np.array([20, 10]))
    with pytest.raises(EncodeError, match="the cache has room for 21"):
        sequences.check_room(np.array([20, 18]))


# ---- the self-test


def fails(device: str) -> str:
    return f"wrong on {device}"


def test_the_kernels_of_the_coder_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each device; wrong predictions, wrong tokens, and errors of other libraries are noticed."""
    gpu_check.failure_of_coder.cache_clear()
    assert gpu_check.failure_of_coder(DEVICE) == ""
    read, predict = gpu_coding.GpuDecoder.read, gpu_coding.predictions

    def wrong_token(*arguments: Any) -> np.ndarray:
        found = read(*arguments)
        found[-1] += 1
        return found

    def wrong_total(*arguments: Any) -> Any:
        found = predict(*arguments)()
        return lambda: found._replace(total=found.total + 1)

    def does_not_compile(*arguments: Any) -> Any:
        raise ValueError("no compiler\nwas found")

    for owner, name, wrong, reason in (
        (gpu_coding.GpuDecoder, "read", wrong_token, "wrong results"),
        (gpu_check, "predictions", wrong_total, "wrong results"),
        (gpu_check, "predictions", does_not_compile, "no compiler"),
    ):
        gpu_check.failure_of_coder.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, wrong)
            assert gpu_check.failure_of_coder(DEVICE) == f"the coder cannot be used on {DEVICE} ({reason})"
    gpu_check.failure_of_coder.cache_clear()


def test_a_coder_that_fails_leaves_its_work_to_the_cpu(both: list[Codec], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same bytes, and one warning."""
    monkeypatch.setattr(gpu_check, "failure_of_coder", fails)
    data = TEXT[:9].encode()
    expected = both[0].encode(data, site=Readout(0.3, 16), verify=False)
    with pytest.warns(MemcodecWarning) as told:
        found = both[1].encode(data, site=Readout(0.3, 16), verify=False)
        assert found == expected and both[1].decode(found) == data
        assert both[1].encode(data, site=Readout(0.3, 16), verify="steps") == expected
        primed = both[1].with_primer(Primer.from_texts([TEXT[::-1]], 20, both[1]))
        assert primed.decode_frame(primed.encode_frame(data)) == data
    assert [str(one.message) for one in told] == [f"wrong on {DEVICE}: the CPU codes instead"]
    assert both[1].lm.capacity == ON_CPU
    assert both[1].lm.implementation.kernels == f"triton on {DEVICE}; wrong on {DEVICE}"


def test_a_search_that_fails_leaves_its_work_to_the_cpu(both: list[Codec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_gpu, "failure", fails)
    monkeypatch.setattr(search_gpu, "GpuSearch", None)
    data = TEXT[:24].encode()
    expected = both[0].encode(data, site=Readout(0.3, 16), chunk_tokens=8, context=0, verify=False)
    with pytest.warns(MemcodecWarning) as told:
        for _ in range(2):
            assert both[1].encode(data, site=Readout(0.3, 16), chunk_tokens=8, context=0, verify=False) == expected
    assert [str(one.message) for one in told] == [f"wrong on {DEVICE}: the CPU searches instead"]
