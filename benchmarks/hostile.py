"""Files that are made to do harm: the result of reading each, the memory, the time, and what the process accesses.

    python benchmarks/hostile.py [--out FOLDER]

Each is read in a process that records every opened file, connection, started program and unpickled object. It may
access only Python's own files and those that it was given, but not a folder to which names of models point. Files that
need a model are read with the tiny one in spec/vectors. Writes hostile.json and hostile.md.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import isolated
from faults import TEXT, TINY
from force_lm import store_nothing
from hostile_files import VICTIM, hostile

from memcodec import Archive, FrameSettings, MemcodecError, Primer, Prompt, Readout, container
from memcodec import decode as decode_alone
from memcodec.bench.results import machine, today
from memcodec.cache import cache_folder
from memcodec.codec import Codec

HARMLESS = "refused"


def main() -> None:
    """Read all files and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = judge()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"date": today(), "machine": machine(), "rows": rows}
    (options.out / "hostile.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "hostile.md").write_text(render(rows))
    if any(row["wrong"] for row in rows):
        sys.exit("hostile: error: something is wrong, see hostile.json")


def render(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| file | result | s | memory, MB | bound, MB |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        what = row["what"].replace("|", "\\|")
        sizes = f"{row['memory'] / 1e6:.1f} | {row['bound'] / 1e6:.0f}"
        lines.append(f"| {what} | {row['outcome']} | {row['seconds']:.3f} | {sizes} |")
    return "\n".join(lines) + "\n"


def judge(large: bool = True) -> list[dict[str, Any]]:
    """Make all files in one process, whose memory is not counted, and read them in another.

    large: include files that take long to make.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(folder, large))
        maker.start()
        maker.join()
        listed = json.loads((Path(folder) / "cases.json").read_text())
        for case, outcome in zip(listed, isolated.run(cases, folder), strict=True):
            wrong = outcome.word != HARMLESS or outcome.memory > case["memory"]
            rows.append({"what": case["what"], "outcome": outcome.word, "seconds": outcome.seconds,
                         "memory": outcome.memory, "bound": case["memory"], "wrong": wrong})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def make(folder: str, large: bool) -> None:
    """Write all cases into a folder."""
    listed = []
    for number, case in enumerate(hostile(Path(folder), large)):
        (Path(folder) / f"case-{number}").write_bytes(case.blob)
        listed.append({"what": case.what, "reader": case.reader, "memory": case.memory})
    (Path(folder) / "cases.json").write_text(json.dumps(listed))


def cases(folder: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """The cases in a folder, for `isolated.run`."""
    codec = Codec.load(str(TINY), device="cpu", threads=1)
    with store_nothing():  # load the kernels now: on first use they are read from the cache and unpickled
        good = [codec.encode(TEXT * 6, chunk_tokens=40, site=site) for site in (Readout(0.1), Prompt(steps=2))]
        primed = codec.with_primer(Primer.from_texts([TEXT], 20, codec))
        good.append(primed.encode(TEXT * 9, chunk_tokens=40, context=50))
    assert all(primed.decode(blob) and primed.decode_frame(primed.encode_frame(TEXT)) for blob in good)
    watch = Watch(Path(folder))
    for number, case in enumerate(json.loads((Path(folder) / "cases.json").read_text())):
        yield case["what"], watch.around(partial(READERS[case["reader"]], codec, Path(folder) / f"case-{number}"))


class Watch:
    """Records what the process accesses while a case runs."""

    def __init__(self, folder: Path) -> None:
        self._on = False
        self._seen: list[str] = []
        own = str(folder), str(cache_folder()), str(Path(__file__).parent.parent), tempfile.gettempdir()
        self._ours = (*own, sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/null", "/usr/lib")
        self._victim = str(folder / VICTIM)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, given: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in ("open", "os.listdir", "os.scandir"):
            path = os.fsdecode(given[0]) if isinstance(given[0], str | bytes | os.PathLike) else ""
            is_victim = os.path.abspath(path).startswith(self._victim)  # noqa: PTH100 - resolve() raises errors
            if is_victim or (event == "open" and path and not path.startswith(self._ours)):
                self._seen.append(f"opens {path}")
        elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec",
                       "pickle.find_class"):  # fmt: skip
            self._seen.append(event)

    def around(self, read: Callable[[], object]) -> Callable[[], str]:
        """A case that returns "refused", or else a description of what is wrong."""

        def run() -> str:
            self._seen, self._on = [], True
            try:
                read()
                word = "reads"
            except MemcodecError as error:
                word = HARMLESS if "\n" not in str(error) else "an error of more than one line"
            except Exception as error:
                word = f"raises {type(error).__name__}: {error}"
            finally:
                self._on = False
            return ", ".join(dict.fromkeys(self._seen)) or word

        return run


# ---- the readers


def _file(codec: Codec, path: Path) -> None:
    for parsed in container.unpack_all(path.read_bytes()):
        for _ in codec.decode_pieces(parsed):
            pass


def _container(codec: Codec, path: Path) -> None:
    parsed = container.unpack(path.read_bytes())
    raise MemcodecError(f"{len(parsed.chunks)} chunks")


def _salvage(codec: Codec, path: Path) -> None:
    size = sum(len(piece) for piece in codec.salvage(path.read_bytes()) if isinstance(piece, bytes))
    raise MemcodecError(f"{size} bytes")


def _alone(codec: Codec, path: Path) -> None:
    decode_alone(path.read_bytes())


def _archive(codec: Codec, path: Path) -> None:
    list(Archive(path, codec))


def _documents(codec: Codec, path: Path) -> None:
    """Read one document after the other, without keeping them."""
    raise MemcodecError(f"{sum(1 for _ in Archive(path, codec))} documents")


def _primer(codec: Codec, path: Path) -> None:
    Primer.from_bytes(path.read_bytes())


def _frames(codec: Codec, path: Path) -> None:
    refused = 0
    made = json.loads(path.read_bytes())
    for frame in made:
        try:
            codec.decode_frame(bytes.fromhex(frame), FrameSettings(checksum=4))
        except MemcodecError:
            refused += 1
    if refused == len(made):
        raise MemcodecError("all of them")


def _model(codec: Codec, path: Path) -> None:
    """Load a model folder. Raises the errors of loading, and AssertionError if code of the folder ran."""
    folder = Path(os.fsdecode(path.read_bytes()))
    try:
        Codec.load(str(folder), device="cpu").encode(TEXT)
    finally:
        assert not (folder / "was here").exists(), "its code ran"


READERS: dict[str, Callable[[Codec, Path], None]] = {
    "file": _file, "container": _container, "salvage": _salvage, "alone": _alone, "archive": _archive,
    "documents": _documents, "primer": _primer, "frames": _frames, "model": _model,
}  # fmt: skip


if __name__ == "__main__":
    main()
