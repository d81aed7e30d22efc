"""Coverage-guided fuzzing of everything that reads bytes: python benchmarks/fuzz.py [--minutes N] [--out FOLDER]

Needs atheris (pip install atheris). The first byte of an input selects its reader: a whole file, its document tensor
(with a header, lengths and a checksum that match), a damaged file that is salvaged, the index of an archive, a primer,
or a frame. Any error must be a MemcodecError. The seeds are the vectors in spec/, what this script makes with the tiny
model in spec/vectors, and the inputs that earlier runs kept in --out. Failing inputs are files crash-* there. Inputs
that can be read are decoded with the tiny model, up to 300 tokens.
"""

import argparse
import importlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FunctionType
from typing import Any

from faults import TEXT, sealed
from force_lm import store_nothing

ROOT = Path(__file__).parent.parent
TINY = ROOT / "spec" / "vectors" / "tiny"
INSTRUMENTED = (  # numba compiles the rest
    "container.assembly", "container.insertion", "container.numbers", "container.read", "document.references",
    "files.archive", "files.archive_index", "files.keys", "frames", "models.tokenizer", "primer",
)  # fmt: skip
TOKENS = 300  # the most that are decoded for one input


def main() -> None:
    """Make seeds, and fuzz in a separate process, which libFuzzer ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.work:
        fuzz(rest)
        return
    corpus = options.out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    command = [sys.executable, __file__, "--work", str(corpus), f"-max_total_time={int(60 * options.minutes)}"]
    command += [
        "-max_len=6000",
        "-timeout=20",
        "-rss_limit_mb=4096",
        f"-artifact_prefix={options.out}/",
        "-print_final_stats=1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    (options.out / "log").write_text(done.stdout + done.stderr)
    lines = (done.stdout + done.stderr).splitlines()
    print(*[line for line in lines if line.startswith("stat::")], sep="\n")
    finds = (
        sorted(options.out.glob("crash-*")) + sorted(options.out.glob("timeout-*")) + sorted(options.out.glob("oom-*"))
    )
    if done.returncode or finds:
        print(*lines[-40:], sep="\n")
        sys.exit(f"fuzz: error: {len(finds)} failing inputs in {options.out}")


def seeds() -> list[bytes]:
    """Valid inputs, some of which have more than TOKENS, or need another model or primer, and are not decoded."""
    found = []
    for blob in [*(path.read_bytes() for path in sorted(TINY.glob("*.memz"))), *files()]:
        found += [b"\0" + blob, b"\2" + blob]
        (length,) = struct.unpack("<Q", blob[:8])
        header = json.loads(blob[8 : 8 + length])
        memories = header.get("memories", {"data_offsets": [0, 0]})["data_offsets"][1]
        body = blob[8 + length : -4]
        found.append(b"\1" + struct.pack("<H", memories) + body)
    found += [b"\3" + body for body in archives()]
    found.append(b"\4" + (TINY / "primer.safetensors").read_bytes())
    for path in sorted((ROOT / "spec" / "frames").glob("*.json")):
        found += [b"\5" + bytes.fromhex(case["frame"]) for case in json.loads(path.read_text())["frames"]]
    return found + [b"\5" + frame for frame in frames()]


def files() -> list[bytes]:
    """Short files of the tiny model: of both sites, in groups and chunks, with stored bytes and with references."""
    from memcodec import Codec, Prompt, Readout

    codec, text = Codec.load(str(TINY / "model"), device="cpu", threads=1), TEXT.encode()[:120]
    odd = bytes(range(120, 150)) * 3
    with store_nothing():
        made = [
            codec.encode(text, level=9), codec.encode(text, site=Readout(0.3, 16), chunk_tokens=20, context=0),
            codec.encode(text, site=Prompt(2, 2, 2)), codec.encode(text + odd + text[::-1], context=30),
        ]  # fmt: skip
    return [*made, codec.encode(odd), codec.encode(b"")]


def frames() -> list[bytes]:
    """Frames of the tiny model with the settings of `read`."""
    from memcodec import Codec, FrameSettings

    codec = Codec.load(str(TINY / "model"), device="cpu", threads=1)
    with store_nothing():
        return codec.encode_frames([TEXT[:40], TEXT[:100], b"\xff" * 100, b""], FrameSettings(max_bytes=TOKENS))


def archives() -> list[bytes]:
    """What follows the identity in some archives: without keys, with keys, for a primer, at a level with memories."""
    from memcodec import Archive, Codec, Primer, container

    codec = Codec.load(str(TINY / "model"), device="cpu", threads=1)
    primer = Primer.load(TINY / "primer.safetensors")
    texts = ["first", "second", "first", "\0" * 40]
    options: list[dict[str, Any]] = [
        {}, {"keys": list("abcd")}, {"primer": primer, "with_primer": False}, {"level": 6},
    ]  # fmt: skip
    found: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        for more in options:
            path = Path(folder) / f"{len(found)}"
            Archive.create(path, texts, codec=codec, **more)
            blob = path.read_bytes()
            (length,) = struct.unpack("<Q", blob[:8])
            found.append(blob[8 + length + container.IDENTITY_BYTES : -4])
    return found


def read(data: bytes, codec: object) -> None:
    """Read an input with the reader that its first byte selects."""
    from memcodec import Archive, FrameSettings, MemcodecError, Primer, container
    from memcodec.codec import Codec
    from memcodec.frames import stated_tokens

    assert isinstance(codec, Codec)
    way, data = data[:1], data[1:]
    try:
        if way == b"\0":
            _decode(codec, sealed(data), data)
        elif way == b"\1" and len(data) > 2:
            _decode(codec, with_header(data), data)
        elif way == b"\2":
            parsed = container.unpack(data, damaged=True)
            if sum(chunk.tokens for chunk in parsed.chunks) <= TOKENS and parsed.size < 1 << 20:
                list(codec.salvage(data))
        elif way == b"\3":
            index = codec.model.identity[: container.IDENTITY_BYTES] + data
            with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
                path = Path(folder) / "a"
                path.write_bytes(archive(index))
                found = Archive(path, codec)
                for i in range(min(len(found), 4)):
                    if stated_tokens(found._frame(i)) <= TOKENS:
                        assert len(found[i]) <= 1 << 20
        elif way == b"\4":
            Primer.from_bytes(data)
        elif way == b"\5":
            codec.decode_frame(data, FrameSettings(max_bytes=TOKENS))
    except MemcodecError as error:
        assert "\n" not in str(error)


def _decode(codec: object, *blobs: bytes) -> None:
    from memcodec import MemcodecError, container
    from memcodec.codec import Codec

    assert isinstance(codec, Codec)
    for blob in blobs:
        try:
            for parsed in container.unpack_all(blob):
                if sum(chunk.tokens for chunk in parsed.chunks) > TOKENS or parsed.size > 1 << 20:
                    continue
                for piece in codec.decode_pieces(parsed):
                    assert len(piece) <= 1 << 20
        except MemcodecError as error:
            assert "\n" not in str(error)


def with_header(data: bytes) -> bytes:
    """A file whose tensors are these bytes, of which the first belong to the memories."""
    (memories,), body = struct.unpack("<H", data[:2]), data[2:] + bytes(4)
    memories = min(memories, len(body) - 4)
    header: dict[str, object] = {"__metadata__": {"memcodec": "3", "model": "tiny"}}
    if memories:
        header["memories"] = {"dtype": "U8", "shape": [memories], "data_offsets": [0, memories]}
    entry = {"dtype": "U8", "shape": [len(body) - memories], "data_offsets": [memories, len(body)]}
    text = json.dumps(header | {"document": entry}).encode()
    return sealed(struct.pack("<Q", len(text)) + text + body)


def archive(index: bytes) -> bytes:
    """An archive with this index."""
    entry = {"dtype": "U8", "shape": [len(index) + 4], "data_offsets": [0, len(index) + 4]}
    header = {"__metadata__": {"memcodec": "archive 1", "model": "tiny"}, "archive": entry}
    text = json.dumps(header, separators=(",", ":")).encode()
    return sealed(struct.pack("<Q", len(text)) + text + index + bytes(4))


def functions_of(name: str) -> list[FunctionType]:
    """The functions and methods that a module of memcodec defines in Python."""
    module = importlib.import_module(f"memcodec.{name}")
    members = [vars(found).values() if isinstance(found, type) else [found] for found in vars(module).values()]
    unwrapped = (getattr(member, "__func__", getattr(member, "fget", member)) for some in members for member in some)
    functions = (member for member in unwrapped if isinstance(member, FunctionType))
    return [function for function in functions if function.__module__ == module.__name__]


def fuzz(arguments: list[str]) -> None:
    """Fuzz, in the separate process."""
    import atheris

    os.environ["MEMCODEC_THREADS"] = "1"
    from memcodec.codec import Codec

    for name in INSTRUMENTED:
        for function in functions_of(name):
            atheris.instrument_func(function)
    codec = Codec.load(str(TINY / "model"), device="cpu", threads=1)
    for seed in seeds():  # which compiles the kernels: an input that does would be taken for one that hangs
        read(seed, codec)
    atheris.Setup([sys.argv[0], *arguments], lambda data: read(data, codec))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
