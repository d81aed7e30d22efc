"""From logits to bytes and back: nothing is lost, and the size is close to the information."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcodec.coding import corrections, rangecoder
from memcodec.coding.corrections import EncodedGroup
from memcodec.coding.distribution import BLOCK, COMPETITORS, Predictions, frequencies, frequency, log2_units, with_prior
from memcodec.coding.steering import Steering
from memcodec.lm import arithmetic
from memcodec.lm.compiled import allocating
from memcodec.lm.team import Team
from memcodec.lm.weights import Head
from memcodec.memory.search import search
from spec.decoder import tempered

from .conftest import traced

TEAM = Team(2)

# ---- the range coder


@allocating
def encode_bits(bits, zeros, out):  # type: ignore[no-untyped-def]
    state = np.empty(rangecoder.ENCODER_STATE, dtype=np.int64)
    rangecoder.start_encoder(state)
    for i in range(len(bits)):
        rangecoder.encode_bit(state, out, bits[i], zeros[i])
    return rangecoder.finish_encoder(state, out)


@allocating
def decode_bits(data, start, end, zeros, bits):  # type: ignore[no-untyped-def]
    state = np.empty(rangecoder.DECODER_STATE, dtype=np.int64)
    rangecoder.start_decoder(state, data, start, end)
    for i in range(len(zeros)):
        bits[i] = rangecoder.decode_bit(state, data, zeros[i])


def encoded(bits: np.ndarray, zeros: np.ndarray) -> bytes:
    out = np.zeros(16 + 3 * len(bits), dtype=np.uint8)
    length = encode_bits(bits, zeros, out)
    return out[1 : 1 + length].tobytes()


def decoded(data: bytes, zeros: np.ndarray) -> np.ndarray:
    bits = np.empty(len(zeros), dtype=np.int64)
    around = np.frombuffer(b"\x5a" + data + b"\xa5", dtype=np.uint8)
    decode_bits(around, 1, 1 + len(data), zeros, bits)
    return bits


flags = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 64, 9000, 32768, 65535 - 64, 65535])), max_size=300)


@given(flags)
def test_bits_come_back_at_the_cost_of_their_information(flags: list[tuple[int, int]]) -> None:
    bits, zeros = (np.array(column, dtype=np.int64) for column in zip(*flags, strict=True)) if flags else ([], [])
    bits, zeros = np.array(bits, dtype=np.int64), np.array(zeros, dtype=np.int64)
    data = encoded(bits, zeros)
    assert np.array_equal(decoded(data, zeros), bits)
    information = -np.log2(np.where(bits == 0, zeros, 65536 - zeros) / 65536).sum()
    assert len(data) <= information / 8 * 1.001 + 1


def test_carries_run_through() -> None:
    """Many almost certain bits push the low end against a byte boundary again and again."""
    random = np.random.default_rng(1)
    for _ in range(200):
        bits = (random.random(400) < 0.999).astype(np.int64)
        zeros = np.where(random.random(400) < 0.5, 1, 65535)
        assert np.array_equal(decoded(encoded(bits, zeros), zeros), bits)


def test_zeros_alone_take_no_bytes() -> None:
    for zero in (1, 300, 65535):
        assert encoded(np.zeros(100, dtype=np.int64), np.full(100, zero)) == b""
        assert not decoded(b"", np.full(100, zero)).any()


def test_streams_end_within_a_third_of_a_byte() -> None:
    random = np.random.default_rng(2)
    waste = []
    for _ in range(2000):
        zeros = random.integers(6000, 60_000, 40)
        bits = (random.random(40) * 65536 >= zeros).astype(np.int64)
        information = -np.log2(np.where(bits == 0, zeros, 65536 - zeros) / 65536).sum()
        waste.append(len(encoded(bits, zeros)) - information / 8)
    assert 0 < np.mean(waste) < 0.36 and max(waste) < 1.01


@given(st.binary(max_size=40))
def test_any_bytes_decode_to_bits(data: bytes) -> None:
    assert set(decoded(data, np.full(200, 12_000))) <= {0, 1}


# ---- frequencies


@allocating
def frequencies_of(below, out):  # type: ignore[no-untyped-def]
    for i in range(len(below)):
        out[i] = frequency(below[i], POWERS)


@allocating
def logarithms_of(values, out):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        out[i] = log2_units(values[i], LOGARITHMS)


POWERS, LOGARITHMS = arithmetic.powers(), arithmetic.logarithms()


def test_frequencies_are_powers_of_two_and_never_zero() -> None:
    below = np.arange(-12 * 1024, 40 * 1024, 7, dtype=np.int32)
    found = np.empty(len(below), dtype=np.int64)
    frequencies_of(below, found)
    assert np.abs(found - 2.0 ** (28 - below / 1024)).max() <= 2.0**10 + 2  # of 2**40: the table's rounding
    assert np.array_equal(found[below >= 0], frequencies(below[below >= 0]))
    assert found.min() == 1 and np.all(np.diff(found) <= 0)


def test_logarithms_are_in_units() -> None:
    values = np.array([1, 2, 3, 1000, 2**20, 2**20 + 2**9, 2**46], dtype=np.int64)
    found = np.empty(len(values), dtype=np.int32)
    logarithms_of(values, found)
    assert np.abs(found - 1024 * np.log2(values)).max() <= 2


def spread_logits(seed: int, rows: int, vocabulary: int, nats: float = 2.5) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.rint(random.standard_normal((rows, vocabulary)) * nats * 1477).astype(np.int32)


def predict(logits: np.ndarray, tokens: np.ndarray) -> Predictions:
    predicted = Predictions.empty(tokens, logits.shape[1])
    padded = np.concatenate([logits, np.full((len(logits), 40), 2**30, dtype=np.int32)], axis=1)  # never to be read
    predicted.fill(0, padded, logits.shape[1], TEAM)
    return predicted


@pytest.mark.parametrize("vocabulary", [2, 20, 33, 400, 1057, 5000])
def test_predictions_have_the_best_tokens_and_the_sums(vocabulary: int) -> None:
    logits = spread_logits(vocabulary, 20, vocabulary)
    logits[3] = 5  # all equal: lower ids come first
    tokens = np.random.default_rng(0).integers(0, vocabulary, 20)
    predicted = predict(logits, tokens)
    first = predict(np.array([with_prior(logits[0]), *logits[1:]]), tokens)
    below = max(tempered(logits[0])) - tempered(logits[0])
    assert first.near[0, tokens[0] % BLOCK] == below[tokens[0]] and first.total[0] == frequencies(below).sum()
    assert first.total[1:].tolist() == predicted.total[1:].tolist()
    for t in range(20):
        order = np.lexsort((np.arange(vocabulary), -logits[t]))[: COMPETITORS + 1]
        below = logits[t].max() - logits[t]
        assert predicted.ids[t, : len(order)].tolist() == order.tolist()
        assert (predicted.ids[t, len(order) :] == -1).all()
        assert predicted.below[t, : len(order)].tolist() == below[order].tolist()
        masses = frequencies(below)
        assert predicted.total[t] == masses.sum()
        blocks = [masses[i : i + BLOCK].sum() for i in range(0, vocabulary, BLOCK)]
        assert predicted.blocks[t].tolist() == blocks
        assert predicted.near[t, tokens[t] % BLOCK] == below[tokens[t]]
        shares = masses / masses.sum()
        assert abs(predicted.entropy[t] + 1024 * (shares * np.log2(shares)).sum()) < 12


# ---- corrections


def steering_of(vocabulary: int, hidden: int = 16) -> Steering:
    random = np.random.default_rng(9)
    head = random.integers(-127, 128, (vocabulary, hidden)).astype(np.int8)
    scale = (random.random(vocabulary) * 0.01 + 0.01).astype(np.float32)
    rows = head * scale[:, None]
    return Steering.of(Head(head, scale, float(((rows - rows.mean(0)) ** 2).sum(1).mean())))


def encode(
    predictions: list[Predictions], memories: list[bytes], steering: Steering, share: int, team: Team = TEAM
) -> list[corrections.Encoder]:
    """Encode chunks, each as a group."""
    made = [corrections.Encoder(steering, share) for _ in predictions]
    corrections.write(made, predictions, memories, team)
    return made


def round_trip(logits: np.ndarray, tokens: np.ndarray, memory: bytes, share: int) -> tuple[bytes, int]:
    """Encode one chunk, and decode it side by side with another. Returns its corrections and hits."""
    steering = steering_of(logits.shape[1])
    other = np.roll(tokens, 3)
    made = encode([predict(logits, tokens), predict(logits, other)], [memory, b""], steering, share)
    coded = [
        EncodedGroup((len(tokens),), (own,), encoder.finish()) for own, encoder in zip((memory, b""), made, strict=True)
    ]
    decoder = corrections.Decoder(coded, steering, share, TEAM)
    for t in range(len(tokens)):
        assert decoder.step(t, np.stack([logits[t], logits[t]])).tolist() == [tokens[t], other[t]]
    return coded[0].corrections, made[0].hits


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 33, 34, 256, 257, 400, 5000])
@pytest.mark.parametrize("share", [0, 102, 512])
def test_every_token_comes_back(vocabulary: int, share: int) -> None:
    """Tokens of all ranks, likely and nearly impossible, under random memories."""
    logits = spread_logits(vocabulary, 60, vocabulary, nats=6)
    logits[7:9, 0] += 10**6  # one token is almost certain
    random = np.random.default_rng(vocabulary)
    tokens = random.integers(0, vocabulary, 60)
    tokens[::3] = logits[::3].argmax(axis=1)
    round_trip(logits, tokens, random.bytes(30), share)


def test_corrections_cost_what_the_tokens_probabilities_say() -> None:
    logits = spread_logits(1, 300, 2000)
    logits[0] = with_prior(logits[0])
    assert logits[0].tolist() == tempered(spread_logits(1, 300, 2000)[0]).tolist()
    shares = np.exp(logits * (math.log(2) / 1024))
    shares /= shares.sum(axis=1, keepdims=True)
    random = np.random.default_rng(3)
    tokens = np.array([random.choice(2000, p=row) for row in shares])
    ideal = -np.log2(shares[np.arange(300), tokens]).sum() / 8
    data, hits = round_trip(logits, tokens, b"", 0)
    assert ideal - 1 < len(data) < ideal * 1.002 + 1
    assert hits == (logits.argmax(axis=1) == tokens).sum()
    predicted = predict(logits, tokens)
    assert predicted.bits() / 8 == pytest.approx(ideal, rel=1e-3)


def test_what_the_memory_writes_alone_takes_no_bytes() -> None:
    logits = spread_logits(2, 50, 500)
    logits[0] = with_prior(logits[0])
    best = [np.argmax(row) for row in logits]
    assert round_trip(logits, np.array(best), b"", 0)[0] == b""


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=20))
def test_any_bytes_decode_to_tokens_of_the_vocabulary(data: bytes, memory: bytes) -> None:
    logits = spread_logits(5, 50, 37)
    decoder = corrections.Decoder([EncodedGroup((30, 20), (memory, memory), data)], steering_of(37), 300, TEAM)
    assert all(0 <= decoder.step(t, logits[t : t + 1])[0] < 37 for t in range(50))


def test_a_long_memory_stays_packed() -> None:
    """A file may have any memories; each byte of one took eight of memory."""
    logits, size = spread_logits(5, 20, 37), 1 << 22
    group = EncodedGroup((20,), (bytes(size),), b"")
    with traced() as peak:
        decoder = corrections.Decoder([group], steering_of(37), 300, TEAM)
        assert 0 <= decoder.step(0, logits[:1])[0] < 37
        assert peak() < 2 * size


def test_results_do_not_depend_on_threads() -> None:
    logits = spread_logits(6, 80, 3000)
    tokens = np.random.default_rng(6).integers(0, 3000, 80)
    predictions = [predict(np.roll(logits, i, axis=0), tokens) for i in range(5)]
    steering, found = steering_of(3000), []
    for workers in (1, 2, 3):
        team = Team(workers)
        memories = search(predictions, steering, 205, 64, team)
        found.append((memories, [made.finish() for made in encode(predictions, memories, steering, 205, team)]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("share", [0, 300])
def test_chunks_of_a_group_share_a_stream(share: int) -> None:
    """Side by side with a group of other lengths. Each chunk has its own memory."""
    logits = spread_logits(8, 60, 500)
    tokens = np.random.default_rng(8).integers(0, 500, 60)
    steering = steering_of(500)
    coded = []
    for lengths in ((7, 20, 1, 32), (30, 25)):
        ends = np.cumsum(lengths)
        predictions = [
            predict(logits[end - n : end], tokens[end - n : end]) for n, end in zip(lengths, ends, strict=True)
        ]
        memories = search(predictions, steering, share, 64, TEAM)
        one = corrections.Encoder(steering, share)
        corrections.write([one] * len(predictions), predictions, memories, TEAM)
        coded.append(EncodedGroup(lengths, tuple(memories), one.finish()))
    decoder = corrections.Decoder(coded, steering, share, TEAM)
    for t in range(60):
        live = 1 + (t < 55)
        assert (decoder.step(t, np.stack([logits[t]] * live)) == tokens[t]).all()
