"""Documents become spans that restore to the same bytes."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcodec.codec import Codec
from memcodec.document.spans import PIECE_CHARACTERS, Span, Stored, Text, find_text, spans_of
from memcodec.models.tokenizer import ByteTokenizer

from .conftest import TEXT


def restore(spans: list[Span], codec: Codec) -> bytes:
    return b"".join(s.data if isinstance(s, Stored) else codec.tokenizer.decode(s.tokens) for s in spans)


def kinds(spans: list[Span]) -> list[type]:
    return [type(span) for span in spans]


PIECES = st.one_of(st.binary(max_size=400), st.text(max_size=400).map(str.encode), st.just(TEXT.encode()))


@given(data=st.lists(PIECES, max_size=5).map(b"".join))
def test_any_bytes_restore(tiny: Codec, data: bytes) -> None:
    spans = spans_of(data, tiny.tokenizer)
    assert restore(spans, tiny) == data
    assert all(a is not b for a, b in zip(kinds(spans), kinds(spans)[1:], strict=False))
    assert b"".join(p.encode() if isinstance(p, str) else p for p in find_text(data)) == data


def test_plain_text_is_one_span(tiny: Codec) -> None:
    assert kinds(spans_of(TEXT.encode(), tiny.tokenizer)) == [Text]
    assert spans_of(b"", tiny.tokenizer) == []


def test_long_text_is_one_span(tiny: Codec) -> None:
    words = random.Random(1)
    text = " ".join("".join(words.choices("abcdefghij é", k=7)) for _ in range(20_000))
    assert len(text) > 2 * PIECE_CHARACTERS
    spans = spans_of(text.encode(), tiny.tokenizer)
    assert kinds(spans) == [Text] and restore(spans, tiny) == text.encode()


def test_special_tokens_in_a_text_are_text(tiny: Codec) -> None:
    data = b"before <|end|> after"
    spans = spans_of(data, tiny.tokenizer)
    assert kinds(spans) == [Text]
    assert restore(spans, tiny) == data


def test_bytes_that_are_not_utf8_are_stored_alone(tiny: Codec) -> None:
    data = TEXT.encode() + b"\xff\xfe" + TEXT.encode()
    spans = spans_of(data, tiny.tokenizer)
    assert kinds(spans) == [Text, Stored, Text]
    assert restore(spans, tiny) == data


def test_short_text_between_stored_bytes_is_stored_with_them(tiny: Codec) -> None:
    data = TEXT.encode() + b"\xff short \xfe" + TEXT.encode()
    assert kinds(spans_of(data, tiny.tokenizer)) == [Text, Stored, Text]


BINARY = {
    "noise": random.Random(0).randbytes(100_000),
    "repetition": b"spam\n" * 50_000,
    "zeros with text": (b"\0" * 300 + b"a name\0" * 10) * 50,
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_and_repetition_are_stored_whole_and_need_no_tokenizer(name: str) -> None:
    assert find_text(BINARY[name]) == [BINARY[name]]


def test_large_mixed_documents() -> None:
    """Text and other bytes, alternating 300,000 times: quadratic work would take hours."""
    data = (b"some words of text, " * 2 + b"\xff") * 300_000
    assert sum(map(len, find_text(data))) == len(data)
    mixed = (TEXT.encode() + b"\xff\xfe") * 3000
    assert len(find_text(mixed)) == 6000


def test_a_tokenizer_that_lacks_bytes_leaves_them_to_be_stored(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tiny.tokenizer.encode
    monkeypatch.setattr(tiny.tokenizer, "missing_bytes", set("é".encode()[1:]))
    monkeypatch.setattr(tiny.tokenizer, "encode", lambda text: real(text.replace("é", "")))
    data = (TEXT + "\n" + TEXT.replace("\n", " ") + "é" + TEXT.replace("\n", " ") + "\n" + TEXT).encode()
    spans = spans_of(data, tiny.tokenizer)
    assert restore(spans, tiny) == data and kinds(spans) == [Text, Stored, Text]
    stored = next(span.data for span in spans if isinstance(span, Stored))
    assert stored == "é".encode()


def test_several_texts_and_runs_are_as_one_by_one(tiny: Codec) -> None:
    tokenizer = tiny.tokenizer
    texts = ["", TEXT, "é", *(TEXT[i:] * 40 for i in range(20)), ""]
    found = tokenizer.encode_each(texts)
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text).tolist() for text in texts]
    runs = [*found, found[3][:7], np.array([-1, 10**9, 5]), np.array([], dtype=np.int64)]
    assert tokenizer.decode_each(runs) == [tokenizer.decode(ids) for ids in runs]
    assert tokenizer.decode_each(found) == [text.encode() for text in texts]
    assert tokenizer.sizes(runs) == [len(tokenizer.decode(ids)) for ids in runs]
    assert tokenizer.encode_each([]) == tokenizer.decode_each([]) == tokenizer.sizes([]) == []
    assert tokenizer.decode(np.array([-1, 10**9])) == b""


def test_ids_may_have_gaps(tiny: Codec) -> None:
    tokens = tiny.tokenizer.tokens
    apart = ByteTokenizer(Path("none"), tokens._replace(ids=tokens.ids * 3 + 1))
    ids = tiny.tokenizer.encode(TEXT)
    assert apart.decode(ids * 3 + 1) == apart.decode(np.repeat(ids * 3 + 1, 2) - np.tile([0, 1], len(ids)))
    assert apart.decode(ids * 3 + 1) == TEXT.encode()
    assert apart.missing_bytes == tiny.tokenizer.missing_bytes
