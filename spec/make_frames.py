"""Write missing test vectors of frames: python spec/make_frames.py. Existing ones are never changed."""

import json
from pathlib import Path

from make_vectors import ENGLISH, MIXED

from memcodec.codec import Codec
from memcodec.frames import FrameSettings
from memcodec.primer import Primer

MESSAGES = {
    "short": b'{"level": "info", "user": 17, "text": "signed in"}',
    "empty": b"",
    "mixed": MIXED.encode(),
    "long": (ENGLISH * 2).encode(),
    "bytes": bytes(range(200, 256)),
    "zeros": bytes(500),
}
SETTINGS = {
    "plain": FrameSettings(),
    "primer": FrameSettings(),
    "memories": FrameSettings(checksum=4, memory_share=0.2, chunk_tokens=40, effort=256),
    "dictionary": FrameSettings(checksum=0, dictionary=b"some bytes, " * 3 + bytes(range(190, 256))),
}


def main() -> None:
    """Encode missing vectors with the built-in model."""
    folder = Path(__file__).parent / "frames"
    folder.mkdir(exist_ok=True)
    codec = Codec.load(device="cpu")
    primer = Primer.from_texts([MESSAGES["short"], b'{"level": "warn", "user": 4, "text": "no answer"}'], 60, codec)
    if not (folder / "primer.safetensors").exists():
        primer.save(folder / "primer.safetensors")
    for name, settings in SETTINGS.items():
        path = folder / f"{name}.json"
        if path.exists():
            continue
        used = codec.with_primer(primer) if name == "primer" else codec
        frames = used.encode_frames(MESSAGES.values(), settings)
        about = {
            "checksum": settings.checksum, "memory_share": settings.memory_share,
            "chunk_tokens": settings.chunk_tokens, "dictionary": settings.dictionary.hex(), "primer": name == "primer",
        }  # fmt: skip
        pairs = [{"message": message.hex(), "frame": frame.hex()} for message, frame in
                 zip(MESSAGES.values(), frames, strict=True)]  # fmt: skip
        path.write_text(json.dumps({"settings": about, "frames": pairs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
