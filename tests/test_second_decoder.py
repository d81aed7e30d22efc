"""The second decoder, which knows nothing of memcodec: it must read what memcodec writes, and the test vectors."""

import ast
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from memcodec import ChecksumError, FormatError, ModelNotFoundError, Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.container import Container, Segment, StoredSpan
from memcodec.document.references import Reference
from memcodec.models.registry import cached
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.primer import Primer
from memcodec.settings import Context
from spec import decoder

from .conftest import TEXT, store_nothing, traced
from .test_container import number_at, reseal, with_header, with_index

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
    for cut in (blob[:-1], blob[:40], blob[:4], b""):
        with pytest.raises(AssertionError):
            decoder.decode(cut, weights)
    damaged = bytearray(blob)
    damaged[-10] ^= 1
    with pytest.raises(AssertionError, match="the file is damaged"):
        decoder.decode(bytes(damaged), weights)
    damaged[-4:] = zlib.crc32(damaged[:-4]).to_bytes(4, "little")  # as if the writer had made a mistake
    with pytest.raises(AssertionError, match=r"chunk .* is damaged"):
        decoder.decode(bytes(damaged), weights)


# ---- what the page forbids: the decoder and memcodec refuse it for the same reason


@pytest.fixture(scope="module")
def both() -> tuple[decoder.Weights, Codec]:
    """The model of the tiny vectors."""
    return decoder.Weights(TINY / "model"), Codec.load(str(TINY / "model"), device="cpu")


def vector(name: str) -> Container:
    """What a tiny vector holds."""
    return container.unpack((TINY / f"{name}.memz").read_bytes())


def indexed(*numbers: tuple[int, int]) -> bytes:
    """The vector `share-0` with other varints in its index, each given as its place and its new value."""

    def change(index: bytes) -> bytes:
        for at, value in sorted(numbers, reverse=True):  # from the end, since lengths change
            index = number_at(index, at, value)
        return index

    return with_index(vector("share-0"), change)


def index_with(at: int, data: bytes, count: int = 1) -> bytes:
    """The vector `share-0` with other bytes in its index, in place of `count` bytes."""
    return with_index(vector("share-0"), lambda index: index[:at] + data + index[at + count :])


def headed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The vector `share-0` with another header."""
    return with_header((TINY / "share-0.memz").read_bytes(), change)


def beginning(text: bytes) -> bytes:
    """The vector `share-0` with this text in place of its header."""
    blob = (TINY / "share-0.memz").read_bytes()
    return reseal(len(text).to_bytes(8, "little") + text + blob[8 + int.from_bytes(blob[:8], "little") :])


def settled(fields: tuple[int, ...], name: str = "share-0") -> bytes:
    """A tiny vector with other fields of its site."""
    found = vector(name)
    assert found.settings is not None
    return container.pack(replace(found, settings=replace(found.settings, fields=fields)))


def remembering(change: Callable[[bytes], bytes]) -> bytes:
    """The vector `prompt` with another memory in its first chunk."""
    found = vector("prompt")
    first, *others = found.parts
    assert isinstance(first, Segment)
    (chunk,) = first.chunks
    changed = replace(first, chunks=(replace(chunk, memory=change(chunk.memory)),))
    return container.pack(replace(found, parts=[changed, *others]))


def one_group() -> bytes:
    """The vector `prompt` with its first two chunks in one group."""
    found = vector("prompt")
    first, second, *others = found.parts
    assert isinstance(first, Segment) and isinstance(second, Segment) and found.settings is not None
    chunks = tuple(replace(chunk, tokens=20) for chunk in (*first.chunks, *second.chunks))  # as many as chunk tokens
    joined = Segment(first.size + second.size, chunks, b"")
    return container.pack(replace(found, parts=[joined, *others]))


def stored(span: StoredSpan) -> bytes:
    """A file with a stored span and nothing else."""
    return container.pack(Container(span.size, bytes(16), [span]))


def with_a_gap(header: dict[str, Any]) -> None:
    (size,) = header["document"]["shape"]
    header["document"] |= {"shape": [size - 1], "data_offsets": [1, size]}


# The index of share-0: from 16 on the size, runs, stored spans, references; 21 and 22: the runs; 23: the stored span,
# with its method at 25; 38: the site; 39: chunk tokens; 41: the context; 43: the number of fields, and the share;
# 45: the tokens of segments, with the width of the column at 46.
FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(b"abc")
REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    # a name: what makes the file, and the messages of the decoder and of memcodec
    "no tensor": (lambda: headed(lambda h: h.pop("document")), "another tensor, or no", "longer than it says"),
    "another tensor": (
        lambda: headed(lambda h: h.update(more={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})),
        "another tensor", "unknown tensor 'more'",
    ),
    "another dtype": (
        lambda: headed(lambda h: h["document"].update(dtype="I8")),
        "the tensor document is not where", "the tensor document is not where",
    ),
    "a gap": (lambda: headed(with_a_gap), "the tensor document is not where", "the tensor document is not where"),
    "a long header": (
        lambda: headed(lambda h: h["__metadata__"].update(more="x" * 65536)), "not a memcodec", "not a memcodec"
    ),
    "late metadata": (
        lambda: beginning(b'{"document":{},' + b" " * 504 + b'"__metadata__":{"memcodec":"3"}}'),
        "not a memcodec file", "not a memcodec file",
    ),
    "a deep header": (
        lambda: beginning(b'{"memcodec":' + b"[" * 60_000), "the header cannot be read", "header cannot be read"
    ),
    "no metadata": (lambda: beginning(b'{"memcodec":1}'), "the header cannot be read", "header cannot be read"),
    "numbers as metadata": (
        lambda: headed(lambda h: h["__metadata__"].update(memcodec=3)), "metadata that is not text", "no metadata"
    ),
    "another version": (
        lambda: headed(lambda h: h["__metadata__"].update(memcodec="4")), "another version", "version '4'"
    ),
    "an archive": (
        lambda: headed(lambda h: h["__metadata__"].update(memcodec="archive 1")), "another version", "is an archive"
    ),
    "no model": (lambda: headed(lambda h: h["__metadata__"].pop("model")), "without a model", "without a model"),
    "a number of 63 bits": (lambda: indexed((16, 1 << 62)), "a number is too long", "number in document is too long"),
    "a number of 10 bytes": (
        lambda: index_with(18, b"\x82" + b"\x80" * 8 + b"\x00"), "a number is too long", "in document is too long"
    ),
    "a column of 63 bits": (lambda: index_with(46, b"\x3f"), "column are too long", "numbers in document are too long"),
    "another size": (lambda: indexed((16, 844)), "lengths do not add up", "lengths do not add up"),
    "two runs too many": (lambda: indexed((18, 4)), "numbers of runs and of stored", "numbers of runs and of stored"),
    "a run too few": (lambda: indexed((18, 1), (19, 2)), "numbers of runs and of", "numbers of runs and of stored"),
    "too many segments": (lambda: indexed((21, 1 << 40)), "too many segments", "more chunks than the file has room"),
    "too many chunks": (
        lambda: indexed((16, 1 << 40), (39, 1), (45, 1 << 30), (49, 1 << 40)),
        "too many chunks", "more chunks than the file has room",
    ),
    "no group before": (lambda: indexed((21, 3)), "group that does not exist", "group that does not exist"),
    "nothing continues": (lambda: indexed((22, 1)), "group that does not exist", "group that does not exist"),
    "another method": (lambda: index_with(25, b"\x02"), "unknown method", "unknown method 2 of a stored span"),
    "no bytes in a span": (lambda: stored(StoredSpan.of(b"")), "span without bytes", "a stored span without bytes"),
    "a reference ahead": (
        lambda: container.pack(replace(vector("share-0"), references=(Reference(10, -40, 32),))),
        "a reference to bytes that are not there", "a reference to bytes that are not there",
    ),
    "a reference too late": (
        lambda: container.pack(replace(vector("share-0"), size=877, references=(Reference(846, 0, 32),))),
        "a reference to bytes that are not there", "a reference after the end of the document",
    ),
    "another site": (lambda: indexed((38, 4)), "an unknown site", "unknown site"),
    "too many fields": (lambda: indexed((43, 9)), "an unknown site", "unknown site"),
    "no chunk tokens": (lambda: indexed((39, 0)), "chunk tokens out of range", "chunk tokens or context out of range"),
    "many chunk tokens": (lambda: indexed((39, 4097)), "chunk tokens out of", "chunk tokens or context out of range"),
    "no context": (lambda: indexed((41, 0)), "a context out of range", "chunk tokens or context out of range"),
    "a long context": (lambda: indexed((41, 32769)), "a context out of range", "chunk tokens or context out of range"),
    "no tokens": (lambda: indexed((45, 0)), "a wrong number of tokens", "a segment without tokens"),
    "more tokens than bytes": (lambda: indexed((45, 500)), "a wrong number of tokens", "more of them than bytes"),
    "a large share": (lambda: settled((513,)), "a memory share out of range", "a memory share out of range"),
    "two shares": (lambda: settled((0, 0)), "a memory share out of range", "a memory share out of range"),
    "no share": (lambda: settled(()), "a memory share out of range", "a memory share out of range"),
    "5 bits": (lambda: settled((5, 64), "prompt"), "bits per dimension", "bits per dimension out of range"),
    "no dimensions": (lambda: settled((4,), "prompt"), "bits per dimension", "bits per dimension out of range"),
    "63 dimensions": (lambda: settled((4, 63), "prompt"), "another number of dimensions", "vectors of 63 dimensions"),
    "no vectors": (lambda: remembering(lambda m: b""), "not 1 to 64 vectors", "not 1 to 64 vectors"),
    "65 vectors": (lambda: remembering(lambda m: m[:34] * 65), "not 1 to 64 vectors", "not 1 to 64 vectors"),
    "half a vector": (lambda: remembering(lambda m: m[:17]), "not 1 to 64 vectors", "not 1 to 64 vectors"),
    "infinity": (lambda: remembering(lambda m: b"\0\x7c" + m[2:]), "not a number", "an entry is not a number"),
    "not a number": (lambda: remembering(lambda m: b"\0\x7e" + m[2:]), "not a number", "an entry is not a number"),
    "chunks in a group": (one_group, "vectors in the middle of a group", "vectors in the middle of a group"),
    "a group too long": (
        lambda: indexed((41, 32768), (45, 200)), "longer than the positions", "longer than the model's 512 positions"
    ),
    "not a zstd frame": (
        lambda: stored(StoredSpan(99, 1, b"not a frame", 0)), "zstd cannot read", "zstd cannot read it"
    ),
    "two zstd frames": (
        lambda: stored(StoredSpan(6, 1, FRAME * 2, zlib.crc32(b"abcabc"))), "follow it", "zstd cannot read it"
    ),
    "bytes after a zstd frame": (
        lambda: stored(StoredSpan(6, 1, FRAME + b"x" * 40, 0)), "bytes after the zstd frame", "zstd cannot read it"
    ),
    "a cut zstd frame": (lambda: stored(StoredSpan(3, 1, FRAME[:-1], 0)), "bytes are missing", "zstd cannot read it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_what_memcodec_refuses(name: str, both: tuple[decoder.Weights, Codec]) -> None:
    make, reason, ours = REFUSED[name]
    weights, codec = both
    blob = make()
    with pytest.raises(AssertionError, match=reason):
        decoder.decode(blob, weights)
    with pytest.raises(FormatError, match=ours):
        codec.decode(blob)


def test_a_zstd_bomb_is_stopped() -> None:
    blob = stored(StoredSpan(12, 1, zstandard.ZstdCompressor().compress(bytes(1 << 26)), 0))
    with traced() as peak:
        with pytest.raises(AssertionError, match="a stored span is damaged"):
            decoder.decode(blob, None)
        assert peak() < 1 << 23


def test_it_reads_padding_as_memcodec_does() -> None:
    """Zeros at the end of a varint, up to 9 bytes, and bits after the last number of a column."""
    plain = decoder.File((TINY / "share-0.memz").read_bytes())
    least = index_with(45, b"\xd7" + b"\x80" * 7 + b"\x00")  # the least number of tokens of a segment
    assert container.unpack(least).parts == vector("share-0").parts
    assert decoder.File(least).chunks == plain.chunks
    for end in (b"\x64\x00", b"\x64\xc0"):  # 100 and 0 in 7 bits each, and 2 bits
        padded = index_with(45, b"\x96\x01\x07" + end, 4)
        assert [segment.tokens for segment in container.unpack(padded).segments] == [250, 150]
        assert decoder.File(padded).chunks == [[125, 125], [150]]


def test_two_tokens_with_one_id_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY / "model", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["another"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(AssertionError, match="two tokens with one id"):
        decoder.Weights(folder)
    with pytest.raises(ModelNotFoundError, match="two tokens with the id 300"):
        ByteTokenizer(folder)


def test_concatenated_files(both: tuple[decoder.Weights, Codec]) -> None:
    weights, codec = both
    blob, data = ((TINY / f"prompt.{kind}").read_bytes() for kind in ("memz", "bin"))
    span = codec.encode(b"\xff\xfe\xfd")
    assert decoder.decode(blob + span + blob, weights) == data + b"\xff\xfe\xfd" + data
    assert codec.decode(blob + span + blob) == data + b"\xff\xfe\xfd" + data
    for rest, reason in ((b"more", "not a memcodec file"), (span[:-1], "cut"), (span[:-1] + b"\0", "is damaged")):
        with pytest.raises(AssertionError, match=reason):
            decoder.decode(span + rest, weights)
        with pytest.raises((FormatError, ChecksumError)):
            codec.decode(span + rest)


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
