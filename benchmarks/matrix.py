"""Encode in every environment, and decode in all others: files and texts must be the same.

    python benchmarks/matrix.py [--bytes N] [--numba VERSION]... [--torch VERSION]... [--out FOLDER]

An environment is a process with a number of threads, a batch size, kernels, and instruction sets (set by variables).
--numba and --torch add environments with these versions, which pip downloads into separate folders. The texts are in
five languages, in chunks of 16 tokens that see 40 tokens before each (torch on a CPU is slow). Every file that any
environment writes is decoded in all environments. Writes matrix.json and matrix.md.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import corpora

from memcodec import Codec, container
from memcodec.bench.results import machine, today
from memcodec.models.registry import DEFAULT_MODEL

TEXTS = {
    "English": corpora.CORPORA[0],
    "Spanish": corpora.django("es", ""),
    "Russian": corpora.django("ru", ""),
    "German": corpora.django("de", ""),
    "Chinese": corpora.django("zh_Hans", ""),
}
SETTINGS: dict[str, Any] = {"chunk_tokens": 16, "context": 40, "verify": False}


@dataclass(frozen=True)
class Environment:
    """The settings of a process. extra: a folder whose packages take precedence."""

    name: str
    threads: int = 2
    batch: int = 64
    kernels: str = "numba"
    variables: dict[str, str] = field(default_factory=dict)
    extra: str = ""


ENVIRONMENTS = (
    Environment("numba, 2 threads, batch 64"),
    Environment("numba, 1 thread, batch 1", threads=1, batch=1),
    Environment("numba for x86-64-v2 (SSE 4.2)", variables={"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": ""}),
    Environment("numba for x86-64-v3 (AVX2)", variables={"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}),
    Environment(
        "torch, 1 thread, batch 16, oneDNN as on AVX2", 1, 16, kernels="torch", variables={"ONEDNN_MAX_CPU_ISA": "AVX2"}
    ),
    Environment(
        "torch, 2 threads, batch 64, ATen as without AVX", kernels="torch", variables={"ATEN_CPU_CAPABILITY": "default"}
    ),
)


def main() -> None:
    """Encode and decode, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=2560, help="bytes of each text")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--numba", action="append", default=[])
    parser.add_argument("--torch", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        environments = [*ENVIRONMENTS]
        environments += [
            with_package(package, version, Path(folder))
            for package in ("numba", "torch")
            for version in getattr(options, package)
        ]
        found = judge(environments, texts(options.bytes), options.model, Path(folder))
    found |= {"date": today(), "machine": machine(), "settings": SETTINGS}
    (options.out / "matrix.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "matrix.md").write_text(render(found))
    print(render(found))
    if any(row["failed"] for row in found["rows"]):
        sys.exit("matrix: error: something differs, see matrix.json")


def texts(size: int) -> dict[str, bytes]:
    """The texts by language, at most `size` bytes of each, cut between characters."""
    found = {language: corpora.contents(corpus)[:size] for language, corpus in TEXTS.items()}
    return {language: text.decode("utf-8", "ignore").encode() for language, text in found.items()}


def with_package(package: str, version: str, folder: Path) -> Environment:
    """Install another version of a package into a separate folder; numba with its llvmlite."""
    place = folder / f"{package}-{version}"
    needs = [] if package == "numba" else ["--no-deps"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--target", str(place)]
    subprocess.run([*command, *needs, f"{package}=={version}"], check=True)
    if package == "numba":  # pip also installed numpy: use the usual one
        for path in place.glob("numpy*"):
            subprocess.run(["rm", "-r", str(path)], check=True)
    kernels = "numba" if package == "numba" else "torch"
    return Environment(f"{package} {version}", kernels=kernels, extra=str(place))


def judge(environments: list[Environment], given: dict[str, bytes], model: str, folder: Path) -> dict[str, Any]:
    """Encode in all environments, then decode every file in all of them."""
    for language, data in given.items():
        (folder / language).write_bytes(data)
    rows = []
    files: dict[str, str] = {}  # a path of each, by hash
    chunks = 0
    for number, environment in enumerate(environments):
        made = child(environment, model, {language: str(folder / language) for language in given}, "encode", folder)
        if not made and number == 0:
            raise SystemExit(f"matrix: error: {environment.name}: it encodes nothing to compare the others with")
        hashes = {}
        for language, place in made.items():
            blob = Path(place).read_bytes()
            hashes[language] = hashlib.sha256(blob).hexdigest()[:16]
            files.setdefault(f"{language} {hashes[language]}", place)
            chunks += len(container.unpack(blob).chunks) if number == 0 else 0
        rows.append({**asdict(environment), "files": hashes, "failed": 0})
    for row, environment in zip(rows, environments, strict=True):
        found = child(environment, model, files, "decode", folder)
        row["decoded"] = len(found)
        row["failed"] = sum(Path(place).read_bytes() != given[name.split()[0]] for name, place in found.items())
        row["failed"] += len(files) - len(found)
        row["failed"] += sum(row["files"].get(language) != rows[0]["files"][language] for language in given)
    return {"rows": rows, "languages": list(given), "files": len(files), "chunks": chunks}


def child(environment: Environment, model: str, names: dict[str, str], way: str, folder: Path) -> dict[str, str]:
    """Encode or decode in a process of the environment. Returns the paths of the results."""
    start = time.monotonic()
    given = {"environment": asdict(environment), "model": model, "names": names, "way": way,
             "folder": tempfile.mkdtemp(dir=folder)}  # fmt: skip
    path = os.pathsep.join(filter(None, [environment.extra, os.environ.get("PYTHONPATH", "")]))
    variables = os.environ | environment.variables | ({"PYTHONPATH": path} if path else {})
    done = subprocess.run(
        [sys.executable, __file__, "--work", json.dumps(given)], env=variables, stdout=subprocess.PIPE
    )
    print(f"{way} under {environment.name}: {time.monotonic() - start:.0f} s", flush=True)
    if done.returncode:
        return {}
    found: dict[str, str] = json.loads(done.stdout)
    return found


def work(given: dict[str, Any]) -> None:
    """Encode or decode, in the process."""
    environment = given["environment"]
    codec = Codec.load(given["model"], device="cpu", threads=environment["threads"], kernels=environment["kernels"])
    results = {}
    for number, (name, place) in enumerate(given["names"].items()):
        data = Path(place).read_bytes()
        result = codec.encode(data, **SETTINGS) if given["way"] == "encode" else _decoded(codec, data, environment)
        target = Path(given["folder"]) / str(number)
        target.write_bytes(result)
        results[name] = str(target)
    print(json.dumps(results))


def _decoded(codec: Codec, blob: bytes, environment: dict[str, Any]) -> bytes:
    try:
        return codec.decode(blob, batch=environment["batch"])
    except Exception as error:
        return repr(error).encode()


def render(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [f"{found['chunks']} chunks in {len(found['languages'])} languages ({', '.join(found['languages'])}).", ""]
    lines += [
        "| environment | files equal to those of the first | files decoded | failed |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        same = sum(row["files"].get(name) == found["rows"][0]["files"][name] for name in found["languages"])
        lines.append(
            f"| {row['name']} | {same} of {len(found['languages'])} | {row.get('decoded', 0)} | {row['failed']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
