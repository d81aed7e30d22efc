"""The documents of the corpus: their file, how much of each kind is taken, what is held out, and the report."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import screen
import zstandard

MEGABYTE = 1_000_000

HELD_OUT = 0.005
FEWEST = 20  # documents held out of a kind
KIND_CAPS = {
    "prose": 110,
    "documentation": 65,
    "code": 60,
    "gettext": 45,
    "short": 24,
    "chat": 24,
    "markdown": 20,
    "man": 18,
    "json": 18,
    "data": 18,
    "html": 14,
    "log": 14,
    "changelog": 10,
    "email": 10,
}  # megabytes
WEIGHTS = {"en": 12.0, "python": 4.0, "javascript": 3.0} | dict.fromkeys(("de", "fr", "es", "ru", "zh", "ja"), 2.0)


@dataclass
class Document:
    """A text of the corpus."""

    kind: str
    language: str
    licence: str
    source: str
    text: str
    file: str = ""

    @property
    def size(self) -> int:
        """Bytes in UTF-8."""
        return len(self.text.encode())


def fair(sizes: dict[str, float], total: float, weights: dict[str, float]) -> dict[str, float]:
    """Shares of a total by weight, none more than its size; what one can't use goes to the others."""
    shares: dict[str, float] = {}
    left = dict(sizes)
    while left:
        level = max(total - sum(shares.values()), 0) / sum(weights.get(name, 1.0) for name in left)
        small = [name for name, size in left.items() if size <= level * weights.get(name, 1.0)]
        if not small:
            return shares | {name: level * weights.get(name, 1.0) for name in left}
        for name in small:
            shares[name] = left.pop(name)
    return shares


def capped(documents: list[Document]) -> list[Document]:
    """At most so much of a kind; of a kind, of each language by weight; of a language, of each source alike."""
    rng = random.Random(0)
    kinds: dict[str, dict[str, dict[str, list[Document]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for document in documents:
        kinds[document.kind][document.language][document.source].append(document)
    kept = []
    for kind, languages in kinds.items():
        sizes = {name: float(sum(d.size for ds in by.values() for d in ds)) for name, by in languages.items()}
        for language, share in fair(sizes, KIND_CAPS[kind] * MEGABYTE, WEIGHTS).items():
            by = languages[language]
            for name, most in fair({n: float(sum(d.size for d in ds)) for n, ds in by.items()}, share, {}).items():
                rng.shuffle(by[name])
                size = 0
                for document in by[name]:
                    if size + document.size / 2 <= most:
                        kept.append(document)
                        size += document.size
    rng.shuffle(kept)
    return kept


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """For training and for validation: whole files are held out, so that no file has documents in both."""
    groups: dict[str, dict[tuple[str, str], list[Document]]] = defaultdict(lambda: defaultdict(list))
    for document in documents:
        groups[document.kind][document.source, document.file].append(document)
    held: set[tuple[str, str, str]] = set()
    for kind, files in groups.items():
        total = sum(d.size for ds in files.values() for d in ds)
        size, count = 0, 0
        for (source, file), found in sorted(files.items(), key=lambda pair: screen.hash_of("\n".join(pair[0]))):
            more = sum(d.size for d in found)
            if (size >= HELD_OUT * total and count >= FEWEST) or size >= 0.02 * total:
                break
            if more <= 0.01 * total:
                held.add((kind, source, file))
                size += more
                count += len(found)
    train: list[Document] = []
    valid: list[Document] = []
    for document in documents:
        (valid if (document.kind, document.source, document.file) in held else train).append(document)
    return train, valid


def write(path: Path, documents: list[Document]) -> None:
    """A JSON object a line, compressed."""
    part = path.with_suffix(".part")
    with zstandard.open(part, "wt", cctx=zstandard.ZstdCompressor(level=9), encoding="utf-8") as file:
        for document in documents:
            entry = {name: value for name, value in asdict(document).items() if name != "file"}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    part.replace(path)


def read(path: Path) -> Iterator[Document]:
    """The documents of a file that `write` wrote."""
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Document(**json.loads(line))


def render(train: list[Document], valid: list[Document]) -> str:
    """Bytes and documents by kind, language, licence and source, as Markdown."""
    lines = [
        "# The training corpus",
        "",
        "Written by `corpus.py`, which makes it anew from the packages in `sources/`. Nothing of the texts is here. No",
        "run of 13 words of a text that is measured in this repository is in it (`corpus.py check`).",
        "",
        f"{len(train):,} documents of {_bytes(train):,} bytes; held out: {len(valid):,} of {_bytes(valid):,}.",
    ]
    for title, key in (("kind", "kind"), ("language", "language"), ("licence", "licence"), ("source", "source")):
        rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for at, documents in ((0, train), (2, valid)):
            for document in documents:
                rows[getattr(document, key)][at] += document.size
                rows[getattr(document, key)][at + 1] += 1
        lines += ["", f"| {title} | bytes | documents | held out, bytes | documents |", "| --- |" + " ---: |" * 4]
        for name, row in sorted(rows.items(), key=lambda pair: -pair[1][0]):
            lines.append(f"| {name} | " + " | ".join(f"{cell:,}" for cell in row) + " |")
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for document in train:
        table[document.kind][document.language] += document.size
    lines += ["", "| kind | languages, MB |", "| --- | --- |"]
    for kind, sizes in sorted(table.items()):
        cells = ", ".join(f"{name} {size / MEGABYTE:.1f}" for name, size in sizes.most_common())
        lines.append(f"| {kind} | {cells} |")
    return "\n".join(lines) + "\n"


def _bytes(documents: list[Document]) -> int:
    return sum(document.size for document in documents)
