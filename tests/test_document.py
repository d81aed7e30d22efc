"""Documents become spans that restore to the same bytes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcodec import document
from memcodec.codec import Codec
from memcodec.document import Stored, Text

from .conftest import TEXT


def restore(spans: list[document.Span], codec: Codec) -> bytes:
    return b"".join(s.data if isinstance(s, Stored) else codec.tokenizer.decode(s.tokens) for s in spans)


def kinds(spans: list[document.Span]) -> list[type]:
    return [type(span) for span in spans]


@given(data=st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)))
def test_any_bytes_restore(tiny: Codec, data: bytes) -> None:
    spans = document.split(data, tiny.tokenizer)
    assert restore(spans, tiny) == data
    assert all(a is not b for a, b in zip(kinds(spans), kinds(spans)[1:], strict=False))


def test_plain_text_is_one_span(tiny: Codec) -> None:
    assert kinds(document.split(TEXT.encode(), tiny.tokenizer)) == [Text]
    assert document.split(b"", tiny.tokenizer) == []


def test_special_tokens_in_a_text_are_text(tiny: Codec) -> None:
    data = b"before <|end|> after"
    spans = document.split(data, tiny.tokenizer)
    assert kinds(spans) == [Text]
    assert restore(spans, tiny) == data


def test_bytes_that_are_not_utf8_are_stored_alone(tiny: Codec) -> None:
    data = TEXT.encode() + b"\xff\xfe" + TEXT.encode()
    spans = document.split(data, tiny.tokenizer)
    assert kinds(spans) == [Text, Stored, Text]
    assert restore(spans, tiny) == data


def test_short_text_between_stored_bytes_is_stored_with_them(tiny: Codec) -> None:
    data = TEXT.encode() + b"\xff short \xfe" + TEXT.encode()
    assert kinds(document.split(data, tiny.tokenizer)) == [Text, Stored, Text]


@pytest.mark.parametrize("data", [random.Random(0).randbytes(100_000), b"spam\n" * 50_000])
def test_binary_and_repetition_are_stored_whole(tiny: Codec, data: bytes) -> None:
    assert document.split(data, tiny.tokenizer) == [Stored(data)]
