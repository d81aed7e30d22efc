"""Token ids of the corpus, and batches drawn from them as the codec sees text: from anywhere, after the prefix.

    python training/data.py select BYTES   # about as much text as a run reads, into build/training/selected.jsonl.zst
    python training/data.py tokenize       # that, into build/training/tokens.safetensors (on the machine that trains)
    python training/data.py evaluation     # the texts that are evaluated, into build/training/evaluation.safetensors

A sequence begins at a random place of a document (at its start in three of ten), and has 20 to 2,000 tokens, short ones
as often as long ones on a logarithmic scale.
"""

import hashlib
import io
import json
import math
import queue
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from outputs import complete
from safetensors import safe_open
from safetensors.numpy import save_file
from transformer import Batch

ROOT = Path(__file__).resolve().parent.parent / "build"
TOKENIZER = ROOT / "training" / "tokenizer.json"
SELECTED = ROOT / "training" / "selected.jsonl.zst"
TOKENS = ROOT / "training" / "tokens.safetensors"
EVALUATION = ROOT / "training" / "evaluation.safetensors"
CHUNK = 400  # tokens of a sequence that is evaluated
CHUNKS = 12  # of a text
SHORTEST, LONGEST = 20, 2000  # tokens of a sequence
STEP = {"cuda": 65536, "cpu": 2048}  # tokens of a step, by device
AT_START = 0.3  # of the sequences begin where a document does

# How often a sequence is of a kind, and in how many of its sequences a kind of natural language is English.
MIX = {
    "prose": 0.28, "documentation": 0.09, "code": 0.17, "gettext": 0.09, "man": 0.015, "changelog": 0.015,
    "markdown": 0.05, "html": 0.035, "json": 0.06, "data": 0.04, "log": 0.05, "email": 0.012, "chat": 0.06,
    "short": 0.05, "generated": 0.02,
}  # fmt: skip
ENGLISH = {"prose": 0.6, "documentation": 0.45, "chat": 0.7, "short": 0.6}
OFTEN = {"python": 3.0, "javascript": 3.0} | dict.fromkeys(("de", "fr", "es", "ru", "zh", "ja"), 3.0)  # in its kind


@dataclass(frozen=True)
class Documents:
    """Documents one after the other. ids: uint16 [tokens]; starts: int64 [documents + 1]; group: uint16 [documents],
    the index of each one's name, "kind/language", in names."""

    ids: np.ndarray
    starts: np.ndarray
    group: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, documents: list[tuple[str, np.ndarray]]) -> "Documents":
        """From pairs of name and token ids."""
        names = sorted({name for name, _ in documents})
        number = {name: i for i, name in enumerate(names)}
        starts = np.cumsum([0] + [len(ids) for _, ids in documents], dtype=np.int64)
        ids = np.concatenate([ids.astype(np.uint16) for _, ids in documents])
        return cls(ids, starts, np.array([number[name] for name, _ in documents], dtype=np.uint16), names)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"ids": self.ids, "starts": self.starts, "group": self.group}
        with complete(path) as part:
            save_file(tensors, part, {"names": json.dumps(self.names)})

    @classmethod
    def load(cls, path: Path) -> "Documents":
        """Read what `save` wrote."""
        with safe_open(path, "np") as file:
            names = json.loads(file.metadata()["names"])
            return cls(file.get_tensor("ids"), file.get_tensor("starts"), file.get_tensor("group"), names)

    @cached_property
    def sha256(self) -> str:
        """Of the texts, their order and their names."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        for values in (self.ids, self.starts, self.group):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def joined(self, other: "Documents") -> "Documents":
        """These documents and others."""
        names = self.names + [name for name in other.names if name not in self.names]
        moved = np.array([names.index(name) for name in other.names], dtype=np.uint16)[other.group]
        starts = np.concatenate([self.starts, self.starts[-1] + other.starts[1:]])
        return Documents(np.concatenate([self.ids, other.ids]), starts, np.concatenate([self.group, moved]), names)


def shares(documents: Documents, mix: Mapping[str, float] = MIX) -> np.ndarray:
    """How often a sequence is of each group, float64 [groups]. mix: of the kinds, as MIX."""
    sizes = np.bincount(documents.group, np.diff(documents.starts), len(documents.names))
    return shares_of(documents.names, sizes, mix)


def shares_of(names: list[str], sizes: np.ndarray, mix: Mapping[str, float] = MIX) -> np.ndarray:
    """The mix for kinds; in a kind, English as ENGLISH says, the rest by OFTEN and the square root of their size."""
    kinds = defaultdict(list)
    for i, name in enumerate(names):
        kinds[name.split("/")[0]].append(i)
    found = np.zeros(len(sizes))
    for kind, members in kinds.items():
        part = np.sqrt(sizes[members]) * [OFTEN.get(names[i].split("/")[1], 1.0) for i in members]
        english = np.array([names[i].endswith("/en") for i in members])
        if kind in ENGLISH and 0 < english.sum() < len(members):
            part = np.where(english, ENGLISH[kind], (1 - ENGLISH[kind]) * part / part[~english].sum())
        found[members] = mix.get(kind, 0.02) * part / part.sum()
    return found / found.sum()


class Sampler:
    """Yields endless batches of `tokens` tokens, which a thread prepares in advance.

    lengths: of a sequence, from and to, in tokens; mix: of the kinds, as MIX.
    """

    def __init__(
        self,
        documents: Documents,
        prefix: int,
        tokens: int,
        seed: int | list[int],
        lengths: tuple[int, int] = (SHORTEST, LONGEST),
        mix: Mapping[str, float] = MIX,
    ) -> None:
        self._documents = documents
        self._prefix = prefix
        self._tokens = tokens
        self._shortest, self._longest = lengths
        self._random = np.random.default_rng(seed)
        self._shares = np.cumsum(shares(documents, mix))
        order = np.argsort(documents.group, kind="stable")
        bounds = np.searchsorted(documents.group[order], np.arange(len(documents.names) + 1))
        sizes = np.diff(documents.starts)
        self._members = [order[a:b] for a, b in pairwise(bounds)]
        self._sizes = [np.cumsum(sizes[members]) for members in self._members]
        self._ready: queue.Queue[Batch] = queue.Queue(8)
        threading.Thread(target=self._fill, daemon=True).start()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._ready.get()

    def _fill(self) -> None:
        while True:
            self._ready.put(self._batch())

    def _sequence(self) -> np.ndarray:
        """Token ids of a piece of a document, without the prefix."""
        r = self._random
        group = min(int(np.searchsorted(self._shares, r.random())), len(self._members) - 1)
        sizes = self._sizes[group]
        document = self._members[group][np.searchsorted(sizes, r.integers(sizes[-1]), side="right")]
        start, end = self._documents.starts[document : document + 2]
        length = round(math.exp(r.uniform(math.log(self._shortest), math.log(self._longest))))
        if end - start > self._shortest and r.random() >= AT_START:
            start = r.integers(start, end - self._shortest)
        return self._documents.ids[start : min(start + length, end)]

    def _batch(self) -> Batch:
        sequences, left = [], self._tokens
        while left:
            sequences.append(self._sequence()[:left])
            left -= len(sequences[-1])
        return batch_of(sequences, self._prefix)


def batch_of(sequences: list[np.ndarray], prefix: int, tokens: int = 0) -> Batch:
    """Sequences of token ids, each after the prefix; the last token is only a target; padded to `tokens`."""
    lengths = [len(s) for s in sequences]
    padding = tokens - sum(lengths)
    while padding > 0:
        lengths.append(min(padding, LONGEST))
        padding -= lengths[-1]
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    targets = np.full(ends[-1], -1, dtype=np.int64)
    targets[: sum(len(s) for s in sequences)] = np.concatenate(sequences)
    inputs = np.concatenate([[prefix], np.maximum(targets[:-1], 0)])
    inputs[ends[:-1]] = prefix
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    made = [torch.from_numpy(x) for x in (inputs.astype(np.int64), targets, positions.astype(np.int64), ends)]
    return Batch(made[0], made[1], made[2], made[3], max(lengths))


def tokenize(texts: Iterable[tuple[str, str]]) -> Documents:
    """Documents of pairs of name and text, by the built-in model's tokenizer, on all cores."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.encode_special_tokens = True
    found: list[tuple[str, np.ndarray]] = []
    stream = iter(texts)
    while some := list(islice(stream, 4000)):
        for (name, _), encoding in zip(some, tokenizer.encode_batch_fast([t for _, t in some], False), strict=True):
            found.append((name, np.array(encoding.ids, dtype=np.uint16)))
    return Documents.of(found)


def read(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of name, "kind/language", and text of a file of corpus.py."""
    import zstandard

    with path.open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
            record = json.loads(line)
            yield f"{record['kind']}/{record['language']}", record["text"]


def select(most: int) -> None:
    """Write a random sample of the corpus to SELECTED: about `most` bytes, in the proportions that training reads."""
    import zstandard

    sizes = Counter[str]()
    for name, text in read(ROOT / "corpus" / "train.jsonl.zst"):
        sizes[name] += len(text.encode())
    names = list(sizes)
    wanted = dict(zip(names, most * shares_of(names, np.array([sizes[name] for name in names])), strict=True))
    random = np.random.default_rng(0)
    kept = Counter[str]()
    compressor = zstandard.ZstdCompressor(level=12, threads=2)
    with complete(SELECTED) as part, part.open("wb") as file, compressor.stream_writer(file) as out:
        for name, text in read(ROOT / "corpus" / "train.jsonl.zst"):
            if random.random() * sizes[name] < wanted[name]:
                kind, language = name.split("/")
                out.write(json.dumps({"kind": kind, "language": language, "text": text}, ensure_ascii=False).encode())
                out.write(b"\n")
                kept[name] += len(text.encode())
    print(f"{sum(sizes.values()):,} bytes, {sum(kept.values()):,} selected: {SELECTED.stat().st_size:,} compressed")
    for name in sorted(names, key=lambda name: -wanted[name])[:60]:
        print(f"{name:24} {sizes[name]:12,} {kept[name]:12,} {100 * wanted[name] / most:6.2f} %")


def evaluation() -> None:
    """Tokenize the texts that are evaluated: build/evaluation/*.txt, and what corpus.py held out."""
    texts = [(path.stem, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "evaluation").glob("[a-z]*.txt"))]
    held: dict[str, list[str]] = defaultdict(list)
    for name, text in read(ROOT / "corpus" / "valid.jsonl.zst"):
        if sum(map(len, held[name])) < 24_000:
            held[name].append(text[:3000])
    texts += [(f"held out: {name}", "\n".join(found)) for name, found in held.items() if sum(map(len, found)) > 10_000]
    tokenize(texts).save(EVALUATION)
    print(f"{len(texts)} texts")


def evaluated(path: Path, chunks: int = CHUNKS) -> dict[str, list[np.ndarray]]:
    """The first chunks of CHUNK tokens of each text that is evaluated, by name."""
    texts = Documents.load(path)
    found: dict[str, list[np.ndarray]] = {}
    for i, group in enumerate(texts.group):
        ids = texts.ids[texts.starts[i] : texts.starts[i + 1]]
        count = min(len(ids) // CHUNK, chunks)
        found[texts.names[group]] = [ids[n * CHUNK : (n + 1) * CHUNK].astype(np.int64) for n in range(count)] or [ids]
    return found


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["select", most]:
            select(int(most))
        case ["evaluation"]:
            evaluation()
        case ["tokenize"]:
            made = tokenize(read(SELECTED))
            made.save(TOKENS)
            print(f"{len(made.ids):,} tokens, {len(made.group):,} documents")
        case _:
            raise SystemExit(__doc__)
