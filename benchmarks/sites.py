"""The two sites on the same passages: sizes of whole files, seconds, and whether the passages are restored.

    python benchmarks/sites.py

Passages are cut from random places of the built-in texts (or of the files given) and compressed with the default
settings, then at the prompt site without corrections (`pure`) in short chunks with several widths, and in chunks of
the default length with one bit per dimension and corrections. Times exclude the encoder's verification; every file is
decompressed and compared here. Writes sites.json and sites.md to --out.
"""

import json
import time
from typing import Any

import memory_tokens
import torch

from memcodec.codec import Codec
from memcodec.container import unpack
from memcodec.document.spans import zstd_size
from memcodec.errors import EncodeError
from memcodec.settings import Prompt

_COLUMNS = ("passage", "codec", "bytes", "memory", "corrections", "stored", "encode s", "decode s", "exact")


def main() -> None:
    """Run the comparison."""
    parser = memory_tokens.arguments(__doc__ or "")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a passage")
    parser.add_argument("--chunk-tokens", type=int, default=64, help="tokens of a chunk at the prompt site")
    parser.add_argument("--bits", default="16,4", help="bits per dimension, separated by commas")
    parser.add_argument("--steps", type=int, default=400, help="the most steps of a fit")
    parser.add_argument("--passages", type=int, default=1, help="passages in each language")
    args = parser.parse_args()
    codec = Codec.load(args.model, device=args.device, threads=args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    pieces = memory_tokens.cut(memory_tokens.read(codec, args.files), args.tokens, args.passages, seed=1)
    rows: list[dict[str, Any]] = []
    for language, ids in pieces:
        data = codec.tokenizer.decode(ids)
        rows.append({"passage": f"{language}, {len(data)} bytes", "codec": "zstd -19", "bytes": zstd_size(data)})
        ways: dict[str, dict[str, Any]] = {"readout (default)": {}}
        for bits in map(int, args.bits.split(",")):
            pure = Prompt(bits=bits, steps=args.steps, pure=True)
            ways[f"prompt, {bits} bits, pure"] = {"site": pure, "chunk_tokens": args.chunk_tokens}
        ways["prompt, 1 bit, corrections"] = {"site": Prompt(bits=1, steps=args.steps)}
        for name, settings in ways.items():
            rows.append({"passage": rows[-1]["passage"], "codec": name} | measure(codec, data, settings))
            print(rows[-1], flush=True)
            about = {"model": codec.name, "device": memory_tokens.device_name(codec), "rows": rows}
            (args.out / "sites.json").write_text(json.dumps(about, indent=1))
            (args.out / "sites.md").write_text(table(rows))


def measure(codec: Codec, data: bytes, settings: dict[str, Any]) -> dict[str, Any]:
    """Compress, decompress and compare. If the pure form fails, the row has its error."""
    began = time.monotonic()
    try:
        blob = codec.encode(data, verify=False, **settings)
    except EncodeError as error:
        return {"encode s": time.monotonic() - began, "exact": str(error).split(" (")[0]}
    encoded = time.monotonic()
    exact = codec.decode(blob) == data
    decoded = time.monotonic()
    parts = unpack(blob).sizes
    sizes = {"bytes": len(blob), "memory": parts.get("memories", 0)}
    sizes |= {name: parts.get(name, 0) for name in ("corrections", "stored")}
    times = {"encode s": encoded - began, "decode s": decoded - encoded}
    return sizes | times | {"exact": "yes" if exact else "NO"}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; cells that do not apply are empty."""

    def cell(value: Any) -> str:
        return f"{value:.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value

    lines = ["| " + " | ".join(_COLUMNS) + " |", "| " + " | ".join("---" for _ in _COLUMNS) + " |"]
    lines += ["| " + " | ".join(cell(row.get(name, "")) for name in _COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
