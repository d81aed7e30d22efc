"""Bits per token and byte of the evaluation texts under the exact LM, without and with an adapter.

    python training/evaluation.py                      # fetches the texts, into build/evaluation
    python training/evaluate.py [--adapter FILE] [--chunks 12] [--out build/training/evaluation.json]

Chunks of 400 tokens, each after the prefix and by itself. Converts the built-in model twice, half a minute each.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import data
import numpy as np

from memcodec import Codec
from memcodec.models import registry
from memcodec.models.adapter import FILE_NAME
from memcodec.models.gguf import FILE_NAME as GGUF_NAME


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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, help="instead of the built-in model's own")
    parser.add_argument("--texts", type=Path, default=data.ROOT / "evaluation", help="folder of .txt files")
    parser.add_argument("--chunks", type=int, default=data.CHUNKS, help="of each text, at most")
    parser.add_argument("--out", type=Path, help="for the numbers, as JSON")
    a = parser.parse_args()
    adapter = a.adapter or registry.resolve(registry.DEFAULT_MODEL).path / FILE_NAME
    texts = {path.stem: path.read_bytes() for path in sorted(a.texts.glob("[a-z]*.txt"))}
    with tempfile.TemporaryDirectory() as place:
        found = []
        for name, file in (("without", None), ("with", adapter)):
            codec = Codec.load(str(model_folder(Path(place) / name, file)), device="cpu")
            found.append({text: bits(codec, contents, a.chunks) for text, contents in texts.items()})
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
    if a.out:
        a.out.write_text(json.dumps({"without": found[0], "with": found[1]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
