"""The promises that are made for the built-in model, kept on the built-in model."""

from pathlib import Path

import pytest
import torch

import memcodec
from memcodec import document
from memcodec.codec import Codec
from memcodec.models import BUILT_IN, pull

pytestmark = pytest.mark.default_model

# This file's own licence: English that nobody tuned to, and always at hand.
LICENCE = (Path(__file__).parent.parent / "LICENSE").read_bytes()
MIXED = "Él dijo: «mañana será otro día». Она ответила: может быть. 彼は黙っていた。\n".encode()


@pytest.fixture(scope="module")
def blob(default_codec: Codec) -> bytes:
    return default_codec.encode(LICENCE[1500:3500] + MIXED)


def expected() -> bytes:
    return LICENCE[1500:3500] + MIXED


def test_far_smaller_than_zstd(default_codec: Codec, blob: bytes) -> None:
    assert len(memcodec.inspect(blob)["spans"]) > 2
    assert len(blob) < 0.55 * document.zstd_size(expected()) + 300


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches(default_codec: Codec, blob: bytes, batch: int) -> None:
    assert default_codec.decode(blob, batch=batch) == expected()


def test_threads(default_codec: Codec, blob: bytes) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert default_codec.decode(blob) == expected()
    finally:
        torch.set_num_threads(before)


def test_eager_attention(blob: bytes) -> None:
    assert Codec.load(device="cpu", attention="eager").decode(blob) == expected()


def test_noise_of_just_under_half_the_margin(default_codec: Codec, blob: bytes) -> None:
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)

        def add(logits: torch.Tensor, generator: torch.Generator = generator) -> torch.Tensor:
            return logits + (torch.rand(logits.shape, generator=generator) - 0.5) * 1e-3 * 0.998

        assert default_codec.decode(blob, hook=add) == expected()


def test_near_the_bound(default_codec: Codec) -> None:
    text = LICENCE[1500:5000]
    bound = default_codec.bound(text)
    sizes = {}
    for rate in (0, 1):
        parts = memcodec.inspect(default_codec.encode(text, memory_rate=rate, verify=False))["parts"]
        sizes[rate] = parts["corrections"] + parts.get("memories", 0)
    assert bound < sizes[1] < 1.2 * bound
    assert bound < sizes[0] < 1.2 * bound


def test_cached_model_loads_again_with_its_hash(default_codec: Codec) -> None:
    folder = pull("smollm2-135m")
    assert (folder / "memcodec.json").is_file()
    assert BUILT_IN["smollm2-135m"].weights_sha256.startswith(default_codec.model.weights.hex())


def test_vectors_decode(default_codec: Codec) -> None:
    """Files that were committed with the format: they must decode for ever."""
    folder = Path(__file__).parent.parent / "spec" / "vectors"
    names = sorted(path.stem for path in folder.glob("*.memz"))
    assert len(names) >= 4
    for name in names:
        assert default_codec.decode((folder / f"{name}.memz").read_bytes()) == (folder / f"{name}.bin").read_bytes()
