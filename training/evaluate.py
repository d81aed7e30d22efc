"""Bits per token and byte of the evaluation texts under the exact LM, without and with an adapter.

    python training/evaluation.py                      # fetches the texts, into build/evaluation
    python training/evaluate.py [--adapter FILE] [--chunks 12] [--messages] [--out build/training/evaluation.json]

Chunks of 400 tokens, each after the prefix and without other context. Converts the built-in model twice, half a minute
each. With --messages, bytes of frames of the messages of benchmarks/messages.py too, without a primer and with one.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import data
import numpy as np

from memcodec import Codec
from memcodec.bench.messages import split
from memcodec.models import registry
from memcodec.models.adapter import FILE_NAME
from memcodec.models.gguf import FILE_NAME as GGUF_NAME
from memcodec.primer import Primer

MESSAGES = 60  # of each kind
PRIMER_TOKENS = 400


def model_folder(place: Path, adapter: Path | None) -> Path:
    """A model directory of the built-in model's float weights, with an adapter or without."""
    built_in = registry.resolve(registry.DEFAULT_MODEL).path
    place.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(built_in / name, place)
    (place / GGUF_NAME).symlink_to(built_in / GGUF_NAME)
    if adapter is not None:
        shutil.copy(adapter, place / FILE_NAME)
    return place


def bits(codec: Codec, text: bytes, chunks: int) -> tuple[float, int, int]:
    """Bits of the first chunks of a text, and how many tokens and bytes they have."""
    tokens = codec.model.tokenizer.encode(text.decode())[: chunks * data.CHUNK]
    whole = len(tokens) // data.CHUNK * data.CHUNK or len(tokens)
    tokens = tokens[:whole]
    pieces = np.array_split(tokens, max(1, whole // data.CHUNK))
    total = sum(float(codec.token_bits(piece).sum()) for piece in pieces)
    return total, len(tokens), len(codec.model.tokenizer.decode(tokens))


def frames(codec: Codec) -> dict[str, list[float]]:
    """Mean bytes of frames of each kind of messages, without a primer and with one."""
    sys.path.insert(0, str(data.ROOT.parent / "benchmarks"))
    from messages import KINDS

    found = {}
    for kind, made in KINDS.items():
        others, messages = split(made())
        primer = Primer.from_texts(others, PRIMER_TOKENS, codec)
        found[kind] = [
            sum(map(len, one.encode_frames(messages[:MESSAGES]))) / len(messages[:MESSAGES])
            for one in (codec, codec.with_primer(primer))
        ]
    return found


def render_frames(without: dict[str, list[float]], with_adapter: dict[str, list[float]]) -> str:
    """A table of mean bytes of frames."""
    lines = [f"{'':16}{'bytes a frame':>22}{'change':>10}{'with a primer':>22}{'change':>10}"]
    changes: list[list[float]] = [[], []]
    for kind, before in without.items():
        line = f"{kind:16}"
        for i, (old, new) in enumerate(zip(before, with_adapter[kind], strict=True)):
            changes[i].append(100 * (new / old - 1))
            line += f"{old:11.1f}{new:11.1f}{changes[i][-1]:+8.1f} %"
        lines.append(line)
    lines.append(f"{'mean':16}" + "".join(f"{'':22}{sum(some) / len(some):+8.1f} %" for some in changes))
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, help="instead of the built-in model's own")
    parser.add_argument("--texts", type=Path, default=data.ROOT / "evaluation", help="folder of .txt files")
    parser.add_argument("--chunks", type=int, default=data.CHUNKS, help="of each text, at most")
    parser.add_argument("--messages", action="store_true", help="frames of short messages too")
    parser.add_argument("--out", type=Path, help="for the numbers, as JSON")
    a = parser.parse_args()
    adapter = a.adapter or registry.resolve(registry.DEFAULT_MODEL).path / FILE_NAME
    texts = {path.stem: path.read_bytes() for path in sorted(a.texts.glob("[a-z]*.txt"))}
    if not texts:
        raise SystemExit(f"evaluate: error: {a.texts}: it has no .txt files: run training/evaluation.py")
    with tempfile.TemporaryDirectory() as place:
        found, framed = [], []
        for name, file in (("without", None), ("with", adapter)):
            codec = Codec.load(str(model_folder(Path(place) / name, file)), device="cpu")
            found.append({text: bits(codec, contents, a.chunks) for text, contents in texts.items()})
            framed.append(frames(codec) if a.messages else {})
    print(f"{'':16}{'bits a token':>22}{'bits a byte':>20}{'change':>10}")
    changes = []
    for text in texts:
        (before, tokens, size), (after, _, _) = found[0][text], found[1][text]
        changes.append(100 * (after / before - 1))
        print(
            f"{text:16}{before / tokens:11.4f}{after / tokens:11.4f}{before / size:10.4f}{after / size:10.4f}"
            f"{changes[-1]:+9.2f} %"
        )
    print(f"{'mean':16}{'':42}{sum(changes) / len(changes):+9.2f} %")
    if a.messages:
        print(render_frames(*framed))
    if a.out:
        numbers = {"without": found[0], "with": found[1], "frames without": framed[0], "frames with": framed[1]}
        a.out.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
