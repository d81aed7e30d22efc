"""The promises about the built-in model, tested with that model."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import memcodec
from memcodec import Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.document.spans import zstd_size
from memcodec.lm.model import ExactLM, logits_of
from memcodec.models.registry import BUILT_IN, ModelFolder, load_exact, pull

pytestmark = [pytest.mark.slow, pytest.mark.default_model]

# The licence of this project: English text that is always available. The model may have seen it in its training.
LICENCE = (Path(__file__).parent.parent / "LICENSE").read_bytes()
MIXED = "Él dijo: «mañana será otro día». Она ответила: может быть. 彼は黙っていた。\n".encode()
CLAUSE = LICENCE[1504:1586]  # about twenty tokens

# SHA-256 of the logits that follow the first 30 tokens of CLAUSE repeated: those of every machine.
KNOWN_ANSWER = "618021a263f91e37388951d595c64b25fe80560731856e6baaaf6db4bd43fb1e"


@dataclass(frozen=True)
class Made:
    """A compressed file, and its document."""

    blob: bytes
    data: bytes


@pytest.fixture(scope="module", params=["readout", "prompt"])
def made(request: pytest.FixtureRequest, default_codec: Codec) -> Made:
    if request.param == "readout":
        data = LICENCE[1500:3500] + MIXED
        return Made(default_codec.encode(data), data)
    site = Prompt(bits=4, steps=400, pure=True)
    return Made(default_codec.encode(CLAUSE, site=site, chunk_tokens=12), CLAUSE)


def tokens_of(codec: Codec) -> np.ndarray:
    return codec.tokenizer.encode(CLAUSE.decode() * 3)[:30]


def test_the_known_answer(default_codec: Codec) -> None:
    logits = np.ascontiguousarray(logits_of(default_codec.lm, tokens_of(default_codec)), dtype="<i4")
    assert hashlib.sha256(logits.tobytes()).hexdigest() == KNOWN_ANSWER


def test_every_way_to_compute_gives_the_same_bits(default_codec: Codec) -> None:
    """Both implementations, full and cached passes, batches 1, 3 and 64, one and two threads."""
    tokens = tokens_of(default_codec)[:8]
    expected = logits_of(default_codec.lm, tokens)
    weights, _ = load_exact(ModelFolder("smollm2-135m", pull("smollm2-135m")))
    for threads, kernels in ((1, "numba"), (2, "numba"), (2, "torch")):
        lm = ExactLM(weights, "cpu", threads, kernels)
        assert np.array_equal(logits_of(lm, tokens), expected)
        for batch in (1, 3, 64):
            sequences = lm.sequences(batch, len(tokens), batch)
            for t in range(len(tokens)):
                sequences.step(np.full(batch, tokens[t]))
                logits = sequences.logits(slice(None, batch))[:, : lm.vocabulary]
                assert np.array_equal(logits[0], expected[t]) and np.array_equal(logits[-1], expected[t])


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches(default_codec: Codec, made: Made, batch: int) -> None:
    assert default_codec.decode(made.blob, batch=batch) == made.data


@pytest.mark.parametrize(("threads", "kernels"), [(1, "numba"), (2, "torch")])
def test_threads_and_kernels(made: Made, threads: int, kernels: str) -> None:
    assert Codec.load(device="cpu", threads=threads, kernels=kernels).decode(made.blob) == made.data


def test_memories_alone_write_the_text(default_codec: Codec, made: Made) -> None:
    if made.data == CLAUSE:
        groups = container.unpack(made.blob).groups
        assert groups and not any(group.corrections for group in groups)
    memory = default_codec.fit_memory(CLAUSE.decode(), Prompt(bits=8, steps=400))
    assert len(memory.vectors) == 1 and len(memory.fit.memory) == 578
    assert memory.exact and memory.reconstruct().encode() == CLAUSE


def test_near_the_bound_and_far_from_zstd(default_codec: Codec) -> None:
    text = LICENCE[1500:6500]
    bound = default_codec.bound(text)
    for share, most in ((0, 1.01), (0.1, 1.03)):
        blob = default_codec.encode(text, site=Readout(share), verify=False)
        facts = memcodec.inspect(blob)
        assert len(facts["spans"]) > 1
        assert len(blob) < 0.5 * zstd_size(text)
        size = facts["parts"]["corrections"] + facts["parts"].get("memories", 0)
        assert bound * 0.999 < size < most * bound + 0.5 * len(facts["spans"]), "half a byte a chunk in so short a text"
        assert len(blob) - size <= 240 + 6 * len(facts["spans"])


def test_the_exact_lm_loses_little(default_codec: Codec) -> None:
    """Bits per token compared with float32, on a text that is too short for a tighter limit."""
    import torch

    tokens = default_codec.tokenizer.encode(LICENCE[1500:4000].decode())[:400]
    exact = sum(default_codec.token_bits(tokens[i : i + 200]).sum() for i in (0, 200))
    floats = default_codec.floats
    with torch.no_grad():
        rows = torch.from_numpy(tokens.reshape(2, 200))
        logits = floats.logits(floats.hidden(rows)).double()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.flatten(), reduction="sum").item()
    assert exact == pytest.approx(nats / np.log(2), rel=0.015)


def test_cached_model_has_its_pinned_identity(default_codec: Codec) -> None:
    folder = pull("smollm2-135m")
    assert (folder / "exact.safetensors").is_file()
    assert BUILT_IN["smollm2-135m"].identity == default_codec.lm.identity.hex()


def test_vectors_decode(default_codec: Codec) -> None:
    """Files that were committed with the format must decode forever."""
    folder = Path(__file__).parent.parent / "spec" / "vectors"
    names = sorted(path.stem for path in folder.glob("*.memz"))
    assert len(names) >= 8
    kinds = set()
    for name in names:
        blob = (folder / f"{name}.memz").read_bytes()
        facts = memcodec.inspect(blob)
        kinds.add((facts["settings"]["site"] if facts["settings"] else None, facts["parts"].get("corrections", 0) > 0))
        assert default_codec.decode(blob) == (folder / f"{name}.bin").read_bytes()
    assert kinds == {(None, False), ("readout", True), ("prompt", False), ("prompt", True)}


def test_readout_vectors_are_what_this_encoder_makes(default_codec: Codec) -> None:
    """Encoding is as reproducible as decoding, except for fits in floating point."""
    folder = Path(__file__).parent.parent / "spec" / "vectors"
    for name, site in (("share-0", Readout(0)), ("share-0.1", Readout())):
        data = (folder / f"{name}.bin").read_bytes()
        assert default_codec.encode(data, site=site, verify=False) == (folder / f"{name}.memz").read_bytes()
