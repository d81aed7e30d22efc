"""The report in Markdown. All figures come from the results of run.py."""

from collections.abc import Iterable, Sequence
from typing import Any

import plots

from memcodec.bench import table
from memcodec.bench.comparison import BOUND, CONTEXT_BOUND, CONTEXT_MAX_ROW, LIMITS, Row

_MEASURED = """\
How it was measured. Each codec wrote a whole file to disk; the file was read back and decompressed, and the output
compared with the input. A single difference ends the run. Sizes are file sizes. **The model is not counted**, and
neither is the dictionary of zstd, which was trained on the other texts of the set in full length. The times of memcodec
are from one run, without the start (about a second) and without the encoder's own verification. With verification,
which is the default, encoding takes about twice as long. The times of the other codecs are medians of
at least five runs. No time includes writing or reading the file. The peak is the resident memory of the whole process:
for memcodec with the model in it, for the others with a Python interpreter that holds nothing else. The language model
may have seen any of these texts in its training.

The number after memcodec is the memory share. The context is the default, auto, with groups of up to 600 tokens in
texts as short as these. Two rows, at a memory share of 0, have no context and the most context.
[docs/context.md](../docs/context.md) explains both.

The rows in brackets are limits and not codecs. *Bound* is the sum of -log2 p(token) of the exact LM over the same
chunks of 200 tokens. *Bound, context of 2048* is the same sum with the text before each token as context, in windows of
2,048 tokens that move by 1,024, so that each token sees at least 1,024 tokens if there are as many before it. The
difference is the cost of independent chunks."""

_OTHERS = (
    "Frames, primers and archives compared with zstd with a dictionary, on eight kinds of messages: "
    "[docs/messages.md](../docs/messages.md), measured by `benchmarks/messages.py`.\n\n"
    "![Bytes per message, by kind](../docs/messages/messages.png)\n\n"
    "Throughput by batch and threads, the exact LM compared with transformers, and memory over time for 1 MiB: "
    "[docs/speed.md](../docs/speed.md), measured by `benchmarks/speed.py` and `benchmarks/memory.py`. Contexts on "
    "whole texts: [docs/context.md](../docs/context.md), measured by `benchmarks/context.py`."
)
_PEERS = """\
Figures that others have published. They were **not measured here**, and not with the same model:

| codec | text, whole | published | model | source |
| --- | --- | --- | --- | --- |
| ts_zip | alice29 | 1.142 bits per byte | RWKV 169M; 1 MB/s on a large GPU | its page, bellard.org/ts_zip |
| Nacrith | alice29 | 0.918 bits per byte | SmolLM2-135M, base, float32; GTX 1050 Ti | github.com/st4ck/Nacrith-GPU |
| Nacrith | asyoulik | 16.3 % | the same | the same |
| llama-zip | book1 | 8.745x | Llama 3.1 8B, context of 8k tokens | github.com/AlexBuz/llama-zip |

Nacrith mixes the model with others that adapt to the text. Its encoder and decoder must compute the same results in
floating point."""


def render(found: dict[str, Any]) -> str:
    """The whole report."""
    sections = [
        "# Benchmark",
        _head(found),
        "## Bytes by codec and text",
        _matrix(found["rows"], lambda row: f"{row.file_bytes:,.0f}", found["texts"]),
        "Ratios (original bytes by file bytes):",
        _matrix(found["rows"], lambda row: f"{row.ratio:.2f}"),
        "![Bytes by codec](bytes.png)",
        _MEASURED,
        "## All texts together",
        _totals(found["rows"]),
        _break_even(found),
        "## Where the bytes go",
        _parts(found["rows"]),
        "## By input size",
        _sizes(found["sizes"]),
        "## What the memory is worth",
        _curve(found),
        "![Rate and distortion](rate-distortion.png)",
        _efforts(found),
        "## The prompt site",
        _prompt(found),
        "## What a cold start costs",
        _positions(found),
        "![Bits per token by position](positions.png)",
        "## Short messages, speed and memory",
        _OTHERS,
        "## Peers",
        _PEERS,
        "## Texts",
        _texts(found),
    ]
    return "\n\n".join(sections) + "\n"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. All columns except the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(found: dict[str, Any]) -> str:
    machine, model = found["machine"], found["model"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    others = ", ".join(dict.fromkeys(version for version in found["rivals"].values() if version))
    return (
        f"{found['date']}, {machine['processor']}, {machine['threads']} threads, {machine['system']}, "
        f"Python {machine['python']}; {versions}; rivals from {others}. Model {model['name']}, identity "
        f"{model['identity'][:16]}; codec sources {machine['code']}. Written by `make bench`, which also writes "
        "these figures and more to benchmarks/results/report.json."
    )


def _codecs(rows: Sequence[Row]) -> list[str]:
    """Codecs by their total size, largest first. Codecs that were not run on all texts come last."""
    texts = {row.text for row in rows}
    names = dict.fromkeys(row.codec for row in rows)
    size = {name: sum(row.file_bytes for row in rows if row.codec == name) for name in names}
    missing = {name: len(texts) - sum(row.codec == name for row in rows) for name in names}
    return sorted(names, key=lambda name: (missing[name], -size[name]))


def _label(codec: str) -> str:
    return f"({codec})" if codec in LIMITS else f"**{codec}**" if codec.startswith("memcodec") else codec


def _matrix(rows: Sequence[Row], cell: Any, texts: Sequence[dict[str, Any]] = ()) -> str:
    names = list(dict.fromkeys(row.text for row in rows))
    cells = {(row.codec, row.text): cell(row) for row in rows}
    body = [[_label(codec), *(cells.get((codec, name), "-") for name in names)] for codec in _codecs(rows)]
    original = [["original", *(f"{text['bytes']:,}" for text in texts)]] if texts else []
    return grid(["", *names], original + body)


def _totals(rows: Sequence[Row]) -> str:
    body = []
    for codec in _codecs(rows):
        some = [row for row in rows if row.codec == codec]
        original, size = sum(row.original_bytes for row in some), sum(row.file_bytes for row in some)
        speeds = []
        for way in ("encode", "decode"):
            seconds = [row.result[f"{way}_seconds"] for row in some if f"{way}_seconds" in row.result]
            speeds.append(table.speed(original / sum(seconds) if seconds else None))
        peaks = [row.peak for row in some if row.peak]
        peak = f"{max(peaks) / 1e6:,.0f} MB" if peaks else "-"
        figures = [f"{size:,.0f}", f"{original / size:.2f}", f"{8 * size / original:.3f}"]
        body.append([_label(codec), *figures, *speeds, peak])
    return grid(["", "bytes", "ratio", "bits per byte", "encode", "decode", "peak memory"], body)


def _break_even(found: dict[str, Any]) -> str:
    even, model = found["break_even"], found["model"]["download_bytes"]
    against = (
        f"The model is a download of {model:,} bytes. Compared with zstd -19 of the whole English texts (not of their "
        "beginnings, because zstd compresses longer texts better)"
    )
    if even["bytes"] is None:
        return f"{against}, memcodec at memory share 0.1 never saves as many bytes."
    return (
        f"{against}, memcodec at memory share 0.1 saves as many bytes from **{even['bytes'] / 1e6:,.0f} MB** of such "
        "text on. For less text, zstd is smaller if the model is counted."
    )


def _parts(rows: Sequence[Row]) -> str:
    bounds = {(row.codec, row.text): row.file_bytes for row in rows if row.codec in LIMITS}
    body = []
    for row in sorted((row for row in rows if row.codec.startswith("memcodec")), key=lambda row: (row.text, row.codec)):
        parts = row.result["parts"]
        bound = bounds[CONTEXT_BOUND if row.codec == CONTEXT_MAX_ROW else BOUND, row.text]
        memory, fixes, stored = (parts.get(name, 0) for name in ("memories", "corrections", "stored"))
        share = "-" if stored else f"{(memory + fixes) / bound:.3f}"
        seconds = [f"{row.result[f'{way}_seconds']:.1f}" for way in ("encode", "decode")]
        figures = [memory, fixes, stored, row.file_bytes - memory - fixes - stored]
        sizes = [f"{size:,.0f}" for size in (row.file_bytes, *figures, bound)]
        body.append([f"{row.text}, {row.codec.removeprefix('memcodec ')}", *sizes, share, *seconds])
    head = ["text, memory share", "file", "memory", "corrections", "stored", "container", "bound",
            "memory and corrections / bound", "encode, s", "decode, s"]  # fmt: skip
    about = (
        "Bytes. The container is everything except memory, corrections and stored spans. The bound is that of the same "
        "chunks, and for context max that of a context of 2048. It does not include the prior for the first tokens of "
        "a group."
    )
    return about + "\n\n" + grid(head, body)


def _sizes(rows: Sequence[Row]) -> str:
    sizes = list(dict.fromkeys(row.original_bytes for row in rows))
    names = sorted(
        dict.fromkeys(row.codec for row in rows),
        key=lambda name: -sum(row.file_bytes for row in rows if row.codec == name),
    )
    cells = {(row.codec, row.original_bytes): f"{row.file_bytes:,.0f} ({row.ratio:.2f})" for row in rows}
    body = [[_label(name), *(cells.get((name, size), "-") for size in sizes)] for name in names]
    what = f"The beginning of {rows[0].text}, followed by the other English texts where it is too short"
    return f"{what}: bytes, with the ratio in brackets.\n\n" + grid(["", *(f"{size:,} bytes" for size in sizes)], body)


def _curve(found: dict[str, Any]) -> str:
    head = [
        "memory share", "memory", "corrections", "both", "file, bytes", "efficiency", "tokens right without correction",
    ]  # fmt: skip
    text, curve = found["texts"][0], found["curve"]
    stored = [f"{point['share']:g}" for point in curve if point["tokens"] != curve[0]["tokens"]]
    note = f"\n\nAt share {', '.join(stored)}, a part of the text was stored, and is not included." if stored else ""
    return (
        f"{text['name']}, {text['bytes']:,} bytes; bits per token. Efficiency is the number of bits of corrections "
        "that the memory saves, divided by its own bits; an ideal memory has 1. Tokens right are those that greedy "
        "decoding under the memory reproduces.\n\n"
        + grid(head, [[f"{point['share']:g}", *_worth(point)] for point in curve])
        + note
    )


def _efforts(found: dict[str, Any]) -> str:
    head = [
        "search effort", "memory", "corrections", "both", "file, bytes", "efficiency", "tokens right", "encoding, s",
    ]  # fmt: skip
    rows = [[f"{e['effort']:,}", *_worth(e), f"{e['encode_seconds']:.1f}"] for e in found["efforts"]]
    return "Search effort (states tried per token) at memory share 0.1, for the same text:\n\n" + grid(head, rows)


def _worth(point: dict[str, Any]) -> list[str]:
    efficiency = "-" if point["efficiency"] is None else f"{point['efficiency']:.2f}"
    bits = [f"{point[name]:.3f}" for name in ("memory", "corrections", "total")]
    return [*bits, f"{point['file_bytes']:,}", efficiency, f"{100 * point['hits']:.1f}%"]


def _prompt(found: dict[str, Any]) -> str:
    row = found["prompt"]
    about = f"The first {found['prompt_bytes']} bytes of {found['texts'][0]['name']}, without corrections: "
    if isinstance(row, str):
        return f'{about}the encoder refused, with the error "{row}".'
    result = row.result
    return (
        f"{about}{result['tokens']} tokens in {result['memory_bytes']:,} bytes of memory, a file of "
        f"{row.file_bytes:,.0f} bytes (zstd -19: {found['prompt_zstd']:,}), encoded in "
        f"{result['encode_seconds']:.0f} s, decoded in {result['decode_seconds']:.1f} s. At this site the memory is an "
        "embedding from which the text can be read back; with a model of this size it does not save bytes."
    )


def _positions(found: dict[str, Any]) -> str:
    bits, count = plots.position_bits(found)
    spans = [(0, 1), (1, 2), (2, 5), (5, 10), (10, 25), (25, 50), (50, 100), (100, 150), (150, len(bits))]
    known = [(a, b) for a, b in spans if count[a:b].sum()]
    names = [str(a + 1) if b == a + 1 else f"{a + 1}-{b}" for a, b in known]
    values = [f"{bits[a:b].sum() / count[a:b].sum():.2f}" for a, b in known]
    return "Bits per token under the model, by position in the chunk, all texts:\n\n" + grid(
        ["position", *names], [["bits per token", *values]]
    )


def _texts(found: dict[str, Any]) -> str:
    body = [
        [t["name"], t["about"], f"{t['bytes']:,}", f"{t['whole_bytes']:,}", f"`{t['sha256']}`"] for t in found["texts"]
    ]
    return (
        "The beginnings of these texts were compressed; the last column has the first 16 digits of their SHA-256.\n\n"
        + grid(["", "from", "bytes", "whole", "SHA-256"], body)
    )
