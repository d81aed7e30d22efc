"""The readout memory: seeded steering, bits in proportion to the LM's entropy, and a search that saves bits."""

import numpy as np
import pytest

from memcodec.coding import corrections
from memcodec.coding.distribution import Predictions
from memcodec.coding.steering import FEATURES, WINDOW, features_of, parity_tables, steer
from memcodec.errors import EncodeError, FormatError
from memcodec.lm.compiled import kernel
from memcodec.lm.seeded import word, words
from memcodec.lm.team import Team
from memcodec.memory import readout
from memcodec.memory.search import _respond as respond
from memcodec.memory.search import memory_bytes, new_buffers, search
from memcodec.settings import Readout

from .test_coding import predict, spread_logits, steering_of

MASK = (1 << 64) - 1
TEAM = Team(2)


def splitmix(stream: int, index: int) -> int:
    """The same generator in plain Python integers."""
    z = ((stream << 40) + index + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


# ---- seeded constants


def test_words_are_splitmix64() -> None:
    assert int(words(0, 0, 1)[0]) == 0xE220A8397B1DCDAF  # the generator's first output for seed 0, as published
    assert words(2, 7, 5).tolist() == [splitmix(2, i) for i in range(7, 12)]


@kernel
def some_words(stream, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = word(stream, 1000 + i)


def test_words_in_kernels_are_the_same() -> None:
    out = np.empty(50, dtype=np.uint64)
    some_words(2, out)
    assert np.array_equal(out, words(2, 1000, 50))


# ---- steering


@kernel
def features(windows, parities, out):  # type: ignore[no-untyped-def]
    for i in range(len(windows)):
        out[i] = features_of(windows[i], parities)


def features_in(windows: list[int]) -> list[int]:
    out = np.empty(len(windows), dtype=np.uint64)
    features(np.array(windows, dtype=np.int64), parity_tables(), out)
    return [int(value) for value in out]


def test_features_are_parities_of_the_window() -> None:
    masks = [splitmix(1, j) for j in range(FEATURES)]
    windows = [0, 1, 0b1011, 0xABCDEF, (1 << WINDOW) - 1]
    for window, found in zip(windows, features_in(windows), strict=True):
        assert found == sum((window & mask).bit_count() % 2 << j for j, mask in enumerate(masks))


@kernel
def moves_of(position, bits, tilt, steering, ids, moves, vector):  # type: ignore[no-untyped-def]
    steer(position, np.uint64(bits), tilt, steering, ids, moves, vector)


def test_moves_are_a_seeded_projection_onto_the_head() -> None:
    steering = steering_of(50)
    ids = np.array([3, 7, 49, -1], dtype=np.int32)
    position, bits, tilt, hidden = 5, 0x0123456789ABCDEF, 800.0, 16
    moves, vector = np.empty(4, dtype=np.int32), np.empty(hidden, dtype=np.int32)
    moves_of(position, bits, tilt, steering, ids, moves, vector)
    signs = np.array(
        [[1 - 2 * (splitmix(2, position * hidden + i) >> j & 1) for j in range(64)] for i in range(hidden)]
    )
    parities = np.array([1 - 2 * (bits >> j & 1) for j in range(64)])
    for k, token in enumerate(ids[:3]):
        total = int(steering.head[token].astype(int) @ signs @ parities)
        expected = np.rint(np.float64(total) * (np.float64(steering.scale[token]) * steering.unit) * tilt)
        assert moves[k] == expected
    assert moves[3] == 0


def test_moves_have_the_tilts_spread() -> None:
    steering, random = steering_of(400, 64), np.random.default_rng(0)
    ids, found = np.arange(32, dtype=np.int32), []
    for position in range(200):
        moves, vector = np.empty(32, dtype=np.int32), np.empty(64, dtype=np.int32)
        bits = int(random.integers(0, 1 << 62))
        moves_of(position, bits, 1000.0, steering, ids, moves, vector)
        found.append(moves.copy())
    assert np.std(found) == pytest.approx(1000, rel=0.15)


def test_the_pace_follows_the_entropy() -> None:
    quiet, loud = np.full(200, 1024, dtype=np.int32), np.full(200, 4096, dtype=np.int32)
    share = readout.share_steps(0.25)
    assert memory_bytes(quiet, share) == 190 // 4 // 8  # a bit of four, and none for the last ten tokens
    assert memory_bytes(loud, share) == 190 // 8
    assert memory_bytes(np.full(200, 20_000, dtype=np.int32), share) == 190 * 6 // 4 // 8  # six bits count
    assert memory_bytes(loud[:9], share) == 0


def test_settings_and_headers_out_of_range_are_refused() -> None:
    for settings in ((-0.1,), (0.6,), (float("nan"),), (0.1, 0), (0.1, 1 << 21)):
        with pytest.raises(EncodeError, match=": give"):
            Readout(*settings)
    for fields in ((), (1, 2), (513,)):
        with pytest.raises(FormatError, match="memory share"):
            readout.ReadoutSite.in_file(fields)


# ---- the search


def sampled(seed: int, tokens: int, vocabulary: int = 600) -> Predictions:
    """A chunk whose tokens are drawn from its own logits, as texts are from an LM."""
    logits = spread_logits(seed, tokens, vocabulary)
    shares = np.exp(logits * (np.log(2) / 1024))
    shares /= shares.sum(axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    predicted = Predictions.empty(np.array([random.choice(vocabulary, p=row) for row in shares]), vocabulary)
    predicted.fill(0, logits, vocabulary, TEAM)
    return predicted


def test_search_finds_memories_that_pay() -> None:
    predictions = [sampled(seed, 150 - 40 * seed) for seed in range(3)]
    steering, share = steering_of(600, 64), 205

    def corrected(memories: list[bytes]) -> tuple[int, int]:
        made = [corrections.Encoder(steering, share if any(memories) else 0) for _ in predictions]
        corrections.write(made, predictions, memories, TEAM)
        return sum(len(m.finish()) for m in made), sum(m.hits for m in made)

    none, _ = corrected([b""] * 3)
    found = {effort: search(predictions, steering, 205, effort, TEAM) for effort in (16, 4096)}
    size = sum(map(len, found[16]))
    assert [len(memory) for memory in found[16]] == [
        memory_bytes(predicted.entropy, share) for predicted in predictions
    ]
    random = np.random.default_rng(0)
    blind = corrected([random.bytes(len(memory)) for memory in found[16]])
    some, more = corrected(found[16]), corrected(found[4096])
    assert more[0] < some[0] < blind[0] and more[1] > blind[1]
    assert none - more[0] > 0.6 * size, "more than half of the memory is saved in corrections"


@kernel
def responses_of(position, ids, head, buffers):  # type: ignore[no-untyped-def]
    respond(position, ids, head, buffers)


@pytest.mark.parametrize("hidden", [2, 18, 34, 64, 576])
def test_search_sees_the_sums_that_steer(hidden: int) -> None:
    random = np.random.default_rng(hidden)
    head = random.integers(-127, 128, (40, hidden)).astype(np.int8)
    head[3] = 127
    ids = np.concatenate([random.permutation(40)[:30], [3, -1]]).astype(np.int32)
    buffers = new_buffers(1, 32, hidden, plain=False)
    for position in (5, 6):  # the second in used buffers
        responses_of(position, ids, head, buffers)
        at = np.arange(position * hidden, (position + 1) * hidden)
        bits = np.array([splitmix(2, int(i)) for i in at], dtype=np.uint64)[:, None] >> np.arange(64, dtype=np.uint64)
        expected = head[np.maximum(ids, 0)].astype(np.int64) @ (1 - 2 * (bits & np.uint64(1)).astype(np.int64))
        assert np.array_equal(buffers.responses.reshape(32, 64), expected)


def test_search_is_as_wide_as_told_and_works_without_anything_to_do() -> None:
    predicted, steering = sampled(7, 40), steering_of(600, 64)
    for effort in (1, 2, 17, 100):
        assert len(search([predicted], steering, 307, effort, TEAM)[0]) > 0
    assert search([predicted], steering, 0, 4096, TEAM) == [b""]
    assert search([], steering, 102, 4096, TEAM) == []
    assert search([sampled(8, 5)], steering, 102, 4096, TEAM) == [b""]


def test_a_flat_distribution_over_many_tokens() -> None:
    """The sum of its frequencies does not fit the 32 bits of the search, which still finds what saves bits."""
    steering = steering_of(65_536, 64)
    tokens = np.random.default_rng(3).integers(0, 32, 40)  # competitors, since lower ids come first among equals
    chunk = predict(np.zeros((40, 65_536), dtype=np.int32), tokens)
    assert chunk.total[0] >> 12 > 1 << 31
    (memory,) = search([chunk], steering, 512, 256, TEAM)

    def coded(some: bytes) -> int:
        encoder = corrections.Encoder(steering, 512)
        encoder.write(chunk, some)
        return len(encoder.finish())

    others = [coded(np.random.default_rng(i).bytes(len(memory))) for i in range(4)]
    assert len(memory) > 10 and coded(memory) < min(others) - 3


def test_tokens_that_are_hardly_possible_cost_what_the_coder_takes() -> None:
    """Not more, so that they do not decide the search, and that the costs of many of them have a sum of 32 bits."""
    logits = spread_logits(5, 2000, 30)  # all tokens are competitors
    tokens = np.argsort(logits, axis=1)[:, -2]
    tokens[::2] = 29
    found = []
    for lowest in (-60_000, -(1 << 29)):  # both have the least frequency, whatever the memory
        logits[:, 29] = lowest
        (memory,) = search([predict(logits, tokens)], steering_of(30), 300, 16, TEAM)
        found.append(memory)
    assert found[0] == found[1] and len(found[0]) > 50
