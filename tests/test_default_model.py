"""The promises that are made for the built-in model, kept on the built-in model."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import memcodec
from memcodec import document
from memcodec.codec import Codec
from memcodec.models import BUILT_IN, pull
from memcodec.prompt import Fitting

pytestmark = pytest.mark.default_model

# This file's own licence: English that nobody tuned to, and always at hand.
LICENCE = (Path(__file__).parent.parent / "LICENSE").read_bytes()
MIXED = "Él dijo: «mañana será otro día». Она ответила: может быть. 彼は黙っていた。\n".encode()
CLAUSE = LICENCE[1504:1586]  # some twenty tokens


@dataclass(frozen=True)
class Made:
    """A compressed file and what must come out of it."""

    blob: bytes
    data: bytes


@pytest.fixture(scope="module", params=["readout", "prompt"])
def made(request: pytest.FixtureRequest, default_codec: Codec) -> Made:
    if request.param == "readout":
        data = LICENCE[1500:3500] + MIXED
        return Made(default_codec.encode(data), data)
    fitting = Fitting(bits=4, steps=400)
    return Made(default_codec.encode(CLAUSE, site="prompt", chunk_tokens=12, fitting=fitting, pure=True), CLAUSE)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches(default_codec: Codec, made: Made, batch: int) -> None:
    assert default_codec.decode(made.blob, batch=batch) == made.data


def test_threads(default_codec: Codec, made: Made) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert default_codec.decode(made.blob) == made.data
    finally:
        torch.set_num_threads(before)


def test_eager_attention(made: Made) -> None:
    assert Codec.load(device="cpu", attention="eager").decode(made.blob) == made.data


def test_noise_of_just_under_half_the_margin(default_codec: Codec, made: Made) -> None:
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)

        def add(logits: torch.Tensor, generator: torch.Generator = generator) -> torch.Tensor:
            return logits + (torch.rand(logits.shape, generator=generator) - 0.5) * 1e-3 * 0.998

        assert default_codec.decode(made.blob, hook=add) == made.data


def test_memories_alone_write_the_text(default_codec: Codec) -> None:
    memory = default_codec.fit_memory(CLAUSE.decode(), bits=8, steps=400)
    assert len(memory.vectors) == 1 and len(memory.fit.memory) == 578
    assert memory.exact and memory.reconstruct().encode() == CLAUSE


def test_near_the_bound_and_far_from_zstd(default_codec: Codec) -> None:
    text = LICENCE[1500:5000]
    bound = default_codec.bound(text)
    for rate in (0, 1):
        blob = default_codec.encode(text, memory_rate=rate, verify=False)
        facts = memcodec.inspect(blob)
        assert len(facts["spans"]) > 2
        assert len(blob) < 0.55 * document.zstd_size(text) + 300
        assert bound < facts["parts"]["corrections"] + facts["parts"].get("memories", 0) < 1.2 * bound


def test_cached_model_loads_again_with_its_hash(default_codec: Codec) -> None:
    folder = pull("smollm2-135m")
    assert (folder / "memcodec.json").is_file()
    assert BUILT_IN["smollm2-135m"].weights_sha256.startswith(default_codec.model.weights.hex())


def test_vectors_decode(default_codec: Codec) -> None:
    """Files that were committed with the format: they must decode for ever."""
    folder = Path(__file__).parent.parent / "spec" / "vectors"
    names = sorted(path.stem for path in folder.glob("*.memz"))
    assert len(names) >= 9
    kinds = set()
    for name in names:
        blob = (folder / f"{name}.memz").read_bytes()
        facts = memcodec.inspect(blob)
        kinds.add((facts["settings"]["site"] if facts["settings"] else None, facts["parts"].get("corrections", 0) > 0))
        assert default_codec.decode(blob) == (folder / f"{name}.bin").read_bytes()
    assert kinds == {(None, False), ("readout", True), ("prompt", False), ("prompt", True)}
