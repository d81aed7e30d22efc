"""Passes over known tokens: in which blocks their logits are computed, and the predictions of chunks from these."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memcodec.codec import Codec
from memcodec.lm.sequences import Capacity
from memcodec.passes import Pass, Run, first_logits
from memcodec.prediction import predict

from .conftest import TEXT


@pytest.mark.parametrize("head_rows", [1, 4, 5, 13, 100])
def test_rows_are_taken_one_run_after_the_other(head_rows: int) -> None:
    runs = [Run(0, 3, 0, 5), Run(2, 0, 5, 1), Run(3, 7, 8, 7)]
    found, sizes = [], []
    for parts, rows in Pass(runs, lambda rows: rows, head_rows).rows():
        wanted = [(part.slot, part.position + i, part.row + i) for part in parts for i in range(part.count)]
        assert [row for _, _, row in wanted] == rows.tolist()
        found += wanted
        sizes.append(len(rows))
    assert found == [(run.slot, run.position + i, run.row + i) for run in runs for i in range(run.count)]
    assert sizes[:-1] == [head_rows] * (len(sizes) - 1) and 0 < sizes[-1] <= head_rows


def test_predictions_of_groups_are_those_of_each_alone(tiny: Codec) -> None:
    tokens = tiny.tokenizer.encode(TEXT)
    groups = [np.array_split(tokens[:n], parts) for n, parts in ((60, 3), (1, 1), (100, 2), (50, 50))]
    together = predict(tiny.lm, groups, 80, [None] * len(groups))
    alone = (one for group in groups for one in predict(tiny.lm, [group], 80, [None]))
    chunks = [chunk for group in groups for chunk in group]
    for chunk, found, expected in zip(chunks, together, alone, strict=True):
        assert np.array_equal(found.tokens, chunk)
        for name in ("total", "entropy", "ids", "below", "blocks"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def test_the_first_logits_are_computed_once_for_each_prefix(tiny: Codec) -> None:
    other = tiny.lm.with_prefix(tiny.tokenizer.encode(TEXT)[:5])
    assert first_logits(tiny.lm, True) is first_logits(tiny.lm, True)
    assert not np.array_equal(first_logits(other, True), first_logits(tiny.lm, True))


def test_caches_of_groups_of_different_lengths_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """All caches of a batch are as long as the longest, so that a long group is not together with many short ones."""
    sizes: list[list[int]] = []

    def together(lm: Any, batch: list[Any], context: int) -> Iterator[Any]:
        sizes.append([group.rows for group in batch])
        return iter(())

    monkeypatch.setattr("memcodec.prediction._predict_together", together)
    lm: Any = SimpleNamespace(capacity=Capacity(rows=1000, head_rows=1, sequences=100, positions=60))
    groups = [[np.zeros(count, dtype=np.int64)] for count in (30, 5, 5, *[4] * 14)]
    assert list(predict(lm, groups, 80, [None] * len(groups))) == []
    assert sizes == [[30, 5], [5, *[4] * 11], [4, 4, 4]]
