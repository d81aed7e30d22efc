"""Short messages of several kinds: frames, with and without a primer, and archives, compared with zstd and brotli.

    python benchmarks/messages.py [--out FOLDER] [--only KIND,KIND]

--only measures some kinds again and keeps the other results in --out, with their date and machine. With --only -, only
the lengths of primers and the LM alone are measured.

There are 200 messages of each kind that neither the primer nor zstd's dictionary has seen; both are trained on 200
others. Writes messages.json, messages.md and messages.png to --out. The messages are made by a seeded generator, or
taken from pinned packages (corpora.py).
"""

import argparse
import ast
import json
import random
import re
import time
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import corpora
import matplotlib
import numpy as np

from memcodec.bench import messages
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.lm.sequences import ON_CPU, SequenceInput
from memcodec.primer import Primer

matplotlib.use("Agg")

import matplotlib.pyplot as plt

COUNT = 2 * messages.MOST
COMPARED = 1000  # messages for the comparison with the LM alone
ARCHIVED = "log lines"  # the kind for which an archive is measured too


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default=",".join(KINDS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "messages.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"kinds": {}}
    asked = [] if options.only == "-" else options.only.split(",")
    if unknown := set(asked) - set(KINDS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: the kinds are {', '.join(KINDS)}")
    now = {"date": today(), "machine": machine()}
    old = {name for name, kind in found["kinds"].items() if "date" not in kind}  # with the magic number of zstd
    if old - set(asked):
        raise SystemExit(f"messages: error: {path}: an earlier version of this script wrote it: give another --out")
    found["kinds"] = {name: kind for name, kind in found["kinds"].items() if name not in old}
    codec = Codec.load(device="cpu")
    for kind in asked:
        train, test = messages.split(KINDS[kind]())
        found["kinds"][kind] = messages.measure(codec, train, test, archive=kind == ARCHIVED) | now
        print(messages.render(kind, found["kinds"][kind]), flush=True)
        write(found, options.out)
    draw(found, options.out / "messages.png")
    found["lengths"] = by_length(codec)
    found["beside_the_lm"] = beside_the_lm(codec)
    found |= now  # of these two
    write(found, options.out)


def write(found: dict[str, Any], folder: Path) -> None:
    """Write the kinds, in the order of KINDS, as JSON and Markdown."""
    found["kinds"] = {kind: found["kinds"][kind] for kind in KINDS if kind in found["kinds"]}
    (folder / "messages.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "messages.md").write_text(render(found))


def by_length(codec: Codec) -> list[dict[str, float]]:
    """Sizes and speed of log lines by the length of the primer, which consists of the first lines, without training."""
    train, test = messages.split(log_lines())
    rows = []
    for tokens in (0, 100, 400, 1600):
        primed = codec.with_primer(Primer.from_texts(train, tokens, codec) if tokens else None)
        primed.encode_frames(test[:2])  # reads the primer
        start = time.perf_counter()
        frames = primed.encode_frames(test)
        encoded = time.perf_counter()
        primed.decode_frames(frames)
        decoded = time.perf_counter()
        rows.append(
            {"tokens": tokens, "bytes": sum(map(len, frames)) / len(test), "encode": len(test) / (encoded - start),
             "decode": len(test) / (decoded - encoded)}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def beside_the_lm(codec: Codec) -> list[dict[str, float]]:
    """Seconds for 1,000 log lines as frames, and for the LM alone on the same tokens in the same batches."""
    lines = log_lines(COMPARED + 160)
    rows = []
    for tokens in (0, 400):
        primed = codec.with_primer(Primer.from_texts(lines[COMPARED:], tokens, codec) if tokens else None)
        primed.encode_frames(lines[:2])
        ids = [primed.tokenizer.encode(line.decode()) for line in lines[:COMPARED]]
        works = (
            partial(lm_passes, primed, ids), partial(primed.encode_frames, lines[:COMPARED]),
            partial(lm_steps, primed, ids), partial(primed.decode_frames, primed.encode_frames(lines[:COMPARED])),
        )  # fmt: skip
        seconds = []
        for work in works:
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        names = ("lm_passes", "encode", "lm_steps", "decode")
        rows.append({"primer_tokens": tokens} | dict(zip(names, seconds, strict=True)))
        print(rows[-1], flush=True)
    return rows


def lm_passes(codec: Codec, ids: list[np.ndarray]) -> None:
    """Full passes over messages, with all logits."""
    lm, left = codec.lm, list(ids)
    while left:
        count, rows = 0, 0
        while count < len(left) and (rows + len(left[count]) <= ON_CPU.rows or not count):
            rows += len(left[count])
            count += 1
        some, left = left[:count], left[count:]
        sequences = lm.new_sequences(count, len(lm.prefix) + max(map(len, some)), rows)
        sequences.forward([SequenceInput(slot, tokens[:-1]) for slot, tokens in enumerate(some)])
        for start in range(0, rows - count, ON_CPU.head_rows):
            sequences.logits(slice(start, min(start + ON_CPU.head_rows, rows - count)))


def lm_steps(codec: Codec, ids: list[np.ndarray], batch: int = 64) -> None:
    """Cached steps over messages, `batch` at a time, the long ones first."""
    lengths = sorted(map(len, ids), reverse=True)
    lm = codec.lm
    for part in np.array_split(np.array(lengths), -(-len(lengths) // batch)):
        sequences = lm.new_sequences(len(part), len(lm.prefix) + int(part[0]), len(part))
        for t in range(1, int(part[0])):
            live = int((part > t).sum())
            sequences.step(np.full(live, 100))
            sequences.logits(slice(None, live))


# ---- the messages


def log_lines(count: int = COUNT) -> list[bytes]:
    """JSON log lines of a web service."""
    rng, found = random.Random(1), []
    for number in range(count):
        moment = datetime(2026, 3, 14, 9) + timedelta(milliseconds=7000 * number + rng.randrange(7000))
        record = {
            "ts": moment.isoformat(timespec="milliseconds") + "Z",
            "level": rng.choice(["INFO", "INFO", "INFO", "WARN", "ERROR"]),
            "method": rng.choice(["GET", "GET", "POST", "DELETE"]),
            "path": rng.choice(["/api/items", "/api/cart", "/login", "/api/users"]) + f"/{rng.randrange(5000)}",
            "status": rng.choice([200, 200, 200, 201, 404, 500]),
            "ms": rng.randrange(2, 900),
            "user": f"u{rng.randrange(100000):05}",
        }
        found.append(json.dumps(record).encode())
    return found


def records() -> list[bytes]:
    """JSON records of a shop."""
    rng, found = random.Random(2), []
    colours, things = ("red", "dark blue", "grey", "olive"), ("lamp", "desk", "chair", "shelf", "rug", "mirror")
    for number in range(COUNT):
        colour, thing = rng.choice(colours), rng.choice(things)
        record = {
            "id": 10_000 + number,
            "name": f"{colour} {thing}",
            "price": round(rng.uniform(5, 400), 2),
            "currency": rng.choice(["EUR", "USD"]),
            "stock": rng.randrange(80),
            "tags": rng.sample(["home", "office", "sale", "new", "wood", "metal"], 2),
            "dimensions": {"w": rng.randrange(20, 200), "h": rng.randrange(20, 200), "d": rng.randrange(10, 90)},
        }
        found.append(json.dumps(record).encode())
    return found


def chat() -> list[bytes]:
    """Direct speech of a novel, and quotations in proceedings: short sentences, as in a chat."""
    texts = (_canterbury("alice29"), _canterbury("lcet10"))
    found = [" ".join(quote.split()) for text in texts for quote in re.findall(r"`([^`']{20,160}[.!?,])'", text)]
    return [quote.encode() for quote in found[:COUNT]]


def prose() -> list[bytes]:
    """Pieces of English prose of about 300 bytes: whole sentences of two books."""
    found: list[bytes] = []
    for name in ("lcet10", "alice29"):
        piece = ""
        for sentence in re.split(r"(?<=[.!?]) +", " ".join(_canterbury(name)[3000:].split())):
            piece = f"{piece} {sentence}".strip()
            if len(piece) >= 250:
                if len(piece) < 400:
                    found.append(piece.encode())
                piece = ""
    random.Random(3).shuffle(found)
    return found[:COUNT]


def urls() -> list[bytes]:
    """Addresses in the sources of a framework."""
    found: dict[str, None] = {}
    with zipfile.ZipFile(corpora.fetch(corpora.DJANGO)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith((".py", ".txt", ".html", ".js")):
                text = wheel.read(name).decode("utf-8", "ignore")
                found |= dict.fromkeys(re.findall(r"https?://[\w./#?=&%~+-]{12,150}[\w/]", text))
    listed = list(found)
    random.Random(4).shuffle(listed)
    return [url.encode() for url in listed[:COUNT]]


def gettext(language: str) -> list[bytes]:
    """Entries of a .po file: translations with the English text."""
    found: dict[str, None] = {}
    with zipfile.ZipFile(corpora.fetch(corpora.DJANGO)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith(f"/locale/{language}/LC_MESSAGES/django.po"):
                for entry in re.findall(
                    r"msgid (.+?)\nmsgstr (.+?)\n\n", wheel.read(name).decode() + "\n\n", re.DOTALL
                ):
                    english, translated = (_joined(part) for part in entry)
                    if english and translated and 30 <= len(english) + len(translated) <= 400:
                        found[f'msgid "{english}"\nmsgstr "{translated}"'] = None
    listed = list(found)
    random.Random(5).shuffle(listed)
    return [entry.encode() for entry in listed[:COUNT]]


def _joined(lines: str) -> str:
    try:
        return "".join(ast.literal_eval(line) for line in lines.splitlines() if line.startswith('"'))
    except (SyntaxError, ValueError):
        return ""


def _canterbury(name: str) -> str:
    return corpora.contents(next(corpus for corpus in corpora.CORPORA if corpus.name == name)).decode("latin-1")


KINDS: dict[str, Callable[[], list[bytes]]] = {
    "log lines": log_lines,
    "JSON records": records,
    "English prose": prose,
    "chat": chat,
    "URLs": urls,
    "gettext Spanish": lambda: gettext("es"),
    "gettext Russian": lambda: gettext("ru"),
    "gettext German": lambda: gettext("de"),
}


# ---- the results


def render(found: dict[str, Any]) -> str:
    """The results in Markdown: bytes per message by method, and the effect of a primer."""
    measured: dict[str, list[str]] = {}
    for name, kind in found["kinds"].items():
        measured.setdefault(f"{kind['date']}, {kind['machine']['processor']}", []).append(name)
    lines = [f"{when}: {', '.join(names)}." for when, names in measured.items()]
    lines += ["Bytes per message, including checksums, without the magic number of zstd.", ""]
    ways = list(dict.fromkeys(line["way"] for kind in found["kinds"].values() for line in kind["lines"]))
    short = [way.removeprefix("memcodec ") for way in ways]
    lines.append("| | messages | " + " | ".join(short) + " | frames with primer / zstd with dictionary |")
    lines.append("| --- |" + " ---: |" * (len(ways) + 2))
    for name, kind in found["kinds"].items():
        sizes = {line["way"]: line["total_bytes"] for line in kind["lines"]}
        cells = [f"{sizes[way] / kind['messages']:.1f}" if way in sizes else "-" for way in ways]
        best = sizes.get("zstd -19, dictionary")
        cells.append(f"{sizes['memcodec frames, primer'] / best:.2f}" if best else "-")
        lines.append(f"| {name} | {kind['messages']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| messages per second | tokens of the primer | encode, no primer | decode, no primer | encode, primer | "
        "decode, primer | archive: bytes over frames |",
    ]
    lines.append("| --- |" + " ---: |" * 6)
    for name, kind in found["kinds"].items():
        rows, count = {line["way"]: line for line in kind["lines"]}, kind["messages"]
        speeds = [
            f"{count / rows[way][f'{side}_seconds']:.0f}"
            for way in ("memcodec frames", "memcodec frames, primer")
            for side in ("encode", "decode")
        ]
        inside = "-"
        if archive := rows.get("memcodec archive, primer inside"):
            over = archive["total_bytes"] - kind["bare_frame_bytes"] - kind["primer_bytes"]
            inside = f"{over / count:.1f}"
        lines.append(f"| {name} | {kind['primer_tokens']} | " + " | ".join(speeds) + f" | {inside} |")
    if "lengths" in found:
        lines += ["", f"{found['date']}, {found['machine']['processor']}.", ""]
        lines += ["| primer, tokens | bytes per message | encode, messages/s | decode, messages/s |"]
        lines.append("| ---: | ---: | ---: | ---: |")
        for row in found["lengths"]:
            lines.append(f"| {row['tokens']} | {row['bytes']:.1f} | {row['encode']:.1f} | {row['decode']:.1f} |")
        title = "tokens of the primer; seconds for 1,000 log lines"
        lines += ["", f"| {title} | encode: LM alone | encode | decode: LM alone | decode |"]
        lines.append("| ---: | ---: | ---: | ---: | ---: |")
        for row in found["beside_the_lm"]:
            seconds = (row["lm_passes"], row["encode"], row["lm_steps"], row["decode"])
            lines.append(f"| {row['primer_tokens']} | " + " | ".join(f"{s:.1f}" for s in seconds) + " |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the bytes per message by kind, as bars."""
    ways = ("zstd -19", "zstd -19, dictionary", "memcodec frames", "memcodec frames, primer")
    colors = ("#d9dee3", "#9aa3ad", "#7fa8d6", "#1f5fa8")
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    for i, (way, color) in enumerate(zip(ways, colors, strict=True)):
        sizes = []
        for kind in found["kinds"].values():
            total = {line["way"]: line["total_bytes"] for line in kind["lines"]}
            sizes.append(total.get(way, 0) / kind["messages"])
        axes.bar([x + 0.2 * i - 0.3 for x in range(len(sizes))], sizes, 0.19, label=way, color=color)
    axes.set_xticks(range(len(found["kinds"])), list(found["kinds"]), rotation=20, ha="right")
    axes.set_ylabel("bytes per message")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
