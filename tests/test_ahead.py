"""Items that another thread computes in advance, and encoding with it."""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice, repeat
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memcodec.codec import Codec
from memcodec.document.blocks import Block, BlockQueue
from memcodec.document.plan import Plan
from memcodec.document.source import Source
from memcodec.groups import encode_groups
from memcodec.lm.ahead import Ahead
from memcodec.memory.sites import readout_site
from memcodec.prediction import predict, streams
from memcodec.settings import Readout
from tests.conftest import TEXT, store_nothing


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = {thread for thread in threading.enumerate() if thread.name == "memcodec-ahead"}
    yield
    assert {thread for thread in threading.enumerate() if thread.name == "memcodec-ahead"} <= before


# ---- the thread


def counted(n: int, seen: list[int], error: Exception | None = None) -> Generator[int, None, None]:
    for i in range(n):
        seen.append(i)
        yield i
    if error is not None:
        raise error


def test_items_are_in_order_and_come_from_one_other_thread() -> None:
    threads = set()

    def items() -> Generator[int, None, None]:
        for i in range(1000):
            threads.add(threading.get_ident())
            yield i

    with closing(Ahead(items(), lambda _: 1, 5)) as ahead:
        assert list(ahead) == list(range(1000))
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert next(ahead, None) is None


def test_only_so_much_is_computed_in_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    paused: queue.Queue[int] = queue.Queue()

    class Noted(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            paused.put(len(seen))  # by the other thread: this one finds an item whenever it takes one
            return super().wait(timeout)

    monkeypatch.setattr("memcodec.lm.ahead.threading", SimpleNamespace(**vars(threading) | {"Condition": Noted}))
    with closing(Ahead(counted(100, seen), lambda _: 10, 30)) as ahead:
        for taken in range(20):
            assert paused.get(timeout=60) == taken + 4  # three that fit, and one more
            assert next(ahead) == taken


def test_an_error_comes_after_the_items_before_it() -> None:
    with closing(Ahead(counted(3, [], ValueError("three")), lambda _: 1, 100)) as ahead:
        assert [next(ahead) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(ahead)
        assert next(ahead, None) is None


def test_closing_ends_the_items_in_their_thread() -> None:
    ended: list[int] = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            ended.append(threading.get_ident())

    ahead = Ahead(items(), lambda _: 1, 5)
    assert next(ahead) == 0
    ahead.close()
    ahead.close()
    assert len(ended) == 1 and ended[0] != threading.get_ident()


def test_the_thread_begins_with_what_it_is_told() -> None:
    told: list[int] = []
    with closing(Ahead(counted(1, []), lambda _: 1, 0, lambda: told.append(threading.get_ident()))) as ahead:
        assert list(ahead) == [0]
    assert len(told) == 1 and told[0] != threading.get_ident()


# ---- groups and predictions


@pytest.fixture
def ahead_lm(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An LM of the CPU that encodes as one on a GPU does."""
    real = streams

    def forced(lm: Any, groups: Any, context: int, ahead: bool, found: Any) -> Any:
        return real(lm, groups, context, True, found)

    monkeypatch.setattr("memcodec.groups.streams", forced)
    return tiny.lm


def groups_of(lm: Any, count: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [[rng.integers(0, lm.vocabulary, n) for n in rng.integers(1, 30, rng.integers(1, 4))] for _ in range(count)]


@pytest.mark.parametrize("ahead", [False, True])
def test_streams_are_read_in_any_order(tiny: Codec, ahead: bool) -> None:
    groups = groups_of(tiny.lm, 12)
    expected = [one.bits() for one in predict(tiny.lm, groups, 50, repeat(None))]
    noticed: list[int] = []
    for first in (0, 7, 100):
        with streams(tiny.lm, iter(groups), 50, ahead, noticed.append) as (ours, stream):
            read = list(islice(ours, first))
            bits = [one.bits() for one in stream]
            read += ours
        assert bits == expected
        assert all(a is b for one, other in zip(read, groups, strict=True) for a, b in zip(one, other, strict=True))
    assert sum(noticed) == 3 * sum(len(chunk) for group in groups for chunk in group)


def test_groups_are_encoded_the_same(tiny: Codec, ahead_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site, groups = readout_site(tiny.lm, Readout(0.3, 16)), groups_of(tiny.lm, 40)
    done: list[int] = []
    made = list(encode_groups(tiny.lm, site, iter(groups), 50, done.append))
    assert done and min(done) >= 0 and max(done) <= sum(len(chunk) for group in groups for chunk in group)
    monkeypatch.undo()
    assert made == list(encode_groups(tiny.lm, site, iter(groups), 50))


def test_an_error_in_the_groups(tiny: Codec, ahead_lm: Any) -> None:
    def groups() -> Iterator[list[np.ndarray]]:
        yield from groups_of(tiny.lm, 70)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(encode_groups(tiny.lm, readout_site(tiny.lm, Readout(0.0, 16)), groups(), 50))


def test_encoding_that_is_not_finished(tiny: Codec, ahead_lm: Any) -> None:
    encoded = encode_groups(tiny.lm, readout_site(tiny.lm, Readout(0.0, 16)), groups_of(tiny.lm, 200), 50)
    assert next(encoded).lengths
    assert any(thread.name == "memcodec-ahead" for thread in threading.enumerate())
    encoded.close()  # type: ignore[attr-defined]


def test_an_error_of_the_caller(tiny: Codec, ahead_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memcodec.coding.corrections.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(encode_groups(tiny.lm, readout_site(tiny.lm, Readout(0.0, 16)), groups_of(tiny.lm, 200), 50))


def test_a_document_and_an_error_that_is_kept(tiny: Codec, ahead_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error keeps the generators alive, but not the thread."""
    store_nothing(monkeypatch)
    data = TEXT[:3000].encode()
    made = tiny.encode(data, site=Readout(0.0, 16), verify=False)
    monkeypatch.setattr("memcodec.container.assembly.chunk_checksum", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError) as kept:
        tiny.encode(data, site=Readout(0.0, 16), chunk_tokens=8)
    assert not any(thread.name == "memcodec-ahead" for thread in threading.enumerate()), kept
    monkeypatch.undo()
    store_nothing(monkeypatch)
    assert made == tiny.encode(data, site=Readout(0.0, 16), verify=False)


# ---- blocks that two threads read


def blocks_of(count: int, error: Exception | None = None) -> Iterator[Block]:
    block = Block(Source.of(b""), 0, 0, 0, [], [], Plan([], [], 1), False)
    for i in range(count):
        yield replace(block, start=i, plan=Plan([], [[np.array([i])]] * (i % 3), 1))
    if error is not None:
        raise error


def test_two_threads_read_blocks() -> None:
    queue = BlockQueue(blocks_of(3000))
    groups = (int(group[0][0]) for group in queue.groups())
    with closing(Ahead((i for i in groups), lambda _: 1, 20)) as ahead:
        found = [(block.start, [next(ahead) for _ in block.plan.groups]) for block in queue.blocks()]
        assert next(ahead, None) is None
    assert found == [(i, [i] * (i % 3)) for i in range(3000)]


def test_both_streams_end_with_an_error() -> None:
    queue = BlockQueue(blocks_of(3, ValueError("no more")))
    with pytest.raises(ValueError, match="no more"):
        list(queue.groups())
    blocks = queue.blocks()
    assert [next(blocks).start for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(blocks)
