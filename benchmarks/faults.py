"""Damage files in many ways and decode them. Wrong bytes, errors other than MemcodecError, and hangs are failures.

    python benchmarks/faults.py [--flips N] [--corruptions N] [--out FOLDER]

Every single bit of a small file, an archive and a primer is flipped. Then a larger file is corrupted at random: changed
bits and bytes, cuts, insertions, removed and doubled ranges, swapped chunks and corrections, and edits of the header
with consistent lengths. In half of these cases the checksum of the file is corrected, so that the damage reaches the
code after the check. The files are made with the tiny model in spec/vectors. Writes faults.json.
"""

import argparse
import json
import random
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import isolated
from force_lm import store_nothing
from isolated import Outcome

from memcodec import Archive, MemcodecError, Primer, container
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.container import Segment

TINY = Path(__file__).parent.parent / "spec" / "vectors" / "tiny" / "model"
TEXT = "Every bit of this is flipped once. Jedes Bit wird einmal gekippt. Каждый бит. 每一位。\n"
MEMORY = 64 << 20  # bytes by which the peak of memory may exceed that of decoding the intact file

RIGHT = ("refused", "the same", "all that is there")

Case = tuple[str, Callable[[], str]]


def main() -> None:
    """Damage and decode the files, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1 << 30, help="the most single bits to flip in each file")
    parser.add_argument("--corruptions", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = [judge(kind, flips, kind, options.flips) for kind in KINDS]
    rows.append(judge("corruptions of a larger file", corruptions, options.corruptions))
    rows.append(judge("files cut anywhere, and salvaged", cuts, options.corruptions // 10))
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"date": today(), "machine": machine(), "memory_bound": MEMORY, "rows": rows}
    (options.out / "faults.json").write_text(json.dumps(found, indent=1) + "\n")
    if any(row["wrong"] for row in rows):
        sys.exit("faults: error: something is wrong, see faults.json")


def judge(what: str, make: Callable[..., Iterator[Case]], *given: object) -> dict[str, Any]:
    """Run the cases. Returns their number, their outcomes, and those that are wrong."""
    outcomes: Counter[str] = Counter()
    wrong, longest, memory = [], 0.0, 0
    for outcome in isolated.run(make, *given):
        outcomes[outcome.word] += 1
        longest, memory = max(longest, outcome.seconds), max(memory, outcome.memory)
        if is_wrong(outcome):
            wrong.append(f"{outcome.name}: {outcome.word}, {outcome.memory:,} bytes")
        if sum(outcomes.values()) % 1000 == 0:
            print(f"{what}: {sum(outcomes.values()):,} cases", flush=True)
    row = {"what": what, "cases": sum(outcomes.values()), "outcomes": dict(outcomes), "longest": longest,
           "memory": memory, "wrong": wrong}  # fmt: skip
    print(row | {"wrong": wrong[:5]}, flush=True)
    return row


def is_wrong(outcome: Outcome) -> bool:
    """Whether a case was neither refused nor decoded to the same bytes, or exceeded the bound on memory."""
    return outcome.word not in RIGHT or outcome.memory > MEMORY


def checked(read: Callable[[], object], expected: object) -> Callable[[], str]:
    """A case, which returns the outcome of a read as a word."""

    def case() -> str:
        try:
            found = read()
        except MemcodecError as error:
            return "refused" if "\n" not in str(error) else "an error of more than one line"
        except Exception as error:
            return f"raises {type(error).__name__}"
        return "the same" if found == expected else "WRONG BYTES"

    return case


# ---- single bits


def flips(kind: str, most: int) -> Iterator[Case]:
    """Every bit, or a random sample of `most` of them."""
    blob, read = KINDS[kind](Codec.load(str(TINY), device="cpu", threads=1))
    expected = read(blob)
    places = range(8 * len(blob))
    for place in places if len(places) <= most else sorted(random.Random(0).sample(places, most)):
        flipped = bytearray(blob)
        flipped[place // 8] ^= 1 << place % 8
        yield f"bit {place} of a {kind}", checked(lambda given=bytes(flipped): read(given), expected)  # type: ignore[misc]


Reader = tuple[bytes, Callable[[bytes], object]]


def small_file(codec: Codec) -> Reader:
    """A file with memories, corrections and a stored span."""
    with store_nothing():
        blob = codec.encode((TEXT * 4).encode() + bytes(range(128, 176)) + (TEXT * 4).encode(), chunk_tokens=40)
    return blob, codec.decode


def repeating_file(codec: Codec) -> Reader:
    """A file with references, into a group and into a stored span."""
    data = TEXT.encode() + bytes(range(128, 144)) + TEXT[:150].encode() + TEXT[3:].encode() * 2
    with store_nothing(references=True):
        blob = codec.encode(data, chunk_tokens=40, context=60)
    assert container.unpack(blob).references
    return blob, codec.decode


def stored_file(codec: Codec) -> Reader:
    """A file of bytes that are not text."""
    return codec.encode(bytes(range(256)) * 2), codec.decode


def archive(codec: Codec) -> Reader:
    """An archive of four documents with keys, of which two are the same, and a primer inside."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        documents = [TEXT.encode(), b"short", bytes(range(200, 256)), b"short"]
        Archive.create(path, documents, list("abcd"), codec=codec, primer=Primer.from_texts([TEXT], 30, codec))
        blob = path.read_bytes()

    def read(given: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "a").write_bytes(given)
            return list(Archive(Path(folder) / "a", codec=codec))

    return blob, read


def primer(codec: Codec) -> Reader:
    """A primer of a few tokens."""

    def read(given: bytes) -> object:
        found = Primer.from_bytes(given, "it")
        return found.text, found.tokens.tolist(), found.identity

    return Primer.from_texts([TEXT], 20, codec).to_bytes(), read


KINDS = {
    "file": small_file,
    "file with references": repeating_file,
    "stored file": stored_file,
    "archive": archive,
    "primer": primer,
}


# ---- any damage


def corruptions(count: int, seed: int = 0) -> Iterator[Case]:
    """Corruptions, of each kind in turn, of a file with dozens of groups, and of one that has references too.

    In half of them the checksum is corrected.
    """
    codec = Codec.load(str(TINY), device="cpu", threads=1)
    text = "".join(f"{i} {TEXT}" for i in range(24)).encode()
    data = text[: len(text) // 2] + bytes(range(128, 256)) + text[len(text) // 2 :]
    words = random.Random(1).choices(TEXT.split(), k=700)
    twice = " ".join([*words, *words[:90], *words[200:270], *words[100:400]]).encode()
    with store_nothing(references=True):
        made = [(codec.encode(d, chunk_tokens=30, context=60, references=d is twice), d) for d in (data, twice)]
    assert all(codec.decode(blob) == d for blob, d in made)
    rng, ways = random.Random(seed), list(WAYS)
    for number in range(count):
        way = ways[number % len(ways)]
        blob, data = made[number // len(ways) // 2 % 2]
        damaged = WAYS[way](blob, rng)
        if mended := number // len(ways) % 2 == 0:
            damaged = sealed(damaged)
        name = f"corruption {number}: {way}{', mended' if mended else ''}"
        yield name, checked(lambda given=damaged: codec.decode(given), data)  # type: ignore[misc]


def cuts(count: int, seed: int = 0) -> Iterator[Case]:
    """A file without context, cut after its index: every chunk whose bytes are complete must be restored."""
    codec = Codec.load(str(TINY), device="cpu", threads=1)
    data = "".join(f"{i} {TEXT}" for i in range(24)).encode()
    with store_nothing():
        blob = codec.encode(data, chunk_tokens=30, context=0)
    parsed = container.unpack(blob)
    first = len(blob) - 4 - parsed.sizes["corrections"]
    ends, there = [], 0
    for segment in parsed.segments:
        first += len(segment.corrections or b"")
        there += segment.size
        ends.append((first, there))

    def case(cut: int) -> str:
        whole = max((there for end, there in ends if end <= cut), default=0)
        found = {}
        place = 0
        for piece in codec.salvage(blob[:cut]):
            if isinstance(piece, bytes):
                found[place] = piece
                place += len(piece)
            else:
                place = piece.end
        if sum(map(len, found.values())) < whole or place != len(data):
            return "LESS THAN THERE IS"
        if any(data[start : start + len(piece)] != piece for start, piece in found.items()):
            return "passes a checksum of 8 bits by chance"
        return "all that is there"

    rng = random.Random(seed)
    for number in range(count):
        cut = rng.randrange(len(blob) - 4 - parsed.sizes["corrections"], len(blob))
        yield f"cut {number} at {cut}", partial(case, cut)


def sealed(blob: bytes) -> bytes:
    """The same bytes with a correct checksum."""
    return blob[:-4] + struct.pack("<I", zlib.crc32(blob[:-4]))


def _bits(blob: bytes, rng: random.Random) -> bytes:
    found = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _bytes(blob: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(blob))
    length = min(rng.choice((1, 2, 4, 16, 200)), len(blob) - start)
    filler = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80"))
    new = filler * length if rng.random() < 0.5 else rng.randbytes(length)
    return blob[:start] + new + blob[start + length :]


def _cut(blob: bytes, rng: random.Random) -> bytes:
    return blob[: rng.randrange(len(blob))]


def _insert(blob: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(blob) + 1)
    return blob[:place] + rng.randbytes(rng.choice((1, 3, 50))) + blob[place:]


def _remove(blob: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(blob))
    return blob[:place] + blob[place + rng.choice((1, 3, 50)) :]


def _double(blob: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(blob) + 1) for _ in range(2))
    return blob[:end] + blob[start:end] + blob[end:]


def _index(blob: bytes, rng: random.Random) -> bytes:
    """Change bytes of the index, which begins with the hash and the numbers."""
    parsed = container.unpack(blob)
    memories = 0 if b'"memories"' not in blob[:200] else parsed.sizes["memories"]
    start = parsed.sizes["header"] + memories
    found = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2))):
        found[start + rng.randrange(parsed.sizes["index"] - 4)] = rng.choice(
            (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
        )
    return bytes(found)


def _header(blob: bytes, rng: random.Random) -> bytes:
    """Change a number or a text in the JSON, and correct the length of the header."""
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    entry = rng.choice(list(header))
    if entry == "__metadata__":
        name = rng.choice(list(header[entry]))
        header[entry][name] = rng.choice(("", "2", "3", "1" * 50, "x", "../model", "org/model", "a\nb", "\u202e", "\0"))
    else:
        name = rng.choice(("dtype", "shape", "data_offsets"))
        numbers = [rng.choice((0, 1, -1, 1 << 31, 1 << 62, 1 << 64, 1.5, None, "1", len(blob))) for _ in range(2)]
        header[entry][name] = {"dtype": rng.choice(("I8", "F32", "", None, 8)), "shape": numbers[:1],
                               "data_offsets": numbers}[name]  # fmt: skip
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + blob[8 + length :]


def _swap(blob: bytes, rng: random.Random) -> bytes:
    """Swap two segments, memories, corrections or checksums; every length stays consistent."""
    parsed = container.unpack(blob)
    places = [i for i, part in enumerate(parsed.parts) if isinstance(part, Segment)]
    one, other = rng.sample(places, 2)
    parts = list(parsed.parts)
    left, right = parts[one], parts[other]
    assert isinstance(left, Segment) and isinstance(right, Segment)
    what = rng.choice(("segments", "corrections", "memories", "checksums"))
    if what == "segments":
        parts[one], parts[other] = right, left
    elif what == "corrections":
        parts[one] = replace(left, corrections=right.corrections)
        parts[other] = replace(right, corrections=left.corrections)
    else:
        i, j = rng.randrange(len(left.chunks)), rng.randrange(len(right.chunks))
        field = {"memories": "memory", "checksums": "checksum"}[what]
        a, b = left.chunks[i], right.chunks[j]
        ours: Any = {field: getattr(b, field)}
        theirs: Any = {field: getattr(a, field)}
        parts[one] = replace(left, chunks=(*left.chunks[:i], replace(a, **ours), *left.chunks[i + 1 :]))
        parts[other] = replace(right, chunks=(*right.chunks[:j], replace(b, **theirs), *right.chunks[j + 1 :]))
    return container.pack(replace(parsed, parts=parts))


WAYS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits": _bits, "bytes": _bytes, "cut": _cut, "insertion": _insert, "removal": _remove, "doubling": _double,
    "index": _index, "header": _header, "swap": _swap,
}  # fmt: skip


if __name__ == "__main__":
    main()
