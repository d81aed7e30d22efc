"""Which groups of a document are stored: the same as if zstd's best level were tried on every part of it."""

import random
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest

from memcodec.container import assembly
from memcodec.container.assembly import SourceRange, smaller_of, stored
from memcodec.container.layout import Chunk, Segment
from memcodec.container.write import pack
from memcodec.document.source import Source
from memcodec.document.spans import zstd_size
from memcodec.lm.team import team_of

ROOT = Path(__file__).parent.parent
GROUP_BYTES = 2800
RUN_GROUPS = 40


def numbers(lines: int) -> bytes:
    return b"".join(b"%d,%d,%d\n" % (i, 2 * i, i * i) for i in range(lines))


def records(lines: int) -> bytes:
    some = random.Random(3)
    cities = ["Berlin", "Paris", "Madrid", "Rome"]
    return "".join(
        f'{{"id": {i}, "city": "{some.choice(cities)}", "score": {some.random():.6f}, "open": {some.random() < 0.5}}}\n'
        for i in range(lines)
    ).encode()


def log(lines: int) -> bytes:
    some = random.Random(4)
    return "".join(
        f"2024-03-01 {i // 3600:02}:{i // 60 % 60:02}:{i % 60:02} INFO [worker-{some.randrange(8)}] "
        f"request {some.randrange(1 << 32):08x} took {some.randrange(300)} ms\n"
        for i in range(lines)
    ).encode()


def drawings(lines: int) -> bytes:
    return b"".join(b" " * (30 + i * i % 29) + b"*\n" for i in range(lines))


def cycles(lines: int) -> bytes:
    """Words of periods that have no common factor."""
    periods = ("alpha beta gamma delta epsilon", "one two three four five six seven", "a b c d e f g h i j k l m")
    lists = [words.split() for words in periods]
    return "".join(" ".join(some[i % len(some)] for some in lists) + "\n" for i in range(lines)).encode()


def dots(words: int) -> bytes:
    some = random.Random(6)
    return "".join(some.choice(("dot ", "dash ")) for _ in range(words)).encode()


def vocabulary(some: random.Random) -> Callable[[], str]:
    """Draws made-up words, a few of them much more often than the others, as in a language."""
    syllables = [a + b + c for a in "bdfgklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "l")]
    words = ["".join(some.choices(syllables, k=some.randrange(1, 4))) for _ in range(6000)]
    totals = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    return lambda: some.choices(words, cum_weights=totals)[0]


def prose(sentences: int) -> bytes:
    some = random.Random(7)
    word = vocabulary(some)
    lengths = [some.randrange(4, 20) for _ in range(sentences)]
    return b"".join(
        (" ".join(word() for _ in range(n)).capitalize() + some.choice(".,;?") + "\n").encode() for n in lengths
    )


def code(functions: int) -> bytes:
    some = random.Random(8)
    word = vocabulary(some)
    lines = []
    for _ in range(functions):
        lines.append(f"\n\ndef {word()}_{word()}({word()}: int, {word()}: str) -> None:")
        for _ in range(some.randrange(2, 9)):
            lines.append(f"    {word()} = {word()}.{word()}_{word()}({word()}, {some.randrange(100)})")
    return "\n".join(lines).encode()


LICENCE = (ROOT / "LICENSE").read_bytes()
TEXTS = {
    "prose": prose(2500), "code": code(600), "licence": LICENCE, "numbers": numbers(6000), "records": records(1500),
    "log": log(1500), "drawings": drawings(3000), "cycles": cycles(4000), "dots": dots(20_000),
    "repeated": LICENCE * 8,
}  # fmt: skip
TEXTS["mixed"] = b"".join(text[:20_000] for text in TEXTS.values())


def run_of(data: bytes, gains: list[float]) -> list[assembly._SegmentBytes]:
    """A run of groups that the LM makes smaller by these factors than zstd -19 makes each, after all before it."""
    run, before = [], 0
    for number, start in enumerate(range(0, min(len(data), RUN_GROUPS * GROUP_BYTES), GROUP_BYTES)):
        piece = data[start : start + GROUP_BYTES]
        upto = zstd_size(data[: start + len(piece)])
        size = max(0, round((upto - before) / gains[number % len(gains)]) - 8)
        before = upto
        run.append(assembly._SegmentBytes(Segment(len(piece), (Chunk(200, b"", 0),) * 4, bytes(size)), piece, start))
    return run


def exhaustive(run: list[assembly._SegmentBytes]) -> list[Segment | SourceRange]:
    """The rule: all of a run if zstd makes it smaller, or the same in its halves."""
    joined = b"".join(one.data for one in run)
    lm = sum(assembly._lm_size(one.segment) for one in run)
    if min(zstd_size(joined), len(joined)) + assembly._STORED_BYTES <= lm:
        return [SourceRange(run[0].start, run[0].start + len(joined))]
    if len(run) == 1:
        return [run[0].segment]
    return exhaustive(run[: len(run) // 2]) + exhaustive(run[len(run) // 2 :])


@pytest.mark.parametrize("gains", [[0.6], [0.9], [1.1], [1.5], [2.2], [4.0], [3.0, 0.5, 3.0, 3.0, 1.0, 2.0]], ids=str)
@pytest.mark.parametrize("kind", TEXTS)
def test_groups_are_stored_as_if_all_were_tried(kind: str, gains: list[float]) -> None:
    run = run_of(TEXTS[kind], gains)
    assert assembly._store_smaller(run, team_of(2)) == exhaustive(run)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what zstd's best level is tried on, from now on."""
    tried: list[int] = []
    monkeypatch.setattr(assembly, "zstd_size", lambda data: tried.append(len(data)) or zstd_size(data))
    return tried


def test_one_group_in_the_middle_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    prose = TEXTS["prose"]
    middle = numbers(300)[:GROUP_BYTES]
    data = prose[: 20 * GROUP_BYTES] + middle + prose[20 * GROUP_BYTES :]
    run = run_of(data, [2.2])
    segment = run[20].segment
    run[20] = assembly._SegmentBytes(
        Segment(segment.size, segment.chunks, bytes(zstd_size(middle))), middle, run[20].start
    )
    tried = counted(monkeypatch)
    found = assembly._store_smaller(run, team_of(2))
    assert found == exhaustive(run)
    assert SourceRange(20 * GROUP_BYTES, 21 * GROUP_BYTES) in found
    assert sum(tried) < sum(len(one.data) for one in run) / 4  # only parts with the group in the middle


def test_prose_and_code_need_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = counted(monkeypatch)
    for kind in ("prose", "code"):
        run = run_of(TEXTS[kind], [2.2])
        assert assembly._store_smaller(run, team_of(2)) == [one.segment for one in run]
    assert tried == []


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_is_never_much_larger_than_with_zstd(kind: str) -> None:
    source = Source.of(TEXTS[kind])
    whole = pack(stored(source))
    assert smaller_of(source, bytes(len(whole))) == whole
    assert smaller_of(source, bytes(len(whole) - 1)) == bytes(len(whole) - 1)


def test_a_document_that_repeats_itself_from_afar_is_stored() -> None:
    text = random.Random(5).randbytes(3 << 19).hex().encode()  # 3 MB
    source = Source.of(text + text)
    whole = pack(stored(source))
    assert len(whole) < 0.6 * len(text) and smaller_of(source, bytes(len(whole) + 1000)) == whole


def test_the_best_level_is_not_tried_on_a_whole_document_that_the_lm_makes_far_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Source.of(TEXTS["prose"])
    monkeypatch.setattr(assembly, "stored", lambda source: pytest.fail("stored"))
    assert smaller_of(source, bytes(zstd_size(TEXTS["prose"]) // 2)) == bytes(zstd_size(TEXTS["prose"]) // 2)
