"""References: what repeats in a document is found, left out, written in the index, and inserted again."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memcodec
from memcodec import ChecksumError, FormatError, Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.container import Container, Lost, StoredSpan, pack, unpack
from memcodec.container.assembly import document_of, salvage_of
from memcodec.container.insertion import insert
from memcodec.document import repeats, source, spans
from memcodec.document.blocks import Cutting, read_blocks
from memcodec.document.references import CarriedBytes, Reference, joined, slices_of
from memcodec.document.repeats import LEAST_BYTES, SAMPLE_BYTES, UNSEEN_BYTES, Repeats
from memcodec.document.source import Source
from memcodec.document.spans import cut_blocks, find_text
from memcodec.document.unseen import GRAM_BYTES, Grams, is_unseen
from memcodec.settings import Context, EncodeSettings
from memcodec.storage.journal import journal_key

from .conftest import TEXT, Run, store_nothing

QUICK = Readout(0, 64)
RNG = random.Random(5)


@pytest.fixture(autouse=True)
def references_to_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "TOKEN_BYTES", 0)


def unique(size: int, seed: int = 0) -> str:
    """Text of this many bytes that does not repeat."""
    rng = random.Random(seed)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz    \n") for _ in range(size))


def found(data: bytes, seen_tokens: int = 0) -> tuple[list[Reference], bytes]:
    """The references of a document and its carried bytes."""
    document = Source.of(data)
    finder = Repeats(document, seen_tokens)
    references: list[Reference] = []
    carried = b""
    for block in cut_blocks(document):
        parts, more = finder.cut(find_text(block))
        references += more
        carried += b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    return references, carried


def restored(references: list[Reference], carried: bytes) -> bytes:
    """The document, with nothing but slices."""
    pieces, at = [], 0
    for one in references:
        assert one.start + one.size <= one.at <= len(carried)
        pieces += [carried[at : one.at], carried[one.start : one.start + one.size]]
        at = one.at
    return b"".join([*pieces, carried[at:]])


# ---- finding


@pytest.mark.parametrize("size", range(LEAST_BYTES - 4, LEAST_BYTES + 60, 3))
def test_repeats_of_the_least_length_are_found_wherever_they_begin(size: int) -> None:
    first = unique(4000)
    for start in range(500, 500 + SAMPLE_BYTES, 5):
        data = f"{first}#{unique(77, 1)}<{first[start : start + size]}>{unique(300, 2)}".encode()
        references, carried = found(data)
        assert restored(references, carried) == data
        assert [one.size for one in references] == ([size] if size >= LEAST_BYTES else [])
        assert not references or references[0].start == start


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(0, 1 << 30))
def test_any_mixture_is_restored(order: list[int], seed: int) -> None:
    rng = random.Random(seed)
    phrases = [unique(rng.randrange(20, 260), seed + i) for i in range(6)] + ["é彼🙂" * 40, "\xff" * 50]
    data = "".join(phrases[i][rng.randrange(5) :] for i in order).encode() + b"\xff\xfe" * (seed % 3)
    assert restored(*found(data)) == data


def test_references_are_whole_characters() -> None:
    """U+4E00 and U+5E00 differ in the first byte only, U+4E00 and U+4E01 in the last."""
    middle = unique(200)
    data = f"x\u4e00{middle}\u4e00 {unique(100, 1)} \u5e00{middle}\u4e01 {unique(100, 2)}".encode()
    references, carried = found(data)
    carried.decode()
    assert restored(references, carried) == data
    assert [one.size for one in references] == [200]


def test_only_carried_bytes_are_repeated() -> None:
    """The third occurrence is made of what the first two carry, since the second is mostly a reference."""
    one, other = unique(300), unique(300, 1)
    data = f"{one}|{one}{other}|{one}{other}|{other}".encode()
    references, carried = found(data)
    assert restored(references, carried) == data and len(carried) < 620
    assert {reference.size for reference in references} <= {300, 301, 302}


def test_what_overlaps_itself() -> None:
    data = (unique(150) * 4 + unique(1000, 2) + unique(100, 1) * 9 + "ab" * 500).encode()
    references, carried = found(data)
    assert restored(references, carried) == data
    assert references and max(one.size for one in references) <= 500


@pytest.mark.parametrize("window", [2048, 5000, repeats.WINDOW_BYTES])
@pytest.mark.parametrize("size", [700, 701, 960])
@pytest.mark.parametrize("seen", [0, 100])
def test_blocks_and_pieces_of_text_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, size: int, window: int, seen: int
) -> None:
    monkeypatch.setattr(repeats, "TOKEN_BYTES", 4)
    monkeypatch.setattr(repeats, "WINDOW_BYTES", window)
    monkeypatch.setattr(repeats, "_FIRST_READ", 64)
    monkeypatch.setattr(spans, "BLOCK_BYTES", size)
    monkeypatch.setattr(spans, "_LINE", 50)
    monkeypatch.setattr(spans, "PIECE_CHARACTERS", 400)
    monkeypatch.setattr(source, "PIECE_BYTES", 300)
    one = unique(3000)
    data = f"{one}#{unique(500, 1)}#{one}".encode()
    references, carried = found(data, seen)
    assert restored(references, carried) == data
    assert len(carried) < 3900
    assert len(joined(references)) < len(references)
    assert restored(joined(references), carried) == data


def test_far_repeats_are_those_of_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources before the window, also those that it begins in."""
    monkeypatch.setattr(spans, "BLOCK_BYTES", 700)
    monkeypatch.setattr(spans, "_LINE", 50)
    monkeypatch.setattr(repeats, "_FIRST_READ", 64)
    rng = random.Random(1)
    phrases = ["é彼🙂" * 40 + unique(200, 50), *(unique(rng.randrange(90, 700), i) for i in range(30))]
    data = "".join(rng.choice(phrases) for _ in range(300)).encode()
    references, carried = found(data)
    monkeypatch.setattr(repeats, "WINDOW_BYTES", 4000)
    far, carried_then = found(data)
    assert restored(references, carried) == restored(far, carried_then) == data
    assert len(data) > 5 * len(carried) and abs(len(carried) - len(carried_then)) < 0.1 * len(carried)


def test_a_hundred_thousand_references() -> None:
    line = unique(110).replace("\n", " ")
    rng = random.Random(0)
    data = "".join(f"{line}{rng.randrange(1 << 60):015x}\n" for _ in range(100_000)).encode()
    references, carried = found(data)
    assert restored(references, carried) == data
    assert len(references) > 99_000 and len(carried) < 2_000_000
    made = Container(len(data), bytes(16), [StoredSpan.of(carried)], references=tuple(joined(references)))
    assert (
        b"".join(piece for piece in insert([carried], unpack(pack(made)).references) if isinstance(piece, bytes))
        == data
    )


def test_a_full_table_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_MOST_SLOTS", 32)
    one = unique(1000)
    data = f"{unique(60_000, 1)}{one}#{unique(100, 2)}#{one}".encode()
    references, carried = found(data)
    assert restored(references, carried) == data
    assert sum(one.size for one in references) > 500


def test_the_number_of_references_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MAX_REFERENCES", 3)
    data = "".join(f"{unique(200)}{i}" for i in range(9)).encode()
    references, carried = found(data)
    assert len(references) == 3 and restored(references, carried) == data


# ---- carried bytes


@st.composite
def layered(draw: st.DrawFn) -> tuple[bytes, list[Reference]]:
    carried = draw(st.binary(min_size=1, max_size=60))
    references = []
    for at in sorted(draw(st.lists(st.integers(1, len(carried)), max_size=8))):
        start = draw(st.integers(0, at - 1))
        references.append(Reference(at, start, draw(st.integers(1, at - start))))
    return carried, references


@given(layered(), st.integers(1, 9))
def test_carried_bytes_become_the_document_in_any_pieces(made: tuple[bytes, list[Reference]], size: int) -> None:
    carried, references = made
    data = restored(references, carried)
    pieces = [carried[i : i + size] for i in range(0, len(carried), size)]
    assert b"".join(piece for piece in insert(pieces, references) if isinstance(piece, bytes)) == data
    assert restored(joined(references), carried) == data
    assert (
        b"".join(carried[one.carried : one.carried + one.size] for one in slices_of(len(carried), references)) == data
    )
    kept = CarriedBytes(Source.of(data), references)
    for start in range(len(carried)):
        for end in range(start, len(carried) + 1):
            assert b"".join(kept.pieces(start, end)) == carried[start:end]


@given(layered(), st.data())
def test_what_repeats_lost_bytes_is_lost(made: tuple[bytes, list[Reference]], data: st.DataObject) -> None:
    carried, references = made
    cuts = sorted({0, len(carried), *data.draw(st.lists(st.integers(0, len(carried)), max_size=5))})
    pieces: list[bytes | Lost] = []
    lost = set()
    for start, end in pairwise(cuts):
        if data.draw(st.booleans()):
            pieces.append(Lost(start, end, (3,)))
            lost |= set(range(start, end))
        else:
            pieces.append(carried[start:end])
    expected: list[int | None] = []
    for one in slices_of(len(carried), references):
        expected += (None if i in lost else carried[i] for i in range(one.carried, one.carried + one.size))
    result: list[int | None] = []
    for piece in insert(pieces, references):
        if isinstance(piece, Lost):
            assert piece.start == len(result) < piece.end
            result += [None] * (piece.end - piece.start)
        else:
            result += piece
    assert result == expected


# ---- the index


def container_with(*references: Reference, size: int | None = None) -> Container:
    carried = b"0123456789" * 30
    whole = len(carried) + sum(one.size for one in references) if size is None else size
    return Container(whole, bytes(16), [StoredSpan.of(carried)], references=references)


def test_references_come_back() -> None:
    made = container_with(Reference(40, 0, 32), Reference(40, 3, 34), Reference(300, 0, 300), Reference(300, 0, 32))
    assert unpack(pack(made)).references == made.references
    assert len(container.pack_references(made.references)) == 3 + 3 + 5 + 4


@pytest.mark.parametrize(
    "references",
    [
        [Reference(40, 9, 32)],  # overlaps itself
        [Reference(40, 50, 32)],  # forward
        [Reference(40, -1, 32)],  # before the document
        [Reference(301, 0, 33)],  # after the document
        [Reference(40, 0, 33), Reference(301, 5, 1 << 40)],
        [Reference(1 << 61, 0, 33)],
    ],
)
def test_impossible_references_are_refused(references: list[Reference], monkeypatch: pytest.MonkeyPatch) -> None:
    def packed(some: Any) -> bytes:
        numbers = []
        at = 0
        for one in some:
            distance = one.at - one.start - one.size
            numbers += [one.at - at, one.size - 32, distance if distance >= 0 else (1 << 62) + distance]
            at = one.at
        return b"".join(map(container.varint, numbers))

    monkeypatch.setattr("memcodec.container.write.pack_references", packed)
    with pytest.raises(FormatError, match="a reference"):
        unpack(pack(container_with(*references)))


def test_more_references_than_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcodec.container.write.pack_references", lambda _: b"")
    with pytest.raises(FormatError, match="more references"):
        unpack(pack(container_with(*[Reference(40, 0, 32)] * 1000)))


def test_sizes_must_add_up() -> None:
    for size in (300, 332, 334):
        with pytest.raises(FormatError, match="do not add up"):
            unpack(pack(container_with(Reference(40, 0, 33), size=size)))


# ---- files

AGAIN = unique(260, 9)
WHOLE = (TEXT + AGAIN + TEXT[:150]).encode() + bytes(range(128, 250)) + (AGAIN[7:] + TEXT * 2 + AGAIN).encode()


@pytest.fixture(scope="module")
def blob(tiny: Codec) -> Iterator[bytes]:
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch, references=True)
        yield tiny.encode(WHOLE, site=QUICK, chunk_tokens=40, context=60)


def test_a_document_comes_back(tiny: Codec, blob: bytes) -> None:
    parsed = unpack(blob)
    assert len(parsed.references) >= 4 and parsed.carried < 1000 < parsed.size == len(WHOLE)
    assert tiny.decode(blob) == WHOLE
    assert tiny.decode_many([blob, blob]) == [WHOLE, WHOLE]
    assert b"".join(tiny.salvage(blob)) == WHOLE  # type: ignore[arg-type]


def test_without_references_nothing_changes(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    store_nothing(monkeypatch, references=True)
    once = (TEXT + AGAIN).encode()
    assert tiny.encode(once, site=QUICK) == tiny.encode(once, site=QUICK, references=False)
    assert unpack(tiny.encode(WHOLE, site=QUICK, references=False)).references == ()


def test_blocks_share_references(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    store_nothing(monkeypatch, references=True)
    monkeypatch.setattr(spans, "BLOCK_BYTES", 700)
    monkeypatch.setattr(spans, "_LINE", 50)
    made = tiny.encode(WHOLE, site=QUICK)
    assert len(unpack(made).references) >= 2 and tiny.decode(made) == WHOLE
    assert next(iter(tiny.encode_many([WHOLE, WHOLE[:900]], site=QUICK))) == made


@pytest.mark.parametrize(
    ("level", "context", "seen"), [(6, "auto", 600), (9, "auto", 8000), (6, "max", 8000), (6, 0, 100), (6, 160, 160)]
)
def test_what_the_lm_sees_is_left_to_it(
    tiny: Codec, level: int, context: Context, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy whose source the LM sees is carried; one whose source it sees too little of is a reference."""
    settings = EncodeSettings.of(level=level, context=context)
    cutting = replace(Cutting.of(tiny.model, settings), positions=8000)
    assert cutting.seen_tokens == seen
    monkeypatch.setattr(repeats, "TOKEN_BYTES", 3)
    copied = unique(min(500, 2 * seen))
    for not_seen, count in ((0, 0), (UNSEEN_BYTES - 1, 0), (UNSEEN_BYTES, 1)):
        between = unique(3 * seen + not_seen - len(copied), 1)
        blocks = read_blocks(Source.of((copied + between + copied).encode()), tiny.tokenizer, cutting)
        assert [one.size for block in blocks for one in block.references] == [len(copied)] * count


@pytest.mark.parametrize("window", [2048, repeats.WINDOW_BYTES])
def test_a_repeat_that_the_lm_saw_in_parts_is_left_to_it(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Text whose lines the LM has just seen is carried, though a whole copy is far away; other text is a reference."""
    monkeypatch.setattr(repeats, "TOKEN_BYTES", 4)
    monkeypatch.setattr(repeats, "WINDOW_BYTES", window)
    monkeypatch.setattr(spans, "BLOCK_BYTES", 700)
    monkeypatch.setattr(spans, "_LINE", 50)
    lines = [f"{{'name': '{unique(12, i)}', 'values': [1, 2, 3], 'text': '{unique(12, i + 50)}'}}\n" for i in range(8)]
    record, prose = "".join(lines), unique(len("".join(lines)), 99)
    near = "".join(lines[i] for i in (3, 0, 6, 1, 4, 7, 2, 5))
    for text, before, is_repeat in ((record, unique(400, 2), True), (record, near, False), (prose, near, True)):
        data = f"{text}{unique(5000, 3)}{before}{text}".encode()
        references, carried = found(data, seen_tokens=200)
        assert restored(references, carried) == data
        left_out = len(data) - len(carried)
        assert left_out > len(text) - LEAST_BYTES if is_repeat else not references


def test_what_is_in_a_reference_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it make the text before it farther away."""
    monkeypatch.setattr(repeats, "TOKEN_BYTES", 4)
    text, long = unique(600), unique(2000, 5)
    references, _ = found(f"{text}{unique(3000, 1)}{text}{unique(100, 2)}{text}".encode(), seen_tokens=300)
    assert [(one.start, one.size) for one in references] == [(0, 600), (0, 600)]
    references, _ = found(f"{long}{unique(3000, 1)}{text}{long}{text}".encode(), seen_tokens=300)
    assert [(one.start, one.size) for one in references] == [(0, 2000)]


def test_what_repeats_itself_is_not_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is repeated needs no reference, though it occurred far away."""
    monkeypatch.setattr(repeats, "TOKEN_BYTES", 4)
    for text, count in ((unique(40) * 20, 0), (unique(800), 1)):
        assert len(found(f"{text}{unique(5000, 1)}{text}".encode(), seen_tokens=300)[0]) == count


def test_stored_bytes_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they make the text before them farther away."""
    monkeypatch.setattr(repeats, "TOKEN_BYTES", 4)
    text, stored = unique(200), bytes(range(128, 256)) * 20
    other = unique(2000, 1)
    for parts, count in (
        ([text + other, stored + text.encode() + stored, unique(30, 2) + text], 1),
        ([other + text, stored, unique(30, 2) + text], 0),
    ):
        finder = Repeats(Source.of(b"".join(p if isinstance(p, bytes) else p.encode() for p in parts)), 300)
        assert len(finder.cut(parts)[1]) == count


ALPHABETS = ["abcdefghijklmnopqrstuvwxyz ", "абвгдежзиклмнопрст ", "彼女は本を読む", "😀😁😂🤣😃", "ACGT", "01,"]


@given(st.integers(0, 1 << 30), st.sampled_from([8, 40, 200, 1000]), st.sampled_from(ALPHABETS))
def test_unseen_bytes_are_counted_as_plain_python_counts_them(seed: int, seen: int, letters: str) -> None:
    """Of repeats one after the other, with references between them, and a window that moves."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(letters, k=rng.randrange(1, 30))) for _ in range(12)]
    data = "".join(rng.choice(words) for _ in range(150)).encode()
    grams, references, at = Grams.of(seen), [(0, 0)], 0
    large = grams._replace(places=np.zeros(1 << 20, dtype=np.uint64), entered=grams.entered.copy())
    while at + 200 < len(data):
        first, size = at + rng.randrange(100), rng.randrange(10, 100)
        origin = max(0, first - seen - rng.randrange(50))
        window = np.frombuffer(data[origin:], dtype=np.uint8)
        starts, ends = (np.array([one[i] for one in references[1:]], dtype=np.int64) for i in (0, 1))
        carried = [data[end:start] for (_, end), (start, _) in pairwise([*references, (first, first)])]
        count = unseen_bytes(carried, data[first : first + size], seen)
        for least in range(1, size + 1):
            where = window, first - origin, size, origin, starts, ends, least, seen
            assert is_unseen(*where, grams) or count < least
            # A gram can lose its slot to a later one: often in a table as small as that of the encoder, seldom in this.
            assert count >= least - GRAM_BYTES if is_unseen(*where, large) else count < least
        at = first
        if rng.random() < 0.5:
            at += size
            references.append((first, at))


def test_a_long_repeat_of_new_and_seen_grams() -> None:
    """More of its grams are new than are entered while it is looked at."""
    words = [unique(GRAM_BYTES, i) for i in range(220)]
    near = "".join(words).encode()
    repeat = "|".join(random.Random(1).sample(words, len(words))).encode()
    window, nothing = np.frombuffer(near + repeat, dtype=np.uint8), np.zeros(0, dtype=np.int64)
    grams = Grams.of(len(near))._replace(places=np.zeros(1 << 20, dtype=np.uint64))
    bars = len(words) - 1  # all that is unseen
    for least in (bars // 2, bars, bars + 1):
        where = window, len(near), len(repeat), 0, nothing, nothing, least, len(near)
        assert is_unseen(*where, grams) == (least <= bars)


def unseen_bytes(carried: list[bytes], repeat: bytes, seen: int) -> int:
    """The bytes of a repeat in no gram that begins in the last `seen` carried bytes before it, or earlier in it."""
    left, grams = sum(map(len, carried)), set[bytes]()
    for piece in carried:
        for i in range(len(piece) - GRAM_BYTES + 1):
            if left - i <= seen:
                grams.add(piece[i : i + GRAM_BYTES])
        left -= len(piece)
    known = set[int]()
    for i in range(len(repeat) - GRAM_BYTES + 1):
        gram = repeat[i : i + GRAM_BYTES]
        if gram in grams:
            known.update(range(i, i + GRAM_BYTES))
        grams.add(gram)
    return len(repeat) - len(known)


def test_a_pure_memory_carries_all_text() -> None:
    settings = EncodeSettings.of(site=Prompt(pure=True))
    assert not settings.finds_references


def test_a_line_that_is_repeated_stays_small(tiny: Codec) -> None:
    for line in (TEXT[:60] + "\n", unique(120), unique(500)):
        data = (line * 3000).encode()
        assert len(tiny.encode(data, site=QUICK)) <= len(tiny.encode(data, site=QUICK, references=False))


def test_reading_anywhere(tiny: Codec, blob: bytes, tmp_path: Any) -> None:
    path = tmp_path / "x.memz"
    path.write_bytes(blob + blob)
    with memcodec.open(path, codec=tiny) as file:
        for start in range(0, 2 * len(WHOLE), 97):
            file.seek(start)
            assert file.read(150) == (WHOLE * 2)[start : start + 150]
        file.seek(0)
        assert file.read() == WHOLE * 2
        assert file.seek(0, 2) == 2 * len(WHOLE)


def test_a_seek_into_a_reference_decodes_its_source_alone(
    tiny: Codec, blob: bytes, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.memz"
    path.write_bytes(blob)
    decoded: list[int] = []
    real = Codec.tokens

    def tokens(self: Codec, parsed: Container, batch: int = 64, numbers: Any = None, progress: Any = None) -> Any:
        decoded.extend(numbers)
        return real(self, parsed, numbers=numbers)

    monkeypatch.setattr(Codec, "tokens", tokens)
    place = len(WHOLE) - 20
    with memcodec.open(path, codec=tiny) as file:
        file.seek(place)
        assert file.read(10) == WHOLE[place : place + 10]
        assert len(decoded) == 1
        decoded.clear()
        file.seek(place)
        assert file.read(10) == WHOLE[place : place + 10] and not decoded
        file.seek(0)
        assert file.read() == WHOLE
        assert len(decoded) == len(set(decoded))


def test_damage_of_a_source_is_damage_of_what_repeats_it(tiny: Codec, blob: bytes) -> None:
    parsed = unpack(blob)
    first = parsed.segments[0]
    assert first.corrections
    bad = replace(first, corrections=bytes(b ^ 0x55 for b in first.corrections))
    broken = pack(replace(parsed, parts=[bad if part is first else part for part in parsed.parts]))
    with pytest.raises(ChecksumError):
        tiny.decode(broken)
    place, ranges = 0, []
    for piece in tiny.salvage(broken):
        if isinstance(piece, Lost):
            assert piece.start == place
            ranges.append((piece.start, piece.end))
            place = piece.end
        else:
            assert WHOLE[place : place + len(piece)] == piece
            place += len(piece)
    assert place == len(WHOLE) and len(ranges) >= 3
    assert any(piece.chunks == () for piece in tiny.salvage(broken) if isinstance(piece, Lost))


def test_damage_of_a_stored_source(tiny: Codec) -> None:
    made = container_with(Reference(300, 4, 60), Reference(300, 4, 200))
    span = made.parts[0]
    assert isinstance(span, StoredSpan)
    broken = replace(made, parts=[replace(span, checksum=1)])
    assert list(salvage_of(broken, [], None)) == [Lost(0, 300), Lost(300, 360), Lost(360, 560)]
    with pytest.raises(ChecksumError):
        list(document_of(broken, [], None))


def test_the_views_show_references(tiny: Codec, blob: bytes) -> None:
    facts = memcodec.inspect(blob)
    rows = facts["references"]
    assert sum(row["bytes"] for row in [*facts["spans"], *rows]) == len(WHOLE)
    for row in rows:
        start, source_, size = row["start"], row["source"], row["bytes"]
        assert WHOLE[start : start + size] == WHOLE[source_ : source_ + size]
    items = list(memcodec.token_map(tiny, blob))
    assert [item for item in items if isinstance(item, Reference)] == list(unpack(blob).references)


def test_the_commands(run: Run, llama_folder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    store_nothing(monkeypatch, references=True)
    (tmp_path / "a").write_bytes(WHOLE)
    options = ("--model", llama_folder, "--memory-share", 0, "-q")
    assert run("compress", "a", *options).exit_code == 0
    small = (tmp_path / "a.memz").stat().st_size
    assert "references: " in run("inspect", "a.memz").output
    shown = run("inspect", "--tokens", "a.memz", "--model", llama_folder).output
    assert "bytes repeated]" in shown
    page = run("inspect", "--html", "-", "a.memz", "--model", llama_folder).output
    assert "bytes repeated]" in page
    assert run("compress", "a", "-f", "--no-references", *options).exit_code == 0
    assert (tmp_path / "a.memz").stat().st_size > small
    assert "reference" not in run("inspect", "a.memz").output


def test_a_journal_belongs_to_the_setting(tiny: Codec) -> None:
    keys = [
        journal_key(
            Source.of(b"x"), tiny.model, QUICK, Cutting.of(tiny.model, EncodeSettings.of(references=references))
        )
        for references in (True, False)
    ]
    assert keys[0] != keys[1]
