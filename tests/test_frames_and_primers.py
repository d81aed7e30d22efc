"""Frames (short messages without a container) and primers."""

import base64
import copy
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memcodec
from memcodec import (
    ChecksumError,
    EncodeError,
    FormatError,
    ModelMismatchError,
    PrimerMismatchError,
    Readout,
    container,
    frames,
)
from memcodec.codec import Codec
from memcodec.container import varint
from memcodec.frames import FrameSettings, Packer, stated_tokens
from memcodec.lm.layout import PAGE
from memcodec.primer import MAX_FILE_BYTES, Primer, bits
from memcodec.settings import Context

from .conftest import TEXT, TINY, store_nothing, traced

LINES = TEXT.splitlines()
MESSAGES = [b"", b"a", *(line.encode() for line in LINES), TEXT.encode(), bytes(range(256)), b"\xff", b"z" * 300]
PLAIN = FrameSettings()


@pytest.fixture(scope="module")
def primer(tiny: Codec) -> Primer:
    """A primer longer than a page of the cache, and not a whole number of pages."""
    found = Primer.from_texts([TEXT, "She sells sea shells by the river.", "and more"], 400, tiny)
    assert len(found.tokens) % PAGE and len(found.tokens) > 2 * PAGE
    return found


@pytest.fixture(scope="module")
def primed(tiny: Codec, primer: Primer) -> Codec:
    return tiny.with_primer(primer)


VARIANTS = {
    "plain": PLAIN,
    "no checksum": FrameSettings(checksum=0),
    "memories": FrameSettings(checksum=4, memory_share=0.3, chunk_tokens=40, effort=64),
    "dictionary": FrameSettings(dictionary=TEXT.encode()),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("with_primer", [False, True])
def test_frames_round_trip(tiny: Codec, primed: Codec, name: str, with_primer: bool) -> None:
    codec, used = primed if with_primer else tiny, VARIANTS[name]
    frames = codec.encode_frames(MESSAGES, used)
    for batch in (1, 3, 64):
        assert codec.decode_frames(frames, used, batch=batch) == MESSAGES
    assert all(len(f) <= len(m) + 1 + used.checksum for f, m in zip(frames, MESSAGES, strict=True))
    one = codec.encode_frame(LINES[0], used)
    assert one == frames[2] and codec.decode_frame(one, used) == LINES[0].encode()
    assert min(frame[0] for frame in frames) < 224, "the LM encodes some"


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
@settings(max_examples=60)
def test_any_message_comes_back_and_grows_by_two_bytes_at_most(tiny: Codec, message: str | bytes) -> None:
    data = message.encode() if isinstance(message, str) else message
    frame = tiny.encode_frame(data)
    assert len(frame) <= len(data) + 2 and tiny.decode_frame(frame) == data


@given(st.binary(max_size=40))
@settings(max_examples=150)
def test_noise_is_no_frame_or_a_message(tiny: Codec, frame: bytes) -> None:
    small = FrameSettings(max_bytes=400)
    try:
        tiny.decode_frame(frame, small)
    except (FormatError, ChecksumError) as error:
        assert "\n" not in str(error)


def test_every_flip_is_noticed_with_a_checksum_of_four_bytes(tiny: Codec) -> None:
    used = FrameSettings(checksum=4, max_bytes=1000)
    frame = tiny.encode_frame(LINES[0], used)
    flipped = 0
    for bit in range(8 * len(frame)):
        bad = bytearray(frame)
        bad[bit // 8] ^= 1 << bit % 8
        try:
            assert tiny.decode_frame(bytes(bad), used) == LINES[0].encode(), "the coder's last bits may say nothing"
        except (FormatError, ChecksumError):
            flipped += 1
    assert flipped > 8 * len(frame) - 16


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "a frame of 0 bytes"),
        (b"\x05", "a frame of 1 byte:"),
        (b"\xe5xx", "a frame of kind 229"),
        (b"\x00x", "no tokens"),
        (b"\xfc\xff\xff\xff\x7fx", "more than 65536 bytes"),
        (b"\xfc\xff", "ends too early"),
        (b"\xfdnonsense", "zstd cannot read it"),
        (b"\xfenonsense", "needs a zstd dictionary"),
        (b"\xff" + bytes(70000), "more than 65536 bytes"),
    ],
)
def test_bad_frames_are_refused(tiny: Codec, frame: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        tiny.decode_frame(frame)


def test_a_damaged_dictionary_is_refused(tiny: Codec) -> None:
    used = FrameSettings(dictionary=b"\x37\xa4\x30\xec" + b"no dictionary" * 9)
    with pytest.raises(EncodeError, match="dictionary is damaged"):
        tiny.encode_frame("text", used)
    with pytest.raises(EncodeError, match="dictionary is damaged"):
        tiny.decode_frame(b"\xfenonsense", used)


def test_frames_of_zstd_end_where_zstd_does(tiny: Codec) -> None:
    used = FrameSettings(checksum=0)
    frame = tiny.encode_frame(bytes(range(256)) * 3 + b"\xff", used)
    assert frame[0] == 253
    for bad in (frame[:-1], frame[:-3], frame + b"x", frame + frame):
        with pytest.raises(FormatError):
            tiny.decode_frame(bad, used)


def test_long_messages_are_refused_when_they_are_read(tiny: Codec) -> None:
    frame = tiny.encode_frame(TEXT)
    with pytest.raises(FormatError, match="more than 300 bytes"):
        tiny.decode_frame(frame, FrameSettings(max_bytes=300))


def test_a_zstd_bomb_is_refused_before_it_unfolds(tiny: Codec) -> None:
    frame = tiny.encode_frame(bytes(1 << 22), FrameSettings(max_bytes=1 << 23))
    assert len(frame) < 1000
    with pytest.raises(FormatError, match="more than 65536"):
        tiny.decode_frame(frame)


@pytest.mark.parametrize(
    "bad",
    [{"checksum": 5}, {"checksum": -1}, {"checksum": 1.5}, {"memory_share": 0.6}, {"chunk_tokens": 0},
     {"max_bytes": 0}, {"effort": 0}, {"effort": 1 << 20}],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused_when_they_are_made(bad: dict[str, int]) -> None:
    with pytest.raises(EncodeError, match=": give"):
        FrameSettings(**bad)


def test_long_messages_are_refused(tiny: Codec) -> None:
    with pytest.raises(EncodeError, match="max_bytes"):
        tiny.encode_frame("x" * 70_000)


@pytest.fixture
def given_to_the_lm(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each message that the LM is given."""
    seen: list[int] = []
    real = frames.encode_all

    def counting(lm, site, groups, *rest):
        seen.extend(sum(map(len, group)) for group in groups)
        return real(lm, site, groups, *rest)

    monkeypatch.setattr(frames, "encode_all", counting)
    return seen


_RANDOM = random.Random(0)
ODD = {
    "NUL": bytes(4096),
    "one letter": b"z" * 4096,
    "control characters": bytes(_RANDOM.choice(b"\x01\x02\x03abc") for _ in range(4096)),
    "digits": bytes(_RANDOM.choice(b"0123456789") for _ in range(4096)),
    "hexadecimal": _RANDOM.randbytes(2048).hex().encode(),
    "base64": base64.b64encode(_RANDOM.randbytes(3072)),
    "bytes": _RANDOM.randbytes(4096),
    "one line": b"2026-11-27 nothing happened\n" * 150,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_messages_are_not_given_to_the_lm(tiny: Codec, given_to_the_lm: list[int], name: str) -> None:
    frame = tiny.encode_frame(ODD[name])
    assert given_to_the_lm == [] and frame[0] in (253, 255)
    assert tiny.decode_frame(frame) == ODD[name]


def test_a_message_costs_at_most_as_much_as_prose(tiny: Codec, given_to_the_lm: list[int]) -> None:
    """Text goes to the LM whatever its length; so do short messages, whatever they are."""
    words = TEXT.split()
    text = " ".join(_RANDOM.choice(words) for _ in range(600)).encode()
    short = [bytes(100), b"1234567890" * 30, b"8=FIX.4.2\x019=178\x0135=8\x01" * 5]
    tiny.encode_frames([text, *short])
    assert len(given_to_the_lm) == 4 and 1024 < given_to_the_lm[0] <= len(text) * 3 / 4


def test_progress(tiny: Codec) -> None:
    seen: list[memcodec.Progress] = []
    frames = tiny.encode_frames(MESSAGES, progress=seen.append)
    assert seen[-1].done == 1
    tiny.decode_frames(frames, progress=seen.append)
    assert seen[-1].done == 1 and seen[-1].stage == "decode"


# ---- primers


def test_a_primer_is_nothing_but_a_longer_prefix(tiny: Codec, primed: Codec, primer: Primer) -> None:
    """The bits of a text after a primer are those in one sequence, even if the cache is shared."""
    tokens = tiny.tokenizer.encode(LINES[1])
    whole = tiny.token_bits(np.concatenate([primer.tokens, tokens]), len(primer.tokens))
    assert np.array_equal(primed.token_bits(tokens), whole)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, PAGE - 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 3 * PAGE])
@pytest.mark.parametrize("kind", TINY)
def test_primers_of_every_length_and_architecture(tiny_folders, kind: str, length: int) -> None:
    """Lengths around the ends of shared pages, with both implementations."""
    for kernels in ("numba", "torch"):
        codec = Codec.load(str(tiny_folders(kind)), device="cpu", kernels=kernels)
        tokens = np.arange(length) * 7 % 250 + 5
        text = codec.tokenizer.encode(LINES[0])[:30]
        alone = codec.token_bits(np.concatenate([tokens, text]), length)
        primed = codec.with_primer(Primer(codec.tokenizer.decode(tokens), tokens))
        assert np.array_equal(primed.token_bits(text), alone)
        if kernels == "numba":
            frames = primed.encode_frames(LINES)
        assert primed.decode_frames(frames) == [line.encode() for line in LINES]


@pytest.mark.parametrize("context", [0, 60, "auto", "max"])
def test_files_with_a_primer(tiny: Codec, primed: Codec, primer: Primer, context: Context) -> None:
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        blob = primed.encode(TEXT * 3, site=Readout(0.1, 64), chunk_tokens=50, context=context)
    assert primed.decode(blob, batch=2) == (TEXT * 3).encode()
    assert container.unpack(blob).settings.primer == primer.identity  # type: ignore[union-attr]
    assert memcodec.inspect(blob)["settings"]["primer"] == primer.identity.hex()
    with pytest.raises(PrimerMismatchError, match=f"needs the primer {primer.identity.hex()}; none is given"):
        tiny.decode(blob)
    other = tiny.with_primer(Primer.from_texts(["another"], 5, tiny))
    with pytest.raises(PrimerMismatchError, match="the one given is"):
        other.decode(blob)
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        plain = tiny.encode(TEXT, site=Readout(0))
    assert primed.decode(plain) == TEXT.encode(), "a file without a primer needs none"


def test_primers_are_saved_and_loaded(tiny: Codec, primer: Primer, tmp_path: Path) -> None:
    primer.save(tmp_path / "p")
    found = Primer.load(tmp_path / "p")
    assert found.text == primer.text and np.array_equal(found.tokens, primer.tokens)
    blob = bytearray((tmp_path / "p").read_bytes())
    blob[-3] ^= 1
    (tmp_path / "p").write_bytes(blob)
    with pytest.raises(FormatError, match="damaged primer"):
        Primer.load(tmp_path / "p")
    for data in (b"", b"text", b"\xff" * 100, bytes(MAX_FILE_BYTES + 9)):
        (tmp_path / "p").write_bytes(data)
        with pytest.raises(FormatError, match="not a primer"):
            Primer.load(tmp_path / "p")
    with pytest.raises(OSError):
        Primer.load(tmp_path / "none")


def test_primers_are_compared_by_what_they_hold(tiny: Codec, primer: Primer) -> None:
    same, other = Primer.from_bytes(primer.to_bytes()), Primer.from_texts(LINES, 100, tiny)
    assert primer == same and primer != other and primer != primer.text
    assert other in [primer, other] and other not in [primer] and {primer, same, other} == {same, other}
    assert pickle.loads(pickle.dumps(primer)) == primer == copy.deepcopy(primer)


def test_primers_of_texts(tiny: Codec) -> None:
    some = Primer.from_texts(LINES, 100, tiny)
    assert 50 < len(some.tokens) <= 100 and some.text == "".join(f"{line}\n" for line in LINES[:2]).encode()
    assert len(Primer.from_texts(LINES, 10, tiny).tokens) == 10, "the beginning of the first, where it is too long"
    with pytest.raises(EncodeError, match="0 tokens"):
        Primer.from_texts([], 100, tiny)


def test_primers_that_do_not_fit_are_refused(tiny: Codec) -> None:
    tokens = np.full(1024, 30)
    with pytest.raises(EncodeError, match="1024 positions"):
        tiny.with_primer(Primer(tiny.tokenizer.decode(tokens), tokens))
    with pytest.raises(ModelMismatchError, match="another model"):
        tiny.with_primer(Primer(b"text", np.array([9, 9])))


def test_an_estimate_after_a_long_primer(tiny: Codec) -> None:
    """It measured 200 tokens, whether there was room for them or not."""
    tokens = np.full(900, 30)
    primed = tiny.with_primer(Primer(tiny.tokenizer.decode(tokens), tokens))
    assert primed.model.positions < 150 and primed.estimate(1000) > 0


def test_training_picks_what_helps(tiny: Codec) -> None:
    """An untrained model gains little. The selected texts are messages, and fit into the number of tokens."""
    messages = [f"user {i} signed in from port {i * 7 % 100}" for i in range(60)]
    seen: list[tuple[int, int]] = []
    found = Primer.train(tiny, messages, 90, progress=lambda done, total: seen.append((done, total)))
    assert len(found.tokens) <= 90 and seen and seen[-1] == (len(found.tokens), 90)
    assert all(line in messages for line in found.text.decode().splitlines())
    assert np.array_equal(found.tokens, Primer.train(tiny, messages, 90).tokens)
    with pytest.raises(EncodeError, match="4 or more"):
        Primer.train(tiny, ["a", "a", "a", "b"], 90)


def test_training_leaves_out_what_the_lm_does_not_carry(tiny: Codec) -> None:
    lines = [f"user {i} signed in" for i in range(20)]
    found = Primer.train(tiny, lines, 60)
    assert Primer.train(tiny, [lines[0], *ODD.values(), *lines], 60) == found
    with pytest.raises(EncodeError, match="3 different messages of text"):
        Primer.train(tiny, [*lines[:3], *ODD.values()])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_frame_that_states_many_tokens_takes_no_memory(share: float) -> None:
    """Each chunk took 16 bytes before anything was decoded: 4 GB for 256 documents of an archive."""
    packer = Packer(FrameSettings(2, memory_share=share, chunk_tokens=1, max_bytes=1 << 30))
    frame = bytes([252]) + varint(1 << 29) + b"0123456789"
    assert stated_tokens(frame) == (1 << 29) + 224
    with traced() as peak:
        if share:
            with pytest.raises(FormatError, match="it ends too early"):
                packer.unpack(frame)
        else:
            assert packer.unpack(frame).tokens == (1 << 29) + 224  # type: ignore[union-attr]
        assert peak() < 1 << 16


def test_stored_frames_that_are_equal_are_unpacked_once(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = tiny.encode_frames([b"\xff" * 30, b"\xfe" * 30]) * 50
    real, calls = Packer.unpack, []
    monkeypatch.setattr(Packer, "unpack", lambda self, frame: calls.append(frame) or real(self, frame))
    assert tiny.decode_frames(frames) == [b"\xff" * 30, b"\xfe" * 30] * 50 and len(calls) == 2
    monkeypatch.setattr("memcodec.frames._MOST_STORED", 50)  # the second is read again each time
    assert tiny.decode_frames(frames) == [b"\xff" * 30, b"\xfe" * 30] * 50 and len(calls) == 2 + 2 + 50


def test_frames_have_a_largest_size() -> None:
    with pytest.raises(EncodeError, match="max bytes 2147483648: give 1 to 1073741824"):
        FrameSettings(max_bytes=1 << 31)


def test_the_tokens_that_a_frame_states() -> None:
    frames = [b"", b"\xdf", b"\xfc", b"\xfc\x05", b"\xff"]
    assert [stated_tokens(frame) for frame in frames] == [0, 223, 0, 229, 0]


def test_training_helps_the_real_model(default_codec: Codec) -> None:
    messages = [json.dumps({"user": i * 37 % 1000, "path": "/api/items", "status": 200}) for i in range(40)]
    found = Primer.train(default_codec, messages[:30], 60)
    held = messages[30:]
    before, after = bits(default_codec, held), bits(default_codec.with_primer(found), held)
    assert after < 0.6 * before
    frames = default_codec.with_primer(found).encode_frames(held)
    assert sum(map(len, frames)) < after / 8 + 3 * len(held)


def test_vectors_decode(default_codec: Codec) -> None:
    folder = Path(__file__).parent.parent / "spec" / "frames"
    primer = Primer.load(folder / "primer.safetensors")
    kinds = set()
    names = sorted(folder.glob("*.json"))
    assert len(names) == 4
    for path in names:
        found = json.loads(path.read_text())
        about = found["settings"]
        used = FrameSettings(about["checksum"], bytes.fromhex(about["dictionary"]), about["memory_share"],
                             chunk_tokens=about["chunk_tokens"])  # fmt: skip
        codec = default_codec.with_primer(primer if about["primer"] else None)
        frames = [bytes.fromhex(pair["frame"]) for pair in found["frames"]]
        assert codec.decode_frames(frames, used) == [bytes.fromhex(pair["message"]) for pair in found["frames"]]
        kinds |= {min(frame[0], 224) if frame[0] < 252 else frame[0] for frame in frames}
    assert {252, 253, 254, 255} <= kinds and min(kinds) < 224


def test_what_is_no_list_of_frames_is_a_type_error(tiny: Codec) -> None:
    for work in (tiny.encode_frames, tiny.decode_frames, tiny.encode_many, tiny.decode_many):
        with pytest.raises(TypeError, match="give a list"):
            list(work("abc"))  # type: ignore[operator]
    with pytest.raises(TypeError, match="not str"):
        tiny.decode_frames(["abc"])  # type: ignore[list-item]


def test_a_bad_frame_among_many_is_named(tiny: Codec) -> None:
    good = tiny.encode_frames([TEXT[:50], TEXT[50:90]])
    with pytest.raises(ChecksumError, match=r"^frame 1 of 3, from 0: "):
        tiny.decode_frames([good[0], good[1][:-1] + bytes([good[1][-1] ^ 1]), good[1]])
    with pytest.raises(FormatError, match=r"^frame 0 of 2, from 0: "):
        tiny.decode_frames([b"", good[1]])
    with pytest.raises(FormatError, match=r"^a frame of 0 bytes"):
        tiny.decode_frame(b"")


def test_a_memory_share_that_rounds_to_0_is_none(tiny: Codec) -> None:
    """As FRAMES.md says of a share of 0: there are no memories, and no bytes for them."""
    nearly = FrameSettings(memory_share=0.0004)
    frame = tiny.encode_frame(TEXT[:60].encode(), nearly)
    assert frame == tiny.encode_frame(TEXT[:60].encode())
    assert tiny.decode_frame(frame, nearly) == TEXT[:60].encode()
