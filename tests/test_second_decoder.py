"""The second decoder, which knows nothing of memcodec: it must read what memcodec writes, and the test vectors."""

import ast
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from memcodec import ChecksumError, FormatError, Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.models.registry import cached
from memcodec.primer import Primer
from memcodec.settings import Context
from spec import decoder

from .conftest import TEXT, store_nothing

SPEC = Path(__file__).parent.parent / "spec"
TINY = SPEC / "vectors" / "tiny"


def test_it_is_made_of_nothing_of_ours() -> None:
    tree = ast.parse((SPEC / "decoder.py").read_text())
    names = {n.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    names |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names) | {"numpy", "zstandard"}


@pytest.fixture(scope="module")
def weights(llama_folder: Path) -> decoder.Weights:
    return decoder.Weights(llama_folder)


def test_the_same_integers_from_the_same_floats(tiny: Codec, weights: decoder.Weights) -> None:
    assert weights.identity() == tiny.lm.identity
    assert weights.prefix == tiny.lm.prefix.tolist()


@pytest.mark.parametrize(
    ("site", "context"),
    [(Readout(0), 0), (Readout(0.3, 64), "auto"), (Readout(0.1, 64), 37), (Readout(0.1, 64), 1), (Prompt(2, 4, 2), 0)],
)
@pytest.mark.parametrize("primed", [False, True])
def test_it_reads_what_memcodec_writes(
    tiny: Codec, weights: decoder.Weights, site: Readout | Prompt, context: Context, primed: bool
) -> None:
    data = TEXT.encode()[:250] + bytes(range(128, 150)) + TEXT.encode()[250:]
    primer = Primer.from_texts([TEXT[::-1]], 70, tiny)
    codec = tiny.with_primer(primer) if primed else tiny
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        blob = codec.encode(data, site=site, chunk_tokens=40, context=context)
    assert decoder.decode(blob, weights, primer.tokens.tolist() if primed else None) == data


def test_damage_ends_it() -> None:
    weights = decoder.Weights(TINY / "model")
    blob = (TINY / "share-0.1.memz").read_bytes()
    assert decoder.decode(blob, weights) == (TINY / "share-0.1.bin").read_bytes()
    for cut in (blob[:-1], blob[:40]):
        with pytest.raises((AssertionError, ValueError)):
            decoder.decode(cut, weights)
    damaged = bytearray(blob)
    damaged[-10] ^= 1
    with pytest.raises(AssertionError, match="the file is damaged"):
        decoder.decode(bytes(damaged), weights)
    damaged[-4:] = zlib.crc32(damaged[:-4]).to_bytes(4, "little")  # as if the writer had made a mistake
    with pytest.raises(AssertionError, match=r"chunk .* is damaged"):
        decoder.decode(bytes(damaged), weights)


def test_a_stored_span_without_bytes_is_refused_as_by_memcodec() -> None:
    blob = container.pack(container.Container(0, bytes(16), [container.StoredSpan.of(b"")]))
    with pytest.raises(AssertionError, match="a stored span without bytes"):
        decoder.File(blob)
    with pytest.raises(FormatError, match="a stored span without bytes"):
        container.unpack(blob)


@pytest.mark.slow
def test_vectors_of_the_tiny_model() -> None:
    """With memcodec too; any change of one bit is detected."""
    tiny, codec = decoder.Weights(TINY / "model"), Codec.load(str(TINY / "model"), device="cpu")
    assert tiny.identity() == codec.lm.identity
    primer = Primer.load(TINY / "primer.safetensors")
    names = sorted(path.stem for path in TINY.glob("*.memz"))
    assert len(names) >= 6
    for name in names:
        blob, data = ((TINY / f"{name}.{kind}").read_bytes() for kind in ("memz", "bin"))
        used = primer if "primer" in name else None
        assert decoder.decode(blob, tiny, used.tokens.tolist() if used else None) == data
        assert codec.with_primer(used).decode(blob) == data
    blob = (TINY / "share-0.1.memz").read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(blob), 200):
        bad = bytearray(blob)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, ChecksumError)):
            codec.decode(bytes(bad))


@pytest.mark.slow
@pytest.mark.default_model
def test_a_vector_of_the_built_in_model(default_codec: Codec) -> None:
    """As a command, from the GGUF file. All vectors would take ten minutes."""
    folder = cached("smollm2-135m")
    command = [sys.executable, SPEC / "decoder.py", SPEC / "vectors" / "prompt-pure.memz", folder]
    done = subprocess.run(command, capture_output=True, timeout=600)
    assert done.stdout == (SPEC / "vectors" / "prompt-pure.bin").read_bytes(), done.stderr.decode()[-500:]
