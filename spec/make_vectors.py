"""Write missing test vectors of the format: python spec/make_vectors.py.

Files must decode forever, so existing vectors are never changed.
"""

from pathlib import Path
from typing import Any

from memcodec.codec import Codec
from memcodec.settings import Prompt, Readout

ENGLISH = """The lighthouse keeper had written the same sentence in his log for ten years: nothing to report, sea calm
enough. On the first night of the eleventh year he stopped, looked at the wet ink and crossed it out. Somewhere beyond
the reef a ship was ringing its bell, slowly, as if whoever pulled the rope had all the time in the world. He counted
the strokes. There were seven, then a silence, then seven again. He lit the second lamp, which the regulations allowed
only in fog, and went down the stairs two at a time. "If they ask," he told the dog, "we saw nothing." The dog, who had
heard the bell long before he did, was already at the door.
"""
MIXED = (
    "Él dijo: «mañana será otro día». Она ответила: «может быть». 彼は黙っていた。🙂\r\n\tx = {'a': [1, 2.5, None]}\n"
)

# The model knows this text by heart: even under a random memory, corrections are smaller than zstd's output.
DECLARATION = """We hold these truths to be self-evident, that all men are created equal, that they are endowed by their
Creator with certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness. That to secure
these rights, Governments are instituted among Men, deriving their just powers from the consent of the governed, That
whenever any Form of Government becomes destructive of these ends, it is the Right of the People to alter or to abolish
it, and to institute new Government, laying its foundation on such principles and organizing its powers in such form, as
to them shall seem most likely to effect their Safety and Happiness.
"""

# References to earlier text and into a stored span, one after another.
REPEATING = (
    ENGLISH[:420].encode() + bytes(range(200, 230)) + (MIXED * 2 + ENGLISH[20:300] + MIXED + ENGLISH[7:190]).encode()
)

VECTORS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "empty": (b"", {}),
    "stored": (bytes(range(256)), {}),
    "share-0": (ENGLISH.encode(), {"site": Readout(0)}),
    "share-0.1": (ENGLISH.encode(), {}),
    "share-0.5-chunks-50": (ENGLISH.encode(), {"site": Readout(0.5), "chunk_tokens": 50}),
    "mixed": (ENGLISH.encode() + b"\xff\xfe\x00" + (ENGLISH[:200] + MIXED).encode(), {"references": False}),
    "context-30": (ENGLISH.encode(), {"chunk_tokens": 40, "context": 30}),
    "context-max": (
        ENGLISH.encode() + b"\xff\xfe\x00" + (MIXED + ENGLISH[:200]).encode(),
        {"context": "max", "references": False},
    ),
    "references": (REPEATING, {}),
    "prompt-pure": (ENGLISH[:140].encode(), {"site": Prompt(None, 4, 300, pure=True), "chunk_tokens": 12}),
    "prompt-corrected": (DECLARATION.encode(), {"site": Prompt(bits=1, steps=30)}),
}


def main() -> None:
    """Encode each missing vector with the built-in model."""
    folder = Path(__file__).parent / "vectors"
    codec = Codec.load(device="cpu")
    for name, (data, settings) in VECTORS.items():
        if (folder / f"{name}.memz").exists():
            continue
        blob = codec.encode(data, **settings)
        (folder / f"{name}.bin").write_bytes(data)
        (folder / f"{name}.memz").write_bytes(blob)


if __name__ == "__main__":
    main()
