"""How the bytes of a file become text: one function a format, named by `reader` in sources/*.toml.

A reader yields the documents of a file. The readers in MESSAGES yield many short messages instead, which the corpus
takes one by one and in runs, joined by the text that MESSAGES names.
"""

import ast
import bz2
import csv
import gzip
import html as entities
import io
import json as jsonlib
import lzma
import mailbox
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

Reader = Callable[[bytes], list[str]]

CHARSET = re.compile(rb"(?:charset|encoding|coding)[=:]\s*[\"']?([\w-]+)", re.IGNORECASE)
WESTERN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
BLOCKS = (
    "address|article|aside|blockquote|br|caption|dd|div|dl|dt|figure|figcaption|form|h[1-6]|hr|li|ol|p|pre|section|table|"
    "tbody|thead|tr|ul|body|center|title|para|sect[1-5]|chapter|item|note|listitem|term|row|steps|desc|screen|"
    "programlisting|verse|chapter|lg|l|lb|keyword|synopsis|entry"
)
NOISE = re.compile(
    r"<!--.*?-->|<!\[CDATA\[|\]\]>|<\?.*?\?>|<!DOCTYPE[^\[>]*(?:\[.*?\]\s*)?>|"
    r"<(script|style|head|nav|footer|header|noscript|svg|math|form|button)\b.*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
PRE = re.compile(r"(?is)(<(?:pre|screen|programlisting)\b[^>]*>.*?</(?:pre|screen|programlisting)\s*>)")
BREAK = re.compile(rf"<(/?)({BLOCKS})\b[^>]*>", re.IGNORECASE)
CHARACTERS = {"\\-": "-", "\\e": "\\", "\\ ": " ", "\\~": " "} | {
    f"\\({name}": char
    for name, char in {"aq": "'", "dq": '"', "bu": "*", "em": "-", "en": "-", "lq": '"', "rq": '"', "co": "(c)"}.items()
}
UNSEEN = re.compile(  # macros of man
    "TH|D[dt]|Os|ds|nr|de|if|ie|el|tr|so|ad|hy|ft|fam|ta|RS|RE|in|nf|fi|EX|EE|ne|UE|ME"
)
ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"})
TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
GONE = {"br": "\n", "li": "\n- ", "item": "\n- ", "listitem": "\n- ", "tr": "\n", "dd": "\n  ", "row": "\n", "l": "\n"}


def unpacked(data: bytes) -> bytes:
    """What a gzip, bzip2 or xz file holds; other bytes as they are."""
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if data[:3] == b"BZh":
        return bz2.decompress(data)
    if data[:6] == b"\xfd7zXZ\x00":
        return lzma.decompress(data)
    return data


def decoded(data: bytes, encoding: str = "utf-8") -> str:
    """Text of bytes: in the encoding, or else in Windows' Western one; nothing if that gives control characters."""
    data = unpacked(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        found = CHARSET.search(data[:3000])
        try:
            text = data.decode(found[1].decode() if found else "cp1252")
        except (UnicodeDecodeError, LookupError):
            return ""
        if WESTERN.search(text) or (not found and sum(char > "\x7f" for char in text) > 0.15 * len(text)):
            return ""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def text(data: bytes) -> list[str]:
    """A text as it stands."""
    return [decoded(data)]


def html(data: bytes) -> list[str]:
    """What a page says, without its markup."""
    return [unmarked(decoded(data))]


def markup(data: bytes) -> list[str]:
    """What an XML document says (DocBook, Mallard)."""
    return [unmarked(re.sub(r"<(info|bookinfo|articleinfo)\b.*?</\1>", "", decoded(data), flags=re.DOTALL))]


def unmarked(page: str) -> str:
    """Text of HTML or XML: a line or more a block, whitespace kept only where it was preformatted."""
    page = NOISE.sub(" ", page)
    parts = []
    for i, part in enumerate(PRE.split(page)):
        if i % 2:
            parts.append("\n\n" + entities.unescape(TAG.sub("", part)).strip("\n") + "\n\n")
            continue
        part = re.sub(r"\s+", " ", part)
        part = BREAK.sub(_break, part)
        parts.append(entities.unescape(TAG.sub("", part)))
    joined = "".join(parts).replace("\xa0", " ").replace("¶", "")
    joined = re.sub(r"[ \t]+\n", "\n", joined)
    joined = re.sub(r"\n (?=\S)", "\n", joined)
    joined = re.sub(r"\n- \s*", "\n- ", joined)
    return re.sub(r"\n{3,}", "\n\n", joined).strip()


def _break(found: re.Match[str]) -> str:
    closing, name = found[1], found[2].lower()
    if closing:
        return "\n" if name in GONE else "\n\n"
    return GONE.get(name, "\n\n")


def man(data: bytes) -> list[str]:
    """A manual page as a reader sees it, nearly: the macros of man and mdoc are dropped, not carried out."""
    lines = []
    for line in decoded(data).split("\n"):
        if line.startswith(('.\\"', "'\\\"", "'", '\\"')):
            continue
        if line.startswith("."):
            macro, _, rest = line[1:].strip().partition(" ")
            seen = _macro(macro, rest.replace('"', ""))
            if seen is None:
                continue
            line = seen
        lines.append(_escapes(line))
    return [re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()]


def _macro(macro: str, rest: str) -> str | None:
    if macro in ("SH", "Sh"):
        return f"\n{rest}\n"
    if macro in ("SS", "Ss"):
        return f"\n   {rest}"
    if macro in ("PP", "P", "LP", "Pp", "sp", "TP", "HP"):
        return ""
    if macro in ("IP", "It"):
        return f"\n{rest}"
    if UNSEEN.fullmatch(macro):
        return None
    return rest or None


def _escapes(line: str) -> str:
    line = re.sub(r"\\f(?:\[\w*\]|\(..|.)|\\s[-+]?\d|\\&|\\/|\\,|\\\||\\c|\\%", "", line)
    line = re.sub(r"\\\[u([0-9A-F]{4,5})\]", lambda m: chr(int(m[1], 16)), line)
    for code, char in CHARACTERS.items():
        line = line.replace(code, char)
    return re.sub(r"\\[(\[*].\w*\]?", "", line)


# ---- messages


def fortune(data: bytes) -> list[str]:
    """Fortunes: messages between lines of one percent sign."""
    return [part.strip("\n") for part in re.split(r"^%+\s*$", decoded(data), flags=re.MULTILINE)]


def lines(data: bytes) -> list[str]:
    """A message a line; comments left out."""
    return [line for line in decoded(data).split("\n") if line.strip() and not line.startswith("#")]


def paragraphs(data: bytes) -> list[str]:
    """A message a paragraph."""
    return [part.strip("\n") for part in re.split(r"\n\s*\n", decoded(data)) if part.strip()]


def whole(data: bytes) -> list[str]:
    """A file as one message."""
    return [decoded(data).strip()]


def entries(data: bytes) -> list[str]:
    """Entries of a dictionary in the format of dictd: a line at the margin, indented lines below it."""
    return [part.rstrip() for part in re.split(r"\n(?=\S)", decoded(data)) if part.count(" ") > 3]


def pairs(data: bytes) -> Iterator[tuple[str, str]]:
    """Messages of a compiled catalogue and their translations. Raises ValueError if it is none."""
    data = unpacked(data)
    (magic,) = struct.unpack_from("<I", data)
    order = {0x950412DE: "<", 0xDE120495: ">"}.get(magic)
    if order is None:
        raise ValueError("not a compiled catalogue")
    count, original, translated = struct.unpack_from(f"{order}III", data, 8)
    for i in range(count):
        size, at = struct.unpack_from(f"{order}II", data, original + 8 * i)
        key = data[at : at + size]
        size, at = struct.unpack_from(f"{order}II", data, translated + 8 * i)
        if key:
            key = key.rpartition(b"\x04")[2].partition(b"\0")[0]
            yield key.decode("utf-8", "replace"), data[at : at + size].split(b"\0")[0].decode("utf-8", "replace")


def mo(data: bytes) -> list[str]:
    """The translations of a compiled catalogue."""
    return [translation for _, translation in pairs(data) if translation]


def mo_source(data: bytes) -> list[str]:
    """The messages of a compiled catalogue that were translated: English, as a rule."""
    return [message for message, translation in pairs(data) if translation]


def mo_entries(data: bytes) -> list[str]:
    """The entries of a compiled catalogue as they stand in a .po file."""
    return [f"msgid {_quoted(a)}\nmsgstr {_quoted(b)}" for a, b in pairs(data) if b]


def _quoted(message: str) -> str:
    parts = re.findall(r"[^\n]*\n|[^\n]+", message)
    escaped = [part.translate(ESCAPES) for part in parts]
    if len(escaped) < 2:
        return f'"{"".join(escaped)}"'
    return '""\n' + "\n".join(f'"{part}"' for part in escaped)


def translations(text: str) -> Iterator[str]:
    """The translations in the text of a gettext .po file, in its order."""
    found = re.findall(r'^msgstr(?:\[\d\])? ((?:".*"\n)+)', text, re.MULTILINE)
    for message in found[1:]:  # the first is the file's header
        try:
            yield "".join(ast.literal_eval(line) for line in message.splitlines())
        except (SyntaxError, ValueError):
            continue


def po(data: bytes) -> list[str]:
    """The translations of a gettext .po file."""
    return [message for message in translations(decoded(data) + "\n") if message]


def json_values(data: bytes) -> list[str]:
    """The strings of a JSON file that say something: no keys, no names of authors (@metadata)."""
    try:
        return list(_strings(jsonlib.loads(decoded(data))))
    except ValueError:
        return []


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if not str(key).startswith("@"):
                yield from _strings(part)


def quoted(data: bytes) -> list[str]:
    """What stands in quotation marks in a script or in JSON, if it has spaces: what somebody says."""
    script = decoded(data)
    if script.lstrip().startswith(("{", "[")):
        return [part for part in json_values(data) if " " in part]
    found = re.findall(r'"((?:[^"\\\n]|\\.)*)"|\[\[(.+?)\]\]', script)
    said = [(a or b).replace('\\"', '"').replace("\\n", "\n").replace("\\'", "'") for a, b in found]
    return [part for part in said if part.count(" ") >= 2]


def ticked(data: bytes) -> list[str]:
    """What stands in backquotes in the data of Endless Sky: one message each."""
    found = re.findall(r"`([^`\n]{20,})`", decoded(data))
    return [part.strip() for part in found]


def angled(data: bytes) -> list[str]:
    """What stands in angle brackets in a script, if it has spaces: what is said in GearHead."""
    found = re.findall(r"<([^<>\n]{12,}[.!?])>", decoded(data))
    return [part for part in found if part.count(" ") >= 2]


def urls(data: bytes) -> list[str]:
    """The addresses in a text."""
    return list(dict.fromkeys(re.findall(r"https?://[\w./#?=&%~+-]{8,150}[\w/]", entities.unescape(decoded(data)))))


def csv_strings(data: bytes) -> list[str]:
    """The cells of a table that say something."""
    try:
        rows = list(csv.reader(io.StringIO(decoded(data))))
    except csv.Error:
        return []
    return [re.sub(r" *<br */?> *", "\n", cell) for row in rows for cell in row if cell.count(" ") >= 2]


def percent(data: bytes) -> list[str]:
    """Entries between lines of four percent signs, each after a line with its name, as Dungeon Crawl has them."""
    parts = re.split(r"^%%%%.*$", decoded(data), flags=re.MULTILINE)
    said = [re.sub(r"\A\s*[^\n]+\n\n?", "", part) for part in parts]
    said = ["\n".join(line for line in part.split("\n") if not line.startswith(("#", ":", "{{"))) for part in said]
    return [part.strip() for part in said if len(part.strip()) > 30]


# ---- other


def sword(data: bytes) -> list[str]:
    """A book of a SWORD module: blocks of zlib, one after the other, of marked-up text."""
    parts, at = [], data.find(b"x\x9c")
    while at >= 0:
        unzip = zlib.decompressobj()
        try:
            parts.append(unzip.decompress(data[at : at + 1_000_000]))
            end = min(at + 1_000_000, len(data)) - len(unzip.unused_data)
            at = data.find(b"x\x9c", end if unzip.unused_data else at + 2)
        except zlib.error:
            at = data.find(b"x\x9c", at + 2)
    plain = b"\n".join(parts).replace(b"\0", b"\n").decode("utf-8", "replace")
    plain = re.sub(r"<note\b.*?</note>", "", plain, flags=re.DOTALL)
    plain = re.sub(r"<(?:/?(?:p|div|chapter|lg|l|title|list|item)|milestone|lb)\b[^>]*>", "\n", plain)
    return [re.sub(r"\n\s*\n+", "\n", entities.unescape(TAG.sub("", plain)))]


def mbox(data: bytes) -> list[str]:
    """The messages of a mailbox, with their headers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mbox"
        path.write_bytes(unpacked(data))
        return [decoded(message.as_bytes()) for message in mailbox.mbox(path)]


def rendered_json(data: bytes) -> list[str]:
    """JSON with an indent of two, whatever it was written with."""
    try:
        return [jsonlib.dumps(jsonlib.loads(decoded(data)), indent=2, ensure_ascii=False)]
    except ValueError:
        return []


def notebook(data: bytes) -> list[str]:
    """The cells of a notebook."""
    try:
        cells = jsonlib.load(io.BytesIO(data)).get("cells", [])
    except (ValueError, AttributeError):
        return []
    return ["\n\n".join("".join(cell.get("source", "")) for cell in cells)]


MESSAGES: dict[str, str | None] = {  # nothing: each alone
    "fortune": "\n%\n",
    "lines": "\n",
    "paragraphs": "\n\n",
    "whole": None,
    "dict": "\n",
    "mo": "\n",
    "mo_source": "\n",
    "mo_entries": "\n\n",
    "po": "\n",
    "json_values": "\n",
    "quoted": "\n",
    "ticked": "\n\n",
    "angled": "\n",
    "urls": "\n",
    "csv-strings": "\n",
    "percent": "\n\n",
}
_WHOLE = (text, html, markup, man, sword, mbox, rendered_json, notebook)
_GETTEXT = (mo, mo_source, mo_entries, po)
_PARTED = (fortune, lines, paragraphs, whole, json_values, quoted, ticked, angled, urls, percent)
READERS: dict[str, Reader] = {reader.__name__: reader for reader in (*_WHOLE, *_GETTEXT, *_PARTED)}
READERS["csv-strings"] = csv_strings
READERS["dict"] = entries
READERS["json"] = text
READERS["rst"] = READERS["markdown"] = text
