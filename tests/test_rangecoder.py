"""The range coder gives back what went in, at the cost of the information in it."""

import math

from hypothesis import given
from hypothesis import strategies as st

from memcodec.rangecoder import RangeDecoder, RangeEncoder

BITS = 15
TOTAL = 1 << BITS

flags = st.lists(st.tuples(st.sampled_from([1, 64, 9000, TOTAL - 64, TOTAL - 1]), st.booleans()), max_size=300)
numbers = st.lists(st.integers(0, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, (1 << n) - 1))))


def interval(size: int, flag: bool) -> tuple[int, int]:
    return (0, size) if flag else (size, TOTAL - size)


@given(flags, numbers)
def test_round_trip_and_length(flags: list[tuple[int, bool]], numbers: list[tuple[int, int]]) -> None:
    encoder = RangeEncoder()
    information = 0.0
    for size, flag in flags:
        start, width = interval(size, flag)
        encoder.encode(start, width, BITS)
        information -= math.log2(width / TOTAL)
    for bits, value in numbers:
        encoder.encode_uniform(value, bits)
        information += bits
    data = encoder.finish()
    assert len(data) <= information / 8 * 1.001 + 1.2

    decoder = RangeDecoder(data)
    for size, flag in flags:
        assert (decoder.peek(BITS) < size) == flag
        decoder.consume(*interval(size, flag))
    for bits, value in numbers:
        assert decoder.decode_uniform(bits) == value


@given(st.binary(max_size=40))
def test_any_bytes_decode_to_something(data: bytes) -> None:
    decoder = RangeDecoder(data)
    for _ in range(100):
        flag = decoder.peek(BITS) < 12000
        decoder.consume(*interval(12000, flag))
        assert 0 <= decoder.decode_uniform(13) < 1 << 13
