"""The search for memories on a GPU, or in Triton's interpreter: the same bytes as the CPU's."""

from typing import Any

import numpy as np
import pytest
import torch

from memcodec.coding.distribution import Predictions
from memcodec.coding.steering import Steering
from memcodec.lm.team import Team
from memcodec.lm.weights import Head
from memcodec.memory.search import memory_bytes, search

from .test_coding_gpu import DEVICE, coder_of

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux")

from memcodec.memory import search_gpu, search_kernels

TEAM = Team(2)
CUT = search_gpu.Sizes(tile=64, chunks=2, depth=32, warps=4, registers=128, programs=3, scratch=1 << 30, positions=50)


def chunk_of(seed: int, length: int, vocabulary: int, spread: float = 1500.0) -> Predictions:
    """Predictions whose tokens are drawn from their own logits, as texts are from an LM."""
    random = np.random.default_rng(seed)
    logits = np.round(random.standard_normal((length, vocabulary)) * spread).astype(np.int32)
    shares = np.exp2((logits - logits.max(axis=1, keepdims=True)) / 1024.0)
    shares /= shares.sum(axis=1, keepdims=True)
    predicted = Predictions.empty(np.array([random.choice(vocabulary, p=row) for row in shares]), vocabulary)
    predicted.fill(0, logits, vocabulary, TEAM)
    return predicted


def searched(
    predictions: list[Predictions],
    vocabulary: int,
    share: int,
    effort: int,
    sizes: search_gpu.Sizes | None = None,
    spread: float = 4.0,
) -> list[bytes]:
    """By the kernels, which must agree with the CPU."""
    coder = coder_of(vocabulary)
    tensors = coder.lm.tensors
    steering = Steering.of(Head(tensors["head"].cpu().numpy(), tensors["head.scale"].cpu().numpy(), spread))
    found = search_gpu.GpuSearch(coder, sizes)(predictions, steering, share, effort, TEAM)
    assert found == search(predictions, steering, share, effort, TEAM)
    return found


@pytest.mark.parametrize(
    ("vocabulary", "share", "effort"),
    [(20, 300, 1), (20, 300, 100), (300, 150, 16), (300, 512, 256), (1000, 512, 64), (1000, 300, 2)],
)
def test_memories_are_the_same(vocabulary: int, share: int, effort: int) -> None:
    """Of chunks of different lengths, most of which have bits; the ids of a small vocabulary are cut."""
    chunks = [chunk_of(length, length, vocabulary) for length in (20, 1, 24, 11)]
    found = searched(chunks, vocabulary, share, effort)
    assert found[0] and found[2] and not found[1]


def test_a_long_chunk_and_many_states() -> None:
    found = searched([chunk_of(1, 120, 300)], 300, 80, 64)
    assert len(found[0]) > 3
    searched([chunk_of(2, 18, 300)], 300, 512, 4096)


@pytest.mark.parametrize("effort", [16, 200])
def test_batches_programs_and_tiles_that_are_cut(effort: int) -> None:
    lengths = [20, 25, 14, 30, 9]
    found = searched([chunk_of(i, length, 300) for i, length in enumerate(lengths)], 300, 300, effort, CUT)
    assert [bool(memory) for memory in found] == [length > 14 for length in lengths]


def test_nothing_to_search() -> None:
    assert searched([], 300, 102, 64) == []
    assert searched([chunk_of(1, 20, 300)], 300, 0, 64) == [b""]
    assert searched([chunk_of(1, 5, 300)], 300, 102, 64) == [b""]


def test_wide_searches_are_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_gpu, "launch", None)
    searched([chunk_of(1, 12, 300)], 300, 512, search_gpu.MOST_STATES + 1)


def flags_of(predictions: list[Predictions], vocabulary: int, share: int, spread: float) -> np.ndarray:
    """What `prepare` found about positions."""
    coder = coder_of(vocabulary)
    steering = Steering.of(Head(coder.lm.tensors["head"].cpu().numpy(), np.ones(1), spread))
    finder = search_gpu.GpuSearch(coder)
    prepared = finder._prepared(finder._pack(predictions), steering, share)
    return prepared[3].cpu().numpy()[:, 2]


def test_targets_and_moves_at_their_limits() -> None:
    """Tokens that are not steered; moves beyond their limit, and sums beyond int32; costs beyond int32."""
    chunks, vocabulary = [chunk_of(i, 15, 300, 900.0) for i in range(3)], 300
    chunks[2] = chunks[2]._replace(
        below=chunks[2].below << 12, near=chunks[2].near << 18, total=chunks[2].total << np.arange(15) % 9
    )
    chunks[0].tokens[7:14] = np.argmin(chunks[0].total)
    found = []
    for share, spread in ((300, 40.0), (512, 1e-4)):
        assert all(searched(chunks, vocabulary, share, 64, spread=spread))
        found.append(flags_of(chunks, vocabulary, share, spread))
    for flag in (search_kernels.HAS_TARGET, search_kernels.IS_NEAR, search_kernels.IS_NARROW):
        assert 4 < np.count_nonzero(np.concatenate(found) & flag) < 80


def test_sizes_of_memories() -> None:
    chunk = chunk_of(3, 60, 300)
    found = searched([chunk, chunk], 300, 205, 32)
    assert found[0] == found[1] and len(found[0]) == memory_bytes(chunk.entropy, 205)


def test_equal_costs_are_kept_in_order() -> None:
    """A head of zeros moves nothing, so that all states cost the same."""
    coder = coder_of(300)
    coder.lm.tensors["head"].zero_()
    steering = Steering.of(Head(coder.lm.tensors["head"].cpu().numpy(), np.ones(300, dtype=np.float32), 1.0))
    coder.lm.tensors["head.scale"] = torch.ones(300, device=DEVICE)
    chunks = [chunk_of(1, 30, 300)]
    found = search_gpu.GpuSearch(coder)(chunks, steering, 512, 100, TEAM)
    assert found == search(chunks, steering, 512, 100, TEAM)


def test_the_search_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a memory that is not empty; one wrong bit is noticed."""
    search_gpu.failure.cache_clear()
    assert search_gpu.failure(DEVICE) == ""
    right = search_gpu.GpuSearch._found

    def wrong(*arguments: Any) -> list[bytes]:
        (memory,) = right(*arguments)
        return [bytes([memory[0] ^ 1]) + memory[1:]]

    monkeypatch.setattr(search_gpu.GpuSearch, "_found", wrong)
    search_gpu.failure.cache_clear()
    assert search_gpu.failure(DEVICE) == f"the search for memories cannot be used on {DEVICE} (wrong results)"
    search_gpu.failure.cache_clear()
