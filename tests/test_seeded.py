"""The integer generator gives the values that the specification lists."""

import numpy as np

from memcodec.seeded import signs, words

MASK = (1 << 64) - 1


def splitmix(stream: int, index: int) -> int:
    """The generator again, in plain Python integers."""
    z = ((stream << 40) + index + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def test_words_are_splitmix64() -> None:
    assert int(words(0, 0, 1)[0]) == 0xE220A8397B1DCDAF  # the generator's first output for seed 0, as published
    assert words(2, 7, 5).tolist() == [splitmix(2, i) for i in range(7, 12)]


def test_words_do_not_depend_on_where_a_run_starts() -> None:
    assert np.array_equal(words(1, 0, 100)[40:], words(1, 40, 60))


def test_signs_are_bits_of_words() -> None:
    matrix = signs(2, 5, 3)
    assert matrix.shape == (3, 64)
    for i in range(3):
        word = splitmix(2, 5 + i)
        assert matrix[i].tolist() == [-1.0 if word >> j & 1 else 1.0 for j in range(64)]
