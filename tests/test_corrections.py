"""Corrections say the same to every decoder whose logits are within half the margin."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcodec import corrections
from memcodec.corrections import CorrectionDecoder, CorrectionEncoder, TokenClasses, best_miss, load_tables, token_odds


@pytest.mark.parametrize("regime", corrections.REGIMES)
def test_tables_are_complete(regime: str) -> None:
    tables = load_tables(regime)
    assert tables.hit.shape == (corrections.CONTEXTS,)
    assert tables.miss.shape == (corrections.CONTEXTS, corrections.SYMBOLS)
    assert tables.miss.min() >= 1
    assert set(tables.miss.sum(axis=1)) == {1 << corrections.TABLE_BITS}
    assert tables.hit.min() >= 1 and tables.hit.max() < 1 << corrections.TABLE_BITS


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 400, 49152])
def test_classes_are_nested_and_end_in_single_tokens(vocabulary: int) -> None:
    classes = TokenClasses(vocabulary)
    assert sorted(classes.hashes) == sorted(set(classes.hashes))
    for split in {0, 1, classes.bits // 2}:
        parts = [classes.members(split, value) for value in range(1 << split)]
        assert sorted(np.concatenate(parts)) == list(range(vocabulary))
    token = vocabulary // 2
    assert classes.members(classes.bits, int(classes.hashes[token])).tolist() == [token]


def test_shared_bits_count_equal_leading_bits() -> None:
    classes = TokenClasses(400)
    shared = classes.shared_bits(np.arange(400), 7)
    for other in range(400):
        for split in range(classes.bits + 1):
            together = other in classes.members(split, int(classes.hashes[7]) >> (classes.bits - split))
            assert together == (shared[other] >= split)


@pytest.mark.parametrize(("vocabulary", "spread"), [(400, 3.0), (400, 0.02), (5000, 1.0), (3, 1.0)])
def test_noisy_decoders_read_every_token(vocabulary: int, spread: float) -> None:
    """Tokens of all ranks, logits so dense that many gaps are below the margin, noise of just under half of it."""
    margin = 1e-3
    random = np.random.default_rng(vocabulary)
    classes, tables = TokenClasses(vocabulary), load_tables("0")
    logits = (random.standard_normal((200, vocabulary)) * spread).astype(np.float32)
    tokens = random.integers(0, vocabulary, 200)
    tokens[::3] = logits[::3].argmax(axis=1)
    tokens[1::3] = logits[1::3].argsort(axis=1)[:, -3]
    encoder = CorrectionEncoder(tables, classes)
    codes = []
    for row, token in zip(logits, tokens, strict=True):
        best, second = np.sort(row)[-1], np.sort(row)[-2]
        certain = best - second > margin
        if certain and row.argmax() == token:
            encoder.hit()
            continue
        odds = token_odds(classes, row, int(token), margin)
        ranks = odds.ranks.copy()
        if certain:
            ranks[0] = odds.rank_under(float(best - row[token]), margin)
        code, rank = best_miss(tables, ranks, encoder.context, classes.bits)
        codes.append(code)
        encoder.miss(int(token), code, rank)
    data = encoder.finish()
    for _ in range(5):
        noisy = logits + random.uniform(-0.499, 0.499, logits.shape).astype(np.float32) * margin
        decoder = CorrectionDecoder(data, tables, classes)
        assert [decoder.token(int(row.argmax()), row) for row in noisy] == tokens.tolist()
    if vocabulary == 5000:  # all kinds of codes were in play
        kinds = {
            "first" if c == 0 else "full" if c < 0 else "nested" if c < corrections.SPLITS else "plain" for c in codes
        }
        assert kinds >= {"first", "nested", "plain"}


def test_a_code_is_refused_below_the_margin() -> None:
    """Two tokens nearly level: the first code is not stable for either."""
    classes = TokenClasses(400)
    logits = np.linspace(-5, -9, 400).astype(np.float32)
    logits[[10, 20]] = 1.0, 1.0005
    odds = token_odds(classes, logits, 10, 1e-3)
    assert odds.rank_under(5.0, 1e-3) == -1
    assert token_odds(classes, logits, 10, 1e-4).rank_under(5.0, 1e-4) == 0


@given(st.binary(max_size=60))
def test_any_bytes_decode_to_tokens_of_the_vocabulary(data: bytes) -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((50, 37)).astype(np.float32)
    decoder = CorrectionDecoder(data, load_tables("1"), TokenClasses(37))
    for row in logits:
        assert 0 <= decoder.token(3, row) < 37


def test_contexts_come_from_position_and_mean_level_only() -> None:
    sums = np.array([0, 10, 10_000])
    assert corrections.contexts(0, sums, 8).tolist() == [0, 0, 0]
    assert corrections.contexts(3, sums, 8).tolist() == [2, 2, 2]
    late = corrections.contexts(100, sums, 8)
    assert late.tolist() == sorted(late.tolist()) and late.max() == corrections.CONTEXTS - 1


def test_the_specification_has_the_same_tables() -> None:
    root = Path(__file__).parent.parent
    assert (root / "spec" / "tables.json").read_bytes() == (root / "memcodec" / "tables.json").read_bytes()
