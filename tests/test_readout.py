"""The readout memory: windows, seeded steering, and a search that pays."""

from fractions import Fraction

import numpy as np
import torch

from memcodec import greedy, readout
from memcodec.corrections import TokenClasses, load_tables, token_odds

MARGIN = 1e-3


def test_windows_hold_the_newest_entries_in_the_low_bits() -> None:
    assert readout.windows(np.array([1, 0, 1, 1]), 4, Fraction(1)).tolist() == [1, 0b10, 0b101, 0b1011]
    assert readout.windows(np.array([1, 0, 1, 1]), 2, Fraction(2)).tolist() == [0b10, 0b1011]
    assert readout.windows(np.array([1, 0]), 4, Fraction(1, 2)).tolist() == [0, 1, 1, 0b10]
    long = readout.windows(np.ones(40, dtype=np.uint8), 40, Fraction(1))
    assert long[-1] == (1 << readout.WINDOW) - 1


def test_features_are_parities_of_window_entries() -> None:
    steering = readout.Steering(torch.randn(50, 16))
    window = np.array([0, 0b1011, 0b1000])
    features = steering.features(window)
    assert features.shape == (3, readout.FEATURES)
    assert (features[0] == 1).all()
    single = steering.features(np.array([1 << i for i in range(readout.WINDOW)]))
    assert np.array_equal(features[1], single[0] * single[1] * single[3])  # parity of a sum is the product of parities
    assert 0.25 < (single == -1).mean() < 0.75


def test_steering_moves_logits_by_its_strength() -> None:
    torch.manual_seed(0)
    head = torch.randn(500, 64) * 0.3 + 1.0  # the mean row moves all logits alike and must not count
    steering = readout.Steering(head)
    windows = np.random.default_rng(0).integers(0, 1 << readout.WINDOW, 400)
    moves = steering.moves(torch.arange(500).expand(400, -1), windows, 3)
    assert abs(np.std(moves - moves.mean(axis=1, keepdims=True)) - readout.STRENGTH) < 0.15


def competition_of(logits: list[float]) -> readout.Competition:
    return readout.Competition.of(torch.tensor([logits]), readout.COMPETITORS, MARGIN)


def test_tokens_at_the_edge_are_possible_but_not_certain() -> None:
    clear = competition_of([float(-i) for i in range(40)])
    assert clear.possible[0].tolist() == [True] * 16 + [False] * 4 == clear.certain[0].tolist()
    logits = [float(-i) for i in range(40)]
    logits[16] = logits[15] - MARGIN / 2
    edge = competition_of(logits)
    assert edge.possible[0].tolist() == [True] * 17 + [False] * 3
    assert edge.certain[0].tolist() == [True] * 15 + [False] * 5
    crowd = competition_of([0.0] * 40)
    assert not crowd.certain.any()


def test_a_winner_needs_the_margin() -> None:
    competition = competition_of([5.0, 5.0 - MARGIN / 2] + [float(-i) for i in range(38)])
    still = np.zeros(20, dtype=np.float32)
    assert competition.winner(0, still, MARGIN) == -1
    moved = still.copy()
    moved[1] = 1.0
    assert competition.winner(0, moved, MARGIN) == 1


def random_chunk(seed: int, tokens: int, classes: TokenClasses, head: torch.Tensor) -> tuple:
    """A chunk whose tokens are drawn from its own random logits, as the LM's texts are."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, head.shape[1], generator=generator) @ head.T
    drawn = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator)[:, 0].numpy()
    rows = logits.numpy()
    odds = [token_odds(classes, row, int(token), MARGIN) for row, token in zip(rows, drawn, strict=True)]
    competition = readout.Competition.of(logits, readout.COMPETITORS, MARGIN)
    return drawn, competition, odds, rows[np.arange(tokens), drawn]


def test_search_finds_memories_that_write_more_tokens_with_fewer_corrections() -> None:
    torch.manual_seed(3)
    head = torch.randn(300, 32) * 0.4
    classes, tables, steering, rate = TokenClasses(300), load_tables("1"), readout.Steering(head), Fraction(1)
    sides = [random_chunk(seed, 100 - 30 * seed, classes, head) for seed in range(3)]
    chunks = [
        readout.Chunk(
            tokens, competition, readout.MissCosts.of(tables, classes, competition, tokens, odds, own, MARGIN)
        )
        for tokens, competition, odds, own in sides
    ]

    def corrected(memories: list[np.ndarray]) -> tuple[int, int]:
        results = [
            greedy.correct(
                tokens,
                competition,
                odds,
                own,
                steering.all_moves(competition.ids, memory, rate),
                tables,
                classes,
                MARGIN,
            )
            for (tokens, competition, odds, own), memory in zip(sides, memories, strict=True)
        ]
        return sum(len(r.data) for r in results), sum(r.hits for r in results)

    fits = {
        effort: readout.fit(chunks, steering, tables, rate, MARGIN, effort, torch.device("cpu"))
        for effort in (16, 1024)
    }
    assert [len(memory) for memory in fits[1024]] == [100, 70, 40]
    random = np.random.default_rng(0)
    blind = corrected([random.integers(0, 2, len(memory)) for memory in fits[1024]])
    some, more = corrected(fits[16]), corrected(fits[1024])
    assert more[0] < some[0] < blind[0]
    assert more[1] > blind[1]
