"""Words of texts as hashes: finds what the corpus has already, and what it must not have (texts that are measured)."""

import hashlib
import re
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import readers

Hashes = npt.NDArray[np.uint64]

GRAM = 13
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Chinese characters: words of one character
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
REPOSITORY = Path(__file__).resolve().parent.parent
TEXTUAL = re.compile(r"\.(py|txt|md|pot?|json|html|js|css|xml|csv|rst|toml|cfg|yml)$")
# Not the licence, which packages of the corpus have too; tests compress it, but no figure is measured with it.
OURS = (
    "*.md", "docs/**/*.md", "docs/*.1", "tests/*.py", "benchmarks/*.py", "benchmarks/*.md", "spec/*.md", "spec/*.py",
    "memcodec/**/*.py", "cli/*.py",
)  # fmt: skip


class Words(dict[str, int]):
    """A number of 64 bits a word, the same on every machine."""

    def __missing__(self, word: str) -> int:
        number = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        self[word] = number
        return number


WORDS = Words()


def hashes(text: str) -> Hashes:
    """The numbers of the words of a text, in lower case."""
    words = WORD.findall(text.lower())
    return np.fromiter(map(WORDS.__getitem__, words), np.uint64, len(words))


def grams(words: Hashes, size: int = GRAM) -> Hashes:
    """A number for each run of `size` words."""
    count = len(words) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    found = words[:count].copy()
    for i in range(1, size):
        found *= MULTIPLIER
        found += words[i : count + i]
    return found ^ (found >> np.uint64(29))


class Seen:
    """A set of hashes with false positives: about one in a hundred when it is full."""

    def __init__(self, bits: int):
        self.mask = np.uint64((1 << bits) - 1)
        self.table = np.zeros(1 << bits, np.bool_)

    def has(self, found: Hashes) -> npt.NDArray[np.bool_]:
        """Which of them it has."""
        return self.table[found & self.mask]

    def add(self, found: Hashes) -> None:
        """Add some hashes."""
        self.table[found & self.mask] = True


class Repeats:
    """Documents and blocks of documents that were there before."""

    def __init__(self) -> None:
        self.shingles = Seen(29)
        self.blocks: Counter[int] = Counter()

    def share(self, words: Hashes) -> float:
        """The share of a document's runs of 7 words that earlier documents have: a sample of them, one in eight."""
        found = grams(words, 7)
        found = found[found % np.uint64(8) == 0]
        if len(found) < 4:
            return 0.0
        share = float(self.shingles.has(found).mean())
        if share < 0.5:
            self.shingles.add(found)
        return share

    def often(self, block: str, most: int) -> bool:
        """Whether a block of text was there `most` times already."""
        key = hash_of(" ".join(block.lower().split()))
        self.blocks[key] += 1
        return self.blocks[key] > most


def hash_of(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


class Measured:
    """The runs of 13 words of all texts that are measured."""

    def __init__(self, texts: Iterator[tuple[str, str]]):
        parts, self.count, self.bytes = [np.empty(0, np.uint64)], 0, 0
        for _, text in texts:
            parts.append(np.unique(grams(hashes(text))))
            self.count += 1
            self.bytes += len(text)
        self.grams = np.unique(np.concatenate(parts))
        self.quick = Seen(28)
        self.quick.add(self.grams)

    def hits(self, words: Hashes) -> list[int]:
        """The numbers of the words at which a run begins that a measured text has."""
        found = grams(words)
        (maybe,) = np.nonzero(self.quick.has(found))
        if not len(maybe):
            return []
        at = np.searchsorted(self.grams, found[maybe])
        at[at == len(self.grams)] = 0
        return [int(i) for i in maybe[self.grams[at] == found[maybe]]]

    def spans(self, text: str, hits: list[int]) -> list[tuple[int, int]]:
        """Where in the text those runs are."""
        places = [found.span() for found in WORD.finditer(text)]
        return [(places[i][0], places[i + GRAM - 1][1]) for i in hits]


def measured_texts(folders: list[Path]) -> Iterator[tuple[str, str]]:
    """All texts that are measured, with a name each: of the benchmarks' packages, of this repository, of `folders`."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    import corpora  # type: ignore[import-not-found, unused-ignore]
    import messages  # type: ignore[import-not-found, unused-ignore]

    for corpus in corpora.CORPORA:
        yield corpus.name, corpora.contents(corpus).decode("utf-8", "replace")
    for package in (corpora.BROTLI, corpora.CLICK, corpora.JSONSCHEMA, corpora.DJANGO):
        yield from _archived(corpora.fetch(package))
    for kind, make in messages.KINDS.items():
        yield kind, "\n\n".join(message.decode("utf-8", "replace") for message in make())
    for pattern in OURS:
        for path in sorted(REPOSITORY.glob(pattern)):
            yield str(path.relative_to(REPOSITORY)), path.read_text("utf-8", "replace")
    for folder in folders:
        yield from texts_in(folder)


def texts_in(folder: Path) -> Iterator[tuple[str, str]]:
    """The text files of a folder, with their paths."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if data and b"\0" not in data[:4096]:
            yield str(path), data.decode("utf-8", "replace")


def _archived(archive: Path) -> Iterator[tuple[str, str]]:
    """The text files of a wheel or an sdist; of .po files the translated messages too, joined as they are measured."""
    for name, data in _members(archive):
        if not TEXTUAL.search(name):
            continue
        text = data.decode("utf-8", "replace")
        yield name, text
        if name.endswith(".po"):
            yield name, "\n".join(readers.translations(text))


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                yield name, wheel.read(name)
        return
    with tarfile.open(archive) as sdist:
        for member in sdist:
            if member.isfile() and (file := sdist.extractfile(member)):
                yield member.name, file.read()
